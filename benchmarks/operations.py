"""The operations of a training step, one by one, and the least work that each must do.

A step of a Trainer is these operations in this order. `flops` counts two for each multiplication;
those with the zeros around an image are left out. `bytes` counts each array that an operation must
read, and each that it must write, once. Left out are scratch memory and the few values that steer
an operation (the step, the range of a draw). Batch normalisation reads its input twice; it counts
once, since the second read may hit a cache.
"""

from collections.abc import Callable
from math import prod
from typing import NamedTuple

from minicnn import Conv2D, Dense
from minicnn.network.layers import BatchNormalization


class Operation(NamedTuple):
    """An operation of a step; run() does it for all nets of the Trainer."""

    layer: str
    part: str
    run: Callable
    bytes: int
    flops: int = 0


def operations_of(trainer):
    """The Operations of trainer.step(), in order. Layers that compute nothing have none."""
    model, plan, ops = trainer.model, trainer.plan, trainer.ops
    names = {id(node.layer): node.name for node in model.nodes}
    found = [_batch(trainer)]
    for layer, f in plan.passes:
        forward = lambda layer=layer, f=f: layer.forward(ops, f, True)  # noqa: E731
        moved = f.x, *_all(f.weights), *_all(f.saved), f.y
        found.append(
            Operation(names[id(layer)], "forward", forward, _bytes(*moved), flops_of(layer, f))
        )
    loss = plan.output, plan.labels, plan.loss, plan.correct, plan.doutput
    found.append(Operation("loss", "both", lambda: ops.softmax_cross_entropy(*loss), _bytes(*loss)))
    for layer, f in plan.backward_passes:
        backward = _backward_product if isinstance(layer, Conv2D | Dense) else _backward
        found += [Operation(names[id(layer)], *rest) for rest in backward(ops, layer, f)]
    return found + _updates(trainer)


def _batch(trainer):
    """Gathering and augmenting the batch: reads the images, labels and order of the batch only."""
    model, plan = trainer.model, trainer.plan
    given = trainer.images, trainer.labels, trainer.order, trainer.bounds, model.seed
    given = *given, model.net_numbers, model.step, plan.x, plan.labels
    sizes = (prod(array.shape[1:]) * array.itemsize for array in (trainer.images, trainer.labels))
    read = plan.labels.size * (sum(sizes) + trainer.order.itemsize)
    moved = read + _bytes(plan.x, plan.labels)
    return Operation("batch", "augmentation", lambda: trainer.ops.load_batch(*given), moved)


def _backward_product(ops, layer, f):
    """(pass, function, bytes, flops) of a Conv2D's or Dense's backward operations."""
    g, kernel, flops = f.gradients, f.weights.kernel, flops_of(layer, f)
    window = () if isinstance(layer, Dense) else (layer.window(f.x.shape[2:]),)
    name = "dense" if isinstance(layer, Dense) else "conv2d"
    by_weights, by_input = (getattr(ops, f"{name}_{of}_gradient") for of in ("weight", "input"))
    if layer.activation != "linear" and not f.dy_is_before_activation:
        activate = lambda: layer.activate_backward(ops, f)  # noqa: E731
        yield "activation gradient", activate, _bytes(f.y, f.dy, f.dy)
    of_weights = f.x, f.dy, *window, g.kernel, g.bias, f.workspace
    moved = _bytes(f.x, f.dy, g.kernel, g.bias)
    yield "weight gradient", lambda: by_weights(*of_weights), moved, flops
    if f.wants_dx:
        of_input = f.dy, kernel, *window, f.dx, f.workspace
        yield "input gradient", lambda: by_input(*of_input), _bytes(f.dy, kernel, f.dx), flops


def _backward(ops, layer, f):
    """(pass, function, bytes) of another layer's backward pass, which is one operation."""
    moved = [f.dy, *_all(f.saved), f.dx]
    if isinstance(layer, BatchNormalization):
        moved += [f.x, f.weights.gamma, *_all(f.gradients)]
    elif layer.activation != "linear" and not f.dy_is_before_activation:
        moved += [f.y]
    yield "backward", lambda: layer.backward(ops, f), _bytes(*moved)


def _updates(trainer):
    """The updates at the end of a step. Each reads and writes what it updates."""
    model, plan, ops = trainer.model, trainer.plan, trainer.ops
    statistics = [(_all(f.moving), _all(f.saved)) for _, f in plan.passes if _all(f.moving)]
    moved = sum(2 * _bytes(*moving) + _bytes(*saved) for moving, saved in statistics)
    kept = model.params, model.moment_1, model.moment_2
    adam = kept[0], model.gradients, *kept[1:], model.step, model.learning_rate
    metrics = plan.loss, plan.correct, trainer.sums
    return [
        Operation("moving statistics", "update", plan.update_moving, moved),
        Operation(
            "adam",
            "update",
            lambda: model.optimizer.update(ops, *adam),
            2 * _bytes(*kept) + _bytes(model.gradients),
        ),
        Operation(
            "metrics",
            "update",
            lambda: ops.accumulate(*metrics),
            _bytes(*metrics, trainer.sums),
        ),
    ]


def flops_of(layer, f):
    """Floating-point operations of one pass of a Conv2D or Dense; 0 for other layers."""
    nets, batch = f.x.shape[:2]
    channels, filters = f.x.shape[-1], f.y.shape[-1]
    if isinstance(layer, Dense):
        return 2 * nets * batch * channels * filters
    if not isinstance(layer, Conv2D):
        return 0
    return nets * batch * convolution_flops(layer.window(f.x.shape[2:]), channels, filters)


def convolution_flops(window, channels, filters):
    """Floating-point operations of a convolution of one image, in each of its passes."""
    axes = zip(window.size, window.strides, window.input, window.before, window.output, strict=True)
    return 2 * channels * filters * prod(_taps_inside(*axis) for axis in axes)


def _taps_inside(size, stride, length, before, places):
    """How many pairs of output position and tap lie inside the image, along one axis."""
    return sum(
        0 <= place * stride + tap - before < length
        for place in range(places)
        for tap in range(size)
    )


def _all(namespace):
    """The arrays in a frame's namespace."""
    return tuple(vars(namespace).values())


def _bytes(*arrays):
    return sum(array.nbytes for array in arrays)
