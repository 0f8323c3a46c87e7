"""The kernels in C that networks of blocks run beside convolutions: against NumPy, to the bit."""

import numpy as np
import pytest
from cases import as_float32, poison, relative
from hypothesis import given
from hypothesis import strategies as st
from levels import examples

from minicnn.backends import ops_numpy
from minicnn.backends.cpu_blocks import rows_of

pytestmark = pytest.mark.usefixtures("kernels_in_c")

KEEP = 1 / 0.6


class Parts:
    """Random arrays of a block's normalisation: y (E, B, H, W, C) and what belongs to it."""

    def __init__(self, ops, shape, seed, drops):
        self.call, self.shape = ops.cpu.call, shape
        random = np.random.default_rng(seed)
        E, C = shape[0], shape[-1]
        self.y, self.dy = as_float32(random, shape, 3, 2), as_float32(random, shape)
        self.gamma, self.beta = as_float32(random, (E, C), center=1), as_float32(random, (E, C))
        self.mask = random.random(shape) < 0.6 if drops else None
        self.rows = rows_of(shape)
        self.groups = -(-self.rows["rows"] // self.rows["chunk_rows"])

    def of_channels(self, *names, axes=()):
        """{name: a poisoned float32 array (E, ..., C)}."""
        shape = (self.shape[0], *axes, self.shape[-1])
        return {name: poison(shape, np.float32) for name in names}

    def merge(self, moments):
        """{name: array} of batch_norm_merge."""
        found = self.of_channels("mean", "variance", "mean_error", "scale", "shift")
        gamma, beta = (a.astype(np.float32) for a in (self.gamma, self.beta))
        groups, C = moments.shape[1], self.shape[-1]
        self.call("batch_norm_merge", moments, groups, C, gamma, beta, 1e-3, *found.values())
        return found

    def moments(self):
        """Those of each chunk, by batch_norm_moments."""
        found = poison((self.shape[0], self.groups, 3, self.shape[-1]), np.float64)
        self.call("batch_norm_moments", x=self.y.astype(np.float32), **self.rows, moments=found)
        return found

    def apply(self, merged):
        """The output of the block, by batch_norm_apply."""
        y = poison(self.shape, np.float32)
        scales = {name: merged[name] for name in ("mean", "scale", "shift")}
        given = {"x": self.y.astype(np.float32), **self.rows, **scales}
        self.call("batch_norm_apply", **given, mask=self.mask, keep=KEEP, y=y)
        return y

    def backward(self, merged, relu):
        """{name: array}: dx, dgamma and dbeta, by the kernels of the backward pass."""
        y, dx = self.y.astype(np.float32), self.dy.astype(np.float32)
        sums = poison((self.shape[0], self.groups, 2, self.shape[-1]), np.float64)
        about = {"x": y, "dy": dx, **self.rows, "mean": merged["mean"]}
        dropped = None if self.mask is None else dx
        self.call(
            "batch_norm_dropped_sums",
            **about, mask=self.mask, keep=KEEP, dropped=dropped, sums=sums,
        )  # fmt: skip
        found = self.of_channels("dgamma", "dbeta")
        terms = self.of_channels("terms", axes=(4,))["terms"]
        self.call(
            "batch_norm_terms",
            sums=sums, groups=self.groups, rows=self.rows["rows"], C=self.shape[-1],
            gamma=self.gamma.astype(np.float32), epsilon=1e-3, variance=merged["variance"],
            mean_error=merged["mean_error"], **found, terms=terms,
        )  # fmt: skip
        self.call("batch_norm_input_gradient", **about, terms=terms, relu=relu, dx=dx)
        return {**found, "dx": dx}

    def expected(self, relu):
        """{name: array}: the same results of ops_numpy, in float64."""
        found = {n: poison(self.gamma.shape, float) for n in "mean variance dgamma dbeta".split()}
        found |= {name: poison(self.shape, float) for name in ("y", "dx")}
        of_batch = found["mean"], found["variance"]
        ops_numpy.batch_norm(self.y, self.gamma, self.beta, 1e-3, *of_batch, found["y"])
        dy = self.dy
        if self.mask is not None:
            found["y"] = np.where(self.mask, found["y"] * KEEP, 0)
            dy = np.where(self.mask, dy * KEEP, 0)
        gradients = found["dx"], found["dgamma"], found["dbeta"]
        activation = "relu" if relu else "linear"
        ops_numpy.batch_norm_backward(
            self.y, dy, self.gamma, 1e-3, *of_batch, *gradients, activation=activation
        )
        return found


shapes = st.tuples(
    st.integers(1, 3), st.integers(1, 5), *[st.integers(2, 12)] * 2, st.integers(1, 70)
)


@examples(80)
@given(shape=shapes, seed=st.integers(0, 2**32 - 1), drops=st.booleans(), relu=st.booleans())
def test_the_parts_of_batch_norm_are_numpys(cpu_ops, shape, seed, drops, relu):
    parts = Parts(cpu_ops, shape, seed, drops)
    merged, expected = parts.merge(parts.moments()), parts.expected(relu)
    found = {**merged, "y": parts.apply(merged), **parts.backward(merged, relu)}
    for name in ("mean", "variance", "y"):
        assert relative(found[name], expected[name]) < 1e-5, name
    for name in ("dgamma", "dbeta", "dx"):  # whose sums can cancel
        size = max(np.linalg.norm(parts.dy), np.linalg.norm(expected[name]))
        assert np.linalg.norm(found[name] - expected[name]) <= 1e-5 * size, name


@pytest.mark.parametrize("mean", [1e3, 1e5])
@pytest.mark.parametrize("shape", [(2, 4, 9, 8, 3), (1, 64, 14, 12, 2), (1, 3, 3, 1, 40)])
def test_a_mean_much_larger_than_the_deviation_costs_no_precision(cpu_ops, shape, mean):
    parts = Parts(cpu_ops, shape, 0, drops=True)
    centers = mean + 3 * np.arange(shape[1])[:, None, None, None] % 20  # chunks differ
    parts.y = as_float32(np.random.default_rng(0), shape, center=centers)
    merged, expected = parts.merge(parts.moments()), parts.expected(relu=False)
    found = {**merged, "y": parts.apply(merged), **parts.backward(merged, relu=False)}
    for name in ("mean", "variance", "y", "dgamma", "dbeta", "dx"):
        assert relative(found[name], expected[name]) < 1e-5, name


@examples(40)
@given(shape=shapes, seed=st.integers(0, 2**32 - 1))
def test_a_normalisation_by_parts_is_the_layers_to_the_bit(cpu_ops, shape, seed):
    parts = Parts(cpu_ops, shape, seed, drops=False)
    merged = parts.merge(parts.moments())
    mean, variance = parts.of_channels("mean", "variance").values()
    weights = parts.gamma.astype(np.float32), parts.beta.astype(np.float32)
    x, y = parts.y.astype(np.float32), poison(shape, np.float32)
    workspace = np.empty(cpu_ops.batch_norm_workspace(shape[0], shape[1], shape[2:]), np.uint8)
    cpu_ops.batch_norm(x, *weights, 1e-3, mean, variance, y, workspace)
    np.testing.assert_array_equal(mean, merged["mean"])
    np.testing.assert_array_equal(variance, merged["variance"])
    np.testing.assert_array_equal(parts.apply(merged), y)
    # At inference
    scales = parts.of_channels("scale", "shift")
    given = {"gamma": weights[0], "beta": weights[1], "epsilon": 1e-3, "variance": variance}
    cpu_ops.cpu.call("batch_norm_scale", C=shape[-1], **given, mean_error=None, **scales)
    cpu_ops.batch_norm_inference(x, *weights, 1e-3, mean, variance, y)
    np.testing.assert_array_equal(parts.apply({"mean": mean, **scales}), y)


@examples(40)
@given(
    shape=shapes,
    seed=st.integers(0, 2**32 - 1),
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12),
)
def test_moments_of_groups_of_any_size_are_merged(cpu_ops, shape, seed, lengths):
    parts = Parts(cpu_ops, (shape[0], 1, 1, sum(lengths), shape[-1]), seed, drops=False)
    rows = parts.y.reshape(shape[0], -1, shape[-1])
    groups = np.split(rows, np.cumsum(lengths)[:-1], axis=1)
    moments = np.stack(
        [
            np.stack([np.full(g[:, 0].shape, g.shape[1]), g.mean(1), g.var(1) * g.shape[1]], 1)
            for g in groups
        ],
        axis=1,
    )
    found = parts.merge(moments)
    exact = found["mean"] + found["mean_error"].astype(np.float64)
    np.testing.assert_allclose(exact, rows.mean(1), rtol=1e-12, atol=1e-12)
    assert relative(found["variance"], rows.var(1)) < 1e-6 or sum(lengths) == 1


@examples(40)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 6000)),
    words=st.tuples(*[st.integers(0, 2**32 - 1)] * 4),
    threshold=st.integers(0, 2**32 - 1),
)
def test_a_mask_by_itself_is_dropouts(cpu_ops, shape, words, threshold):
    seed, stream, step, net = words
    drawn = {"seed": seed, "net": (net + np.arange(shape[0])) % 2**32, "stream": stream}
    drawn |= {"threshold": threshold, "step": np.array([step]), "count": shape[1] * shape[2]}
    found, mask = poison(shape, bool), poison(shape, bool)
    x = np.ones(shape, np.float32)
    cpu_ops.cpu.call("dropout_mask", **drawn, mask=found)
    cpu_ops.cpu.call("dropout_forward", x=x, scale=2.0, **drawn, mask=mask, y=x.copy())
    np.testing.assert_array_equal(found, mask)
