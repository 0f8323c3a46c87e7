"""The backend of C kernels: what takes the time of a step in kernels/*.c, the rest in NumPy.

An operation here cuts the work into calls of kernels, which say how it is computed; ops_numpy.py
says what it means. Arrays are NumPy's. A step can be recorded and repeated as a whole (cpu.py).
"""

import contextlib
from math import prod

import numpy as np

from .. import checks, machine, rng
from ..network.geometry import Window
from . import ops_numpy
from .backend import Backend
from .cpu import Cpu
from .cpu_convolution import VERSIONS
from .scratch import slice_workspace

_ALIGNMENT = 64  # bytes: a cache line, and the widest vector
_CHUNK_NUMBERS = 4096  # of batch normalisation's rows: as many as the first cache holds twice


class Operations(Backend):
    """The operations, by the kernels of `cpu`, a cpu.Cpu (default: for the machine's own CPU).

    `convolution` names a version of it. Raises native.CompileError where nothing can compile them.
    """

    name = "cpu"

    def __init__(self, cpu=None, convolution="winograd"):
        version = VERSIONS[checks.choice("convolution", convolution, VERSIONS)]
        self.cpu = cpu or Cpu()
        self._convolution = version(self.cpu)
        self._call, self._python, self.capture = self.cpu.call, self.cpu.python, self.cpu.record
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
        self.cpu.use_cores()
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

    # ---- convolution and dense: cpu_convolution.py -------------------------------------------

    def conv2d_workspace(self, nets, batch, window, channels, filters):
        return self._convolution.workspace(nets, batch, window, channels, filters)

    def conv2d(self, x, kernel, bias, window, activation, y, workspace):
        relu = activation == "relu"
        self._convolution.forward(x, kernel, bias, window, relu, y, workspace)
        if not relu:
            self.activate(activation, y)

    def conv2d_weight_gradient(self, x, dz, window, dkernel, dbias, workspace):
        self._convolution.weight_gradient(x, dz, window, dkernel, dbias, workspace)

    def conv2d_input_gradient(self, dz, kernel, window, dx, workspace):
        self._convolution.input_gradient(dz, kernel, window, dx, workspace)

    # A dense layer is a convolution of images of one pixel.

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
        chunks, terms = slice_workspace(workspace, _batch_norm_layout(x.shape))
        rest = terms[:, 0]  # (E, C)
        results = mean, variance, rest
        self._call("batch_norm_statistics", x, *_rows(x.shape), chunks, *results)
        self._call("batch_norm_normalize", x, *_rows(x.shape), gamma, beta, epsilon, *results, y)

    def batch_norm_inference(self, x, gamma, beta, epsilon, mean, variance, y):
        given = gamma, beta, epsilon, mean, variance, None
        self._call("batch_norm_normalize", x, *_rows(x.shape), *given, y)

    def batch_norm_backward(
        self, x, dy, gamma, epsilon, mean, variance, dx, dgamma, dbeta, workspace, activation
    ):
        chunks, terms = slice_workspace(workspace, _batch_norm_layout(x.shape))
        given = gamma, epsilon, mean, variance, chunks
        self._call("batch_norm_gradient_sums", x, dy, *_rows(x.shape), *given, dgamma, dbeta, terms)
        relu = activation == "relu"
        self._call("batch_norm_input_gradient", x, dy, *_rows(x.shape), mean, terms, relu, dx)
        if not relu:
            self.activate_backward(activation, x, dx)

    def update_moving(self, moving, batch, momentum):
        self._call("update_moving", moving, batch, momentum, _numbers(moving))

    # ---- dropout, pooling --------------------------------------------------------------------

    def dropout(self, x, rate, seed, nets, stream, step, mask, y):
        given = x, 1 / (1 - rate), rng.threshold(rate), seed, nets, stream, step, _numbers(x)
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


def _rows(shape):
    """How batch normalisation sees x of a shape (E, ..., C): rows, channels, rows in a chunk."""
    rows, channels = prod(shape[1:-1]), shape[-1]
    return rows, channels, max(1, _CHUNK_NUMBERS // channels)


def _batch_norm_layout(shape):
    """Its working memory for x of a shape (E, ..., C): sums of chunks, and what is made of them."""
    E = shape[0]
    rows, C, chunk_rows = _rows(shape)
    return [((E, -(-rows // chunk_rows), 3, C), np.float64), ((E, 4, C), np.float32)]


def _numbers(x):
    """How many numbers of x (E, ...) are one net's."""
    return prod(x.shape[1:])
