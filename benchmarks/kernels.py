"""python -m benchmarks.kernels: each operation of a training step by itself, on NumPy, C and CUDA.

Devices take turns, round by round. In a round a device does one step of the seed network that is
not measured, and then one with a clock between any two operations: so each is timed where it stands
in a step, and finds its operands as far away as it does in training. Its arithmetic is given as a
share of that of a large product of matrices, or, where there is none to speak of, its bytes
(operations.py) as a share of those of a large copy, on as many cores as the device uses: numpy one,
cpu all. These limits are measured before and after. On a GPU an operation is a graph, with the
microseconds of its launch; and the launches of the fused step in TF32 are timed, too (launches.py).

Exit status: 0; 2 for bad arguments or a device that is not here. --device emulated tests what runs
on a GPU; it is no model of time.
"""

from dataclasses import replace
from itertools import pairwise

from benchmarks import limits, timing
from benchmarks.gpu_parts import EMULATED, FULL, QUICK, make_trainer
from benchmarks.kernel_tables import cell, limits_in_words
from benchmarks.launches import time_launches, use_of_limits
from benchmarks.operations import operations_of
from minicnn.backends import cuda, native
from minicnn.command import Parser, positive
from minicnn.devices import cpu_problem
from minicnn.emulator import Emulator

HOSTS, GPUS = ("numpy", "cpu"), ("cuda", "emulated")
ROUNDS, FEW_ROUNDS = 40, 3


class Steps:
    """A device's training step, taken apart."""

    def __init__(self, device, nets, batch, images):
        self._trainer = make_trainer(device, "float32", nets, batch, images)
        self._clock, ops = timing.clock_of(device), self._trainer.ops
        self.operations = operations_of(self._trainer)
        with ops.session():
            self._trainer.step()  # compiles, which a capture must not hold
            capture = ops.capture or (lambda function: function)
            self._functions = [capture(operation.run) for operation in self.operations]

    def seconds(self):
        """[seconds of each operation] in one step."""
        with self._trainer.ops.session():
            for function in self._functions:  # or the device before would have left the caches full
                function()
            marks = [self._clock.mark()]
            for function in self._functions:
                function()
                marks.append(self._clock.mark())
            return [self._clock.seconds(*both) for both in pairwise(marks)]


def time_operations(steps, rounds):
    """A row for each operation of {device: Steps}, which take turns: median, spread, least work."""
    times = {device: [] for device in steps}
    for _ in range(rounds):
        for device, of_device in steps.items():
            times[device].append(of_device.seconds())
    return [
        {
            "device": device,
            "layer": operation.layer,
            "pass": operation.part,
            **timing.spread("seconds", measured),
            "flops": operation.flops,
            "bytes": operation.bytes,
        }
        for device, of_device in steps.items()
        for operation, measured in zip(
            of_device.operations, zip(*times[device], strict=True), strict=True
        )
    ]


def share_of_limit(row, measured):
    """How much of its device's limit an operation reaches; None where that is not known."""
    name = "gemm_flops_per_second" if row["flops"] else "copy_bytes_per_second"
    done = row["flops"] or row["bytes"]
    return done / row["seconds"] / measured[name] if measured[name] else None


def time_fused(device, sizes, measured):
    """A row for each launch of the fused step; none where there are no tensor cores for TF32."""
    driver = cuda.Cuda() if device == "cuda" else Emulator()
    rows = time_launches(driver, sizes) if driver.has_tf32 else []
    peaks = {
        "float32": measured["gemm_flops_per_second"],
        "tf32": measured.get("tf32_gemm_flops_per_second"),
    }
    for row in rows:
        row.update(use_of_limits(row, measured["copy_bytes_per_second"], peaks))
    return rows


# ---- the command ---------------------------------------------------------------------------------

LEGEND = """\
A cell: GFLOP/s of operations with arithmetic, GB/s of the others; per cent of the limit; time.
More than 100% of a copy: arrays lie in a cache. More than 100% of a product of matrices: the
convolution multiplies less than is counted (Winograd)."""


def problem_of(device):
    """Why a device cannot be used here; None if it can."""
    problems = {"cpu": cpu_problem, "cuda": cuda.problem, "emulated": native.problem}
    return problems[device]() if device in problems else None


