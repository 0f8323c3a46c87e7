"""Winograd convolution in C: its matrices in exact fractions, and what its passes fuse.

test_kernel_convolution.py compares the passes themselves with NumPy.
"""

import re
from fractions import Fraction
from itertools import chain

import numpy as np
import pytest
from cases import relative, with_kernels
from hypothesis import assume, given
from hypothesis import strategies as st
from levels import examples
from oracles import conv2d, conv2d_gradients

from minicnn.backends import ops_cpu
from minicnn.backends.cpu_convolution import Below, Fuses, Source
from minicnn.backends.kernel import SOURCES
from minicnn.network.geometry import Window

SIZES = 2, 4, 5
POINTS = {
    2: [Fraction(1)],
    4: [Fraction(5, 8), Fraction(3, 2)],
    5: [Fraction(5, 16), Fraction(7, 8), Fraction(7, 4)],
}


# ---- the matrices --------------------------------------------------------------------------------


def matrix(name):
    """The rows of a matrix of winograd_matrices.h, in fractions."""
    text = (SOURCES / "winograd_matrices.h").read_text("utf-8")
    head = rf"Matrix {name} = {{(\d+), (\d+), (\d+), \w+, {{\n"
    found = re.search(head + "(.*?)}};", text, re.DOTALL)
    rows = [
        [Fraction(number.replace(". / ", "/")) for number in line.strip(" {},").split(", ")]
        for line in found[4].splitlines()
        if line.strip()
    ]
    assert [len(rows), len(rows[0])] == [int(found[1]), int(found[2])]
    assert int(found[3]) == len(POINTS[int(name[-1])])
    return rows


@pytest.mark.parametrize("m", SIZES)
def test_the_matrices_compute_a_correlation_exactly(m):
    B, G, A = (matrix(f"{name}_{m}") for name in ("INPUT", "KERNEL", "OUTPUT"))
    for k in range(m):
        for tap in range(3):
            for pixel in range(m + 2):
                sum_ = sum(A[p][k] * G[p][tap] * B[p][pixel] for p in range(m + 2))
                assert sum_ == (pixel == k + tap), (k, tap, pixel)


@pytest.mark.parametrize("m", SIZES)
def test_a_place_is_a_point_and_points_come_in_pairs(m):
    A = matrix(f"OUTPUT_{m}")
    points = [sign * point for point in POINTS[m] for sign in (1, -1)]
    points += [Fraction(0)] * (m + 1 - len(points))
    assert A[:-1] == [[point**k for k in range(m)] for point in points]
    assert A[-1] == [0] * (m - 1) + [1]  # infinity
    for name in ("INPUT", "KERNEL", "OUTPUT"):
        M = matrix(f"{name}_{m}")
        for i in range(0, 2 * len(POINTS[m]), 2):
            assert M[i + 1] == [(-1) ** j * value for j, value in enumerate(M[i])]


@pytest.mark.parametrize("m", SIZES)
@pytest.mark.parametrize("name", ["INPUT", "OUTPUT"])
def test_the_transforms_of_images_are_exact_in_float(m, name):
    for value in chain.from_iterable(matrix(f"{name}_{m}")):
        assert Fraction(float(np.float32(float(value)))) == value


# ---- what the passes fuse ------------------------------------------------------------------------

KINDS = [((3, 3), 1), ((2, 3), 1), ((5, 5), 2), ((4, 3), 2)]  # sizes, strides
UNSTRIDED = 5  # this m is for stride 1 only


class Layer:
    """A random convolution that Winograd's algorithm fits, with random arrays."""

    def __init__(self, cpu_ops, m, kind, axes, channels, padding, seed):
        self.random, (self.size, stride) = np.random.default_rng(seed), kind
        self.ops = ops_cpu.Operations(cpu_ops.cpu, f"winograd-{m}")
        self.convolution = self.ops.convolution
        (self.E, self.B, *image), (self.Cin, self.Cout) = axes, channels
        self.strides, self.padding = (stride, stride), padding
        self.window = Window.fit(self.size, self.strides, padding, image)
        self.x = self.array(self.E, self.B, *image, self.Cin)
        self.kernel = self.array(self.E, *self.size, self.Cin, self.Cout)
        self.dz = self.array(self.E, self.B, *self.window.output, self.Cout)
        self.sizes = self.window, self.B, self.Cin, self.Cout
        assert self.convolution.fuses(*self.sizes) == Fuses(True, True, True)
        self.workspace = np.full(
            self.ops.conv2d_workspace(self.E, self.B, self.window, self.Cin, self.Cout),
            255,
            np.uint8,
        )

    def array(self, *shape):
        return self.random.standard_normal(shape).astype(np.float32)

    def mask(self, shape, drops):
        return self.random.random(shape) < 0.6 if drops else None

    def source(self, drops):
        """A Source for x, and x as it is then, in float64."""
        mean, scale, shift = (self.array(self.E, self.Cin) for _ in range(3))
        mask = self.mask(self.x.shape, drops)
        mean_, scale_, shift_ = (
            a.astype(np.float64)[:, None, None, None] for a in (mean, scale, shift)
        )
        x = (self.x - mean_) * scale_ + shift_
        if drops:
            x = x * mask * 1.75
        return Source(mean, scale, shift, mask, 1.75), x

    def gradients(self, x):
        """dx, dkernel and dbias in float64."""
        return each_net(
            lambda *arrays: conv2d_gradients(*arrays, self.strides, self.padding),
            x, self.kernel, self.dz,
        )  # fmt: skip


