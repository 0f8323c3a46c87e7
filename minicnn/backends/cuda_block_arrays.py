"""The arrays of a fused network: activations, gradients, partial sums, dropout bits and tables.

cuda_blocks.py launches the kernels that read and write them. kernels/block.cuh says which partial
sums a kernel writes.
"""

from itertools import pairwise, product
from math import prod
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from ..network.plan import batch_layout
from ..network.stack import views, weights_layout
from . import cuda_tiles

_SUM_LENGTH = 1024  # elements of a gradient that a thread block adds up, see update.cuh


class _Parts(NamedTuple):
    """Where the partial sums (count, size) of a launch are in a net's row of all partial sums."""

    begin: int
    count: int
    size: int

    def of(self, row):
        """These partial sums, (E, count, size), of the rows (E, ...)."""
        end = self.begin + self.count * self.size
        return row[:, self.begin : end].reshape(len(row), self.count, self.size)


def arrays_layout(network, nodes, nets, batch, training, dtype):
    """{key: (shape, dtype)} of every array of BlockArrays, to know its memory beforehand."""
    layout = batch_layout(nodes, nets, batch, dtype)
    layout["output"] = (nets, batch, *nodes[-1].output_shape), dtype
    shapes = _stored_shapes(network, nets, batch)
    largest = max(map(prod, shapes.values()))
    for key, table in _tables(network, nodes, training).items():
        layout[key] = table.shape, table.dtype
    layout["packed"] = (nets, _packings(network, training)[1]), dtype
    stored = network.storage.dtype
    if not training:
        return layout | {("buffer", i): ((largest,), stored) for i in range(2)}
    for i, shape in shapes.items():
        layout["y", i] = shape, stored
    for i in range(2):
        layout["gradient", i] = (largest,), stored
    _, row_size = _parts(network, nodes)
    layout["parts"] = (nets, row_size), dtype
    layout["moments"] = weights_layout(nodes, nets, dtype)["moving"]
    layout["sums"] = (_sum_rows(network, nodes).shape, np.dtype(np.int32))
    words = _word_bounds(network, batch)[-1]
    if words:
        layout["kept"] = (nets, words), np.dtype(np.uint32)
        layout["drops"] = (_drop_rows(network, batch).shape, np.dtype(np.uint32))
    return layout


class BlockArrays:
    """The arrays of a fused network at one batch size, made once.

    x, labels, output, loss and correct are those of network/plan.py's Plan. y[i] is block i's
    activation (E, B, Ho, Wo, Cout). At inference the activations take turns in two buffers, and
    `normalized` is the input of the dense layer. In training dx[i] is the gradient with respect to
    the output of block i's normalisation; parts[i] has the partial sums of block i's `moments`,
    `sums` and `weights`, each (E, count, size); moments[i] are the batch's mean and variance;
    kept[i] are the bits of dropout, or None. A first block that is rebuilt (kernels/rebuilt.cuh)
    has no y and no dx; parts[0] then has `of_y` and `of_dx`, its sums over pixels, and no weights.
    packed["forward", i] and packed["input gradient", i] are block i's weights as correlations read
    them, in words of four bytes. The Storage of the network says how y and dx are stored.
    """

    def __init__(self, model, network, batch, training):
        E, ops = len(model.nets), model.ops
        layout = arrays_layout(network, model.nodes, E, batch, training, model.dtype)
        # x starts as zeros, since a short batch does not set all of its rows; so do the moments,
        # since not all of their elements are used.
        arrays = {
            key: (ops.zeros if key in ("x", "moments") else ops.empty)(shape, dtype)
            for key, (shape, dtype) in layout.items()
        }
        self.nbytes = sum(array.nbytes for array in arrays.values())
        self.x, self.labels, self.output = arrays["x"], arrays["labels"], arrays["output"]
        self.loss, self.correct = arrays["loss"], arrays["correct"]
        tables = _tables(network, model.nodes, training)
        self.all_packed = arrays["packed"]
        self.packed = {
            key: arrays["packed"][:, begin : begin + size]
            for key, (begin, size) in _packings(network, training)[0].items()
        }
        shapes = _stored_shapes(network, E, batch)
        numbers = range(len(network.blocks))

        def buffer(kind, i, shape):
            return arrays[kind, i % 2][: prod(shape)].reshape(shape) if shape else None

        if training:
            tables["sums"] = _sum_rows(network, model.nodes)
            if "drops" in arrays:
                tables["drops"] = _drop_rows(network, batch)
            self.y = [arrays.get(("y", i)) for i in numbers]
            # Two buffers are enough: block i's gradient is used until that of block i - 1 is done.
            self.dx = [buffer("gradient", i, shapes.get(i)) for i in numbers]
            self.parts = [
                SimpleNamespace(**{kind: p.of(arrays["parts"]) for kind, p in of_block.items()})
                for of_block in _parts(network, model.nodes)[0]
            ]
            for i, place in _directly(network, model.nodes).items():
                own = slice(place, place + network.blocks[i].weights)
                self.parts[i].weights = model.gradients[:, None, own]
            self.all_parts, self.all_moments = arrays["parts"], arrays["moments"]
            self.moments = _block_moments(network, model.nodes, arrays["moments"])
            self.kept = [
                arrays["kept"][:, begin:end] if end > begin else None
                for begin, end in pairwise(_word_bounds(network, batch))
            ]
            self.all_kept = arrays.get("kept")
        else:
            self.y = [buffer("buffer", i, shapes.get(i)) for i in numbers]
            self.normalized = buffer("buffer", len(numbers), shapes[numbers[-1]])
        self.tables = {key: arrays[key] for key in tables}
        for key, table in tables.items():
            ops.copy(ops.to_device(table), arrays[key])


