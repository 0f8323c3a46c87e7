"""Kernels of fused blocks, one by one: against oracles of their own, and to the bit.

How a launch cuts its work is cuda_tiles.py's to choose. Here other ways are forced on it, too:
all that cuda_tiles.py chooses from, and fewer blocks of threads than it would take.
"""

import shutil
from math import prod
from types import SimpleNamespace
from unittest import mock

import block_oracles
import numpy as np
import pytest
from cases import Apart, assert_same_bits, few, poison, relative
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from minicnn import (
    BatchNormalization,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    MaxPooling2D,
    Sequential,
    model,
    rng,
)
from minicnn.backends import cuda_tiles
from minicnn.backends.cuda_blocks import fusion
from minicnn.backends.kernel import SOURCES
from minicnn.backends.ops_cuda import Operations
from minicnn.emulator import Emulator, KernelFault
from minicnn.network.geometry import Window
from minicnn.network.stack import connect

EXACT = 1e-5  # of float32
FREE = 2e-3  # of TF32, against exact products
RATE = 0.3
KEPT_SCALE = float(np.float32(1 / (1 - RATE)))
EPSILON, EPSILON_BELOW = (float(np.float32(epsilon)) for epsilon in (1e-3, 2e-3))

# Of products in TF32 / in float32: (what cuda_tiles.py chooses, the kernel's file, its name)
TENSOR = {
    "forward": (cuda_tiles.forward, "block_forward.cu", "block_forward"),
    "input gradient": (
        cuda_tiles.input_gradient,
        "block_input_gradient.cu",
        "block_input_gradient",
    ),
    "weight gradient": (
        cuda_tiles.weight_gradient,
        "block_weight_gradient.cu",
        "block_weight_gradient",
    ),
}
FIRST = {
    "forward": (cuda_tiles.first_forward, "block_first.cu", "block_first_forward"),
    "weight gradient": (
        cuda_tiles.first_weight_gradient,
        "block_first.cu",
        "block_first_weight_gradient",
    ),
}


def same_roundings(driver):
    """Bound of TF32's error where the oracle rounds, too; a GPU's tensor cores cut off sums."""
    return 5e-5 if driver.name == "cuda" else 1e-5


