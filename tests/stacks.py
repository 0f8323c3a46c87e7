"""Stacks of layers that the tests of models share, and how to compare their states."""

import numpy as np
import pytest

from minicnn import (
    Activation,
    BatchNormalization,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    MaxPooling2D,
    Sequential,
)
from minicnn.backends.cpu_blocks import BlockPlan

DTYPES = "float32", pytest.param("float64", marks=pytest.mark.float64)


def small(device, nets=3, first_net=0, seed=0, dtype="float32", **options):
    """A stack with every kind of layer, on images (9, 7, 2), with odd sizes."""
    layers = [
        Conv2D(3, (3, 2), activation="relu"),
        BatchNormalization(momentum=0.8),
        Conv2D(5, 4, strides=(2, 1), padding="same", activation="tanh"),
        Dropout(0.3),
        Activation("sigmoid"),
        MaxPooling2D((2, 3), 2, "same"),
        Flatten(),
        Dense(7, activation="relu"),
        BatchNormalization(),
        Dropout(0.2),
        Dense(4, activation="softmax"),
    ]
    return Sequential(layers, (9, 7, 2), nets, first_net, seed, device, dtype, **options)


def batch(model, B, seed=0):
    """Random images (E, B, ...) in [0, 1] and labels (E, B) for a model."""
    random = np.random.default_rng(seed)
    E = len(model.nets)
    x = random.uniform(size=(E, B, *model.input_shape)).astype(model.dtype)
    return x, random.integers(0, model.output_shape[0], (E, B))


def state(model):
    """Everything that training may change, as bytes."""
    arrays = model.params, model.moving, model.moment_1, model.moment_2, model.step
    return [model.ops.to_host(array).tobytes() for array in arrays]


def assert_same(found, expected):
    """Assert that arrays are equal to the bit."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def activations(plan):
    """The output of each convolution with a ReLU: of a plan layer by layer, or of blocks in C."""
    if isinstance(plan, BlockPlan):
        both = zip(plan.network.blocks, plan.arrays, strict=True)
        return [of_block.y for block, of_block in both if block.relu]
    return [
        frame.y
        for layer, frame in plan.passes
        if isinstance(layer, Conv2D) and layer.activation == "relu"
    ]


def follow_signs(reference, plan, to_host=np.asarray):
    """Make the passes of a reference in NumPy give each ReLU the sign that it had in `plan`.

    Rounding moves activations close to 0 across 0, which changes the gradients before them by much
    more than a rounding error. Others may not differ in sign, and few may.
    """
    forward = reference.forward

    def follow():
        forward()
        for y, found in zip(activations(reference), activations(plan), strict=True):
            ours = to_host(found)
            flipped = (y > 0) != (ours > 0)
            assert np.abs(y[flipped] - ours[flipped]).max(initial=0) < 1e-5
            assert flipped.sum() <= 2 + 1e-5 * flipped.size
            y[flipped] = ours[flipped]

    reference.forward = follow


def lenet(device, nets=2):
    """LeNet-5 as notebooks write it."""
    layers = [
        Conv2D(6, 5, padding="same", activation="tanh"),
        MaxPooling2D(),
        Conv2D(16, 5, activation="tanh"),
        MaxPooling2D(pool_size=(2, 2), strides=2),
        Flatten(),
        Dense(120, activation="tanh"),
        Dense(84, activation="tanh"),
        Dense(10, activation="softmax"),
    ]
    return Sequential(layers, (28, 28, 1), nets=nets, seed=1, device=device)