def _stored_shapes(network, nets, batch):
    """{i: (E, B, Ho, Wo, Cout)} of the outputs of the blocks that are not rebuilt."""
    return {
        i: (nets, batch, *block.convolution.output_shape)
        for i, block in enumerate(network.blocks)
        if not block.rebuilt
    }


def _tables(network, nodes, training):
    """{key: array} of the tables that the kernels of blocks and pack_weights.cu read."""
    tables = {("forward", i): block.forward.tables for i, block in enumerate(network.blocks)}
    if training:
        for i, block in enumerate(network.blocks):
            if block.weight_gradient:
                tables["weight gradient", i] = block.weight_gradient.tables
            if i:
                tables["input gradient", i] = block.input_gradient.tables
    if rows := _tile_rows(network, nodes, training):
        tables["weights"] = rows
    return {key: np.array(table, np.int32) for key, table in tables.items() if table}


def _correlations(network, training):
    """((pass, i), launch, channels, filters) of each correlation; filters: its result channels."""
    for i, block in enumerate(network.blocks):
        if not (block.first or block.rebuilt):
            yield ("forward", i), block.forward, block.channels, block.filters
        if training and i:
            yield ("input gradient", i), block.input_gradient, block.filters, block.channels


def _packings(network, training):
    """({(pass, i): (begin, size) in a net's row of packed weights}, size of that row), in words."""
    found, begin = {}, 0
    for key, launch, channels, filters in _correlations(network, training):
        slots = cuda_tiles.weight_slots(launch, channels, filters)
        size = len(slots) * network.storage.words * cuda_tiles.packed_width(launch)
        found[key] = begin, size
        begin += size
    return found, begin


def _tile_rows(network, nodes, training):
    """The table of pack_weights.cu: a row for each thread block, (rows, 12)."""
    places, slots, widths = _places(nodes), {}, {}
    packings, _ = _packings(network, training)
    for key, launch, channels, filters in _correlations(network, training):
        (to, _), widths[key] = packings[key], cuda_tiles.packed_width(launch)
        for slot in cuda_tiles.weight_slots(launch, channels, filters):
            slots[key, slot] = to
            to += network.storage.words * widths[key]
    rows = []
    for i, block in enumerate(network.blocks):
        forward, gradient = ("forward", i), ("input gradient", i)
        if forward not in widths:
            continue
        kernel, sizes = places[id(block.convolution)]["kernel"], (block.channels, block.filters)
        tile = widths.get(gradient, cuda_tiles.CHUNK), widths[forward]
        tiles = [range(0, size, step) for size, step in zip(sizes, tile, strict=True)]
        for tap, channel, filter in product(range(prod(block.window.size)), *tiles):
            both = (forward, channel, filter, tile[0]), (gradient, filter, channel, tile[1])
            found = [
                slots.get((key, (tap, depth + more, result)), -1) if more < size else -1
                for key, depth, result, size in both
                for more in (0, cuda_tiles.CHUNK)
            ]
            at = kernel + tap * prod(sizes)
            rows.append((at, *sizes, channel, filter, *tile, *found, 0))
    return rows


