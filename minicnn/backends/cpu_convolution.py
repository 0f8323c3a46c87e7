"""Convolution on a CPU: which kernels in C run, and with which arguments.

`Direct`, below, takes any convolution. cpu_winograd.py is faster where it can be used. Both have
the same methods. Shapes: x (E, B, H, W, Cin), y and dz (E, B, Ho, Wo, Cout), kernel
(E, kh, kw, Cin, Cout), bias (E, Cout); `window` is a geometry.Window. A panel is the channels of
two vectors of the CPU, for example 16 (kernels/tile.h).

Read kernels/tile.h next, then conv_direct.c, then cpu_winograd.py.
"""

from itertools import product
from math import prod
from typing import NamedTuple

import numpy as np

from ..network.geometry import Window
from .scratch import slice_workspace


class Fuses(NamedTuple):
    """What the passes of a convolution can do beside their own work: see cpu_blocks.py."""

    source: bool = False  # forward and weight_gradient read their input through a Source
    moments: bool = False  # forward writes the moments of its results
    sums: bool = False  # input_gradient writes the sums that Below asks for


class Source(NamedTuple):
    """How a convolution's input is computed from x, the activation of the block below.

    (x - mean) * scale + shift, then, unless mask is None: times keep where mask, else 0
    """

    mean: np.ndarray  # (E, Cin)
    scale: np.ndarray  # (E, Cin), gamma / sqrt(variance + epsilon)
    shift: np.ndarray  # (E, Cin)
    mask: np.ndarray | None = None  # (E, B, H, W, Cin) bool, of a dropout
    keep: float = 1.0  # 1 / (1 - rate)


class Below(NamedTuple):
    """The block below, whose gradient sums input_gradient computes.

    dx is first taken through the dropout: times keep where mask, else 0; it is stored like that.
    """

    y: np.ndarray  # (E, B, H, W, Cin), the activation before its normalisation
    mean: np.ndarray  # (E, Cin)
    mask: np.ndarray | None  # (E, B, H, W, Cin) bool
    keep: float
    sums: np.ndarray  # (E, groups, 2, Cin) float64: of dx and of dx * (y - mean) in each group