def with_blocks(launch, blocks):
    """The launch with another number of blocks of threads along the tiles."""
    before, blocks_y = launch.grid
    return launch._replace(grid=(blocks, blocks_y), parts=launch.parts // before * blocks)


class Block:
    """A block's sizes, and random numbers for all that its launches read: of E nets.

    below: what is known of the normalisation of the block below: "parts" or "moments"; or
    "nothing", where there is none.
    """

    def __init__(
        self, E, B, image, C, N, size, strides=(1, 1), padding="valid", relu=True, drop=True,
        below="parts", seed=0,
    ):  # fmt: skip
        fits = all(k <= length for k, length in zip(size, image, strict=True))
        self.padding = padding if fits else "same"
        self.strides = tuple(map(min, strides, size, image))
        self.window = Window.fit(size, self.strides, self.padding, image)
        self.E, self.B, self.C, self.N, self.relu, self.below = E, B, C, N, relu, below
        self.below_shape, self.shape = (B, *image, C), (B, *self.window.output, N)
        self.rows = prod(self.shape[:3])
        random = np.random.default_rng(seed)

        def normal(*shape, scale=1.0, center=0.0):
            return random.normal(center, scale, (E, *shape)).astype(np.float32)

        dropped = drop and below != "nothing"
        self.kept_scale = KEPT_SCALE if dropped else 1.0
        y = normal(*self.shape)
        self.arrays = {
            "y_below": normal(*self.below_shape),
            **moments(random, E, C, "_below"),
            "gamma_below": normal(C, scale=0.3, center=1),
            "beta_below": normal(C),
            "parts_below": parts_of_moments(random, E, C),
            "kept": dropout_words(random, E, self.below_shape) if dropped else None,
            "kernel": normal(*size, C, N),
            "bias": normal(N),
            "y": np.maximum(y, 0) if relu else y,
            "dx": normal(*self.shape),
            "sums": normal(3, 2, N, scale=self.rows**0.5 / 2),
            **moments(random, E, N, ""),
            "gamma": normal(N, scale=0.3, center=1),
        }
        self.tensor = C >= 8
        self.passes = TENSOR if self.tensor else FIRST

    def __repr__(self):
        image, size = self.window.input, self.window.size
        return (
            f"Block(E={self.E}, B={self.B}, image={image}, C={self.C}, N={self.N}, size={size}, "
            f"strides={self.strides}, padding={self.padding!r}, relu={self.relu}, "
            f"drop={self.arrays['kept'] is not None}, below={self.below!r})"
        )

    @property
    def products(self):
        """How many a pass makes."""
        return self.E * self.rows * prod(self.window.size) * self.C * self.N

    # ---- launches ----------------------------------------------------------------------------

    def window_of(self, what):
        return cuda_tiles.gradient_window(self.window) if what == "input gradient" else self.window

    def launches(self, what):
        """All that cuda_tiles.py chooses from for one of the passes."""
        return self.passes[what][0](self.window_of(what), self.C, self.N, self.B)

    def launch(self, what):
        """What it chooses."""
        return cuda_tiles.best(self.launches(what))

    def run(self, driver, what, launch=None, nets=slice(None), place=None, folder=SOURCES):
        """{name: array on the host} of a pass on the nets chosen; poisoned beforehand.

        launch: cuda_tiles.py's choice, unless another one is given; folder: where the kernels are.
        """
        launch = launch or self.launch(what)
        put = place or driver.to_device
        E = len(range(self.E)[nets])
        results = {}

        def get(names):
            arrays = (self.arrays[name] for name in names.split())
            return [None if array is None else put(array[nets]) for array in arrays]

        def new(name, *shape):
            results[name] = put(poison((E, *shape), np.float32))
            return results[name]

        floor = 0.0 if self.relu else -np.inf
        table = driver.to_device(np.array(launch.tables, np.int32)) if launch.tables else None
        sizes, nothing = self._sizes(self.window_of(what)), self.below == "nothing"
        above = *get("dx y sums"), 3, *get("gamma mean variance"), EPSILON
        weights = prod(self.window.size) * self.C * self.N + self.N
        if what == "forward":
            known = None, None, None, 0, None, None
            if self.below == "moments":
                scale_and_shift = get("gamma_below beta_below")
                known = *scale_and_shift, None, 0, *get("mean_below variance_below")
            elif self.below == "parts":
                moments = new("mean_below", self.C), new("variance_below", self.C)
                known = *get("gamma_below beta_below parts_below"), 3, *moments
            between = *known, EPSILON_BELOW, self.kept_scale, *get("kept")
            arguments = (
                *get("y_below kernel bias"), *(between if self.tensor else ()), sizes,
                launch.tiling, *([table] if self.tensor else []), floor, new("y", *self.shape),
                None if self.below == "moments" else new("parts", launch.parts, 3, self.N),
            )  # fmt: skip
        elif what == "input gradient":
            arguments = (
                *above, floor, *get("kernel"), sizes, launch.tiling,
                table, prod(map(len, self.window_of(what).phases)),
                *get("y_below mean_below variance_below"), EPSILON_BELOW, *get("kept"),
                self.kept_scale, new("dx_below", *self.below_shape),
                new("parts", launch.parts, 2, self.C),
            )  # fmt: skip
        else:
            known = [None] * 4
            if not nothing:
                known = get("gamma_below beta_below mean_below variance_below")
            between = *known, EPSILON_BELOW, self.kept_scale, *get("kept")
            arguments = (
                *get("y_below"), *(between if self.tensor else ()), *above, floor, sizes,
                launch.tiling, *([table] if self.tensor else []),
                new("parts", launch.parts, weights),
            )  # fmt: skip
        _, file, kernel = self.passes[what]
        with driver.session():
            driver.launch(
                folder / file, kernel, launch.grid, (launch.threads,), *arguments,
                shared_bytes=launch.shared_bytes, defines=launch.defines,
            )  # fmt: skip
        return {name: driver.to_host(array) for name, array in results.items()}

    def _sizes(self, window):
        """convolution.cuh's struct."""
        names = "B H W Cin Ho Wo Cout kh kw sh sw top left".split()
        numbers = (
            self.B, *window.input, self.C, *window.output, self.N, *window.size, *window.strides,
            *window.before,
        )  # fmt: skip
        return dict(zip(names, numbers, strict=True))

    # ---- what is expected --------------------------------------------------------------------

    def expected(self, what, rounded=False):
        """{name: array} by the oracle."""
        oracle = getattr(block_oracles, what.replace(" ", "_"))
        return stacked(oracle(self._given(what, e), rounded) for e in range(self.E))

    def _given(self, what, e):
        names = dict(self.arrays)
        if what != "forward" or self.below != "parts":
            names["parts_below"] = None
        if self.below == "nothing":
            names["gamma_below"] = None
        return SimpleNamespace(
            **{name: array if array is None else array[e] for name, array in names.items()},
            epsilon=EPSILON, epsilon_below=EPSILON_BELOW, kept_scale=self.kept_scale,
            relu=self.relu, rows=self.rows, strides=self.strides, padding=self.padding,
        )  # fmt: skip

    def added_up(self, what, found):
        """What a pass has left, by the oracle's names: parts added up."""
        found = dict(found)
        parts = found.pop("parts", None)
        if what == "input gradient":
            found["sum"], found["sum_z"] = parts.sum(axis=1, dtype=np.float64).swapaxes(0, 1)
        elif what == "weight gradient":
            sums = parts.sum(axis=1, dtype=np.float64)
            found["dbias"] = sums[:, -self.N :]
            found["dkernel"] = sums[:, : -self.N].reshape(self.arrays["kernel"].shape)
        return found

    def check(self, driver, what, found):
        """What a pass has left is right."""
        bounds = {False: FREE, True: same_roundings(driver)} if self.tensor else {False: EXACT}
        sums = self.added_up(what, found)
        for rounded, bound in bounds.items():
            expected = self.expected(what, rounded)
            assert sums.keys() == expected.keys()
            for name, array in expected.items():
                assert relative(sums[name], array) < bound, (name, rounded)
        if what == "forward" and "parts" in found:
            rows = found["y"].reshape(self.E, -1, self.N).astype(np.float64)
            for y, parts in zip(rows, found["parts"], strict=True):
                assert (parts[:, 2].sum(axis=0) == len(y)).all()
                mean, variance = block_oracles.moments(parts)
                assert relative(mean, y.mean(axis=0)) < EXACT
                assert relative(variance, y.var(axis=0)) < EXACT


def moments(random, E, C, suffix):
    return {
        f"mean{suffix}": random.normal(0.2, 0.5, (E, C)).astype(np.float32),
        f"variance{suffix}": random.uniform(0.5, 2, (E, C)).astype(np.float32),
    }


def parts_of_moments(random, E, C, count=3):
    """Those of numbers nobody has: (E, count, 3, C) means, squared deviations, how many."""
    numbers = random.integers(1, 50, (E, count, C))
    squares = numbers * random.uniform(0.5, 2, (E, count, C))
    means = random.normal(0.2, 0.5, (E, count, C))
    return np.stack([means, squares, numbers], axis=2).astype(np.float32)


def dropout_words(random, E, shape):
    """Bits for numbers of this shape: (E, words)."""
    words = -(-prod(shape) // 32)
    bits = random.uniform(size=(E, words, 32)) >= RATE
    return np.packbits(bits, axis=-1, bitorder="little").view("<u4").reshape(E, words)


def stacked(nets):
    """{name: (E, ...)} of a {name: array} for each net."""
    nets = list(nets)
    return {name: np.stack([net[name] for net in nets]) for name in nets[0]}


SEED_NETWORK = [
    Block(2, 2, (28, 28), 1, 32, (3, 3), below="nothing"),
    Block(1, 2, (26, 26), 32, 32, (3, 3), drop=False),
    Block(1, 2, (24, 24), 32, 32, (5, 5), (2, 2), "same", drop=False),
    Block(1, 2, (12, 12), 32, 64, (3, 3)),
    Block(1, 2, (10, 10), 64, 64, (3, 3), drop=False),
    Block(1, 2, (8, 8), 64, 64, (5, 5), (2, 2), "same", drop=False),
    Block(1, 5, (4, 4), 64, 128, (4, 4)),
]
RAGGED = [
    Block(3, 2, (7, 6), 36, 68, (3, 2), (2, 1), "same"),  # one vector more than tiles are wide
    Block(2, 3, (5, 9), 12, 8, (2, 5), (2, 3), relu=False, below="moments"),
    Block(2, 5, (3, 2), 8, 40, (3, 2), below="nothing"),  # a single place
    Block(1, 4, (9, 5), 40, 4, (5, 4), (3, 3), "same", drop=False),  # more phases than a block has
    Block(1, 1, (1, 1), 8, 4, (1, 1), relu=False),
]
FIRST_BLOCKS = [
    Block(2, 3, (9, 7), 3, 20, (3, 2), (2, 1), "same", below="nothing"),
    Block(1, 2, (60, 20), 7, 16, (3, 3), relu=False, below="nothing"),  # in bands
    Block(1, 1, (2, 3), 4, 12, (5, 4), below="nothing"),
]


def cases_of(blocks):
    """(block, pass) for each pass that the kernels make of each block."""
    cases = []
    for i, block in enumerate(blocks):
        for what in block.passes:
            if what != "input gradient" or block.below != "nothing":
                kind = "block" if block.tensor else "first"
                cases.append(pytest.param(block, what, id=f"{kind} {i}, {what}"))
    return cases


axes = st.tuples(st.integers(1, 14), st.integers(1, 14))
sizes = st.tuples(st.integers(1, 5), st.integers(1, 5))
common = {
    "E": st.integers(1, 3),
    "B": st.integers(1, 5),
    "image": axes,
    "N": st.integers(1, 20).map(lambda n: 4 * n),
    "size": sizes,
    "strides": st.tuples(st.integers(1, 3), st.integers(1, 3)),
    "padding": st.sampled_from(["valid", "same"]),
    "relu": st.booleans(),
    "seed": st.integers(0, 2**32 - 1),
}
blocks = st.builds(
    Block,
    C=st.integers(2, 20).map(lambda n: 4 * n),
    drop=st.booleans(),
    below=st.sampled_from(["parts", "moments"]),
    **common,
)
first_blocks = st.builds(
    Block,
    C=st.one_of(st.integers(1, 7), st.sampled_from([8, 32])),
    below=st.just("nothing"),
    **common,
)
MOST_PRODUCTS = 4_000_000
fewer = settings(few, max_examples=10)


# ---------------------------------------------------------------------------------------------
# Against the oracles


@pytest.mark.parametrize(("block", "what"), cases_of(SEED_NETWORK))
def test_the_seed_networks_blocks_are_right(driver, block, what):
    block.check(driver, what, block.run(driver, what))


@pytest.mark.parametrize(("block", "what"), cases_of([*RAGGED, *FIRST_BLOCKS]))
def test_ragged_blocks_are_right_with_any_number_of_blocks_of_threads(driver, block, what):
    launch = block.launch(what)
    for blocks in {launch.grid[0], 1, 2, 7}:  # some of which get no tile, or several
        block.check(driver, what, block.run(driver, what, with_blocks(launch, blocks)))


@pytest.mark.parametrize("what", TENSOR)
@fewer
@given(block=blocks, way=st.none() | st.integers(0, 2**20))
def test_blocks_are_right_in_any_way_to_launch_them(driver, what, block, way):
    assume(block.products < MOST_PRODUCTS)
    launch = block.launch(what)
    assume(launch)
    if way is not None:
        launches = block.launches(what)
        launch = launches[way % len(launches)]
        launch = with_blocks(launch, 1 + way % launch.grid[0])
    block.check(driver, what, block.run(driver, what, launch))


@pytest.mark.parametrize("what", FIRST)
@fewer
@given(block=first_blocks)
def test_first_blocks_are_right(driver, what, block):
    assume(block.products < MOST_PRODUCTS)
    block.check(driver, what, block.run(driver, what))


def defines_of(what):
    """What a pass's kernel is compiled for, in all its forms."""
    return sorted({launch.defines for launch in FORMS.launches(what)})


FORMS = Block(1, 13, (7, 3), 36, 68, (3, 2), (2, 1), "same", seed=1)
KINDS = {
    "several images": lambda tiling: tiling["images"] > 1,
    "bands": lambda tiling: tiling["bands"] > 1,
    "several warps of channels": lambda tiling: tiling["channel_warps"] == 2,
    "several warps of pixels": lambda tiling: tiling["pixel_warps"] > 1,
}


def test_the_forms_are_all_of_those_that_are_compiled():
    assert len(defines_of("forward")) == len(cuda_tiles.FORWARD_FORMS)
    assert len(defines_of("input gradient")) == len(cuda_tiles.GRADIENT_FORMS)


@pytest.mark.parametrize(
    ("what", "defines"),
    [(what, form) for what in ("forward", "input gradient") for form in defines_of(what)],
)
def test_each_form_is_right_with_each_kind_of_tile(driver, what, defines):
    of_form = [launch for launch in FORMS.launches(what) if launch.defines == defines]
    chosen = {}
    for kind, holds in KINDS.items():
        found = [launch for launch in of_form if holds(launch.tiling)]
        one_warp = "FORM_SPLITS=4" in defines  # of results: there is no room for two
        assert found or (one_warp and "several warps" in kind), kind
        if found:
            launch = found[-1]
            chosen[str(launch.tiling)] = launch
    for launch in chosen.values():
        FORMS.check(driver, what, FORMS.run(driver, what, with_blocks(launch, 1)))


@pytest.mark.parametrize("size", [(2, 1), (1, 3), (2, 4), (3, 5), (1, 7), (5, 9)])
def test_kernels_of_any_width_have_their_gradient(driver, size):
    block = Block(1, 2, (6, 11), 20, 36, size, padding="same")
    for launch in block.launches("weight gradient")[::4]:
        found = block.run(driver, "weight gradient", launch)
        block.check(driver, "weight gradient", found)


@pytest.mark.parametrize("what", TENSOR)
def test_the_bounds_can_be_exceeded(driver, what):
    """By what is not rounded as the kernel does it, and by what is not computed at all."""
    block = FORMS
    name = {"forward": "y", "input gradient": "dx_below", "weight gradient": "dkernel"}[what]
    found = block.added_up(what, block.run(driver, what))[name]
    assert 2 * same_roundings(driver) < relative(found, block.expected(what)[name]) < FREE

    def cut_off(x):
        return (np.float32(x).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)

    with mock.patch.object(block_oracles, "to_tf32", cut_off):
        truncated = block.expected(what, rounded=True)[name]
    assert relative(found, truncated) > 2 * same_roundings(driver)
    with mock.patch.object(block_oracles, "drop", lambda x, given: x):
        assert relative(found, block.expected(what)[name]) > FREE


# ---------------------------------------------------------------------------------------------
# To the bit

SMALL = cases_of([*RAGGED, FIRST_BLOCKS[0]])


@pytest.mark.parametrize(("block", "what"), SMALL)
def test_a_net_alone_is_the_net_among_others_to_the_bit(driver, block, what):
    together = block.run(driver, what)
    for e in range(block.E):
        alone = block.run(driver, what, nets=slice(e, e + 1))
        assert_same_bits(alone, {name: array[e : e + 1] for name, array in together.items()})
    apart = Apart(driver)
    assert_same_bits(block.run(driver, what, place=apart), together)
    apart.check()


@pytest.mark.parametrize(("block", "what"), SMALL)
def test_kernels_stay_in_bounds_and_race_with_nothing(driver, checked_driver, block, what):
    assert_same_bits(block.run(checked_driver, what), block.run(driver, what))


@pytest.mark.parametrize("what", TENSOR)
def test_tiles_that_images_do_not_fill_stay_in_bounds(driver, checked_driver, what):
    launches = [launch for launch in FORMS.launches(what) if FORMS.B % launch.tiling["images"]]
    launch = with_blocks(launches[-1], 1)  # which makes them one after another
    found = FORMS.run(checked_driver, what, launch)
    FORMS.check(driver, what, found)
    assert_same_bits(found, FORMS.run(driver, what, launch))


@pytest.mark.parametrize(("block", "what"), SMALL)
def test_the_order_of_threads_changes_no_bit(driver, other_order_driver, block, what):
    assert_same_bits(block.run(other_order_driver, what), block.run(driver, what))


@pytest.fixture(scope="session")
def late_driver(checked_driver):
    """The emulator whose asynchronous copies land as late as they may; it skips as that one."""
    return Emulator(copies="late", order="shuffled")


@pytest.mark.parametrize(("block", "what"), SMALL)
def test_copies_that_land_late_change_no_bit(driver, late_driver, block, what):
    assert_same_bits(block.run(late_driver, what), block.run(driver, what))


@pytest.mark.parametrize("what", TENSOR)
def test_what_is_not_a_number_stays_visible(driver, what):
    block = Block(1, 2, (5, 4), 12, 8, (2, 2), drop=False)
    name = "y_below" if what == "forward" else "dx"
    block.arrays[name][0, 1, 2, 2, 5] = np.nan
    block.arrays["y"] += 1  # so that its ReLU lets all gradients pass
    found = block.added_up(what, block.run(driver, what))
    expected = block.expected(what)
    for result, array in expected.items():
        np.testing.assert_array_equal(np.isnan(found[result]), np.isnan(array), err_msg=result)
    assert any(np.isnan(array).any() for array in expected.values())


# ---------------------------------------------------------------------------------------------
# Planted faults

WAIT = "wait_copies<1>();  // for the next tap's weights"
BARRIER = "__syncthreads();  // weights and pixels are in shared memory"
both_ways = pytest.mark.parametrize("what", ["forward", "input gradient"])


def without(line, folder):
    """The folder, with kernels whose correlation.cuh lacks a line."""
    source = (SOURCES / "correlation.cuh").read_text()
    assert source.count(line) == 1
    (folder / "correlation.cuh").write_text(source.replace(line, ""))
    for what in ("forward", "input gradient"):
        shutil.copy(SOURCES / TENSOR[what][1], folder)
    return folder


@both_ways
@pytest.mark.parametrize(
    ("line", "message"),
    [(WAIT, "which an asynchronous copy has not reached"), (BARRIER, "of this block has written")],
    ids=["wait", "barrier"],
)
@pytest.mark.parametrize("copies", ["early", "late"])
def test_a_missing_wait_or_barrier_is_found(checked_driver, copies, line, message, what, tmp_path):
    driver = Emulator(checked=True, copies=copies) if copies == "late" else checked_driver
    with pytest.raises(KernelFault, match=message):
        RAGGED[0].run(driver, what, folder=without(line, tmp_path))


@both_ways
def test_a_missing_wait_changes_results_where_copies_land_late(late_driver, what, tmp_path):
    found = RAGGED[0].run(late_driver, what, folder=without(WAIT, tmp_path))
    expected = RAGGED[0].run(late_driver, what)
    for name, array in found.items():
        assert not np.array_equal(array, expected[name], equal_nan=True) or "below" in name


@both_ways
def test_a_missing_barrier_gives_tensor_cores_what_is_not_there(late_driver, what, tmp_path):
    with pytest.raises(KernelFault, match="gives a tensor core a number that is not TF32"):
        RAGGED[0].run(late_driver, what, folder=without(BARRIER, tmp_path))


# ---------------------------------------------------------------------------------------------
# The end of a network


class Head:
    """The sizes of a network's end, and random numbers for what its launch reads: of E nets."""

    def __init__(self, E, B, image, C, units, drop=True, seed=0):
        random = np.random.default_rng(seed)
        self.E, self.B, self.C, self.units = E, B, C, units
        self.shape, self.inputs = (B, *image, C), prod(image) * C

        def normal(*shape, scale=1.0, center=0.0):
            return random.normal(center, scale, (E, *shape)).astype(np.float32)

        self.kept_scale = KEPT_SCALE if drop else 1.0
        self.arrays = {
            "y_below": normal(*self.shape),
            "gamma_below": normal(C, scale=0.3, center=1),
            "beta_below": normal(C),
            "parts_below": parts_of_moments(random, E, C),
            "kept": dropout_words(random, E, self.shape) if drop else None,
            "kernel": normal(self.inputs, units, scale=self.inputs**-0.5),
            "bias": normal(units),
            "labels": random.integers(units, size=(E, B)),
        }

    def run(self, driver, nets=slice(None), place=None, images=None):
        """{name: array on the host}; poisoned beforehand. images: how many at a time."""
        images, shared_bytes = cuda_tiles.head(self.inputs, self.C, self.units, images or self.B)
        put = place or driver.to_device
        names = "y_below gamma_below beta_below parts_below kept kernel bias labels".split()
        arrays = [self.arrays[name] for name in names]
        arrays = [array if array is None else put(array[nets]) for array in arrays]
        shapes = {
            "mean": (self.C,), "variance": (self.C,), "logits": (self.B, self.units),
            "loss": (), "correct": (), "dkernel": (self.inputs, self.units),
            "dbias": (self.units,), "dx": self.shape, "sums": (1, 2, self.C),
        }  # fmt: skip
        E = len(range(self.E)[nets])
        results = {
            name: put(poison((E, *shape), np.int64 if name == "correct" else np.float32))
            for name, shape in shapes.items()
        }
        with driver.session():
            driver.launch(
                "head.cu", "head", (1,), (cuda_tiles.HEAD_THREADS,), *arrays[:4], 3, EPSILON_BELOW,
                self.kept_scale, *arrays[4:], self.B, self.inputs, self.C, self.units, images,
                *results.values(), shared_bytes=shared_bytes,
            )  # fmt: skip
        return {name: driver.to_host(array) for name, array in results.items()}

    def expected(self):
        numbers = {"kept_scale": self.kept_scale, "epsilon_below": EPSILON_BELOW}
        return stacked(
            block_oracles.head(
                SimpleNamespace(
                    **{n: a if a is None else a[e] for n, a in self.arrays.items()}, **numbers
                )
            )
            for e in range(self.E)
        )


HEADS = [
    Head(2, 5, (1, 1), 128, 10),
    Head(3, 3, (3, 2), 36, 7),
    Head(1, 2, (3, 4), 52, 3, drop=False),  # more numbers than threads
    Head(1, 70, (1, 2), 4, 1),
    Head(2, 1, (1, 1), 4, 2),
]
each_head = pytest.mark.parametrize("head", HEADS)


@each_head
@pytest.mark.parametrize("images", [None, 1, 2])
def test_the_end_of_a_network_is_right(driver, head, images):
    found, expected = head.run(driver, images=images), head.expected()
    found["sum"], found["sum_z"] = found.pop("sums")[:, 0].swapaxes(0, 1)
    np.testing.assert_array_equal(found.pop("correct"), expected.pop("correct"))
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert relative(found[name], array) < EXACT, name


@each_head
def test_the_end_of_a_network_to_the_bit(driver, checked_driver, other_order_driver, head):
    together = head.run(driver)
    for other in (checked_driver, other_order_driver):
        assert_same_bits(head.run(other), together)
    assert_same_bits(head.run(checked_driver, images=2), head.run(driver, images=2))


@each_head
def test_the_end_of_a_network_alone_and_in_company(driver, head):
    together = head.run(driver)
    for e in range(head.E):
        alone = head.run(driver, nets=slice(e, e + 1))
        assert_same_bits(alone, {name: array[e : e + 1] for name, array in together.items()})
    apart = Apart(driver)
    assert_same_bits(head.run(driver, place=apart), together)
    apart.check()


# ---------------------------------------------------------------------------------------------
# Sums of parts, and dropout's bits


@pytest.fixture(params=["driver", "checked_driver"])
def each_driver(request):
    """The driver under test, and the emulator that sees every access."""
    return request.getfixturevalue(request.param)


def test_parts_are_added_up_in_their_order(each_driver):
    driver = each_driver
    random = np.random.default_rng(3)
    parts = random.normal(size=(2, 900)).astype(np.float32)
    table = np.array([[5, 3, 20, 40, 20], [65, 1, 7, 0, 7], [72, 9, 92, 70, 90]], np.int32)
    expected = np.full((2, 200), 9, np.float32)
    for begin, count, step, to, length in table:
        for e in range(2):
            total = np.zeros(length, np.float32)
            for part in range(count):
                total += parts[e, begin + part * step :][:length]
            expected[e, to : to + length] = total
    gradients = driver.to_device(np.full((2, 200), 9, np.float32))
    arguments = driver.to_device(table.reshape(-1)), driver.to_device(parts), gradients
    with driver.session():
        driver.launch("sum_parts.cu", "sum_parts", (3,), (32,), *arguments)
    np.testing.assert_array_equal(driver.to_host(gradients), expected)


@pytest.mark.parametrize("lengths", [(1,), (5, 3), (2, 300, 1)])
def test_dropouts_bits_are_those_of_the_words(each_driver, lengths):
    driver = each_driver
    nets, seed, step, count = np.array([3, 70000]), 11, np.array([2**31]), sum(lengths)
    thresholds = [2**30, 2**32 - 1, 2**31][: len(lengths)]
    begins = np.cumsum([0, *lengths])
    rows = [(begins[i], 16 + 3 * i, t) for i, t in enumerate(thresholds)]
    expected = [
        [
            rng.random_words(seed, int(net), stream, int(step[0]), np.empty(32 * n, np.uint32)) >= t
            for (_, stream, t), n in zip(rows, lengths, strict=True)
        ]
        for net in nets
    ]
    kept = driver.to_device(poison((2, count), np.uint32))
    table = driver.to_device(np.array(rows, np.uint32).reshape(-1))
    arguments = table, len(rows), count, seed, driver.to_device(nets), driver.to_device(step), kept
    with driver.session():
        driver.launch("dropout.cu", "dropout_bits", (-(-count // 64),), (64,), *arguments)
    for words, bits in zip(driver.to_host(kept), expected, strict=True):
        found = block_oracles.unpack(words, 32 * count)
        np.testing.assert_array_equal(found, np.concatenate(bits))


# ---------------------------------------------------------------------------------------------
# What is fused

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


def test_a_large_batch_is_fused_and_its_end_made_a_few_images_at_a_time():
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
