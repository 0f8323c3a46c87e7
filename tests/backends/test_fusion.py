"""Which networks run in fused blocks; all others run layer by layer in float32."""

import numpy as np
import pytest

from minicnn import (
    BatchNormalization,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    MaxPooling2D,
    Sequential,
    model,
)
from minicnn.backends import cuda_tiles
from minicnn.backends.cuda_blocks import fusion
from minicnn.backends.ops_cuda import Operations
from minicnn.network.stack import connect

B = 3
SHAPE = 6, 5, 2


def stack(*between, filters=8, activation="relu", strides=1, size=2, units=4, before=(), behind=()):
    """A network of two blocks, `between` them other layers."""
    return [
        Conv2D(4, 2, activation="relu"),
        BatchNormalization(),
        *between,
        Conv2D(filters, size, strides, activation=activation),
        BatchNormalization(),
        *before,
        Flatten(),
        *behind,
        Dense(units, activation="softmax"),
    ]


FUSED = {
    "plain": stack(),
    "linear": stack(activation="linear"),
    "dropout": stack(Dropout(0.2), behind=[Dropout(0.5)]),
    "dropout before Flatten": stack(before=[Dropout(0.5)]),
    "a dropout of nothing": stack(before=[Dropout(0.0)], behind=[Dropout(0.5)]),
    "one block": [Conv2D(4, 2), BatchNormalization(), Flatten(), Dense(3, activation="softmax")],
    "the seed network": model.mnist_layers(0.4, 0.99),
}
LAYERED = {
    "tanh": stack(activation="tanh"),
    "filters": stack(filters=6),
    "pooling": stack(MaxPooling2D(2)),
    "no normalisation": [*stack()[:3], *stack()[4:]],
    "none in front": stack()[:1] + stack()[2:],
    "wide strides": stack(size=1, strides=2),
    "wide along one axis": stack(size=(2, 1), strides=(1, 2)),
    "two dropouts": stack(before=[Dropout(0.5)], behind=[Dropout(0.5)]),
    "two dropouts in a row": stack(Dropout(0.5), Dropout(0.5)),
    "two dense layers": stack(behind=[Dense(8)]),
    "no Flatten": [Conv2D(4, (6, 5)), BatchNormalization(), Dense(3, activation="softmax")],
    "no block": [Flatten(), Dense(3, activation="softmax")],
    "a large dense layer": stack(units=500),
    "more classes than threads": [
        Conv2D(4, (6, 5)),
        BatchNormalization(),
        Flatten(),
        Dense(513, activation="softmax"),
    ],
}


@pytest.mark.parametrize("name", FUSED)
def test_networks_of_blocks_are_fused(name):
    layers = FUSED[name]
    shape = model.MNIST_SHAPE if name == "the seed network" else SHAPE
    network = fusion(connect(layers, shape), B)
    convolutions = [layer for layer in layers if isinstance(layer, Conv2D)]
    assert [block.convolution.layer for block in network.blocks] == convolutions
    assert network.dense.layer.units == layers[-1].units
    rates = [layer.rate for layer in layers if isinstance(layer, Dropout) and layer.rate]
    assert [block.drop.rate for block in network.blocks if block.drop.rate] == rates


@pytest.mark.parametrize("shape", [(28, 28, 3), (32, 32, 3), (29, 31, 3), (32, 32, 7), (32, 32, 8)])
def test_the_seed_network_is_fused_for_colour_images(shape):
    network = fusion(connect(model.mnist_layers(0.4, 0.99), shape), 64)
    first, second = network.blocks[:2]
    assert first.channels == shape[2] and first.first == (shape[2] < 8)
    assert second.channels == 32 and not second.first


@pytest.mark.parametrize("shape", [(32, 32, 9), (96, 96, 3)])
def test_the_seed_network_is_not_fused_for_images_that_no_kernel_can_take(shape):
    assert fusion(connect(model.mnist_layers(0.4, 0.99), shape), 64) is None


@pytest.mark.parametrize("name", sorted({*LAYERED} - {"no Flatten"}))
def test_other_stacks_are_computed_in_float32(driver, name):
    layers = LAYERED[name]
    assert fusion(connect(layers, SHAPE), B) is None
    assert_tf32_is_float32(driver, layers, SHAPE, B)


def test_a_stack_without_a_dense_layer_is_computed_in_float32(driver):
    layers = [Conv2D(4, 2, activation="relu"), BatchNormalization(), Flatten()]
    assert fusion(connect(layers, SHAPE), B) is None
    x = np.random.default_rng(0).random((B, *SHAPE))
    found, expected = (m.predict(x) for m in both_precisions(driver, layers, SHAPE))
    np.testing.assert_array_equal(found, expected)


def test_a_large_batch_is_fused_and_its_end_computed_in_groups_of_images():
    layers = [Conv2D(4, 2), BatchNormalization(), Flatten(), Dense(2, activation="softmax")]
    network = fusion(connect(layers, SHAPE), 1000)
    assert 1 < network.head_images < 1000
    assert network.head_bytes <= cuda_tiles.SHARED_BYTES
    assert cuda_tiles.head(80, 4, 2, network.head_images) == cuda_tiles.head(80, 4, 2, 1000)


def test_a_network_of_blocks_is_not_float32_to_the_bit(driver):
    with pytest.raises(AssertionError):
        assert_tf32_is_float32(driver, FUSED["plain"], SHAPE, B)


def both_precisions(driver, layers, shape):
    return [
        Sequential(layers, shape, nets=2, device=Operations(driver, precision=precision))
        for precision in ("tf32", "float32")
    ]


def assert_tf32_is_float32(driver, layers, shape, batch):
    random = np.random.default_rng(0)
    models = both_precisions(driver, layers, shape)
    x = random.random((2, batch, *shape), np.float32)
    labels = random.integers(models[0].output_shape[0], size=(2, batch))
    results = []
    for m in models:
        loss, accuracy = m.train_on_batch(x, labels)
        results.append([loss, accuracy, *m.get_weights(), m.predict(x[0])])
    for found, expected in zip(*results, strict=True):
        np.testing.assert_array_equal(found, expected)
