"""Blocks: a convolution, its batch normalisation, and a dropout after it, to be run together.

A backend that fuses these operations stores only each block's activation, before the normalisation.
backends/cpu_blocks.py and backends/cuda_blocks.py run networks of blocks. plan.py runs all others
layer by layer.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from .. import rng
from .layers import BatchNormalization, Conv2D, Dense, Dropout, Flatten
from .stack import Node

_ACTIVATIONS = "linear", "relu"


class Drop(NamedTuple):
    """A dropout layer; with rate 0 there is none."""

    rate: float = 0.0
    stream: int = 0
    name: str = ""  # of the layer

    @property
    def scale(self):
        """The factor for the elements that it keeps."""
        return 1 / (1 - self.rate)

    @property
    def threshold(self):
        """An element is dropped if its random word is below this."""
        return rng.threshold(self.rate)


@dataclass(frozen=True)
class Block:
    """A convolution with its activation, its batch normalisation, and the dropout after it."""

    convolution: Node
    normalization: Node
    drop: Drop

    @cached_property
    def window(self):
        """The Window of the convolution over its input."""
        return self.convolution.layer.window(self.convolution.input_shape)

    @property
    def channels(self):
        """The channels of its input."""
        return self.convolution.input_shape[-1]

    @property
    def filters(self):
        """The channels of its output."""
        return self.convolution.layer.filters

    @property
    def relu(self):
        """Whether its activation is ReLU; otherwise it is linear."""
        return self.convolution.layer.activation == "relu"


@dataclass(frozen=True)
class Network:
    """A stack of layers as a list of Blocks and the dense layer after them."""

    blocks: list
    dense: Node


def find_network(nodes):
    """The Network of a stack of layers; None if it does not consist of blocks.

    It does if it consists of blocks, then Flatten, an optional Dropout, and Dense; the softmax
    belongs to the loss. Convolutions must be linear or ReLU. A Dropout after Flatten belongs to the
    last block, which then must have no other.
    """
    blocks, rest = [], list(nodes)
    while rest and isinstance(rest[0].layer, Conv2D):
        if len(rest) < 2 or not isinstance(rest[1].layer, BatchNormalization):
            return None
        convolution, normalization, *rest = rest
        if convolution.layer.activation not in _ACTIVATIONS:
            return None
        drop, rest = _take_drop(rest)
        blocks.append(Block(convolution, normalization, drop))
    if not blocks or not rest or not isinstance(rest[0].layer, Flatten):
        return None
    drop, rest = _take_drop(rest[1:])
    if len(rest) != 1 or not isinstance(rest[0].layer, Dense):
        return None
    [dense], last = rest, blocks[-1]
    if dense.layer.activation != "linear" or (drop.rate and last.drop.rate):
        return None
    if drop.rate:
        blocks[-1] = Block(last.convolution, last.normalization, drop)
    return Network(blocks, dense)


def _take_drop(nodes):
    """(the Drop at the start of the nodes, the nodes after it)."""
    if nodes and isinstance(nodes[0].layer, Dropout):
        return Drop(nodes[0].layer.rate, nodes[0].stream, nodes[0].name), nodes[1:]
    return Drop(), nodes
