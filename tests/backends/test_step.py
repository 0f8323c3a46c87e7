"""A whole training step on a device, against the same step of the NumPy reference.

Each step starts from the reference's state, because long runs drift apart: where a gradient is near
zero, Adam turns its rounding error into a whole step. Random numbers must agree to the bit.
"""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from stacks import follow_signs

import minicnn.recipe
from minicnn import (
    Activation,
    Adam,
    BatchNormalization,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    MaxPooling2D,
    RandomAffine,
    Sequential,
    model,
)
from minicnn.backends import ops_numpy
from minicnn.backends.cuda_blocks import fusion
from minicnn.backends.cuda_forms import STORAGES
from minicnn.backends.ops_cuda import Operations
from minicnn.data.digits import draw_digits
from minicnn.emulator import Emulator
from minicnn.recipe import Recipe
from minicnn.training import ensemble
from minicnn.training.dataset import Data
from minicnn.training.trainer import Job, Trainer

E, B = 2, 3
SEED_NETWORK = Recipe(nets=E, epochs=1, batch_size=B, seed=7)
STATE = "params", "moving", "moment_1", "moment_2", "step"


@pytest.fixture(scope="module")
def data():
    images, labels = draw_digits(12)
    test_images, test_labels = draw_digits(5, first=12)
    return Data(images, labels, test_images, test_labels, "digest")


def relative(found, expected):
    """norm(found - expected) / norm(expected)."""
    return np.linalg.norm(np.float64(found) - expected) / np.linalg.norm(np.float64(expected))


def masks(trainer):
    """The masks (E, ...) of all dropouts, on the host."""
    plan = trainer.plan
    if hasattr(plan, "passes"):
        found = [getattr(frame.saved, "mask", None) for _, frame in plan.passes]
    else:  # a network of blocks in C
        found = [of_block.mask for of_block in plan.arrays]
    return [trainer.ops.to_host(mask).reshape(E, -1) for mask in found if mask is not None]


def test_three_steps_of_the_seed_network_are_numpys(kernel_device, data, tmp_path):
    # Of 3 images the last block normalises 3 values a channel. That amplifies rounding errors: even
    # gradients of direct convolution are 4e-5 off, and moment_2 doubles that. The emulator is slow.
    recipe = replace(SEED_NETWORK, batch_size=8) if kernel_device == "cpu" else SEED_NETWORK
    ours, reference = (
        Trainer(Job(recipe, data, d, "float32", tmp_path), range(1, E + 1))
        for d in (kernel_device, "numpy")
    )
    to_host = ours.ops.to_host
    images = (data.test_images[..., None] / 255).astype(np.float32)
    for trainer in (ours, reference):
        trainer.begin_epoch(0)
    follow_signs(reference.plan, ours.plan, to_host)
    np.testing.assert_array_equal(to_host(ours.order), reference.order)
    for _ in range(3):
        for name in STATE:
            target = getattr(ours.model, name)
            ours.ops.copy(ours.ops.to_device(getattr(reference.model, name)), target)
        found, expected = (trainer.model.predict(images) for trainer in (ours, reference))
        assert relative(found, expected) < 1e-4
        for trainer in (ours, reference):
            with trainer.ops.session():
                trainer.step()
        assert to_host(ours.model.step)[0] == reference.model.step[0]
        np.testing.assert_array_equal(to_host(ours.plan.labels), reference.plan.labels)
        assert relative(to_host(ours.plan.x), reference.plan.x) < 1e-6
        both = masks(ours), masks(reference)
        assert len(both[0]) == 3
        for mask, expected in zip(*both, strict=True):
            np.testing.assert_array_equal(mask, expected)
        assert relative(to_host(ours.plan.loss), reference.plan.loss) < 1e-4
        assert relative(to_host(ours.plan.output), reference.plan.output) < 1e-4
        for name in ("gradients", "moving", "moment_1", "moment_2"):
            found = to_host(getattr(ours.model, name))
            assert relative(found, getattr(reference.model, name)) < 1e-4, name


def on_it_and_on_numpy(job):
    """[the Trainer of three nets of a job, the same on NumPy]."""
    both = (job.device, job.precision), ("numpy", "float32")
    return [
        Trainer(replace(job, device=device, precision=precision), range(1, 4))
        for device, precision in both
    ]


