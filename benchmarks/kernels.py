"""python -m benchmarks.kernels: time each operation of a training step on NumPy, C and CUDA.

The devices take turns. In each round a device runs one step of the seed network untimed, then one
with a clock reading after each operation: so every operation runs where it stands in the step, and
finds its operands in the same caches as in training. Its rate is compared with a limit that is
measured before and after, on as many cores: the rate of a large matrix product or, for operations
with little arithmetic, of a large copy (limits.py).

On a GPU each operation is a graph; its time includes the launch, a few microseconds. The launches
of the fused step are timed too, by precision, and whole steps by precision and number of nets. Each
operation and launch has two times:

warm     An operation runs where it stands in the step. A launch is repeated in one graph, without
         the time of launching. What fits into the second-level cache is read from there.
flushed  Before each run, a copy that is larger than the second-level cache replaces what it holds.
         All operands come from memory. Events around the run leave out the copy. The time includes
         the start of the launch, a few microseconds.

In training, an operation's time lies between the two: what the launch before has written may still
be in the cache.

Exit status: 0; 2 for bad arguments or a device that cannot be used. --device emulated tests what
runs on a GPU; its times say nothing about a GPU's.
"""

import gc
import re
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from benchmarks import limits, timing
from benchmarks.counts import FUSED
from benchmarks.operations import describe, operations_of, record_step, use_of_limits
from minicnn.backends import cuda, native
from minicnn.command import positive
from minicnn.data.digits import draw_digits
from minicnn.devices import cpu_problem
from minicnn.emulator import Emulator
from minicnn.recipe import RECIPES
from minicnn.training.dataset import Data
from minicnn.training.inference import CapturedStep
from minicnn.training.trainer import Job, Trainer

HOSTS, GPUS = ("numpy", "cpu"), ("cuda", "emulated")
PARTS = "operations", "launches", "steps"
ROUNDS, FEW_ROUNDS = 40, 3


class Sizes(NamedTuple):
    """How much is measured on a GPU."""

    nets: int = 15
    batch: int = 64
    images: int = 42_000
    rounds: int = 9
    seconds: float = 0.2  # of a round
    repeats: int = 20  # of a launch in one graph, so that its time is not that of launching
    step_nets: tuple = (1, 5, 15, 30)
    precisions: tuple = ("bfloat16", "tf32", "float32")  # of whole steps


FULL = Sizes()
QUICK = Sizes(rounds=3, seconds=0.05)
EMULATED = Sizes(1, 1, 12, 2, 0, 1, (1, 2), ("float32",))


def make_trainer(device, precision, nets, batch, images):
    """A Trainer of the seed network on `images` drawn digits, at the start of an epoch."""
    recipe = replace(RECIPES["seed"], nets=nets, batch_size=batch, validation_fraction=0)
    drawn, labels = draw_digits(min(images, 2000))  # then repeated
    data = Data(np.resize(drawn, (images, *drawn.shape[1:])), np.resize(labels, images))
    trainer = Trainer(Job(recipe, data, device, precision, None), recipe.all_nets)
    trainer.begin_epoch(0)
    return trainer


class Steps:
    """The operations of a device's training step, to be timed one by one."""

    def __init__(self, device, nets, batch, images):
        self._trainer = make_trainer(device, "float32", nets, batch, images)
        self._clock, ops = timing.clock_of(device), self._trainer.ops
        self.operations = operations_of(self._trainer)
        self._flush = timing.flusher(device, ops) if device in GPUS else None
        with ops.session():
            self._trainer.step()  # compiles, which is not possible during a capture
            capture = ops.capture or (lambda function: function)
            self._functions = [capture(operation.run) for operation in self.operations]

    def seconds(self, flushed=False):
        """[seconds of each operation] in one step; flushed: the cache is flushed before each."""
        with self._trainer.ops.session():
            for function in self._functions:  # to fill the caches with this device's own arrays
                function()
            marks = []
            for function in self._functions:
                if flushed:
                    self._flush()
                begin = self._clock.mark()
                function()
                marks.append((begin, self._clock.mark()))
            return [self._clock.seconds(*both) for both in marks]


