"""The split into training and validation images."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from levels import examples

from minicnn import rng
from minicnn.data.split import split


@pytest.mark.parametrize(
    ("count", "fraction", "expected"),
    [(10, 0.1, 1), (100, 0.07, 7), (42_000, 0.1, 4_200), (101, 0.1, 11), (10, 0, 0), (5, 0.01, 1)],
)
def test_split_rounds_up(count, fraction, expected):
    train, validation = split(count, fraction, seed=0, net=0)
    assert len(validation) == expected and len(train) == count - expected
    assert train.dtype == validation.dtype == np.int32


@given(st.integers(2, 3000), st.integers(0, 999))
@examples(200, derandomize=False)
def test_split_is_exact_in_thousandths(count, thousandths):
    expected = -(-count * thousandths // 1000)
    if expected < count:
        assert len(split(count, thousandths / 1000, 0, 0)[1]) == expected


def test_split_is_a_permutation_of_its_own_for_each_net():
    order = rng.permutation(3, 5, rng.SPLIT, 0, 50)
    train, validation = split(50, 0.1, seed=3, net=5)
    np.testing.assert_array_equal(np.concatenate([validation, train]), order)
    assert sorted(order) == list(range(50))
    assert set(validation) != set(split(50, 0.1, seed=3, net=6)[1])


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5, float("nan"), float("inf")])
def test_split_fraction(fraction):
    with pytest.raises(ValueError, match=r"fraction: got .*, expected 0 <= fraction < 1"):
        split(10, fraction, 0, 0)


@pytest.mark.parametrize(("count", "fraction"), [(0, 0), (0, 0.1), (1, 0.1), (3, 0.9)])
def test_split_leaves_none(count, fraction):
    with pytest.raises(ValueError, match=f"count: got {count} images"):
        split(count, fraction, 0, 0)


def test_split_checks_seed_and_net():
    with pytest.raises(ValueError, match="seed"):
        split(10, 0.1, -1, 0)
    with pytest.raises(ValueError, match="net"):
        split(10, 0.1, 0, 1 << 32)
