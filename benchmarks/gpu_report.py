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
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks import timing
from benchmarks.frameworks import best, fastest, is_ours, ratio
from minicnn import drawing
from minicnn.backends import cuda
from minicnn.command import Parser, one_line, positive

ROOT = Path(__file__).parent.parent
PLOT_SECONDS = 25  # reserved for the plots, the last part


class LeftOut(Exception):  # noqa: N818  not an error
    """A part cannot run here; the message says why."""


class Part(NamedTuple):
    """A part of the report.

    command(options, seconds) returns its command line, or raises LeftOut. read(options) returns
    (results, headline, what is wrong with them or None), or raises OSError, ValueError, KeyError.
    """

    command: Callable
    read: Callable
    seconds: float  # its time limit
    least: float  # with less time left it does not start
    needs_gpu: bool = False


def make_report(options, parts):
    """Run the chosen parts one after the other. Returns the report, which is in report.json too."""
    out, began = options.out, time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    for name in options.parts:  # removes the results of an earlier report
        for suffix in ("txt", "json"):
            (out / f"{name}.{suffix}").unlink(missing_ok=True)
    report = {
        "command": options.given,
        "machine": timing.machine(options.device),
        "versions": timing.versions(*_PACKAGES),
        "parts": {},
        "failed": {},
        "left_out": {},
    }
    for name in options.parts:
        part = parts[name]
        reserved = PLOT_SECONDS if "plots" in options.parts and name != "plots" else 0
        left = options.seconds - (time.monotonic() - began) - reserved
        part_began = time.monotonic()
        entry = _run_part(name, part, options, left)
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


_PACKAGES = "cupy-cuda12x cupy-cuda13x torch jax keras triton matplotlib pytest".split()


def _run_part(name, part, options, left):
    """A part's entry of the report: status, why, headline, results; output if it failed."""
    if part.needs_gpu and options.device != "cuda":
        return {"status": "left out", "why": "needs a GPU"}
    if left < part.least:
        return {"status": "left out", "why": f"no time: {max(left, 0):.0f} of {part.least} s left"}
    seconds = min(part.seconds, left)
    try:
        command = list(map(str, part.command(options, seconds)))
    except LeftOut as reason:
        return {"status": "left out", "why": str(reason)}
    log = options.out / f"{name}.txt"
    status = run_command(command, seconds, log)
    entry = {"status": "done", "why": None, "command": command, "headline": "", "results": {}}
    wrong = None
    try:
        entry["results"], entry["headline"], wrong = part.read(options)
    except (OSError, ValueError, KeyError) as error:
        wrong = f"no results: {type(error).__name__}: {one_line(error)}"
    if status is None:
        wrong = f"stopped after {seconds:.0f} s"
    elif status:
        wrong = f"ended with status {status}" + (f": {wrong}" if wrong else "")
    if wrong:
        output = log.read_text(errors="replace")[-6000:]
        entry |= {"status": "failed", "why": wrong, "output": output}
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


# ---- the parts -----------------------------------------------------------------------------------


def _module(name, *arguments):
    return [sys.executable, "-m", name, *arguments]


def _machine_command(options, seconds):
    return ["nvidia-smi", "-q"]


def _read_machine(options):
    output = (options.out / "machine.txt").read_text(errors="replace")
    lines = [line.split(":", 1)[1].strip() for line in output.splitlines() if "Driver Ver" in line]
    return {}, f"{cuda.gpu_name()}, driver {', '.join(lines)}", None


def _kernels_command(options, seconds):
    quick = ["--quick"] * (options.quick or options.device == "emulated")
    out = options.out / "kernels.json"
    return _module("benchmarks.kernels", "--device", options.device, "--out", out, *quick)


def _read_kernels(options):
    result = json.loads((options.out / "kernels.json").read_text())
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
    return result, ", ".join(words), None


def _tests_command(options, seconds):
    pytest = _module("pytest", "--device", options.device, "-v", "--tb=short")
    return [*pytest, "-p", "no:cacheprovider", *test_files()]


def test_files():
    """The tests that run kernels on the device."""
    return sorted(path for name in _TESTS for path in (ROOT / "tests").rglob(f"test_{name}*.py"))


_TESTS = "kernel_ops", "kernel_convolution", "step", "blocks", "train_on_kernels"


def _read_tests(options):
    counts = count_outcomes((options.out / "tests.txt").read_text(errors="replace"))
    shown = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    return {"counts": counts}, shown, None if counts else "no test ran"


