"""Three ways to compute a convolution in float32, and dense layers: which kernels, which grids.

`Naive` follows the definition, `Im2col` is what textbooks and NumPy do, `Implicit` is the default.
All have the same methods, for x (E, B, H, W, Cin), y and dz (E, B, Ho, Wo, Cout), kernel
(E, kh, kw, Cin, Cout), a geometry.Window and the number of an activation in activation.cuh. dz is
the gradient with respect to y before its activation. Tiles and splits depend on the layer and the
batch alone, so a net's bits are independent of the other nets in the batch.

Read kernels/conv_naive.cu next, then conv_im2col.cu and gemm.cuh, then conv_implicit.cu.
"""

from math import prod
from typing import NamedTuple

import numpy as np

_THREADS = 256  # of a thread block, where a thread computes one element


class _Tile(NamedTuple):
    """The part of a product that a thread block computes; gemm.cuh has the same two tiles."""

    name: str
    rows: int
    columns: int
    threads: int = 128  # each computes 8 x 4 elements


_NARROW, _SQUARE = _Tile("narrow", 128, 32), _Tile("square", 64, 64)
# A thread block sums a weight's gradient over this many pixels. Fewer pixels give more thread
# blocks and shorter sums in float32, but more partial sums to write and read. Large layers take
# more pixels, so that there are at most _MOST_SPLITS partial sums.
_SPLIT_PIXELS, _MOST_SPLITS = 1024, 256


class Naive:
    """One thread for each element of the result."""

    def __init__(self, driver):
        self._launch = driver.launch

    def workspace(self, nets, batch, window, channels, filters):
        """Bytes that a pass needs in addition to its results."""
        return 0

    def forward(self, x, kernel, bias, window, activation, y, workspace):
        """y = activation(x * kernel + bias)."""
        s = _sizes(x.shape, y.shape, window)
        elements = prod(y.shape[1:])
        self._run(
            "forward", elements, x=x, kernel=kernel, bias=bias, s=s, activation=activation, y=y
        )

    def input_gradient(self, dz, kernel, window, dx, workspace):
        """The gradient with respect to x, from dz."""
        s = _sizes(dx.shape, dz.shape, window)
        self._run("input_gradient", prod(dx.shape[1:]), dz=dz, kernel=kernel, s=s, dx=dx)

    def weight_gradient(self, x, dz, window, dkernel, dbias, workspace):
        """The gradients with respect to kernel and bias."""
        s = _sizes(x.shape, dz.shape, window)
        elements = prod(dkernel.shape[1:]) + dbias.shape[1]
        self._run("weight_gradient", elements, x=x, dz=dz, s=s, dkernel=dkernel, dbias=dbias)

    def _run(self, name, elements, /, **arguments):
        grid = (_ceil_div(elements, _THREADS),)
        self._launch("conv_naive.cu", f"conv_naive_{name}", grid, (_THREADS,), **arguments)


class Im2col:
    """A matrix of patches in the workspace, and matrix products."""

    def __init__(self, driver):
        self._launch = driver.launch
        self._gemm = Gemm(driver)

    def workspace(self, nets, batch, window, channels, filters):
        """Bytes that a pass needs in addition to its results."""
        return 4 * nets * batch * prod(window.output) * prod(window.size) * channels

    def forward(self, x, kernel, bias, window, activation, y, workspace):
        """y = activation(x * kernel + bias)."""
        columns = self._columns(x, y, window, workspace)
        self._gemm.product(columns, _matrix(kernel), bias, activation, _matrix(y))

    def input_gradient(self, dz, kernel, window, dx, workspace):
        """The gradient with respect to x, from dz."""
        s = _sizes(dx.shape, dz.shape, window)
        columns = _view(workspace, len(dx), *_columns_shape(s))
        self._gemm.right_transposed(_matrix(dz), _matrix(kernel), columns)
        grid = (_ceil_div(prod(dx.shape[1:]), _THREADS),)
        self._launch("conv_im2col.cu", "col2im", grid, (_THREADS,), columns, s, dx)

    def weight_gradient(self, x, dz, window, dkernel, dbias, workspace):
        """The gradients with respect to kernel and bias."""
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
    """Matrix products whose operands are gathered directly into shared memory."""

    def __init__(self, driver):
        self._launch = driver.launch

    def workspace(self, nets, batch, window, channels, filters):
        """Bytes that a pass needs in addition to its results, for partial sums of dkernel."""
        weights = (prod(window.size) * channels + 1) * filters
        _, splits = _split(batch * prod(window.output))
        return 4 * nets * splits * weights

    def forward(self, x, kernel, bias, window, activation, y, workspace):
        """y = activation(x * kernel + bias)."""
        s = _sizes(x.shape, y.shape, window)
        pixels, Cout = s["B"] * s["Ho"] * s["Wo"], s["Cout"]
        tile = _tile(Cout)
        grid = _ceil_div(pixels, tile.rows), _ceil_div(Cout, tile.columns)
        self._run(
            "forward", tile, grid, x=x, kernel=kernel, bias=bias, s=s, activation=activation, y=y
        )

    def input_gradient(self, dz, kernel, window, dx, workspace):
        """The gradient with respect to x, from dz."""
        s = _sizes(dx.shape, dz.shape, window)
        tile, (sh, sw), Cin = _tile(s["Cin"]), window.strides, s["Cin"]
        pixels = s["B"] * _ceil_div(s["H"], sh) * _ceil_div(s["W"], sw)  # of the largest phase
        grid = _ceil_div(pixels, tile.rows), sh * sw * _ceil_div(Cin, tile.columns)
        self._run("input_gradient", tile, grid, dz=dz, kernel=kernel, s=s, dx=dx)

    def weight_gradient(self, x, dz, window, dkernel, dbias, workspace):
        """The gradients with respect to kernel and bias."""
        s = _sizes(x.shape, dz.shape, window)
        tile, weights, Cout = _tile(s["Cout"]), prod(dkernel.shape[1:]), s["Cout"]
        rows = weights // Cout + 1  # K, and the last one for the bias
        split_pixels, splits = _split(s["B"] * s["Ho"] * s["Wo"])
        parts = _view(workspace, len(x), splits, rows, Cout)
        grid = _ceil_div(rows, tile.rows), splits * _ceil_div(Cout, tile.columns)
        self._run(
            "weight_gradient", tile, grid, x=x, dz=dz, s=s, split_pixels=split_pixels, parts=parts
        )
        grid = (_ceil_div(rows * Cout, _THREADS),)
        self._launch(
            "conv_implicit.cu", "conv_implicit_sum_parts", grid, (_THREADS,),
            parts=parts, splits=splits, weights=weights, Cout=Cout, dkernel=dkernel, dbias=dbias,
        )  # fmt: skip

    def _run(self, name, tile, grid, /, **arguments):
        kernel = f"conv_implicit_{name}_{tile.name}"
        self._launch("conv_implicit.cu", kernel, grid, (tile.threads,), **arguments)


