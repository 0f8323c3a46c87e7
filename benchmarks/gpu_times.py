"""The parts of gpu_report.py that time: the GPU's limits, each launch, and whole steps."""

import gc
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from math import prod

import numpy as np

from benchmarks.gpu_parts import ROOT, LeftOut, make_trainer, repeated
from benchmarks.kernels import run_step
from minicnn import cuda
from minicnn.command import one_line
from minicnn.emulator import Emulator
from minicnn.layers import Conv2D
from minicnn.recipe import RECIPES

STEP_LAUNCHES = 28  # of a fused step
_MATRIX = 8192  # side of the matrices whose product is the peak
# What a kernel reads and writes in place.
_IN_PLACE = {"adam": {"w", "m", "v"}, "update_moving": {"moving"}, "accumulate": {"sums"}}


class EventClock:
    """Marks on the GPU's current stream."""

    def __init__(self, library=None):
        self._cuda = (library or importlib.import_module("cupy")).cuda

    def mark(self):
        """A moment in the stream."""
        event = self._cuda.Event()
        event.record(self._cuda.get_current_stream())
        return event

    def seconds(self, first, last):
        """Between two marks; waits for the later one."""
        last.synchronize()
        return self._cuda.get_elapsed_time(first, last) / 1e3


class WallClock:
    """The same on a device that has done its work when a call returns."""

    mark = staticmethod(time.perf_counter)

    def seconds(self, first, last):
        """Between two marks."""
        return last - first


def clock_of(device):
    """The clock of a device, by its name."""
    return EventClock() if device == "cuda" else WallClock()


def measure(clock, function, sizes):
    """Seconds of a call: [one a round], each the mean of as many calls as fill the round."""

    def timed(calls):
        first = clock.mark()
        for _ in range(calls):
            function()
        return clock.seconds(first, clock.mark()) / calls

    for _ in range(sizes.warm_up):
        function()
    calls = max(1, round(sizes.seconds / max(timed(1), 1e-6)))
    return [timed(calls) for _ in range(sizes.rounds)]


def summary(seconds):
    """Median and spread of measured seconds."""
    return {
        "seconds": statistics.median(seconds),
        "lowest": min(seconds),
        "highest": max(seconds),
        "rounds": len(seconds),
    }


# ---- limits --------------------------------------------------------------------------------------


def limits(run):
    """Part: what the GPU does at most: bytes copied, products of matrices, launches in a graph."""
    driver, clock = cuda.Cuda(), EventClock()
    with driver.session():
        copy = _copy(clock, run.sizes)
        rate = copy["bytes"] / copy["seconds"]
        yield {"copy": copy, "bandwidth": rate}
        launches = _tiny_launches(driver, clock, run.sizes)
    node = launches["seconds"] / STEP_LAUNCHES
    yield {"graph": {"nodes": STEP_LAUNCHES, **launches}, "seconds_a_node": node}
    peaks, shown = {}, f"{rate / 1e12:.2f} TB/s, {1e6 * node:.2f} us a node"
    for precision in ("float32", "tf32"):
        peaks[precision] = peak = _matrix_peak(run, precision)
        flops = f"{peak['flops'] / 1e12:.0f} TFLOP/s" if "flops" in peak else "not measured"
        shown += f", {precision} {flops}"
        yield {"matrix_peaks": peaks, "headline": shown}


def _copy(clock, sizes):
    cupy = importlib.import_module("cupy")
    source = cupy.zeros(1 << 28, np.float32)  # far more than the second cache holds
    target = cupy.empty_like(source)
    times = measure(clock, lambda: cupy.copyto(target, source), sizes)
    return {"bytes": 2 * source.nbytes, **summary(times)}


def _tiny_launches(driver, clock, sizes):
    """A graph of launches that do next to nothing."""
    counter = driver.zeros((1,), np.int64)
    tiny = driver.bind("metrics.cu", "increment", (1,), (1,), (counter,))
    driver.run(tiny)
    graph = driver.capture(partial(_run_often, driver, tiny, STEP_LAUNCHES))
    return summary(measure(clock, graph, sizes))


def _run_often(driver, launch, count):
    for _ in range(count):
        driver.run(launch)


def _matrix_peak(run, precision):
    """The rate of cuBLAS in a process of its own, since CuPy reads its setting once."""
    code = (
        "import json; from benchmarks import gpu_parts, gpu_times; "
        f"print(json.dumps(gpu_times.matrix_rate({precision!r}, gpu_parts.{run.sizes!r})))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "CUPY_TF32": str(int(precision == "tf32"))},
        capture_output=True,
        text=True,
        timeout=max(run.left - 1, 1),
        check=False,
    )
    if result.returncode:
        return {"problem": result.stderr.strip()[-2000:]}
    return json.loads(result.stdout.splitlines()[-1])


def matrix_rate(precision, sizes):
    """FLOP/s of a product of large matrices: CuPy's, or PyTorch's where CuPy finds no cuBLAS."""
    try:
        library, clock, product = "CuPy", EventClock(), _cupy_product()
        product()
    except Exception as error:  # whatever a missing library makes of it
        print(f"CuPy multiplies no matrices here: {one_line(error)}", file=sys.stderr)
        gpu_torch = importlib.import_module("benchmarks.gpu_torch")
        library, clock = "PyTorch", WallClock()
        product = gpu_torch.synchronous_product(_MATRIX, precision == "tf32")
    found = summary(measure(clock, product, sizes))
    flops = 2 * _MATRIX**3 / found["seconds"]
    return {"library": library, "side": _MATRIX, **found, "flops": flops}


