"""Kernels of convolution, in each version, and of dense layers: against ops_numpy in float64.

The reference shares no code with the kernels. tests/network/ compares it with nested loops.
"""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from cases import Apart, Case, as_float32, assert_same_bits, relative
from hypothesis import example, given
from hypothesis import strategies as st
from levels import examples

from minicnn.backends import ops_cpu, ops_numpy
from minicnn.backends.cuda_convolution import VERSIONS
from minicnn.backends.ops_cuda import Operations
from minicnn.network.geometry import Window

PASSES = "forward", "input gradient", "weight gradient"
ACTIVATIONS = "linear", "relu", "tanh", "softmax"


class Sizes:
    """The sizes of a convolution of x (E, B, H, W, Cin) by kernels (E, kh, kw, Cin, Cout)."""

    def __init__(self, E, B, image, Cin, Cout, size, strides, padding="valid", activation="relu"):
        fits = all(k <= length for k, length in zip(size, image, strict=True))
        self.window = Window.fit(size, strides, padding if fits else "same", image)
        self.E, self.B, self.Cin, self.Cout, self.activation = E, B, Cin, Cout, activation

    def case(self, what, random):
        """A Case of one of PASSES, with random inputs."""
        E, B, Cin, Cout, window = self.E, self.B, self.Cin, self.Cout, self.window
        x = as_float32(random, (E, B, *window.input, Cin))
        kernel = as_float32(random, (E, *window.size, Cin, Cout))
        dz = as_float32(random, (E, B, *window.output, Cout))
        others = {"window": window}

        def workspace(ops, nets):
            return ops.conv2d_workspace(nets, B, window, Cin, Cout)

        if what == "forward":
            inputs = {"x": x, "kernel": kernel, "bias": as_float32(random, (E, Cout))}
            others["activation"] = self.activation
            return Case("conv2d", inputs, {"y": (dz.shape, float)}, (), others, workspace)
        if what == "input gradient":
            inputs, results = {"dz": dz, "kernel": kernel}, {"dx": (x.shape, float)}
            return Case("conv2d_input_gradient", inputs, results, (), others, workspace)
        inputs = {"x": x, "dz": dz}
        results = {"dkernel": (kernel.shape, float), "dbias": ((E, Cout), float)}
        return Case("conv2d_weight_gradient", inputs, results, (), others, workspace)


SEED_NETWORK = [
    Sizes(2, 1, (28, 28), 1, 32, (3, 3), (1, 1)),
    Sizes(1, 2, (26, 26), 32, 32, (3, 3), (1, 1)),
    Sizes(1, 1, (24, 24), 32, 32, (5, 5), (2, 2), "same"),
    Sizes(1, 1, (12, 12), 32, 64, (3, 3), (1, 1)),
    Sizes(1, 1, (10, 10), 64, 64, (3, 3), (1, 1)),
    Sizes(1, 1, (8, 8), 64, 64, (5, 5), (2, 2), "same"),
    Sizes(1, 5, (4, 4), 64, 128, (4, 4), (1, 1)),
]
RAGGED = [
    Sizes(1, 1, (1, 1), 1, 1, (1, 1), (1, 1)),
    Sizes(3, 2, (9, 4), 3, 5, (3, 2), (2, 3), "same", "tanh"),
    Sizes(2, 3, (5, 11), 33, 34, (3, 3), (1, 1)),  # one more than a tile is wide
    Sizes(2, 2, (7, 6), 36, 68, (2, 3), (3, 1), "same"),  # vectors, and tiles beyond the edge
    Sizes(2, 1, (8, 9), 4, 3, (1, 2), (4, 5), "valid", "softmax"),  # strides wider than the window
    Sizes(1, 3, (40, 30), 2, 4, (5, 3), (1, 1)),  # pixels of several splits, the last one short
    Sizes(2, 3, (7, 10), 64, 32, (3, 3), (1, 1), "same"),  # whole panels, an odd number of rows
    Sizes(2, 2, (32, 32), 3, 32, (3, 3), (1, 1)),  # the seed network's first, on colour images
]

axis = st.integers(1, 12)
sizes = st.builds(
    Sizes,
    E=st.integers(1, 3),
    B=st.integers(1, 4),
    image=st.tuples(axis, axis),
    Cin=st.one_of(st.integers(1, 9), st.integers(28, 40)),
    Cout=st.one_of(st.integers(1, 9), st.integers(28, 70)),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    strides=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.sampled_from(["valid", "same"]),
    activation=st.sampled_from(ACTIVATIONS),
)


def assert_close(found, expected):
    for name, array in found.items():
        assert relative(array, expected[name]) < 1e-5, name


@pytest.fixture(scope="session", params=VERSIONS)
def version(request):
    """The name of a version of the convolution in CUDA."""
    return request.param


@pytest.fixture(scope="session")
def versioned_ops(driver, version):
    return Operations(driver, version)


