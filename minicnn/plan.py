"""The arrays of a pass over one batch, planned and made once: a training step allocates nothing."""

from math import prod
from types import SimpleNamespace

import numpy as np


class Plan:
    """The arrays of one batch's passes, and for each layer a frame of views into them.

    In training each layer keeps its output for the backward pass, and the gradients by the
    activations take turns in two buffers. At inference the outputs do.
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

        def view(buffer, shape):
            return arrays[buffer][: E * batch * prod(shape)].reshape(E, batch, *shape)

        self.frames = []
        value, turn = self.x, 0
        for i, node in enumerate(model.nodes):
            if node.layer.shares_memory(training):
                y = value.reshape(E, batch, *node.output_shape)
            elif training:
                y = arrays["y", i]
            else:
                y, turn = view(("buffer", turn), node.output_shape), 1 - turn
            saved = {key[2]: array for key, array in arrays.items() if key[:2] == ("saved", i)}
            self.frames.append(
                SimpleNamespace(
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
            value = y
        self.output = value
        self.trained = []  # (node, frame) of the first layer with weights, and of all after it
        if training:
            self._connect_gradients(model, view)

    def _connect_gradients(self, model, view):
        gradient, turn = view(("buffer", 0), model.output_shape), 1
        first = min(i for i, node in enumerate(model.nodes) if node.specs)
        for i in reversed(range(first, len(model.nodes))):
            node, frame = model.nodes[i], self.frames[i]
            frame.dy = gradient
            frame.wants_dx = i > first
            if node.layer.shares_memory(training=True):
                frame.dx = gradient.reshape(frame.x.shape)
            else:
                frame.dx, turn = view(("buffer", turn), node.input_shape), 1 - turn
            gradient = frame.dx
        nodes = model.nodes[first:]
        self.trained = list(zip(nodes, self.frames[first:], strict=True))


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