# Bounds of the errors of: the loss, the logits, gradients and moving statistics
ROUNDING = {"tf32": (1e-3, 2e-3, 2e-2), "bfloat16": (1e-2, 2e-2, 2e-1)}


def test_a_step_of_fused_blocks_is_numpys_within_the_rounding(block_job):
    """Compares loss, gradients, moving statistics, predictions; random numbers to the bit."""
    ours, reference = on_it_and_on_numpy(block_job)
    of_loss, of_logits, of_gradients = ROUNDING[block_job.precision]
    to_host = ours.ops.to_host
    assert ours.plan.network.storage.precision == block_job.precision
    for trainer in (ours, reference):
        trainer.begin_epoch(0)
        with trainer.ops.session():
            trainer._load_batch()
            trainer.plan.forward_backward()  # a fused step does not write all gradients
            trainer.step()
    np.testing.assert_array_equal(to_host(ours.plan.labels), reference.plan.labels)
    assert relative(to_host(ours.plan.x), reference.plan.x) < 1e-6
    assert relative(to_host(ours.plan.loss), reference.plan.loss) < of_loss
    assert relative(to_host(ours.plan.output), reference.plan.output) < of_logits
    for name in ("gradients", "moving"):
        found = to_host(getattr(ours.model, name))
        assert relative(found, getattr(reference.model, name)) < of_gradients, name
    ours.model.set_weights(reference.model.get_weights())
    images = (block_job.data.test_images[..., None] / 255).astype(np.float32)
    found, expected = (trainer.model.predict(images) for trainer in (ours, reference))
    assert relative(found, expected) < 2e-3  # predictions are in TF32


def test_statistics_after_averaging_are_numpys_in_fused_blocks(block_job):
    recipe = replace(block_job.recipe, average_decay=0.5)
    trainers = on_it_and_on_numpy(replace(block_job, recipe=recipe))
    for trainer in trainers:
        model, ops = trainer.model, trainer.ops
        with ops.session():
            ops.copy(model.params, trainer.averaged)
            trainer._take_average()
    ours, reference = (trainer.ops.to_host(trainer.model.moving) for trainer in trainers)
    assert relative(ours, reference) < ROUNDING[block_job.precision][1]
    initial = trainers[1].recipe.model(range(1, 4), "numpy")
    np.testing.assert_array_equal(trainers[1].model.params, initial.params)
    assert trainers[0].steps_done == trainers[1].steps_done == 0


def step_on_colour(device, precision, layers, shape, B):
    """{name: array}: the results of a step of two nets on augmented images of 3 channels."""
    random = np.random.default_rng(0)
    m = Sequential(layers, shape, nets=2, seed=3, device=device, precision=precision)
    ops, plan = m.ops, m.plan(B, training=True)
    given = (
        random.integers(0, 256, (20, *shape), np.uint8),
        random.integers(0, layers[-1].units, 20, np.uint16),
        random.integers(0, 20, (2, 3, B), np.int32),
        RandomAffine(10, 0.1, 0.1, 0.1).bounds(*shape[:2]),
    )
    with ops.session():
        arrays = map(ops.to_device, given)
        ops.load_batch(*arrays, m.seed, m.net_numbers, m.step, plan.x, plan.labels)
        plan.forward_backward()  # a fused step does not write all gradients
        m.train_step(plan)
    arrays = {name: getattr(plan, name) for name in ("x", "labels", "loss", "output")}
    arrays |= {name: getattr(m, name) for name in ("gradients", "moving")}
    return bool(ops.fusion(m.nodes, len(m.nets), B)), {n: ops.to_host(a) for n, a in arrays.items()}


def assert_colour_is_numpys(device, precision, fused, layers, shape, B):
    """Assert that a step is NumPy's, within the rounding of `precision`."""
    is_fused, found = step_on_colour(device, precision, layers, shape, B)
    assert is_fused == fused
    _, expected = step_on_colour("numpy", "float32", layers, shape, B)
    exact = precision == "float32"
    np.testing.assert_array_equal(found["labels"], expected["labels"])
    assert relative(found["x"], expected["x"]) < 1e-6
    assert relative(found["loss"], expected["loss"]) < (1e-4 if exact else 1e-3)
    assert relative(found["output"], expected["output"]) < (1e-4 if exact else 2e-3)
    for name in ("gradients", "moving"):
        assert relative(found[name], expected[name]) < (1e-4 if exact else 2e-2), name


