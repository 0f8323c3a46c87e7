"""Label smoothing in whole networks: gradients, devices, fit, the command, and resuming."""

import json
import os
import signal

import numpy as np
import pytest
from runs import TINY, small_layers, state
from scipy.special import log_softmax
from stacks import batch, small
from test_model_fit import X, Y, assert_same_as, fitted, network
from test_model_training import directional_errors, random_directions

import minicnn.recipe
from minicnn import Dense, ExponentialDecay, Flatten, Sequential, train
from minicnn.nets import Nets
from minicnn.network.architecture import Architecture
from minicnn.recipe import Recipe
from minicnn.training.dataset import Data
from minicnn.training.ensemble import train_ensemble
from minicnn.training.trainer import Job, Trainer

SMOOTHING = 0.2


@pytest.mark.parametrize("value", [1, -0.1, float("nan"), None])
def test_a_fraction_out_of_range_is_refused(value):
    with pytest.raises(
        ValueError, match=r"^label_smoothing: got .*, expected a number in \[0, 1\)"
    ):
        Nets(Architecture([Dense(3, "softmax")], (4,)), [0], device="numpy", label_smoothing=value)


def test_gradients_of_a_stack_with_every_layer():
    stack = small("numpy").architecture
    options = {"device": "numpy", "dtype": "float64"}
    model = Nets(stack, range(2), 5, label_smoothing=SMOOTHING, **options)
    plain = Nets(stack, range(2), 5, **options)
    x, y = batch(model, 5, seed=1)
    assert np.all(model.loss_and_gradients(x, y)[0] != plain.loss_and_gradients(x, y)[0])
    errors = directional_errors(model, x, y, 1e-7, random_directions(model, 5, seed=2))
    assert errors.max() < 1e-6


def relative(found, expected):
    """norm(found - expected) / norm(expected)."""
    return np.linalg.norm(np.float64(found) - expected) / np.linalg.norm(np.float64(expected))


def assert_a_step_is_numpys(device, precision, fused, loss_error, error):
    """Assert that loss and gradients of a small network are NumPy's, within these errors."""
    stack = Architecture(small_layers(0.4, 0.9), (28, 28, 1))
    ours, reference, plain = (
        Nets(stack, range(2), 3, name, precision=p, label_smoothing=smoothing)
        for name, p, smoothing in (
            (device, precision, SMOOTHING),
            ("numpy", "float32", SMOOTHING),
            ("numpy", "float32", 0.0),
        )
    )
    x, y = batch(ours, 6)  # rounding to TF32 changes the sign of no ReLU's input
    assert bool(ours.ops.fusion(ours.nodes, 1, 6)) == fused
    (loss, gradients), (expected, of_numpy), (without, _) = (
        model.loss_and_gradients(x, y) for model in (ours, reference, plain)
    )
    assert relative(loss, expected) < loss_error < relative(without, expected)
    found, wanted = (np.concatenate([g.ravel() for g in a]) for a in (gradients, of_numpy))
    assert relative(found, wanted) < error


def test_a_step_is_numpys(kernel_device):
    """In blocks in C; layer by layer in CUDA."""
    assert_a_step_is_numpys(kernel_device, "float32", kernel_device == "cpu", 1e-5, 1e-4)


def test_a_step_of_fused_blocks_is_numpys_within_the_rounding_of_tf32(cuda_device):
    assert_a_step_is_numpys(cuda_device, "tf32", True, 1e-3, 1e-3)


@pytest.mark.every_device
def test_the_training_loss_is_smoothed_and_the_validation_loss_is_not(device):
    model = Sequential([Flatten(), Dense(10, "softmax")], nets=2, device=device)
    logits = Sequential([Flatten(), Dense(10)], nets=2, device=device)
    logits.set_weights(model.get_weights())
    log = log_softmax(np.float64(logits.predict(X / 255)), axis=-1)
    target = (1 - SMOOTHING) * np.eye(10)[Y] + SMOOTHING / 10
    # One step of a tiny rate: its loss is that of the weights before it, and after it.
    history = model.fit(
        X,
        Y,
        len(X),
        validation_data=(X, Y),
        learning_rate=1e-9,
        label_smoothing=SMOOTHING,
        verbose=0,
    )
    losses = [(row["loss"], row["val_loss"]) for row in history.rows]
    plain, smoothed = (-(t * log).sum(axis=-1).mean(axis=-1) for t in (np.eye(10)[Y], target))
    np.testing.assert_allclose(losses, np.stack([smoothed, plain], axis=1), rtol=1e-5)


@pytest.mark.every_device
def test_fit_gives_the_commands_weights(device, tmp_path, monkeypatch):
    monkeypatch.setattr(minicnn.recipe, "mnist_layers", small_layers)
    recipe = Recipe(nets=3, epochs=2, batch_size=16, momentum=0.9, label_smoothing=SMOOTHING)
    train_ensemble(Job(recipe, Data(X, Y), device, "float32", tmp_path, 2))
    rates = ExponentialDecay(1e-3, 0.95)
    model = fitted(network(device), learning_rate=rates, label_smoothing=SMOOTHING)
    assert_same_as(tmp_path / "checkpoint.npz", model)
    plain = fitted(network(device), learning_rate=rates)
    assert np.all(plain.predict(X) != model.predict(X))


def test_a_smoothed_run_resumes_to_the_bit_and_with_the_same_smoothing_only(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(minicnn.recipe, "mnist_layers", small_layers)
    options = [*TINY, "--workers=1", "--label-smoothing=0.2"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert train.main([*options, f"--out={whole}"]) == 0
    config = json.loads((whole / "config.json").read_text())
    assert config["recipe"]["label_smoothing"] == 0.2
    step, steps = Trainer.step, []

    def stopping(trainer):
        steps.append(step(trainer))
        if len(steps) == 6:  # in the second epoch of the first net
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stopping)
        assert train.main([*options, f"--out={stopped}"]) == 130
    assert len(steps) == 6
    capsys.readouterr()
    for other in ("--label-smoothing=0.1", "--label-smoothing=0"):
        assert train.main([*options, other, f"--out={stopped}", "--resume"]) == 2
        assert "label_smoothing" in capsys.readouterr().err
    assert train.main([*options, f"--out={stopped}", "--resume"]) == 0
    assert state(stopped) == state(whole)