def time_operations(steps, rounds):
    """A row for each operation of {device: Steps}: median and spread of its seconds, its work.

    On a GPU its "flushed" is the spread of the seconds with a flushed cache.
    """
    warm, flushed = ({device: [] for device in steps} for _ in range(2))
    for _ in range(rounds):
        for device, of_device in steps.items():
            warm[device].append(of_device.seconds())
            if device in GPUS:
                flushed[device].append(of_device.seconds(flushed=True))
    rows = []
    for device, of_device in steps.items():
        for number, operation in enumerate(of_device.operations):
            row = {"device": device, "layer": operation.layer, "pass": operation.part}
            row |= timing.spread("seconds", [times[number] for times in warm[device]])
            row |= {"flops": operation.flops, "bytes": operation.bytes}
            if flushed[device]:
                times = [times[number] for times in flushed[device]]
                row["flushed"] = timing.spread("seconds", times)
            rows.append(row)
    return rows


def add_share(row, measured):
    """Add "of_limit" to an operation's row, and to its flushed times."""
    row["of_limit"] = share_of_limit(row, measured)
    if "flushed" in row:
        row["flushed"]["of_limit"] = share_of_limit({**row, **row["flushed"]}, measured)


def share_of_limit(row, measured):
    """An operation's rate as a fraction of the device's limit; None where that is unknown."""
    name = "gemm_flops_per_second" if row["flops"] else "copy_bytes_per_second"
    done = row["flops"] or row["bytes"]
    return done / row["seconds"] / measured[name] if measured[name] else None


def time_fused(device, sizes, measured):
    """A row for each launch of the fused step in each of its precisions, warm and flushed.

    None where there are no tensor cores. `measured`: the device's limits.
    """
    driver = cuda.Cuda() if device == "cuda" else Emulator()
    if not driver.has_tensor_cores:
        return []
    clock, flush = timing.clock_of(device), timing.flusher(device, driver)
    bandwidth = measured["copy_bytes_per_second"]
    peaks = {
        "float32": measured["gemm_flops_per_second"],
        "tf32": measured.get("tf32_gemm_flops_per_second"),
    }
    rows = []
    for version, precision in FUSED.items():
        launches, marks = record_step(driver, sizes.nets, sizes.batch, version)
        described = describe(launches, marks, sizes.nets, sizes.batch, precision)
        for launch, about in zip(launches, described, strict=True):
            row = about | time_warm(driver, launch, sizes, clock)
            found = time_flushed(driver, launch, flush, sizes, clock)
            row["flushed"] = found | use_of_limits({**row, **found}, bandwidth, peaks)
            rows.append(row | use_of_limits(row, bandwidth, peaks))
    return rows


def time_warm(driver, launch, sizes, clock):
    """The spread of a launch's seconds, repeated in one graph: without the time of launching."""

    def repeated():
        for _ in range(sizes.repeats):
            driver.run(launch)

    with driver.session():
        graph = driver.capture(repeated)
        times = timing.measure(graph, sizes.rounds, sizes.seconds / 10, clock)
    return timing.spread("seconds", [seconds / sizes.repeats for seconds in times])


def time_flushed(driver, launch, flush, sizes, clock):
    """The spread of its seconds as a graph of its own, each time with a flushed cache."""
    with driver.session():
        graph = driver.capture(partial(driver.run, launch))
        times = timing.measure_flushed(graph, flush, sizes.rounds, sizes.repeats, clock)
    return timing.spread("seconds", times)


def time_steps(device, sizes):
    """A generator of a row for whole training steps of each precision and number of nets.

    Each is captured as a graph; those of sizes.nets nets also run launch by launch.
    """
    has_tensor_cores = device == "emulated" or cuda.Cuda().has_tensor_cores
    for precision in (p for p in sizes.precisions if has_tensor_cores or p == "float32"):
        for nets in sizes.step_nets:
            for captured in (True, False) if nets == sizes.nets else (True,):
                gc.collect()  # frees the arrays of the Trainer before
                trainer = make_trainer(device, precision, nets, sizes.batch, sizes.images)
                clock, again = timing.clock_of(device), CapturedStep(trainer.ops, captured)
                with trainer.ops.session():
                    step = partial(again, trainer.step)
                    times = timing.measure(step, sizes.rounds, sizes.seconds, clock)
                row = {"device": device, "precision": precision, "nets": nets, "captured": captured}
                row |= timing.spread("seconds", times)
                yield {**row, "images_per_second": nets * sizes.batch / row["seconds"]}


