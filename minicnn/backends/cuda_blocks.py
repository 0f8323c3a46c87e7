"""Fused blocks: networks of convolutions, each with batch normalisation behind it, in few launches.

A launch makes a block's activation y from that of the block below, with all that lies between, and
leaves sums of y for the normalisation that follows; others go the same way back. So each activation
is written once in a step, and read by no more than five launches, of 28 for all layers and nets.
`fusion` is the one place that decides whether a stack of layers is such a network; others run layer
by layer (plan.py), and so does the same network in float32.

Read kernels/block.cuh next, then correlation.cuh and the kernels. cuda_tiles.py chooses
how they cut their work.
"""

from itertools import pairwise
from math import inf, prod
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from .. import rng
from ..network.geometry import Window
from ..network.layers import BatchNormalization, Conv2D, Dense, Dropout, Flatten
from ..network.plan import batch_layout
from ..network.stack import Node, views, weights_layout
from . import cuda_tiles
from .cuda_convolution import sizes

_FLOORS = {"linear": -inf, "relu": 0.0}  # what an activation is the larger one of, beside its input
_FEW_CHANNELS = 8  # fewer of them do not fill tensor cores
_THREADS = 256
_SUM_LENGTH = 1024  # numbers that a block of threads of sum_parts adds up


class Drop(NamedTuple):
    """A dropout layer; rate 0 stands for none."""

    rate: float = 0.0
    stream: int = 0

    @property
    def scale(self):
        """By which it multiplies what it keeps."""
        return 1 / (1 - self.rate)

    @property
    def threshold(self):
        """The random words below it drop their number."""
        return rng.threshold(self.rate)


class Block(NamedTuple):
    """A convolution, its batch normalisation, and the dropout behind it, with their launches."""

    convolution: Node
    normalization: Node
    drop: Drop
    window: Window
    channels: int
    filters: int
    forward: cuda_tiles.TiledLaunch
    weight_gradient: cuda_tiles.TiledLaunch
    input_gradient: cuda_tiles.TiledLaunch | None = None  # of the first block nobody needs it

    @property
    def first(self):
        """Whether block_first.cu's kernels make it."""
        return self.input_gradient is None and self.channels < _FEW_CHANNELS

    @property
    def floor(self):
        """What its activation keeps numbers above."""
        return _FLOORS[self.convolution.layer.activation]

    def sizes(self, batch):
        """convolution.cuh's struct."""
        return sizes(self.window, batch, self.channels, self.filters)

    @property
    def weights(self):
        """How many numbers its kernel and bias are."""
        return (prod(self.window.size) * self.channels + 1) * self.filters


class Network(NamedTuple):
    """A stack that can be fused: its blocks, and the dense layer behind them."""

    blocks: list
    dense: Node
    head_images: int  # of head.cu at a time
    head_bytes: int  # of shared memory

    def layout(self, nodes, nets, batch, training, dtype):
        """As plan.plan_layout."""
        return fused_layout(self, nodes, nets, batch, training, dtype)

    def plan(self, model, batch, training):
        """As plan.Plan."""
        return BlockPlan(model, self, batch, training)


def fusion(nodes, batch):
    """The Network of a stack of layers at a batch size; None where it is not one.

    It is blocks, then Flatten, Dropout and Dense: all that a step of training fuses. Convolutions
    are linear or ReLU, their channels multiples of four, but for the first one's.
    """
    found, rest = [], list(nodes)
    while rest and isinstance(rest[0].layer, Conv2D):
        if len(rest) < 2 or not isinstance(rest[1].layer, BatchNormalization):
            return None
        convolution, normalization, *rest = rest
        drop, rest = _take_drop(rest)
        block = _block(convolution, normalization, drop, batch, first=not found)
        if block is None:
            return None
        found.append(block)
    if not found or not rest or not isinstance(rest[0].layer, Flatten):
        return None
    drop, rest = _take_drop(rest[1:])
    if len(rest) != 1 or not isinstance(rest[0].layer, Dense):
        return None
    dense, last = rest[0], found[-1]
    if dense.layer.activation != "linear" or (drop.rate and last.drop.rate):
        return None
    if drop.rate:
        found[-1] = last = last._replace(drop=drop)
    launch = cuda_tiles.head(
        prod(last.convolution.output_shape), last.filters, dense.layer.units, batch
    )
    return Network(found, dense, *launch) if launch else None