def measure(devices, nets, batch, rounds, quick):
    """The result of the command, as it is written."""
    emulated = "emulated" in devices
    sizes = replace(EMULATED if emulated else QUICK if quick else FULL, batch=batch)
    nets_of = {device: nets if device in GPUS else 1 for device in devices}
    work = limits.QUICK if quick else limits.FULL
    images = max(sizes.images, batch)
    steps = {device: Steps(device, n, batch, images) for device, n in nets_of.items()}
    before = {device: limits.measure(device, work) for device in devices}
    rows = time_operations(steps, rounds)
    found = {
        device: limits.medians(before[device], limits.measure(device, work)) for device in devices
    }
    for row in rows:
        row["of_limit"] = share_of_limit(row, found[row["device"]])
    steps.clear()  # their arrays are many
    launches = {
        device: time_fused(device, replace(sizes, nets=nets), found[device])
        for device in devices
        if device in GPUS
    }
    has_gpu = "cuda" in devices
    return {
        "what": "each operation of a training step of the seed network, where it stands in a step",
        "batch": batch,
        "nets": nets_of,
        "rounds": rounds,
        "limits": {d: {"cores": limits.cores_of(d), **found[d]} for d in devices},
        "operations": rows,
        "launches": launches,
        "machine": timing.machine("cuda" if has_gpu else "cpu"),
        "versions": timing.versions(*["cupy-cuda12x", "cupy-cuda13x"] * has_gpu),
    }


def show(result):
    """Print a result as a table."""
    devices = list(result["limits"])
    print("Limits:", "; ".join(limits_in_words(result)))
    print(f"Batch {result['batch']}, median of {result['rounds']} steps.\n{LEGEND}\n")
    cells = {}
    for row in result["operations"]:
        cells.setdefault((row["layer"], row["pass"]), {})[row["device"]] = cell(row)
    print(f"{'':<42}", *(f"{device:<32}" for device in devices), sep="")
    for (layer, part), of_devices in cells.items():
        shown = (f"{of_devices.get(device, ''):<32}" for device in devices)
        print(f"{layer:<24}{part:<18}", *shown, sep="")
    for device in devices:
        of_device = (row["seconds"] for row in result["operations"] if row["device"] == device)
        print(f"{device}: {1e3 * sum(of_device):.2f} ms in all")
    for device, rows in result["launches"].items():
        print(f"\nLaunches of the fused step in TF32, on {device}:")
        for row in rows:
            parts = [f"{1e6 * row['seconds']:9.1f} us"]
            for name, what in (("of_bandwidth", "a copy"), ("of_matrix_peak", "a product")):
                parts += [f"{row[name]:.0%} of {what}"] if name in row else []
            print(f"{row['kernel']:<34}{row['layer']:<12}{', '.join(parts)}")


def main(argv=None):
    parser = Parser(prog="benchmarks.kernels", description=__doc__)
    parser.add_argument(
        "--device",
        nargs="+",
        choices=[*HOSTS, *GPUS],
        metavar="NAME",
        help="some of numpy, cpu, cuda, emulated (default: those of the first three that are here)",
    )
    parser.add_argument(
        "--nets", type=positive, metavar="N", help="on a GPU (default: 15; emulated: 1)"
    )
    parser.add_argument(
        "--batch", type=positive, metavar="N", help="images of a net (default: 64; emulated: 1)"
    )
    parser.add_argument(
        "--rounds", type=positive, metavar="N", help=f"default: {ROUNDS}, quick {FEW_ROUNDS}"
    )
    parser.add_argument(
        "--quick", action="store_true", help="few rounds, and a file only where --out is given"
    )
    parser.add_argument("--out", metavar="FILE", help="default: in benchmarks/results")
    arguments = parser.parse_args(argv)
    given = arguments.device or [d for d in (*HOSTS, "cuda") if not problem_of(d)]
    devices = list(dict.fromkeys(given))
    for device in devices:
        if problem_of(device):
            parser.error(f"argument --device: {device!r} cannot be used: {problem_of(device)}")
    default = EMULATED if "emulated" in devices else FULL
    result = measure(
        devices,
        arguments.nets or default.nets,
        arguments.batch or default.batch,
        arguments.rounds or (FEW_ROUNDS if arguments.quick else ROUNDS),
        arguments.quick,
    )
    show(result)
    if arguments.out or not arguments.quick:
        kind = next((d for d in GPUS if d in devices), "cpu")
        timing.write(f"kernels-{kind}", result, arguments.out)


if __name__ == "__main__":
    main()
