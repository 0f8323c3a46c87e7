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
    which random numbers are its own. workspace is memory for the time of one operation.

    An activation's gradient is its own layer's work, unless the next layer can do it in passing:
    then that one's input_activation names it, and this one's dy_is_before_activation.
    """

    x: object
    y: object
    weights: SimpleNamespace
    gradients: SimpleNamespace
    moving: SimpleNamespace
    saved: SimpleNamespace
    seed: int
    nets: object  # (E,) their numbers, on the device
    stream: int
    step: object  # an array of one integer on the device
    workspace: object = None
    dx: object = None
    dy: object = None
    wants_dx: bool = False  # whether anybody reads dx
    input_activation: str = "linear"  # what made x: dx is the gradient by what that was given
    dy_is_before_activation: bool = False  # dy is the gradient by what the activation was given


def make_plan(model, batch, training):
    """The model's Plan for a batch size, or the backend's own where it fuses these layers."""
    network = model.ops.fusion(model.nodes, batch)
    return network.plan(model, batch, training) if network else Plan(model, batch, training)


class Plan:
    """The arrays of one batch size, and the passes over them: (layer, frame) in forward order.

    In training each layer keeps its output for the backward pass, and the gradients by the
    activations take turns in two buffers. At inference the outputs do. All operations share one
    workspace. Layers that only look at their input in another shape are in no pass.
    """

    def __init__(self, model, batch, training):
        self.batch, self.training = batch, training
        self._ops = model.ops
        E, ops = len(model.nets), model.ops
        layout = plan_layout(model.nodes, E, batch, training, model.dtype, ops)
        # x starts as zeros, since a short batch leaves rows of it as they were.
        arrays = {
            key: (ops.zeros if key == "x" else ops.empty)(shape, dtype)
            for key, (shape, dtype) in layout.items()
        }
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
        """Compute output from x."""
        for layer, frame in self.passes:
            layer.forward(self._ops, frame, self.training)

    def forward_backward(self):
        """Loss and gradients of the batch in x and labels."""
        self.forward()
        self._ops.softmax_cross_entropy(
            self.output, self.labels, self.loss, self.correct, self.doutput
        )
        for layer, frame in self.backward_passes:
            layer.backward(self._ops, frame)

    def update_moving(self):
        """Bring the moving statistics up to date after a training step."""
        for layer, frame in self.passes:
            layer.update(self._ops, frame)

    def _plan_backward(self, nodes, frames, view):
        """Set doutput and the frames' gradients, and backward_passes, the last layer first."""
        self.doutput = gradient = view(0, nodes[-1].output_shape)
        self.backward_passes = []
        turn = 1
        # Nobody needs the gradient by what lies before the first layer with weights.
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
                frame.dx, turn = view(turn, node.input_shape), 1 - turn
                self.backward_passes.append((node.layer, frame))
            gradient = frame.dx


def batch_layout(nodes, nets, batch, dtype):
    """The part of a plan_layout that is the batch itself, and what is told of it."""
    return {
        "x": ((nets, batch, *nodes[0].input_shape), dtype),
        "labels": ((nets, batch), np.dtype(np.int64)),
        "loss": ((nets,), dtype),
        "correct": ((nets,), np.dtype(np.int64)),
    }


def plan_layout(nodes, nets, batch, training, dtype, ops):
    """{key: (shape, dtype)} of every array of a plan: what it will take, before it is taken."""
    network = ops.fusion(nodes, batch)
    if network:
        return network.layout(nodes, nets, batch, training, dtype)
    layout = batch_layout(nodes, nets, batch, dtype)
    sizes = [prod(nodes[0].input_shape), *(prod(node.output_shape) for node in nodes)]
    for turn in range(2):
        layout["buffer", turn] = ((nets * batch * max(sizes),), dtype)
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