COLOUR_LAYERS = [
    Conv2D(4, 3, activation="relu"),
    BatchNormalization(0.9),
    Dropout(0.3),
    Conv2D(8, 3, strides=2, padding="same", activation="relu"),
    BatchNormalization(0.9),
    Flatten(),
    Dense(26, activation="softmax"),
]


def test_a_step_on_colour_images_is_numpys(kernel_device):
    fused = kernel_device == "cpu"
    assert_colour_is_numpys(kernel_device, "float32", fused, COLOUR_LAYERS, (11, 9, 3), 5)


def test_a_step_of_fused_blocks_on_colour_images_is_numpys(cuda_device):
    assert_colour_is_numpys(cuda_device, "tf32", True, COLOUR_LAYERS, (11, 9, 3), 5)


@pytest.mark.full(beside="test_a_step_on_colour_images_is_numpys")
def test_a_step_of_the_seed_network_on_colour_images_is_numpys(kernel_device):
    layers, fused = model.mnist_layers(0.4, 0.99), kernel_device == "cpu"
    assert_colour_is_numpys(kernel_device, "float32", fused, layers, (32, 32, 3), 3)


def test_adam_on_equal_gradients_is_numpys(kernel_ops):
    random = np.random.default_rng(3)
    shape = E, 4099
    w, g, m = random.normal(size=(3, *shape)).astype(np.float32)
    v = random.uniform(size=shape).astype(np.float32)
    for step in (0, 1, 999, 26_549):
        results = []
        for ops in (kernel_ops, ops_numpy):
            arrays = [ops.to_device(np.array(a)) for a in (w, g, m, v)]
            count, rate = ops.to_device(np.array([step])), ops.to_device(np.array([1e-3]))
            ops.adam(*arrays, count, rate, 0.9, 0.999, 1e-7)
            results.append([ops.to_host(a) for a in arrays])
        for found, expected in zip(*results, strict=True):
            assert relative(found, expected) < 1e-6
        change = [result[0] - w for result in results]
        assert relative(*change) < 1e-4  # of a float32's difference


def job_of(layers, data, device, precision, folder, monkeypatch):
    """A job of three nets of these layers, with two epochs of two steps."""
    for module in (model, minicnn.recipe):
        monkeypatch.setattr(module, "mnist_layers", layers)
    recipe = Recipe(nets=3, epochs=2, batch_size=4, momentum=0.9, seed=5)
    return Job(recipe, data, device, precision, folder)


@pytest.fixture
def small_job(kernel_device, data, tmp_path, monkeypatch):
    """A job of a small network with many kinds of layers."""

    def layers(dropout, momentum, classes):
        return [
            Conv2D(4, 3, strides=2, activation="relu"),
            BatchNormalization(momentum),
            Dropout(dropout),
            Conv2D(6, 5, strides=(2, 3), padding="same", activation="tanh"),
            MaxPooling2D(2),
            Activation("sigmoid"),
            Flatten(),
            Dense(classes, activation="softmax"),
        ]

    return job_of(layers, data, kernel_device, "float32", tmp_path, monkeypatch)


@pytest.fixture(params=["tf32", "bfloat16"])
def block_job(cuda_device, data, tmp_path, monkeypatch, request):
    """A job of a small network that runs in fused blocks."""

    def layers(dropout, momentum, classes):
        return [
            Conv2D(8, 3, strides=2, activation="relu"),
            BatchNormalization(momentum),
            Dropout(dropout),
            Conv2D(16, 3, strides=(2, 3), padding="same", activation="relu"),
            BatchNormalization(0.8),  # another momentum
            Conv2D(8, 3),
            BatchNormalization(momentum),
            Flatten(),
            Dropout(dropout / 2),
            Dense(classes, activation="softmax"),
        ]

    job = job_of(layers, data, cuda_device, request.param, tmp_path, monkeypatch)
    for storage in STORAGES:
        assert fusion(job.recipe.nodes, job.recipe.batch_size, storage).storage is storage
    return job


