"""The operations and launches of a training step, and the least work that each must do.

A step of a Trainer is its operations in this order. `flops` counts two for each multiplication;
those with the zeros around an image are left out. `bytes` counts each array that an operation must
read, and each that it must write, once. Left out are scratch memory and the few values that steer
an operation (the step, the range of a draw). Batch normalisation reads its input twice; it counts
once, since the second read may hit a cache.

In a network of blocks on a CPU (minicnn/backends/cpu_blocks.py) a convolution may do parts of the
operations around it; each operation then counts what it reads and writes itself. In a fused step on
a GPU one launch computes a convolution with the operations around it
(minicnn/backends/cuda_blocks.py), so its launches are described instead.
"""

from collections.abc import Callable
from math import prod
from typing import NamedTuple

import numpy as np

from benchmarks.counts import run_step
from minicnn import Conv2D, Dense
from minicnn.backends.cpu_blocks import BlockPlan
from minicnn.network.layers import BatchNormalization
from minicnn.recipe import RECIPES

# What a kernel both reads and writes.
_IN_PLACE = {
    "adam": {"w", "m", "v"},
    "adam_from_parts": {"w", "m", "v", "moving"},
    "update_moving": {"moving"},
    "accumulate": {"sums"},
}


class Operation(NamedTuple):
    """An operation of a step; run() does it for all nets of the Trainer."""

    layer: str
    part: str
    run: Callable
    bytes: int
    flops: int = 0


def operations_of(trainer):
    """The Operations of trainer.step(), in order. Layers that compute nothing have none."""
    of_passes = _steps if isinstance(trainer.plan, BlockPlan) else _passes
    return [_batch(trainer), *of_passes(trainer), *_updates(trainer)]


def _steps(trainer):
    """The Operations of the passes of a network of blocks in C."""
    plan = trainer.plan
    nets, batch = plan.labels.shape
    network, dense = plan.network, plan.network.dense
    flops = {dense.name: 2 * prod(dense.specs["kernel"].shape)}
    for block in network.blocks:
        shape = block.window, block.channels, block.filters
        flops[block.convolution.name] = convolution_flops(*shape)
    for step in (*plan.forward_steps(), *plan.backward_steps()):
        moved = _moved(trainer.ops.cpu.arrays(step.run), plan.scratch)
        yield Operation(*step, moved, nets * batch * flops.get(step.layer, 0))


def _moved(arguments, scratch):
    """Bytes of the arrays that a step gets from others, and of those that it leaves, each once.

    arguments: [(Parameter, array or None)] of its calls; scratch: arrays to be left out.
    """
    read, written = {}, {}
    for parameter, array in arguments:
        steers = array is None or parameter.name in ("net", "step")
        if steers or any(np.may_share_memory(array, other) for other in scratch):
            continue
        at = array.ctypes.data
        if parameter.written:
            written[at] = array.nbytes
        elif at not in written:
            read[at] = array.nbytes
    return sum(read.values()) + sum(written.values())


def _passes(trainer):
    """The Operations of the passes of a network that runs layer by layer."""
    model, plan, ops = trainer.model, trainer.plan, trainer.ops
    names = {id(node.layer): node.name for node in model.nodes}
    found = []
    for layer, f in plan.passes:
        forward = lambda layer=layer, f=f: layer.forward(ops, f, True)  # noqa: E731
        moved = f.x, *_all(f.weights), *_all(f.saved), f.y
        found.append(
            Operation(names[id(layer)], "forward", forward, _bytes(*moved), flops_of(layer, f))
        )
    given, results = (plan.output, plan.labels), (plan.loss, plan.correct, plan.doutput)
    loss = lambda: ops.softmax_cross_entropy(*given, model.label_smoothing, *results)  # noqa: E731
    found.append(Operation("loss", "both", loss, _bytes(*given, *results)))
    for layer, f in plan.backward_passes:
        backward = _backward_product if isinstance(layer, Conv2D | Dense) else _backward
        found += [Operation(names[id(layer)], *rest) for rest in backward(ops, layer, f)]
    return found


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
    # The statistics of the batch, which are as large, are only read.
    moved = 3 * sum(_bytes(*_all(node.moving)) for node in model.nodes)
    kept = model.params, model.moment_1, model.moment_2
    adam = kept[0], model.gradients, *kept[1:], model.step, trainer.rates
    metrics = plan.loss, plan.correct, model.step, trainer.sums
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
            _bytes(plan.loss, plan.correct, trainer.sums, trainer.sums),
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


# ---- launches of a fused step --------------------------------------------------------------------


def record_step(driver, nets, batch, version="fused"):
    """(the launches of a fused step, the (layer, pass) of each). version: one of counts.FUSED."""
    launches, run = [], driver.run

    def recorded(launch):
        launches.append(launch)
        run(launch)

    driver.run = recorded
    marks = run_step(driver, launches, nets, batch, version)
    del driver.run
    return launches, marks


def describe(launches, marks, nets, batch, precision="tf32"):
    """A dict for each launch: its layer and pass, and the bytes and FLOP that it needs at least.

    precision: of the step.
    """
    convolutions = {n.name: n for n in RECIPES["seed"].nodes if isinstance(n.layer, Conv2D)}
    rows = []
    for launch, (layer, part) in zip(launches, marks, strict=True):
        read, written = moved_bytes(launch, nets, batch)
        row = {"kernel": launch.name, "layer": layer, "pass": part, "grid": launch.grid}
        row |= {
            "precision": precision,
            "bytes_read": read,
            "bytes_written": written,
            "flops": 0,
            "peak": None,
        }
        # The products of rebuilt_weight_gradient are in a launch of the layer above.
        if layer in convolutions and launch.name != "rebuilt_weight_gradient":
            node = convolutions[layer]
            window, channels = node.layer.window(node.input_shape), node.input_shape[-1]
            of_image = convolution_flops(window, channels, node.output_shape[-1])
            row["flops"] = nets * batch * of_image
            # The first layer's kernels do not use tensor cores.
            row["peak"] = "float32" if launch.name.startswith("block_first") else precision
        rows.append(row)
    return rows


def moved_bytes(launch, nets, batch):
    """(read, written): each array of a launch once; of the data set only the batch.

    For the fused step's Adam that is a few per cent too much: it takes a gradient either from
    partial sums or from their array.
    """
    read = written = 0
    for parameter, array in launch.arrays:
        if array is None:
            continue
        size = array.nbytes
        if launch.name == "load_batch" and parameter.name in ("images", "labels", "order"):
            each = prod(array.shape[1:]) if parameter.name == "images" else 1
            size = nets * batch * each * array.itemsize
        if parameter.written:
            written += size
        if not parameter.written or parameter.name in _IN_PLACE.get(launch.name, ()):
            read += size
    return read, written


def use_of_limits(row, bandwidth, peaks):
    """The least seconds that each known limit allows a launch, and their share of its time.

    bandwidth: bytes a second; peaks: {precision: FLOP a second}; None or absent where unknown.
    """
    found, peak = {}, peaks.get(row["peak"])
    if bandwidth:
        found["memory_seconds"] = (row["bytes_read"] + row["bytes_written"]) / bandwidth
        found["of_bandwidth"] = found["memory_seconds"] / row["seconds"]
    if peak:
        found["matrix_seconds"] = row["flops"] / peak
        found["of_matrix_peak"] = found["matrix_seconds"] / row["seconds"]
    return found
