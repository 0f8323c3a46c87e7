"""Sequential.fit and evaluate: the command's bits, the history, and what is refused."""

import os
import re
import signal
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from runs import TINY, small_layers
from stacks import state

import minicnn.recipe
from minicnn import (
    Adam,
    Dense,
    ExponentialDecay,
    Flatten,
    RandomAffine,
    Sequential,
    mnist_cnn,
    rng,
)
from minicnn.backends import native
from minicnn.data.digits import draw_digits
from minicnn.data.split import split
from minicnn.recipe import Recipe
from minicnn.training import checkpoint
from minicnn.training.dataset import Data
from minicnn.training.ensemble import train_ensemble
from minicnn.training.history import named
from minicnn.training.interruption import StopOnSignal
from minicnn.training.trainer import Job, Trainer

AUGMENT = RandomAffine(10, 0.1, 0.1, 0.1)
X, Y = draw_digits(120, 0)
NAMES = "params", "moving", "moment_1", "moment_2"


def network(device, nets=3, **options):
    return Sequential(small_layers(0.4, 0.9), nets=nets, device=device, **options)


def fitted(model, epochs=2, **options):
    """The model after a training without progress."""
    given = {"batch_size": 16, "validation_split": 0.1, "augment": AUGMENT, "verbose": 0}
    model.fit(X, Y, epochs=epochs, **{**given, **options})
    return model


def without_seconds(rows):
    return [{name: v for name, v in row.items() if name != "seconds"} for row in rows]


def assert_same_as(path, model):
    """The model holds the state and history of a checkpoint, to the bit."""
    arrays, about = checkpoint.load(path)
    for name in NAMES:
        assert model.ops.to_host(getattr(model, name)).tobytes() == arrays[name].tobytes(), name
    assert int(model.ops.to_host(model.step)[0]) == about["step"] > 0
    rows = [named(row) for row in checkpoint.history_rows(arrays["history"])]
    assert without_seconds(model.history.rows) == without_seconds(rows)


# ---- the command's bits --------------------------------------------------------------------------


@pytest.mark.every_device
def test_fit_gives_the_commands_weights(device, tmp_path, monkeypatch):
    monkeypatch.setattr(minicnn.recipe, "mnist_layers", small_layers)
    recipe = Recipe(nets=3, epochs=2, batch_size=16, momentum=0.9)
    train_ensemble(Job(recipe, Data(X, Y), device, "float32", tmp_path, 2))
    model = fitted(network(device), learning_rate=ExponentialDecay(1e-3, 0.95))
    assert_same_as(tmp_path / "checkpoint.npz", model)


def test_the_notebooks_network_too(run):
    x, y = draw_digits(150)
    model = mnist_cnn(nets=2, momentum=0.9, device="numpy")
    rates = ExponentialDecay(1e-3, 0.95)
    options = {"validation_split": 0.1, "augment": AUGMENT, "learning_rate": rates, "verbose": 0}
    model.fit(x, y, 32, epochs=2, **options)
    assert "--limit=150" in TINY and "--batch-size=32" in TINY
    assert_same_as(run[0] / "checkpoint.npz", model)


def test_workers_do_not_change_the_result():
    assert state(fitted(network("numpy"), workers=2)) == state(fitted(network("numpy")))


@pytest.mark.every_device
def test_a_training_in_two_parts_equals_one(device, tmp_path):
    whole, parts = fitted(network(device), 3), fitted(network(device), 1)
    parts.save(tmp_path / "one.npz")
    parts = minicnn.load_model(tmp_path / "one.npz", device)
    fitted(parts, 3, initial_epoch=1)
    assert state(parts) == state(whole)
    assert [row["epoch"] for row in parts.history.rows] == [2, 3] * 3


@pytest.mark.every_device
def test_a_net_alone_equals_the_same_net_in_company(device):
    together = fitted(network(device))
    alone = fitted(network(device, nets=1, first_net=1))
    assert alone.predict(X).tobytes() == together.predict(X)[1:2].tobytes()


