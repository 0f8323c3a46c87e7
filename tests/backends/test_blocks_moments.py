"""The sums and coefficients of fused blocks are exact to the last bit, on values that are hard.

block.cuh computes them in pairs of floats, not in double. Plain floats would fail these tests.
"""

from fractions import Fraction

import numpy as np
import pytest
from planted import KERNELS

MOMENTS = KERNELS / "moments.cu"
CHANNELS = 96
# Of the last bit. Half of it is the rounding to float. The rest is 2^-9 for the pairs of floats.
BOUND = 0.502
EPSILON = float(np.float32(1e-3))


def errors(found, exact, largest=0.0):
    """|found - exact| as multiples of the last bit of a float32.

    largest: of terms that may cancel. No result has to be more exact than 2^-40 of it.
    """
    exact = np.asarray(exact, np.float64)
    size = np.maximum(np.abs(exact), 2.0**-16 * np.float64(largest))
    return np.abs(np.float64(found) - exact) / np.spacing(np.float32(size))


def run(driver, kernel, given, results, C=CHANNELS):
    """{name: array} of the results (C,) or more, of a net. given: arguments; arrays get a net."""
    made = {n: driver.to_device(np.full((1, *s), np.nan, np.float32)) for n, s in results.items()}
    arguments = {
        name: driver.to_device(value[None]) if isinstance(value, np.ndarray) else value
        for name, value in given.items()
    }
    with driver.session():
        driver.launch(MOMENTS, kernel, (1,), (128,), **arguments, **made, C=C)
    return {name: driver.to_host(array)[0] for name, array in made.items()}


def fractions(array):
    """The float32 numbers as fractions, in an array of objects."""
    return np.vectorize(Fraction, otypes=[object])(np.float64(array))


# ---------------------------------------------------------------------------------------------
# The moments of all parts


def parts_of(kind, random, count):
    """Means, squared deviations and counts (count, 3, CHANNELS) of a kind of hard values."""
    shape = count, CHANNELS
    means, numbers = random.normal(0.2, 0.5, shape), random.integers(1, 3000, shape)
    if kind == "large means":  # beside the deviation
        means = 1e5 + random.normal(0, 0.05, shape)
    elif kind == "an outlier first":  # of few elements
        means[0], numbers[0] = 1e4, 100
    elif kind == "means that cancel":
        means[0] = 3e3
        others = np.float32(means[1:])
        means[1:] = others - (3e3 * numbers[0] + (numbers[1:] * others).sum(0)) / numbers[1:].sum(0)
    elif kind == "few elements":
        numbers = random.integers(1, 3, shape)
    squares = numbers * random.uniform(0.001, 0.01, shape)
    return np.stack([means, squares, numbers], axis=1).astype(np.float32)


KINDS = "ordinary", "large means", "an outlier first", "means that cancel", "few elements"


def exact_moments(parts):
    """(mean, variance) of each channel, exactly."""
    means, squares, numbers = np.moveaxis(fractions(parts), 1, 0)
    n = numbers.sum(axis=0)
    mean = (numbers * means).sum(axis=0) / n
    return mean, (squares + numbers * (means - mean) ** 2).sum(axis=0) / n


def plain_moments(parts):
    """The same in float32, with deviations from the first mean."""
    means, squares, numbers = np.moveaxis(parts, 1, 0)
    n, d = numbers.sum(axis=0), means - means[0]
    mean = (numbers * d).sum(axis=0) / n
    return means[0] + mean, (squares + numbers * d * d).sum(axis=0) / n - mean * mean


@pytest.mark.parametrize("count", [2, 26, 300])
@pytest.mark.parametrize("kind", KINDS)
def test_moments_of_many_parts_are_exact(driver, kind, count):
    parts = parts_of(kind, np.random.default_rng(count), count)
    shapes = {"mean": (CHANNELS,), "variance": (CHANNELS,)}
    found = run(driver, "moments", {"parts": parts, "count": count}, shapes)
    exact = dict(zip(shapes, exact_moments(parts), strict=True))
    largest = {"mean": np.abs(parts[:, 0]).max(axis=0), "variance": 0}
    for name, values in exact.items():
        assert errors(found[name], values, largest[name]).max() < BOUND, name
    plain = dict(zip(shapes, plain_moments(parts), strict=True))
    if count > 2 or kind == "an outlier first":
        assert errors(plain["variance"], exact["variance"]).max() > 2 * BOUND


def test_equal_means_have_no_variance(driver):
    parts = np.zeros((7, 3, CHANNELS), np.float32)
    parts[:, 0], parts[:, 2] = 0.1, 5
    shapes = {"mean": (CHANNELS,), "variance": (CHANNELS,)}
    found = run(driver, "moments", {"parts": parts, "count": 7}, shapes)
    assert (found["mean"] == np.float32(0.1)).all() and (found["variance"] == 0).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_part_that_is_not_finite_is_noticed(driver, wrong):
    parts = parts_of("ordinary", np.random.default_rng(0), 5)
    for i in range(3):  # mean, squares; in the first part and later
        parts[i, i % 2, i] = wrong
    shapes = {"mean": (CHANNELS,), "variance": (CHANNELS,)}
    found = run(driver, "moments", {"parts": parts, "count": 5}, shapes)
    assert not np.isfinite(found["variance"][:3]).any()
    assert np.isfinite(found["variance"][3:]).all() and np.isfinite(found["mean"][3:]).all()