def _take_drop(nodes):
    """(Drop, the nodes behind it)."""
    if nodes and isinstance(nodes[0].layer, Dropout):
        return Drop(nodes[0].layer.rate, nodes[0].stream), nodes[1:]
    return Drop(), nodes


def _block(convolution, normalization, drop, batch, first):
    """The Block; None where no kernel makes it."""
    layer, channels = convolution.layer, convolution.input_shape[-1]
    window, filters = layer.window(convolution.input_shape), layer.filters
    few = first and channels < _FEW_CHANNELS
    strides_fit = all(
        stride <= min(size, length)
        for stride, size, length in zip(window.strides, window.size, window.input, strict=True)
    )
    if layer.activation not in _FLOORS or filters % 4 or not strides_fit:
        return None
    if not few and channels % 4:
        return None
    shape = window, channels, filters, batch
    if few:
        ways = cuda_tiles.first_forward(*shape), cuda_tiles.first_weight_gradient(*shape)
    else:
        ways = cuda_tiles.forward(*shape), cuda_tiles.weight_gradient(*shape)
    if not first:
        ways = *ways, cuda_tiles.input_gradient(cuda_tiles.gradient_window(window), *shape[1:])
    if not all(ways):
        return None
    launches = map(cuda_tiles.best, ways)
    return Block(convolution, normalization, drop, window, channels, filters, *launches)


def fused_layout(network, nodes, nets, batch, training, dtype):
    """{key: (shape, dtype)} of every array of a BlockPlan: what it takes, before it is taken."""
    layout = batch_layout(nodes, nets, batch, dtype)
    layout["output"] = (nets, batch, *nodes[-1].output_shape), dtype
    shapes = [(nets, batch, *b.convolution.output_shape) for b in network.blocks]
    largest = max(map(prod, shapes))
    for key, table in _tables(network, training).items():
        layout[key] = table.shape, table.dtype
    if not training:
        return layout | {("buffer", turn): ((largest,), dtype) for turn in range(2)}
    for i, shape in enumerate(shapes):
        layout["y", i] = shape, dtype
    for turn in range(2):
        layout["gradient", turn] = (largest,), dtype
    _, numbers = _parts(network)
    layout["parts"] = (nets, numbers), dtype
    layout["moments"] = weights_layout(nodes, nets, dtype)["moving"]
    layout["sums"] = (_sum_rows(network, nodes).shape, np.dtype(np.int32))
    words = _words(network, batch)
    if words[-1]:
        layout["kept"] = (nets, words[-1]), np.dtype(np.uint32)
        layout["drops"] = (_drop_rows(network, batch).shape, np.dtype(np.uint32))
    return layout


def _tables(network, training):
    """{key: array} of what correlation.cuh's launches read of their tables."""
    tables = {("forward table", i): b.forward.tables for i, b in enumerate(network.blocks)}
    if training:
        for i, block in enumerate(network.blocks):
            tables["weight table", i] = block.weight_gradient.tables
            if i:
                tables["gradient table", i] = block.input_gradient.tables
    return {key: np.array(table, np.int32) for key, table in tables.items() if table}


def _parts(network):
    """([{what: where it begins in a net's row of parts}, ...] by block, numbers of the row)."""
    found, at = [], 0
    for i, block in enumerate(network.blocks):
        above = network.blocks[i + 1] if i + 1 < len(network.blocks) else None
        sums = above.input_gradient.parts if above else 1
        kinds = {
            "moments": (block.forward.parts, cuda_tiles.STATISTICS * block.filters),
            "sums": (sums, cuda_tiles.SUMS * block.filters),
            "weights": (block.weight_gradient.parts, block.weights),
        }
        begins = {}
        for what, (count, size) in kinds.items():
            begins[what] = at, count, size
            at += count * size
        found.append(begins)
    return found, at