def train(job, nets=None):
    """Train: (the model's state on the host, the history without seconds)."""
    trainer = Trainer(job, nets or job.recipe.all_nets)
    while not trainer.is_done:
        trainer.train_epoch(lambda images: None, lambda: False)
    history = [{**row, "seconds": 0} for row in trainer.history]
    return [trainer.ops.to_host(getattr(trainer.model, name)) for name in STATE], history


class Broken(Emulator):
    """A driver whose launches write one value to all floats; only the steps are counted."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def run(self, launch):
        if launch.name == "accumulate":
            super().run(launch)
            return
        for parameter, array in launch.arrays:
            if parameter.written and array is not None and array.dtype.kind == "f":
                array[...] = self.value


@pytest.mark.parametrize("value", [0, np.nan])
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_a_training_ends_if_kernels_compute_nothing_or_nan(data, precision, value, tmp_path):
    """So a first run on a GPU with a broken kernel fails, and does not hang."""
    device = Operations(Broken(value), precision=precision)
    job = Job(SEED_NETWORK, data, device, "float32", tmp_path, graph=False)
    _, history = train(job)
    assert len(history) == (0 if np.isnan(value) else E)
    trainer = Trainer(job, SEED_NETWORK.all_nets)
    trainer.train_epoch(lambda images: None, lambda: False)
    assert trainer.is_done
    assert trainer.diverged.keys() == ({*SEED_NETWORK.all_nets} if np.isnan(value) else set())


def assert_same(found, expected):
    for one, other in zip(found[0], expected[0], strict=True):
        np.testing.assert_array_equal(one, other)
    assert found[1] == expected[1]


def assert_captures_repeat(job):
    captured = train(job)
    assert_same(captured, train(replace(job, graph=False)))
    assert_same(captured, train(job))
    assert captured[0][4] == [2 * 2]  # two steps an epoch, counted on the device


def test_a_captured_step_repeated_over_two_epochs_is_the_eager_one_to_the_bit(small_job):
    assert_captures_repeat(small_job)


@pytest.mark.full(
    beside="test_a_captured_step_repeated_over_two_epochs_is_the_eager_one_to_the_bit"
)
def test_a_captured_step_of_fused_blocks_is_the_eager_one_to_the_bit(block_job):
    assert_captures_repeat(block_job)


@pytest.mark.parametrize("left", ["step", "learning_rate"])
def test_values_kept_on_the_host_are_frozen_in_a_capture(small_job, monkeypatch, left):
    """The tests above can fail: here the step or the learning rate is kept in Python."""
    ops = small_job.recipe.model(range(1, 2), small_job.device).ops
    steps = [ops.to_device(np.array([k])) for k in range(4)]
    rates = [ops.to_device(np.array([0.1 / 2**k])) for k in range(2)]
    plain = Adam.update

    def planted(optimizer, ops, params, gradients, m, v, step, rate):
        k = next(calls)
        if left == "learning_rate":
            rate = rates[k // 2]
        else:
            ops.copy(steps[k], step)
        plain(optimizer, ops, params, gradients, m, v, step, rate)

    monkeypatch.setattr(Adam, "update", planted)
    calls = itertools.count()
    eager, _ = train(replace(small_job, graph=False))
    assert next(calls) == 4
    calls = itertools.count()
    captured, _ = train(small_job)
    assert next(calls) == 2
    assert (captured[0] != eager[0]).any()


def assert_groups_do_not_matter(job, tmp_path):
    results = []
    for size in (1, 2, 3):
        folder = tmp_path / str(size)
        folder.mkdir()
        grouped = replace(job, group_size=size, folder=folder)
        sizes = [len(nets) for nets in ensemble.groups(grouped)]
        assert sizes == {1: [1] * 3, 2: [2, 1], 3: [3]}[size]
        trained = ensemble.train_ensemble(grouped)
        rows = [{**row, "seconds": 0} for row in trained.history]
        results.append(([trained.probabilities], rows))
        assert [path.name for path in folder.iterdir()] == ["checkpoint.npz"]
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])


def test_groups_of_any_size_give_the_same_bits(small_job, tmp_path):
    assert_groups_do_not_matter(small_job, tmp_path)


@pytest.mark.full(beside="test_too_little_memory_makes_groups_of_the_same_bits")
def test_groups_of_any_size_give_fused_blocks_the_same_bits(block_job, tmp_path):
    assert_groups_do_not_matter(block_job, tmp_path)
