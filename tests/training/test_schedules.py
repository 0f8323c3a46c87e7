"""Learning rates that change with each step: in a Trainer, in a command, and in Sequential.fit."""

from dataclasses import replace

import numpy as np
import pytest
from runs import TINY, small_layers, state

import minicnn
import minicnn.recipe
from minicnn import CosineDecay, ExponentialDecay, LinearDecay, Sequential, train
from minicnn.data.digits import draw_digits
from minicnn.recipe import Recipe
from minicnn.training import checkpoint, workers
from minicnn.training.dataset import Data
from minicnn.training.trainer import Job, Trainer

X, Y = draw_digits(100, 0)
RECIPE = Recipe(nets=2, epochs=3, batch_size=16, momentum=0.9, schedule="cosine", warm_up=0.2)
NAMES = "params", "moving", "moment_1", "moment_2"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(minicnn.recipe, "mnist_layers", small_layers)


def make_job(device, recipe=RECIPE, **options):
    return Job(recipe, Data(X, Y, X[:20], Y[:20], "digest"), device, "float32", None, **options)


def trained(job, nets=range(1, 3)):
    trainer = Trainer(job, nets)
    while not trainer.is_done:
        trainer.train_epoch(lambda images: None, lambda: False)
    return trainer


def bits(trainer):
    """Everything that must be equal, and the history without seconds."""
    arrays = {name: trainer.ops.to_host(getattr(trainer.model, name)).tobytes() for name in NAMES}
    return arrays, [{**row, "seconds": 0} for row in trainer.history]


@pytest.mark.parametrize("schedule", ["exponential", "linear", "cosine"])
def test_a_training_is_the_steps_of_train_on_batch_with_these_rates(schedule):
    job = make_job("numpy", replace(RECIPE, schedule=schedule))
    found, twin = trained(job), Trainer(job, range(1, 3))
    for epoch in range(3):
        twin.begin_epoch(epoch)
        rates = job.recipe.learning_rates(epoch + 1, twin.steps)
        for rate in rates:
            twin.ops.load_batch(
                *(twin.images, twin.labels, twin.order, twin.bounds, 0, twin.model.net_numbers),
                *(twin.model.step, twin.plan.x, twin.plan.labels),
            )
            twin.model.train_on_batch(twin.plan.x, twin.plan.labels, rate)
        rows = [row for row in found.history if row["epoch"] == epoch + 1]
        assert [row["learning_rate"] for row in rows] == [rates[-1]] * 2
    assert bits(found)[0] == bits(twin)[0]


@pytest.mark.full(but="numpy|cpu")
@pytest.mark.every_device
def test_rates_in_a_captured_step_change(device):
    job = make_job(device)
    assert bits(trained(job)) == bits(trained(replace(job, graph=False)))
    constant = make_job(device, replace(RECIPE, schedule="exponential", decay=1.0, warm_up=0.0))
    assert bits(trained(job)) != bits(trained(constant))


@pytest.mark.full(but="numpy|cpu")
@pytest.mark.every_device
def test_a_resumed_training_takes_the_same_rates(device, tmp_path):
    job = make_job(device)
    first, second = (Trainer(job, range(1, 3)) for _ in range(2))
    stops = iter([False] * 8 + [True])
    with pytest.raises(workers.Interrupted):
        while True:
            first.train_epoch(lambda images: None, lambda: next(stops))
    first.save(tmp_path / "state.npz")
    second.load(tmp_path / "state.npz")
    while not second.is_done:
        second.train_epoch(lambda images: None, lambda: False)
    assert bits(second) == bits(trained(job))


def network(device="numpy"):
    return Sequential(small_layers(0.4, 0.9), nets=2, device=device)


def fitted(model, schedule, epochs=3, **options):
    options = {"validation_split": 0.1, "augment": RECIPE.augment, "verbose": 0, **options}
    model.fit(X, Y, 16, epochs=epochs, learning_rate=schedule, **options)
    return model


def weights(model):
    return {name: model.ops.to_host(getattr(model, name)).tobytes() for name in NAMES}


@pytest.mark.full(but="numpy.*linear|cpu.*cosine")
@pytest.mark.every_device
@pytest.mark.parametrize(
    ("schedule", "name"),
    [(LinearDecay(1e-3, 0.2), "linear"), (CosineDecay(1e-3, 0.2), "cosine")],
)
def test_fit_gives_the_commands_weights(device, schedule, name):
    job = make_job(device, replace(RECIPE, schedule=name))
    assert weights(fitted(network(device), schedule)) == bits(trained(job))[0]


def test_fit_in_parts_takes_the_rates_of_the_whole():
    """Also if the first optimizer step of a part is no multiple of the steps of its epochs."""
    for before in (0, 2):  # steps, with other batches
        whole, parts = (network() for _ in range(2))
        for model in (whole, parts):
            for _ in range(before):
                model.train_on_batch(np.zeros((2, 4, 28, 28, 1)), np.zeros((2, 4), int))
        rates = CosineDecay(1e-3, 0.2)
        fitted(whole, rates)
        fitted(parts, rates, on_epoch=lambda row: True)  # one epoch
        fitted(parts, rates, initial_epoch=1)
        assert weights(whole) == weights(parts)
        assert parts.history.history["learning_rate"] == [
            rates.rates(epoch, 5, 3)[-1] for epoch in (2, 3)
        ]


def test_a_shifted_training_takes_each_rate_in_its_step(monkeypatch):
    taken, plain = [], minicnn.Adam.update

    def watched(adam, ops, params, gradients, m, v, step, rates):
        taken.append(rates[step[0] % len(rates)])
        plain(adam, ops, params, gradients, m, v, step, rates)

    model, rates = network(), LinearDecay(1e-3)
    for _ in range(3):
        model.train_on_batch(np.zeros((2, 4, 28, 28, 1)), np.zeros((2, 4), int))
    model.ops.capture = None
    monkeypatch.setattr(minicnn.Adam, "update", watched)
    fitted(model, rates, epochs=2, memory=1 << 30)
    expected = [rate for epoch in (1, 2) for rate in rates.rates(epoch, 5, 2)]
    assert taken == expected * 2  # one net after the other


def test_fit_refuses_rates_that_are_none():
    with pytest.raises(ValueError, match=r"^learning_rate\(2\): got 0\.0, expected a positive"):
        fitted(network(), ExponentialDecay(1e-3, 1e-323))
    with pytest.raises(ValueError, match=r"^learning_rate: got .*, expected at least 9e-10"):
        fitted(network(), LinearDecay(1e-10))


def test_the_command_takes_a_schedule_and_an_average(tmp_path):
    here = "--workers=1"  # where the network is small
    options = [*TINY, here, "--schedule=linear", "--warm-up=0.5", "--average-epochs=1"]
    options += [f"--out={tmp_path / 'run'}"]
    assert train.main(options) == 0
    arrays, about = checkpoint.load(tmp_path / "run" / "checkpoint.npz")
    assert (about["recipe"]["schedule"], about["recipe"]["warm_up"]) == ("linear", 0.5)
    assert (about["recipe"]["average_epochs"], about["recipe"]["average_decay"]) == (1, 0.0)
    expected = [LinearDecay(1e-3, 0.5).rates(epoch, 4, 2)[-1] for epoch in (1, 2)]
    assert arrays["history"][:, 2].tolist() == expected * 2
    config = tmp_path / "run" / "config.json"
    again = ["--config", str(config), here, "--quiet", "--no-figures", "--device=numpy"]
    assert train.main([*again, f"--out={tmp_path / 'again'}"]) == 0
    assert state(tmp_path / "again") == state(tmp_path / "run")