# ---- what it takes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (X[..., None], list(map(int, Y))),
        (X / 255, pd.Series(Y)),
        ((X / 255).astype(np.float32), Y.astype(np.int64)),
        (X.astype(int), pd.DataFrame({"label": Y})),
        (pd.DataFrame(X.reshape(120, 784)), Y),
    ],
    ids="a channel,floats,float32,integers,tables".split(","),
)
def test_images_and_labels_in_every_form_are_the_same(x, y):
    options = {"batch_size": 16, "verbose": 0}
    expected, found = network("numpy", 1), network("numpy", 1)
    expected.fit(X, Y, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found.fit(x, y, **options)
        scores = found.evaluate(x, y)
    assert state(found) == state(expected)
    for name, value in expected.evaluate(X, Y).items():
        np.testing.assert_allclose(scores[name], value, rtol=1e-5)


def test_floats_that_are_no_bytes_are_rounded_with_a_warning():
    levels = X[:20] / 255 * 0.99 + 0.01 / 255  # a hundredth of a level from a byte, or farther
    with pytest.warns(
        UserWarning, match=r"x: the floats are rounded to multiples of 1/255"
    ) as told:
        network("numpy", 1).fit(levels, np.arange(20) % 10, 16, verbose=0)
    assert told[0].filename == __file__


def test_validation_data_replaces_the_split():
    model = fitted(network("numpy"), validation_data=(X[:50], Y[:50]))
    assert model.history.rows[0]["epoch"] == 1
    accuracy = model.evaluate(X[:50], Y[:50])
    last = [row for row in model.history.rows if row["epoch"] == 2]
    np.testing.assert_allclose([row["val_accuracy"] for row in last], accuracy["accuracy"])
    np.testing.assert_allclose([row["val_loss"] for row in last], accuracy["loss"], rtol=1e-6)
    # All images are trained on, so the weights are those of a training without validation.
    assert state(model) == state(fitted(network("numpy"), validation_split=0.0))


def test_learning_rates():
    rates = [row["learning_rate"] for row in fitted(network("numpy", 1)).history.rows]
    assert rates == [1e-3, 1e-3]
    slow = network("numpy", 1, optimizer=Adam(learning_rate=1e-4))
    assert fitted(slow).history.history["learning_rate"] == [1e-4, 1e-4]
    halved = fitted(network("numpy", 1), learning_rate=lambda epoch: 2.0**-epoch)
    assert halved.history.history["learning_rate"] == [0.5, 0.25]


# ---- history, hook, interruption -----------------------------------------------------------------


def test_the_history():
    history = network("numpy").fit(X, Y, 16, epochs=2, validation_split=0.2, verbose=0)
    table = history.to_frame()
    assert list(zip(table["net"], table["epoch"], strict=True)) == [
        (net, epoch) for net in (1, 2, 3) for epoch in (1, 2)
    ]
    assert history.epoch == [1, 2]
    assert set(history.history) == {"loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"}
    for name, values in history.history.items():
        expected = [table[name][table["epoch"] == epoch].mean() for epoch in (1, 2)]
        assert values == pytest.approx(expected)
    assert "3 net(s), 2 epoch(s)" in repr(history)
    plain = network("numpy", 1).fit(X, Y, 16, verbose=0)
    assert "val_loss" not in plain.rows[0] and "val_loss" not in plain.to_frame()


@pytest.mark.every_device
def test_on_epoch_ends_the_training_of_a_net(device):
    seen = []

    def stop_the_second(row):
        seen.append((row["net"], row["epoch"]))
        return row["net"] == 2

    model = fitted(network(device), 3, on_epoch=stop_the_second)
    assert sorted(seen) == [(1, 1), (1, 2), (1, 3), (2, 1), (3, 1), (3, 2), (3, 3)]
    assert [(row["net"], row["epoch"]) for row in model.history.rows] == sorted(seen)
    whole, short = fitted(network(device), 3), fitted(network(device), 1)
    for name in NAMES:
        found, three, one = (m.ops.to_host(getattr(m, name)) for m in (model, whole, short))
        assert found[[0, 2]].tobytes() == three[[0, 2]].tobytes()
        assert found[1].tobytes() == one[1].tobytes()


def test_ctrl_c_keeps_the_weights_of_the_last_step():
    def interrupt(row):
        if row["net"] == 2:
            signal.raise_signal(signal.SIGINT)

    model = network("numpy")
    with pytest.raises(KeyboardInterrupt):
        fitted(model, on_epoch=interrupt)
    assert [(row["net"], row["epoch"]) for row in model.history.rows] == [(1, 1), (1, 2), (2, 1)]
    whole, one = fitted(network("numpy")), fitted(network("numpy"), 1)
    new = network("numpy")
    for net, same in enumerate((whole, one, new)):
        assert model.predict(X)[net].tobytes() == same.predict(X)[net].tobytes()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    fitted(model)  # it can be trained further


def test_ctrl_c_in_the_last_epoch_is_raised_too():
    def interrupt(row):
        if row["epoch"] == 2 and row["net"] == 3:
            signal.raise_signal(signal.SIGINT)

    model = network("numpy")
    with pytest.raises(KeyboardInterrupt):
        fitted(model, on_epoch=interrupt)
    assert state(model) == state(fitted(network("numpy")))


def test_ctrl_c_in_the_middle_of_an_epoch(monkeypatch):
    """All nets of a GPU stop after the same step."""
    if native.problem():
        pytest.skip(native.problem())
    steps, step = [], Trainer.step

    def interrupted_in_the_second(self):
        step(self)
        steps.append(1)
        if len(steps) == 2:  # the one that is captured; later ones are replayed
            signal.raise_signal(signal.SIGINT)

    model = network("emulated", 2)
    monkeypatch.setattr(Trainer, "step", interrupted_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        fitted(model)
    assert len(steps) == 2 == int(model.ops.to_host(model.step)[0]) and model.history.rows == []


def test_signals_while_the_states_are_kept(monkeypatch):
    restore = checkpoint.restore_model

    def interrupted(model, *state):
        if isinstance(model, Sequential):
            for _ in range(3):
                signal.raise_signal(signal.SIGINT)
        restore(model, *state)

    model = network("numpy")
    monkeypatch.setattr(checkpoint, "restore_model", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fitted(model)
    monkeypatch.undo()
    assert state(model) == state(fitted(network("numpy")))


@pytest.mark.every_device
def test_nets_that_ended_at_different_steps_stay_independent(device, tmp_path):
    def trained_on(model, first):
        """Net 1 is stopped after `first` epochs, others after 2; then all train for 2 more."""
        fitted(model, on_epoch=lambda row: row["net"] == 1 and row["epoch"] == first)
        model.save(tmp_path / "uneven.npz")
        return [
            fitted(m, 4, initial_epoch=2).predict(X)
            for m in (model, minicnn.load_model(tmp_path / "uneven.npz", device))
        ]

    together = trained_on(network(device), 1)
    alone = [trained_on(network(device, 1, first_net=net), 1)[0][0] for net in range(3)]
    for predictions in together:
        assert predictions.tobytes() == np.stack(alone).tobytes()


def test_a_net_that_was_not_reached_begins_as_a_new_one():
    def interrupt(row):
        signal.raise_signal(signal.SIGINT)

    model = network("numpy")
    with pytest.raises(KeyboardInterrupt):
        fitted(model, on_epoch=interrupt)  # net 1 has had an epoch, the others nothing
    assert (
        fitted(model).predict(X)[1:].tobytes() == fitted(network("numpy")).predict(X)[1:].tobytes()
    )


@pytest.mark.every_device
def test_what_on_epoch_raises_is_raised(device):
    def fail(row):
        if (row["net"], row["epoch"]) == (2, 1):
            raise LookupError("mine")

    model = network(device)
    with pytest.raises(LookupError, match="mine"):
        fitted(model, on_epoch=fail)
    one = fitted(network(device), 1)  # what was trained is kept
    assert model.predict(X)[1].tobytes() == one.predict(X)[1].tobytes()
    assert (2, 1) in [(row["net"], row["epoch"]) for row in model.history.rows]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fit_takes_the_steps_of_train_on_batch(dtype):
    """With the model's Adam and type, a schedule, and epochs that begin later."""
    options = {"dtype": dtype, "optimizer": Adam(beta_1=0.5, epsilon=1e-3), "seed": 3}
    model, other = (network("numpy", 1, **options) for _ in range(2))
    rates = {3: 0.01, 4: 0.003}
    model.fit(X, Y, 16, epochs=4, initial_epoch=2, learning_rate=rates.get, verbose=0)
    images, _ = split(len(X), 0, 3, 0)
    for epoch, rate in rates.items():
        order = images[rng.permutation(3, 0, rng.SHUFFLE, epoch - 1, len(X))]
        for rows in order[: 7 * 16].reshape(7, 16):
            x = (X[rows, ..., None] / 255).astype(dtype)
            other.train_on_batch(x[None], Y[rows][None], rate)
    assert model.params.dtype == dtype
    tolerance = {"float32": 1e-4, "float64": 1e-9}[dtype]
    np.testing.assert_allclose(model.params, other.params, rtol=tolerance, atol=tolerance)


class Scaled(Dense):
    """A layer of a user: such a network can be trained, but not saved."""


def test_layers_of_the_user_can_be_trained():
    layers = [Flatten(), Scaled(10, "softmax")]
    model, same = (
        Sequential(stack, device="numpy") for stack in (layers, [Flatten(), Dense(10, "softmax")])
    )
    assert state(fitted(model)) == state(fitted(same))


class OddError(ValueError):
    """It cannot be unpickled: pickle would call it with one argument."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def raise_oddly(row):
    raise OddError("this", "that")


def stop_at_once(row):
    return True


def die_once(row):
    """Kill this process, unless that was done before."""
    path = Path(os.environ["DIED"])
    if row["net"] == 2 and not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
def test_a_worker_that_dies_costs_nothing_but_time(tmp_path, monkeypatch):
    monkeypatch.setenv("DIED", str(tmp_path / "died"))
    with pytest.warns(UserWarning, match="the process that trained net 2 died; another one begins"):
        model = fitted(network("numpy", 2), on_epoch=die_once, workers=2)
    assert state(model) == state(fitted(network("numpy", 2)))


def test_hooks_in_worker_processes(monkeypatch):
    model = fitted(network("numpy", 2), on_epoch=stop_at_once, workers=2)
    assert [(row["net"], row["epoch"]) for row in model.history.rows] == [(1, 1), (2, 1)]
    model = network("numpy", 2)
    with pytest.raises(RuntimeError, match="OddError: this and that"):
        fitted(model, 9, on_epoch=raise_oddly, workers=2)
    found = {(row["net"], row["epoch"]) for row in model.history.rows}
    assert found and found <= {(1, 1), (2, 1)}  # the other net may have been stopped before

    def of_a_notebook(row):
        return True

    # As in a notebook: this process can name the function, a new one does not find it.
    of_a_notebook.__module__, of_a_notebook.__qualname__ = "__main__", "of_a_notebook"
    monkeypatch.setattr(sys.modules["__main__"], "of_a_notebook", of_a_notebook, raising=False)
    with pytest.raises(
        ValueError, match=r"cannot import what it needs: .*of_a_notebook.*one worker"
    ):
        fitted(network("numpy", 2), on_epoch=of_a_notebook, workers=2)


def test_a_signal_is_held_back_while_results_are_kept():
    with StopOnSignal("stopping", (signal.SIGINT,)) as stop:
        with stop.hold():
            for _ in range(3):
                signal.raise_signal(signal.SIGINT)
        assert stop() and stop.status == 130
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.every_device
def test_a_net_that_diverges(device, tmp_path):
    model = network(device)
    weights = model.get_weights()
    weights[-2][1] = 1e38  # the dense kernel of net 2: its logits are not finite
    model.set_weights(weights)
    with pytest.warns(UserWarning, match=r"net 2 stopped: its loss or weights were not finite"):
        fitted(model)
    whole = fitted(network(device))
    assert model.predict(X)[[0, 2]].tobytes() == whole.predict(X)[[0, 2]].tobytes()
    with pytest.warns(UserWarning, match=r"fit leaves out net 2: weights that are not finite stay"):
        fitted(model, 3, initial_epoch=2)
    assert {row["net"] for row in model.history.rows} == {1, 3}
    scores = model.evaluate(X, Y)
    assert np.isnan(scores["accuracy"]).tolist() == [False, True, False]
    together = model.predict(X)[[0, 2]].sum(axis=0).argmax(axis=1)
    assert scores["ensemble_accuracy"] == np.mean(together == Y)
    model.save(tmp_path / "two.npz")
    two = minicnn.load_model(tmp_path / "two.npz", device)
    assert two.nets.tolist() == [0, 2]
    assert state(fitted(two, 4, initial_epoch=3))
    hopeless = network(device, 1)
    hopeless.set_weights([np.full_like(weight, np.nan) for weight in hopeless.get_weights()])
    with pytest.raises(ValueError, match=r"weights: got none that are finite, .* to train"):
        fitted(hopeless)
    with pytest.raises(ValueError, match=r"weights: got none that are finite, .* to save"):
        hopeless.save(tmp_path / "none.npz")


def test_what_is_shown(capsys):
    model = network("numpy", 2)
    fitted(model, verbose=2)
    out, err = capsys.readouterr()
    line = r"net 1, epoch 1 of 2: loss \d\.\d+, accuracy 0\.\d+, val_loss .*, val_accuracy .* s"
    assert re.fullmatch(line, out.splitlines()[0]) and out.count("\n") == 4 and err == ""
    fitted(model)
    assert capsys.readouterr() == ("", "")
