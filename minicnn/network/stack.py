"""A stack of layers: their names and shapes, and where their weights lie in the flat arrays.

Nothing here allocates: layouts {key: (shape, dtype)} give the memory that a network needs before
it is allocated. Read layers.py next, then plan.py for the arrays of one batch.
"""

import copy
import re
from dataclasses import dataclass
from math import prod
from types import SimpleNamespace

import numpy as np

from .. import rng
from .layers import Dropout, Layer

_ALIGNMENT = 16  # elements: in float32 a weight starts at a multiple of 64 bytes, for wide loads


@dataclass
class Node:
    """A layer in the stack: its name, shapes, weights, and stream of random numbers (rng.py)."""

    layer: Layer
    name: str
    input_shape: tuple
    output_shape: tuple
    specs: dict  # {name: layers.Weight} of the trainable weights
    moving_specs: dict  # {name: layers.Weight} of the moving statistics
    stream: int
    # Named views (E, ...) into the model's flat arrays, which the model sets
    weights: SimpleNamespace = None
    gradients: SimpleNamespace = None
    moving: SimpleNamespace = None

    def count_params(self):
        """The number of weights of one net in this layer, including moving statistics."""
        specs = *self.specs.values(), *self.moving_specs.values()
        return sum(prod(spec.shape) for spec in specs)


def connect(layers, input_shape):
    """A list with one Node per layer. Raises ValueError if a layer does not fit its input."""
    nodes, seen, stream, shape = [], {}, rng.DROPOUT, input_shape
    for i, layer in enumerate(layers):
        if not isinstance(layer, Layer):
            raise ValueError(f"layers: got {layer!r} at position {i}, expected a layer")
        name = re.sub("(?<=[a-z])(?=[A-Z])", "_", type(layer).__name__).lower()
        seen[name] = seen.get(name, -1) + 1
        name = f"{name}_{seen[name]}" if seen[name] else name
        try:
            output_shape = layer.output_shape(shape)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        nodes.append(
            Node(
                layer=layer,
                name=name,
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
        # The loss is computed from logits. Nets.infer applies the softmax.
        nodes[-1].layer = copy.copy(layers[-1])
        nodes[-1].layer.activation = "linear"
    return nodes


def batch_problem(nodes, batch):
    """Why a network cannot learn from batches of so many images, in one line; None if it can."""
    for node in nodes:
        least = node.layer.least_batch(node.input_shape)
        if batch < least:
            return (
                f"batch_size: got {batch}, expected at least {least}: {node.name} would normalise "
                "a single value per channel, which gives gradients of zero"
            )
    return None


def check_batch(nodes, batch):
    """Raise ValueError if a network cannot learn from batches of so many images."""
    if problem := batch_problem(nodes, batch):
        raise ValueError(problem)


def weights_layout(nodes, nets, dtype):
    """{name: (shape, dtype)} of the flat arrays of weights, gradients and optimizer state."""
    params = sum(_aligned(spec.shape) for node in nodes for spec in node.specs.values())
    moving = sum(_aligned(spec.shape) for node in nodes for spec in node.moving_specs.values())
    flat = dict.fromkeys(("params", "gradients", "moment_1", "moment_2"), ((nets, params), dtype))
    return {
        **flat,
        "moving": ((nets, moving), dtype),
        "step": ((1,), np.dtype(np.int64)),  # optimizer steps so far
        "learning_rate": ((1,), np.dtype(np.float64)),
    }


def views(flat, specs, at):
    """Named views (E, ...) into `flat` (E, P), from column `at` on, and the column after them."""
    found = {}
    for name, spec in specs.items():
        found[name] = flat[:, at : at + prod(spec.shape)].reshape(len(flat), *spec.shape)
        at += _aligned(spec.shape)
    return SimpleNamespace(**found), at


def layout_bytes(layout):
    """The bytes of all arrays of a layout {key: (shape, dtype)}."""
    return sum(prod(shape) * dtype.itemsize for shape, dtype in layout.values())


def _aligned(shape):
    return -(-prod(shape) // _ALIGNMENT) * _ALIGNMENT
