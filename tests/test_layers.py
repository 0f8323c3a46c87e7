"""Layers and operations: against nested loops (oracles.py), and gradients by central differences.

Each layer runs in a frame made here, as layers.Layer describes it; results are poisoned first, so
that a number that nobody wrote shows.
"""

from types import SimpleNamespace

import numpy as np
import oracles
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minicnn import (
    Activation,
    BatchNormalization,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    MaxPooling2D,
    rng,
)
from minicnn.network.plan import Frame

ACTIVATIONS = "linear", "relu", "sigmoid", "tanh", "softmax"
FLOAT64 = pytest.param("float64", marks=pytest.mark.float64)
DTYPES = "float32", FLOAT64
pytestmark = pytest.mark.every_device
modest = settings(deadline=None, max_examples=150, derandomize=True)


# ---------------------------------------------------------------------------------------------
# A frame for one layer


def poisoned(ops, shape, dtype):
    """A result's array before the result is there."""
    dtype = np.dtype(dtype)
    poison = {"f": np.nan, "b": True}.get(dtype.kind, 77)
    return ops.to_device(np.full(shape, poison, dtype))


def make_frame(ops, layer, x, seed=3, nets=None, stream=rng.DROPOUT, step=0):
    """A frame for x (E, B, ...), with random weights and with all results poisoned.

    x is taken in float32 where the device has no other.
    """
    if x.dtype.name not in ops.dtypes:
        x = x.astype(np.float32)
    E, B, *shape = x.shape
    shape = tuple(shape)
    random = np.random.default_rng(99)

    def group(specs, make):
        arrays = {name: make((E, *spec.shape)) for name, spec in specs.items()}
        return SimpleNamespace(**arrays)

    def numbers(shape):
        return ops.to_device(random.uniform(0.5, 1.5, shape).astype(x.dtype))

    def signed(shape):
        return ops.to_device(random.normal(size=shape).astype(x.dtype))

    saved = {
        name: poisoned(ops, (*((E, B) if per == "image" else (E,)), *shape_), kind or x.dtype)
        for name, (per, shape_, kind) in layer.saved(shape).items()
    }
    return Frame(
        x=ops.to_device(x),
        y=poisoned(ops, (E, B, *layer.output_shape(shape)), x.dtype),
        dx=poisoned(ops, x.shape, x.dtype),
        dy=None,
        wants_dx=True,
        weights=group(layer.weights(shape), signed),
        gradients=group(layer.weights(shape), lambda s: poisoned(ops, s, x.dtype)),
        moving=group(layer.moving(shape), numbers),
        saved=SimpleNamespace(**saved),
        seed=seed,
        nets=ops.to_device(np.arange(E) if nets is None else np.asarray(nets)),
        stream=stream,
        step=ops.to_device(np.array([step], np.int64)),
        workspace=poisoned(ops, (layer.workspace(ops, E, B, shape),), np.uint8),
    )


def forward(ops, layer, f, training=True):
    """The layer's output, as a NumPy array."""
    if layer.shares_memory(training):
        return ops.to_host(f.x).reshape(f.y.shape)
    layer.forward(ops, f, training)
    return ops.to_host(f.y)


def backward(ops, layer, f, dy):
    """{"x": ..., "kernel": ..., ...}: the layer's gradients; call forward() first."""
    if layer.shares_memory(training=True):
        return {"x": np.asarray(dy).reshape(f.x.shape)}
    f.dy = ops.to_device(np.array(dy, f.x.dtype))
    layer.backward(ops, f)
    found = {name: ops.to_host(value) for name, value in vars(f.gradients).items()}
    return {"x": ops.to_host(f.dx), **found}


def host_weights(ops, f):
    return {name: ops.to_host(value) for name, value in vars(f.weights).items()}


def assert_close(actual, expected, factor=200):
    """Equal within `factor` roundings of the largest number (or of 1)."""
    assert actual.shape == np.shape(expected)
    tolerance = factor * np.finfo(actual.dtype).eps * max(1, np.abs(expected).max(initial=0))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


