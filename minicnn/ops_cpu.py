"""The backend of C kernels: what takes the time of a step in kernels/*.c, the rest in NumPy.

An operation here cuts the work into calls of kernels, which say how it is computed; ops_numpy.py
says what it means. Arrays are NumPy's. A step can be recorded and repeated as a whole (cpu.py).
"""

import contextlib
from itertools import product
from math import prod

import numpy as np

from . import machine, ops_numpy, rng
from .cpu import Cpu
from .geometry import Window
from .plan import cut

_ALIGNMENT = 64  # bytes: a cache line, and the widest vector
_CHUNK_NUMBERS = 4096  # of batch normalisation's rows: as many as the first cache holds twice


class Operations:
    """The operations, by the kernels of `cpu`, a cpu.Cpu (default: as the machine's own CPU is).

    Raises native.CompileError where there is no C compiler that can.
    """

    name = "cpu"
    dtypes = ("float32",)
    lockstep = False  # nets gain nothing here from being trained together

    def __init__(self, cpu=None):
        self._cpu = cpu or Cpu()
        self._call, self._python, self.capture = self._cpu.call, self._cpu.python, self._cpu.record
        self.to_device, self.to_host = ops_numpy.to_device, ops_numpy.to_host
        self.free_memory = machine.free_memory

    # ---- arrays ------------------------------------------------------------------------------

    def empty(self, shape, dtype):
        return machine.aligned_empty(shape, dtype, _ALIGNMENT)

    def zeros(self, shape, dtype):
        array = self.empty(shape, dtype)
        array.fill(0)
        return array

    def copy(self, source, target):
        self._python(np.copyto, target, source)

    @contextlib.contextmanager
    def session(self):
        self._cpu.use_cores()
        with ops_numpy.session():
            yield

    # ---- the batch ---------------------------------------------------------------------------

    def load_batch(self, images, labels, order, ranges, seed, nets, step, x, y):
        _, steps, B = order.shape
        gathered = images, labels, order, steps, B, *images.shape[1:]
        drawn = ranges, seed, nets, rng.AUGMENTATION, step
        self._call("load_batch", *gathered, *drawn, x, y)

    # ---- activations -------------------------------------------------------------------------

    def activate(self, name, y):
        if name == "relu":
            self._call("relu_forward", _numbers(y), y)
        elif name != "linear":
            self._python(ops_numpy.activate, name, y)

    def activate_backward(self, name, y, dy):
        if name == "relu":
            self._call("relu_backward", y, _numbers(y), dy)
        elif name != "linear":
            self._python(ops_numpy.activate_backward, name, y, dy)

    # ---- convolution -------------------------------------------------------------------------

    def conv2d_workspace(self, nets, batch, window, channels, filters):
        taps, pixels = prod(window.size), batch * prod(window.output)
        packed = taps * channels * self._whole_panels(filters)
        turned = taps * filters * self._whole_panels(channels)
        widened = pixels * self._whole_panels(filters) if filters % self._cpu.panel else 0
        return 4 * nets * max(packed, turned, widened)

    def conv2d(self, x, kernel, bias, window, activation, y, workspace):
        (E, B), C, N = x.shape[:2], x.shape[-1], y.shape[-1]
        B, window, C = _flat(B, window, C)
        (H, W), (kh, kw) = window.output, window.size
        packed = self._packed(workspace, E, kh * kw * C, N)
        taps = kw, 0, 1, 0, 1, False, kh, kw
        self._call("pack_kernel", kernel, *taps, C, N, packed)
        s = _correlation(B, window, C, N, y_image=H * W * N, y_row=W * N, y_pixel=N)
        relu = activation == "relu"
        self._call("correlate", x, s, packed, bias, relu, y)
        if not relu:
            self.activate(activation, y)

    def conv2d_input_gradient(self, dz, kernel, window, dx, workspace):
        """A convolution of dz with the kernel turned round; with strides, several (geometry.Phase).

        Each makes one of the interleaved grids into which dx falls.
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

    def conv2d_weight_gradient(self, x, dz, window, dkernel, dbias, workspace):
        (E, B), C, N = x.shape[:2], x.shape[-1], dz.shape[-1]
        wide = self._whole_panels(N)
        if wide != N:
            rows = prod(dz.shape[1:-1])
            [widened] = cut(workspace, [((E, rows, wide), np.float32)])
            self._call("widen", dz, rows, N, widened)
            dz = widened
        B, window, C = _flat(B, window, C)
        s = _correlation(B, window, C, N)
        self._call("conv_weight_gradient", x, dz, wide, s, dkernel, dbias)

    def _packed(self, workspace, nets, numbers, channels):
        [packed] = cut(workspace, [((nets, numbers * self._whole_panels(channels)), np.float32)])
        return packed

    def _whole_panels(self, channels):
        return -(-channels // self._cpu.panel) * self._cpu.panel

    # ---- dense: a convolution of images of one pixel -----------------------------------------

    def dense_workspace(self, nets, batch, inputs, units):
        return self.conv2d_workspace(nets, batch, _ONE_PIXEL, inputs, units)

    def dense(self, x, kernel, bias, activation, y, workspace):
        self.conv2d(_pixels(x), kernel, bias, _ONE_PIXEL, activation, _pixels(y), workspace)

    def dense_weight_gradient(self, x, dz, dkernel, dbias, workspace):
        x, dz = _pixels(x), _pixels(dz)
        self.conv2d_weight_gradient(x, dz, _ONE_PIXEL, dkernel, dbias, workspace)

    def dense_input_gradient(self, dz, kernel, dx, workspace):
        self.conv2d_input_gradient(_pixels(dz), kernel, _ONE_PIXEL, _pixels(dx), workspace)

    # ---- batch normalisation -----------------------------------------------------------------

    def batch_norm_workspace(self, nets, batch, shape):
        return sum(
            np.dtype(dtype).itemsize * prod(axes)
            for axes, dtype in _batch_norm_layout((nets, batch, *shape))
        )

    def batch_norm(self, x, gamma, beta, epsilon, mean, variance, y, workspace):
        chunks, terms = cut(workspace, _batch_norm_layout(x.shape))
        rest = terms[:, 0]  # (E, C)
        results = mean, variance, rest
        self._call("batch_norm_statistics", x, *_rows(x), chunks, *results)
        self._call("batch_norm_normalize", x, *_rows(x), gamma, beta, epsilon, *results, y)

    def batch_norm_inference(self, x, gamma, beta, epsilon, mean, variance, y):
        given = gamma, beta, epsilon, mean, variance, None
        self._call("batch_norm_normalize", x, *_rows(x), *given, y)

    def batch_norm_backward(
        self, x, dy, gamma, epsilon, mean, variance, dx, dgamma, dbeta, workspace, activation
    ):
        chunks, terms = cut(workspace, _batch_norm_layout(x.shape))
        given = gamma, epsilon, mean, variance, chunks
        self._call("batch_norm_gradient_sums", x, dy, *_rows(x), *given, dgamma, dbeta, terms)
        relu = activation == "relu"
        self._call("batch_norm_input_gradient", x, dy, *_rows(x), mean, terms, relu, dx)
        if not relu:
            self.activate_backward(activation, x, dx)

    def update_moving(self, moving, batch, momentum):
        self._call("update_moving", moving, batch, momentum, _numbers(moving))

    # ---- dropout, pooling --------------------------------------------------------------------

    def dropout(self, x, rate, seed, nets, stream, step, mask, y):
        threshold = min(round(rate * 2**32), 2**32 - 1)
        given = x, 1 / (1 - rate), threshold, seed, nets, stream, step, _numbers(x)
        self._call("dropout_forward", *given, mask, y)

    def dropout_backward(self, dy, rate, mask, dx):
        self._call("dropout_backward", dy, 1 / (1 - rate), mask, _numbers(dy), dx)

    def max_pool(self, x, window, winner, y):
        self._python(ops_numpy.max_pool, x, window, winner, y)

    def max_pool_backward(self, dy, window, winner, dx):
        self._python(ops_numpy.max_pool_backward, dy, window, winner, dx)

    # ---- loss, metrics, optimizer ------------------------------------------------------------

    def softmax_cross_entropy(self, logits, labels, loss, correct, dlogits):
        B, N = logits.shape[1:]
        self._call("softmax_cross_entropy", logits, labels, B, N, loss, correct, dlogits)

    def accumulate(self, loss, correct, sums):
        self._python(ops_numpy.accumulate, loss, correct, sums)

    def collect(self, source, step, target):
        self._python(ops_numpy.collect, source, step, target)

    def adam(self, params, gradients, m, v, step, learning_rate, beta_1, beta_2, epsilon):
        given = params, gradients, m, v, _numbers(params)
        self._call("adam", *given, step, learning_rate, beta_1, beta_2, epsilon)
        self._python(np.add, step, 1, step)


_ONE_PIXEL = Window.fit((1, 1), (1, 1), "valid", (1, 1))


def _pixels(x):
    """Vectors (E, B, K) as images of one pixel."""
    return x[:, :, None, None]


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


def _rows(x):
    """How batch normalisation sees x (E, ..., C): rows, channels, rows in a chunk."""
    rows, channels = prod(x.shape[1:-1]), x.shape[-1]
    return rows, channels, max(1, _CHUNK_NUMBERS // channels)


def _batch_norm_layout(shape):
    """Its working memory for x of a shape (E, ..., C): sums of chunks, and what is made of them."""
    E, C = shape[0], shape[-1]
    rows, chunk_rows = prod(shape[1:-1]), max(1, _CHUNK_NUMBERS // C)
    return [((E, -(-rows // chunk_rows), 3, C), np.float64), ((E, 3, C), np.float32)]


def _numbers(x):
    """How many numbers of x (E, ...) are one net's."""
    return prod(x.shape[1:])
