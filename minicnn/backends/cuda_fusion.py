"""Finds the network of blocks in a stack of layers, and chooses how to launch each block.

A block is a convolution, its activation and batch normalisation, and dropout if there is any.
Networks of blocks can be trained by few launches: see cuda_blocks.py, which reads what this module
finds. cuda_tiles.py chooses how the launches split their work.
"""

from math import inf, prod
from typing import NamedTuple

from .. import rng
from ..network.geometry import Window
from ..network.layers import BatchNormalization, Conv2D, Dense, Dropout, Flatten
from ..network.stack import Node
from . import cuda_tiles
from .cuda_convolution import sizes

_FLOORS = {"linear": -inf, "relu": 0.0}  # activation(z) = max(z, floor)
_FEW_CHANNELS = 8  # fewer input channels do not fill tensor cores


class Drop(NamedTuple):
    """A dropout layer; with rate 0 there is none."""

    rate: float = 0.0
    stream: int = 0

    @property
    def scale(self):
        """The factor for the elements that it keeps."""
        return 1 / (1 - self.rate)

    @property
    def threshold(self):
        """An element is dropped if its random word is below this."""
        return rng.threshold(self.rate)


class Block(NamedTuple):
    """A convolution, its batch normalisation, the dropout after it, and how they are launched."""

    convolution: Node
    normalization: Node
    drop: Drop
    window: Window
    channels: int
    filters: int
    forward: cuda_tiles.TiledLaunch
    weight_gradient: cuda_tiles.TiledLaunch
    input_gradient: cuda_tiles.TiledLaunch | None = None  # the first block needs none

    @property
    def first(self):
        """Whether it runs in block_first.cu, because its input has few channels."""
        return self.input_gradient is None and self.channels < _FEW_CHANNELS

    @property
    def floor(self):
        """Its activation is max(z, floor)."""
        return _FLOORS[self.convolution.layer.activation]

    @property
    def weights(self):
        """The number of elements of its kernel and bias."""
        return (prod(self.window.size) * self.channels + 1) * self.filters

    def sizes(self, batch):
        """The fields of convolution.cuh's struct Convolution."""
        return sizes(self.window, batch, self.channels, self.filters)

    def gradient_sizes(self, batch):
        """The same for the gradient with respect to the input."""
        return sizes(self.gradient_window, batch, self.channels, self.filters)

    @property
    def gradient_window(self):
        """The window of the gradient with respect to the input."""
        return cuda_tiles.gradient_window(self.window)


class Network(NamedTuple):
    """A stack of layers that can be fused: its blocks, and the dense layer after them."""

    blocks: list
    dense: Node
    head_images: int  # that head.cu has in shared memory at a time
    head_bytes: int  # of shared memory


def find_network(nodes, batch):
    """The Network of a stack of layers at a batch size; None if it cannot be fused.

    It can if it consists of blocks, then Flatten, an optional Dropout, and Dense; the softmax
    belongs to the loss. Convolutions must be linear or ReLU, with multiples of four channels (the
    input of the first may have any number), and all launches must fit the shared memory of a GPU.
    """
    blocks, rest = [], list(nodes)
    while rest and isinstance(rest[0].layer, Conv2D):
        if len(rest) < 2 or not isinstance(rest[1].layer, BatchNormalization):
            return None
        convolution, normalization, *rest = rest
        drop, rest = _take_drop(rest)
        block = _block(convolution, normalization, drop, batch, first=not blocks)
        if block is None:
            return None
        blocks.append(block)
    if not blocks or not rest or not isinstance(rest[0].layer, Flatten):
        return None
    drop, rest = _take_drop(rest[1:])
    if len(rest) != 1 or not isinstance(rest[0].layer, Dense):
        return None
    dense, last = rest[0], blocks[-1]
    if dense.layer.activation != "linear" or (drop.rate and last.drop.rate):
        return None
    if drop.rate:
        blocks[-1] = last = last._replace(drop=drop)
    head = cuda_tiles.head(
        prod(last.convolution.output_shape), last.filters, dense.layer.units, batch
    )
    return Network(blocks, dense, *head) if head else None


def _take_drop(nodes):
    """(the Drop at the start of the nodes, the nodes after it)."""
    if nodes and isinstance(nodes[0].layer, Dropout):
        return Drop(nodes[0].layer.rate, nodes[0].stream), nodes[1:]
    return Drop(), nodes


def _block(convolution, normalization, drop, batch, first):
    """The Block; None if no kernel can compute it."""
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