class Direct:
    """Reads the images themselves and keeps its sums in registers."""

    def __init__(self, cpu):
        self._call, self._panel = cpu.call, cpu.constant("panel_channels")

    def fuses(self, window, batch, channels, filters):
        """What the passes do beside their own work: nothing."""
        return Fuses()

    def workspace(self, nets, batch, window, channels, filters):
        """Bytes of working memory for any of the three passes."""
        taps, pixels = prod(window.size), batch * prod(window.output)
        packed = taps * channels * self._whole_panels(filters)
        packed_for_dx = taps * filters * self._whole_panels(channels)
        padded_dz = pixels * self._whole_panels(filters) if filters % self._panel else 0
        return 4 * nets * max(packed, packed_for_dx, padded_dz)

    def forward(self, x, kernel, bias, window, relu, y, workspace):
        """y = x * kernel + bias, then ReLU if `relu`."""
        (E, B), Cin, Cout = x.shape[:2], x.shape[-1], y.shape[-1]
        B, window, Cin = _as_matrices(B, window, Cin)
        (Ho, Wo), (kh, kw) = window.output, window.size
        packed = self._packed(workspace, E, kh * kw * Cin, Cout)
        self._call(
            "pack_kernel",
            kernel=kernel, columns=kw, first_row=0, row_step=1, first_column=0, column_step=1,
            transposed=False, kh=kh, kw=kw, Cin=Cin, Cout=Cout, packed=packed,
        )  # fmt: skip
        grid = {"y_image": Ho * Wo * Cout, "y_row": Wo * Cout, "y_pixel": Cout}
        s = _correlation(B, window, Cin, Cout, **grid)
        self._call("correlate", x=x, s=s, w=packed, bias=bias, relu=relu, y=y)

    def input_gradient(self, dz, kernel, window, dx, workspace):
        """dx (E, B, H, W, Cin) from dz, the gradient before the activation.

        It is a convolution of dz with the kernel rotated by 180 degrees. With strides it is one
        convolution for each phase (geometry.Phase), an interleaved grid of dx.
        """
        (E, B), Cin, Cout = dx.shape[:2], dx.shape[-1], dz.shape[-1]
        B, window, Cin = _as_matrices(B, window, Cin)
        (H, W), (sh, sw), kw = window.input, window.strides, window.size[1]
        for r, c in product(*window.phases):
            packed = self._packed(workspace, E, r.taps * c.taps * Cout, Cin)
            self._call(
                "pack_kernel",
                kernel=kernel, columns=kw, transposed=True,
                first_row=r.tap + (r.taps - 1) * sh, row_step=-sh,
                first_column=c.tap + (c.taps - 1) * sw, column_step=-sw,
                kh=r.taps, kw=c.taps, Cin=Cout, Cout=Cin, packed=packed,
            )  # fmt: skip
            phase = Window(
                size=(r.taps, c.taps),
                strides=(1, 1),
                input=window.output,
                before=(-r.start, -c.start),
                after=(0, 0),
                output=(r.count, c.count),
            )
            grid = {"y_image": H * W * Cin, "y_row": sh * W * Cin, "y_pixel": sw * Cin}
            s = _correlation(B, phase, Cout, Cin, y_first=(r.first * W + c.first) * Cin, **grid)
            self._call("correlate", x=dz, s=s, w=packed, bias=None, relu=False, y=dx)

    def weight_gradient(self, x, dz, window, dkernel, dbias, workspace):
        """dkernel and dbias from dz, the gradient before the activation."""
        (E, B), Cin, Cout = x.shape[:2], x.shape[-1], dz.shape[-1]
        wide = self._whole_panels(Cout)
        if wide != Cout:
            rows = prod(dz.shape[1:-1])
            [padded_dz] = slice_workspace(workspace, [((E, rows, wide), np.float32)])
            self._call("widen", dz, rows, Cout, padded_dz)
            dz = padded_dz
        B, window, Cin = _as_matrices(B, window, Cin)
        s = _correlation(B, window, Cin, Cout)
        self._call(
            "conv_weight_gradient", x=x, dz=dz, dz_channels=wide, s=s, dkernel=dkernel, dbias=dbias
        )

    def _packed(self, workspace, nets, rows, channels):
        """Room for a packed kernel of `rows` elements for each of `channels`."""
        [packed] = slice_workspace(
            workspace, [((nets, rows * self._whole_panels(channels)), np.float32)]
        )
        return packed

    def _whole_panels(self, channels):
        """The channels, rounded up to a multiple of a panel."""
        return -(-channels // self._panel) * self._panel


def _as_matrices(batch, window, channels):
    """(images, window, channels) of a convolution, or of an equal product of matrices.

    Where the window covers the whole image, a convolution is a product of matrices: each image
    becomes one pixel with all its elements as channels, and the batch becomes a row of such
    pixels, so that a tile holds several images.
    """
    if window.output != (1, 1) or window.size != window.input:
        return batch, window, channels
    row = Window((1, 1), (1, 1), (1, batch), (0, 0), (0, 0), (1, batch))
    return 1, row, prod(window.size) * channels


def _correlation(images, window, channels, filters, y_first=0, y_image=0, y_row=0, y_pixel=0):
    """The struct Correlation of correlation.h."""
    (H, W), (Ho, Wo) = window.input, window.output
    (kh, kw), (sh, sw), (top, left) = window.size, window.strides, window.before
    return {
        "B": images, "H": H, "W": W, "Cin": channels, "Ho": Ho, "Wo": Wo, "Cout": filters,
        "kh": kh, "kw": kw, "sh": sh, "sw": sw, "top": top, "left": left,
        "y_first": y_first, "y_image": y_image, "y_row": y_row, "y_pixel": y_pixel,
    }  # fmt: skip
