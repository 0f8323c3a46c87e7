"""benchmarks/storage.py: which values are rounded in training; its command and its tables."""

import json
from dataclasses import replace

import numpy as np
import pytest
from rounded_oracles import distance, expected_gradients, rounding_of

from benchmarks import storage, storage_tables, timing
from benchmarks.rounded_blocks import GRADIENTS, KINDS, RoundingOperations
from benchmarks.rounding import Rounder
from benchmarks.rungs import Apart
from benchmarks.storage_tables import ARMS, OTHER_ORDER
from minicnn import BatchNormalization, Conv2D, Dense, Dropout, Flatten, Sequential
from minicnn.backends.ops_cpu import Operations
from minicnn.data.digits import draw_digits
from minicnn.recipe import RECIPES
from minicnn.training.dataset import Data
from minicnn.training.trainer import Job, Trainer

RECIPE = replace(RECIPES["seed"], nets=2, epochs=2, batch_size=16, validation_fraction=0)
STEPS = 3

# ---- without rounding ----------------------------------------------------------------------------


def trained(ops, recipe):
    """(weights and moving statistics, losses) of two nets after STEPS; the last is captured."""
    trainer = Trainer(Job(recipe, Data(*draw_digits(64)), ops, "float32", None), recipe.all_nets)
    trainer.begin_epoch(0)
    losses = []
    with ops.session():
        for i in range(STEPS):
            (ops.capture(trainer.step) if i == STEPS - 1 else trainer.step)()
            losses.append(trainer.plan.loss.copy())
    return np.hstack([trainer.model.params, trainer.model.moving]), losses


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_without_rounding_a_step_has_the_bits_of_plain_training(dropout):
    recipe = replace(RECIPE, dropout=dropout)
    plain = Operations()
    plain.convolution = Apart(plain.cpu)
    expected, losses = trained(plain, recipe)
    found, found_losses = trained(storage.operations("float32", 16)[0], recipe)
    assert np.array_equal(found, expected)
    assert np.array_equal(found_losses, losses)
    for arm in ("bfloat16", "float16"):
        other, other_losses = trained(storage.operations(arm, 16)[0], recipe)
        assert np.isfinite(other).all()
        assert not np.array_equal(other_losses[0], losses[0])
        np.testing.assert_allclose(other_losses[0], losses[0], rtol=0.02)


def test_the_other_order_of_sums_differs_in_the_last_bits():
    _, losses = trained(storage.operations("float32", 16)[0], RECIPE)
    _, others = trained(storage.operations(OTHER_ORDER, 16)[0], RECIPE)
    assert not np.array_equal(others, losses)
    np.testing.assert_allclose(others[0], losses[0], rtol=1e-5)


def test_predictions_are_not_rounded():
    images = np.random.default_rng(0).uniform(size=(4, 28, 28, 1)).astype(np.float32)
    plain = Operations()
    plain.convolution = Apart(plain.cpu)
    ops = [storage.operations(arm, 16)[0] for arm in ARMS]
    first, *others = (RECIPE.model([1], each).predict(images) for each in (plain, *ops))
    assert all(np.array_equal(other, first) for other in others)


# ---- each kind of value --------------------------------------------------------------------------

LAYERS = [
    Conv2D(32, 3, activation="relu"),
    BatchNormalization(),
    Conv2D(32, 3, activation="relu"),
    BatchNormalization(),
    Dropout(0.3),
    Conv2D(48, 3, padding="same", activation="relu"),
    BatchNormalization(),
    Flatten(),
    Dropout(0.2),
    Dense(5, activation="softmax"),
]


@pytest.mark.parametrize(("name", "scale"), [("bfloat16", 1.0), ("float16", 2.0**-12)])
def test_just_these_values_are_rounded(name, scale):
    """The gradients are nearer to those of this rounding than to those of any other.

    The scale of float16 makes many gradients subnormal, so the result shows whether it is used.
    """
    ops = RoundingOperations(Rounder(name, dict.fromkeys(GRADIENTS, scale)))
    model = Sequential(LAYERS, (9, 9, 1), 1, device=ops)
    random = np.random.default_rng(1)
    weights = [w + random.uniform(0.01, 0.1, w.shape) for w in model.get_weights()]
    model.set_weights(weights)
    x = random.uniform(size=(1, 6, 9, 9, 1)).astype(np.float32)
    labels = random.integers(0, 5, (1, 6))
    _, found = model.loss_and_gradients(x, labels)
    masks = [arrays.mask for arrays in model.plan(6, training=True).arrays]
    given = model, x, labels, masks

    nearest = distance(found, expected_gradients(*given, rounding_of(name, scale)))
    changes = [{"but": kind} for kind in KINDS]
    changes += [{"also": "the first block"}, {"also": "sum of dz"}]
    others = {
        str(change): distance(found, expected_gradients(*given, rounding_of(name, scale, **change)))
        for change in changes
    }
    if name == "float16":
        changed = rounding_of(name, scale / 4)
        others["another scale"] = distance(found, expected_gradients(*given, changed))
    assert 3 * nearest < min(others.values())


def test_other_networks_are_refused():
    ops = storage.operations("bfloat16", 16)[0]
    with pytest.raises(ValueError, match="expected a network of blocks"):
        Sequential([Flatten(), Dense(3, activation="softmax")], (4, 4, 1), device=ops).plan(2, True)


