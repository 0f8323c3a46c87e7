"""Winograd convolution on a CPU: fewer multiplications for small kernels.

It computes squares of m x m outputs, m = 2, 4 or 5, from transformed images and kernels:
kernels/winograd.h explains how. It takes kernels of 2 or 3 rows and columns with stride 1, and of
3 to 5 with stride 2, where the channels are multiples of a vector (input) and of a panel (output).
`choose` picks m for each pass of a layer, or leaves the pass to `Direct`.

Batch normalisation is fused: the input is normalised while it is loaded, and sums are computed
while results are stored (cpu_blocks.py).
"""

from functools import cache
from math import prod
from typing import NamedTuple

import numpy as np

from .cpu_convolution import Below, Direct, Fuses, Source
from .scratch import slice_workspace

_SIZES = {1: (2, 4, 5), 2: (2, 4)}  # {stride: m}
_TAPS = {1: (2, 3), 2: (3, 5)}  # {stride: (fewest, most) rows and columns of a kernel}
# Costs in multiplications, fitted to 300 timed passes (AVX-512): of a value of an image that is
# transformed, of an element of a transformed kernel, and of an element of a packed one.
_TRANSFORM, _TRANSFORM_KERNEL, _PACK = 12, 20, 30
_ROUNDING = {2: 1, 4: 1, 5: 1.1}  # squares of 5 round more, so they have to save a tenth
_GROUP = 48  # squares at a time in the weight gradient, about
# The weight gradient sums several parts of the batch separately, for threads to share: at most
# _MOST_PARTS, and only as many as keep their sums within _PARTS_BYTES, for the L2 cache.
_PARTS_BYTES, _MOST_PARTS = 5 << 18, 4

_PLAIN = Source(None, None, None)
_NO_SUMS = Below(None, None, None, 1.0, None)


