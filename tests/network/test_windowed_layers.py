"""Conv2D and MaxPooling2D: against nested loops (oracles.py), gradients by central differences."""

from types import SimpleNamespace

import numpy as np
import oracles
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from layer_frames import (
    ACTIVATIONS,
    DTYPES,
    assert_close,
    away_from_kinks,
    backward,
    check_gradients,
    forward,
    host_weights,
    make_frame,
)
from levels import examples

from minicnn import Conv2D, MaxPooling2D

pytestmark = pytest.mark.every_device


# ---------------------------------------------------------------------------------------------
# Convolution


@st.composite
def windows(draw, largest=6):
    """Matching (size, strides, padding, (H, W))."""
    padding = draw(st.sampled_from(["valid", "same"]))
    size = draw(st.tuples(st.integers(1, largest), st.integers(1, largest)))
    strides = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    smallest = size if padding == "valid" else (1, 1)
    height, width = (draw(st.integers(n, n + 7)) for n in smallest)
    return size, strides, padding, (height, width)


axes = st.tuples(*[st.integers(1, 3)] * 2, *[st.integers(1, 5)] * 2)  # E, B, Cin, Cout


@pytest.mark.parametrize("dtype", DTYPES)
@examples(150)
@given(window=windows(), axes=axes, seed=st.integers(0, 2**32 - 1))
@example(((5, 5), (2, 2), "same", (10, 12)), (2, 2, 3, 4), 0)  # uneven padding
@example(((5, 5), (2, 2), "same", (9, 7)), (2, 2, 3, 4), 0)
@example(((4, 4), (1, 1), "same", (7, 6)), (1, 2, 2, 3), 0)  # even kernel
@example(((4, 4), (1, 1), "valid", (4, 4)), (1, 1, 5, 3), 0)  # kernel equal to its input
@example(((2, 1), (4, 3), "valid", (11, 8)), (2, 1, 2, 2), 0)  # strides beyond the kernel
@example(((1, 2), (3, 4), "same", (8, 11)), (2, 3, 2, 2), 0)
@example(((6, 5), (1, 2), "same", (1, 2)), (1, 2, 1, 2), 0)  # kernel larger than its input
@example(((3, 3), (4, 4), "valid", (6, 10)), (1, 1, 1, 1), 0)  # rows that no window reaches
@example(((1, 1), (1, 1), "valid", (1, 1)), (3, 1, 1, 1), 0)
def test_conv2d_is_the_nested_loops(ops, dtype, window, axes, seed):
    size, strides, padding, (H, W) = window
    E, B, Cin, Cout = axes
    random = np.random.default_rng(seed)
    x = random.normal(size=(E, B, H, W, Cin)).astype(dtype)
    layer = Conv2D(Cout, size, strides, padding)
    f = make_frame(ops, layer, x)
    y = forward(ops, layer, f)
    assert y.dtype == dtype
    w = host_weights(ops, f)
    dy = random.normal(size=y.shape).astype(dtype)
    found = backward(ops, layer, f, dy)
    for e in range(E):
        expected = oracles.conv2d(x[e], w["kernel"][e], w["bias"][e], strides, padding)
        assert_close(y[e], expected)
        gradients = oracles.conv2d_gradients(x[e], w["kernel"][e], dy[e], strides, padding)
        for name, expected in zip(("x", "kernel", "bias"), gradients, strict=True):
            assert_close(found[name][e], expected)