def central_differences(function, array, h=1e-4):
    """The gradient of function() by each number of `array`, which is changed in place and back."""
    gradient = np.zeros(array.shape)
    for index in np.ndindex(array.shape):
        kept = array[index]
        array[index] = kept + h
        above = function()
        array[index] = kept - h
        below = function()
        array[index] = kept
        gradient[index] = (above - below) / (2 * h)
    return gradient


def check_gradients(ops, layer, x):
    """Every gradient of a layer, under a random upstream one, against central differences."""
    assert x.dtype == np.float64
    f = make_frame(ops, layer, x)
    y = forward(ops, layer, f)
    upstream = np.random.default_rng(5).normal(size=y.shape)
    found = backward(ops, layer, f, upstream)
    f = make_frame(ops, layer, x)
    checked = {"x": x, **host_weights(ops, f)}
    assert set(found) == set(checked)
    for name, array in checked.items():

        def loss(name=name, array=array):
            target = f.x if name == "x" else getattr(f.weights, name)
            ops.copy(ops.to_device(array), target)
            return np.sum(forward(ops, layer, f) * upstream)

        expected = central_differences(loss, array)
        loss()  # leaves the target as it was
        error = np.abs(found[name] - expected).max()
        assert error <= 1e-6 * np.abs(expected).max(), name


# ---------------------------------------------------------------------------------------------
# Convolution


@st.composite
def windows(draw, largest=6):
    """(size, strides, padding, (H, W)) that fit one another."""
    padding = draw(st.sampled_from(["valid", "same"]))
    size = draw(st.tuples(st.integers(1, largest), st.integers(1, largest)))
    strides = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    smallest = size if padding == "valid" else (1, 1)
    height, width = (draw(st.integers(n, n + 7)) for n in smallest)
    return size, strides, padding, (height, width)


axes = st.tuples(*[st.integers(1, 3)] * 2, *[st.integers(1, 5)] * 2)  # E, B, Cin, Cout


@pytest.mark.parametrize("dtype", DTYPES)
@modest
@given(window=windows(), axes=axes, seed=st.integers(0, 2**32 - 1))
@example(((5, 5), (2, 2), "same", (10, 12)), (2, 2, 3, 4), 0)  # uneven padding
@example(((5, 5), (2, 2), "same", (9, 7)), (2, 2, 3, 4), 0)
@example(((4, 4), (1, 1), "same", (7, 6)), (1, 2, 2, 3), 0)  # even kernel
@example(((4, 4), (1, 1), "valid", (4, 4)), (1, 1, 5, 3), 0)  # kernel equal to its input
@example(((2, 1), (4, 3), "valid", (11, 8)), (2, 1, 2, 2), 0)  # strides beyond the kernel
@example(((1, 2), (3, 4), "same", (8, 11)), (2, 3, 2, 2), 0)
@example(((6, 5), (1, 2), "same", (1, 2)), (1, 2, 1, 2), 0)  # kernel larger than its input
@example(((3, 3), (4, 4), "valid", (6, 10)), (1, 1, 1, 1), 0)  # rows that no place reaches
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


def away_from_kinks(ops, linear_layer, shape):
    """A random input for which no number before the activation is near 0."""
    for seed in range(500):
        x = np.random.default_rng(seed).normal(size=shape)
        if np.abs(forward(ops, linear_layer, make_frame(ops, linear_layer, x))).min() > 2e-3:
            return x
    raise AssertionError("no such input")


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
    """The tests of chunk boundaries above and below would else pass without a boundary."""
    from minicnn.backends.scratch import chunks  # noqa: PLC0415

    monkeypatch.setattr("minicnn.backends.scratch._CACHE_BYTES", 8_500)
    numbers = [6 * 5 * 6 * 3, 3 * 4 * 25 * 3]  # im2col's numbers an image, forward
    lengths = [[s.stop - s.start for s in chunks(11, n, np.float32)] for n in numbers]
    assert lengths == [[3, 3, 3, 2], [2, 2, 2, 2, 2, 1]]


