"""Fused blocks for tests of their kernels: sizes, random inputs, launches, expected results.

cuda_tiles.py chooses how a launch splits its work. The tests also force other splits: each of
those that cuda_tiles.py chooses from, other runs of tiles, and fewer blocks of threads.
"""

from math import prod
from types import SimpleNamespace
from typing import NamedTuple

import block_oracles
import numpy as np
import pytest
from cases import poison, relative

from minicnn.backends import cuda_rebuilt, cuda_tiles
from minicnn.backends.cuda_forms import BFLOAT16, TF32
from minicnn.backends.kernel import SOURCES
from minicnn.network.geometry import Window

EXACT = 1e-5  # of float32
FREE = {"tf32": 2e-3, "bfloat16": 16e-3}  # against exact products: the mantissa is 3 bits shorter
RATE = 0.3
KEPT_SCALE = float(np.float32(1 / (1 - RATE)))
EPSILON, EPSILON_BELOW = (float(np.float32(epsilon)) for epsilon in (1e-3, 2e-3))

# Passes with products on tensor cores, and in float32: (choice in cuda_tiles.py, file, kernel)
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
    """Bound of the error where the oracle rounds operands too; a GPU truncates its sums."""
    return 5e-5 if driver.name == "cuda" else 1e-5


def with_runs(launch, runs, blocks=None, parts=None):
    """The launch with so many runs of tiles, parts (default: runs) and blocks of threads (parts).

    At most as many runs as tiles, and blocks as parts.
    """
    runs = min(runs, launch.tiling["tiles"])
    before, parts = launch.tiling["parts"], parts or runs
    return launch._replace(
        tiling={**launch.tiling, "runs": runs, "parts": parts},
        grid=(min(blocks or parts, parts), launch.grid[1]),
        parts=launch.parts // before * parts,
    )


class First(NamedTuple):
    """The sizes of a first block that is rebuilt from the image."""

    image: tuple
    channels: int
    size: tuple
    strides: tuple = (1, 1)
    padding: str = "valid"
    relu: bool = True

    @property
    def window(self):
        return Window.fit(self.size, self.strides, self.padding, self.image)

    @property
    def rebuilt(self):
        return cuda_rebuilt.Rebuilt(self.window, self.channels)