@pytest.mark.parametrize(
    ("size", "stride", "length", "expected"),
    [  # computed by hand: the inputs that the first place and the last place of the window see
        (5, 2, 28, [(0, 4), (25, 28)]),  # 1 before, 2 after
        (5, 2, 24, [(0, 4), (21, 24)]),
        (5, 2, 9, [(0, 3), (6, 9)]),  # 2 before, 2 after
        (2, 1, 4, [(0, 2), (3, 4)]),  # 0 before, 1 after
        (4, 1, 6, [(0, 3), (4, 6)]),  # 1 before, 2 after
        (3, 2, 6, [(0, 3), (4, 6)]),  # 0 before, 1 after
        (1, 3, 7, [(0, 1), (6, 7)]),  # none
        (2, 4, 6, [(0, 2), (4, 6)]),  # none: places stay inside on their own
    ],
)
def test_same_padding_is_tensorflows(ops, size, stride, length, expected):
    x = np.arange(1.0, length + 1).reshape(1, 1, length, 1, 1)
    layer = Conv2D(1, (size, 1), (stride, 1), "same")
    f = make_frame(ops, layer, x)
    f.weights.kernel[...], f.weights.bias[...] = 1, 0
    y = forward(ops, layer, f).ravel()
    assert len(y) == -(-length // stride)
    for value, (first, stop) in zip(y[[0, -1]], expected, strict=True):
        assert value == sum(range(first + 1, stop + 1))


@pytest.mark.float64
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("size", "strides", "padding", "image"),
    [
        ((3, 2), (1, 1), "valid", (5, 4)),
        ((3, 3), (2, 1), "same", (5, 3)),
        ((2, 4), (3, 2), "same", (4, 5)),
        ((1, 1), (2, 3), "valid", (3, 4)),
    ],
)
def test_conv2d_gradients_by_central_differences(ops, activation, size, strides, padding, image):
    layer = Conv2D(3, size, strides, padding, activation)
    x = away_from_kinks(ops, Conv2D(3, size, strides, padding), (2, 2, *image, 2))
    check_gradients(ops, layer, x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_conv2d_applies_its_activation_after_the_bias(ops, activation, dtype):
    x = np.random.default_rng(0).normal(size=(2, 3, 6, 5, 2)).astype(dtype)
    layer = Conv2D(4, 3, (2, 1), "same", activation)
    f = make_frame(ops, layer, x)
    y, w = forward(ops, layer, f), host_weights(ops, f)
    for e in range(2):
        z = oracles.conv2d(x[e], w["kernel"][e], w["bias"][e], (2, 1), "same")
        assert_close(y[e], oracles.activate(activation, z))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["linear", "relu", "softmax"])
@pytest.mark.parametrize(
    ("size", "strides", "padding", "image"),
    [((3, 2), (1, 1), "valid", (7, 6)), ((5, 5), (2, 2), "same", (6, 8))],
)
def test_conv2d_in_chunks(ops, monkeypatch, size, strides, padding, image, activation, dtype):
    # 11 images, 2 or 4 at a time: the last chunk is a ragged one in each of the three passes.
    monkeypatch.setattr(
        "minicnn.backends.scratch._CACHE_BYTES", 17_000 if dtype == "float64" else 8_500
    )
    random = np.random.default_rng(1)
    x = random.normal(size=(2, 11, *image, 3)).astype(dtype)
    layer = Conv2D(2, size, strides, padding, activation)
    f = make_frame(ops, layer, x)
    y, w = forward(ops, layer, f), host_weights(ops, f)
    dy = random.normal(size=y.shape).astype(dtype)
    found = backward(ops, layer, f, dy)
    for e in range(2):
        z = oracles.conv2d(x[e], w["kernel"][e], w["bias"][e], strides, padding)
        expected = oracles.activate(activation, z)
        assert_close(y[e], expected)
        dz = dy[e].astype(float)
        if activation == "relu":
            dz *= z > 0
        elif activation == "softmax":
            dz = expected * (dz - np.sum(dz * expected, axis=-1, keepdims=True))
        gradients = oracles.conv2d_gradients(x[e], w["kernel"][e], dz, strides, padding)
        for name, expected in zip(("x", "kernel", "bias"), gradients, strict=True):
            assert_close(found[name][e], expected)