# ---- the command ---------------------------------------------------------------------------------

LEGEND = """\
A cell: GFLOP/s of operations with arithmetic, GB/s of the others; per cent of the limit; time; on a
GPU also the time with a flushed second-level cache.
Limits: the rate of a large matrix product, or of a large copy, on as many cores. More than 100% of
a copy: the arrays lie in a cache. More than 100% of a product: the convolution multiplies less than
is counted (Winograd)."""
LAUNCHES_LEGEND = """\
Warm: repeated in one graph. Flushed: after a copy larger than the second-level cache; includes the
start of the launch, a few microseconds. Copy, product: per cent of the rates of these."""


def problem_of(device):
    """Why a device cannot be used here; None if it can."""
    problems = {"cpu": cpu_problem, "cuda": cuda.problem, "emulated": native.problem}
    return problems[device]() if device in problems else None


def measure(devices, nets, batch, rounds, quick, parts=PARTS):
    """A generator of the result so far: after the operations, the launches, and each whole step.

    Only `parts` of these are measured; launches and whole steps only on a GPU.
    """
    emulated = "emulated" in devices
    sizes = (EMULATED if emulated else QUICK if quick else FULL)._replace(batch=batch)
    nets_of = {device: nets if device in GPUS else 1 for device in devices}
    work = limits.QUICK if quick else limits.FULL
    images = max(sizes.images, batch)
    limited = [] if set(parts) == {"steps"} else devices
    timed = devices if "operations" in parts else []
    steps = {device: Steps(device, nets_of[device], batch, images) for device in timed}
    before = {device: limits.measure(device, work) for device in limited}
    rows = time_operations(steps, rounds)
    found = {
        device: limits.medians(before[device], limits.measure(device, work)) for device in limited
    }
    for row in rows:
        add_share(row, found[row["device"]])
    steps.clear()  # frees their arrays
    has_gpu = "cuda" in devices
    result = {
        "what": "each operation of a training step of the seed network, where it stands in a step",
        "batch": batch,
        "nets": nets_of,
        "rounds": rounds,
        "limits": {d: {"cores": limits.cores_of(d), **found[d]} for d in limited},
        "operations": rows,
        "launches": {},
        "steps": [],
        "machine": timing.machine("cuda" if has_gpu else "cpu"),
        "versions": timing.versions(*["cupy-cuda12x", "cupy-cuda13x"] * has_gpu),
    }
    yield result
    for device in (device for device in devices if device in GPUS):
        of_device = sizes._replace(nets=nets, images=images)
        if "launches" in parts:
            result["launches"][device] = time_fused(device, of_device, found[device])
            yield result
        for row in time_steps(device, of_device) if "steps" in parts else ():
            result["steps"].append(row)
            yield result


def show(result):
    """Print a result."""
    if result["limits"]:
        print("Limits:", "; ".join(limits.in_words(result)), end="\n\n")
    if result["operations"]:
        print(f"Batch {result['batch']}, median of {result['rounds']} steps.\n{LEGEND}\n")
        for table in tables(result):
            print(timing.aligned(table), end="\n\n")
    for device, rows in result["launches"].items():
        print(f"Launches of the fused step on {device}.\n{LAUNCHES_LEGEND}\n")
        print(timing.aligned(launch_table(rows)), end="\n\n")
    for row in result["steps"]:
        print(
            f"Whole steps of {row['nets']} nets, {row['precision']}, "
            f"{'one graph' if row['captured'] else 'launch by launch'}: "
            f"{1e3 * row['seconds']:.2f} ms, {row['images_per_second']:,.0f} images a second"
        )