class Block:
    """The sizes of a block of E nets, and random values for everything that its launches read.

    below: the statistics of the block below: "parts" (partial ones), "moments" (final ones), or
    "nothing" if there is no block below. first: the block below, if it is a first block that is
    rebuilt; `image` is its output then. With storage BFLOAT16, channels are rounded up to whole
    vectors, and what is stored in 16 bits has values that fit them.
    """

    def __init__(
        self, E, B, image, C, N, size, strides=(1, 1), padding="valid", relu=True, drop=True,
        below="parts", seed=0, storage=TF32, first=None,
    ):  # fmt: skip
        own = locals()
        self._arguments = {name: own[name] for name in own if name not in ("self", "own")}
        self.tensor, self.storage, self.first = C >= 8, storage, first
        if first:
            image, drop = first.window.output, False
        N += -N % storage.alignment
        C += -C % storage.alignment if self.tensor else 0
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
        if first:
            # Pixels of images have few distinct values, and many zeros.
            pixels = random.integers(0, 256, (E, B, *first.image, first.channels))
            self.arrays["x_first"] = (pixels / 255).astype(np.float32)
            self.arrays["kernel_first"] = normal(*first.size, first.channels, C)
            self.arrays["bias_first"] = normal(C)
        self.passes = TENSOR if self.tensor else FIRST
        # A first block's input is in float32.
        self.stored = {"y", "dx", "dx_below"} | (
            {"y_below"} if self.tensor and not first else set()
        )
        if storage is TF32:
            self.stored = set()
        for name in self.stored & self.arrays.keys():
            self.arrays[name] = np.float32(block_oracles.to_bfloat16(self.arrays[name]))

    def in_bfloat16(self):
        """The same block, stored in 16 bits."""
        return Block(**{**self._arguments, "storage": BFLOAT16})

    def __repr__(self):
        image, size = self.window.input, self.window.size
        return (
            f"Block(E={self.E}, B={self.B}, image={image}, C={self.C}, N={self.N}, size={size}, "
            f"strides={self.strides}, padding={self.padding!r}, relu={self.relu}, "
            f"drop={self.arrays['kept'] is not None}, below={self.below!r}, "
            f"storage={self.storage.precision}, first={self.first})"
        )

    @property
    def products(self):
        """Multiplications of a pass."""
        return self.E * self.rows * prod(self.window.size) * self.C * self.N

    # ---- launches ----------------------------------------------------------------------------

    def window_of(self, what):
        return cuda_tiles.gradient_window(self.window) if what == "input gradient" else self.window

    def launches(self, what):
        """The launches that cuda_tiles.py chooses from for a pass."""
        choose, size = self.passes[what][0], (self.window_of(what), self.C, self.N, self.B)
        below = [self.first.rebuilt] if self.first else []
        return choose(*size, self.storage, *below)

    def launch(self, what):
        """The launch that it chooses."""
        return cuda_tiles.best(self.launches(what))

    def run(self, driver, what, launch=None, nets=slice(None), place=None, folder=SOURCES):
        """{name: array on the host}: results of a pass on the chosen nets; poisoned beforehand.

        launch: cuda_tiles.py's choice, unless another one is given; folder: where the kernels are.
        """
        launch = launch or self.launch(what)
        put = place or driver.to_device
        E = len(range(self.E)[nets])
        results = {}

        def get(names):
            found = []
            for name in names.split():
                array = self.arrays[name]
                if array is not None and name in self.stored:
                    array = block_oracles.bits16(array)
                found.append(array if array is None else put(array[nets]))
            return found

        def new(name, *shape):
            dtype = self.storage.dtype if name in self.stored else np.float32
            results[name] = put(poison((E, *shape), dtype))
            return results[name]

        def packed():
            kernels = self.packed(what, launch)
            return put(kernels[nets])

        floor = 0.0 if self.relu else -np.inf
        table = driver.to_device(np.array(launch.tables, np.int32)) if launch.tables else None
        sizes, nothing = self._sizes(self.window_of(what)), self.below == "nothing"
        above = *get("dx y sums"), 3, *get("gamma mean variance"), EPSILON
        weights = prod(self.window.size) * self.C * self.N + self.N
        if self.first:
            floor_first = 0.0 if self.first.relu else -np.inf
            from_first = None, *get("x_first kernel_first bias_first"), floor_first
        else:
            from_first = *get("y_below"), None, None, None, 0.0
        from_first = *from_first, self.first_sizes() if self.first else sizes
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
                *(from_first if self.tensor else get("y_below")),
                packed() if self.tensor else get("kernel")[0], *get("bias"),
                *(between if self.tensor else ()), sizes,
                launch.tiling, *([table] if self.tensor else []), floor, new("y", *self.shape),
                None if self.below == "moments" else new("parts", launch.parts, 3, self.N),
            )  # fmt: skip
        elif what == "input gradient":
            arguments = (
                *above, floor, packed(), sizes, launch.tiling,
                table, prod(map(len, self.window_of(what).phases)),
                *from_first, *get("mean_below variance_below"), EPSILON_BELOW, *get("kept"),
                self.kept_scale, None if self.first else new("dx_below", *self.below_shape),
                new("parts", launch.parts, 2, self.C),
                new("of_dx", launch.parts, self.first.rebuilt.elements + 1, self.C)
                if self.first else None,
            )  # fmt: skip
        else:
            known = [None] * 4
            if not nothing:
                known = get("gamma_below beta_below mean_below variance_below")
            between = *known, EPSILON_BELOW, self.kept_scale, *get("kept")
            arguments = (
                *(from_first if self.tensor else get("y_below")),
                *(between if self.tensor else ()), *above, floor, sizes,
                launch.tiling, *([table] if self.tensor else []),
                new("parts", launch.parts, weights), new("dgamma", self.N), new("dbeta", self.N),
            )  # fmt: skip
        _, file, kernel = self.passes[what]
        with driver.session():
            driver.launch(
                folder / file, kernel, launch.grid, (launch.threads,), *arguments,
                shared_bytes=launch.shared_bytes, defines=launch.defines,
            )  # fmt: skip
        found = {name: driver.to_host(array) for name, array in results.items()}
        for name in self.stored & found.keys():
            found[name] = block_oracles.widened(found[name])
        return found

    def packed(self, what, launch):
        """The kernels (E, size) as the correlation of a pass reads them, by the oracle."""
        kernels = self.arrays["kernel"].reshape(self.E, -1, self.C, self.N)
        sizes = self.C, self.N
        if what == "input gradient":
            kernels, sizes = kernels.swapaxes(2, 3), (self.N, self.C)
        slots = cuda_tiles.weight_slots(launch, *sizes)
        shape = cuda_tiles.packed_width(launch), self.storage.precision
        return np.stack([block_oracles.packed(kernel, slots, *shape) for kernel in kernels])

    def _sizes(self, window):
        return sizes(window, self.B, self.C, self.N)

    def first_sizes(self):
        """The sizes of the first block."""
        return sizes(self.first.window, self.B, self.first.channels, self.C)

    # ---- what is expected --------------------------------------------------------------------

    def expected(self, what, rounded=False):
        """{name: array}: the oracle's results."""
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
            tensor=self.tensor, storage=self.storage.precision, first=self.first,
        )  # fmt: skip

    def added_up(self, what, found):
        """A pass's results by the oracle's names, with the partial sums added up."""
        found = dict(found)
        parts = found.pop("parts", None)
        if "of_dx" in found:
            found["of_dx"] = found["of_dx"].sum(axis=1, dtype=np.float64)
        if what == "input gradient":
            found["sum"], found["sum_z"] = parts.sum(axis=1, dtype=np.float64).swapaxes(0, 1)
        elif what == "weight gradient":
            sums = parts.sum(axis=1, dtype=np.float64)
            found["dbias"] = sums[:, -self.N :]
            found["dkernel"] = sums[:, : -self.N].reshape(self.arrays["kernel"].shape)
        return found

    def check(self, driver, what, found):
        """Assert that a pass's results are right."""
        bounds = {True: same_roundings(driver) if self.tensor else EXACT}
        if self.first:
            # Its y is a sum, rounded to an operand. A sum with another last bit, of 2**-24 for each
            # of up to 15 products, becomes the next operand, 2**-11 (in bfloat16 2**-8) away, once
            # in that many elements: 2**-11 * sqrt(15 * 2**-24 / 2**-11) is 4e-5.
            bounds[True] += 4e-5
        if self.tensor or self.stored:
            bounds[False] = FREE[self.storage.precision]
        sums = self.added_up(what, found)
        for rounded, bound in bounds.items():
            expected = self.expected(what, rounded)
            assert sums.keys() == expected.keys()
            if rounded and self.stored and "dx_below" in found:
                given = [self._given(what, e) for e in range(self.E)]
                of_found = zip(np.float64(found["dx_below"]), given, strict=True)
                expected |= stacked(block_oracles.sums_of(*of_net) for of_net in of_found)
            for name, array in expected.items():
                if rounded and name in self.stored:
                    assert_stored(sums[name], array, bound)
                else:
                    assert relative(sums[name], array) < bound, (name, rounded)
        if what == "forward" and "parts" in found:
            rows = found["y"].reshape(self.E, -1, self.N).astype(np.float64)
            for y, parts in zip(rows, found["parts"], strict=True):
                assert (parts[:, 2].sum(axis=0) == len(y)).all()
                mean, variance = block_oracles.moments(parts)
                assert relative(mean, y.mean(axis=0)) < EXACT
                assert relative(variance, y.var(axis=0)) < EXACT


