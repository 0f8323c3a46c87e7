"""The backend of CUDA kernels: every operation of ops_numpy.py as launches of kernels/*.cu.

A driver runs the launches: that of cuda.py on a GPU, the emulator on a CPU. An operation allocates
nothing and does not wait for results, so a step can be captured as a graph. The driver adds the
nets as a grid axis, so one launch serves all nets. Each operation here chooses the rest of a
launch: the number of thread blocks, their shape, and the arguments.

ops_numpy.py says what an operation means, and the kernel's file how it is computed.
"""

from fractions import Fraction
from math import inf, log, prod
from typing import NamedTuple

import numpy as np

from .. import checks, rng
from . import cuda_blocks
from .backend import Backend
from .cuda_convolution import VERSIONS, Dense
from .cuda_forms import STORAGES
from .scratch import slice_workspace

_ACTIVATIONS = "linear", "relu", "sigmoid", "tanh"  # in activation.cuh's order
_STORAGES = {storage.precision: storage for storage in STORAGES}
_THREADS = 256  # of a thread block, by default
_WARP = 32


class Operations(Backend):
    """The operations on one driver's arrays.

    convolution: a version in cuda_convolution.VERSIONS. precision: "float32", "tf32" or
    "bfloat16". With the last two cuda_blocks.py trains networks that it can fuse, with products on
    tensor cores; all other networks are computed in float32.
    """

    lockstep = True  # until the GPU is full, a launch takes as long for one net as for many

    def __init__(self, driver, convolution="implicit", precision="float32"):
        self.name = driver.name
        self.precisions = "float32", *(_STORAGES if driver.has_tensor_cores else ())
        self.precision = checks.choice("precision", precision, self.precisions)
        self.launch, self.together = driver.launch, driver.together
        self._multiprocessors = driver.multiprocessors
        self._convolution = VERSIONS[checks.choice("convolution", convolution, VERSIONS)](driver)
        self._dense = Dense(driver)
        self.empty, self.zeros, self.copy = driver.empty, driver.zeros, driver.copy
        self.to_device, self.to_host = driver.to_device, driver.to_host
        self.session, self.capture = driver.session, driver.capture
        self.free_memory = driver.free_memory

    def fusion(self, nodes, nets, batch):
        """The cuda_blocks.FusedNetwork that a stack of layers is, or None."""
        storage = _STORAGES.get(self.precision)
        return storage and cuda_blocks.fusion(nodes, batch, storage, self.share(nets))

    def share(self, nets):
        """The multiprocessors that each of so many nets has, a Fraction."""
        return Fraction(self._multiprocessors) / nets

    def _launch_for_each(self, threads, file, kernel, /, *arguments, **by_name):
        """Launch a kernel with at least so many threads for each net."""
        grid = (_ceil_div(threads, _THREADS),)
        self.launch(file, kernel, grid, (_THREADS,), *arguments, **by_name)

    # ---- the batch ---------------------------------------------------------------------------

    def load_batch(self, images, labels, order, ranges, seed, nets, step, x, y):
        _, steps, B = order.shape
        H, W, C = x.shape[2:]
        parameters = 0 if ranges is None else ranges.shape[1]
        # One thread block per image: its threads share the map, and the cache with the image.
        self.launch(
            "augment.cu", "load_batch", (B,), (_THREADS,),
            images=images, labels=labels, order=order, steps=steps, B=B, H=H, W=W, C=C,
            ranges=ranges, parameters=parameters, seed=seed, nets=nets, stream=rng.AUGMENTATION,
            elastic_stream=rng.ELASTIC, step=step, x=x, y=y,
        )  # fmt: skip

    # ---- activations -------------------------------------------------------------------------

    def activate(self, name, y):
        if name == "softmax":
            rows, C = prod(y.shape[1:-1]), y.shape[-1]
            self.launch("activation.cu", "softmax_forward", *_warp_per_row(rows), rows, C, y)
        elif name != "linear":
            count, code = _elements(y), _ACTIVATIONS.index(name)
            self._launch_for_each(count, "activation.cu", "activation_forward", code, count, y)

    def activate_backward(self, name, y, dy):
        if name == "softmax":
            rows, C = prod(y.shape[1:-1]), y.shape[-1]
            self.launch("activation.cu", "softmax_backward", *_warp_per_row(rows), y, rows, C, dy)
        elif name != "linear":
            count, code = _elements(y), _ACTIVATIONS.index(name)
            self._launch_for_each(count, "activation.cu", "activation_backward", code, y, count, dy)

    # ---- convolution and dense: cuda_convolution.py ------------------------------------------

    def conv2d_workspace(self, nets, batch, window, channels, filters):
        return self._convolution.workspace(nets, batch, window, channels, filters)

    def conv2d(self, x, kernel, bias, window, activation, y, workspace):
        code, afterwards = _split_activation(activation)
        self._convolution.forward(x, kernel, bias, window, code, y, workspace)
        self.activate(afterwards, y)

    def conv2d_weight_gradient(self, x, dz, window, dkernel, dbias, workspace):
        self._convolution.weight_gradient(x, dz, window, dkernel, dbias, workspace)

    def conv2d_input_gradient(self, dz, kernel, window, dx, workspace):
        self._convolution.input_gradient(dz, kernel, window, dx, workspace)

    def dense_workspace(self, nets, batch, inputs, units):
        return self._dense.workspace(nets, batch, inputs, units)

    def dense(self, x, kernel, bias, activation, y, workspace):
        code, afterwards = _split_activation(activation)
        self._dense.forward(x, kernel, bias, code, y, workspace)
        self.activate(afterwards, y)

    def dense_weight_gradient(self, x, dz, dkernel, dbias, workspace):
        self._dense.weight_gradient(x, dz, dkernel, dbias, workspace)

    def dense_input_gradient(self, dz, kernel, dx, workspace):
        self._dense.input_gradient(dz, kernel, dx, workspace)

    # ---- batch normalisation -----------------------------------------------------------------

    def batch_norm_workspace(self, nets, batch, shape):
        t = _Tiles.of((nets, batch, *shape))
        return sum(4 * prod(shape) for shape, _ in t.workspace_layout(nets))

    def batch_norm(self, x, gamma, beta, epsilon, mean, variance, y, workspace):
        t = _Tiles.of(x.shape)
        chunks, terms = slice_workspace(workspace, t.workspace_layout(len(x)))
        mean_error = terms[:, 0]  # (E, C)
        self.launch(
            "batch_norm.cu", "batch_norm_chunks", t.grid, t.block,
            x=x, rows=t.rows, C=t.channels, chunks=chunks,
        )  # fmt: skip
        self.launch(
            "batch_norm.cu", "batch_norm_statistics", t.sum_grid, t.block,
            chunks=chunks, chunk_count=t.chunk_count, chunk_rows=t.chunk_rows,
            rows=t.rows, C=t.channels, mean=mean, variance=variance, mean_error=mean_error,
        )  # fmt: skip
        self._normalize(x, gamma, beta, epsilon, mean, variance, mean_error, y)

    def batch_norm_inference(self, x, gamma, beta, epsilon, mean, variance, y):
        self._normalize(x, gamma, beta, epsilon, mean, variance, None, y)

    def _normalize(self, x, gamma, beta, epsilon, mean, variance, mean_error, y):
        t = _Tiles.of(x.shape)
        self.launch(
            "batch_norm.cu", "batch_norm_normalize", t.grid, t.block,
            x=x, rows=t.rows, C=t.channels, gamma=gamma, beta=beta, epsilon=epsilon,
            mean=mean, variance=variance, mean_error=mean_error, y=y,
        )  # fmt: skip

    def batch_norm_backward(
        self, x, dy, gamma, epsilon, mean, variance, dx, dgamma, dbeta, workspace, activation
    ):
        t = _Tiles.of(x.shape)
        chunks, terms = slice_workspace(workspace, t.workspace_layout(len(x)))
        self.launch(
            "batch_norm.cu", "batch_norm_gradient_chunks", t.grid, t.block,
            x=x, dy=dy, rows=t.rows, C=t.channels, mean=mean, chunks=chunks,
        )  # fmt: skip
        self.launch(
            "batch_norm.cu", "batch_norm_gradient_sums", t.sum_grid, t.block,
            chunks=chunks, chunk_count=t.chunk_count, rows=t.rows, C=t.channels,
            gamma=gamma, epsilon=epsilon, variance=variance,
            dgamma=dgamma, dbeta=dbeta, terms=terms,
        )  # fmt: skip
        self.launch(
            "batch_norm.cu", "batch_norm_input_gradient", t.grid, t.block,
            x=x, dy=dy, rows=t.rows, C=t.channels, mean=mean, terms=terms, dx=dx,
        )  # fmt: skip
        self.activate_backward(activation, x, dx)

    def update_moving(self, moving, batch, momentum):
        C = _elements(moving)
        self._launch_for_each(
            C, "batch_norm.cu", "update_moving", moving, batch, momentum, 1 - momentum, C
        )

    # ---- dropout -----------------------------------------------------------------------------

    def dropout(self, x, rate, seed, nets, stream, step, mask, y):
        count = _elements(x)
        self._launch_for_each(
            _ceil_div(count, 4), "dropout.cu", "dropout_forward",  # a thread draws four words
            x=x, scale=1 / (1 - rate), threshold=rng.threshold(rate),
            seed=seed, nets=nets, stream=stream, step=step, count=count,
            mask=mask, y=y,
        )  # fmt: skip

    def dropout_backward(self, dy, rate, mask, dx):
        count, scale = _elements(dy), 1 / (1 - rate)
        self._launch_for_each(count, "dropout.cu", "dropout_backward", dy, scale, mask, count, dx)

    # ---- max pooling -------------------------------------------------------------------------

    def max_pool(self, x, window, winner, y):
        count, p = _elements(y), _pooling(x, window)
        self._launch_for_each(count, "pooling.cu", "max_pool_forward", x, p, count, winner, y)

    def max_pool_backward(self, dy, window, winner, dx):
        count, p = _elements(dx), _pooling(dx, window)
        self._launch_for_each(count, "pooling.cu", "max_pool_backward", dy, winner, p, count, dx)

    # ---- loss, metrics, optimizer ------------------------------------------------------------

    def softmax_cross_entropy(self, logits, labels, smoothing, loss, correct, dlogits):
        _, B, classes = logits.shape
        block = _WARP, min(B, 32)  # up to 32 warps; each takes an image at a time
        self.launch(
            "loss.cu", "softmax_cross_entropy", (1,), block,
            logits=logits, labels=labels, B=B, classes=classes, smoothing=smoothing,
            loss=loss, correct=correct, dlogits=dlogits,
        )  # fmt: skip

    def accumulate(self, loss, correct, step, sums):
        self.launch("metrics.cu", "accumulate", (1,), (1,), loss, correct, step, sums)

    def collect(self, source, step, target):
        count = _elements(source)
        self._launch_for_each(count, "metrics.cu", "collect", source, step, count, target)
        self.launch("metrics.cu", "increment", (1,), (1,), step)

    def adam(self, params, gradients, m, v, step, learning_rate, beta_1, beta_2, epsilon):
        P, settings = _elements(params), (step, learning_rate, beta_1, beta_2, epsilon)
        self._launch_for_each(
            _ceil_div(P, 16), "adam.cu", "adam",  # adam.cu's WEIGHTS_PER_THREAD
            P=P, **self.adam_arguments(params, gradients, m, v, *settings),
        )  # fmt: skip

    @staticmethod
    def adam_arguments(params, gradients, m, v, step, learning_rate, beta_1, beta_2, epsilon):
        """The arguments that Adam's kernels (adam.cu) have in common, from those of `adam`."""
        log_1, log_2 = (log(beta) if beta else -inf for beta in (beta_1, beta_2))
        return {
            "w": params, "g": gradients, "m": m, "v": v, "step": step,
            "learning_rate": learning_rate, "rates": len(learning_rate),
            "keep_1": beta_1, "take_1": 1 - beta_1, "log_1": log_1,
            "keep_2": beta_2, "take_2": 1 - beta_2, "log_2": log_2, "epsilon": epsilon,
        }  # fmt: skip

    def average(self, params, averaged, step, shares):
        P = _elements(params)
        self._launch_for_each(
            _ceil_div(P, 16), "adam.cu", "average",  # adam.cu's WEIGHTS_PER_THREAD
            w=params, averaged=averaged, P=P, step=step, shares=shares, count=len(shares),
        )  # fmt: skip


