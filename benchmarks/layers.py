"""python -m benchmarks.layers: each layer and pass of a training step on the CPU by itself.

Every pass is timed where it stands in a step, so that it finds its operands as far away as it does
in training. Arithmetic is given beside that of a large product of matrices by NumPy's BLAS, on as
many cores, before and after. Multiplications by the zeros around an image are not counted.
"""

import argparse
import statistics
import time
from math import prod

import numpy as np
import threadpoolctl

from benchmarks import timing
from benchmarks.crew import RECIPE
from minicnn import Conv2D, Dense, __version__, ensemble, load_data
from minicnn.machine import cores

GEMM = 2048  # rows and columns of the large product


def main():
    parser = argparse.ArgumentParser(prog="benchmarks.layers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=40, help="default: 40")
    parser.add_argument("--out", help="default: benchmarks/results/layers-cpu-DATE.json")
    arguments = parser.parse_args()
    (images, labels), _ = load_data("digits")
    job = ensemble.Job(RECIPE, ensemble.Data(images, labels), "cpu", "float32", None)
    trainer = ensemble.Trainer(job, range(1, 2))
    trainer.begin_epoch(0)
    passes = passes_of(trainer)
    with trainer.ops.session():
        recorded = [trainer.ops.capture(function) for *_, function in passes]
    of_gemm = gemm_seconds()
    with trainer.ops.session():
        seconds = [[timed(step) for step in recorded] for _ in range(arguments.rounds + 2)]
    of_gemm += gemm_seconds()
    medians = [statistics.median(times) for times in zip(*seconds[2:], strict=True)]
    peak = 2 * GEMM**3 / statistics.median(of_gemm)
    rows = []
    for (layer, name, flops, _), taken in zip(passes, medians, strict=True):
        rows.append({"layer": layer, "pass": name, "seconds": taken, "flops": flops})
        rate = f"{flops / taken / 1e9:8.1f} GFLOP/s{flops / taken / peak:6.0%}" if flops else ""
        print(f"{layer:<24}{name:<18}{taken * 1e3:8.3f} ms{rate}")
    print(f"{sum(medians) * 1e3:.1f} ms in all; large products: {peak / 1e9:.0f} GFLOP/s")
    result = {
        "what": f"a training step of one net, batch {RECIPE.batch_size}",
        "cores": cores(),
        "rounds": arguments.rounds,
        "gemm_flops_per_second": peak,
        "passes": rows,
        "machine": timing.machine(),
        "versions": {"minicnn": __version__, "numpy": np.__version__},
    }
    timing.write("layers-cpu", result, arguments.out)


def passes_of(trainer):
    """[(layer, pass, floating-point operations or 0, function)] of a step, in its order."""
    model, plan, ops = trainer.model, trainer.plan, trainer.ops
    names = {id(node.layer): node.name for node in model.nodes}
    batch = trainer.images, trainer.labels, trainer.order, trainer.bounds, model.seed
    batch = *batch, model.net_numbers, model.step, plan.x, plan.labels
    loss = plan.output, plan.labels, plan.loss, plan.correct, plan.doutput
    passes = [("batch", "augmentation", 0, lambda: ops.load_batch(*batch))]
    for layer, f in plan.passes:
        forward = lambda layer=layer, f=f: layer.forward(ops, f, True)  # noqa: E731
        passes.append((names[id(layer)], "forward", flops_of(layer, f), forward))
    passes.append(("loss", "both", 0, lambda: ops.softmax_cross_entropy(*loss)))
    for layer, f in plan.backward_passes:
        name, flops = names[id(layer)], flops_of(layer, f)
        if not flops:
            backward = lambda layer=layer, f=f: layer.backward(ops, f)  # noqa: E731
            passes.append((name, "backward", 0, backward))
            continue
        passes.append((name, "weight gradient", flops, weight_gradient(ops, layer, f)))
        if f.wants_dx:
            passes.append((name, "input gradient", flops, input_gradient(ops, layer, f)))
    adam = model.params, model.gradients, model.moment_1, model.moment_2, model.step
    passes.append(
        ("adam", "update", 0, lambda: model.optimizer.update(ops, *adam, model.learning_rate))
    )
    return passes


def flops_of(layer, f):
    """Floating-point operations of a layer's pass: two for each multiplication that counts."""
    batch, channels, filters = f.x.shape[1], f.x.shape[-1], f.y.shape[-1]
    if isinstance(layer, Dense):
        return 2 * batch * channels * filters
    if not isinstance(layer, Conv2D):
        return 0
    window = layer.window(f.x.shape[2:])
    axes = zip(window.size, window.strides, window.input, window.before, window.output, strict=True)
    return 2 * batch * channels * filters * prod(taps_inside(*axis) for axis in axes)


def taps_inside(size, stride, length, before, places):
    """How often, along an axis, a tap of the window meets the image."""
    return sum(
        0 <= place * stride + tap - before < length
        for place in range(places)
        for tap in range(size)
    )


def weight_gradient(ops, layer, f):
    """The pass of a Conv2D or Dense, as its own function."""
    g = f.gradients
    if isinstance(layer, Dense):
        return lambda: ops.dense_weight_gradient(f.x, f.dy, g.kernel, g.bias, f.workspace)
    window = layer.window(f.x.shape[2:])
    return lambda: ops.conv2d_weight_gradient(f.x, f.dy, window, g.kernel, g.bias, f.workspace)


def input_gradient(ops, layer, f):
    """The pass of a Conv2D or Dense, as its own function."""
    kernel = f.weights.kernel
    if isinstance(layer, Dense):
        return lambda: ops.dense_input_gradient(f.dy, kernel, f.dx, f.workspace)
    window = layer.window(f.x.shape[2:])
    return lambda: ops.conv2d_input_gradient(f.dy, kernel, window, f.dx, f.workspace)


def timed(function):
    """Seconds that a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def gemm_seconds():
    """Seconds that BLAS takes for the large product, on all cores, time after time."""
    a, b, c = (np.ones((GEMM, GEMM), np.float32) for _ in range(3))
    with threadpoolctl.threadpool_limits(cores(), user_api="blas"):
        times = [timed(lambda: np.matmul(a, b, out=c)) for _ in range(8)]
    time.sleep(1)  # BLAS's threads go on asking for work for a while
    return times[2:]


if __name__ == "__main__":
    main()
