"""Philox4x32-10, a counter-based random number generator.

It keeps no state: a key and a counter determine four 32-bit words, on any device, in any order and
for any number of threads. So every backend draws the same bits for a net's weights, split,
shuffles, augmentation and dropout masks, whether the net is trained alone or with others.

    key     = (seed, net)
    counter = (block, step or epoch, stream, 0)      element i is word i % 4 of block i // 4

Source: J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random numbers: as easy as
1, 2, 3", SC'11. The tests check its published known answers on every backend. kernels/philox.h and
kernels/philox.cuh are the same generator in C and CUDA.
"""

import threading

import numpy as np

# A stream for each use of random numbers. Dropout layer number i (from 0) has stream DROPOUT + i.
WEIGHTS, SPLIT, SHUFFLE, AUGMENTATION, DIGITS, BOOTSTRAP, ELASTIC = range(7)
DROPOUT = 16

_ROUNDS = 10
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_KEY_INCREMENTS = 0x9E3779B9, 0xBB67AE85
_WORD = 0xFFFFFFFF

_CHUNK = 1 << 14  # blocks computed at a time: the six 64-bit arrays of a chunk fit the L2 cache
_INDICES = np.arange(_CHUNK, dtype=np.uint64)
_scratch = threading.local()


def threshold(rate):
    """rate * 2^32, rounded: dropout keeps an element if its random word is at least this."""
    return min(round(rate * 2**32), 2**32 - 1)


def _permute(c, p, k0, k1):
    """Turn counters c (4, N), uint64 below 2^32, into random words, in place. p (2, N) is scratch.

    Ten times, with M and W the constants above, hi and lo the halves of a 64-bit product:

        c0, c1, c2, c3 = hi(M1 * c2) ^ c1 ^ k0, lo(M1 * c2), hi(M0 * c0) ^ c3 ^ k1, lo(M0 * c0)
        k0, k1 = k0 + W0, k1 + W1        modulo 2^32
    """
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
    """Four random words for each pair of a counter and a key.

    counter (N, 4) and key (N, 2), integers below 2^32. Returns (N, 4) uint32. Raises ValueError for
    other shapes or values.
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

    stream: one of those above. step: the training step or the epoch that uses the words, or 0 if
    the use depends on neither.
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
        if len(chunk) < blocks:  # only part of the last block is used
            out[whole:] = c[: len(out) - whole, -1]
    return out


def uniform(words):
    """Words as float32 in [0, 1): (word >> 8) * 2^-24, exact in float32."""
    return (words >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def draw(low, high, words):
    """Words as float32 from low to high: low + (high - low) * uniform(words).

    Product and sum are rounded separately, never by a fused multiply-add, so that every backend
    draws the same bits.
    """
    low, high = np.float32(low), np.float32(high)
    return low + (high - low) * uniform(words)


def permutation(seed, net, stream, epoch, count):
    """A random order of `count` elements, (count,) int32: the stable argsort of one word each."""
    words = random_words(seed, net, stream, epoch, np.empty(count, np.uint32))
    return np.argsort(words, kind="stable").astype(np.int32)