class _Grid(NamedTuple):
    """Where a pass reads and writes: the fields of winograd.h's struct Squares of that name."""

    outputs: tuple  # rows, columns of outputs of a phase
    x_step: int
    before: tuple  # top, left
    y_step: int
    rows: tuple  # the first row of y of the even and of the odd phase
    columns: tuple

    def squares(self, m):
        """Squares of outputs in an image."""
        return prod(-(-length // m) for length in self.outputs)


class Winograd:
    """The three passes. One that Winograd's algorithm does not fit, or not pay for, is direct.

    m: compute squares of m x m outputs, and by Winograd's algorithm wherever it fits.
    """

    def __init__(self, cpu, m=None):
        self._call, self._panel = cpu.call, cpu.constant("panel_channels")
        self._lanes, self._tile = self._panel // 2, cpu.constant("winograd_tile")
        self._scratch = cpu.constant("winograd_scratch_floats")
        self._direct, self._m = Direct(cpu), m
        self.choose = cache(self._choose)

    def fuses(self, window, batch, channels, filters):
        """What the passes do beside their own work, a Fuses."""
        forward, gradient, weights = self.choose(window, batch, channels, filters)
        return Fuses(source=bool(forward and weights), moments=bool(forward), sums=bool(gradient))

    def groups(self, window, batch, channels, filters):
        """(groups of forward, groups of input_gradient): rows of `moments`, and of Below.sums."""
        forward, gradient, _ = self.choose(window, batch, channels, filters)
        squares = (
            grid.squares(m) if m else 0
            for grid, m in ((_forward_grid(window), forward), (_gradient_grid(window), gradient))
        )
        return tuple(-(-batch * count // self._tile) for count in squares)

    def workspace(self, nets, batch, window, channels, filters):
        """Bytes of working memory for any of the three passes."""
        sizes = window, batch, channels, filters
        chosen = forward, gradient, weights = self.choose(*sizes)
        of_kernel = window.strides[0] ** 2 * channels * filters
        floats = [_places(m) * of_kernel for m in (forward, gradient) if m]
        if weights:
            floats.append(self._parts(weights, *sizes) * (_places(weights) * of_kernel + filters))
        direct = (
            0 if all(chosen) else self._direct.workspace(nets, batch, window, channels, filters)
        )
        return max(direct, 4 * nets * max(floats, default=0))

    def forward(self, x, kernel, bias, window, relu, y, workspace, source=None, moments=None):
        """y = x * kernel + bias, then ReLU if `relu`. How x is read: see Source.

        moments (E, groups, 3, Cout) float64: of each group of outputs and each channel the count,
        the mean, and the sum of squared deviations from that mean.
        """
        Cin, Cout = x.shape[-1], y.shape[-1]
        m = self.choose(window, x.shape[1], Cin, Cout)[0]
        if not m:
            assert source is None and moments is None  # as `fuses` says
            self._direct.forward(x, kernel, bias, window, relu, y, workspace)
            return
        phases, place = _phases(window), len(_phases(window)) * Cin * self._panel
        w = self._kernel_space(m, window, kernel, workspace)
        (kh, kw), (step, _) = window.size, window.strides
        for k, (p, q) in enumerate(phases):
            taps = {
                "columns": kw, "Cin": Cin, "Cout": Cout,
                "first_row": p, "row_step": step, "rows": -(-(kh - p) // step),
                "first_column": q, "column_step": step, "taps": -(-(kw - q) // step),
                "first": k * Cin * self._panel, "panel": _places(m) * place, "place": place,
            }  # fmt: skip
            self._call("winograd_kernel", kernel, m, False, taps, w)
        self._correlate(
            m, x, _forward_grid(window), w, y,
            source=source or _PLAIN, bias=bias, relu=relu, moments=moments, below=_NO_SUMS,
        )  # fmt: skip

    def input_gradient(self, dz, kernel, window, dx, workspace, below=None):
        """dx (E, B, H, W, Cin) from dz, the gradient before the activation; see Below.

        It is a convolution of dz with the kernel rotated by 180 degrees, for each phase of dx.
        """
        Cin, Cout = dx.shape[-1], dz.shape[-1]
        m = self.choose(window, dz.shape[1], Cin, Cout)[1]
        if not m:
            assert below is None
            self._direct.input_gradient(dz, kernel, window, dx, workspace)
            return
        w = self._kernel_space(m, window, kernel, workspace)
        (rows, columns), step, place = window.phases, window.strides[0], Cout * self._panel
        for k, (p, q) in enumerate(_phases(window)):
            r, c = rows[p], columns[q]
            taps = {
                "columns": window.size[1], "Cin": Cout, "Cout": Cin,
                "first_row": r.tap + (r.taps - 1) * step, "row_step": -step, "rows": r.taps,
                "first_column": c.tap + (c.taps - 1) * step, "column_step": -step, "taps": c.taps,
                "first": k * _places(m) * Cin * Cout, "panel": _places(m) * place, "place": place,
            }  # fmt: skip
            self._call("winograd_kernel", kernel, m, True, taps, w)
        self._correlate(
            m, dz, _gradient_grid(window), w, dx,
            source=_PLAIN, bias=None, relu=False, moments=None, below=below or _NO_SUMS,
        )  # fmt: skip

    def weight_gradient(self, x, dz, window, dkernel, dbias, workspace, source=None):
        """dkernel and dbias from dz, the gradient before the activation; x is read as `source`."""
        B, Cin, Cout = x.shape[1], x.shape[-1], dz.shape[-1]
        m = self.choose(window, B, Cin, Cout)[2]
        if not m:
            assert source is None
            self._direct.weight_gradient(x, dz, window, dkernel, dbias, workspace)
            return
        grid, parts = _forward_grid(window), self._parts(m, window, B, Cin, Cout)
        part, source = _places(m) * grid.x_step**2 * Cin * Cout + Cout, source or _PLAIN
        [sums] = slice_workspace(workspace, [((len(x), parts * part), np.float32)])
        self._call(
            "winograd_weight_gradient",
            x=x, dz=dz, m=m, s=_squares(x, dz, grid), kh=window.size[0], kw=window.size[1],
            parts=parts, group=self._group(m, Cout), source_mean=source.mean,
            source_scale=source.scale, source_shift=source.shift, source_mask=source.mask,
            source_keep=source.keep, sums=sums, dkernel=dkernel, dbias=dbias,
        )  # fmt: skip

    # ---- choices -----------------------------------------------------------------------------

    def _choose(self, window, batch, channels, filters):
        """m for forward, input gradient and weight gradient; 0: `Direct` is as fast, or must be.

        `choose` keeps its results.
        """
        if not _is_supported(window):
            return 0, 0, 0
        sizes = batch, channels, filters
        passes = (
            (_forward_grid(window), channels, filters, self._fits),
            (_gradient_grid(window), filters, channels, self._fits),
            (_forward_grid(window), channels, filters, self._fits_gradient),
        )
        chosen = []
        for grid, Cin, Cout, fits in passes:
            costs = {
                _ROUNDING[m] * _cost(m, grid, window, *sizes): m
                for m in _SIZES[window.strides[0]]
                if self._m in (None, m)
                and Cin % self._lanes == 0
                and Cout % self._panel == 0
                and fits(m, grid, Cin, Cout)
            }
            direct = (batch * prod(window.output) + _PACK) * prod(window.size) * channels * filters
            pays = costs and (self._m or min(costs) < direct)
            chosen.append(costs[min(costs)] if pays else 0)
        return tuple(chosen)

    def _fits(self, m, grid, Cin, Cout):
        """Whether a tile of squares and its products fit a thread's working memory."""
        terms = grid.x_step**2 * Cin
        return _places(m) * self._tile * (terms + self._panel) <= self._scratch

    def _fits_gradient(self, m, grid, Cin, Cout):
        return self._group(m, Cout) > 0

    def _group(self, m, Cout):
        """Squares at a time in the weight gradient: whole tiles; 0 if not even one fits."""
        most = self._scratch // (_places(m) * (self._lanes + Cout))
        return min(_GROUP, most) // self._tile * self._tile

    def _parts(self, m, window, batch, channels, filters):
        """Parts of the batch in the weight gradient."""
        part = 4 * _places(m) * window.strides[0] ** 2 * channels * filters
        return min(max(_PARTS_BYTES // part, 1), _MOST_PARTS, batch)

    # ---- calls -------------------------------------------------------------------------------

    def _kernel_space(self, m, window, kernel, workspace):
        size = _places(m) * len(_phases(window)) * prod(kernel.shape[-2:])
        [w] = slice_workspace(workspace, [((len(kernel), size), np.float32)])
        return w

    def _correlate(self, m, x, grid, w, y, source, bias, relu, moments, below):
        self._call(
            "winograd_correlate",
            x=x, m=m, s=_squares(x, y, grid), w=w, source_mean=source.mean,
            source_scale=source.scale, source_shift=source.shift, source_mask=source.mask,
            source_keep=source.keep, bias=bias, relu=relu, moments=moments, below=below.y,
            below_mean=below.mean, below_mask=below.mask, below_keep=below.keep, sums=below.sums,
            y=y,
        )  # fmt: skip


def _is_supported(window):
    """Whether the algorithm computes a window."""
    step, other = window.strides
    fewest, most = _TAPS.get(step, (0, 0))
    return (
        step == other
        and all(fewest <= taps <= most for taps in window.size)
        and all(len(phases) == step for phases in window.phases)
    )


def _places(m):
    """Places of a transformed square."""
    return (m + 2) ** 2


def _phases(window):
    """The phases (row, column) of the kernel's taps, in the order of winograd.h."""
    return ((0, 0),) if window.strides == (1, 1) else ((1, 0), (0, 0), (0, 1), (1, 1))


def multiplications(window, batch, channels, filters, chosen):
    """The multiplications of the three passes of a layer, with the m of `chosen`."""
    direct = batch * prod(window.output) * prod(window.size) * channels * filters
    forward = _forward_grid(window)  # where nothing is chosen, there may be no other grid
    grids = forward, _gradient_grid(window) if any(chosen) else None, forward
    return [
        batch * grid.squares(m) * _slots(m, window) * channels * filters if m else direct
        for grid, m in zip(grids, chosen, strict=True)
    ]


def _slots(m, window):
    """Places times phases, less those that a phase of odd rows or columns does not have."""
    return _places(m) if len(_phases(window)) == 1 else (2 * (m + 2) - 1) ** 2


def _cost(m, grid, window, batch, channels, filters):
    """What a pass costs, in multiplications; the three passes of a layer differ in the squares."""
    slots, phases = _slots(m, window), len(_phases(window))
    square = slots * channels * filters
    square += _TRANSFORM * (slots * channels + _places(m) * filters)
    of_kernel = _TRANSFORM_KERNEL * _places(m) * phases * channels * filters
    return batch * grid.squares(m) * square + of_kernel


def _forward_grid(window):
    return _Grid(window.output, window.strides[0], window.before, 1, (0, 0), (0, 0))


def _gradient_grid(window):
    """The phases of an axis start to read dz at different rows. Here they all start at the first of
    these, and the others have their outputs later.
    """
    step, starts = window.strides[0], [min(p.start for p in axis) for axis in window.phases]
    axes = list(zip(window.phases, starts, strict=True))
    outputs = tuple(max(p.count + p.start - start for p in axis) for axis, start in axes)
    rows, columns = (
        tuple(p.first - step * (p.start - start) for p in axis) for axis, start in axes
    )
    return _Grid(outputs, 1, tuple(-start for start in starts), step, rows, columns)


def _squares(x, y, grid):
    """The struct Squares of winograd.h for x (E, B, H, W, Cin) and y (E, B, Ho, Wo, Cout)."""
    (_, B, H, W, Cin), (_, _, Ho, Wo, Cout) = x.shape, y.shape
    return {
        "B": B, "H": H, "W": W, "Cin": Cin, "Ho": Ho, "Wo": Wo, "Cout": Cout,
        "rows": grid.outputs[0], "columns": grid.outputs[1],
        "x_step": grid.x_step, "top": grid.before[0], "left": grid.before[1],
        "y_step": grid.y_step, "row_0": grid.rows[0], "row_1": grid.rows[-1],
        "column_0": grid.columns[0], "column_1": grid.columns[-1],
    }  # fmt: skip
