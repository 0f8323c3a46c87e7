"""python -m benchmarks.gpu_report --out DIR: what minicnn does on an NVIDIA GPU, in one command.

It asks the machine, measures its limits, holds a step against NumPy's, times each launch and whole
steps, runs the tests of the kernels, trains the seed recipe on MNIST, compares with PyTorch, and
draws all that. Each part is a process of its own with a limit of time, so that one that fails or
hangs takes nothing from the others. DIR/report.json is written anew after each part.

Exit status: 0; 1 if a part failed; 2 for bad arguments, or without a GPU. With --device emulated
the parts that need no GPU run on the emulator, with tiny sizes: that tests the command itself.
"""

import argparse
import json
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks import timing
from benchmarks.gpu_frameworks import frameworks
from benchmarks.gpu_parts import (
    LeftOut,
    Run,
    check,
    machine,
    part_file,
    read_part,
    run_command,
    tests,
    train,
)
from benchmarks.gpu_plots import plots
from benchmarks.gpu_times import kernels, limits, step
from minicnn.backends import cuda
from minicnn.command import Parser, one_line, positive
from minicnn.files import atomic_write

PLOT_SECONDS = 25  # kept for the plots, the last part


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
        part_file(out, name).unlink(missing_ok=True)
    report = {"command": _arguments_of(options), "date": timing.machine()["date"]}
    report |= {"parts": {}, "failed": {}, "left_out": {}}
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
        if entry["status"] != "done":
            report[entry["status"].replace(" ", "_")][name] = entry["why"]
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
    log = part_file(options.out, name).with_suffix(".log")
    log.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu_report", *_arguments_of(options)]
    command += ["--only", name, "--until", str(time.time() + seconds)]
    status = run_command(command, seconds, log, group=True)
    entry = read_part(options.out, name) or _entry("failed")
    if entry["status"] == "running":
        entry["status"] = "failed"
        entry["why"] = f"stopped after {seconds:.0f} s" if status is None else None
    if entry["status"] == "failed":
        entry["why"] = entry["why"] or f"its process ended with status {status}"
        entry["output"] = log.read_text(errors="replace")[-6000:]
    return entry


def in_this_process(name, part, options, seconds):
    """Do a part here; its entry of the report, which is in its file whenever it yields."""
    path = part_file(options.out, name)
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
    except Exception as error:  # whatever it is: the report tells it, and other parts go on
        entry["status"] = "failed"
        entry["why"] = f"{type(error).__name__}: {one_line(error)}"
        entry["traceback"] = traceback.format_exc()
    _write(path, entry)
    return entry


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
    given, line = {**vars(options), "parts": ",".join(options.parts)}, []
    for name in ("out", "device", "parts", "seconds", "limit", "data", "epochs"):
        if given[name] is not None:
            line += [f"--{name}", str(given[name])]
    return line + ["--quick"] * options.quick


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
