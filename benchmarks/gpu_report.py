"""python -m benchmarks.gpu_report --out DIR: what minicnn does on an NVIDIA GPU, in one command.

It runs the project's other commands one after the other: it measures the GPU's limits, each
operation, launch and whole step, runs the tests of the kernels, trains the seed recipe on MNIST,
compares with the frameworks that are installed, and draws the results. Each part is a process with
a time limit, so that one that fails or hangs does not stop the others; all of them take less than
nine minutes. What each prints is in DIR/PART.txt; DIR/report.json is written anew after each part.

Exit status: 0; 1 if a part failed; 2 for bad arguments, or without a GPU. --device emulated runs
the parts that need no GPU on the emulator, in tiny sizes: it tests the command itself.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from benchmarks import timing
from benchmarks.frameworks import best, fastest, is_ours, ratio
from minicnn import drawing
from minicnn.backends import cuda
from minicnn.command import Parser, one_line, positive

ROOT = Path(__file__).parent.parent
PLOT_SECONDS = 25  # reserved for the plots, the last part
_KAGGLE_IMAGES = 42_000  # training images of the notebook


class Part(NamedTuple):
    """A part of the report: a command, its time limit, the file of its results in JSON.

    The text "SECONDS" in the command stands for the time that it gets.
    """

    command: list
    seconds: float
    result: str | None = None  # in the report's folder; None: the command's output
    least: float = 5  # seconds; with less time left the part does not start
    left_out: str | None = None  # why it cannot run here


def parts_of(options):
    """{name: Part} of the whole report, in order."""

    def module(name, *arguments):
        return [sys.executable, "-m", name, *map(str, arguments)]

    out, on_gpu = options.out, options.device == "cuda"
    no_gpu = None if on_gpu else "needs a GPU"
    quick = ["--quick"] * (options.quick or not on_gpu)
    run = next(name for name in _RUNS if not (out / name).exists())
    data = Path(options.data or os.environ.get("MINICNN_TEST_MNIST") or ROOT / ".mnist").resolve()
    no_mnist = None if data.is_dir() else f"no MNIST: {data} is not a folder; --data says where"
    if on_gpu:
        recipe = ["--data", data, "--recipe", "seed", "--limit", _KAGGLE_IMAGES]
        recipe += ["--epochs", 1] if options.quick else []
    else:
        recipe = "--data digits --limit 4 --test-limit 4 --nets 1 --epochs 1 --batch-size 2".split()
        recipe += ["--no-figures"]
    device = ["--device", options.device]
    rounds = ["--rounds", 3 if options.quick else 9, "--seconds", 0.1]
    kernels = module("benchmarks.kernels", *device, *quick, "--out", out / "kernels.json")
    tests = module("pytest", *device, "-v", "--tb=short", "-p", "no:cacheprovider", *test_files())
    train = module("minicnn.train", "--quiet", *device, "--out", out / run, *recipe)
    compare = module("benchmarks.frameworks", *device, *rounds, "--within", "SECONDS")
    no_matplotlib = None if drawing.available() else "matplotlib is not installed"
    return {
        "machine": Part(["nvidia-smi", "-q"], 20, left_out=no_gpu),
        "kernels": Part(kernels, 180, "kernels.json", 30),
        "tests": Part(tests, 155, None, 30, no_gpu),
        "train": Part(train, 200, f"{run}/summary.json", 60, no_mnist if on_gpu else None),
        "frameworks": Part(
            [*compare, "--out", str(out / "frameworks.json")], 150, "frameworks.json", 45, no_gpu
        ),
        "plots": Part(
            module("benchmarks.plots", out), PLOT_SECONDS, None, 3, left_out=no_matplotlib
        ),
    }


_NAMES = "machine", "kernels", "tests", "train", "frameworks", "plots"
_RUNS = ["run", *(f"run-{n}" for n in range(2, 1000))]
_TESTS = "kernel_ops kernel_convolution step blocks head fusion train_on_kernels".split()
_PACKAGES = "cupy-cuda12x cupy-cuda13x torch jax keras triton matplotlib pytest".split()


def test_files():
    """The tests that run kernels on the device."""
    return sorted(path for name in _TESTS for path in (ROOT / "tests").rglob(f"test_{name}*.py"))


# ---- running the parts ---------------------------------------------------------------------------


def make_report(options, parts):
    """Run the chosen parts one after the other. Returns the report, which is in report.json too."""
    out, began = options.out, time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    report = {
        "machine": timing.machine(options.device),
        "versions": timing.versions(*_PACKAGES),
        "parts": {},
        "failed": {},
        "left_out": {},
    }
    for name in options.parts:
        reserved = PLOT_SECONDS if "plots" in options.parts and name != "plots" else 0
        part_began = time.monotonic()
        left = options.seconds - (part_began - began) - reserved
        entry = run_part(name, parts[name], out, left)
        entry["seconds"] = time.monotonic() - part_began
        report["parts"][name] = entry
        if entry["status"] != "done":
            report[entry["status"].replace(" ", "_")][name] = entry["why"]
        report["seconds"] = time.monotonic() - began
        report["finished"] = len(report["parts"]) == len(options.parts)
        timing.save(out / "report.json", report)
        shown = entry.get("headline", "")
        if entry["status"] != "done":
            why = f"{entry['status'].upper()}: {entry['why']}"
            shown = f"{why} ({shown})" if shown else why
        print(f"{name:<11}{entry['seconds']:6.1f} s  {shown}", flush=True)
    return report


def run_part(name, part, out, left):
    """Run a part within the `left` seconds. Its entry of the report, a dict: status and why.

    A part that ran has its command, headline and results too, and one that failed its output.
    """
    if part.left_out:
        return {"status": "left out", "why": part.left_out}
    if left < part.least:
        return {"status": "left out", "why": f"no time: {max(left, 0):.0f} of {part.least} s left"}
    seconds, log = min(part.seconds, left), out / f"{name}.txt"
    command = [str(seconds) if word == "SECONDS" else word for word in part.command]
    if part.result:
        (out / part.result).unlink(missing_ok=True)  # of an earlier report
    status = run_command(command, seconds, log)
    output = log.read_text(errors="replace")
    entry = {"status": "done", "why": None, "command": command, "headline": "", "results": None}
    wrong = None
    try:
        if part.result:
            entry["results"] = json.loads((out / part.result).read_text())
        entry["headline"], wrong = _READERS[name](entry["results"] if part.result else output)
    except (OSError, ValueError, KeyError, TypeError) as error:
        wrong = f"no results: {type(error).__name__}: {one_line(error)}"
    if status is None:
        wrong = f"stopped after {seconds:.0f} s"
    elif status:
        wrong = f"ended with status {status}" + (f": {wrong}" if wrong else "")
    if wrong:
        entry |= {"status": "failed", "why": wrong, "output": output[-6000:]}
    return entry


def run_command(command, seconds, log):
    """A command's exit status, None where it was stopped after `seconds`; its output is in `log`.

    It stops with all processes that it has started.
    """
    with open(log, "wb") as file:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )
        except OSError as error:  # no such program
            file.write(f"{error}\n".encode())
            return 127
        try:
            return process.wait(max(seconds, 1))
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in the driver
                    process.wait(10)


# ---- what a part found: (headline, what is wrong or None), from its results or output ------------


def read_machine(output):
    names = re.findall(r"(?:Product Name|Driver Version)\s*: (.*)", output)
    return ", ".join(names), None


def read_kernels(result):
    [found] = result["limits"].values()
    words = [f"{found['copy_bytes_per_second'] / 1e12:.2f} TB/s"]
    for launches in result["launches"].values():
        seconds = sum(row["seconds"] for row in launches)
        words.append(f"{len(launches)} launches {1e3 * seconds:.3f} ms")
    words += [
        f"step of {row['nets']} nets {row['precision']} {1e3 * row['seconds']:.2f} ms"
        for row in result["steps"]
        if row["captured"]
    ]
    return ", ".join(words), None


def read_tests(output):
    counts = count_outcomes(output)
    shown = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    return shown, None if counts else "no test ran"


def count_outcomes(output):
    """{outcome: how many} in the output of pytest -v, which may be cut off."""
    line = r"^tests/\S+::.* (PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b"
    return dict(Counter(outcome.lower() for outcome in re.findall(line, output, re.M)))


def read_train(summary):
    accuracy = summary["ensemble_test_accuracy"]
    shown = "unknown" if accuracy is None else f"{accuracy:.4f}"
    return (
        f"{summary['seconds']:.0f} s, {summary['images_per_second']:,.0f} images a second, "
        f"test accuracy {shown}"
    ), None


def read_frameworks(result):
    """minicnn's fastest training of an ensemble, the frameworks' fastest, and the ratio."""
    wrong = "; ".join(f"{name}: {why}" for name, why in result["refused"].items())
    if not wrong and not any(is_ours(row) for row in result["rates"]):
        wrong = "no contender of minicnn's was measured"
    rows = list(best(result["rates"], "train").values())
    each = [f"{r['contender']} {r['images_per_second']:,.0f}" for r in fastest(rows) if r]
    times = ratio(rows)
    shown = f"images a second: {', '.join(each)}" + (f": {times:.2f} times" if times else "")
    return shown, wrong or None


def read_plots(output):
    return ", ".join(output.split()) or "nothing to draw", None


_READERS = dict(
    zip(
        _NAMES,
        (read_machine, read_kernels, read_tests, read_train, read_frameworks, read_plots),
        strict=True,
    )
)


# ---- the command ---------------------------------------------------------------------------------


def _parser():
    parser = Parser(prog="benchmarks.gpu_report", description=__doc__)
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="the report's folder"
    )
    parser.add_argument(
        "--parts",
        type=_names,
        metavar="A,B",
        default=list(_NAMES),
        help=f"some of {','.join(_NAMES)} (default: all)",
    )
    parser.add_argument("--device", choices=["cuda", "emulated"], default="cuda")
    parser.add_argument(
        "--seconds", type=positive, metavar="N", default=530, help="for all parts (default: 530)"
    )
    parser.add_argument("--quick", action="store_true", help="few rounds, one epoch")
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="MNIST's folder (default: MINICNN_TEST_MNIST, or .mnist in the checkout)",
    )
    return parser


def _names(text):
    names = text.split(",")
    unknown = [name for name in names if name not in _NAMES]
    if unknown:
        raise argparse.ArgumentTypeError(f"got {unknown[0]!r}, expected some of {','.join(_NAMES)}")
    return [name for name in _NAMES if name in names]


def main(argv=None, parts=None):
    """Run the command; returns its exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    options.out = options.out.resolve()
    if options.device == "cuda" and cuda.problem():
        parser.error(f"argument --device: {cuda.problem()}")
    report = make_report(options, parts or parts_of(options))
    if report["failed"]:
        print(f"benchmarks.gpu_report: failed: {', '.join(report['failed'])}", file=sys.stderr)
    return int(bool(report["failed"]))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # stops the running part, too
    sys.exit(main())
