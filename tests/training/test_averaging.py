"""Averages of weights over steps: in a Trainer, its checkpoints, a command and Sequential.fit."""

from dataclasses import replace

import numpy as np
import oracles
import pytest
from runs import small_layers

import minicnn.recipe
from minicnn import Sequential, devices
from minicnn.data.digits import draw_digits
from minicnn.files import DataError
from minicnn.recipe import Recipe
from minicnn.training import checkpoint, ensemble, resources, trainer, workers
from minicnn.training.dataset import Data
from minicnn.training.trainer import Job, Trainer

X, Y = draw_digits(100, 0)
DATA = Data(X, Y, X[:20], Y[:20], "digest")
PLAIN = Recipe(nets=2, epochs=3, batch_size=16, momentum=0.9, learning_rate=0.01, seed=4)
MEAN, EXPONENTIAL = replace(PLAIN, average_epochs=2), replace(PLAIN, average_decay=0.8)
NAMES = "params", "moving", "moment_1", "moment_2"
NETS = range(1, 3)
STEPS = 5  # of an epoch


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(minicnn.recipe, "mnist_layers", small_layers)


def make_job(recipe, device="numpy", **options):
    return Job(recipe, DATA, device, "float32", None, **options)


def never():
    return False


def train_on(made, should_stop=never):
    """The Trainer, trained to the end."""
    while not made.is_done:
        made.train_epoch(lambda images: None, should_stop)
    return made


def trained(job, nets=NETS):
    return train_on(Trainer(job, nets))


def bits(made, rows=slice(None)):
    """Everything that must be equal, and the history without seconds."""
    arrays = {name: made.ops.to_host(getattr(made.model, name))[rows].tobytes() for name in NAMES}
    return arrays, made.steps_done, [{**row, "seconds": 0} for row in made.history]


def assert_close(found, expected):
    """Within the rounding of a running mean in float32."""
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


def average_by_hand(recipe, after_steps):
    """From the weights (steps, E, P) after each step, in float64."""
    after_steps = np.array(after_steps, float)
    if recipe.average_epochs:
        return after_steps[-STEPS * recipe.average_epochs :].mean(axis=0)
    average = after_steps[0]
    for weights in after_steps[1:]:
        average = recipe.average_decay * average + (1 - recipe.average_decay) * weights
    return average


@pytest.mark.full(but="numpy-mean|cpu-exponential")
@pytest.mark.every_device
@pytest.mark.parametrize("recipe", [MEAN, EXPONENTIAL], ids=["mean", "exponential"])
def test_the_weights_are_the_average_of_those_after_each_step(monkeypatch, device, recipe):
    after_steps, plain = [], Trainer.step

    def recorded(self):
        plain(self)
        after_steps.append(self.ops.to_host(self.model.params))

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", recorded)
        found = trained(make_job(recipe, device, graph=False))
    assert_close(found.ops.to_host(found.model.params), average_by_hand(recipe, after_steps))
    # The steps, and all of the history but for the last validation, are those without averaging.
    without = trained(make_job(PLAIN, device))
    np.testing.assert_array_equal(after_steps[-1], without.ops.to_host(without.model.params))
    for one, other in zip(found.history, without.history, strict=True):
        assert one["train_loss"] == other["train_loss"]
        assert (one["validation_loss"] == other["validation_loss"]) == (one["epoch"] < 3)
    assert found.steps_done == 3 * STEPS


def batches_after(made, count):
    """The batches x (E, B, H, W, 1) and labels that a fourth epoch would begin with."""
    made.begin_epoch(3)
    for _ in range(count):
        made._load_batch()
        yield made.plan.x.copy(), made.plan.labels.copy()
        made.model.step += 1


