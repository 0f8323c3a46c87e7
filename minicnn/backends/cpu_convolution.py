"""Two ways to convolve on a CPU, and dense layers: which kernels in C are called, and for what.

`Direct` is the one to read first, and takes any convolution; `Winograd` is faster for 3 x 3 by
stride 1, with as many channels as vectors like, and leaves the rest to `Direct`. Both take x
(E, B, H, W, C), y and dz (E, B, Ho, Wo, N), kernel (E, kh, kw, C, N) and a geometry.Window.

Read kernels/tile.h next, then conv_direct.c, then conv_winograd.c.
"""

from itertools import product
from math import prod

import numpy as np

from ..network.geometry import Window
from .scratch import slice_workspace


class Direct:
    """Sums that stay in registers while images and kernels stream by."""

    def __init__(self, cpu):
        self._call, self._panel = cpu.call, cpu.constant("panel_channels")

    def workspace(self, nets, batch, window, channels, filters):
        """Bytes that a pass needs beside its results."""
        taps, pixels = prod(window.size), batch * prod(window.output)
        packed = taps * channels * self._whole_panels(filters)
        turned = taps * filters * self._whole_panels(channels)
        widened = pixels * self._whole_panels(filters) if filters % self._panel else 0
        return 4 * nets * max(packed, turned, widened)

    def forward(self, x, kernel, bias, window, relu, y, workspace):
        """y = x * kernel + bias, and relu of that if asked for."""
        (E, B), C, N = x.shape[:2], x.shape[-1], y.shape[-1]
        B, window, C = _flat(B, window, C)
        (Ho, Wo), (kh, kw) = window.output, window.size
        packed = self._packed(workspace, E, kh * kw * C, N)
        taps = kw, 0, 1, 0, 1, False, kh, kw
        self._call("pack_kernel", kernel, *taps, C, N, packed)
        s = _correlation(B, window, C, N, y_image=Ho * Wo * N, y_row=Wo * N, y_pixel=N)
        self._call("correlate", x, s, packed, bias, relu, y)

    def input_gradient(self, dz, kernel, window, dx, workspace):
        """The gradient by x from dz, the one by y before the activation.

        It is a convolution of dz with the kernel turned round; with strides several of them
        (geometry.Phase), each for one of the interleaved grids into which dx falls.
        """
        (E, B), C, N = dx.shape[:2], dx.shape[-1], dz.shape[-1]
        B, window, C = _flat(B, window, C)
        (H, W), (sh, sw), columns = window.input, window.strides, window.size[1]
        for r, c in product(*window.phases):
            packed = self._packed(workspace, E, r.taps * c.taps * N, C)
            last_row, last_column = r.tap + (r.taps - 1) * sh, c.tap + (c.taps - 1) * sw
            taps = columns, last_row, -sh, last_column, -sw, True, r.taps, c.taps
            self._call("pack_kernel", kernel, *taps, N, C, packed)
            phase = Window(
                size=(r.taps, c.taps),
                strides=(1, 1),
                input=window.output,
                before=(-r.start, -c.start),
                after=(0, 0),
                output=(r.count, c.count),
            )
            grid = {"y_image": H * W * C, "y_row": sh * W * C, "y_pixel": sw * C}
            s = _correlation(B, phase, N, C, y_first=(r.first * W + c.first) * C, **grid)
            self._call("correlate", dz, s, packed, None, False, dx)

    def weight_gradient(self, x, dz, window, dkernel, dbias, workspace):
        """The gradients by kernel and bias."""
        (E, B), C, N = x.shape[:2], x.shape[-1], dz.shape[-1]
        wide = self._whole_panels(N)
        if wide != N:
            rows = prod(dz.shape[1:-1])
            [widened] = slice_workspace(workspace, [((E, rows, wide), np.float32)])
            self._call("widen", dz, rows, N, widened)
            dz = widened
        B, window, C = _flat(B, window, C)
        s = _correlation(B, window, C, N)
        self._call("conv_weight_gradient", x, dz, wide, s, dkernel, dbias)

    def _packed(self, workspace, nets, numbers, channels):
        [packed] = slice_workspace(
            workspace, [((nets, numbers * self._whole_panels(channels)), np.float32)]
        )
        return packed

    def _whole_panels(self, channels):
        return -(-channels // self._panel) * self._panel


class Winograd:
    """16 multiplications in place of 36 where the window is 3 x 3 and moves by 1."""

    def __init__(self, cpu):
        self._call, self._panel = cpu.call, cpu.constant("panel_channels")
        self._most_channels = cpu.constant("winograd_most_channels")
        self._parts = cpu.constant("winograd_gradient_parts")
        self._squares = cpu.constant("winograd_gradient_squares")
        self._direct = Direct(cpu)

    def _fits(self, window, channels, filters):
        """Whether a layer is one for this algorithm: it is for all passes, or for none."""
        return (
            (window.size, window.strides) == ((3, 3), (1, 1))
            and min(window.output) >= _LEAST_RESULTS
            and all(c % self._panel == 0 and c <= self._most_channels for c in (channels, filters))
        )

    def workspace(self, nets, batch, window, channels, filters):
        """Bytes that a pass needs beside its results."""
        if not self._fits(window, channels, filters):
            return self._direct.workspace(nets, batch, window, channels, filters)
        return 4 * nets * max(_PLACES * channels * filters, self._scratch(channels, filters))

    def _scratch(self, channels, filters):
        """Numbers that the gradient by the kernel needs: sums, and squares in transformation."""
        sums = _PLACES * channels * filters + filters
        return self._parts * (sums + _PLACES * self._squares * (channels + filters))

    def forward(self, x, kernel, bias, window, relu, y, workspace):
        """y = x * kernel + bias, and relu of that if asked for."""
        if not self._fits(window, x.shape[-1], y.shape[-1]):
            self._direct.forward(x, kernel, bias, window, relu, y, workspace)
            return
        self._correlate(x, kernel, False, bias, window.before, relu, y, workspace)

    def input_gradient(self, dz, kernel, window, dx, workspace):
        """The gradient by x from dz, the one by y before the activation."""
        if not self._fits(window, dx.shape[-1], dz.shape[-1]):
            self._direct.input_gradient(dz, kernel, window, dx, workspace)
            return
        (row,), (column,) = window.phases
        before = -row.start, -column.start
        self._correlate(dz, kernel, True, None, before, False, dx, workspace)

    def _correlate(self, x, kernel, turned, bias, before, relu, y, workspace):
        E, C, N = len(x), x.shape[-1], y.shape[-1]
        [transformed] = slice_workspace(workspace, [((E, _PLACES * C * N), np.float32)])
        self._call("winograd_kernel", kernel, turned, C, N, transformed)
        s = _squares(x, y, before)
        self._call("winograd_correlate", x, s, transformed, bias, relu, y)

    def weight_gradient(self, x, dz, window, dkernel, dbias, workspace):
        """The gradients by kernel and bias."""
        C, N = x.shape[-1], dz.shape[-1]
        if not self._fits(window, C, N):
            self._direct.weight_gradient(x, dz, window, dkernel, dbias, workspace)
            return
        [scratch] = slice_workspace(workspace, [((len(x), self._scratch(C, N)), np.float32)])
        s = _squares(x, dz, window.before)
        self._call("winograd_weight_gradient", x, dz, s, scratch, dkernel, dbias)


VERSIONS = {"direct": Direct, "winograd": Winograd}
_PLACES = 16  # of a transformed square: conv_winograd.c's
_LEAST_RESULTS = 4  # in a row or column: squares of few are hardly fewer multiplications


def _flat(batch, window, channels):
    """(images, window, channels) of a convolution; the same, seen as a product of matrices.

    Where a window fits its image but once, an image is one long pixel: a whole batch then is a row
    of these, and a kernel's tile many of them.
    """
    if window.output != (1, 1) or window.size != window.input:
        return batch, window, channels
    row = Window((1, 1), (1, 1), (1, batch), (0, 0), (0, 0), (1, batch))
    return 1, row, prod(window.size) * channels


def _correlation(images, window, channels, filters, y_first=0, y_image=0, y_row=0, y_pixel=0):
    """conv_direct.c's struct."""
    (H, W), (Ho, Wo) = window.input, window.output
    (kh, kw), (sh, sw), (top, left) = window.size, window.strides, window.before
    return {
        "B": images, "H": H, "W": W, "C": channels, "Ho": Ho, "Wo": Wo, "N": filters,
        "kh": kh, "kw": kw, "sh": sh, "sw": sw, "top": top, "left": left,
        "y_first": y_first, "y_image": y_image, "y_row": y_row, "y_pixel": y_pixel,
    }  # fmt: skip


def _squares(x, y, before):
    """conv_winograd.c's struct, for x (E, B, H, W, C) and y (E, B, Ho, Wo, N)."""
    (_, B, H, W, C), (_, _, Ho, Wo, N), (top, left) = x.shape, y.shape, before
    return {
        "B": B, "H": H, "W": W, "C": C, "Ho": Ho, "Wo": Wo, "N": N, "top": top, "left": left
    }  # fmt: skip