def assert_stored(found, expected, bound):
    """Assert that each number is the nearest bfloat16 to one within `bound` of what is expected.

    bound: relative to the largest number.
    """
    distance = bound * np.abs(expected).max()
    assert (block_oracles.to_bfloat16(expected - distance) <= found).all()
    assert (found <= block_oracles.to_bfloat16(expected + distance)).all()


def sizes(window, B, C, N):
    """The sizes of a convolution as convolution.cuh's struct."""
    names = "B H W Cin Ho Wo Cout kh kw sh sw top left".split()
    numbers = (
        B, *window.input, C, *window.output, N, *window.size, *window.strides, *window.before
    )  # fmt: skip
    return dict(zip(names, numbers, strict=True))


def moments(random, E, C, suffix):
    return {
        f"mean{suffix}": random.normal(0.2, 0.5, (E, C)).astype(np.float32),
        f"variance{suffix}": random.uniform(0.5, 2, (E, C)).astype(np.float32),
    }


def parts_of_moments(random, E, C, count=3):
    """Random partial statistics (E, count, 3, C): means, squared deviations, counts."""
    numbers = random.integers(1, 50, (E, count, C))
    squares = numbers * random.uniform(0.5, 2, (E, count, C))
    means = random.normal(0.2, 0.5, (E, count, C))
    return np.stack([means, squares, numbers], axis=2).astype(np.float32)


