"""Where a window slides: the arithmetic of strides and padding for convolution and pooling."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple


class Phase(NamedTuple):
    """One of the `stride` interleaved grids into which an axis of the input falls.

    The input positions `first, first + stride, ...` (`count` of them) are touched by the kernel's
    taps `tap, tap + stride, ...` (`taps` of them) and by no other. Their gradient is a plain
    correlation of the output gradient, from position `start` on, with these taps in reverse order.
    """

    first: int
    count: int
    tap: int
    taps: int
    start: int


@dataclass(frozen=True)
class Window:
    """A window of `size` (rows, columns) that moves by `strides` over an `input` (rows, columns).

    `before` and `after` are the zeros imagined around the input; `output` is the number of places.
    """

    size: tuple
    strides: tuple
    input: tuple
    before: tuple
    after: tuple
    output: tuple

    @classmethod
    def fit(cls, size, strides, padding, input):
        """Place the window as TensorFlow does.

        "valid" stays inside the input, which must hold it. "same" gives `ceil(input / stride)`
        places and pads by what that takes, the smaller half first: 1 before and 2 after for size 5,
        stride 2, even inputs.
        """
        rows_and_columns = zip(size, strides, input, strict=True)
        axes = [_fit_axis(*axis, padding) for axis in rows_and_columns]
        before, after, output = zip(*axes, strict=True)
        return cls(tuple(size), tuple(strides), tuple(input), before, after, output)

    @cached_property
    def phases(self):
        """The phases of the rows and those of the columns; see Phase."""
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
    # Input i meets tap k at output o where o*stride + k - before = i. With k = tap + stride*t this
    # is o = q - t for q = (i + before - tap) / stride: fixed `tap`, consecutive q, all t.
    for tap in range(stride):
        first = (tap - before) % stride
        count = -(-(length - first) // stride)
        if count <= 0:
            continue
        taps = max(-(-(size - tap) // stride), 0)
        q = (first + before - tap) // stride
        yield Phase(first, count, tap, taps, q - (taps - 1))
