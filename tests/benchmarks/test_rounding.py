"""benchmarks/rounding.py: values rounded to 16 bits, and what is counted of them."""

import numpy as np
import pytest

from benchmarks.rounding import FORMATS, Rounder, round_to


def rounded(name, values, scale=1.0):
    """values, rounded to a format, and the number of overflows."""
    x = np.array(values, np.float32)
    return x, round_to(name, x, scale)


def same_bits(found, expected):
    return np.array_equal(found.view(np.uint32), np.float32(expected).view(np.uint32))


TINY = 2.0**-24  # the smallest subnormal of float16
CASES = {
    "bfloat16": [
        (1 + 2.0**-8, 1.0),  # a tie: 1 is even
        (1 + 3 * 2.0**-8, 1 + 2.0**-6),  # a tie: the upper one is even
        (1 + 2.0**-8 + 2.0**-23, 1 + 2.0**-7),  # just above a tie
        (-(1 + 3 * 2.0**-8), -(1 + 2.0**-6)),
        (2 - 2.0**-9, 2.0),  # to the next exponent
        (3.0e-45, 0.0),  # a float32 far below the subnormals of bfloat16
        (2.0**-133, 2.0**-133),  # the smallest subnormal of bfloat16
        (3 * 2.0**-134, 2.0**-132),  # a tie between its first and its second
        (248.3 * 2.0**120, 248 * 2.0**120),
    ],
    "float16": [
        (1 + 2.0**-11, 1.0),
        (1 + 3 * 2.0**-11, 1 + 2.0**-9),
        (1 + 2.0**-11 + 2.0**-23, 1 + 2.0**-10),
        (-(1 + 3 * 2.0**-11), -(1 + 2.0**-9)),
        (2 - 2.0**-12, 2.0),
        (TINY / 2, 0.0),  # a tie: 0 is even
        (-TINY / 2, -0.0),
        (TINY / 2 * 1.001, TINY),
        (1.5 * TINY, 2 * TINY),
        (2.5 * TINY, 2 * TINY),
        (2.0**-14 - TINY / 2, 2.0**-14),  # from subnormal to normal
        (1e-30, 0.0),
        (40000.0, 40000.0),
        (65519.0, 65504.0),
        (-65519.0, -65504.0),
    ],
}


@pytest.mark.parametrize("special", [False, True], ids=["alone", "beside infinity"])
@pytest.mark.parametrize("name", CASES)
def test_exact_cases(name, special):
    values, expected = zip(*CASES[name], (0.0, 0.0), (-0.0, -0.0), (1.0, 1.0), strict=True)
    with_infinity = [np.inf, -np.inf] * special
    found, overflows = rounded(name, [*values, *with_infinity])
    assert same_bits(found, [*expected, *with_infinity])
    assert overflows == 0


@pytest.mark.parametrize("name", CASES)
def test_nan_stays_nan_and_the_rest_is_rounded(name):
    odd = np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF], np.uint32).view(np.float32)
    found, overflows = rounded(name, [*odd, 1 + 2.0**-12, np.nan])
    assert np.isnan(found[[0, 1, 2, 3, 5]]).all()
    assert found[4] == 1
    assert overflows == 0


@pytest.mark.parametrize("name", CASES)
def test_overflows_become_infinite_and_are_counted(name):
    limit = FORMATS[name].overflow
    below = np.nextafter(np.float32(limit), np.float32(0))
    largest = limit - (limit - rounded(name, [below])[0][0])
    found, overflows = rounded(name, [limit, -limit, below, np.inf, np.nan])
    assert list(found[:4]) == [np.inf, -np.inf, largest, np.inf]
    assert np.isfinite(largest)
    assert overflows == 2


def test_all_bits_of_float16_and_their_neighbours():
    """The trick with `big` against NumPy's cast, for every float16 and near every tie."""
    exact = np.arange(0, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    ties = (exact[1:] + exact[:-1]) / 2
    near = [np.nextafter(ties, np.float32(end)) for end in (0, 1e5)]
    x = np.concatenate([exact, ties, *near])
    x = np.concatenate([x, -x])
    for large in (True, False):  # by the cast; by the trick
        x = x if large else x[np.abs(x) < 2.0**15]
        assert same_bits(rounded("float16", x)[0], x.astype(np.float16).astype(np.float32))


def test_random_values_against_a_rounding_in_float64():
    x = np.random.default_rng(0).standard_normal(100_000).astype(np.float32) ** 5
    for name in CASES:
        f = FORMATS[name]
        step = np.exp2(np.maximum(np.frexp(x)[1] - 1, np.log2(f.smallest)) - f.mantissa)
        expected = np.rint(x.astype(np.float64) / step) * step  # to the even one, too
        assert np.array_equal(rounded(name, x)[0], expected)
    assert same_bits(rounded("float32", x)[0], x)


def test_a_scale_moves_the_range_of_float16():
    values = [1e-9, -3e-6, 0.01, 1.0, 70.0]
    found, overflows = rounded("float16", values, 1024.0)
    with np.errstate(over="ignore"):
        expected = (np.float32(values) * 1024).astype(np.float16).astype(np.float32) / 1024
    assert same_bits(found, expected)
    assert overflows == 1
    assert same_bits(rounded("float16", values[:3], 1024.0)[0], expected[:3])
    assert rounded("float16", values[:1])[0][0] == 0


def test_other_arrays_and_scales_are_refused():
    with pytest.raises(ValueError, match="expected contiguous float32"):
        round_to("float16", np.zeros((4, 4), np.float32)[:, ::2])
    with pytest.raises(ValueError, match="expected contiguous float32"):
        round_to("bfloat16", np.zeros(4))
    with pytest.raises(ValueError, match="expected a power of two"):
        round_to("float16", np.zeros(4, np.float32), 1000.0)


def test_what_rounding_does_is_counted():
    rounder = Rounder("float16", {"dx": 4.0}, every=2)
    x = [0.0, TINY / 16, TINY / 2, 2.0**-15, 1.0, -2.0, 1e6]
    for step in range(3):
        rounder("dx", np.float32([x]), np.array([step]))
    # 4 * TINY / 16 becomes 0, 4 * TINY / 2 is subnormal, 4 * 2^-15 is normal
    assert rounder.counts["dx"] == {
        "elements": 2 * 6,
        "zero": 2 * 1,
        "subnormal": 2 * 1,
        "overflows": 3,
        "largest": 4e6,
    }