@pytest.fixture(scope="session", params=[*VERSIONS, "direct", "winograd"])
def any_ops(request):
    """The operations with each version of the convolution, in CUDA and in C."""
    if request.param in VERSIONS:
        return Operations(request.getfixturevalue("driver"), request.param)
    if request.config.getoption("--device") not in (None, "numpy", "cpu"):
        pytest.skip("tests kernels in C")
    return ops_cpu.Operations(request.getfixturevalue("cpu_ops").cpu, request.param)


# ---------------------------------------------------------------------------------------------
# Convolution


@pytest.mark.parametrize("what", PASSES)
@examples(40)
@given(sizes=sizes, seed=st.integers(0, 2**32 - 1))
def test_convolution_is_numpys_in_float64(any_ops, what, sizes, seed):
    case = sizes.case(what, np.random.default_rng(seed))
    assert_close(case.run(any_ops), case.run(ops_numpy, dtype=np.float64))


@pytest.mark.parametrize("what", PASSES)
@pytest.mark.parametrize(
    ("m", "size", "strides"),
    [*product((2, 4, 5), (3, 2), (1,)), *product((2, 4), (5, 4, 3), (2,))],
)
@examples(10)
@given(
    axes=st.tuples(st.integers(1, 2), st.integers(1, 9), *[st.integers(5, 16)] * 2),
    channels=st.tuples(*[st.sampled_from([32, 64, 96])] * 2),
    padding=st.sampled_from(["valid", "same"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_whole_panels_by_winograds_algorithm_are_numpys(
    cpu_ops, what, m, size, strides, axes, channels, padding, seed
):
    E, B, *image = axes
    sizes = Sizes(E, B, tuple(image), *channels, (size, size), (strides, strides), padding)
    case = sizes.case(what, np.random.default_rng(seed))
    found = case.run(ops_cpu.Operations(cpu_ops.cpu, f"winograd-{m}"))
    assert_close(found, case.run(ops_numpy, dtype=np.float64))
    direct = case.run(ops_cpu.Operations(cpu_ops.cpu, "direct"))
    assert any((found[name] != direct[name]).any() for name in found)  # by other roundings


@pytest.mark.parametrize("what", PASSES)
@examples(40)
@given(
    axes=st.tuples(st.integers(1, 2), st.integers(1, 9), st.integers(2, 40), st.integers(4, 70)),
    channels=st.tuples(st.integers(1, 4), st.integers(1, 40)),
    size=st.tuples(st.integers(2, 7), st.integers(1, 7)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.sampled_from(["valid", "same"]),
    seed=st.integers(0, 2**32 - 1),
)
@example((1, 3, 90, 80), (3, 40), (5, 3), (2, 1), "same", 0)  # bands of images, panels
@example((1, 1, 3, 1400), (3, 2), (3, 3), (1, 1), "same", 0)  # too wide for a band
@example((1, 2, 60, 60), (4, 2), (8, 5), (1, 1), "valid", 0)  # a window of 160 elements
def test_few_channels_are_numpys(cpu_ops, what, axes, channels, size, strides, padding, seed):
    E, B, *image = axes
    sizes = Sizes(E, B, tuple(image), *channels, size, strides, padding)
    case = sizes.case(what, np.random.default_rng(seed))
    assert_close(case.run(cpu_ops), case.run(ops_numpy, dtype=np.float64))


@pytest.mark.parametrize("what", PASSES)
@pytest.mark.parametrize("layer", range(1, 8))
def test_the_seed_networks_convolutions_are_numpys(any_ops, what, layer):
    case = SEED_NETWORK[layer - 1].case(what, np.random.default_rng(layer))
    assert_close(case.run(any_ops), case.run(ops_numpy, dtype=np.float64))


@pytest.mark.parametrize("what", PASSES)
@pytest.mark.parametrize("number", range(len(RAGGED)))
def test_a_net_alone_is_the_net_among_others_to_the_bit(any_ops, what, number):
    sizes = RAGGED[number]
    case = sizes.case(what, np.random.default_rng(number))
    together = case.run(any_ops)
    assert_close(together, case.run(ops_numpy, dtype=np.float64))
    for e in range(sizes.E):
        alone = case.run(any_ops, nets=slice(e, e + 1))
        assert_same_bits(alone, {name: a[e : e + 1] for name, a in together.items()})
    assert_same_bits(case.run(any_ops), together)


@pytest.mark.parametrize("what", PASSES)
@pytest.mark.parametrize("number", range(len(RAGGED)))
def test_the_order_of_threads_changes_no_bit(
    versioned_ops, other_order_driver, version, what, number
):
    case = RAGGED[number].case(what, np.random.default_rng(number))
    other = Operations(other_order_driver, version)
    assert_same_bits(case.run(other), case.run(versioned_ops))


@pytest.mark.full(but="sizes[0-5]-")
@pytest.mark.parametrize("what", PASSES)
@pytest.mark.parametrize("sizes", [*RAGGED, SEED_NETWORK[2], SEED_NETWORK[6]])
def test_kernels_stay_in_bounds_and_race_with_nothing(
    versioned_ops, checked_driver, version, what, sizes
):
    case = sizes.case(what, np.random.default_rng(2))
    checked = Operations(checked_driver, version)
    assert_same_bits(case.run(checked), case.run(versioned_ops))


@pytest.mark.parametrize("what", PASSES)
@pytest.mark.parametrize("sizes", RAGGED[1:4])
def test_rows_of_nets_may_lie_apart(any_ops, what, sizes):
    case = sizes.case(what, np.random.default_rng(3))
    apart = Apart(any_ops)
    assert_same_bits(case.run(any_ops, place=apart), case.run(any_ops))
    apart.check()


@pytest.mark.parametrize("what", PASSES)
def test_nan_stays_visible(any_ops, what):
    case = RAGGED[2].case(what, np.random.default_rng(4))
    first = next(iter(case.inputs.values()))
    first.reshape(-1)[first.size // 2] = np.nan
    found, expected = case.run(any_ops), case.run(ops_numpy)
    for name in found:
        np.testing.assert_array_equal(np.isnan(found[name]), np.isnan(expected[name]))
    assert any(np.isnan(array).any() for array in found.values())


def test_the_weight_gradient_of_a_large_layer_has_few_partial_sums(driver, monkeypatch):
    monkeypatch.setattr("minicnn.backends.cuda_convolution._SPLIT_PIXELS", 16)
    monkeypatch.setattr("minicnn.backends.cuda_convolution._MOST_SPLITS", 3)
    ops = Operations(driver)
    case = RAGGED[5].case("weight gradient", np.random.default_rng(6))
    assert case.workspace(ops, 1) == 3 * 4 * (5 * 3 * 2 + 1) * 4
    assert_close(case.run(ops), case.run(ops_numpy, dtype=np.float64))


# ---------------------------------------------------------------------------------------------
# Dense layers


def dense_case(what, random, E, B, Cin, Cout, activation="linear"):
    """A Case of one of PASSES, of x (E, B, Cin) by kernels (E, Cin, Cout)."""
    x, kernel = as_float32(random, (E, B, Cin)), as_float32(random, (E, Cin, Cout))
    bias, dz = as_float32(random, (E, Cout)), as_float32(random, (E, B, Cout))

    def workspace(ops, nets):
        return ops.dense_workspace(nets, B, Cin, Cout)

    if what == "forward":
        case = Case("dense", {"x": x, "kernel": kernel, "bias": bias}, {"y": (dz.shape, float)})
        return replace(case, others={"activation": activation}, workspace=workspace)
    if what == "input gradient":
        inputs, results = {"dz": dz, "kernel": kernel}, {"dx": (x.shape, float)}
        return Case("dense_input_gradient", inputs, results, workspace=workspace)
    results = {"dkernel": (kernel.shape, float), "dbias": (bias.shape, float)}
    return Case("dense_weight_gradient", {"x": x, "dz": dz}, results, workspace=workspace)


@pytest.mark.parametrize("what", PASSES)
@examples(40)
@given(
    axes=st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 140), st.integers(1, 140)),
    activation=st.sampled_from(ACTIVATIONS),
    seed=st.integers(0, 2**32 - 1),
)
@example((2, 64, 128, 10), "softmax", 0)
@example((1, 1, 1, 1), "linear", 1)
def test_dense_is_numpys_in_float64(kernel_ops, what, axes, activation, seed):
    case = dense_case(what, np.random.default_rng(seed), *axes, activation)
    assert_close(case.run(kernel_ops), case.run(ops_numpy, dtype=np.float64))


@pytest.mark.parametrize("what", PASSES)
@pytest.mark.parametrize("axes", [(3, 5, 7, 11), (2, 65, 33, 66)])
def test_a_dense_net_is_the_same_alone_and_among_others(kernel_ops, what, axes):
    case = dense_case(what, np.random.default_rng(5), *axes)
    together = case.run(kernel_ops)
    for e in range(axes[0]):
        alone = case.run(kernel_ops, nets=slice(e, e + 1))
        assert_same_bits(alone, {name: a[e : e + 1] for name, a in together.items()})
    apart = Apart(kernel_ops)
    assert_same_bits(case.run(kernel_ops, place=apart), together)
    apart.check()


@pytest.mark.parametrize("what", PASSES)
@pytest.mark.parametrize("axes", [(3, 5, 7, 11), (2, 65, 33, 66)])
def test_dense_stays_in_bounds_and_is_the_same_in_other_orders(
    driver_ops, checked_driver, other_order_driver, what, axes
):
    case = dense_case(what, np.random.default_rng(5), *axes)
    for driver in (checked_driver, other_order_driver):
        assert_same_bits(case.run(Operations(driver)), case.run(driver_ops))
