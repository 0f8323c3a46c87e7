"""python -m benchmarks.gpu_report --out DIR: what minicnn does on an NVIDIA GPU, in one command.

It asks the machine, measures its limits, runs the tests of the kernels, holds a step against NumPy,
times each launch and whole steps, trains the seed recipe on MNIST, compares with PyTorch, and draws
all that. Each part is a process of its own with a limit of time, so that one that fails or hangs
takes nothing from the others. DIR/report.json is written anew after each part.

Exit status: 0; 1 if a part failed; 2 for bad arguments, or without a GPU. With --device emulated
the parts that need no GPU run on the emulator, with tiny sizes: that tests the command itself.
"""

import argparse
import contextlib
import gc
import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import timing
from benchmarks.kernels import run_step
from minicnn import __version__, cuda, ensemble
from minicnn.command import Parser, one_line, positive
from minicnn.devices import choose
from minicnn.digits import draw_digits
from minicnn.emulator import Emulator
from minicnn.files import atomic_write
from minicnn.layers import Conv2D
from minicnn.recipe import RECIPES, Recipe

ROOT = Path(__file__).parent.parent
TEST_FILES = (
    "test_kernel_ops.py",
    "test_kernel_convolution.py",
    "test_step.py",
    "test_blocks.py",
    "test_train_on_kernels.py",
)
STEP_LAUNCHES = 28  # of a fused step
MATRIX = 8192  # side of the matrices whose product is the peak
PLOT_SECONDS = 25  # kept for the plots, the last part
STATE = "params", "moving", "moment_1", "moment_2", "step"
# The largest relative errors of a step against NumPy's: on the way forward, and of gradients and
# what follows from them. A rounding that switches one ReLU moves a gradient by a thousandth, and
# those of TF32, which keeps eleven bits of a factor, by 0.07 on the emulator, with two nets of 16
# images.
TOLERANCES = {"float32": (1e-4, 2e-3), "tf32": (5e-3, 0.2)}
FORWARD, BACKWARD = ("x", "loss", "moving"), ("gradients", "moment_1", "moment_2")


class Failed(Exception):  # noqa: N818  what happened to a part, as LeftOut
    """A part found something wrong; the message says what."""


class LeftOut(Exception):  # noqa: N818
    """A part cannot be done here; the message says why."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    nets: int
    batch: int
    step_nets: tuple  # the numbers of nets whose steps are timed
    check: tuple  # (nets, images of each, nets among which one is the same)
    precisions: tuple
    images: int
    warm_up: int
    rounds: int
    seconds: float  # of a round
    repeats: int  # of a launch within one graph: its time is then not that of launching


FULL = Sizes(15, 64, (1, 5, 15, 30), (2, 16, 15), ("tf32", "float32"), 42_000, 3, 9, 0.2, 20)
QUICK = replace(FULL, rounds=3, seconds=0.05)
EMULATED = Sizes(1, 1, (1, 2), (1, 2, 2), ("float32",), 12, 1, 2, 0, 1)


class Run:
    """What a part is told: the options, how much to measure, its time, what others found."""

    def __init__(self, options, seconds):
        self.options, self.device, self.out = options, options.device, Path(options.out)
        quick = QUICK if options.quick else FULL
        self.sizes = EMULATED if self.device == "emulated" else quick
        self._deadline = time.monotonic() + seconds

    @property
    def left(self):
        """Seconds until the part is stopped."""
        return self._deadline - time.monotonic()

    def found(self, part):
        """The results of an earlier part, {} without any."""
        return _read(_part_file(self.out, part)).get("results", {})

    def precisions(self):
        """Those that the device has, the fastest first."""
        has_tf32 = choose(self.device)[1].has_tf32
        return [p for p in self.sizes.precisions if has_tf32 or p != "tf32"]


# ---- time ----------------------------------------------------------------------------------------


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


# ---- training steps ------------------------------------------------------------------------------


def make_trainer(device, precision, nets, batch, images):
    """A Trainer of the seed network on so many drawn digits, at the start of an epoch."""
    drawn, labels = draw_digits(min(images, 2000))
    drawn, labels = np.resize(drawn, (images, *drawn.shape[1:])), np.resize(labels, images)
    recipe = Recipe(nets=nets, batch_size=batch, validation_fraction=0)
    job = ensemble.Job(recipe, ensemble.Data(drawn, labels), device, precision, None)
    trainer = ensemble.Trainer(job, recipe.all_nets)
    trainer.begin_epoch(0)
    return trainer


def repeated(trainer, graph=True):
    """A function that does one step of the trainer's, captured or launch by launch."""
    again = ensemble.Repeat(trainer.ops, graph)
    return lambda: again(trainer.step)


