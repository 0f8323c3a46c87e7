"""Philox: the published known answers, and the scheme of keys and counters built on it."""

import numpy as np
import pytest

from minicnn import checks, rng

# Random123's kat_vectors for philox4x32-10: counter, key, result.
KNOWN_ANSWERS = [
    ([0x00000000] * 4, [0x00000000] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


def philox_by_hand(counter, key):
    """One block in Python integers, written from the paper's definition."""
    a, b, c, d = counter
    k, l = key  # noqa: E741
    for _ in range(10):
        left, right = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (
            (right >> 32) ^ b ^ k,
            right % 2**32,
            (left >> 32) ^ d ^ l,
            left % 2**32,
        )
        k, l = (k + 0x9E3779B9) % 2**32, (l + 0xBB67AE85) % 2**32  # noqa: E741
    return [a, b, c, d]


def test_known_answers_all_at_once():
    counters, keys, expected = (
        np.array(column, np.uint32) for column in zip(*KNOWN_ANSWERS, strict=True)
    )
    result = rng.philox4x32(counters, keys)
    assert result.dtype == np.uint32
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 1000, 4 * rng._CHUNK - 1, 4 * rng._CHUNK + 7])
def test_element_i_is_word_i_mod_4_of_block_i_div_4(count):
    words = rng.random_words(7, 3, rng.SHUFFLE, 11, np.empty(count, np.uint32))
    for i in {0, 1, 2, count // 2, count - 3, count - 2, count - 1} & set(range(count)):
        assert words[i] == philox_by_hand([i // 4, 11, rng.SHUFFLE, 0], [7, 3])[i % 4]


def test_fewer_elements_are_a_prefix_of_more():
    long = rng.random_words(1, 2, 3, 4, np.empty(70_001, np.uint32))
    np.testing.assert_array_equal(
        rng.random_words(1, 2, 3, 4, np.empty(999, np.uint32)), long[:999]
    )


@pytest.mark.parametrize("change", [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)])
def test_seed_net_stream_and_step_each_give_other_words(change):
    one = rng.random_words(5, 6, 7, 8, np.empty(4000, np.uint32))
    other = rng.random_words(
        5 + change[0], 6 + change[1], 7 + change[2], 8 + change[3], np.empty_like(one)
    )
    assert np.mean(one == other) < 0.001


def test_uniform_keeps_the_upper_24_bits():
    words = np.array([0, 255, 256, 0x80000000, 0xFFFFFFFF], np.uint32)
    expected = np.array([0, 0, 2.0**-24, 0.5, 1 - 2.0**-24], np.float32)
    np.testing.assert_array_equal(rng.uniform(words), expected)


def test_draw_rounds_the_product_and_the_sum_separately():
    words = rng.random_words(0, 0, 0, 0, np.empty(10_000, np.uint32))
    low, width, u = np.float32(-0.3), np.float32(0.8) - np.float32(-0.3), rng.uniform(words)
    drawn = rng.draw(-0.3, 0.8, words)
    assert drawn.dtype == np.float32
    np.testing.assert_array_equal(drawn, (low + (width * u).astype(np.float32)).astype(np.float32))
    fused = (np.float64(low) + np.float64(width) * u.astype(np.float64)).astype(np.float32)
    assert np.mean(drawn != fused) > 0.01  # the test can tell the two apart
    assert drawn.min() >= -0.3 - 1e-6 and drawn.max() < 0.8
    assert abs(drawn.mean() - 0.25) < 0.01


def test_permutation_orders_every_element_once():
    order = rng.permutation(3, 1, rng.SPLIT, 0, 1001)
    np.testing.assert_array_equal(np.sort(order), np.arange(1001))
    words = rng.random_words(3, 1, rng.SPLIT, 0, np.empty(1001, np.uint32))
    assert np.all(np.diff(words[order].astype(np.int64)) >= 0)


@pytest.mark.parametrize(
    ("counter", "key", "named"),
    [
        (np.zeros((2, 3), np.uint32), np.zeros((2, 2), np.uint32), "counter"),
        (np.zeros((2, 4), np.uint32), np.zeros((2,), np.uint32), "key"),
        (np.zeros((2, 4), np.uint32), np.zeros((3, 2), np.uint32), "rows"),
        (np.full((1, 4), -1), np.zeros((1, 2), np.uint32), "counter"),
        (np.zeros((1, 4)), np.zeros((1, 2), np.uint32), "counter"),
        (np.zeros((1, 4), np.uint32), np.full((1, 2), 2**32), "key"),
    ],
)
def test_bad_arguments_are_named(counter, key, named):
    with pytest.raises(ValueError, match=named):
        rng.philox4x32(counter, key)


@pytest.mark.parametrize("value", [-1, 2**32, 1.5, "3", True, None])
def test_seeds_are_32_bits(value):
    with pytest.raises(ValueError, match="seed"):
        checks.word("seed", value)