def _cupy_product():
    cupy = importlib.import_module("cupy")
    random = np.random.default_rng(0)
    a, b = (cupy.array(random.random((_MATRIX, _MATRIX), np.float32)) for _ in range(2))
    c = cupy.empty_like(a)
    return lambda: cupy.dot(a, b, out=c)


# ---- each launch ---------------------------------------------------------------------------------


def kernels(run):
    """Part: the time of each launch of the fused step, and how near it comes to the limits.

    A launch is repeated by itself: what fits the second cache is then found there.
    """
    driver = cuda.Cuda() if run.device == "cuda" else Emulator()
    if not driver.has_tf32:
        raise LeftOut("the GPU has no tensor cores for TF32")
    nets, batch = run.sizes.nets, run.sizes.batch
    launches, marks = record_step(driver, nets, batch)
    rows = describe(launches, marks, nets, batch)
    found = run.found("limits")
    peaks = {name: peak.get("flops") for name, peak in found.get("matrix_peaks", {}).items()}
    clock, sizes = clock_of(run.device), replace(run.sizes, seconds=run.sizes.seconds / 10)
    for launch, row in zip(launches, rows, strict=True):
        with driver.session():
            replay = driver.capture(partial(_run_often, driver, launch, sizes.repeats))
            times = measure(clock, replay, sizes)
        row.update(summary([seconds / sizes.repeats for seconds in times]))
        row.update(use_of_limits(row, found.get("bandwidth"), peaks))
    total = sum(row["seconds"] for row in rows)
    slowest = max(rows, key=lambda row: row["seconds"])
    yield {
        "what": "each launch of a fused step in TF32, repeated by itself; bytes from the shapes of "
        "its arrays, FLOP from the shapes of the layer",
        "nets": nets,
        "batch": batch,
        "launches": rows,
        "seconds": total,
        "headline": f"{len(rows)} launches, {1e3 * total:.3f} ms together; the longest: "
        f"{slowest['kernel']} {slowest['layer']} {1e6 * slowest['seconds']:.0f} us",
    }


def record_step(driver, nets, batch):
    """(the launches of a step of fused blocks, the layer and the pass of each)."""
    launches, run = [], driver.run

    def recorded(launch):
        launches.append(launch)
        run(launch)

    driver.run = recorded
    marks = run_step(driver, launches, nets, batch, "fused")
    del driver.run
    return launches, marks


def describe(launches, marks, nets, batch):
    """A dict for each launch: its layer, and the bytes and the FLOP that it is there for."""
    convolutions = {n.name: n for n in RECIPES["seed"].nodes if isinstance(n.layer, Conv2D)}
    rows = []
    for launch, (layer, part) in zip(launches, marks, strict=True):
        read, written = moved_bytes(launch, nets, batch)
        row = {"kernel": launch.name, "layer": layer, "pass": part, "grid": launch.grid}
        row |= {"bytes_read": read, "bytes_written": written, "flops": 0, "peak": None}
        if layer in convolutions:
            node = convolutions[layer]
            taps = prod(node.layer.window(node.input_shape).size) * node.input_shape[-1]
            row["flops"] = 2 * nets * batch * prod(node.output_shape) * taps
            # The first layer's kernels use no tensor cores.
            row["peak"] = "float32" if launch.name.startswith("block_first") else "tf32"
        rows.append(row)
    return rows


def moved_bytes(launch, nets, batch):
    """(read, written): each array of a launch once, but of the data set only the batch."""
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
    """How much of the measured limits a launch uses, where they are known; the least seconds."""
    found, peak = {}, peaks.get(row["peak"])
    if bandwidth:
        found["memory_seconds"] = (row["bytes_read"] + row["bytes_written"]) / bandwidth
        found["of_bandwidth"] = found["memory_seconds"] / row["seconds"]
    if peak:
        found["matrix_seconds"] = row["flops"] / peak
        found["of_matrix_peak"] = found["matrix_seconds"] / row["seconds"]
    return found


# ---- whole steps ---------------------------------------------------------------------------------


def step(run):
    """Part: whole training steps by precision and number of nets, captured and not."""
    rows, clock = [], clock_of(run.device)
    for precision in run.precisions():
        for nets in run.sizes.step_nets:
            for captured in (True, False) if nets == run.sizes.nets else (True,):
                row = {"precision": precision, "nets": nets, "captured": captured}
                row.update(_time_step(run, clock, **row))
                rows.append(row)
                yield {"batch": run.sizes.batch, "steps": rows, "headline": _steps_in_words(rows)}


def _time_step(run, clock, precision, nets, captured):
    gc.collect()  # the Trainer before, whose arrays are many
    trainer = make_trainer(run.device, precision, nets, run.sizes.batch, run.sizes.images)
    with trainer.ops.session():
        found = summary(measure(clock, repeated(trainer, captured), run.sizes))
    return {**found, "images_per_second": nets * run.sizes.batch / found["seconds"]}


def _steps_in_words(rows):
    return ", ".join(
        f"{row['precision']} x {row['nets']}{'' if row['captured'] else ' eager'} "
        f"{1e3 * row['seconds']:.2f} ms"
        for row in rows
    )
