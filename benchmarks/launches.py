"""The launches of a fused step in TF32: their times, and the least work that each must do.

Each launch is timed by itself, repeated in one graph, so the time of launching is left out, and
operands that fit into the second-level cache are read from there. In a fused step one launch
computes a convolution and what lies before or behind it (minicnn/backends/cuda_blocks.py).
"""

from functools import partial
from math import prod

from benchmarks import timing
from benchmarks.counts import run_step
from benchmarks.operations import convolution_flops
from minicnn.network.layers import Conv2D
from minicnn.recipe import RECIPES

# What a kernel both reads and writes.
_IN_PLACE = {"adam": {"w", "m", "v"}, "update_moving": {"moving"}, "accumulate": {"sums"}}


def time_launches(driver, sizes):
    """A dict for each launch: that of `describe`, and median and spread of its seconds.

    driver: a cuda.Cuda or an Emulator; sizes: kernels.Sizes.
    """
    launches, marks = record_step(driver, sizes.nets, sizes.batch)
    rows = describe(launches, marks, sizes.nets, sizes.batch)
    clock = timing.clock_of(driver.name)
    for launch, row in zip(launches, rows, strict=True):
        with driver.session():
            replay = driver.capture(partial(repeat, driver, launch, sizes.repeats))
            times = timing.measure(replay, sizes.rounds, sizes.seconds / 10, clock)
        row.update(timing.spread("seconds", [seconds / sizes.repeats for seconds in times]))
    return rows


def repeat(driver, launch, count):
    """Run a launch `count` times."""
    for _ in range(count):
        driver.run(launch)


def record_step(driver, nets, batch):
    """(the launches of a fused step, the (layer, pass) of each)."""
    launches, run = [], driver.run

    def recorded(launch):
        launches.append(launch)
        run(launch)

    driver.run = recorded
    marks = run_step(driver, launches, nets, batch, "fused")
    del driver.run
    return launches, marks


def describe(launches, marks, nets, batch):
    """A dict for each launch: its layer and pass, and the bytes and FLOP that it needs at least."""
    convolutions = {n.name: n for n in RECIPES["seed"].nodes if isinstance(n.layer, Conv2D)}
    rows = []
    for launch, (layer, part) in zip(launches, marks, strict=True):
        read, written = moved_bytes(launch, nets, batch)
        row = {"kernel": launch.name, "layer": layer, "pass": part, "grid": launch.grid}
        row |= {"bytes_read": read, "bytes_written": written, "flops": 0, "peak": None}
        if layer in convolutions:
            node = convolutions[layer]
            window, channels = node.layer.window(node.input_shape), node.input_shape[-1]
            of_image = convolution_flops(window, channels, node.output_shape[-1])
            row["flops"] = nets * batch * of_image
            # The first layer's kernels do not use tensor cores.
            row["peak"] = "float32" if launch.name.startswith("block_first") else "tf32"
        rows.append(row)
    return rows


def moved_bytes(launch, nets, batch):
    """(read, written): each array of a launch once; of the data set only the batch."""
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

    bandwidth: bytes a second; peaks: {"float32" and "tf32": FLOP a second}; None where unknown.
    """
    found, peak = {}, peaks.get(row["peak"])
    if bandwidth:
        found["memory_seconds"] = (row["bytes_read"] + row["bytes_written"]) / bandwidth
        found["of_bandwidth"] = found["memory_seconds"] / row["seconds"]
    if peak:
        found["matrix_seconds"] = row["flops"] / peak
        found["of_matrix_peak"] = found["matrix_seconds"] / row["seconds"]
    return found