def test_chunks_are_ragged_where_these_tests_say_so(monkeypatch):
    """The tests of chunks can fail: there are several chunks, and the last is smaller."""
    from minicnn.backends.scratch import chunks  # noqa: PLC0415

    monkeypatch.setattr("minicnn.backends.scratch._CACHE_BYTES", 8_500)
    numbers = [6 * 5 * 6 * 3, 3 * 4 * 25 * 3]  # im2col's elements an image, forward
    lengths = [[s.stop - s.start for s in chunks(11, n, np.float32)] for n in numbers]
    assert lengths == [[3, 3, 3, 2], [2, 2, 2, 2, 2, 1]]


def test_conv2d_leaves_dx_unchanged_where_no_layer_reads_it(ops):
    x = np.random.default_rng(0).normal(size=(1, 2, 4, 4, 1))
    f = make_frame(ops, layer := Conv2D(2, 3), x)
    f.wants_dx = False
    y = forward(ops, layer, f)
    found = backward(ops, layer, f, np.ones(y.shape))
    assert np.isnan(found["x"]).all() and np.isfinite(found["kernel"]).all()


# ---------------------------------------------------------------------------------------------
# Max pooling


@pytest.mark.parametrize("dtype", DTYPES)
@examples(150)
@given(
    window=windows(largest=4),
    axes=st.tuples(*[st.integers(1, 2)] * 2, st.integers(1, 3)),
    few=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@example(((2, 2), (2, 2), "valid", (5, 7)), (2, 2, 3), False, 0)
@example(((3, 3), (2, 2), "same", (6, 5)), (2, 2, 3), True, 0)
@example(((1, 2), (3, 4), "same", (8, 11)), (1, 1, 2), False, 0)
def test_max_pooling_is_the_nested_loops(ops, dtype, window, axes, few, seed):
    size, strides, padding, (H, W) = window
    E, B, C = axes
    random = np.random.default_rng(seed)
    x = random.normal(size=(E, B, H, W, C)).astype(dtype) - 3  # so that zeros would win
    if few:
        x = np.round(x)  # so that there are ties
    layer = MaxPooling2D(size, strides, padding)
    f = make_frame(ops, layer, x)
    y = forward(ops, layer, f)
    dy = random.normal(size=y.shape).astype(dtype)
    found = backward(ops, layer, f, dy)["x"]
    f = make_frame(ops, layer, x)
    f.saved = SimpleNamespace()  # at inference there is none
    np.testing.assert_array_equal(forward(ops, layer, f, training=False), y)
    for e in range(E):
        np.testing.assert_array_equal(y[e], oracles.max_pool(x[e], size, strides, padding)[0])
        expected = oracles.max_pool_gradient(x[e], dy[e], size, strides, padding)
        assert_close(found[e], expected)


def test_the_first_of_equal_maxima_gets_the_gradient(ops):
    layer = MaxPooling2D(2)
    f = make_frame(ops, layer, np.ones((1, 1, 4, 4, 1)))
    forward(ops, layer, f)
    dx = backward(ops, layer, f, np.arange(1.0, 5).reshape(1, 1, 2, 2, 1))["x"]
    expected = [[1, 0, 2, 0], [0, 0, 0, 0], [3, 0, 4, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(dx[0, 0, ..., 0], expected)


@pytest.mark.float64
@pytest.mark.parametrize(
    ("layer", "image"),
    [
        (MaxPooling2D(2), (4, 5)),
        (MaxPooling2D(3, 2, "same"), (5, 4)),
        (MaxPooling2D((2, 3), 1), (4, 3)),
        (MaxPooling2D(2, (3, 4), "same"), (5, 6)),
    ],
)
def test_max_pooling_gradient_by_central_differences(ops, layer, image):
    shape = 2, 2, *image, 2
    x = 0.01 * np.random.default_rng(0).permutation(int(np.prod(shape))).reshape(shape)
    check_gradients(ops, layer, x)


def test_max_pooling_strides_are_the_window_unless_given():
    assert MaxPooling2D((2, 3)).strides == (2, 3)
    assert MaxPooling2D((2, 3), 1).strides == (1, 1)
    assert MaxPooling2D().output_shape((7, 9, 4)) == (3, 4, 4)
    assert MaxPooling2D(padding="same").output_shape((7, 9, 4)) == (4, 5, 4)