def test_conv2d_leaves_dx_alone_where_nobody_reads_it(ops):
    x = np.random.default_rng(0).normal(size=(1, 2, 4, 4, 1))
    f = make_frame(ops, layer := Conv2D(2, 3), x)
    f.wants_dx = False
    y = forward(ops, layer, f)
    found = backward(ops, layer, f, np.ones(y.shape))
    assert np.isnan(found["x"]).all() and np.isfinite(found["kernel"]).all()


# ---------------------------------------------------------------------------------------------
# Dense


@pytest.mark.parametrize("dtype", DTYPES)
@modest
@given(
    axes=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 9), st.integers(1, 6)),
    activation=st.sampled_from(ACTIVATIONS),
    seed=st.integers(0, 2**32 - 1),
)
def test_dense_is_the_nested_loops(ops, dtype, axes, activation, seed):
    E, B, K, N = axes
    random = np.random.default_rng(seed)
    x = random.normal(size=(E, B, K)).astype(dtype)
    layer = Dense(N, activation)
    f = make_frame(ops, layer, x)
    y, w = forward(ops, layer, f), host_weights(ops, f)
    assert y.dtype == dtype
    linear = Dense(N)
    f_linear = make_frame(ops, linear, x)
    forward(ops, linear, f_linear)
    dy = random.normal(size=y.shape).astype(dtype)
    found = backward(ops, linear, f_linear, dy)
    for e in range(E):
        z = oracles.dense(x[e], w["kernel"][e], w["bias"][e])
        assert_close(y[e], oracles.activate(activation, z))
        gradients = oracles.dense_gradients(x[e], w["kernel"][e], dy[e])
        for name, expected in zip(("x", "kernel", "bias"), gradients, strict=True):
            assert_close(found[name][e], expected)


@pytest.mark.float64
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dense_gradients_by_central_differences(ops, activation):
    x = away_from_kinks(ops, Dense(3), (2, 3, 5))
    check_gradients(ops, Dense(3, activation), x)


# ---------------------------------------------------------------------------------------------
# Activations and Flatten


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(2, 3, 4, 5, 3), (1, 1, 7), (3, 2, 1)])
def test_activations(ops, name, shape, dtype):
    x = 3 * np.random.default_rng(0).normal(size=shape).astype(dtype)
    f = make_frame(ops, layer := Activation(name), x)
    y = forward(ops, layer, f)
    assert y.dtype == dtype
    assert_close(y, oracles.activate(name, x))
    np.testing.assert_array_equal(ops.to_host(f.x), x)  # another layer's output: stays as it was


@pytest.mark.float64
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(2, 2, 3, 3, 2), (2, 3, 5)])
def test_activation_gradients_by_central_differences(ops, name, shape):
    x = np.random.default_rng(3).normal(size=shape)
    x += 0.01 * np.sign(x)  # relu's kink
    check_gradients(ops, Activation(name), x)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_gradients_in_chunks(ops, monkeypatch, name):
    random = np.random.default_rng(2)
    x, dy = random.normal(size=(2, 2, 7, 3, 3, 2))
    layer = Activation(name)

    def gradient():
        f = make_frame(ops, layer, x)
        forward(ops, layer, f)
        return backward(ops, layer, f, dy)["x"]

    whole = gradient()
    monkeypatch.setattr("minicnn.backends.scratch._CACHE_BYTES", 3 * 18 * 8)
    np.testing.assert_array_equal(gradient(), whole)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sigmoid", [0, 0, 0.5, 1, 1]),
        ("tanh", [-1, -1, 0, 1, 1]),
        ("softmax", [0, 0, 0, 0, 1]),
        ("relu", [0, 0, 0, 80, 1e4]),
    ],
)
def test_activations_of_extreme_numbers_neither_overflow_nor_warn(ops, name, expected, dtype):
    x = np.array([-1e4, -100, 0, 80, 1e4], dtype).reshape(1, 1, 5)
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        f = make_frame(ops, layer := Activation(name), x)
        y = forward(ops, layer, f)
        dx = backward(ops, layer, f, np.ones((1, 1, 5), dtype))["x"]
    np.testing.assert_allclose(y.ravel(), expected, rtol=0, atol=1e-30 if name == "relu" else 1e-6)
    assert np.isfinite(dx).all()


