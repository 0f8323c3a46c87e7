"""Float32 values rounded to bfloat16 or float16, in place, and counts of what that does to them.

Results stay in float32 arrays: each is the nearest value that the format has, of two equally near
ones the even one. `Format` says what a format has, `Rounder` rounds the values of a training.
"""

from collections import Counter
from dataclasses import dataclass
from math import frexp

import numpy as np

_CHUNK = 1 << 15  # elements at a time: their temporary arrays fit the second-level cache
_EXPONENT, _SIGN = np.uint32(0x7F800000), np.uint32(0x80000000)
_NAN = np.uint32(0x7FC00000)


@dataclass(frozen=True)
class Format:
    """A format's name, bits of its mantissa, smallest normal value, and the least that overflows.

    Values of at least `overflow`, which lies half a step above the largest one, become infinite.
    """

    name: str
    mantissa: int
    smallest: float
    overflow: float


FORMATS = {
    f.name: f
    for f in (
        Format("float32", 23, 2.0**-126, float("inf")),
        Format("bfloat16", 7, 2.0**-126, (2 - 2.0**-8) * 2.0**127),
        Format("float16", 10, 2.0**-14, 65520.0),
    )
}


def round_to(name, x, scale=1.0):
    """Round x, a contiguous float32 array, in place to the format of this name.

    scale: a power of two; values are multiplied by it before, and divided after. It only matters
    for float16, whose exponents are few. Returns the number of finite values that became infinite.
    Raises ValueError for other arrays and scales.
    """
    if x.dtype != np.float32 or not x.flags.c_contiguous:
        raise ValueError(f"x: got {x.dtype}, strides {x.strides}; expected contiguous float32")
    if frexp(scale)[0] != 0.5:
        raise ValueError(f"scale: got {scale}, expected a power of two")
    if name == "float32":
        return 0
    flat, overflows = x.reshape(-1), 0
    with np.errstate(over="ignore", invalid="ignore"):
        for first in range(0, len(flat), _CHUNK):
            part = flat[first : first + _CHUNK]
            if name == "bfloat16":
                overflows += _to_bfloat16(part)
            else:
                overflows += _to_float16(part, scale)
    return overflows


def _to_bfloat16(x):
    """The upper 16 bits, after adding half of their last place, or a bit less if that is even."""
    bits, highest, lowest = x.view(np.uint32), x.max(), x.min()
    # NaN in x makes these NaN, and the comparison false.
    limit = np.float32(FORMATS["bfloat16"].overflow)
    special = not (highest < limit and lowest > -limit)
    nan = np.isnan(x) if special else None
    infinite = np.isinf(x).sum() if special else 0
    more = bits >> np.uint32(16)
    more &= np.uint32(1)
    more += np.uint32(0x7FFF)
    if special:
        more[nan] = 0  # a carry would change the exponent
    bits += more
    bits &= np.uint32(0xFFFF0000)
    if not special:
        return 0
    bits[nan] = _NAN
    return int(np.isinf(x).sum() - infinite)


def _to_float16(x, scale):
    """x + big - big, where a step between floats near `big` is one of float16 near x.

    The same trick rounds to an integer: x + 1.5 * 2^23 - 1.5 * 2^23.
    """
    f, bits = FORMATS["float16"], x.view(np.uint32)
    big = bits & _EXPONENT  # 2^e of x = +-2^e * 1.f
    if big.max() >= _bits(2.0**15 / scale):  # may overflow
        return _to_float16_by_cast(x, scale)
    np.maximum(big, _bits(f.smallest / scale), out=big)  # below it steps get no smaller
    big = big.view(np.float32)
    big *= np.float32(1.5 * 2.0 ** (23 - f.mantissa))
    sign = bits & _SIGN
    x += big
    x -= big
    bits |= sign  # of results of zero
    return 0


def _bits(value):
    return np.float32(value).view(np.uint32)


def _to_float16_by_cast(x, scale):
    """The same for any values, infinite and NaN too; five times as slow."""
    infinite = np.isinf(x).sum()
    x *= np.float32(scale)
    x[...] = x.astype(np.float16)
    x /= np.float32(scale)
    return int(np.isinf(x).sum() - infinite)


class Rounder:
    """Rounds the values of a training to a format; `counts` has what happened, for each kind.

    scales: {kind: power of two} where it is not 1. In every `every`-th step it counts, for each
    kind, the elements that are not 0, those of them that became 0 ("zero") and that became
    subnormal, and finds the largest magnitude, times the scale. Values that overflow are counted in
    all steps.
    """

    def __init__(self, name, scales, every=1):
        self.format, self._scales, self._every = FORMATS[name], scales, every
        self.counts = {}

    def __call__(self, kind, x, step):
        """Round x (E, ...) in place; step (1,) is the number of the step."""
        found = self.counts.setdefault(kind, Counter())
        scale = self._scales.get(kind, 1.0)
        counted = step[0] % self._every == 0
        if counted:
            size = np.abs(x)
            found["elements"] += int(np.count_nonzero(size))
            found["largest"] = max(found["largest"], float(size.max()) * scale)
        found["overflows"] += round_to(self.format.name, x, scale)
        if counted:
            rounded = np.abs(x)
            found["zero"] += int(np.count_nonzero(size) - np.count_nonzero(rounded))
            small = (rounded > 0) & (rounded < self.format.smallest / scale)
            found["subnormal"] += int(np.count_nonzero(small))
