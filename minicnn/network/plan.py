"""The arrays of the passes over a batch: planned and made once, so that a step allocates none.

A Plan runs the layers one by one. Read backends/backend.py next: it declares the operations `ops`.
Networks of blocks (blocks.py) have plans of their own on a CPU, and on tensor cores.
"""

from dataclasses import dataclass
from math import prod
from types import SimpleNamespace

import numpy as np


@dataclass
class Frame:
    """The arrays and settings of one layer for its passes.

    x and y are its input and output, dx and dy the gradients with respect to them, all (E, B, ...).
    weights, gradients and moving hold an (E, ...) array for each name that the layer declares;
    saved holds what the forward pass keeps for the backward pass. seed, nets, stream and step
    select the layer's random numbers. workspace is memory that an operation uses while it runs.

    Each layer differentiates its own activation, unless the next layer does so: then the next
    layer's `input_activation` names the activation, and `dy_is_before_activation` is True here.
    """

    x: object
    y: object
    weights: SimpleNamespace
    gradients: SimpleNamespace
    moving: SimpleNamespace
    saved: SimpleNamespace
    seed: int
    nets: object  # (E,) the nets' numbers, on the device
    stream: int
    step: object  # an array of one integer, on the device
    workspace: object = None
    dx: object = None
    dy: object = None
    wants_dx: bool = False  # whether dx is needed
    input_activation: str = "linear"  # x is its output; dx is with respect to its input
    dy_is_before_activation: bool = False  # dy is with respect to the activation's input


def make_plan(model, batch, training):
    """The model's Plan for a batch size, or the backend's own plan if it fuses these layers.

    backends/cpu_blocks.py fuses layers; so does backends/cuda_blocks.py, for tensor cores.
    """
    network = model.ops.fusion(model.nodes, len(model.nets), batch)
    return network.plan(model, batch, training) if network else Plan(model, batch, training)


class TrainsInTurn:
    """The training step of a plan that computes all gradients before it changes a weight."""

    def train(self, optimizer, *arguments):
        """Compute loss and gradients, then update the moving statistics and the weights.

        arguments: those of optimizer.update after `ops`.
        """
        self.forward_backward()
        self.update_moving()
        optimizer.update(self._ops, *arguments)


class Plan(TrainsInTurn):
    """The arrays for one batch size, and `passes` over them: (layer, frame) in forward order.

    In training each layer keeps its output for the backward pass, and the gradients with respect to
    the outputs alternate between two buffers. In inference the outputs alternate between them. All
    operations share one workspace. Layers that only reshape their input have no pass.
    """

    def __init__(self, model, batch, training):
        self.batch, self.training = batch, training
        self._ops, self._smoothing = model.ops, model.label_smoothing
        E, ops = len(model.nets), model.ops
        layout = plan_layout(model.nodes, E, batch, training, model.dtype, ops)
        # A short batch does not fill x, so x starts as zeros.
        arrays = {
            key: (ops.zeros if key == "x" else ops.empty)(shape, dtype)
            for key, (shape, dtype) in layout.items()
        }
        self.x, self.labels = arrays["x"], arrays["labels"]
        self.loss, self.correct = arrays["loss"], arrays["correct"]
        self.nbytes = sum(array.nbytes for array in arrays.values())

        def view(buffer, shape):
            return arrays["buffer", buffer][: E * batch * prod(shape)].reshape(E, batch, *shape)

        self.passes, frames = [], []
        value, buffer = self.x, 0
        for i, node in enumerate(model.nodes):
            computes = not node.layer.shares_memory(training)
            if not computes:
                y = value.reshape(E, batch, *node.output_shape)
            elif training:
                y = arrays["y", i]
            else:
                y, buffer = view(buffer, node.output_shape), 1 - buffer
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
                    nets=model.net_numbers,
                    stream=node.stream,
                    step=model.step,
                    workspace=arrays["workspace"],
                )
            )
            if computes:
                self.passes.append((node.layer, frames[-1]))
            value = y
        self.output = value
        if training:
            self._plan_backward(model.nodes, frames, view)

    def forward(self):
        """Compute `output` from x."""
        for layer, frame in self.passes:
            layer.forward(self._ops, frame, self.training)

    def forward_backward(self):
        """Compute the loss and the gradients of the batch in x and labels."""
        self.forward()
        self._ops.softmax_cross_entropy(
            self.output, self.labels, self._smoothing, self.loss, self.correct, self.doutput
        )
        for layer, frame in self.backward_passes:
            layer.backward(self._ops, frame)

    def update_moving(self, momentum=None):
        """Update the moving statistics after a training step, or a forward pass in training.

        momentum: of the update (default: that of each layer).
        """
        for layer, frame in self.passes:
            layer.update(self._ops, frame, momentum)

    def _plan_backward(self, nodes, frames, view):
        """Set doutput, the frames' dx and dy, and backward_passes, the last layer first."""
        self.doutput = gradient = view(0, nodes[-1].output_shape)
        self.backward_passes = []
        buffer = 1
        # Gradients are needed down to the first layer with weights.
        first = next(i for i, node in enumerate(nodes) if node.specs)
        for i in reversed(range(first, len(nodes))):
            node, frame = nodes[i], frames[i]
            if i > first and node.layer.differentiates_input_activation:
                frame.input_activation = nodes[i - 1].layer.activation
                frames[i - 1].dy_is_before_activation = True
            frame.dy, frame.wants_dx = gradient, i > first
            if node.layer.shares_memory(training=True):
                frame.dx = gradient.reshape(frame.x.shape)
            else:
                frame.dx, buffer = view(buffer, node.input_shape), 1 - buffer
                self.backward_passes.append((node.layer, frame))
            gradient = frame.dx


def batch_layout(nodes, nets, batch, dtype):
    """The part of a plan_layout for the batch itself: inputs, labels, loss, correct predictions."""
    return {
        "x": ((nets, batch, *nodes[0].input_shape), dtype),
        "labels": ((nets, batch), np.dtype(np.int64)),
        "loss": ((nets,), dtype),
        "correct": ((nets,), np.dtype(np.int64)),
    }


def plan_layout(nodes, nets, batch, training, dtype, ops):
    """{key: (shape, dtype)} of every array of a plan, so that its memory is known beforehand."""
    network = ops.fusion(nodes, nets, batch)
    if network:
        return network.layout(nodes, nets, batch, training, dtype)
    layout = batch_layout(nodes, nets, batch, dtype)
    sizes = [prod(nodes[0].input_shape), *(prod(node.output_shape) for node in nodes)]
    for buffer in range(2):
        layout["buffer", buffer] = ((nets * batch * max(sizes),), dtype)
    workspaces = [node.layer.workspace(ops, nets, batch, node.input_shape) for node in nodes]
    layout["workspace"] = ((max(workspaces),), np.dtype(np.uint8))
    if training:
        for i, node in enumerate(nodes):
            if not node.layer.shares_memory(training):
                layout["y", i] = ((nets, batch, *node.output_shape), dtype)
            for name, (per, shape, kind) in node.layer.saved(node.input_shape).items():
                axes = (nets, batch) if per == "image" else (nets,)
                layout["saved", i, name] = ((*axes, *shape), np.dtype(kind or dtype))
    return layout
