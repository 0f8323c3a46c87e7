"""The backend with kernels in C: kernels/*.c do the expensive operations, NumPy does the rest.

Each operation below is one or a few calls of kernels. The kernel's file shows how it is computed,
ops_numpy.py defines what is computed. Arrays are NumPy's.

`_call` calls a kernel for all nets, `_python` a NumPy function. Both belong to cpu.py, which can
record the calls of a step and repeat them. Read cpu_convolution.py next, then cpu_blocks.py.
"""

import contextlib
from functools import partial
from math import prod

import numpy as np

from .. import checks, machine, rng
from ..network.geometry import Window
from . import cpu_blocks, ops_numpy
from .backend import Backend
from .cpu import Cpu
from .cpu_blocks import rows_of
from .cpu_convolution import Direct
from .cpu_winograd import Winograd
from .scratch import slice_workspace

# Of convolution. "winograd-4" computes squares of 4 x 4 outputs only.
VERSIONS = {"direct": Direct, "winograd": Winograd}
VERSIONS |= {f"winograd-{m}": partial(Winograd, m=m) for m in (2, 4, 5)}
_ALIGNMENT = 64  # bytes: a cache line, and the widest vector


class Operations(Backend):
    """The operations, with the kernels of `cpu`, a cpu.Cpu (default: compiled for this machine).

    `convolution` is a name in VERSIONS. Raises native.CompileError without a
    working C compiler.
    """

    name = "cpu"

    def __init__(self, cpu=None, convolution="winograd"):
        version = VERSIONS[checks.choice("convolution", convolution, VERSIONS)]
        self.cpu = cpu or Cpu()
        self.threaded = bool(self.cpu.constant("has_threads"))
        self.convolution = version(self.cpu)
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
        self.cpu.use_threads()
        with ops_numpy.session():
            yield

    def fusion(self, nodes, nets, batch):
        """The cpu_blocks.FusedNetwork that a stack of layers is, or None."""
        return cpu_blocks.fusion(nodes, batch, self)

    # ---- the batch ---------------------------------------------------------------------------

    def load_batch(self, images, labels, order, ranges, seed, nets, step, x, y):
        _, steps, B = order.shape
        H, W, C = x.shape[2:]
        parameters = 0 if ranges is None else ranges.shape[1]
        self._call(
            "load_batch",
            images=images, labels=labels, order=order, steps=steps, B=B, H=H, W=W, C=C,
            ranges=ranges, parameters=parameters, seed=seed, net=nets, stream=rng.AUGMENTATION,
            elastic_stream=rng.ELASTIC, step=step, x=x, y=y,
        )  # fmt: skip

    # ---- activations -------------------------------------------------------------------------

    def activate(self, name, y):
        if name == "relu":
            self._call("relu_forward", _elements(y), y)
        elif name != "linear":
            self._python(ops_numpy.activate, name, y)

    def activate_backward(self, name, y, dy):
        if name == "relu":
            self._call("relu_backward", y, _elements(y), dy)
        elif name != "linear":
            self._python(ops_numpy.activate_backward, name, y, dy)

    # ---- convolution and dense: cpu_convolution.py -------------------------------------------

    def conv2d_workspace(self, nets, batch, window, channels, filters):
        return self.convolution.workspace(nets, batch, window, channels, filters)

    def conv2d(self, x, kernel, bias, window, activation, y, workspace):
        relu = activation == "relu"
        self.convolution.forward(x, kernel, bias, window, relu, y, workspace)
        if not relu:
            self.activate(activation, y)

    def conv2d_weight_gradient(self, x, dz, window, dkernel, dbias, workspace):
        self.convolution.weight_gradient(x, dz, window, dkernel, dbias, workspace)

    def conv2d_input_gradient(self, dz, kernel, window, dx, workspace):
        self.convolution.input_gradient(dz, kernel, window, dx, workspace)

    # A dense layer is a convolution of images of one pixel, with a kernel of one tap.

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
        mean_error = terms[:, 0]  # (E, C), the rounding error of the mean
        self._call(
            "batch_norm_statistics",
            x=x, **rows_of(x.shape), chunks=chunks,
            mean=mean, variance=variance, mean_error=mean_error,
        )  # fmt: skip
        self._normalize(x, gamma, beta, epsilon, mean, variance, mean_error, y)

    def batch_norm_inference(self, x, gamma, beta, epsilon, mean, variance, y):
        self._normalize(x, gamma, beta, epsilon, mean, variance, None, y)

    def _normalize(self, x, gamma, beta, epsilon, mean, variance, mean_error, y):
        self._call(
            "batch_norm_normalize",
            x=x, **rows_of(x.shape), gamma=gamma, beta=beta, epsilon=epsilon,
            mean=mean, variance=variance, mean_error=mean_error, y=y,
        )  # fmt: skip

    def batch_norm_backward(
        self, x, dy, gamma, epsilon, mean, variance, dx, dgamma, dbeta, workspace, activation
    ):
        chunks, terms = slice_workspace(workspace, _batch_norm_layout(x.shape))
        self._call(
            "batch_norm_gradient_sums",
            x=x, dy=dy, **rows_of(x.shape), gamma=gamma, epsilon=epsilon, mean=mean,
            variance=variance, chunks=chunks, dgamma=dgamma, dbeta=dbeta, terms=terms,
        )  # fmt: skip
        relu = activation == "relu"
        self._call(
            "batch_norm_input_gradient",
            x=x, dy=dy, **rows_of(x.shape), mean=mean, terms=terms, relu=relu, dx=dx,
        )  # fmt: skip
        if not relu:
            self.activate_backward(activation, x, dx)

    def update_moving(self, moving, batch, momentum):
        self._call("update_moving", moving, batch, momentum, _elements(moving))

    # ---- dropout, pooling --------------------------------------------------------------------

    def dropout(self, x, rate, seed, nets, stream, step, mask, y):
        self._call(
            "dropout_forward",
            x=x, scale=1 / (1 - rate), threshold=rng.threshold(rate), seed=seed, net=nets,
            stream=stream, step=step, count=_elements(x), mask=mask, y=y,
        )  # fmt: skip

    def dropout_backward(self, dy, rate, mask, dx):
        self._call("dropout_backward", dy, 1 / (1 - rate), mask, _elements(dy), dx)

    def max_pool(self, x, window, winner, y):
        self._python(ops_numpy.max_pool, x, window, winner, y)

    def max_pool_backward(self, dy, window, winner, dx):
        self._python(ops_numpy.max_pool_backward, dy, window, winner, dx)

    # ---- loss, metrics, optimizer ------------------------------------------------------------

    def softmax_cross_entropy(self, logits, labels, smoothing, loss, correct, dlogits):
        B, classes = logits.shape[1:]
        self._call(
            "softmax_cross_entropy",
            logits=logits, labels=labels, B=B, classes=classes, smoothing=smoothing,
            loss=loss, correct=correct, dlogits=dlogits,
        )  # fmt: skip

    def accumulate(self, loss, correct, step, sums):
        self._python(ops_numpy.accumulate, loss, correct, step, sums)

    def collect(self, source, step, target):
        self._python(ops_numpy.collect, source, step, target)

    def adam(self, params, gradients, m, v, step, learning_rate, beta_1, beta_2, epsilon):
        self._call(
            "adam",
            w=params, g=gradients, m=m, v=v, P=_elements(params), step=step,
            learning_rate=learning_rate, rates=len(learning_rate),
            beta_1=beta_1, beta_2=beta_2, epsilon=epsilon,
        )  # fmt: skip

    def average(self, params, averaged, step, shares):
        self._call(
            "average",
            w=params, averaged=averaged, P=_elements(params), step=step,
            shares=shares, count=len(shares),
        )  # fmt: skip


_ONE_PIXEL = Window.fit((1, 1), (1, 1), "valid", (1, 1))


def _pixels(x):
    """Vectors (E, B, K) as images of one pixel."""
    return x[:, :, None, None]


def _batch_norm_layout(shape):
    """Working memory for x (E, ..., C): the chunks' sums, and `mean_error` or `terms`."""
    E, C, sizes = shape[0], shape[-1], rows_of(shape)
    chunks = -(-sizes["rows"] // sizes["chunk_rows"])
    return [((E, chunks, 3, C), np.float64), ((E, 4, C), np.float32)]


def _elements(x):
    """The number of elements of x (E, ...) for one net."""
    return prod(x.shape[1:])