# ---- the machine and its limits ------------------------------------------------------------------

_PROPERTIES = (
    "major minor multiProcessorCount totalGlobalMem l2CacheSize clockRate memoryClockRate "
    "memoryBusWidth sharedMemPerMultiprocessor sharedMemPerBlockOptin regsPerMultiprocessor"
).split()
_SMI = (
    "name,driver_version,memory.total,memory.used,clocks.sm,clocks.max.sm,clocks.mem,"
    "clocks.max.mem,power.limit,temperature.gpu,pstate"
)


def machine(run):
    """Part: what this runs on."""
    versions = {"minicnn": __version__, "numpy": np.__version__}
    yield {"machine": timing.machine(), "cores": os.cpu_count(), "versions": versions}
    for name in ("torch", "jax", "keras", "triton", "matplotlib", "pytest"):
        versions[name] = _version(name)
    yield {"versions": versions, "headline": f"{run.device}, Python {sys.version.split()[0]}"}
    if run.device == "cuda":
        yield from _gpu(versions)


def _version(package):
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _gpu(versions):
    cupy = importlib.import_module("cupy")
    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(runtime.getDevice())
    versions["cupy"], versions["nvrtc"] = cupy.__version__, list(cuda.nvrtc_version())
    versions["cuda of the driver"] = runtime.driverGetVersion()
    versions["cuda of cupy"] = runtime.runtimeGetVersion()
    free, total = runtime.memGetInfo()
    yield {
        "versions": versions,
        "gpu": cuda.gpu_name(),
        "properties": {key: int(properties[key]) for key in _PROPERTIES if key in properties},
        "memory_free": int(free),
        "memory_total": int(total),
        "headline": f"{cuda.gpu_name()}, {total / 2**30:.0f} GiB",
    }
    command = ["nvidia-smi", f"--query-gpu={_SMI}", "--format=csv"]
    try:
        smi = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        yield {"nvidia_smi": (smi.stdout or smi.stderr).splitlines()}
    except (OSError, subprocess.TimeoutExpired) as error:
        yield {"nvidia_smi": one_line(error)}


def limits(run):
    """Part: what the GPU does at most: bytes copied, products of matrices, launches in a graph."""
    cupy, driver, clock = importlib.import_module("cupy"), cuda.Cuda(), EventClock()
    with driver.session():
        copy = _copy(cupy, clock, run.sizes)
        yield {"copy": copy, "bandwidth": copy["bytes"] / copy["seconds"]}
        launches = _tiny_launches(driver, clock, run.sizes)
    node = launches["seconds"] / STEP_LAUNCHES
    yield {"graph": {"nodes": STEP_LAUNCHES, **launches}, "seconds_a_node": node}
    peaks = {}
    for precision in ("float32", "tf32"):
        peaks[precision] = _matrix_peak(run, precision)
        yield {"matrix_peaks": peaks}
    shown = ", ".join(
        f"{name} {peak['flops'] / 1e12:.0f} TFLOP/s" if "flops" in peak else f"no {name} peak"
        for name, peak in peaks.items()
    )
    rate = copy["bytes"] / copy["seconds"] / 1e12
    yield {"headline": f"{rate:.2f} TB/s, {shown}, {1e6 * node:.2f} us a node"}