def dropout_words(random, E, shape):
    """Random bits for the elements of this shape: (E, words)."""
    words = -(-prod(shape) // 32)
    bits = random.uniform(size=(E, words, 32)) >= RATE
    return np.packbits(bits, axis=-1, bitorder="little").view("<u4").reshape(E, words)


def stacked(nets):
    """Stack a {name: array} of each net into {name: (E, ...)}."""
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
    Block(1, 4, (9, 5), 40, 4, (5, 4), (3, 3), "same", drop=False),  # more phases than threads
    Block(1, 1, (1, 1), 8, 4, (1, 1), relu=False),
]
RAGGED += [block.in_bfloat16() for block in RAGGED]
SEED_NETWORK += [block.in_bfloat16() for block in SEED_NETWORK]
FIRST_BLOCKS = [
    Block(2, 3, (9, 7), 3, 20, (3, 2), (2, 1), "same", below="nothing"),
    Block(1, 2, (60, 20), 7, 16, (3, 3), relu=False, below="nothing"),  # in bands
    Block(1, 1, (2, 3), 4, 12, (5, 4), below="nothing"),
    Block(2, 2, (32, 32), 3, 32, (3, 3), below="nothing"),  # the seed network's, on colour images
]


# Blocks above a first block that is rebuilt; the first one is the seed network's.
ABOVE_FIRST = [
    Block(1, 2, None, 32, 32, (3, 3), first=First((28, 28), 1, (3, 3))),
    Block(3, 2, None, 36, 68, (2, 3), padding="same", first=First((11, 9), 1, (3, 2), (2, 1))),
    Block(2, 3, None, 12, 8, (3, 3), below="moments", relu=False,
          first=First((6, 5), 3, (2, 2), (1, 2), "same", relu=False)),
    Block(1, 5, None, 72, 20, (2, 2), first=First((4, 4), 7, (2, 1))),
    Block(1, 1, None, 8, 4, (1, 1), first=First((3, 3), 1, (3, 5), padding="same")),
]  # fmt: skip
ABOVE_FIRST += [block.in_bfloat16() for block in ABOVE_FIRST]
FIRST_BLOCKS += [block.in_bfloat16() for block in FIRST_BLOCKS]


def cases_of(blocks):
    """(block, pass) for each block and each pass that its kernels have."""
    cases = []
    for i, block in enumerate(blocks):
        for what in block.passes:
            if what != "input gradient" or block.below != "nothing":
                kind = "block" if block.tensor else "first"
                kind = "above first" if block.first else kind
                name = f"{kind} {i}, {what}, {block.storage.precision}"
                cases.append(pytest.param(block, what, id=name))
    return cases