def test_sigmoid_is_exact_far_from_zero_in_float32(ops):
    x = np.linspace(-15, 15, 61, dtype=np.float32).reshape(1, 1, 61)
    f = make_frame(ops, layer := Activation("sigmoid"), x)
    np.testing.assert_allclose(forward(ops, layer, f), oracles.activate("sigmoid", x), atol=1e-7)


def test_flatten_keeps_the_order_of_rows_columns_channels(ops):
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5, 6))
    f = make_frame(ops, layer := Flatten(), x)
    y = forward(ops, layer, f)
    assert layer.output_shape((4, 5, 6)) == (120,)
    assert y.shape == (2, 3, 120)
    assert y[1, 2, (3 * 5 + 2) * 6 + 4] == x.astype(y.dtype)[1, 2, 3, 2, 4]
    dx = backward(ops, layer, f, dy := np.arange(720.0).reshape(y.shape))["x"]
    np.testing.assert_array_equal(dx.ravel(), dy.ravel())


# ---------------------------------------------------------------------------------------------
# Batch normalisation


@pytest.mark.parametrize("dtype", DTYPES)
@modest
@given(
    shape=st.one_of(
        st.tuples(*[st.integers(1, 3)] * 2, *[st.integers(1, 6)] * 2, st.integers(1, 5)),
        st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 5)),
    ),
    epsilon=st.sampled_from([1e-3, 0.3]),
    seed=st.integers(0, 2**32 - 1),
)
def test_batch_norm_is_the_nested_loops(ops, dtype, shape, epsilon, seed):
    x = np.random.default_rng(seed).normal(2, 3, shape).astype(dtype)
    layer = BatchNormalization(epsilon=epsilon)
    f = make_frame(ops, layer, x)
    y, w = forward(ops, layer, f), host_weights(ops, f)
    assert y.dtype == dtype
    for e in range(shape[0]):
        expected, mean, variance = oracles.batch_norm(x[e], w["gamma"][e], w["beta"][e], epsilon)
        assert_close(ops.to_host(f.saved.mean)[e], mean)
        assert_close(ops.to_host(f.saved.variance)[e], variance)
        # Where a channel's numbers are nearly equal, division by sqrt(epsilon) shows roundings.
        assert_close(y[e], expected, factor=2000)


@pytest.mark.float64
@pytest.mark.parametrize("shape", [(2, 3, 3, 2, 3), (2, 5, 3), (1, 1, 3, 3, 2), (1, 2, 1)])
def test_batch_norm_gradients_by_central_differences(ops, shape):
    x = np.random.default_rng(7).normal(1, 2, shape)
    check_gradients(ops, BatchNormalization(epsilon=0.01), x)


def test_batch_norm_of_one_number_a_channel_is_beta(ops):
    x = np.random.default_rng(0).normal(size=(2, 1, 4))
    f = make_frame(ops, layer := BatchNormalization(), x)
    np.testing.assert_allclose(forward(ops, layer, f)[:, 0], ops.to_host(f.weights.beta))
    found = backward(ops, layer, f, np.ones((2, 1, 4)))
    np.testing.assert_allclose(found["x"], 0, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_norm_in_chunks(ops, monkeypatch, dtype):
    random = np.random.default_rng(4)
    x, dy = random.normal(size=(2, 2, 11, 4, 3, 5)).astype(dtype)
    layer = BatchNormalization()

    def run():
        f = make_frame(ops, layer, x)
        y = forward(ops, layer, f)
        gradients = backward(ops, layer, f, dy)
        saved = {"y": y, "mean": ops.to_host(f.saved.mean), "var": ops.to_host(f.saved.variance)}
        return {**gradients, **saved, "inference": forward(ops, layer, f, training=False)}

    whole = run()
    monkeypatch.setattr("minicnn.backends.scratch._CACHE_BYTES", 4 * 60 * np.dtype(dtype).itemsize)
    parts = run()
    for name in whole:
        assert_close(parts[name], whole[name])


def test_batch_norm_of_a_large_mean_in_float32(ops):
    # The variance as a mean of squares less a squared mean would lose every digit here.
    x = np.random.default_rng(0).normal(1000, 0.1, (1, 64, 8, 8, 2)).astype(np.float32)
    f = make_frame(ops, layer := BatchNormalization(), x)
    forward(ops, layer, f)
    expected = x[0].astype(float).var(axis=(0, 1, 2))
    np.testing.assert_allclose(ops.to_host(f.saved.variance)[0], expected, rtol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 3, 4, 5, 3), (2, 4, 3)])
