"""The parts of gpu_report.py that time: the GPU's limits, each launch, and whole steps."""

import gc
from functools import partial

import numpy as np

from benchmarks import timing
from benchmarks.gpu_parts import LeftOut, make_trainer, repeated
from benchmarks.launches import STEP_LAUNCHES, run_often, time_launches, use_of_limits
from benchmarks.limits import gpu_copy_seconds, gpu_gemm
from minicnn.backends import cuda
from minicnn.emulator import Emulator

# ---- limits --------------------------------------------------------------------------------------


def limits(run):
    """Part: what the GPU does at most: bytes copied, products of matrices, launches in a graph."""
    driver, sizes = cuda.Cuda(), run.sizes
    with driver.session():
        moved, times = gpu_copy_seconds(sizes.rounds, sizes.seconds)
        copy = {"bytes": moved, **timing.spread("seconds", times)}
        rate = moved / copy["seconds"]
        yield {"copy": copy, "bandwidth": rate}
        launches = _tiny_launches(driver, sizes)
    node = launches["seconds"] / STEP_LAUNCHES
    yield {"graph": {"nodes": STEP_LAUNCHES, **launches}, "seconds_a_node": node}
    peaks, shown = {}, f"{rate / 1e12:.2f} TB/s, {1e6 * node:.2f} us a node"
    for precision in ("float32", "tf32"):
        peaks[precision] = peak = _matrix_peak(run, precision)
        flops = f"{peak['flops'] / 1e12:.0f} TFLOP/s" if "flops" in peak else "not measured"
        shown += f", {precision} {flops}"
        yield {"matrix_peaks": peaks, "headline": shown}


def _tiny_launches(driver, sizes):
    """A graph of launches that do next to nothing."""
    counter = driver.zeros((1,), np.int64)
    tiny = driver.bind("metrics.cu", "increment", (1,), (1,), (counter,))
    driver.run(tiny)
    graph = driver.capture(partial(run_often, driver, tiny, STEP_LAUNCHES))
    times = timing.measure(graph, sizes.rounds, sizes.seconds, timing.EventClock())
    return timing.spread("seconds", times)


def _matrix_peak(run, precision):
    """The rate of cuBLAS, or the problem with it."""
    timeout = max(run.left - 1, 1)
    found = gpu_gemm(precision, run.sizes.rounds, run.sizes.seconds, timeout)
    if "problem" in found:
        return found
    measured = timing.spread("seconds", found.pop("times"))
    return {**found, **measured, "flops": 2 * found["side"] ** 3 / measured["seconds"]}


# ---- each launch ---------------------------------------------------------------------------------


def kernels(run):
    """Part: the time of each launch of the fused step, and how near it comes to the limits."""
    driver = cuda.Cuda() if run.device == "cuda" else Emulator()
    if not driver.has_tf32:
        raise LeftOut("the GPU has no tensor cores for TF32")
    rows, found = time_launches(driver, run.sizes), run.found("limits")
    peaks = {name: peak.get("flops") for name, peak in found.get("matrix_peaks", {}).items()}
    for row in rows:
        row.update(use_of_limits(row, found.get("bandwidth"), peaks))
    total = sum(row["seconds"] for row in rows)
    slowest = max(rows, key=lambda row: row["seconds"])
    yield {
        "what": "each launch of a fused step in TF32, repeated by itself; bytes from the shapes of "
        "its arrays, FLOP from the shapes of the layer",
        "nets": run.sizes.nets,
        "batch": run.sizes.batch,
        "launches": rows,
        "seconds": total,
        "headline": f"{len(rows)} launches, {1e3 * total:.3f} ms together; the longest: "
        f"{slowest['kernel']} {slowest['layer']} {1e6 * slowest['seconds']:.0f} us",
    }


# ---- whole steps ---------------------------------------------------------------------------------


def step(run):
    """Part: whole training steps by precision and number of nets, captured and not."""
    rows = []
    for precision in run.precisions():
        for nets in run.sizes.step_nets:
            for captured in (True, False) if nets == run.sizes.nets else (True,):
                row = {"precision": precision, "nets": nets, "captured": captured}
                row.update(_time_step(run, **row))
                rows.append(row)
                yield {"batch": run.sizes.batch, "steps": rows, "headline": _steps_in_words(rows)}


def _time_step(run, precision, nets, captured):
    gc.collect()  # the Trainer before, whose arrays are many
    sizes, clock = run.sizes, timing.clock_of(run.device)
    trainer = make_trainer(run.device, precision, nets, sizes.batch, sizes.images)
    with trainer.ops.session():
        again = repeated(trainer, captured)
        found = timing.spread("seconds", timing.measure(again, sizes.rounds, sizes.seconds, clock))
    return {**found, "images_per_second": nets * sizes.batch / found["seconds"]}


def _steps_in_words(rows):
    return ", ".join(
        f"{row['precision']} x {row['nets']}{'' if row['captured'] else ' eager'} "
        f"{1e3 * row['seconds']:.2f} ms"
        for row in rows
    )
