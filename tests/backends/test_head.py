"""The kernel of a network's end: against its oracle, and to the bit."""

from math import prod
from types import SimpleNamespace

import block_oracles
import numpy as np
import pytest
from block_cases import (
    EPSILON_BELOW,
    EXACT,
    KEPT_SCALE,
    assert_stored,
    dropout_words,
    parts_of_moments,
    stacked,
)
from cases import Apart, assert_same_bits, poison, relative

from minicnn.backends import cuda_tiles
from minicnn.backends.cuda_forms import BFLOAT16, TF32


class Head:
    """The sizes of a network's end, of E nets, and random values for everything it reads."""

    def __init__(self, E, B, image, C, units, drop=True, seed=0, smoothing=0.0, storage=TF32):
        random = np.random.default_rng(seed)
        self.E, self.B, self.C, self.units = E, B, C, units
        self.shape, self.inputs = (B, *image, C), prod(image) * C
        self.smoothing, self.storage = smoothing, storage

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
        if storage is BFLOAT16:
            y = self.arrays["y_below"]
            self.arrays["y_below"] = np.float32(block_oracles.to_bfloat16(y))

    def run(self, driver, nets=slice(None), place=None, images=None):
        """{name: array on the host}; poisoned beforehand. images: computed at a time."""
        images, shared_bytes = cuda_tiles.head(self.inputs, self.C, self.units, images or self.B)
        put = place or driver.to_device
        names = "y_below gamma_below beta_below parts_below kept kernel bias labels".split()
        arrays = [self.arrays[name] for name in names]
        if self.storage is BFLOAT16:
            arrays[0] = block_oracles.bits16(arrays[0])
        arrays = [array if array is None else put(array[nets]) for array in arrays]
        shapes = {
            "mean": (self.C,), "variance": (self.C,), "logits": (self.B, self.units),
            "loss": (), "correct": (), "dkernel": (self.inputs, self.units),
            "dbias": (self.units,), "dx": self.shape, "sums": (1, 2, self.C),
        }  # fmt: skip
        E = len(range(self.E)[nets])
        dtypes = {"correct": np.int64, "dx": self.storage.dtype}
        results = {
            name: put(poison((E, *shape), dtypes.get(name, np.float32)))
            for name, shape in shapes.items()
        }
        with driver.session():
            driver.launch(
                "head.cu", "head", (1,), (cuda_tiles.HEAD_THREADS,), *arrays[:4], 3, EPSILON_BELOW,
                self.kept_scale, *arrays[4:], self.smoothing, self.B, self.inputs, self.C,
                self.units, images, *results.values(), shared_bytes=shared_bytes,
                defines=self.storage.defines,
            )  # fmt: skip
        found = {name: driver.to_host(array) for name, array in results.items()}
        if self.storage is BFLOAT16:
            found["dx"] = block_oracles.widened(found["dx"])
        return found

    def expected(self):
        numbers = {"kept_scale": self.kept_scale, "epsilon_below": EPSILON_BELOW}
        numbers["smoothing"] = self.smoothing
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
    Head(1, 2, (3, 4), 52, 3, drop=False),  # more elements than threads
    Head(1, 70, (1, 2), 4, 1),
    Head(2, 1, (1, 1), 4, 2),
    Head(2, 5, (1, 2), 36, 37, smoothing=0.1),
    Head(2, 3, (1, 1), 4, 2, smoothing=0.9),
    Head(3, 3, (3, 2), 40, 7, storage=BFLOAT16),
    Head(1, 70, (1, 2), 8, 1, drop=False, storage=BFLOAT16),
]
each_head = pytest.mark.parametrize("head", HEADS)


@each_head
@pytest.mark.parametrize("images", [None, 1, 2])
def test_the_end_of_a_network_is_right(driver, head, images):
    found, expected = head.run(driver, images=images), head.expected()
    found["sum"], found["sum_z"] = found.pop("sums")[:, 0].swapaxes(0, 1)
    np.testing.assert_array_equal(found.pop("correct"), expected.pop("correct"))
    assert found.keys() == expected.keys()
    if head.storage is BFLOAT16:
        assert_stored(found["dx"], expected["dx"], EXACT)
        expected["dx"] = np.float64(found["dx"])  # the sums are those of what is stored
        y, mean = np.float64(head.arrays["y_below"]), expected["mean"]
        inverse = 1 / np.sqrt(expected["variance"] + EPSILON_BELOW)
        z = (y - mean[:, None, None, None]) * inverse[:, None, None, None]
        expected["sum"] = expected["dx"].sum(axis=(1, 2, 3))
        expected["sum_z"] = (expected["dx"] * z).sum(axis=(1, 2, 3))
    for name, array in expected.items():
        assert relative(found[name], array) < EXACT, name


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_class_with_probability_0_costs_something_only_with_smoothing(driver, smoothing):
    head = Head(2, 5, (1, 1), 4, 3, smoothing=smoothing)
    head.arrays["bias"][:, 2] = -np.inf
    head.arrays["labels"] %= 2
    found = head.run(driver)
    assert np.isposinf(found["loss"]).all() if smoothing else np.isfinite(found["loss"]).all()
    assert np.isfinite(found["dkernel"]).all() and np.isfinite(found["dx"]).all()


@each_head
def test_the_end_of_a_network_to_the_bit(driver, checked_driver, other_order_driver, head):
    together = head.run(driver)
    for other in (checked_driver, other_order_driver):
        assert_same_bits(head.run(other), together)
    assert_same_bits(head.run(checked_driver, images=2), head.run(driver, images=2))


@each_head
def test_the_end_of_a_net_is_the_same_alone_and_among_others(driver, head):
    together = head.run(driver)
    for e in range(head.E):
        alone = head.run(driver, nets=slice(e, e + 1))
        assert_same_bits(alone, {name: array[e : e + 1] for name, array in together.items()})
    apart = Apart(driver)
    assert_same_bits(head.run(driver, place=apart), together)
    apart.check()