def _copy(cupy, clock, sizes):
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


def _matrix_peak(run, precision):
    """The rate of cuBLAS in a process of its own, since CuPy reads its setting once."""
    code = (
        "import json; from benchmarks import gpu_report as report; "
        f"print(json.dumps(report.matrix_rate({precision!r}, {run.options.quick})))"
    )
    environment = {**os.environ, "CUPY_TF32": str(int(precision == "tf32"))}
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=max(run.left - 1, 1),
        check=False,
    )
    if result.returncode:
        return {"problem": result.stderr.strip()[-2000:]}
    return json.loads(result.stdout.splitlines()[-1])


def matrix_rate(precision, quick):
    """FLOP/s of a product of large matrices: CuPy's, or PyTorch's where CuPy finds no cuBLAS."""
    try:
        library, step = "CuPy", _cupy_product(precision)
        step()
    except Exception as error:  # whatever a missing library makes of it
        print(f"CuPy multiplies no matrices here: {one_line(error)}", file=sys.stderr)
        gpu_torch = importlib.import_module("benchmarks.gpu_torch")
        library, step = "PyTorch", gpu_torch.synchronous_product(MATRIX, precision == "tf32")
    clock = EventClock() if library == "CuPy" else WallClock()
    found = summary(measure(clock, step, QUICK if quick else FULL))
    return {"library": library, "side": MATRIX, **found, "flops": 2 * MATRIX**3 / found["seconds"]}


def _cupy_product(precision):
    cupy = importlib.import_module("cupy")
    expected = "1" if precision == "tf32" else "0"
    if os.environ.get("CUPY_TF32") != expected:
        raise ValueError(f"CUPY_TF32: expected {expected} for {precision}")
    random = np.random.default_rng(0)
    a, b = (cupy.array(random.random((MATRIX, MATRIX), np.float32)) for _ in range(2))
    c = cupy.empty_like(a)
    return lambda: cupy.dot(a, b, out=c)


# ---- is it right? --------------------------------------------------------------------------------


def tests(run):
    """Part: the kernels' tests on the GPU."""
    files = [f"tests/{name}" for name in TEST_FILES if (ROOT / "tests" / name).exists()]
    missing = [name for name in TEST_FILES if f"tests/{name}" not in files]
    log = run.out / "tests.txt"
    command = [sys.executable, "-m", "pytest", "--device", run.device, "-v", "--tb=short"]
    status = run_command([*command, "-p", "no:cacheprovider", *files], run.left - 5, log)
    output = log.read_text(errors="replace")
    counts = count_outcomes(output)
    yield {"files": files, "missing": missing, "status": status, "counts": counts}
    shown = ", ".join(f"{count} {outcome}" for outcome, count in counts.items()) or "no tests"
    yield {"output": output[-6000:], "headline": shown + (" (no time for all)" * (status is None))}
    if status != 0:
        raise Failed(
            f"pytest {'had no time' if status is None else f'ended with {status}'}: {shown}"
        )


def count_outcomes(output):
    """{outcome: how many} in what pytest -v wrote, complete or not."""
    counts = defaultdict(int)
    for outcome in re.findall(
        r"^tests/\S+::.* (PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b", output, re.M
    ):
        counts[outcome.lower()] += 1
    return dict(counts)