def each_net(oracle, *arrays):
    """What an oracle of one net computes for each of (E, ...) arrays."""
    found = [oracle(*of_net) for of_net in zip(*arrays, strict=True)]
    if isinstance(found[0], tuple):
        return [np.stack(results) for results in zip(*found, strict=True)]
    return np.stack(found)


layers = given(
    kind=st.sampled_from(KINDS),
    axes=st.tuples(st.integers(1, 2), st.integers(1, 5), *[st.integers(5, 17)] * 2),
    channels=st.tuples(*[st.sampled_from([32, 64])] * 2),
    padding=st.sampled_from(["valid", "same"]),
    drops=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
each_size = pytest.mark.parametrize("m", SIZES)


@each_size
@examples(12)
@layers
def test_forward_normalises_its_input_and_writes_moments(
    cpu_ops, m, kind, axes, channels, padding, drops, seed
):
    assume(kind[1] == 1 or m != UNSTRIDED)
    layer = Layer(cpu_ops, m, kind, axes, channels, padding, seed)
    relu, bias = bool(seed % 2), layer.array(layer.E, layer.Cout)
    source, x = layer.source(drops)
    groups, _ = layer.convolution.groups(*layer.sizes)
    y = np.full(layer.dz.shape, np.nan, np.float32)
    moments = np.full((layer.E, groups, 3, layer.Cout), np.nan)
    with layer.ops.session():
        layer.convolution.forward(
            layer.x, layer.kernel, bias, layer.window, relu, y, layer.workspace, source, moments
        )
    expected = each_net(
        lambda *arrays: conv2d(*arrays, layer.strides, padding), x, layer.kernel, bias
    )
    assert relative(y, np.maximum(expected, 0) if relu else expected) < 1e-5
    count, mean, squares = (moments[:, :, k] for k in range(3))
    pixels = y.astype(np.float64).reshape(layer.E, -1, layer.Cout)
    assert (count.sum(axis=1) == pixels.shape[1]).all()
    of_all = (count * mean).sum(axis=1) / pixels.shape[1]
    assert np.abs(of_all - pixels.mean(axis=1)).max() < 1e-6 * np.abs(pixels).max()
    variance = (squares + count * (mean - of_all[:, None]) ** 2).sum(axis=1) / pixels.shape[1]
    assert relative(variance, pixels.var(axis=1)) < 1e-5


@each_size
@examples(12)
@layers
def test_the_input_gradient_writes_the_sums_of_the_block_below(
    cpu_ops, m, kind, axes, channels, padding, drops, seed
):
    assume(kind[1] == 1 or m != UNSTRIDED)
    layer = Layer(cpu_ops, m, kind, axes, channels, padding, seed)
    _, groups = layer.convolution.groups(*layer.sizes)
    sums = np.full((layer.E, groups, 2, layer.Cin), np.nan)
    mean, mask = layer.array(layer.E, layer.Cin), layer.mask(layer.x.shape, drops)
    below = Below(layer.x, mean, mask, 1.75, sums)
    dx = np.full(layer.x.shape, np.nan, np.float32)
    with layer.ops.session():
        layer.convolution.input_gradient(
            layer.dz, layer.kernel, layer.window, dx, layer.workspace, below
        )
    expected, _, _ = layer.gradients(layer.x)
    assert relative(dx, expected * mask * 1.75 if drops else expected) < 1e-5
    products = dx * (layer.x - mean[:, None, None, None].astype(np.float64))
    for found, values in zip(sums.sum(axis=1).swapaxes(0, 1), (dx, products), strict=True):
        of_all = values.sum(axis=(1, 2, 3), dtype=np.float64)
        sizes_ = np.abs(values).sum(axis=(1, 2, 3), dtype=np.float64)
        assert (np.abs(found - of_all) <= 1e-6 * sizes_).all()


@each_size
@examples(12)
@layers
def test_the_weight_gradient_normalises_its_input_whatever_the_threads(
    cpu_ops, m, kind, axes, channels, padding, drops, seed
):
    assume(kind[1] == 1 or m != UNSTRIDED)
    layer = Layer(cpu_ops, m, kind, axes, channels, padding, seed)
    source, x = layer.source(drops)
    found = []
    for threads in (1, 3, 16):
        dkernel = np.full(layer.kernel.shape, np.nan, np.float32)
        dbias = np.full((layer.E, layer.Cout), np.nan, np.float32)
        with layer.ops.session():
            layer.ops.cpu._library.use_threads(threads)
            layer.convolution.weight_gradient(
                layer.x, layer.dz, layer.window, dkernel, dbias, layer.workspace, source
            )
        found.append((dkernel, dbias))
    _, expected_kernel, expected_bias = layer.gradients(x)
    assert relative(found[0][0], expected_kernel) < 1e-5
    assert relative(found[0][1], expected_bias) < 1e-5
    for kernel, bias in found[1:]:
        assert (kernel == found[0][0]).all() and (bias == found[0][1]).all()


# ---- choices -------------------------------------------------------------------------------------


@with_kernels
def test_small_layers_other_windows_and_ragged_channels_are_direct(cpu_ops):
    convolution = ops_cpu.Operations(cpu_ops.cpu).convolution
    big = Window.fit((3, 3), (1, 1), "valid", (26, 26))
    assert convolution.fuses(big, 64, 32, 32) == Fuses(True, True, True)
    for window, batch, channels, filters in [
        (big, 64, 33, 32),
        (big, 64, 32, 33),
        (Window.fit((3, 3), (1, 1), "valid", (3, 3)), 64, 32, 32),
        (Window.fit((7, 7), (1, 1), "valid", (26, 26)), 64, 32, 32),
        (Window.fit((3, 3), (3, 3), "valid", (26, 26)), 64, 32, 32),
        (Window.fit((3, 3), (1, 2), "valid", (26, 26)), 64, 32, 32),
        (
            Window.fit((5, 5), (2, 2), "same", (8, 8)),
            1,
            64,
            64,
        ),  # the kernel's transform costs more
    ]:
        assert convolution.fuses(window, batch, channels, filters) == Fuses()
    # A thread's working memory holds the pixels of a tile in 32 channels, not in 4096.
    assert convolution.fuses(big, 64, 4096, 32) == Fuses(False, False, True)


@with_kernels
@each_size
def test_errors_do_not_grow_with_the_channels(cpu_ops, m):
    layer = Layer(cpu_ops, m, KINDS[0], (1, 1, 7, 7), (256, 64), "valid", 0)
    y = np.full(layer.dz.shape, np.nan, np.float32)
    bias = np.zeros((1, 64), np.float32)
    with layer.ops.session():
        layer.convolution.forward(
            layer.x, layer.kernel, bias, layer.window, False, y, layer.workspace
        )
    expected = conv2d(layer.x[0], layer.kernel[0], bias[0], layer.strides, "valid")
    assert relative(y[0], expected) < 2e-6


@with_kernels
@each_size
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_visible(cpu_ops, m, value):
    layer = Layer(cpu_ops, m, KINDS[0], (1, 2, 9, 8), (32, 32), "same", 1)
    layer.x[0, 1, 4, 3, 7] = layer.dz[0, 0, 2, 6, 5] = value
    found = [np.zeros(a.shape, np.float32) for a in (layer.dz, layer.x, layer.kernel)]
    y, dx, dkernel = found
    bias = np.zeros((1, 32), np.float32)
    with layer.ops.session():
        layer.convolution.forward(
            layer.x, layer.kernel, bias, layer.window, True, y, layer.workspace
        )
        layer.convolution.input_gradient(layer.dz, layer.kernel, layer.window, dx, layer.workspace)
        layer.convolution.weight_gradient(
            layer.x, layer.dz, layer.window, dkernel, bias, layer.workspace
        )
    with np.errstate(invalid="ignore"):
        z = conv2d(layer.x[0], layer.kernel[0], np.zeros(32), layer.strides, "same")
        expected = [
            np.maximum(z, 0),
            *conv2d_gradients(layer.x[0], layer.kernel[0], layer.dz[0], layer.strides, "same")[:2],
        ]
    for ours, numpys in zip(found, expected, strict=True):
        assert not np.isfinite(numpys).all()
        assert not np.isfinite(ours[0][~np.isfinite(numpys)]).any()
