"""Three ways to launch a convolution, and dense layers: which kernels, how many blocks.

`Naive` is the one to read first, `Im2col` what textbooks and NumPy do, `Implicit` what is used. All
take x (E, B, H, W, C), y and dz (E, B, Ho, Wo, N), kernel (E, kh, kw, C, N) and a geometry.Window;
`activation` is activation.cuh's number. Tiles and splits depend on the layer and the batch alone,
so that a net's bits do not depend on the others.

Read kernels/conv_naive.cu next, then conv_im2col.cu and gemm.cuh, then conv_implicit.cu.
"""

from math import prod
from typing import NamedTuple

import numpy as np

_THREADS = 256  # of a block, where a thread makes one number


class _Tile(NamedTuple):
    """What a block makes of a product; gemm.cuh has the same two."""

    name: str
    rows: int
    columns: int
    threads: int = 128  # each makes 8 x 4 numbers


_NARROW, _SQUARE = _Tile("narrow", 128, 32), _Tile("square", 64, 64)
# Pixels whose products a block adds up for a weight's gradient: few enough for sums in float32, and
# for many blocks; enough for the parts to be small beside what they are made of. Of a large layer
# they are more, so that the parts stay few.
_SPLIT_PIXELS, _MOST_SPLITS = 1024, 256


class Naive:
    """A thread for each number of the result."""

    def __init__(self, driver):
        self._launch = driver.launch

    def workspace(self, nets, batch, window, channels, filters):
        """Bytes that a pass needs beside its results."""
        return 0

    def forward(self, x, kernel, bias, window, activation, y, workspace):
        """y = activation(x * kernel + bias)."""
        s = _sizes(x.shape, y.shape, window)
        self._run("forward", y, x, kernel, bias, s, activation, y)

    def input_gradient(self, dz, kernel, window, dx, workspace):
        """The gradient by x from dz, the one by y before the activation."""
        s = _sizes(dx.shape, dz.shape, window)
        self._run("input_gradient", dx, dz, kernel, s, dx)

    def weight_gradient(self, x, dz, window, dkernel, dbias, workspace):
        """The gradients by kernel and bias."""
        numbers = prod(dkernel.shape[1:]) + dbias.shape[1]
        s = _sizes(x.shape, dz.shape, window)
        grid = (_ceil_div(numbers, _THREADS),)
        given = x, dz, s, dkernel, dbias
        self._launch("conv_naive.cu", "conv_naive_weight_gradient", grid, (_THREADS,), *given)

    def _run(self, name, result, *arguments):
        grid = (_ceil_div(prod(result.shape[1:]), _THREADS),)
        self._launch("conv_naive.cu", f"conv_naive_{name}", grid, (_THREADS,), *arguments)


class Im2col:
    """A matrix of patches in the workspace, and products of matrices."""

    def __init__(self, driver):
        self._launch = driver.launch
        self._gemm = Gemm(driver)

    def workspace(self, nets, batch, window, channels, filters):
        """Bytes that a pass needs beside its results."""
        return 4 * nets * batch * prod(window.output) * prod(window.size) * channels

    def forward(self, x, kernel, bias, window, activation, y, workspace):
        """y = activation(x * kernel + bias)."""
        columns = self._columns(x, y, window, workspace)
        self._gemm.product(columns, _matrix(kernel), bias, activation, _matrix(y))

    def input_gradient(self, dz, kernel, window, dx, workspace):
        """The gradient by x from dz, the one by y before the activation."""
        s = _sizes(dx.shape, dz.shape, window)
        columns = _view(workspace, len(dx), *_columns_shape(s))
        self._gemm.right_transposed(_matrix(dz), _matrix(kernel), columns)
        grid = (_ceil_div(prod(dx.shape[1:]), _THREADS),)
        self._launch("conv_im2col.cu", "col2im", grid, (_THREADS,), columns, s, dx)

    def weight_gradient(self, x, dz, window, dkernel, dbias, workspace):
        """The gradients by kernel and bias."""
        columns = self._columns(x, dz, window, workspace)
        self._gemm.left_transposed(columns, _matrix(dz), _matrix(dkernel))
        self._gemm.column_sums(_matrix(dz), dbias)

    def _columns(self, x, y, window, workspace):
        """The patches of x as a matrix (E, pixels, K)."""
        s = _sizes(x.shape, y.shape, window)
        columns = _view(workspace, len(x), *_columns_shape(s))
        grid = (_ceil_div(prod(columns.shape[1:]), _THREADS),)
        self._launch("conv_im2col.cu", "im2col", grid, (_THREADS,), x, s, columns)
        return columns


