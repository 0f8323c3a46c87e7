"""Two ways to convolve on a CPU: which kernels in C run, and with which arguments.

Read `Direct` first; it takes any convolution. `Winograd` is faster for 3 x 3 kernels with stride 1
and whole panels of channels, and leaves the others to `Direct`. A panel is the channels of two
vectors of the CPU, for example 16 (kernels/tile.h). Shapes: x (E, B, H, W, Cin), y and
dz (E, B, Ho, Wo, Cout), kernel (E, kh, kw, Cin, Cout), bias (E, Cout); `window` is a
geometry.Window.

Read kernels/tile.h next, then conv_direct.c, then conv_winograd.c.
"""

from itertools import product
from math import prod
from typing import NamedTuple

import numpy as np

from ..network.geometry import Window
from .scratch import slice_workspace


class Direct:
    """Reads the images themselves and keeps its sums in registers."""

    def __init__(self, cpu):
        self._call, self._panel = cpu.call, cpu.constant("panel_channels")

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


class Source(NamedTuple):
    """How an input is read: normalised, then dropped."""

    mean: object
    scale: object
    shift: object
    mask: object = None
    keep: float = 1.0


class Below(NamedTuple):
    y: object
    mean: object
    mask: object
    keep: float
    sums: object


class Winograd:
    """Fewer multiplications for kernels of 3 x 3 with stride 1, and of up to 5 x 5 with stride 2.

    It computes squares of m x m outputs. `_size` chooses m for a pass, or leaves it to `Direct`.
    """

    sizes = {}

    def __init__(self, cpu):
        self._call, self._panel = cpu.call, cpu.constant("panel_channels")
        self._tile = cpu.constant("winograd_tile")
        self._direct = Direct(cpu)

    def _size(self, what, window, channels, filters):
        if channels % self._panel or filters % self._panel:
            return None
        if (window.size, window.strides) not in (((3, 3), (1, 1)), ((5, 5), (2, 2))):
            return None
        return self.sizes.get(what, 4)

    def workspace(self, nets, batch, window, channels, filters):
        """Bytes of working memory for any of the three passes."""
        direct = self._direct.workspace(nets, batch, window, channels, filters)
        return max(direct, 4 * nets * 8*(196 * channels * filters + filters))

    def forward(self, x, kernel, bias, window, relu, y, workspace, source=None, moments=None):
        """y = x * kernel + bias, then ReLU if `relu`."""
        Cin, Cout = x.shape[-1], y.shape[-1]
        m = self._size("forward", window, Cin, Cout)
        if m is None:
            self._direct.forward(x, kernel, bias, window, relu, y, workspace)
            return
        (kh, kw), (step, _), (top, left) = window.size, window.strides, window.before
        places, phases = (m + 2) ** 2, _phases(step)
        [w] = slice_workspace(
            workspace, [((len(x), places * len(phases) * Cin * Cout), np.float32)]
        )
        for k, (p, q) in enumerate(phases):
            place = len(phases) * Cin * self._panel
            taps = {
                "columns": kw, "Cin": Cin, "Cout": Cout,
                "first_row": p, "row_step": step, "rows": -(-(kh - p) // step),
                "first_column": q, "column_step": step, "taps": -(-(kw - q) // step),
                "first": k * Cin * self._panel, "panel": places * place, "place": place,
            }
            self._call("winograd_kernel", kernel, m, False, taps, w)
        s = _squares(x, y, window.output, step, (top, left), 1, (0, 0), (0, 0))
        self._correlate(m, x, s, w, source, bias, relu, moments, None, y)

    def input_gradient(self, dz, kernel, window, dx, workspace, below=None):
        """dx (E, B, H, W, Cin) from dz, the gradient before the activation."""
        Cin, Cout = dx.shape[-1], dz.shape[-1]
        m = self._size("input_gradient", window, Cin, Cout)
        if m is None:
            self._direct.input_gradient(dz, kernel, window, dx, workspace)
            return
        (kh, kw), (step, _) = window.size, window.strides
        starts = [min(phase.start for phase in axis) for axis in window.phases]
        firsts = [[p.first - step * (p.start - start) for p in axis] for axis, start in zip(window.phases, starts)]
        counts = [max(p.count + p.start - start for p in axis) for axis, start in zip(window.phases, starts)]
        places, phases = (m + 2) ** 2, _phases(step)
        [w] = slice_workspace(
            workspace, [((len(dz), places * len(phases) * Cin * Cout), np.float32)]
        )
        rows, columns = window.phases
        for k, (p, q) in enumerate(phases):
            r, c = rows[p], columns[q]
            place = Cout * self._panel
            taps = {
                "columns": kw, "Cin": Cout, "Cout": Cin,
                "first_row": r.tap + (r.taps - 1) * step, "row_step": -step, "rows": r.taps,
                "first_column": c.tap + (c.taps - 1) * step, "column_step": -step, "taps": c.taps,
                "first": k * places * Cin * Cout, "panel": places * place, "place": place,
            }
            self._call("winograd_kernel", kernel, m, True, taps, w)
        s = _squares(dz, dx, counts, 1, [-start for start in starts], step, *firsts)
        self._correlate(m, dz, s, w, None, None, False, None, below, dx)

    def _correlate(self, m, x, s, w, source, bias, relu, moments, below, y):
        source = source or Source(None, None, None)
        below = below or Below(None, None, None, 1.0, None)
        self._call(
            "winograd_correlate", x=x, m=m, s=s, w=w, source_mean=source.mean,
            source_scale=source.scale, source_shift=source.shift, source_mask=source.mask,
            source_keep=source.keep, bias=bias, relu=relu, moments=moments, below=below.y,
            below_mean=below.mean, below_mask=below.mask, below_keep=below.keep, sums=below.sums,
            y=y,
        )

    def weight_gradient(self, x, dz, window, dkernel, dbias, workspace, source=None):
        """dkernel and dbias from dz, the gradient before the activation."""
        Cin, Cout = x.shape[-1], dz.shape[-1]
        m = self._size("weight_gradient", window, Cin, Cout)
        if m is None:
            self._direct.weight_gradient(x, dz, window, dkernel, dbias, workspace)
            return
        source = source or Source(None, None, None)
        step, _ = window.strides
        parts, group = self.parts, self.group
        size = parts * ((m + 2) ** 2 * step**2 * Cin * Cout + Cout)
        [sums] = slice_workspace(workspace, [((len(x), size), np.float32)])
        s = _squares(x, dz, window.output, step, window.before, 1, (0, 0), (0, 0))
        self._call(
            "winograd_weight_gradient", x=x, dz=dz, m=m, s=s, kh=window.size[0], kw=window.size[1],
            parts=parts, group=group, source_mean=source.mean, source_scale=source.scale,
            source_shift=source.shift, source_mask=source.mask, source_keep=source.keep,
            sums=sums, dkernel=dkernel, dbias=dbias,
        )

    parts, group = 2, 24


def _phases(step):
    return [(0, 0)] if step == 1 else [(1, 0), (0, 0), (0, 1), (1, 1)]


VERSIONS = {"direct": Direct, "winograd": Winograd}
_PLACES = 16  # of a transformed square, as in conv_winograd.c
_LEAST_OUTPUTS = 4  # rows and columns: with fewer, Winograd saves few multiplications


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
    """The struct Correlation of conv_direct.c."""
    (H, W), (Ho, Wo) = window.input, window.output
    (kh, kw), (sh, sw), (top, left) = window.size, window.strides, window.before
    return {
        "B": images, "H": H, "W": W, "Cin": channels, "Ho": Ho, "Wo": Wo, "Cout": filters,
        "kh": kh, "kw": kw, "sh": sh, "sw": sw, "top": top, "left": left,
        "y_first": y_first, "y_image": y_image, "y_row": y_row, "y_pixel": y_pixel,
    }  # fmt: skip


def _squares(x, y, outputs, x_step, before, y_step, rows, columns):
    """The struct Squares of winograd.h."""
    (_, B, H, W, Cin), (_, _, Ho, Wo, Cout) = x.shape, y.shape
    return {
        "B": B, "H": H, "W": W, "Cin": Cin, "Ho": Ho, "Wo": Wo, "Cout": Cout,
        "rows": outputs[0], "columns": outputs[1], "x_step": x_step, "top": before[0],
        "left": before[1], "y_step": y_step, "row_0": rows[0], "row_1": rows[-1],
        "column_0": columns[0], "column_1": columns[-1],
    }  # fmt: skip
