"""The backend of CUDA kernels: every operation of ops_numpy.py as launches of kernels/*.cu.

A driver launches: cuda.py's on a GPU, the emulator on a CPU. An operation allocates nothing and
waits for nothing; it only puts launches in order, so that a step can be captured as a graph. The
net is a grid axis that the driver adds, so one launch serves all nets. What is written here is the
rest of a launch: how many blocks, of which threads, to which part of a net's numbers.

ops_numpy.py says what an operation means, and the kernel's file how it is computed.
"""

from math import prod
from typing import NamedTuple

import numpy as np

from .. import checks, rng
from . import cuda_blocks
from .backend import Backend
from .cuda_convolution import VERSIONS, Dense
from .scratch import slice_workspace

_ACTIVATIONS = "linear", "relu", "sigmoid", "tanh"  # in activation.cuh's order
_THREADS = 256  # of a block, where nothing speaks for another number
_WARP = 32


class Operations(Backend):
    """The operations on one driver's arrays. `convolution` names a version of it.

    precision: "float32", or "tf32": then cuda_blocks.py trains what is a network of blocks, with
    products of tensor cores. Anything else is computed in float32, whichever is asked for.
    """

    lockstep = True  # a launch is as long for one net as for many, until the GPU is full

    def __init__(self, driver, convolution="implicit", precision="float32"):
        self.name = driver.name
        self.precisions = ("float32", "tf32") if driver.has_tf32 else ("float32",)
        self.precision = checks.choice("precision", precision, self.precisions)
        self.launch = driver.launch
        self._convolution = VERSIONS[checks.choice("convolution", convolution, VERSIONS)](driver)
        self._dense = Dense(driver)
        self.empty, self.zeros, self.copy = driver.empty, driver.zeros, driver.copy
        self.to_device, self.to_host = driver.to_device, driver.to_host
        self.session, self.capture = driver.session, driver.capture
        self.free_memory = driver.free_memory

    def fusion(self, nodes, batch):
        """The cuda_blocks.Network that a stack of layers is at a batch size, or None."""
        return cuda_blocks.fusion(nodes, batch) if self.precision == "tf32" else None

    def _launch_for_each(self, count, file, kernel, *arguments):
        """A thread for each of `count` things of a net."""
        self.launch(file, kernel, (_ceil_div(count, _THREADS),), (_THREADS,), *arguments)

    # ---- the batch ---------------------------------------------------------------------------

    def load_batch(self, images, labels, order, ranges, seed, nets, step, x, y):
        _, steps, B = order.shape
        H, W = images.shape[1:]
        # A block for each image: its threads share the map, and the cache that holds the image.
        gathered = images, labels, order, steps, B, H, W
        drawn = ranges, seed, nets, rng.AUGMENTATION, step
        self.launch("augment.cu", "load_batch", (B,), (_THREADS,), *gathered, *drawn, x, y)

    # ---- activations -------------------------------------------------------------------------

    def activate(self, name, y):
        if name == "softmax":
            rows, N = prod(y.shape[1:-1]), y.shape[-1]
            self.launch("activation.cu", "softmax_forward", *_warp_a_row(rows), rows, N, y)
        elif name != "linear":
            n, code = _numbers(y), _ACTIVATIONS.index(name)
            self._launch_for_each(n, "activation.cu", "activation_forward", code, n, y)

    def activate_backward(self, name, y, dy):
        if name == "softmax":
            rows, N = prod(y.shape[1:-1]), y.shape[-1]
            self.launch("activation.cu", "softmax_backward", *_warp_a_row(rows), y, rows, N, dy)
        elif name != "linear":
            n, code = _numbers(y), _ACTIVATIONS.index(name)
            self._launch_for_each(n, "activation.cu", "activation_backward", code, y, n, dy)

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
        rest = terms[:, 0]  # (E, C)
        file, size = "batch_norm.cu", (t.rows, t.channels)
        self.launch(file, "batch_norm_chunks", t.grid, t.block, x, *size, chunks)
        results = mean, variance, rest
        sums = chunks, t.chunks, t.chunk_rows
        self.launch(file, "batch_norm_statistics", t.sum_grid, t.block, *sums, *size, *results)
        self._normalize(x, gamma, beta, epsilon, mean, variance, rest, y)

    def batch_norm_inference(self, x, gamma, beta, epsilon, mean, variance, y):
        self._normalize(x, gamma, beta, epsilon, mean, variance, None, y)

    def _normalize(self, x, gamma, beta, epsilon, mean, variance, rest, y):
        t = _Tiles.of(x.shape)
        given = x, t.rows, t.channels, gamma, beta, epsilon, mean, variance, rest
        self.launch("batch_norm.cu", "batch_norm_normalize", t.grid, t.block, *given, y)

    def batch_norm_backward(
        self, x, dy, gamma, epsilon, mean, variance, dx, dgamma, dbeta, workspace, activation
    ):
        t = _Tiles.of(x.shape)
        chunks, terms = slice_workspace(workspace, t.workspace_layout(len(x)))
        file, given = "batch_norm.cu", (x, dy, t.rows, t.channels, mean)
        self.launch(file, "batch_norm_gradient_chunks", t.grid, t.block, *given, chunks)
        sums = chunks, t.chunks, t.rows, t.channels, gamma, epsilon, variance
        results = dgamma, dbeta, terms
        self.launch(file, "batch_norm_gradient_sums", t.sum_grid, t.block, *sums, *results)
        self.launch(file, "batch_norm_input_gradient", t.grid, t.block, *given, terms, dx)
        self.activate_backward(activation, x, dx)

    def update_moving(self, moving, batch, momentum):
        given = moving, batch, momentum, _numbers(moving)
        self._launch_for_each(_numbers(moving), "batch_norm.cu", "update_moving", *given)

    # ---- dropout -----------------------------------------------------------------------------

    def dropout(self, x, rate, seed, nets, stream, step, mask, y):
        n = _numbers(x)
        blocks = _ceil_div(n, 4)  # of Philox, with four words each
        given = x, 1 / (1 - rate), rng.threshold(rate), seed, nets, stream, step, n
        self._launch_for_each(blocks, "dropout.cu", "dropout_forward", *given, mask, y)

    def dropout_backward(self, dy, rate, mask, dx):
        n = _numbers(dy)
        self._launch_for_each(n, "dropout.cu", "dropout_backward", dy, 1 / (1 - rate), mask, n, dx)

    # ---- max pooling -------------------------------------------------------------------------

    def max_pool(self, x, window, winner, y):
        n, pooling = _numbers(y), _pooling(x, window)
        self._launch_for_each(n, "pooling.cu", "max_pool_forward", x, pooling, n, winner, y)

    def max_pool_backward(self, dy, window, winner, dx):
        n, pooling = _numbers(dx), _pooling(dx, window)
        self._launch_for_each(n, "pooling.cu", "max_pool_backward", dy, winner, pooling, n, dx)

    # ---- loss, metrics, optimizer ------------------------------------------------------------

    def softmax_cross_entropy(self, logits, labels, loss, correct, dlogits):
        _, B, N = logits.shape
        block = _WARP, min(B, 32)  # one block a net; a warp for each image, or for each 32nd
        given, results = (logits, labels, B, N), (loss, correct, dlogits)
        self.launch("loss.cu", "softmax_cross_entropy", (1,), block, *given, *results)

    def accumulate(self, loss, correct, sums):
        self.launch("metrics.cu", "accumulate", (1,), (1,), loss, correct, sums)

    def collect(self, source, step, target):
        n = _numbers(source)
        self._launch_for_each(n, "metrics.cu", "collect", source, step, n, target)
        self._increment(step)

    def adam(self, params, gradients, m, v, step, learning_rate, beta_1, beta_2, epsilon):
        P = _numbers(params)
        threads = _ceil_div(P, 4)  # adam.cu's NUMBERS_A_THREAD
        given = params, gradients, m, v, P, step, learning_rate, beta_1, beta_2, epsilon
        self._launch_for_each(threads, "adam.cu", "adam", *given)
        self._increment(step)

    def _increment(self, step):
        self.launch("metrics.cu", "increment", (1,), (1,), step)