def test_batch_norm_at_inference_uses_the_moving_statistics(ops, shape, dtype):
    x = np.random.default_rng(0).normal(2, 3, shape).astype(dtype)
    f = make_frame(ops, layer := BatchNormalization(epsilon=0.2), x)
    y = forward(ops, layer, f, training=False)
    w = host_weights(ops, f)
    mean, variance = ops.to_host(f.moving.moving_mean), ops.to_host(f.moving.moving_variance)
    for e in range(shape[0]):
        expected = w["gamma"][e] * (x[e] - mean[e]) / np.sqrt(variance[e] + 0.2) + w["beta"][e]
        assert_close(y[e], expected)
    assert np.isnan(ops.to_host(f.saved.mean)).all()  # inference measures nothing


@pytest.mark.parametrize("momentum", [0.99, 0.9, 0.0])
def test_moving_statistics_follow_the_biased_ones_of_the_batch(ops, momentum):
    x = np.random.default_rng(0).normal(2, 3, (2, 3, 2, 2, 4))
    f = make_frame(ops, layer := BatchNormalization(momentum=momentum), x)
    mean, variance = ops.to_host(f.moving.moving_mean), ops.to_host(f.moving.moving_variance)
    for _ in range(2):
        forward(ops, layer, f)
        layer.update(ops, f)
        mean = momentum * mean + (1 - momentum) * x.mean(axis=(1, 2, 3))
        variance = momentum * variance + (1 - momentum) * x.var(axis=(1, 2, 3))
    found = ops.to_host(f.moving.moving_mean), ops.to_host(f.moving.moving_variance)
    rtol = 20 * np.finfo(found[0].dtype).eps
    np.testing.assert_allclose(found[0], mean, rtol=rtol)
    np.testing.assert_allclose(found[1], variance, rtol=rtol)


def test_batch_norm_defaults_are_kerass():
    assert (BatchNormalization().momentum, BatchNormalization().epsilon) == (0.99, 1e-3)


# ---------------------------------------------------------------------------------------------
# Dropout


def kept(shape, rate, seed, net, stream, step):
    """Which numbers of an array dropout keeps, word by word."""
    count = int(np.prod(shape))
    element = np.arange(-(-count // 4))
    counters = np.zeros((len(element), 4), np.uint32)
    counters[:, 0], counters[:, 1], counters[:, 2] = element, step, stream
    keys = np.tile(np.array([seed, net], np.uint32), (len(element), 1))
    words = rng.philox4x32(counters, keys).reshape(-1)[:count]
    return np.array([int(word) >= round(rate * 2**32) for word in words]).reshape(shape)


@pytest.mark.parametrize("dtype", DTYPES)
@modest
@given(
    shape=st.one_of(
        st.tuples(*[st.integers(1, 3)] * 2, *[st.integers(1, 5)] * 3),
        st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 30)),
    ),
    rate=st.one_of(st.sampled_from([0.4, 0.5, 0.25, 1e-10]), st.floats(0.01, 0.99)),
    words=st.tuples(*[st.integers(0, 2**32 - 1)] * 3),
)
def test_dropout_keeps_the_words_that_are_at_least_the_rate(ops, dtype, shape, rate, words):
    seed, stream, step = words
    nets = [2**32 - 1, 0, 14][: shape[0]]
    x = np.random.default_rng(0).uniform(1, 2, shape).astype(dtype)
    layer = Dropout(rate)
    f = make_frame(ops, layer, x, seed, nets, stream, step)
    y = forward(ops, layer, f)
    dx = backward(ops, layer, f, x)["x"]
    assert y.dtype == dx.dtype == dtype
    for e, net in enumerate(nets):
        mask = kept(shape[1:], rate, seed, net, stream, step)
        np.testing.assert_array_equal(ops.to_host(f.saved.mask)[e], mask)
        expected = np.where(mask, x[e].astype(float) / (1 - rate), 0)
        for found in (y[e], dx[e]):
            np.testing.assert_allclose(found, expected, rtol=4 * np.finfo(dtype).eps)
            np.testing.assert_array_equal(found == 0, ~mask)