def check(run):
    """Part: a step against NumPy's, and what must agree to the bit."""
    nets, batch, many = run.sizes.check
    wrong, shown = [], []
    for precision in run.precisions():
        errors = errors_against_numpy(run.device, precision, nets, batch, run.sizes.images)
        yield {f"{precision} against numpy": errors}
        wrong += [
            f"{precision}: {name} differs from NumPy's by {error:.1e}"
            for name, error in errors.items()
            if not error < TOLERANCES[precision][name in BACKWARD]
        ]
        after = partial(state_after_steps, run.device, precision, batch, run.sizes.images)
        captured, alone = after(nets), after(1)
        same = {
            "captured as launch by launch": same_bits(captured, after(nets, graph=False)),
            "run as run": same_bits(captured, after(nets)),
            f"net 1 alone as among {many}": same_bits(alone, after(many)),
        }
        yield {f"{precision} to the bit": same}
        wrong += [f"{precision}: not {name}" for name, is_same in same.items() if not is_same]
        shown.append(f"{precision} gradients {errors['gradients']:.1e}")
    yield {"headline": f"{', '.join(shown)} off NumPy's; {len(wrong) or 'nothing'} wrong"}
    if wrong:
        raise Failed("; ".join(wrong))


def errors_against_numpy(device, precision, nets, batch, images, steps=3):
    """{what: its largest relative error in some steps}, each from the state of NumPy's nets."""
    ours = make_trainer(device, precision, nets, batch, images)
    reference = make_trainer("numpy", "float32", nets, batch, images)
    to_host, errors = ours.ops.to_host, {}
    for _ in range(steps):
        for name in STATE:
            state = ours.ops.to_device(getattr(reference.model, name))
            ours.ops.copy(state, getattr(ours.model, name))
        for trainer in (ours, reference):
            with trainer.ops.session():
                trainer.step()
        for name in FORWARD + BACKWARD:
            of = "plan" if name in ("x", "loss") else "model"
            found, expected = (getattr(getattr(t, of), name) for t in (ours, reference))
            difference = np.linalg.norm(to_host(found) - np.float64(expected))
            error = difference / np.linalg.norm(expected)
            errors[name] = float(np.maximum(errors.get(name, 0), error))  # keeps NaN
    return errors


def state_after_steps(device, precision, batch, images, nets, graph=True, steps=4):
    """What some steps from the start make of the nets, on the host."""
    trainer = make_trainer(device, precision, nets, batch, images)
    step = repeated(trainer, graph)
    with trainer.ops.session():
        for _ in range(steps):
            step()
        return [trainer.ops.to_host(getattr(trainer.model, name)) for name in STATE]


def same_bits(found, expected):
    """Whether states agree to the bit, in the nets that `found` has."""
    return all(
        one.tobytes() == other[: len(one)].tobytes()
        for one, other in zip(found, expected, strict=True)
    )


# ---- each launch ---------------------------------------------------------------------------------

# What a kernel reads and writes in place.
_IN_PLACE = {"adam": {"w", "m", "v"}, "update_moving": {"moving"}, "accumulate": {"sums"}}


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


def _run_often(driver, launch, count):
    for _ in range(count):
        driver.run(launch)


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


# ---- beside the frameworks -----------------------------------------------------------------------


def frameworks(run):
    """Part: images a second beside PyTorch's, all contenders taking turns."""
    missing = {
        name: "is there, but not measured" if importlib.util.find_spec(name) else "not installed"
        for name in ("jax", "keras", "tensorflow")
    }
    yield {"not_measured": missing}
    if not importlib.util.find_spec("torch"):
        raise LeftOut("PyTorch is not installed")
    gpu_torch = importlib.import_module("benchmarks.gpu_torch")
    try:
        yield {"torch": gpu_torch.torch.__version__, "gpu": gpu_torch.device_name()}
    except RuntimeError as error:
        raise LeftOut(one_line(error)) from None
    ours, times = _our_contenders(run), defaultdict(list)
    for group in gpu_torch.groups(run.sizes.nets):
        if times and run.left < 45:  # compiling takes about so long
            missing.update({contender.name: "no time left" for contender in group})
            continue
        theirs = _their_contenders(gpu_torch, group, run, missing)
        if times and not theirs:
            continue
        contenders = ours | theirs
        for name, found in compare(contenders, run.sizes).items():
            times[name, contenders[name][1]] += found
        rates = rates_of(times, run.sizes.batch)
        yield {"rates": rates, **ratios(rates), "headline": _rates_in_words(rates)}


