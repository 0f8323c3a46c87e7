"""The arrays of a pass over one batch, planned and made once: a step allocates none of them."""

from dataclasses import dataclass
from math import prod
from types import SimpleNamespace

import numpy as np


@dataclass
class Frame:
    """What one layer works on in one pass.

    x and y are its input and output, dx and dy the loss's gradients by them, all (E, B, ...).
    weights, gradients and moving hold an (E, ...) array for each name that the layer declares, and
    saved those that its forward pass leaves for its backward pass. seed, nets, stream and step say
    which random numbers are its own.
    """

    x: object
    y: object
    weights: SimpleNamespace
    gradients: SimpleNamespace
    moving: SimpleNamespace
    saved: SimpleNamespace
    seed: int
    nets: np.ndarray
    stream: int
    step: object  # an array of one integer on the device
    dx: object = None
    dy: object = None
    wants_dx: bool = False  # whether anybody reads dx


class Plan:
    """The arrays of one batch size, and the passes over them: (layer, frame) in forward order.

    In training each layer keeps its output for the backward pass, and the gradients by the
    activations take turns in two buffers. At inference the outputs do. Layers that only look at
    their input in another shape are in no pass.
    """

    def __init__(self, model, batch, training):
        self.batch, self.training = batch, training
        E, ops = len(model.nets), model.ops
        arrays = {
            key: ops.empty(shape, dtype)
            for key, (shape, dtype) in plan_layout(model, batch, training).items()
        }
        arrays["x"][...] = 0
        self.x, self.labels = arrays["x"], arrays["labels"]
        self.loss, self.correct = arrays["loss"], arrays["correct"]
        self.nbytes = sum(array.nbytes for array in arrays.values())

        def view(turn, shape):
            return arrays["buffer", turn][: E * batch * prod(shape)].reshape(E, batch, *shape)

        self.passes, frames = [], []
        value, turn = self.x, 0
        for i, node in enumerate(model.nodes):
            computes = not node.layer.shares_memory(training)
            if not computes:
                y = value.reshape(E, batch, *node.output_shape)
            elif training:
                y = arrays["y", i]
            else:
                y, turn = view(turn, node.output_shape), 1 - turn
            saved = {key[2]: array for key, array in arrays.items() if key[:2] == ("saved", i)}
            frames.append(
                Frame(
                    x=value,
                    y=y,
                    weights=node.weights,
                    gradients=node.gradients,
                    moving=node.moving,
                    saved=SimpleNamespace(**saved),
                    seed=model.seed,
                    nets=model.nets,
                    stream=node.stream,
                    step=model.step,
                )
            )
            if computes:
                self.passes.append((node.layer, frames[-1]))
            value = y
        self.output = value
        if training:
            self._plan_backward(model.nodes, frames, view)

    def _plan_backward(self, nodes, frames, view):
        """Set doutput and the frames' gradients, and backward_passes, the last layer first."""
        self.doutput = gradient = view(0, nodes[-1].output_shape)
        self.backward_passes = []
        turn = 1
        # Nobody needs the gradient by what lies before the first layer with weights.
        first = next(i for i, node in enumerate(nodes) if node.specs)
        for i in reversed(range(first, len(nodes))):
            node, frame = nodes[i], frames[i]
            frame.dy, frame.wants_dx = gradient, i > first
            if node.layer.shares_memory(training=True):
                frame.dx = gradient.reshape(frame.x.shape)
            else:
                frame.dx, turn = view(turn, node.input_shape), 1 - turn
                self.backward_passes.append((node.layer, frame))
            gradient = frame.dx


def plan_layout(model, batch, training):
    """{key: (shape, dtype)} of every array of a plan: what it will take, before it is taken."""
    E, dtype, nodes = len(model.nets), model.dtype, model.nodes
    layout = {
        "x": ((E, batch, *model.input_shape), dtype),
        "labels": ((E, batch), np.dtype(np.int64)),
        "loss": ((E,), dtype),
        "correct": ((E,), np.dtype(np.int64)),
    }
    sizes = [prod(model.input_shape), *(prod(node.output_shape) for node in nodes)]
    for turn in range(2):
        layout["buffer", turn] = ((E * batch * max(sizes),), dtype)
    if training:
        for i, node in enumerate(nodes):
            if not node.layer.shares_memory(training):
                layout["y", i] = ((E, batch, *node.output_shape), dtype)
            for name, (per, shape, kind) in node.layer.saved(node.input_shape).items():
                axes = (E, batch) if per == "image" else (E,)
                layout["saved", i, name] = ((*axes, *shape), np.dtype(kind or dtype))
    return layout
