"""Philox4x32-10: random numbers that are a function of where they are used, not of when.

A counter-based generator keeps no state: the same key and counter always give the same four
32-bit words, in any order, on any device, on any number of threads. So a net's weights, split,
shuffles, augmentation and dropout masks are the same bits on every backend, and the same whether
the net is trained alone or among fifteen.

    key     = (seed, net)
    counter = (block, step or epoch, stream, 0)      element i is word i % 4 of block i // 4

Source: J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random numbers: as easy as
1, 2, 3", SC'11. Its published known answers are in tests/test_rng.py.
"""

import threading

import numpy as np

# Streams: what a random number is for. Each dropout layer has a stream of its own, from DROPOUT on.
WEIGHTS, SPLIT, SHUFFLE, AUGMENTATION, DIGITS, BOOTSTRAP = range(6)
DROPOUT = 16

_ROUNDS = 10
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_KEY_INCREMENTS = 0x9E3779B9, 0xBB67AE85
_WORD = 0xFFFFFFFF

_CHUNK = 1 << 14  # blocks computed at a time: the six 64-bit lanes of a chunk stay in the L2 cache
_INDICES = np.arange(_CHUNK, dtype=np.uint64)
_scratch = threading.local()


def threshold(rate):
    """The least word that a layer which drops numbers at this rate keeps."""
    return min(round(rate * 2**32), 2**32 - 1)


def _permute(c, p, k0, k1):
    """Run the ten rounds on the counters `c` (4, N), uint64 below 2^32, in place. `p` (2, N)."""
    c0, c1, c2, c3 = c
    p0, p1 = p
    for _ in range(_ROUNDS):
        np.multiply(c0, _MULTIPLIERS[0], out=p0)
        np.multiply(c2, _MULTIPLIERS[1], out=p1)
        np.right_shift(p1, 32, out=c0)
        c0 ^= c1
        c0 ^= k0
        np.right_shift(p0, 32, out=c2)
        c2 ^= c3
        c2 ^= k1
        np.bitwise_and(p1, _WORD, out=c1)
        np.bitwise_and(p0, _WORD, out=c3)
        k0 = (k0 + _KEY_INCREMENTS[0]) & _WORD
        k1 = (k1 + _KEY_INCREMENTS[1]) & _WORD


def philox4x32(counter, key):
    """The four random words of each counter under its key.

    counter: (N, 4) uint32; key: (N, 2) uint32. Returns (N, 4) uint32.
    Raises ValueError for other shapes, and for values that are not integers below 2^32.
    """
    counter = _as_words("counter", counter, 4)
    key = _as_words("key", key, 2)
    if len(counter) != len(key):
        raise ValueError(f"counter and key: got {len(counter)} and {len(key)} rows, expected equal")
    c = np.ascontiguousarray(counter.T)  # (4, N)
    _permute(c, np.empty((2, c.shape[1]), np.uint64), key[:, 0], key[:, 1])
    return np.ascontiguousarray(c.T.astype(np.uint32))


def _as_words(name, values, width):
    values = np.asarray(values)
    if values.ndim != 2 or values.shape[1] != width:
        raise ValueError(f"{name}: got shape {values.shape}, expected (N, {width})")
    if values.dtype.kind not in "iu" or (
        values.size and not 0 <= values.min() <= values.max() <= _WORD
    ):
        raise ValueError(f"{name}: expected integers from 0 to 2^32 - 1")
    return values.astype(np.uint64)


def random_words(seed, net, stream, step, out):
    """Fill `out` (N,) uint32 with the words of elements 0 .. N-1, and return it.

    `step` is the training step or epoch in which the numbers are used; 0 where neither counts.
    """
    lanes = getattr(_scratch, "lanes", None)
    if lanes is None:
        lanes = _scratch.lanes = np.empty((6, _CHUNK), np.uint64)
    whole = len(out) // 4 * 4
    rows = out[:whole].reshape(-1, 4)
    for first in range(0, -(-len(out) // 4), _CHUNK):
        blocks = min(_CHUNK, -(-len(out) // 4) - first)
        c, p = lanes[:4, :blocks], lanes[4:, :blocks]
        np.add(_INDICES[:blocks], first, out=c[0])
        c[1], c[2], c[3] = step, stream, 0
        _permute(c, p, seed, net)
        chunk = rows[first : first + blocks]
        for word in range(4):
            np.copyto(chunk[:, word], c[word, : len(chunk)], casting="unsafe")
        if len(chunk) < blocks:  # the last block is used in part
            out[whole:] = c[: len(out) - whole, -1]
    return out


def uniform(words):
    """Words as float32 in [0, 1): their upper 24 bits, which float32 holds exactly."""
    return (words >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def draw(low, high, words):
    """Words as float32 from `low` to `high`.

    The product and the sum are rounded one after the other, never as one fused operation, so that
    every backend draws the same bits.
    """
    low, high = np.float32(low), np.float32(high)
    return low + (high - low) * uniform(words)


def permutation(seed, net, stream, epoch, count):
    """A random order of `count` elements: the stable argsort of a word each. (count,) int32."""
    words = random_words(seed, net, stream, epoch, np.empty(count, np.uint32))
    return np.argsort(words, kind="stable").astype(np.int32)