def test_dropouts_threshold_is_exact(ops):
    word = int(rng.philox4x32(np.array([[0, 5, 16, 0]]), np.array([[3, 0]]))[0, 0])
    for threshold, keeps in [(word, True), (word + 1, False), (word + 0.4, True), (word - 3, True)]:
        layer = Dropout(threshold / 2**32)
        f = make_frame(ops, layer, np.ones((1, 1, 1)), step=5)
        assert bool(forward(ops, layer, f)[0, 0, 0]) == keeps


def test_dropout_of_many_numbers(ops):
    x = np.ones((2, 5, 30_001), np.float32)
    f = make_frame(ops, layer := Dropout(0.4), x, seed=1, nets=[3, 4], stream=17, step=9)
    y = forward(ops, layer, f)
    for e, net in enumerate([3, 4]):
        np.testing.assert_array_equal(y[e] > 0, kept(x.shape[1:], 0.4, 1, net, 17, 9))
    share = (y > 0).mean()
    assert abs(share - 0.6) < 5 * (0.24 / x.size) ** 0.5
    assert abs(y.mean() - 1) < 0.01  # inverted: the mean stays


@pytest.mark.parametrize("change", ["seed", "nets", "stream", "step"])
def test_dropout_masks_differ_by_seed_net_stream_and_step(ops, change):
    layer, x = Dropout(0.5), np.ones((1, 4, 1000))
    words = {"seed": 1, "nets": [2], "stream": 16, "step": 3}
    other = {**words, change: [3] if change == "nets" else words[change] + 1}
    one, two = (forward(ops, layer, make_frame(ops, layer, x, **w)) for w in (words, other))
    assert 0.4 < np.mean(one == two) < 0.6


@pytest.mark.float64
def test_dropout_gradient_by_central_differences(ops):
    check_gradients(ops, Dropout(0.4), np.random.default_rng(0).normal(size=(2, 3, 2, 3, 2)))


def test_dropout_does_nothing_at_inference_or_at_rate_0(ops):
    assert Dropout(0.4).shares_memory(training=False)
    assert not Dropout(0.4).shares_memory(training=True)
    assert Dropout(0).shares_memory(training=True)
    assert Dropout(0).saved((3,)) == {}


def test_dropout_at_the_largest_rate(ops):
    layer = Dropout(float(np.nextafter(1, 0)))
    y = forward(ops, layer, make_frame(ops, layer, np.ones((1, 1, 1000))))
    assert not y.any()


# ---------------------------------------------------------------------------------------------
# Max pooling


@pytest.mark.parametrize("dtype", DTYPES)
@modest
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


def test_the_first_of_equals_gets_the_gradient(ops):
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


# ---------------------------------------------------------------------------------------------
# The loss


def loss_of(ops, logits, labels):
    """(loss (E,), correct (E,), dlogits) as NumPy arrays."""
    E = len(logits)
    loss, correct = poisoned(ops, (E,), logits.dtype), poisoned(ops, (E,), np.int64)
    dlogits = poisoned(ops, logits.shape, logits.dtype)
    labels = ops.to_device(np.asarray(labels, np.int64))
    ops.softmax_cross_entropy(ops.to_device(logits), labels, loss, correct, dlogits)
    return tuple(map(ops.to_host, (loss, correct, dlogits)))


@pytest.mark.parametrize("dtype", DTYPES)
@modest
@given(
    axes=st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 12)),
    scale=st.sampled_from([1, 30]),
    seed=st.integers(0, 2**32 - 1),
)
def test_softmax_cross_entropy_is_the_nested_loops(ops, dtype, axes, scale, seed):
    random = np.random.default_rng(seed)
    logits = (scale * random.normal(size=axes)).astype(dtype)
    labels = random.integers(0, axes[2], axes[:2])
    kept = logits.copy()
    loss, correct, dlogits = loss_of(ops, logits, labels)
    np.testing.assert_array_equal(logits, kept)
    for e in range(axes[0]):
        expected = oracles.softmax_cross_entropy(logits[e], labels[e])
        np.testing.assert_allclose(loss[e], expected[0], rtol=50 * np.finfo(dtype).eps, atol=1e-6)
        assert correct[e] == expected[1]
        assert_close(dlogits[e], expected[2])


