"""The loss and Adam's update: against nested loops (oracles.py), and Keras's formula."""

import numpy as np
import oracles
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st
from layer_frames import DTYPES, assert_close, central_differences, poisoned
from levels import examples

from minicnn.backends import ops_numpy
from minicnn.network.optim import Averaging

pytestmark = pytest.mark.every_device


# ---------------------------------------------------------------------------------------------
# The loss


def loss_of(ops, logits, labels, smoothing=0.0):
    """(loss (E,), correct (E,), dlogits) as NumPy arrays."""
    E = len(logits)
    loss, correct = poisoned(ops, (E,), logits.dtype), poisoned(ops, (E,), np.int64)
    dlogits = poisoned(ops, logits.shape, logits.dtype)
    labels = ops.to_device(np.asarray(labels, np.int64))
    ops.softmax_cross_entropy(ops.to_device(logits), labels, smoothing, loss, correct, dlogits)
    return tuple(map(ops.to_host, (loss, correct, dlogits)))


@pytest.mark.parametrize("dtype", DTYPES)
@examples(150)
@given(
    axes=st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 12)),
    scale=st.sampled_from([1, 30]),
    smoothing=st.sampled_from([0.0, 0.1, 0.9]),
    seed=st.integers(0, 2**32 - 1),
)
def test_softmax_cross_entropy_is_the_nested_loops(ops, dtype, axes, scale, smoothing, seed):
    random = np.random.default_rng(seed)
    logits = (scale * random.normal(size=axes)).astype(dtype)
    labels = random.integers(0, axes[2], axes[:2])
    kept = logits.copy()
    loss, correct, dlogits = loss_of(ops, logits, labels, smoothing)
    np.testing.assert_array_equal(logits, kept)
    for e in range(axes[0]):
        expected = oracles.softmax_cross_entropy(logits[e], labels[e], smoothing)
        np.testing.assert_allclose(loss[e], expected[0], rtol=50 * np.finfo(dtype).eps, atol=1e-6)
        assert correct[e] == expected[1]
        assert_close(dlogits[e], expected[2])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [2, 10, 37, 1000])
def test_the_smoothed_loss_is_scipys_cross_entropy_with_the_target(ops, dtype, classes):
    random = np.random.default_rng(classes)
    logits = (5 * random.normal(size=(3, 7, classes))).astype(dtype)
    labels, smoothing = random.integers(0, classes, (3, 7)), random.uniform(0.05, 0.5)
    loss, _, dlogits = loss_of(ops, logits, labels, smoothing)
    target = (1 - smoothing) * np.eye(classes)[labels] + smoothing / classes
    log_softmax = scipy.special.log_softmax(np.float64(logits), axis=-1)
    tolerance = 50 * np.finfo(dtype).eps
    expected = -(target * log_softmax).sum(axis=-1).mean(axis=-1)
    np.testing.assert_allclose(loss, expected, rtol=tolerance)
    expected = (np.exp(log_softmax) - target) / 7
    np.testing.assert_allclose(dlogits, expected, rtol=tolerance, atol=tolerance / 7)


@pytest.mark.float64
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_softmax_cross_entropy_gradient_by_central_differences(ops, smoothing):
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(2, 3, 5)), random.integers(0, 5, (2, 3))
    given = ops, logits, labels, smoothing
    found = loss_of(*given)[2]
    for e in range(2):
        expected = central_differences(lambda e=e: loss_of(*given)[0][e], logits)
        assert np.abs(found[e] - expected[e]).max() <= 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_loss_neither_saturates_nor_overflows(ops, dtype):
    logits = np.array([[[1e4, -1e4, 0], [1e4, -1e4, 0]]], dtype)
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        loss, correct, dlogits = loss_of(ops, logits, [[1, 0]])
        smoothed, _, smoothed_dlogits = loss_of(ops, logits, [[1, 0]], smoothing=0.25)
    assert loss[0] == 1e4  # the mean of 2e4 and 0
    assert correct[0] == 1
    np.testing.assert_array_equal(dlogits[0], [[0.5, -0.5, 0], [0, 0, 0]])
    # Of -log p = 0, 2e4 and 1e4, the mean over the targets (1/12, 5/6, 1/12) and (5/6, 1/12, 1/12).
    np.testing.assert_allclose(smoothed[0], (1.75e4 + 0.25e4) / 2, rtol=1e-6)
    expected = np.array([[11, -10, -1], [2, -1, -1]]) / 24
    np.testing.assert_allclose(smoothed_dlogits[0], expected, rtol=1e-5)