class Implicit:
    """Products of matrices whose operands are gathered into shared memory."""

    def __init__(self, driver):
        self._launch = driver.launch

    def workspace(self, nets, batch, window, channels, filters):
        """Bytes that a pass needs beside its results: the parts of a weight's gradient."""
        weights = (prod(window.size) * channels + 1) * filters
        _, splits = _split(batch * prod(window.output))
        return 4 * nets * splits * weights

    def forward(self, x, kernel, bias, window, activation, y, workspace):
        """y = activation(x * kernel + bias)."""
        s = _sizes(x.shape, y.shape, window)
        tile = _tile(s["N"])
        grid = _ceil_div(s["B"] * s["Ho"] * s["Wo"], tile.rows), _ceil_div(s["N"], tile.columns)
        self._run("forward", tile, grid, x, kernel, bias, s, activation, y)

    def input_gradient(self, dz, kernel, window, dx, workspace):
        """The gradient by x from dz, the one by y before the activation."""
        s = _sizes(dx.shape, dz.shape, window)
        tile, (sh, sw) = _tile(s["C"]), window.strides
        pixels = s["B"] * _ceil_div(s["H"], sh) * _ceil_div(s["W"], sw)  # of the largest phase
        grid = _ceil_div(pixels, tile.rows), sh * sw * _ceil_div(s["C"], tile.columns)
        self._run("input_gradient", tile, grid, dz, kernel, s, dx)

    def weight_gradient(self, x, dz, window, dkernel, dbias, workspace):
        """The gradients by kernel and bias."""
        s = _sizes(x.shape, dz.shape, window)
        tile, weights, filters = _tile(s["N"]), prod(dkernel.shape[1:]), s["N"]
        rows = weights // filters + 1  # the bias's is the last
        split_pixels, splits = _split(s["B"] * s["Ho"] * s["Wo"])
        parts = _view(workspace, len(x), splits, rows, filters)
        grid = _ceil_div(rows, tile.rows), splits * _ceil_div(filters, tile.columns)
        self._run("weight_gradient", tile, grid, x, dz, s, split_pixels, parts)
        grid = (_ceil_div(rows * filters, _THREADS),)
        given = parts, splits, weights, filters, dkernel, dbias
        self._launch("conv_implicit.cu", "conv_implicit_sum_parts", grid, (_THREADS,), *given)

    def _run(self, name, tile, grid, *arguments):
        kernel = f"conv_implicit_{name}_{tile.name}"
        self._launch("conv_implicit.cu", kernel, grid, (tile.threads,), *arguments)


VERSIONS = {"naive": Naive, "im2col": Im2col, "implicit": Implicit}


class Gemm:
    """Products of matrices (E, rows, columns)."""

    def __init__(self, driver):
        self._launch = driver.launch

    def product(self, a, b, bias, activation, c):
        """c (E, M, N) = activation(a (E, M, K) @ b (E, K, N) + bias (E, N))."""
        self._run("gemm", c, a.shape[2], (a, b, bias), activation)

    def left_transposed(self, a, b, c):
        """c (E, M, N) = a (E, K, M)^T @ b (E, K, N)."""
        self._run("gemm_left_transposed", c, a.shape[1], (a, b))

    def right_transposed(self, a, b, c):
        """c (E, M, N) = a (E, M, K) @ b (E, N, K)^T."""
        self._run("gemm_right_transposed", c, a.shape[2], (a, b))

    def column_sums(self, a, sums):
        """sums (E, N) of a (E, M, N)."""
        _, M, N = a.shape
        self._launch("gemm.cu", "column_sums", (_ceil_div(N, 32),), (32, 8), a, M, N, sums)

    def _run(self, name, c, depth, given, *more):
        _, M, N = c.shape
        grid = _ceil_div(M, _SQUARE.rows), _ceil_div(N, _SQUARE.columns)
        self._launch("gemm.cu", name, grid, (_SQUARE.threads,), *given, M, N, depth, *more, c)


class Dense:
    """A dense layer's passes: x (E, B, K), kernel (E, K, N), y and dz (E, B, N)."""

    def __init__(self, driver):
        self._gemm = Gemm(driver)

    def workspace(self, nets, batch, inputs, units):
        """Bytes that a pass needs beside its results."""
        return 0

    def forward(self, x, kernel, bias, activation, y, workspace):
        """y = activation(x @ kernel + bias)."""
        self._gemm.product(x, kernel, bias, activation, y)

    def weight_gradient(self, x, dz, dkernel, dbias, workspace):
        """The gradients by kernel and bias."""
        self._gemm.left_transposed(x, dz, dkernel)
        self._gemm.column_sums(dz, dbias)

    def input_gradient(self, dz, kernel, dx, workspace):
        """The gradient by x from dz, the one by y before the activation."""
        self._gemm.right_transposed(dz, kernel, dx)


def sizes(window, batch, channels, filters):
    """convolution.cuh's struct."""
    (kh, kw), (sh, sw), (top, left) = window.size, window.strides, window.before
    (H, W), (Ho, Wo) = window.input, window.output
    return {
        "B": batch, "H": H, "W": W, "C": channels, "Ho": Ho, "Wo": Wo, "N": filters,
        "kh": kh, "kw": kw, "sh": sh, "sw": sw, "top": top, "left": left,
    }  # fmt: skip


def _sizes(x, y, window):
    """The same, from the shapes of x (E, B, H, W, C) and y (E, B, Ho, Wo, N)."""
    return sizes(window, x[1], x[4], y[4])


def _columns_shape(s):
    """(pixels, K) of im2col's matrix."""
    return s["B"] * s["Ho"] * s["Wo"], s["kh"] * s["kw"] * s["C"]


def _matrix(array):
    """An array (E, ..., N) as matrices (E, rows, N)."""
    return array.reshape(len(array), -1, array.shape[-1])


def _view(workspace, *shape):
    """The workspace's first bytes as an array of float32."""
    return workspace[: 4 * prod(shape)].view(np.float32).reshape(shape)


def _tile(columns):
    return _NARROW if columns <= _NARROW.columns else _SQUARE


def _split(pixels):
    """(pixels of a part, how many parts)."""
    size = max(_SPLIT_PIXELS, _ceil_div(pixels, _MOST_SPLITS))
    return size, _ceil_div(pixels, size)


def _ceil_div(a, b):
    return -(-a // b)