class _Tiles(NamedTuple):
    """How batch normalisation cuts x (E, rows, C): into tiles of channels and chunks of rows.

    A tile is as wide as a warp, or as the channels if they are fewer (a power of two, since the
    rows of threads are halved to add them up). All of it depends on the layer alone.
    """

    rows: int
    channels: int
    block: tuple  # threads: channels, rows
    chunk_rows: int
    grid: tuple  # blocks: chunks of rows, tiles of channels

    @classmethod
    def of(cls, shape):
        rows, channels = prod(shape[1:-1]), shape[-1]
        width = min(1 << (channels - 1).bit_length(), _WARP)
        height = 256 // width  # batch_norm.cu's THREADS
        chunk_rows = 16 * height  # its ROWS_A_THREAD
        grid = _ceil_div(rows, chunk_rows), _ceil_div(channels, width)
        return cls(rows, channels, (width, height), chunk_rows, grid)

    @property
    def chunks(self):
        """How many there are."""
        return self.grid[0]

    @property
    def sum_grid(self):
        """Blocks to add up the chunks' sums: one for each tile of channels."""
        return self.grid[1:]

    def workspace_layout(self, nets):
        """The chunks' sums, and what a second launch makes of them for a third."""
        shapes = (nets, 3, self.chunks, self.channels), (nets, 3, self.channels)
        return [(shape, np.float32) for shape in shapes]


def _warp_a_row(rows):
    """(grid, block) of softmax: a warp for each row, eight rows a block."""
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
    """(code, name): what a kernel applies to its result itself, and what is launched after it."""
    if name == "softmax":  # needs a whole row
        return 0, name
    return _ACTIVATIONS.index(name), "linear"


def _numbers(x):
    """How many numbers of x (E, ...) are one net's."""
    return prod(x.shape[1:])


def _ceil_div(a, b):
    return -(-a // b)