def plain_cross_entropy(logits, labels):
    """(loss, correct, dlogits) by the formula that knows no smoothing."""
    at_label = labels[..., None]
    dlogits = logits - logits.max(axis=-1, keepdims=True)
    shifted = np.take_along_axis(dlogits, at_label, axis=-1)[..., 0]
    dlogits = np.exp(dlogits)
    total = dlogits.sum(axis=-1, keepdims=True)
    loss = np.mean(np.log(total[..., 0]) - shifted, axis=1)
    correct = np.sum((logits.argmax(axis=-1) == labels) & (total[..., 0] > 0), axis=1)
    dlogits = dlogits / total
    of_label = np.take_along_axis(dlogits, at_label, axis=-1) - 1
    np.put_along_axis(dlogits, at_label, of_label, axis=-1)
    return loss, correct, dlogits / logits.shape[1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_smoothing_the_bits_are_those_of_the_plain_formula(ops, dtype):
    """On logits whose exponential functions, logarithms and sums are exact on every device."""
    inf, nan = np.inf, np.nan
    rows = [
        [2, -1000, -1002.5, -2000],
        [-inf, 3, -inf, -3000],  # with smoothing the loss is infinite
        [7, 7, 7, -1000],
        [-inf, -inf, -inf, -inf],
        [0, inf, 0, 0],
        [nan, 0, 1, 2],
        [0, 1, 2, nan],
    ]
    # A net for each row and label; three equal images, since a division by 3 rounds
    logits = np.repeat(np.array(rows, dtype), 4, axis=0)[:, None].repeat(3, axis=1)
    labels = np.tile(np.arange(4), len(rows))[:, None].repeat(3, axis=1)
    with np.errstate(invalid="ignore"):
        found, smoothed = loss_of(ops, logits, labels), loss_of(ops, logits, labels, 0.1)
        expected = plain_cross_entropy(logits, labels)
    ties = slice(8, 12)  # the logarithm of 3 is not exact
    np.testing.assert_allclose(found[0][ties], expected[0][ties], rtol=1e-6)
    found[0][ties] = expected[0][ties]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.isposinf(smoothed[0][4:8]).all() and np.isfinite(smoothed[2][4:8]).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_without_smoothing_numpys_bits_are_those_of_the_plain_formula(dtype):
    random = np.random.default_rng(0)
    for classes in (1, 2, 10, 37, 1000):
        logits = (30 * random.normal(size=(3, 5, classes))).astype(dtype)
        labels = random.integers(0, classes, (3, 5))
        for wrong in (None, np.nan, np.inf, -np.inf):
            if wrong is not None:
                logits.reshape(-1)[random.integers(logits.size, size=2)] = wrong
            with np.errstate(invalid="ignore"):
                found = loss_of(ops_numpy, logits, labels)
                expected = plain_cross_entropy(logits, labels)
            assert [a.tobytes() for a in found] == [a.tobytes() for a in expected]


def test_accumulate_adds_up_in_float64(ops):
    sums = ops.to_device(np.array([[1.0, 2.0, 0.0], [3.0, 4.0, 5.0]]))
    loss, correct = np.array([0.5, 0.25], np.float32), np.array([7, 8])
    step = ops.to_device(np.array([2**31]))
    ops.accumulate(ops.to_device(loss), ops.to_device(correct), step, sums)
    np.testing.assert_array_equal(ops.to_host(sums), [[1.5, 9, 1], [3.25, 12, 6]])
    assert ops.to_host(step) == [2**31 + 1]


def test_accumulate_counts_a_step_without_sums(ops):
    step = ops.to_device(np.array([4]))
    loss, correct = ops.zeros((3,), np.float32), ops.zeros((3,), np.int64)
    ops.accumulate(loss, correct, step, None)
    assert ops.to_host(step) == [5]


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_accumulate_counts_steps_until_a_loss_is_not_finite(ops, wrong):
    sums, correct = ops.zeros((2, 3), np.float64), ops.to_device(np.array([1, 1]))
    step = ops.zeros((1,), np.int64)
    with ops.session():
        for loss in ([1, 1], [2, wrong], [3, 3], [4, -wrong], [5, 5]):
            ops.accumulate(ops.to_device(np.array(loss, np.float32)), correct, step, sums)
        found = ops.to_host(sums)
    np.testing.assert_array_equal(found[0], [15, 5, 5])
    np.testing.assert_array_equal(found[1, 1:], [5, 1])
    assert not np.isfinite(found[1, 0])


# ---------------------------------------------------------------------------------------------
# Adam on flat arrays, and their average


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cache", [1 << 20, 5 * 8 * 4])
def test_adam_is_kerass(ops, monkeypatch, dtype, cache):
    monkeypatch.setattr("minicnn.backends.scratch._CACHE_BYTES", cache)
    random = np.random.default_rng(0)
    E, P = 3, 37
    w = random.normal(size=(E, P)).astype(dtype)
    arrays = [ops.to_device(a) for a in (w.copy(), np.zeros_like(w), np.zeros_like(w))]
    # The first four steps take the rates in turn, later ones the same again.
    rates = [1e-3, 1e-2, 0.0, 0.5]
    step, on_device = ops.to_device(np.zeros(1, np.int64)), ops.to_device(np.array(rates))
    expected = [[w[e].astype(float), np.zeros(P), np.zeros(P)] for e in range(E)]
    for t, learning_rate in enumerate([*rates, *rates[:2]], start=1):
        # From tiny to large, to show that epsilon is added to the root, not under it.
        g = (random.normal(size=(E, P)) * 10.0 ** random.integers(-9, 2, (E, P))).astype(dtype)
        ops.adam(arrays[0], ops.to_device(g), *arrays[1:], step, on_device, 0.9, 0.999, 1e-7)
        step += 1
        for e in range(E):
            w_, m, v = expected[e]
            expected[e] = oracles.adam(w_, g[e].astype(float), m, v, t, learning_rate)
            for found, wanted in zip(arrays, expected[e], strict=True):
                tolerance = 50 * np.finfo(dtype).eps
                np.testing.assert_allclose(
                    ops.to_host(found)[e], wanted, rtol=tolerance, atol=tolerance * 1e-2
                )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("decay", [0.0, 0.75])
@pytest.mark.parametrize("cache", [1 << 20, 3 * 8 * 4])
def test_average_is_the_mean_or_the_exponential_average(ops, monkeypatch, dtype, decay, cache):
    """Of the weights after each step of three epochs with four steps each."""
    monkeypatch.setattr("minicnn.backends.scratch._CACHE_BYTES", cache)
    steps, first = 4, 3  # steps of an epoch; the first epoch that is averaged
    params = np.random.default_rng(0).normal(size=(3 * steps, 2, 37)).astype(dtype)
    averaged = ops.zeros((2, 37), dtype)
    averaging = Averaging(range(first, first + 3), decay)
    assert averaging.shares(first - 1, steps) is None
    step = ops.to_device(np.array([(first - 1) * steps]))
    for epoch in averaging.epochs:
        shares = ops.to_device(averaging.shares(epoch, steps))
        for w in params[(epoch - first) * steps :][:steps]:
            step += 1
            ops.average(ops.to_device(w), averaged, step, shares)
    expected = np.mean(params.astype(float), axis=0)
    if decay:
        expected = params[0].astype(float)
        for w in params[1:]:
            expected = decay * expected + (1 - decay) * w
    tolerance = 20 * np.finfo(dtype).eps
    np.testing.assert_allclose(ops.to_host(averaged), expected, rtol=tolerance, atol=tolerance)
