"""Dense, activations, Flatten, batch normalisation and dropout, each layer alone.

Outputs are compared with nested loops (oracles.py), gradients with central differences.
"""

import numpy as np
import oracles
import pytest
from hypothesis import given
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

from minicnn import Activation, BatchNormalization, Dense, Dropout, Flatten, rng

pytestmark = pytest.mark.every_device


# ---------------------------------------------------------------------------------------------
# Dense


@pytest.mark.parametrize("dtype", DTYPES)
@examples(150)
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
    np.testing.assert_array_equal(ops.to_host(f.x), x)  # another layer's output: unchanged


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
@examples(150)
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
        # Where a channel's elements are nearly equal, division by sqrt(epsilon) amplifies rounding.
        assert_close(y[e], expected, factor=2000)


@pytest.mark.float64
@pytest.mark.parametrize("shape", [(2, 3, 3, 2, 3), (2, 5, 3), (1, 1, 3, 3, 2), (1, 2, 1)])
def test_batch_norm_gradients_by_central_differences(ops, shape):
    x = np.random.default_rng(7).normal(1, 2, shape)
    check_gradients(ops, BatchNormalization(epsilon=0.01), x)


def test_batch_norm_of_one_element_a_channel_is_beta(ops):
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
    # mean(x²) - mean(x)² would have no correct digit here.
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
    """Which elements dropout keeps, word by word."""
    count = int(np.prod(shape))
    element = np.arange(-(-count // 4))
    counters = np.zeros((len(element), 4), np.uint32)
    counters[:, 0], counters[:, 1], counters[:, 2] = element, step, stream
    keys = np.tile(np.array([seed, net], np.uint32), (len(element), 1))
    words = rng.philox4x32(counters, keys).reshape(-1)[:count]
    return np.array([int(word) >= round(rate * 2**32) for word in words]).reshape(shape)


@pytest.mark.parametrize("dtype", DTYPES)
@examples(150)
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
    assert abs(y.mean() - 1) < 0.01  # inverted dropout keeps the mean


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