def _our_contenders(run):
    """{name: (function of so many steps, nets)} of minicnn."""
    cupy = importlib.import_module("cupy")
    found = {}
    for precision in run.precisions():
        for nets in (1, run.sizes.nets):
            trainer = make_trainer(run.device, precision, nets, run.sizes.batch, run.sizes.images)
            again = repeated(trainer)

            def steps(count, trainer=trainer, again=again):
                with trainer.ops.session():
                    for _ in range(count):
                        again()
                cupy.cuda.Device().synchronize()

            found[f"minicnn {precision}, {nets} net{'s' * (nets > 1)}"] = steps, nets
    return found


def _their_contenders(gpu_torch, contenders, run, missing):
    """The same of PyTorch; what does not work is in `missing` afterwards."""
    images, labels = draw_digits(2000)
    images, labels = (np.resize(a, (run.sizes.images, *a.shape[1:])) for a in (images, labels))
    recipe, found = Recipe(batch_size=run.sizes.batch), {}
    for contender in contenders:
        try:
            training = gpu_torch.Training(contender, images, labels, recipe)
            training(3)
            if not np.isfinite(training.loss.item()):
                raise FloatingPointError("its loss is not finite")
            found[contender.name] = training, contender.nets
        except Exception as error:  # whatever a way of PyTorch's makes of it
            missing[contender.name] = one_line(error)[:500]
    return found


def compare(contenders, sizes, steps=10):
    """Let {name: (function of so many steps, nets)} take turns: {name: [seconds a step]}."""
    turns = {name: partial(function, steps) for name, (function, _) in contenders.items()}
    times = timing.alternate(turns, sizes.rounds, sizes.seconds)
    return {name: [seconds / steps for seconds in found] for name, found in times.items()}


def rates_of(times, batch):
    """Median and spread of the images a second of each contender, from {(name, nets): times}."""
    return [
        {"contender": name, "nets": nets, **timing.summarize(found, nets * batch)}
        for (name, nets), found in times.items()
    ]


def ratios(rates):
    """Our best median by the best of PyTorch: of one net, and of any number."""
    found = {}
    for name, most in (("ratio_of_one_net", 1), ("ratio", np.inf)):
        best = _best([row for row in rates if row["nets"] <= most])
        known = all(best.values())
        found[name] = _rate(best[True]) / _rate(best[False]) if known else None
    return found


def _best(rates):
    """{whether it is ours: the row with the highest rate, or None}."""
    return {
        ours: max((row for row in rates if _is_ours(row) == ours), key=_rate, default=None)
        for ours in (True, False)
    }


def _rate(row):
    return row["images_per_second"]


def _is_ours(row):
    return row["contender"].startswith("minicnn")


def _rates_in_words(rates):
    best = [row for row in _best(rates).values() if row]
    shown = ", ".join(f"{row['contender']} {_rate(row):,.0f}" for row in best)
    ratio = ratios(rates)["ratio"]
    return f"images a second: {shown}" + (f": {ratio:.2f} times" if ratio else "")


# ---- training ------------------------------------------------------------------------------------


def train(run):
    """Part: the seed recipe from start to end, by the command that users call."""
    options = run.options
    if run.device == "cuda":
        data = mnist_folder(options.data)
        epochs = options.epochs or (1 if options.quick else Recipe().epochs)
        sizes = ["--limit", options.limit, "--recipe", "seed", "--epochs", epochs]
    else:
        data = "digits"
        sizes = "--limit 4 --test-limit 4 --nets 1 --batch-size 2 --no-figures".split()
        sizes += ["--epochs", options.epochs or 1]
    names = ("run", *(f"run-{n}" for n in range(2, 100)))
    folder = next(run.out / name for name in names if not (run.out / name).exists())
    command = [sys.executable, "-m", "minicnn.train", "--quiet", "--device", run.device]
    command += ["--data", data, "--precision", run.precisions()[0], "--out", folder, *sizes]
    command, log = list(map(str, command)), run.out / "train.txt"
    yield {"command": command[1:], "folder": folder.name}
    status = run_command(command, run.left - 5, log)
    yield {"output": log.read_text(errors="replace")[-3000:]}
    if status != 0:
        raise Failed(f"training {'had no time' if status is None else f'ended with {status}'}")
    result = json.loads((folder / "summary.json").read_text())
    nets = [net["test_accuracy"] for net in result["nets"]]
    accuracy = result["ensemble_test_accuracy"]
    shown = "unknown" if accuracy is None else f"{accuracy:.4f}"
    yield {
        **{key: result[key] for key in ("device", "seconds", "images_per_second")},
        "ensemble_test_accuracy": accuracy,
        "net_test_accuracies": nets,
        "headline": f"{result['seconds']:.0f} s, {result['images_per_second']:,.0f} images a "
        f"second, test accuracy {shown}",
    }