def launch_table(rows):
    """A table in Markdown of launches: their times, warm and flushed, beside the limits."""
    shown = []
    for row in rows:
        cells = [row["kernel"], row["layer"], row["precision"]]
        for times in (row, row["flushed"]):
            shares = (times.get(name) for name in ("of_bandwidth", "of_matrix_peak"))
            cells.append(f"{1e6 * times['seconds']:.1f}")
            cells += ["" if share is None else f"{share:.0%}" for share in shares]
        shown.append(cells)
    heads = ["launch", "layer", "precision", "warm, us", "copy", "product"]
    return timing.table([*heads, "flushed, us", "copy", "product"], shown)


def tables(result):
    """Two tables in Markdown: each operation; the sums over layers of a kind, slowest first."""
    devices, each, sums = list(result["limits"]), {}, {}
    has_flushed = {row["device"] for row in result["operations"] if "flushed" in row}
    columns = [c for d in devices for c in ([d, f"{d}, flushed"] if d in has_flushed else [d])]
    for row in result["operations"]:
        device, kind = row["device"], re.sub("_[0-9]+$", "", row["layer"])
        each.setdefault((row["layer"], row["pass"]), {})[device] = cell(row)
        for name in (f"{kind}, {row['pass']}", "all"):
            of_kind = sums.setdefault(name, dict.fromkeys(columns, 0))
            of_kind[device] += 1e3 * row["seconds"]
            if "flushed" in row:
                of_kind[f"{device}, flushed"] += 1e3 * row["flushed"]["seconds"]
    kinds = sorted(sums, key=lambda kind: (kind == "all", -sums[kind][devices[-1]]))
    rows = [[*key, *(cells.get(device, "") for device in devices)] for key, cells in each.items()]
    shown = [[kind, *(f"{ms:.2f}" for ms in sums[kind].values())] for kind in kinds]
    return (
        timing.table(["layer", "pass", *devices], rows),
        timing.table(["all of a kind, ms", *columns], shown),
    )


def cell(row):
    """A row of a result in a few words: its rate, its share of the limit, its time."""
    done, unit = (row["flops"], "GFLOP/s") if row["flops"] else (row["bytes"], "GB/s")
    share = "" if row["of_limit"] is None else f"{row['of_limit']:.0%}, "
    rate, milliseconds = digits(done / row["seconds"] / 1e9), digits(1e3 * row["seconds"])
    flushed = f", flushed {digits(1e3 * row['flushed']['seconds'])} ms" if "flushed" in row else ""
    return f"{rate} {unit}, {share}{milliseconds} ms{flushed}"


def digits(value):
    """A number with three digits."""
    return np.format_float_positional(value, 3, fractional=False, trim="-")


def main(argv=None):
    parser = timing.parser("kernels", __doc__, "few rounds")
    parser.add_argument(
        "--device",
        nargs="+",
        choices=[*HOSTS, *GPUS],
        metavar="NAME",
        help="some of numpy, cpu, cuda, emulated (default: those of the first three that work)",
    )
    parser.add_argument(
        "--nets", type=positive, metavar="N", help="on a GPU (default: 15; emulated: 1)"
    )
    parser.add_argument(
        "--batch", type=positive, metavar="N", help="images a net (default: 64; emulated: 1)"
    )
    parser.add_argument(
        "--rounds", type=positive, metavar="N", help=f"default: {ROUNDS}; quick: {FEW_ROUNDS}"
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=PARTS,
        metavar="PART",
        help=f"some of {', '.join(PARTS)} (default: all); the last two are of a GPU",
    )
    arguments = parser.parse_args(argv)
    given = arguments.device or [d for d in (*HOSTS, "cuda") if not problem_of(d)]
    devices = list(dict.fromkeys(given))
    for device in devices:
        if problem_of(device):
            parser.error(f"argument --device: {device!r} cannot be used: {problem_of(device)}")
    default = EMULATED if "emulated" in devices else FULL
    for found in measure(
        devices,
        arguments.nets or default.nets,
        arguments.batch or default.batch,
        arguments.rounds or (FEW_ROUNDS if arguments.quick else ROUNDS),
        arguments.quick,
        arguments.parts,
    ):
        result = found
        if arguments.out:
            timing.save(arguments.out, result)
    show(result)
    if arguments.out or not arguments.quick:
        kind = next((d for d in GPUS if d in devices), "cpu")
        timing.write(f"kernels-{kind}", result, arguments.out)


if __name__ == "__main__":
    main()
