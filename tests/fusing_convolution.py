"""A convolution in C that fuses what a test asks for, in NumPy. Tests of blocks use it."""

import numpy as np

from minicnn.backends.cpu_convolution import Fuses


class FusingConvolution:
    """The convolution of ops_cpu.Operations `ops`, with every combination of Fuses.

    fuses: three bools, those of the Fuses of each layer.
    """

    def __init__(self, ops, fuses):
        self._plain, self._python, self._fuses = ops.convolution, ops.cpu.python, Fuses(*fuses)

    def fuses(self, window, batch, channels, filters):
        return self._fuses

    def groups(self, window, batch, channels, filters):
        return 3, 2

    def workspace(self, nets, batch, window, channels, filters):
        return self._plain.workspace(nets, batch, window, channels, filters)

    def forward(self, x, kernel, bias, window, relu, y, workspace, source=None, moments=None):
        assert (source is None or self._fuses.source) and (moments is None or self._fuses.moments)

        def compute():
            self._plain.forward(_read(x, source), kernel, bias, window, relu, y, workspace)
            if moments is not None:
                for e, rows in enumerate(_rows(y)):
                    for to, group in zip(moments[e], np.array_split(rows, 3), strict=True):
                        to[0], to[1] = len(group), group.mean(axis=0)
                        to[2] = ((group - to[1]) ** 2).sum(axis=0)

        self._python(compute)

    def weight_gradient(self, x, dz, window, dkernel, dbias, workspace, source=None):
        assert source is None or self._fuses.source

        def compute():
            x_read = _read(x, source)
            self._plain.weight_gradient(x_read, dz, window, dkernel, dbias, workspace)

        self._python(compute)

    def input_gradient(self, dz, kernel, window, dx, workspace, below=None):
        assert below is None or self._fuses.sums

        def compute():
            self._plain.input_gradient(dz, kernel, window, dx, workspace)
            if below is None:
                return
            if below.mask is not None:
                dx[...] = np.where(below.mask, dx * np.float32(below.keep), 0)
            centered = _rows(below.y) - below.mean[:, None].astype(np.float64)
            gradients = _rows(dx)
            for e in range(len(dx)):
                for to, g, d in zip(
                    below.sums[e],
                    np.array_split(gradients[e], 2),
                    np.array_split(centered[e], 2),
                    strict=True,
                ):
                    to[:] = g.sum(axis=0), (g * d).sum(axis=0)

        self._python(compute)


def _rows(x):
    """x (E, ..., C) as (E, rows, C), in float64."""
    return x.reshape(len(x), -1, x.shape[-1]).astype(np.float64)


def _read(x, source):
    """The input that a convolution computes from x."""
    if source is None:
        return x
    mean, scale, shift = (a[:, None, None, None] for a in source[:3])
    read = (x - mean) * scale + shift
    if source.mask is not None:
        read = np.where(source.mask, read * np.float32(source.keep), np.float32(0))
    return read