VERSIONS = {"naive": Naive, "im2col": Im2col, "implicit": Implicit}


class Gemm:
    """Matrix products, for each net."""

    def __init__(self, driver):
        self._launch = driver.launch

    def product(self, a, b, bias, activation, c):
        """c (E, M, N) = activation(a (E, M, K) @ b (E, K, N) + bias (E, N))."""
        self._run("gemm", a.shape[2], a=a, b=b, bias=bias, activation=activation, c=c)

    def left_transposed(self, a, b, c):
        """c (E, M, N) = a (E, K, M)^T @ b (E, K, N)."""
        self._run("gemm_left_transposed", a.shape[1], a=a, b=b, c=c)

    def right_transposed(self, a, b, c):
        """c (E, M, N) = a (E, M, K) @ b (E, N, K)^T."""
        self._run("gemm_right_transposed", a.shape[2], a=a, b=b, c=c)

    def column_sums(self, a, sums):
        """sums (E, N) = a (E, M, N) summed over M."""
        _, M, N = a.shape
        self._launch("gemm.cu", "column_sums", (_ceil_div(N, 32),), (32, 8), a, M, N, sums)

    def _run(self, name, K, /, c, **arguments):
        _, M, N = c.shape
        grid = _ceil_div(M, _SQUARE.rows), _ceil_div(N, _SQUARE.columns)
        self._launch("gemm.cu", name, grid, (_SQUARE.threads,), M=M, N=N, K=K, c=c, **arguments)


class Dense:
    """The passes of a dense layer: x (E, B, K), kernel (E, K, units), y and dz (E, B, units)."""

    def __init__(self, driver):
        self._gemm = Gemm(driver)

    def workspace(self, nets, batch, inputs, units):
        """Bytes that a pass needs in addition to its results."""
        return 0

    def forward(self, x, kernel, bias, activation, y, workspace):
        """y = activation(x @ kernel + bias)."""
        self._gemm.product(x, kernel, bias, activation, y)

    def weight_gradient(self, x, dz, dkernel, dbias, workspace):
        """The gradients with respect to kernel and bias."""
        self._gemm.left_transposed(x, dz, dkernel)
        self._gemm.column_sums(dz, dbias)

    def input_gradient(self, dz, kernel, dx, workspace):
        """The gradient with respect to x, from dz."""
        self._gemm.right_transposed(dz, kernel, dx)


def sizes(window, B, Cin, Cout):
    """The fields of convolution.cuh's struct Convolution."""
    (kh, kw), (sh, sw), (top, left) = window.size, window.strides, window.before
    (H, W), (Ho, Wo) = window.input, window.output
    return {
        "B": B, "H": H, "W": W, "Cin": Cin, "Ho": Ho, "Wo": Wo, "Cout": Cout,
        "kh": kh, "kw": kw, "sh": sh, "sw": sw, "top": top, "left": left,
    }  # fmt: skip


def _sizes(x, y, window):
    """The same, from the shapes of x (E, B, H, W, Cin) and y (E, B, Ho, Wo, Cout)."""
    return sizes(window, x[1], x[4], y[4])


def _columns_shape(s):
    """(pixels, K) of im2col's matrix."""
    return s["B"] * s["Ho"] * s["Wo"], s["kh"] * s["kw"] * s["Cin"]


def _matrix(array):
    """An array (E, ..., columns) as matrices (E, rows, columns)."""
    return array.reshape(len(array), -1, array.shape[-1])


def _view(workspace, *shape):
    """The start of a workspace of bytes, as an array of float32."""
    return workspace[: 4 * prod(shape)].view(np.float32).reshape(shape)


def _tile(columns):
    return _NARROW if columns <= _NARROW.columns else _SQUARE


def _split(pixels):
    """(pixels of a split, number of splits)."""
    size = max(_SPLIT_PIXELS, _ceil_div(pixels, _MOST_SPLITS))
    return size, _ceil_div(pixels, size)


def _ceil_div(a, b):
    return -(-a // b)