@pytest.mark.parametrize("images", [6400, 40])
def test_the_moving_statistics_are_the_means_of_the_batches(monkeypatch, images):
    """The first normalisation's by hand, the second's, after dropout, of a step in training."""
    monkeypatch.setattr(trainer, "_STATISTICS_IMAGES", images)
    found = trained(make_job(MEAN))
    model, batches = found.model, min(STEPS, -(-images // 16))
    moving = {name: array.copy() for name, array in model.named_weights.items() if "moving" in name}
    sums = {name: np.zeros(array.shape) for name, array in moving.items()}
    weights = model.named_weights
    for x, labels in batches_after(found, batches):
        model.loss_and_gradients(x, labels)
        frames = [frame for _, frame in found.plan.passes if hasattr(frame.saved, "mean")]
        for place, frame in enumerate(frames):
            name = f"batch_normalization{'_1' if place else ''}/moving_"
            sums[name + "mean"] += frame.saved.mean
            sums[name + "variance"] += frame.saved.variance
        for e in range(2):  # by hand
            kernel, bias = (weights[f"conv2d/{name}"][e] for name in ("kernel", "bias"))
            y = np.maximum(oracles.conv2d(x[e], kernel, bias, (3, 3), "valid"), 0)
            np.testing.assert_allclose(frames[0].saved.mean[e], y.mean(axis=(0, 1, 2)), rtol=1e-4)
            np.testing.assert_allclose(
                frames[0].saved.variance[e], y.var(axis=(0, 1, 2)), rtol=1e-4
            )
    for name, array in moving.items():
        assert_close(array, sums[name] / batches)


@pytest.mark.full(but="numpy-exponential|cpu-mean|emulated-mean")
@pytest.mark.every_device
@pytest.mark.parametrize("recipe", [MEAN, EXPONENTIAL], ids=["mean", "exponential"])
def test_alone_in_company_captured_or_not(device, recipe):
    job = make_job(recipe, device)
    together = trained(job)
    assert bits(together) == bits(trained(replace(job, graph=False)))
    for i, net in enumerate(NETS):
        alone, _, rows = bits(trained(job, range(net, net + 1)))
        assert alone == bits(together, slice(i, i + 1))[0]
        assert rows == [row for row in bits(together)[2] if row["net"] == net]


# Calls of should_stop before the one that stops: in the first epoch, and the first that the mean
# takes; after all steps: in the statistics, and in the validation.
ALL = 3 * STEPS + 2  # steps, and validations
STOPS = 3, STEPS + 3, 2 * STEPS + 4, ALL, ALL + 2, ALL + STEPS - 1


@pytest.mark.full(but="numpy-mean|cpu-exponential")
@pytest.mark.every_device
@pytest.mark.parametrize("recipe", [MEAN, EXPONENTIAL], ids=["mean", "exponential"])
def test_a_resumed_training_has_the_same_bits(device, recipe, tmp_path):
    job = make_job(recipe, device)
    expected = bits(trained(job))
    for stop in STOPS if device == "numpy" else STOPS[2:5:2]:
        first, path = Trainer(job, NETS), tmp_path / f"{stop}.npz"
        stops = iter([False] * stop + [True])
        with pytest.raises(workers.Interrupted):
            train_on(first, lambda stops=stops: next(stops))
        assert first.steps_done == min(3 * STEPS, stop - first.epochs_done)
        first.save(path)
        arrays, _ = checkpoint.load(path)
        assert arrays["averaged"].shape == arrays["params"].shape
        second = Trainer(job, NETS)
        second.load(path)
        assert bits(train_on(second)) == expected, stop
        train_on(first)  # in the same process
        assert bits(first) == expected, stop


def test_a_net_of_a_group_goes_on_alone(tmp_path):
    whole, first = trained(make_job(EXPONENTIAL)), Trainer(make_job(EXPONENTIAL), NETS)
    first.train_epoch(lambda images: None, never)
    first.save(tmp_path / "state.npz")
    second = Trainer(make_job(EXPONENTIAL), range(2, 3))
    second.load(tmp_path / "state.npz")
    assert bits(train_on(second))[0] == bits(whole, slice(1, 2))[0]


def test_a_net_that_diverges_changes_no_other():
    job = make_job(EXPONENTIAL)
    made, whole = Trainer(job, NETS), trained(job)
    made.train_epoch(lambda images: None, never)
    made.model.params[0, :9] = np.inf
    train_on(made)
    arrays, _ = made.state()
    assert made.diverged == {1: (2, 1)}
    assert bits(made, slice(1, 2))[0] == bits(whole, slice(1, 2))[0]
    assert np.isnan(arrays["params"][0]).all() and np.isfinite(arrays["params"][1]).all()


def test_without_averaging_there_is_no_array_and_no_operation(monkeypatch):
    made = Trainer(make_job(PLAIN), NETS)
    assert made.averaged is None
    assert "averaged" not in made.state()[0]
    with monkeypatch.context() as patch:
        patch.setattr("minicnn.backends.ops_numpy.average", None)
        train_on(made)
    ops = devices.choose("numpy", "float32")[1]
    plain, averaging = (resources.arrays_bytes(recipe, ops, 2, X, None) for recipe in (PLAIN, MEAN))
    P, most_steps = made.model.params.shape[1], len(X) // 16
    assert averaging == plain + 2 * P * 4 + most_steps * 8


def changed_state(tmp_path, change):
    """(Trainer, path) of a state after an epoch, with its arrays changed."""
    made, path = Trainer(make_job(EXPONENTIAL), NETS), tmp_path / "state.npz"
    made.train_epoch(lambda images: None, never)
    arrays, about = made.state()
    change(arrays)
    checkpoint.save(path, arrays, about)
    return Trainer(make_job(EXPONENTIAL), NETS), path


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda a: a.pop("averaged"), "averaged: got nothing, expected averages of the weights"),
        (lambda a: a.update(averaged=a["averaged"][:, 1:]), r"averaged: got shape \(2, \d+\), exp"),
        (
            lambda a: a.update(averaged=a["averaged"][:1]),
            r"averaged: got shape \(1, \d+\) of float",
        ),
        (lambda a: a.update(averaged=a["averaged"][0]), r"averaged: got shape \(\d+,\) of float"),
    ],
)
def test_a_checkpoint_with_other_averages_is_refused(tmp_path, change, told):
    made, path = changed_state(tmp_path, change)
    before = bits(made)
    with pytest.raises(DataError, match=f"^{path}: {told}"):
        made.load(path)
    assert bits(made) == before