def _places(nodes):
    """{id of a node: {name of a weight: its place in a net's flat row of weights}}."""
    (_, size), _ = weights_layout(nodes, 1, np.dtype(np.float32))["params"]
    places, at = {}, 0
    for node in nodes:
        found, at = views(np.arange(size)[None], node.specs, at)
        places[id(node)] = {name: int(view.flat[0]) for name, view in vars(found).items()}
    return places


def _directly(network, nodes):
    """{i: place in a net's row of gradients} of the blocks i whose launch writes them there.

    A single partial sum is the gradient itself, if the bias follows the kernel without a gap.
    Kernels store pairs, so rows must be even.
    """
    (_, size), _ = weights_layout(nodes, 1, np.dtype(np.float32))["params"]
    places, found = _places(nodes), {}
    for i, block in enumerate(network.blocks):
        of_block = places[id(block.convolution)]
        adjoin = of_block["kernel"] + block.weights - block.filters == of_block["bias"]
        single = block.weight_gradient and block.weight_gradient.parts == 1
        if single and adjoin and size % 2 == 0:
            found[i] = of_block["kernel"]
    return found


def _parts(network, nodes):
    """([{kind: _Parts} of each block], size of a net's row of all partial sums)."""
    found, begin = [], 0
    directly = _directly(network, nodes)
    for i, (block, above) in enumerate(
        zip(network.blocks, [*network.blocks[1:], None], strict=True)
    ):
        kinds = {
            "moments": (block.forward.parts, cuda_tiles.STATISTICS * block.filters),
            # written by the block above, or by the one thread block of head.cu
            "sums": (above.input_gradient.parts if above else 1, cuda_tiles.SUMS * block.filters),
        }
        if block.rebuilt:  # the sums over pixels of rebuilt.cuh
            kinds["of_y"] = block.forward.parts, 2 * block.weights
            kinds["of_dx"] = above.input_gradient.parts, block.weights
        elif i not in directly:
            kinds["weights"] = block.weight_gradient.parts, block.weights
        of_block = {}
        for kind, (count, size) in kinds.items():
            of_block[kind] = _Parts(begin, count, size)
            begin += count * size
        found.append(of_block)
    return found, begin


def _block_moments(network, nodes, row):
    """Each block's mean and variance, as views into (E, ...) rows laid out as moving statistics."""
    found, at = {}, 0
    for node in nodes:
        found[id(node)], at = views(row, node.moving_specs, at)
    return [found[id(block.normalization)] for block in network.blocks]


def _word_bounds(network, batch):
    """Where each block's dropout bits begin in a net's row of words, and the length of the row."""
    bounds = [0]
    for block in network.blocks:
        bits = batch * prod(block.convolution.output_shape) if block.drop.rate else 0
        bounds.append(bounds[-1] + -(-bits // 32))
    return bounds


def _drop_rows(network, batch):
    """The table of dropout_bits in dropout.cu: (layers, 3)."""
    rows = [
        (begin, block.drop.stream, block.drop.threshold)
        for block, begin in zip(network.blocks, _word_bounds(network, batch), strict=False)
        if block.drop.rate
    ]
    return np.array(rows, np.uint32).reshape(-1, 3)


def _sum_rows(network, nodes):
    """The table of update.cuh's Sums, (thread blocks, 6): it has each gradient once."""
    places = _places(nodes)
    rows = []
    directly = _Parts(0, 0, 0)  # of what a launch has written as gradients

    def add(parts, offset, to, length, halves=1):
        for first in range(0, length, _SUM_LENGTH):
            begin, own = parts.begin + offset + first, min(_SUM_LENGTH, length - first)
            rows.append((begin, parts.count // halves, halves, parts.size, to + first, own))

    for block, parts in zip(network.blocks, _parts(network, nodes)[0], strict=True):
        convolution, normalization = places[id(block.convolution)], places[id(block.normalization)]
        kernel_size = block.weights - block.filters
        if "weights" in parts:
            halves = 2 if block.weight_gradient.adds_later else 1
            add(parts["weights"], 0, convolution["kernel"], kernel_size, halves)
            add(parts["weights"], kernel_size, convolution["bias"], block.filters, halves)
        else:
            add(directly, 0, convolution["kernel"], block.weights)
        for name in ("gamma", "beta"):
            add(directly, 0, normalization[name], block.filters)
    for name, place in places[id(network.dense)].items():
        add(directly, 0, place, prod(network.dense.specs[name].shape))
    return np.array(rows, np.int32)
