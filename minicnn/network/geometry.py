"""Sliding windows: the arithmetic of strides and padding for convolution and pooling.

A window of kh x kw taps is placed at Ho x Wo output positions. Along each axis, the tap k of output
position o lies at input position o * stride + k - before.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple


class Phase(NamedTuple):
    """One of the interleaved grids, `stride` at most, into which an axis of the input is split.

    The input positions first, first + stride, ... (`count` of them) are used by the kernel's taps
    tap, tap + stride, ... (`taps` of them) only. So the gradient with respect to these positions is
    a convolution of stride 1 over the output gradient dy, with these taps in reverse order:

        for n in range(count):
            dx[first + stride*n] = sum of dy[start + n + t] * kernel[tap + stride*(taps - 1 - t)]
                                   for t in range(taps), where dy is 0 outside its bounds
    """

    first: int
    count: int
    tap: int
    taps: int
    start: int


@dataclass(frozen=True)
class Window:
    """A window that slides over an image. Every field is a pair (rows, columns).

    size: kh, kw; strides; input: H, W; before, after: the padding on either side of the input;
    output: Ho, Wo, the number of positions of the window.
    """

    size: tuple
    strides: tuple
    input: tuple
    before: tuple
    after: tuple
    output: tuple

    @classmethod
    def fit(cls, size, strides, padding, input):
        """A Window with padding "valid" or "same", as TensorFlow defines them. For each axis:

            valid:  output = (input - size) // stride + 1, no padding; size must not exceed input
            same:   output = ceil(input / stride)
                    before + after = max((output - 1) * stride + size - input, 0)

        The smaller half of the padding comes first: 1 before and 2 after for size 5, stride 2 and
        an even input.
        """
        rows_and_columns = zip(size, strides, input, strict=True)
        axes = [_fit_axis(*axis, padding) for axis in rows_and_columns]
        before, after, output = zip(*axes, strict=True)
        return cls(tuple(size), tuple(strides), tuple(input), before, after, output)

    @cached_property
    def phases(self):
        """(phases of the rows, phases of the columns), tuples of Phase."""
        return tuple(
            tuple(_phases(*axis))
            for axis in zip(self.size, self.strides, self.input, self.before, strict=True)
        )


def _fit_axis(size, stride, length, padding):
    if padding == "same":
        output = -(-length // stride)
        total = max((output - 1) * stride + size - length, 0)
        return total // 2, total - total // 2, output
    return 0, 0, (length - size) // stride + 1


def _phases(size, stride, length, before):
    # Output o uses input i with tap k if o*stride + k - before = i. With k = tap + stride*t this is
    # o = q - t, where q = (i + before - tap) / stride. `q` below is that of the first input.
    for tap in range(stride):
        first = (tap - before) % stride
        count = -(-(length - first) // stride)
        if count <= 0:
            continue
        taps = max(-(-(size - tap) // stride), 0)
        q = (first + before - tap) // stride
        yield Phase(first, count, tap, taps, q - (taps - 1))