def test_another_array_at_the_end_of_a_checkpoint_is_refused(tmp_path):
    made, path = changed_state(tmp_path, lambda arrays: None)
    arrays, about = checkpoint.load(path)
    arrays["other"] = arrays.pop("averaged")
    checkpoint.archive.write(path, arrays, about)
    with pytest.raises(DataError, match="averaged: not as minicnn writes it"):
        made.load(path)


# ---- ensembles and fit ---------------------------------------------------------------------------


@pytest.mark.parametrize("group_size", [1, 2])
def test_an_ensemble_that_is_stopped_anywhere_ends_with_the_same_file(tmp_path, group_size):
    def run(name, recipe=MEAN, should_stop=never):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        job = replace(make_job(recipe), folder=folder, group_size=group_size)
        found = ensemble.train_ensemble(job, should_stop=should_stop)
        arrays, about = checkpoint.load(folder / ensemble.FINAL)
        assert "averaged" not in arrays
        assert [path.name for path in folder.iterdir()] == [ensemble.FINAL]
        arrays["history"] = arrays["history"][:, :-1]
        return (
            found.probabilities.tobytes(),
            {n: a.tobytes() for n, a in arrays.items()},
            about["step"],
        )

    expected = run("whole")
    assert run("plain", PLAIN)[1] != expected[1]
    for stop in STOPS:
        calls = iter(range(10_000))
        with pytest.raises(workers.Interrupted):
            run(str(stop), should_stop=lambda calls=calls, stop=stop: next(calls) >= stop)
        (path,) = (tmp_path / str(stop)).iterdir()
        assert "averaged" in checkpoint.load(path)[0]
        assert run(str(stop)) == expected, stop
        assert run(str(stop)) == expected, stop  # from the file of all nets


def network(device="numpy", **options):
    return Sequential(small_layers(0.4, 0.9), nets=2, device=device, seed=4, **options)


def fitted(model, epochs=3, **options):
    options = {"validation_split": 0.1, "augment": PLAIN.augment, "verbose": 0, **options}
    rates = minicnn.ExponentialDecay(0.01, 0.95)
    model.fit(X, Y, 16, epochs=epochs, learning_rate=rates, **options)
    return model


def weights(model, net=slice(None)):
    return {name: model.ops.to_host(getattr(model, name))[net].tobytes() for name in NAMES}


@pytest.mark.full(but="numpy-exponential|cpu-mean")
@pytest.mark.every_device
@pytest.mark.parametrize("recipe", [MEAN, EXPONENTIAL], ids=["mean", "exponential"])
def test_fit_gives_the_commands_weights(device, recipe):
    options = {"average_epochs": recipe.average_epochs, "average_decay": recipe.average_decay}
    model = fitted(network(device), **options)
    assert weights(model) == bits(trained(make_job(recipe, device)))[0]
    last = [row["val_loss"] for row in model.history.rows if row["epoch"] == 3]
    assert last == [
        row["validation_loss"] for row in trained(make_job(recipe, device)).history[-2:]
    ]


def test_an_average_begins_with_fit():
    """Also where its epochs begin later, at a step that is no multiple of an epoch's."""
    model, same = network(), network()
    for one in (model, same):
        one.train_on_batch(np.zeros((2, 4, 28, 28, 1)), np.zeros((2, 4), int))
    fitted(model, 4, initial_epoch=2, average_decay=0.8)
    after_steps, plain = [], Trainer.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(same.ops, "capture", None)

        def recorded(self):
            plain(self)
            after_steps.append(self.ops.to_host(self.model.params))

        patch.setattr(Trainer, "step", recorded)
        fitted(same, 4, initial_epoch=2)
    assert len(after_steps) == 2 * 2 * STEPS  # one net after the other
    of_nets = np.split(np.array(after_steps)[:, 0], 2)
    for found, of_net in zip(model.params, of_nets, strict=True):
        assert_close(found, average_by_hand(EXPONENTIAL, of_net))


def test_a_net_that_ends_sooner_keeps_its_own_weights():
    stopped = fitted(network(), average_decay=0.8, on_epoch=lambda row: row["net"] == 1)
    assert weights(stopped, 0) == weights(fitted(network(), on_epoch=lambda row: True), 0)
    assert weights(stopped, 1) == weights(fitted(network(), average_decay=0.8), 1)