def count_outcomes(output):
    """{outcome: how many} in the output of pytest -v, which may be cut off."""
    line = r"^tests/\S+::.* (PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b"
    return dict(Counter(outcome.lower() for outcome in re.findall(line, output, re.M)))


def _train_command(options, seconds):
    if options.device == "cuda":
        sizes = ["--data", mnist_folder(options.data), "--limit", options.limit]
        sizes += ["--recipe", "seed", "--epochs", options.epochs or (1 if options.quick else 45)]
    else:
        sizes = "--limit 4 --test-limit 4 --nets 1 --batch-size 2 --no-figures".split()
        sizes += ["--data", "digits", "--epochs", options.epochs or 1]
    options.run = next(
        run
        for run in (options.out / name for name in ("run", *(f"run-{n}" for n in range(2, 100))))
        if not run.exists()
    )
    where = ["--device", options.device, "--out", options.run]
    return _module("minicnn.train", "--quiet", *where, *sizes)


def mnist_folder(given):
    """MNIST's folder: the one given, or the usual ones. Raises LeftOut where there is none."""
    folder = Path(given or os.environ.get("MINICNN_TEST_MNIST") or ROOT / ".mnist")
    if not folder.is_dir():
        raise LeftOut(f"no MNIST: {folder} is not a folder; --data says where it is")
    return folder.resolve()


def _read_train(options):
    result = json.loads((options.run / "summary.json").read_text())
    accuracy = result["ensemble_test_accuracy"]
    shown = "unknown" if accuracy is None else f"{accuracy:.4f}"
    headline = (
        f"{result['seconds']:.0f} s, {result['images_per_second']:,.0f} images a second, "
        f"test accuracy {shown}"
    )
    return result, headline, None


def _frameworks_command(options, seconds):
    sizes = ["--within", seconds, "--rounds", 3 if options.quick else 9, "--seconds", 0.1]
    out = options.out / "frameworks.json"
    return _module("benchmarks.frameworks", "--device", "cuda", "--out", out, *sizes)


def _read_frameworks(options):
    result = json.loads((options.out / "frameworks.json").read_text())
    wrong = "; ".join(f"{name}: {why}" for name, why in result["refused"].items())
    if not wrong and not any(is_ours(row) for row in result["rates"]):
        wrong = "no contender of minicnn's was measured"
    return result, compared_in_words(result["rates"]), wrong or None


def compared_in_words(rates):
    """minicnn's fastest training of an ensemble, the frameworks' fastest, and the ratio."""
    rows = list(best(rates, "train").values())
    each = [f"{r['contender']} {r['images_per_second']:,.0f}" for r in fastest(rows) if r]
    times = ratio(rows)
    return f"images a second: {', '.join(each)}" + (f": {times:.2f} times" if times else "")


def _plots_command(options, seconds):
    if not drawing.available():
        raise LeftOut("matplotlib is not installed")
    return _module("benchmarks.plots", options.out)


def _read_plots(options):
    files = sorted(path.name for path in options.out.glob("*.png"))
    return {"files": files}, ", ".join(files) or "nothing to draw", None


PARTS = {
    "machine": Part(_machine_command, _read_machine, 20, 5, needs_gpu=True),
    "kernels": Part(_kernels_command, _read_kernels, 150, 30),
    "tests": Part(_tests_command, _read_tests, 155, 30, needs_gpu=True),
    "train": Part(_train_command, _read_train, 200, 60),
    "frameworks": Part(_frameworks_command, _read_frameworks, 150, 45, needs_gpu=True),
    "plots": Part(_plots_command, _read_plots, PLOT_SECONDS, 3),
}


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
        help="MNIST's folder (default: MINICNN_TEST_MNIST, or .mnist in the checkout)",
    )
    parser.add_argument(
        "--limit", type=positive, metavar="N", default=42_000, help="training images (42000)"
    )
    parser.add_argument("--epochs", type=positive, metavar="N", help="of the training (45)")
    return parser


def _names(text):
    names = text.split(",")
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"got {unknown[0]!r}, expected some of {','.join(PARTS)}")
    return [name for name in PARTS if name in names]


def main(argv=None, parts=None):
    """Run the command; returns its exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    options.given = sys.argv[1:] if argv is None else argv
    options.out = options.out.resolve()
    if options.device == "cuda" and cuda.problem():
        parser.error(f"argument --device: {cuda.problem()}")
    report = make_report(options, parts or PARTS)
    if report["failed"]:
        print(f"benchmarks.gpu_report: failed: {', '.join(report['failed'])}", file=sys.stderr)
    return int(bool(report["failed"]))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # stops the running part, too
    sys.exit(main())