@pytest.mark.float64
def test_softmax_cross_entropy_gradient_by_central_differences(ops):
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(2, 3, 5)), random.integers(0, 5, (2, 3))
    found = loss_of(ops, logits, labels)[2]
    for e in range(2):
        expected = central_differences(lambda e=e: loss_of(ops, logits, labels)[0][e], logits)
        assert np.abs(found[e] - expected[e]).max() <= 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_loss_neither_saturates_nor_overflows(ops, dtype):
    logits = np.array([[[1e4, -1e4, 0], [1e4, -1e4, 0]]], dtype)
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        loss, correct, dlogits = loss_of(ops, logits, [[1, 0]])
    assert loss[0] == 1e4  # the mean of 2e4 and 0
    assert correct[0] == 1
    np.testing.assert_array_equal(dlogits[0], [[0.5, -0.5, 0], [0, 0, 0]])


def test_accumulate_adds_up_in_float64(ops):
    sums = ops.to_device(np.array([[1.0, 2.0, 0.0], [3.0, 4.0, 5.0]]))
    loss, correct = np.array([0.5, 0.25], np.float32), np.array([7, 8])
    ops.accumulate(ops.to_device(loss), ops.to_device(correct), sums)
    np.testing.assert_array_equal(ops.to_host(sums), [[1.5, 9, 1], [3.25, 12, 6]])


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_accumulate_counts_steps_until_a_loss_is_not_finite(ops, wrong):
    sums, correct = ops.zeros((2, 3), np.float64), ops.to_device(np.array([1, 1]))
    with ops.session():
        for loss in ([1, 1], [2, wrong], [3, 3], [4, -wrong], [5, 5]):
            ops.accumulate(ops.to_device(np.array(loss, np.float32)), correct, sums)
        found = ops.to_host(sums)
    np.testing.assert_array_equal(found[0], [15, 5, 5])
    np.testing.assert_array_equal(found[1, 1:], [5, 1])
    assert not np.isfinite(found[1, 0])


# ---------------------------------------------------------------------------------------------
# Adam on flat arrays


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cache", [1 << 20, 5 * 8 * 4])
def test_adam_is_kerass(ops, monkeypatch, dtype, cache):
    monkeypatch.setattr("minicnn.backends.scratch._CACHE_BYTES", cache)
    random = np.random.default_rng(0)
    E, P = 3, 37
    w = random.normal(size=(E, P)).astype(dtype)
    arrays = [ops.to_device(a) for a in (w.copy(), np.zeros_like(w), np.zeros_like(w))]
    step, rate = ops.to_device(np.zeros(1, np.int64)), ops.to_device(np.zeros(1))
    expected = [[w[e].astype(float), np.zeros(P), np.zeros(P)] for e in range(E)]
    for t, learning_rate in enumerate([1e-3, 1e-2, 0.0, 0.5], start=1):
        # From tiny to large: epsilon stands beside the root, not under it, and it shows.
        g = (random.normal(size=(E, P)) * 10.0 ** random.integers(-9, 2, (E, P))).astype(dtype)
        rate[...] = learning_rate
        ops.adam(arrays[0], ops.to_device(g), *arrays[1:], step, rate, 0.9, 0.999, 1e-7)
        assert int(ops.to_host(step)[0]) == t
        for e in range(E):
            w_, m, v = expected[e]
            expected[e] = oracles.adam(w_, g[e].astype(float), m, v, t, learning_rate)
            for found, wanted in zip(arrays, expected[e], strict=True):
                tolerance = 50 * np.finfo(dtype).eps
                np.testing.assert_allclose(
                    ops.to_host(found)[e], wanted, rtol=tolerance, atol=tolerance * 1e-2
                )