class _Tiles(NamedTuple):
    """How batch normalisation splits x (E, rows, C): into tiles of channels and chunks of rows.

    A tile is as wide as a warp, or as the next power of two if there are fewer channels; the sum
    over rows of threads needs a power of two. All of this depends on the layer alone.
    """

    rows: int
    channels: int
    block: tuple  # (channels, rows) of a thread block
    chunk_rows: int
    grid: tuple  # (chunks of rows, tiles of channels)

    @classmethod
    def of(cls, shape):
        rows, channels = prod(shape[1:-1]), shape[-1]
        width = min(1 << (channels - 1).bit_length(), _WARP)
        height = 256 // width  # batch_norm.cu's THREADS
        chunk_rows = 16 * height  # its ROWS_A_THREAD
        grid = _ceil_div(rows, chunk_rows), _ceil_div(channels, width)
        return cls(rows, channels, (width, height), chunk_rows, grid)

    @property
    def chunk_count(self):
        """The number of chunks."""
        return self.grid[0]

    @property
    def sum_grid(self):
        """The grid that adds up the chunks' sums: one thread block for each tile of channels."""
        return self.grid[1:]

    def workspace_layout(self, nets):
        """[(shape, dtype)] of the chunks' sums, and of the terms that follow from them."""
        shapes = (nets, 3, self.chunk_count, self.channels), (nets, 3, self.channels)
        return [(shape, np.float32) for shape in shapes]


def _warp_per_row(rows):
    """(grid, block) of softmax: a warp for each row, eight rows for each thread block."""
    return (_ceil_div(rows, 8),), (_WARP, 8)


def _pooling(x, window):
    """pooling.cu's struct, for an input x (E, B, H, W, C)."""
    (kh, kw), (sh, sw), (top, left) = window.size, window.strides, window.before
    (H, W), (Ho, Wo) = window.input, window.output
    return {
        "H": H, "W": W, "C": x.shape[-1], "Ho": Ho, "Wo": Wo,
        "kh": kh, "kw": kw, "sh": sh, "sw": sw, "top": top, "left": left,
    }  # fmt: skip


def _split_activation(name):
    """(number of the activation that a kernel itself applies, name of the one to launch after it).

    One of the two is linear, which does nothing.
    """
    if name == "softmax":  # needs a whole row
        return 0, name
    return _ACTIVATIONS.index(name), "linear"


def _elements(x):
    """The number of elements of x (E, ...) for one net."""
    return prod(x.shape[1:])


def _ceil_div(a, b):
    return -(-a // b)