def _words(network, batch):
    """Where each block's dropout bits begin among a net's words, and how many these are."""
    begins = [0]
    for block in network.blocks:
        numbers = batch * prod(block.convolution.output_shape) if block.drop.rate else 0
        begins.append(begins[-1] + -(-numbers // 32))
    return begins


def _drop_rows(network, batch):
    """dropout_bits' table."""
    rows = [
        (begin, block.drop.stream, block.drop.threshold)
        for block, begin in zip(network.blocks, _words(network, batch), strict=False)
        if block.drop.rate
    ]
    return np.array(rows, np.uint32).reshape(-1, 3)


def _sum_rows(network, nodes):
    """sum_parts' table: which parts make which gradients."""
    (_, numbers), _ = weights_layout(nodes, 1, np.dtype(np.float32))["params"]
    places, at = {}, 0  # of each node's weights in the flat row: numbers stand for their places
    for node in nodes:
        found, at = views(np.arange(numbers)[None], node.specs, at)
        places[id(node)] = {name: view.flat[0] for name, view in vars(found).items()}
    rows = []

    def add(begin, count, step, to, length):
        for first in range(0, length, _SUM_LENGTH):
            rows.append((begin + first, count, step, to + first, min(_SUM_LENGTH, length - first)))

    for block, parts in zip(network.blocks, _parts(network)[0], strict=True):
        convolution, normalization = places[id(block.convolution)], places[id(block.normalization)]
        begin, count, step = parts["weights"]
        kernel = block.weights - block.filters
        add(begin, count, step, convolution["kernel"], kernel)
        add(begin + kernel, count, step, convolution["bias"], block.filters)
        begin, count, step = parts["sums"]
        add(begin, count, step, normalization["beta"], block.filters)
        add(begin + block.filters, count, step, normalization["gamma"], block.filters)
    return np.array(rows, np.int32)


class BlockPlan:
    """The arrays of one batch size of a Network, and the passes over them; as plan.Plan's."""

    def __init__(self, model, network, batch, training):
        self.ops, self.network = model.ops, network
        # Not the model itself, which has this plan: without a circle both go when they are let go.
        self._seed, self._nets, self._step = model.seed, model.net_numbers, model.step
        self._gradients, self._moving = model.gradients, model.moving
        self.batch, self.training = batch, training
        E, ops = len(model.nets), model.ops
        layout = fused_layout(network, model.nodes, E, batch, training, model.dtype)
        # x starts as zeros, since a short batch leaves rows of it as they were, and so do moments,
        # which have gaps.
        arrays = {
            key: (ops.zeros if key in ("x", "moments") else ops.empty)(shape, dtype)
            for key, (shape, dtype) in layout.items()
        }
        self.x, self.labels, self.output = arrays["x"], arrays["labels"], arrays["output"]
        self.loss, self.correct = arrays["loss"], arrays["correct"]
        self.nbytes = sum(array.nbytes for array in arrays.values())
        self._arrays = arrays
        self._launch = ops.launch
        for key, table in _tables(network, training).items():
            ops.copy(ops.to_device(table), arrays[key])
        shapes = [(E, batch, *b.convolution.output_shape) for b in network.blocks]

        def buffer(kind, turn, shape):
            return arrays[kind, turn % 2][: prod(shape)].reshape(shape)

        if not training:
            self._y = [buffer("buffer", i, shape) for i, shape in enumerate(shapes)]
            self._normalized = buffer("buffer", len(shapes), shapes[-1])
            return
        self._y = [arrays["y", i] for i in range(len(shapes))]
        # Each is needed until the one below is made.
        self._dx = [buffer("gradient", i, shape) for i, shape in enumerate(shapes)]
        self._parts = [
            SimpleNamespace(
                **{
                    what: arrays["parts"][:, begin : begin + count * size].reshape(E, count, size)
                    for what, (begin, count, size) in begins.items()
                }
            )
            for begins in _parts(network)[0]
        ]
        moments, at = {}, 0
        for node in model.nodes:
            moments[id(node)], at = views(arrays["moments"], node.moving_specs, at)
        self._moments = [moments[id(block.normalization)] for block in network.blocks]
        ops.copy(ops.to_device(_sum_rows(network, model.nodes)), arrays["sums"])
        words = _words(network, batch)
        self._kept = [
            arrays["kept"][:, begin:end] if end > begin else None for begin, end in pairwise(words)
        ]
        if words[-1]:
            ops.copy(ops.to_device(_drop_rows(network, batch)), arrays["drops"])

    # ---- passes ------------------------------------------------------------------------------

    def forward(self):
        """The logits of x, at inference."""
        blocks = self.network.blocks
        for i in range(len(blocks)):
            self.forward_block(i)
        last, dense = blocks[-1].normalization, self.network.dense
        self.ops.batch_norm_inference(
            self._y[-1], last.weights.gamma, last.weights.beta, last.layer.epsilon,
            last.moving.moving_mean, last.moving.moving_variance, self._normalized,
        )  # fmt: skip
        rows = self._normalized.reshape(*self.output.shape[:2], -1)
        w = dense.weights
        self.ops.dense(rows, w.kernel, w.bias, "linear", self.output, None)

    def forward_backward(self):
        """Loss and gradients of the batch in x and labels."""
        self._draw_drops()
        blocks = self.network.blocks
        for i in range(len(blocks)):
            self.forward_block(i)
        self.head()
        for i in reversed(range(len(blocks))):
            self.weight_gradient(i)
            if i:
                self.input_gradient(i)
        sums = self._arrays["sums"]
        self._launch(
            "sum_parts.cu", "sum_parts", sums.shape[:1], (_THREADS,),
            sums.reshape(-1), self._arrays["parts"], self._gradients,
        )  # fmt: skip

    def update_moving(self):
        """Bring the moving statistics up to date after a training step."""
        layers = [block.normalization.layer for block in self.network.blocks]
        if len({layer.momentum for layer in layers}) == 1:
            self.ops.update_moving(self._moving, self._arrays["moments"], layers[0].momentum)
            return
        for block, moments in zip(self.network.blocks, self._moments, strict=True):
            for name, moving in vars(block.normalization.moving).items():
                momentum = block.normalization.layer.momentum
                self.ops.update_moving(moving, vars(moments)[name], momentum)

    # ---- launches ----------------------------------------------------------------------------

    def _draw_drops(self):
        if "kept" not in self._arrays:
            return
        kept, drops = self._arrays["kept"], self._arrays["drops"]
        words = kept.shape[1]
        self._launch(
            "dropout.cu", "dropout_bits", (-(-words // _THREADS),), (_THREADS,),
            drops.reshape(-1), len(drops), words, self._seed, self._nets, self._step, kept,
        )  # fmt: skip

    def forward_block(self, i):
        block, training = self.network.blocks[i], self.training
        launch = block.forward
        w = block.convolution.weights
        parts = self._parts[i].moments if training else None
        results = self._y[i], parts
        shape = block.sizes(self.batch)
        if block.first:
            given = self.x, w.kernel, w.bias, shape, launch.tiling, block.floor
            self._run("block_first.cu", "block_first_forward", launch, *given, *results)
            return
        below = self.x, *(None,) * 3, 0, None, None, 1.0, 1.0, None
        if i:
            under = self.network.blocks[i - 1]
            n = under.normalization
            if training:
                moments, parts_below = self._moments[i - 1], self._parts[i - 1].moments
                drop, kept, count = under.drop.scale, self._kept[i - 1], parts_below.shape[1]
            else:
                moments, parts_below, drop, kept, count = n.moving, None, 1.0, None, 0
            below = (
                self._y[i - 1], n.weights.gamma, n.weights.beta, parts_below, count,
                moments.moving_mean, moments.moving_variance, n.layer.epsilon, drop, kept,
            )  # fmt: skip
        y, *rest = below
        table = self._arrays["forward table", i]
        given = y, w.kernel, w.bias, *rest, shape, launch.tiling, table, block.floor
        self._run("block_forward.cu", "block_forward", launch, *given, *results)

    def head(self):
        block, dense, batch = self.network.blocks[-1], self.network.dense, self.batch
        n, parts, moments = block.normalization, self._parts[-1], self._moments[-1]
        w, g = dense.weights, dense.gradients
        self._launch(
            "head.cu", "head", (1,), (cuda_tiles.HEAD_THREADS,),
            self._y[-1], n.weights.gamma, n.weights.beta, parts.moments, parts.moments.shape[1],
            n.layer.epsilon, block.drop.scale, self._kept[-1], w.kernel, w.bias, self.labels,
            batch, prod(self._y[-1].shape[2:]), block.filters, dense.layer.units,
            self.network.head_images,
            moments.moving_mean, moments.moving_variance, self.output, self.loss, self.correct,
            g.kernel, g.bias, self._dx[-1], parts.sums,
            shared_bytes=self.network.head_bytes,
        )  # fmt: skip

    def _gradient(self, i):
        """What a launch is told of block i's gradient before its activation."""
        n, parts, moments = self.network.blocks[i].normalization, self._parts[i], self._moments[i]
        return (
            self._dx[i], self._y[i], parts.sums, parts.sums.shape[1], n.weights.gamma,
            moments.moving_mean, moments.moving_variance, n.layer.epsilon,
        )  # fmt: skip

    def weight_gradient(self, i):
        block, launch = self.network.blocks[i], self.network.blocks[i].weight_gradient
        shape = block.sizes(self.batch)
        parts = self._parts[i].weights
        last = block.floor, shape, launch.tiling
        if block.first:
            given = self.x, *self._gradient(i), *last, parts
            self._run("block_first.cu", "block_first_weight_gradient", launch, *given)
            return
        below = self.x, *(None,) * 4, 1.0, 1.0, None
        if i:
            under, moments = self.network.blocks[i - 1], self._moments[i - 1]
            n = under.normalization
            below = (
                self._y[i - 1], n.weights.gamma, n.weights.beta, moments.moving_mean,
                moments.moving_variance, n.layer.epsilon, under.drop.scale, self._kept[i - 1],
            )  # fmt: skip
        given = *below, *self._gradient(i), *last, self._arrays["weight table", i], parts
        self._run("block_weight_gradient.cu", "block_weight_gradient", launch, *given)

    def input_gradient(self, i):
        block, under = self.network.blocks[i], self.network.blocks[i - 1]
        launch, moments = block.input_gradient, self._moments[i - 1]
        window = cuda_tiles.gradient_window(block.window)
        shape = sizes(window, self.batch, block.channels, block.filters)
        self._run(
            "block_input_gradient.cu", "block_input_gradient", launch, *self._gradient(i),
            block.floor, block.convolution.weights.kernel, shape, launch.tiling,
            self._arrays["gradient table", i], prod(map(len, window.phases)),
            self._y[i - 1], moments.moving_mean, moments.moving_variance,
            under.normalization.layer.epsilon, self._kept[i - 1], under.drop.scale,
            self._dx[i - 1], self._parts[i - 1].sums,
        )  # fmt: skip

    def _run(self, file, kernel, launch, *arguments):
        self._launch(
            file, kernel, launch.grid, (launch.threads,), *arguments,
            shared_bytes=launch.shared_bytes, defines=launch.defines,
        )  # fmt: skip