# ---------------------------------------------------------------------------------------------
# The moments of one part, from rows with pivots of their own


@pytest.mark.parametrize("center", [0.3, 1e5])
def test_rows_with_pivots_give_exact_parts(driver, center):
    random, shape = np.random.default_rng(0), (32, CHANNELS)
    pivots = center + random.normal(0, 0.3, shape)
    numbers = random.integers(1, 60, shape)
    sums, squares = numbers * random.normal(0, 0.3, shape), numbers * random.uniform(0.1, 1, shape)
    rows = np.stack([pivots, sums, squares, numbers], axis=1).astype(np.float32)
    rows[5:9, :, :40] = 0  # rows without elements
    found = run(driver, "pivoted", {"rows": rows, "count": 32}, {"part": (3, CHANNELS)})["part"]
    pivots, sums, squares, numbers = np.moveaxis(fractions(rows), 1, 0)
    n = numbers.sum(axis=0)
    mean = (numbers * pivots + sums).sum(axis=0) / n
    d = pivots - mean
    exact = mean, (squares + d * (2 * sums + numbers * d)).sum(axis=0), n
    for result, values in zip(found, exact, strict=True):
        assert errors(result, values).max() < BOUND
    total, plain = (np.float32(rows[:, 3]) * rows[:, 0]).sum(axis=0), np.float64(exact[0])
    assert errors(total / rows[:, 3].sum(axis=0), plain).max() > 2 * BOUND


def test_rows_without_any_element_are_a_part_of_zeros(driver):
    rows = np.zeros((8, 4, CHANNELS), np.float32)
    found = run(driver, "pivoted", {"rows": rows, "count": 8}, {"part": (3, CHANNELS)})["part"]
    assert (found == 0).all()


# ---------------------------------------------------------------------------------------------
# Coefficients


def of_channels(random, center):
    """mean, variance, gamma (CHANNELS,) of a normalisation."""
    return {
        "mean": np.float32(random.normal(center, 1, CHANNELS)),
        "variance": np.float32(10.0 ** random.uniform(-8, 4, CHANNELS)),
        "gamma": np.float32(random.normal(1, 0.3, CHANNELS)),
    }


@pytest.mark.parametrize("center", [0.3, -1e5])
def test_scale_and_shift_are_exact(driver, center):
    random = np.random.default_rng(0)
    given = of_channels(random, center) | {"beta": np.float32(random.normal(size=CHANNELS))}
    kept_scale = float(np.float32(1 / 0.6))
    numbers = {"epsilon": EPSILON, "kept_scale": kept_scale}
    shapes = {"scale": (CHANNELS,), "shift": (CHANNELS,)}
    found = run(driver, "normalization", given | numbers, shapes)
    mean, variance, gamma, beta = (np.longdouble(array) for array in given.values())
    scale = gamma / np.sqrt(variance + EPSILON)
    assert errors(found["scale"], scale * kept_scale).max() < BOUND
    assert errors(found["shift"], (beta - mean * scale) * kept_scale).max() < BOUND
    plain = given["gamma"] / np.sqrt(given["variance"] + np.float32(EPSILON))
    assert errors(plain * np.float32(kept_scale), scale * kept_scale).max() > 2 * BOUND


@pytest.mark.parametrize("count", [1, 26, 300])
@pytest.mark.parametrize("center", [0.3, -1e3])
def test_the_gradients_coefficients_are_exact(driver, center, count):
    random, rows = np.random.default_rng(count), 43264
    given = of_channels(random, center)
    given["parts"] = np.float32(random.normal(0.1, 30, (count, 2, CHANNELS)))
    numbers = {"epsilon": EPSILON, "rows": rows, "count": count}
    results = dict.fromkeys(["a", "b", "c", "dgamma", "dbeta"], (CHANNELS,))
    found = run(driver, "normalization_gradient", given | numbers, results)
    mean, variance, gamma, parts = (np.longdouble(array) for array in given.values())
    inverse = 1 / np.sqrt(variance + EPSILON)
    total, total_z = parts.sum(axis=0) / rows
    scale, slope = gamma * inverse, total_z * inverse
    exact = {"a": scale, "b": -scale * slope, "c": -scale * (total - slope * mean)}
    exact |= {"dgamma": total_z * rows, "dbeta": total * rows}
    largest = dict.fromkeys(exact, 0) | {"c": np.abs(scale * slope * mean)}
    for name, values in exact.items():
        assert errors(found[name], values, largest[name]).max() < BOUND, name
