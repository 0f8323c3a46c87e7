"""A stack of layers put in order: each one's name, shapes, and place in the flat arrays of weights.

Nothing here holds numbers; what a network will take in memory is known before any is taken.
"""

import copy
import re
from dataclasses import dataclass
from math import prod
from types import SimpleNamespace

import numpy as np

from .. import rng
from .layers import Dropout, Layer

_ALIGNMENT = 16  # numbers: a weight starts at a multiple of 64 bytes, for wide loads


@dataclass
class Node:
    """A layer's place in the stack: its name, shapes, weights, and stream of random numbers."""

    layer: Layer
    name: str
    input_shape: tuple
    output_shape: tuple
    specs: dict  # {name: layers.Weight} of what is trained
    moving_specs: dict  # and of what is kept beside it
    stream: int
    # Named views (E, ...) into the model's flat arrays
    weights: SimpleNamespace = None
    gradients: SimpleNamespace = None
    moving: SimpleNamespace = None


def connect(layers, input_shape):
    """A node for each layer. Raises ValueError for a stack that does not fit together."""
    nodes, seen, stream, shape = [], {}, rng.DROPOUT, input_shape
    for i, layer in enumerate(layers):
        if not isinstance(layer, Layer):
            raise ValueError(f"layers: got {layer!r} at position {i}, expected a layer")
        name = re.sub("(?<=[a-z])(?=[A-Z])", "_", type(layer).__name__).lower()
        seen[name] = seen.get(name, -1) + 1
        output_shape = layer.output_shape(shape)
        nodes.append(
            Node(
                layer=layer,
                name=f"{name}_{seen[name]}" if seen[name] else name,
                input_shape=shape,
                output_shape=output_shape,
                specs=layer.weights(shape),
                moving_specs=layer.moving(shape),
                stream=stream,
            )
        )
        stream += isinstance(layer, Dropout)
        shape = output_shape
    if layers[-1].activation == "softmax":
        # The loss and its gradient are taken from logits; Sequential.infer does the rest.
        nodes[-1].layer = copy.copy(layers[-1])
        nodes[-1].layer.activation = "linear"
    return nodes


def weights_layout(nodes, nets, dtype):
    """{name: (shape, dtype)} of the flat arrays of all weights, and of what training them takes."""
    params = sum(_aligned(spec.shape) for node in nodes for spec in node.specs.values())
    moving = sum(_aligned(spec.shape) for node in nodes for spec in node.moving_specs.values())
    flat = dict.fromkeys(("params", "gradients", "moment_1", "moment_2"), ((nets, params), dtype))
    return {
        **flat,
        "moving": ((nets, moving), dtype),
        "step": ((1,), np.dtype(np.int64)),  # optimizer steps done
        "learning_rate": ((1,), np.dtype(np.float64)),
    }


def views(flat, specs, at):
    """Named views into the flat (E, P) array from column `at` on, and the column behind them."""
    found = {}
    for name, spec in specs.items():
        found[name] = flat[:, at : at + prod(spec.shape)].reshape(len(flat), *spec.shape)
        at += _aligned(spec.shape)
    return SimpleNamespace(**found), at


def layout_bytes(layout):
    """What the arrays of a layout {key: (shape, dtype)} take together."""
    return sum(prod(shape) * dtype.itemsize for shape, dtype in layout.values())


def _aligned(shape):
    return -(-prod(shape) // _ALIGNMENT) * _ALIGNMENT