# ---- the command ---------------------------------------------------------------------------------


def test_the_quick_command_trains_every_arm(tmp_path, capsys):
    path = tmp_path / "result.json"
    storage.main(["--quick", "--out", str(path)])
    result, shown = json.loads(path.read_text()), capsys.readouterr().out
    rows = result["trainings"]
    arms = {"fast": ARMS, "seed": (*ARMS, OTHER_ORDER)}
    expected = [(name, net, arm) for name in arms for net in (1, 2) for arm in arms[name]]
    assert [(row["setting"], row["net"], row["arm"]) for row in rows] == expected
    assert len({row["log_loss"] for row in rows}) == len(rows)  # each computes something else
    assert all(0 <= row["accuracy"] <= 1 and row["diverged"] is None for row in rows)
    for row in rows:
        assert set(row["counts"]) == (set() if row["arm"] == OTHER_ORDER else set(KINDS))
        for of_kind in row["counts"].values():
            assert of_kind["elements"] > 0
            assert of_kind["overflows"] == 0
    assert result["settings"]["seed"]["loss_scale"] == 2.0**14  # 512 * 32
    largest = {
        arm: max(row["counts"]["dz"]["largest"] for row in rows if row["arm"] == arm)
        for arm in ARMS
    }
    assert largest["float16"] == pytest.approx(2.0**14 * largest["float32"], rel=0.5)
    assert shown == f"{timing.aligned(storage_tables.table(result))}\n\n" + (
        f"{timing.aligned(storage_tables.counts_table(result))}\n"
    )


@pytest.mark.full(beside="test_the_quick_command_trains_every_arm")
def test_a_training_does_not_depend_on_the_process():
    settings = {"seed": storage.QUICK["seed"]}
    settings["seed"] = replace(settings["seed"], arms=("float16",))
    alone, together = (storage.measure("digits", settings, 32, count) for count in (1, 2))
    assert alone == together


def test_the_full_command_needs_data(capsys):
    with pytest.raises(SystemExit):
        storage.main([])
    assert "argument --data: got nothing" in capsys.readouterr().err


def test_a_net_that_overflows_is_reported(monkeypatch):
    monkeypatch.setattr(storage, "loss_scale", lambda batch: 2.0**40)
    setting = storage.QUICK["seed"]
    row = storage.train(storage.Training("seed", setting, "float16", 1, "digits", 32))
    assert (row["accuracy"], row["log_loss"], row["diverged"]) == (None, None, (1, 2))
    assert row["counts"]["dx"]["overflows"] > 0


@pytest.mark.parametrize(("batch", "scale"), [(1, 2**9), (32, 2**14), (33, 2**15), (64, 2**15)])
def test_the_loss_scale_is_a_power_of_two(batch, scale):
    assert storage.loss_scale(batch) == scale


def result_of(log_losses):
    """A result of one setting with {arm: log losses}; the accuracies are 1 - log loss."""
    count = {"elements": 400, "zero": 1, "subnormal": 2, "overflows": 3, "largest": 7.25}
    rows = [
        {
            "setting": "seed",
            "arm": arm,
            "net": net,
            "images": 6400,
            "test_images": 10_000,
            "accuracy": None if value is None else 1 - value,
            "log_loss": value,
            "counts": {kind: {**count, "largest": net + 0.25} for kind in KINDS},
        }
        for arm, values in log_losses.items()
        for net, value in enumerate(values, start=1)
    ]
    settings = {"seed": {"recipe": {"epochs": 6}, "loss_scale": 2.0**15}}
    about = {"machine": timing.machine(), "versions": timing.versions()}
    return {"settings": settings, "trainings": rows, **about}


def test_the_table_compares_in_pairs():
    log_losses = {"float32": [0.02, 0.03, 0.04], "bfloat16": [0.05, 0.05, 0.05]}
    result = result_of({**log_losses, "float16": [0.021, 0.032, 0.043]})
    assert storage_tables.differences(result["trainings"], "seed", "float16", "log_loss") == (
        pytest.approx([0.001, 0.002, 0.003])
    )
    # 0.002 +- 4.3027 * 0.001 / sqrt(3)
    assert storage_tables.table(result).splitlines()[-1] == (
        "| `seed`, 6,400 images, 6 epochs | float16 | 3 | 96.800 % | -0.200 (-0.448 to +0.048) "
        "| 0.03200 | +0.00200 (-0.00048 to +0.00448) |"
    )
    shown = storage_tables.counts_table(result).splitlines()
    row = "3.2 | 2,500 | 5,000 | 9 | 2,500 | 5,000 | 9 | 3.2 |"
    assert shown[2:] == [f"| `{kind}` | {row}" for kind in KINDS]
    assert "Means over 3 nets and 10,000 test images." in storage_tables.report(result)
    assert "Loss scale of float16: 32,768." in storage_tables.report(result)


def test_a_net_that_diverged_is_not_left_out_of_the_mean():
    result = result_of({"float32": [0.02, 0.03], "bfloat16": [0.02, None]})
    assert storage_tables.table(result).splitlines()[-1].count("nan") == 8