def mnist_folder(given):
    """MNIST's folder: what is given, or the usual ones. Raises LeftOut where it is missing."""
    folder = Path(given or os.environ.get("MINICNN_TEST_MNIST") or ROOT / ".mnist")
    if not folder.is_dir():
        raise LeftOut(f"no MNIST: {folder} is no folder; --data says where it is")
    return folder.resolve()


# ---- plots ---------------------------------------------------------------------------------------

_COLORS = {True: "#0077BB", False: "#BBBBBB"}  # ours, theirs


def plots(run):
    """Part: what the others found, drawn."""
    if not importlib.util.find_spec("matplotlib"):
        raise LeftOut("matplotlib is not installed")
    drawn = []
    for part, key, draw in (
        ("kernels", "launches", draw_kernels),
        ("step", "steps", draw_steps),
        ("frameworks", "rates", draw_frameworks),
    ):
        rows = run.found(part).get(key)
        if rows:
            draw(run.out / f"{part}.png", rows)
            drawn.append(f"{part}.png")
            yield {"files": drawn}
    yield {"headline": ", ".join(drawn) or "nothing to draw"}


@contextlib.contextmanager
def _page(path, height):
    """Axes to draw on; afterwards they are at `path`."""
    figure_module = importlib.import_module("matplotlib.figure")
    figure = figure_module.Figure(figsize=(9, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    yield axes
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=150)


def draw_kernels(path, rows):
    """The time of each launch, in order, and the least that each limit allows."""
    with _page(path, 1.2 + 0.25 * len(rows)) as axes:
        places = np.arange(len(rows))
        names = [f"{row['kernel']} {row['layer']}".strip() for row in rows]
        axes.barh(places, [1e6 * row["seconds"] for row in rows], color="#88BBDD", label="measured")
        for key, color, label in (
            ("memory_seconds", "#CC3311", "limit of the memory, as a copy reaches it"),
            ("matrix_seconds", "#222222", "limit of products of matrices, as cuBLAS reaches it"),
        ):
            marks = [(1e6 * row[key], i) for i, row in enumerate(rows) if row.get(key)]
            if marks:
                x, y = zip(*marks, strict=True)
                axes.plot(x, y, "|", color=color, markersize=11, markeredgewidth=2, label=label)
        axes.set_yticks(places, names, fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel("microseconds")
        axes.set_title("Launches of a training step", loc="left")
        axes.legend(frameon=False)


def draw_steps(path, rows):
    """The time of a captured step by the number of nets."""
    with _page(path, 4) as axes:
        for precision in dict.fromkeys(row["precision"] for row in rows):
            kept = [row for row in rows if row["precision"] == precision and row["captured"]]
            kept.sort(key=lambda row: row["nets"])
            nets = [row["nets"] for row in kept]
            middle, low, high = (
                [1e3 * row[key] for row in kept] for key in ("seconds", "lowest", "highest")
            )
            [line] = axes.plot(nets, middle, marker="o", label=precision)
            axes.fill_between(nets, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("nets")
        axes.set_ylabel("milliseconds a step")
        axes.set_title("Training step, all nets together", loc="left")
        axes.legend(frameon=False)


def draw_frameworks(path, rows):
    """Images a second of each contender, the fastest on top."""
    rows = sorted(rows, key=_rate)
    with _page(path, 1.2 + 0.3 * len(rows)) as axes:
        places = np.arange(len(rows))
        middle, low, high = (
            np.array([row[key] for row in rows])
            for key in ("images_per_second", "lowest", "highest")
        )
        colors = [_COLORS[_is_ours(row)] for row in rows]
        axes.barh(places, middle, xerr=(middle - low, high - middle), color=colors)
        axes.set_yticks(places, [row["contender"] for row in rows], fontsize=8)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel("images a second")
        axes.set_title("Training steps, augmentation included", loc="left")


# ---- the report ----------------------------------------------------------------------------------


class Part(NamedTuple):
    """A part of the report: run(Run) yields results, which are written as they come."""

    run: Callable
    seconds: float  # that it may take
    least: float  # with less time left it is not begun
    needs_gpu: bool = False


PARTS = {
    "machine": Part(machine, 30, 5),
    "limits": Part(limits, 45, 15, needs_gpu=True),
    "check": Part(check, 75, 20),
    "kernels": Part(kernels, 60, 20),
    "step": Part(step, 75, 20),
    "tests": Part(tests, 155, 30, needs_gpu=True),
    "train": Part(train, 200, 60),
    "frameworks": Part(frameworks, 150, 45, needs_gpu=True),
    "plots": Part(plots, PLOT_SECONDS, 3),
}


def make_report(options, parts, start):
    """Do the chosen parts one after the other, each by start(name, part, options, seconds).

    Returns the report, which is in report.json after each of them.
    """
    out, began = Path(options.out), time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    for name in options.parts:  # what an earlier report found
        _part_file(out, name).unlink(missing_ok=True)
    report = {"command": _arguments_of(options), "date": timing.machine()["date"], "parts": {}}
    for name in options.parts:
        part = parts[name]
        kept = PLOT_SECONDS if "plots" in options.parts and name != "plots" else 0
        left = options.seconds - (time.monotonic() - began) - kept
        if part.needs_gpu and options.device != "cuda":
            entry = _entry("left out", "needs a GPU")
        elif left < part.least:
            entry = _entry("left out", f"no time: {max(left, 0):.0f} of {part.least} s are left")
        else:
            part_began = time.monotonic()
            entry = start(name, part, options, min(part.seconds, left))
            entry["seconds"] = time.monotonic() - part_began
        report["parts"][name] = entry
        for status in ("failed", "left out"):
            found = {n: e["why"] for n, e in report["parts"].items() if e["status"] == status}
            report[status.replace(" ", "_")] = found
        report["seconds"] = time.monotonic() - began
        report["finished"] = len(report["parts"]) == len(options.parts)
        _write(out / "report.json", report)
        shown = entry["results"].get("headline", "")
        if entry["status"] != "done":
            why = f"{entry['status'].upper()}: {entry['why']}"
            shown = f"{why} ({shown})" if shown else why
        print(f"{name:<11}{entry['seconds']:6.1f} s  {shown}", flush=True)
    return report


def _entry(status, why=None):
    return {"status": status, "why": why, "seconds": 0.0, "results": {}}


def in_a_process(name, part, options, seconds):
    """Do a part in a process of its own; its entry of the report."""
    out = Path(options.out)
    path, log = _part_file(out, name), _part_file(out, name).with_suffix(".log")
    path.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu_report", *_arguments_of(options)]
    command += ["--only", name, "--until", str(time.time() + seconds)]
    status = run_command(command, seconds, log, group=True)
    entry = _read(path) or _entry("failed")
    if entry["status"] == "running":
        entry["status"] = "failed"
        entry["why"] = f"stopped after {seconds:.0f} s" if status is None else None
    if entry["status"] == "failed":
        entry["why"] = entry["why"] or f"its process ended with status {status}"
        entry["output"] = log.read_text(errors="replace")[-6000:]
    return entry


def in_this_process(name, part, options, seconds):
    """Do a part here; its entry of the report, which is in its file whenever it yields."""
    path = _part_file(Path(options.out), name)
    path.parent.mkdir(parents=True, exist_ok=True)
    entry = _entry("running")
    _write(path, entry)
    try:
        for found in part.run(Run(options, seconds)):
            entry["results"].update(found)
            _write(path, entry)
        entry["status"] = "done"
    except LeftOut as reason:
        entry["status"], entry["why"] = "left out", one_line(reason)
    except Exception as error:
        entry["status"] = "failed"
        entry["why"] = f"{type(error).__name__}: {one_line(error)}"
        entry["traceback"] = traceback.format_exc()
    _write(path, entry)
    return entry


def run_command(command, seconds, log, group=False):
    """A command's exit status, its output in a file; None where it was stopped after `seconds`.

    With `group`, what it started is stopped, too.
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with open(log, "wb") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=environment,
            start_new_session=group,
        )
        try:
            return process.wait(max(seconds, 1))
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL) if group else process.kill()
                with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in the driver
                    process.wait(10)


def _part_file(out, name):
    return out / "parts" / f"{name}.json"


def _read(path):
    return json.loads(path.read_text()) if path.exists() else {}


def _write(path, value):
    with atomic_write(path) as file:
        file.write((json.dumps(value, indent=2) + "\n").encode())


# ---- the command ---------------------------------------------------------------------------------


def _parser():
    parser = Parser(prog="benchmarks.gpu_report", description=__doc__)
    parser.add_argument("--out", required=True, metavar="DIR", help="the report's folder")
    parser.add_argument(
        "--parts",
        type=_names,
        metavar="A,B",
        default=list(PARTS),
        help=f"some of {','.join(PARTS)} (default: all)",
    )
    parser.add_argument("--device", choices=["cuda", "emulated"], default="cuda")
    parser.add_argument(
        "--seconds", type=positive, metavar="N", default=530, help="for all parts (default: 530)"
    )
    parser.add_argument("--quick", action="store_true", help="few rounds, one epoch")
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="MNIST's folder (default: what MINICNN_TEST_MNIST names, or .mnist in the checkout)",
    )
    parser.add_argument(
        "--limit", type=positive, metavar="N", default=42_000, help="training images (42000)"
    )
    parser.add_argument("--epochs", type=positive, metavar="N", help="of the training (45)")
    # A part's own process, and when it must have ended.
    parser.add_argument("--only", choices=list(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    return parser


def _names(text):
    names = text.split(",")
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"got {unknown[0]!r}, expected some of {','.join(PARTS)}")
    return [name for name in PARTS if name in names]


def _arguments_of(options):
    """The options as a command line has them."""
    line = ["--out", options.out, "--device", options.device, "--parts", ",".join(options.parts)]
    line += ["--seconds", options.seconds, "--limit", options.limit]
    line += ["--data", options.data] if options.data else []
    line += ["--epochs", options.epochs] if options.epochs else []
    line += ["--quick"] if options.quick else []
    return list(map(str, line))


def main(argv=None, parts=None, start=in_a_process):
    """Run the command; returns its exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    options.out = str(Path(options.out).resolve())
    options.data = options.data and str(Path(options.data).resolve())
    if options.only:
        seconds = options.until - time.time()
        entry = in_this_process(options.only, PARTS[options.only], options, seconds)
        return int(entry["status"] == "failed")
    if options.device == "cuda" and cuda.problem():
        parser.error(f"argument --device: {cuda.problem()}")
    report = make_report(options, parts or PARTS, start)
    if report["failed"]:
        print(f"benchmarks.gpu_report: failed: {', '.join(report['failed'])}", file=sys.stderr)
    return int(bool(report["failed"]))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which stops the part's process, too
    sys.exit(main())
