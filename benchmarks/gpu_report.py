"""python -m benchmarks.gpu_report --out DIR: what minicnn does on an NVIDIA GPU, in one command.

It runs the project's other commands one after the other, in this order:

memcheck    small trainings under compute-sanitizer, if it is found: no kernel accesses memory that
            is not its own
check       the results of three steps and of predictions against NumPy in float64
kernels     the GPU's limits; the time of each operation and launch, with warm and flushed caches
step        the time of whole steps
test_...    the tests of kernels, one part a file
train       the seed recipe on MNIST: 15 nets, 45 epochs
frameworks  training and inference beside the frameworks that are installed
plots       the results, drawn

Each part is a process with a time limit, so that one that fails or hangs does not stop the others;
all of them take less than nine minutes, or --seconds. What each prints is in DIR/PART.txt;
DIR/report.json is written anew after each part. DIR/report.tgz, written at the end, holds all files
but the trained nets.

Exit status: 0; 1 if a part failed; 2 for bad arguments, or without a GPU. --device emulated runs
the parts that need no GPU on the emulator, in tiny sizes: it tests the command itself.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks import timing
from minicnn import devices, drawing
from minicnn.backends import cuda
from minicnn.command import Parser, one_line, positive
from minicnn.files import atomic_write

ROOT = Path(__file__).parent.parent
SECONDS = 530  # for all parts, unless --seconds says another number
PLOT_SECONDS = 25  # of them, reserved for the plots, the last part
LEAST_SECONDS = 10  # with less time left a part does not start
_KAGGLE_IMAGES = 42_000  # training images of the notebook
_RUNS = ["run", *(f"run-{n}" for n in range(2, 1000))]
_TESTS = "kernel_ops kernel_convolution step blocks head fusion train_on_kernels".split()
_WRONG_ACCESS = 9  # the exit status of a training in which compute-sanitizer has found one
_OUTCOMES = r"\S+::.* (?:FAILED|ERROR)|\d+ (?:passed|failed|skipped|error).* in .*s"
_PACKAGES = "cupy-cuda12x cupy-cuda13x torch jax keras triton matplotlib pytest".split()


class Part(NamedTuple):
    """A part of the report: a command and its time limit.

    The text "SECONDS" in the command stands for the time that it gets.
    """

    command: list
    seconds: float
    shows: str = ".+"  # an expression for the lines of its output that are shown
    result: str | None = None  # in the report's folder: the file of its results, in JSON
    left_out: str | None = None  # why it cannot run here
    again: "Part | None" = None  # what runs if it fails, to find out more


def parts_of(out, device, data=None, precisions=devices.PRECISIONS):
    """{name: Part} of the whole report, in order.

    data: MNIST's folder; precisions: those that the device has.
    """

    def module(name, *arguments):
        return [sys.executable, "-m", name, *map(str, arguments)]

    on_gpu = device == "cuda"
    no_gpu = None if on_gpu else "needs a GPU"
    run = next(name for name in _RUNS if not (out / name).exists())
    data = Path(data or os.environ.get("MINICNN_TEST_MNIST") or ROOT / ".mnist").resolve()
    no_mnist = None if data.is_dir() else f"no MNIST: {data} is not a folder; --data says where"
    recipe = ["--data", data, "--recipe", "seed", "--limit", _KAGGLE_IMAGES]
    if not on_gpu:
        recipe = "--data digits --limit 4 --test-limit 4 --nets 1 --epochs 1 --batch-size 2".split()
        recipe += ["--no-figures"]
    small = "--data digits --limit 96 --test-limit 16 --nets 2 --epochs 1 --batch-size 24".split()
    small = ["--quiet", "--device", device, *small, "--no-figures", "--no-graph"]
    sanitizer, no_sanitizer = compute_sanitizer(), None
    if not sanitizer:
        no_sanitizer = "compute-sanitizer is not found: it comes with the CUDA toolkit"
    memcheck = {
        f"memcheck_{precision}": Part(
            [
                *[sanitizer, "--tool", "memcheck", "--error-exitcode", str(_WRONG_ACCESS)],
                *module("minicnn.train", *small, "--precision", precision),
                *["--out", str(out / f"{run}-memcheck-{precision}")],
            ],
            100,
            "(?:Invalid|Out-of-range|Misaligned).*|ERROR SUMMARY.*",
            left_out=no_gpu or no_sanitizer,
        )
        for precision in precisions
    }
    equality = ["--device", device, *([] if on_gpu else ["--nets", 1, "--batch", 2])]
    kernels = ["--device", device, *["--quick"] * (not on_gpu)]
    step = [*kernels, "--parts", "steps", "--out", out / "step.json"]
    kernels += ["--parts", "operations", "launches", "--out", out / "kernels.json"]
    pytest = module("pytest", "--device", device, "-v", "--tb=short", "-p", "no:cacheprovider")
    # An illegal access fails whatever follows in its process, so each file has one of its own. If
    # it fails, launches are synchronous in a second run: then the error names the kernel.
    tests = {
        path.stem: Part(
            [*pytest, str(path)],
            60,
            _OUTCOMES,
            left_out=no_gpu,
            again=Part(["env", "CUDA_LAUNCH_BLOCKING=1", *pytest, "-x", str(path)], 60, "E  .*"),
        )
        for path in test_files()
    }
    compare = ["--device", device, "--rounds", 9, "--seconds", 0.1, "--within", "SECONDS"]
    compare += ["--out", out / "frameworks.json"]
    train = module("minicnn.train", "--quiet", "--device", device, "--out", out / run, *recipe)
    no_matplotlib = None if drawing.available() else "matplotlib is not installed"
    return {
        "machine": Part(["nvidia-smi", "-q"], 20, "(?:Product Name|Driver V).*", left_out=no_gpu),
        **memcheck,
        "check": Part(module("benchmarks.equality", *equality), 150, r"\S+ in \w+: .*"),
        "kernels": Part(module("benchmarks.kernels", *kernels), 180, "Limits: .*", "kernels.json"),
        "step": Part(
            module("benchmarks.kernels", *step), 120, "Whole steps.* graph:.*", "step.json"
        ),
        **tests,
        "train": Part(
            train,
            200,
            "Ensemble.*|.* images a second",
            f"{run}/summary.json",
            no_mnist if on_gpu else None,
        ),
        "frameworks": Part(
            module("benchmarks.frameworks", *compare),
            150,
            "(?:refused|The fastest minicnn).*",
            "frameworks.json",
            no_gpu,
        ),
        "plots": Part(module("benchmarks.plots", out), PLOT_SECONDS, left_out=no_matplotlib),
    }


def compute_sanitizer():
    """The path of NVIDIA's checker of memory accesses; None if it is not found."""
    homes = filter(None, (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")))
    folders = [Path(home) / "bin" for home in (*homes, "/usr/local/cuda")]
    return shutil.which(
        "compute-sanitizer", path=os.pathsep.join([os.environ.get("PATH", ""), *map(str, folders)])
    )


def test_files():
    """The tests that run kernels on the device."""
    return sorted(path for name in _TESTS for path in (ROOT / "tests").rglob(f"test_{name}*.py"))


# ---- running the parts ---------------------------------------------------------------------------


def make_report(out, device, parts, seconds=SECONDS):
    """Run the parts one after the other, within so many seconds.

    Returns the report, which is in report.json too.
    """
    began = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    report = {
        "machine": timing.machine(device),
        "versions": timing.versions(*_PACKAGES),
        "parts": {},
        "failed": {},
        "left_out": {},
    }
    for name, part in parts.items():
        end = began + seconds - (PLOT_SECONDS if "plots" in parts and name != "plots" else 0)
        part_began = time.monotonic()
        entry = run_part(name, part, out, end - part_began)
        if entry["status"] == "failed" and part.again:
            again = run_part(f"{name}-again", part.again, out, end - time.monotonic())
            entry |= {"again": again, "shown": [*entry["shown"], *again.get("shown", ())]}
        entry["seconds"] = time.monotonic() - part_began
        report["parts"][name] = entry
        shown = ", ".join(entry.get("shown", ()))
        if entry["status"] != "done":
            report[entry["status"].replace(" ", "_")][name] = entry["why"]
            shown = f"{entry['status'].upper()}: {entry['why']}" + (f" ({shown})" if shown else "")
        report["seconds"] = time.monotonic() - began
        report["finished"] = len(report["parts"]) == len(parts)
        timing.save(out / "report.json", report)
        print(f"{name:<24}{entry['seconds']:6.1f} s  {shown}", flush=True)
    return report


def run_part(name, part, out, left):
    """Run a part within the `left` seconds. Its entry of the report, a dict: status and why.

    A part that ran has its command, shown lines and results too, and one that failed its output.
    """
    if part.left_out:
        return {"status": "left out", "why": part.left_out}
    if left < LEAST_SECONDS:
        return {"status": "left out", "why": f"no time: {max(left, 0):.0f} s left"}
    seconds, log = min(part.seconds, left), out / f"{name}.txt"
    command = [str(seconds) if word == "SECONDS" else word for word in part.command]
    result = part.result and out / part.result
    if result:
        result.unlink(missing_ok=True)  # of an earlier report
    status = run_command(command, seconds, log)
    output = log.read_text(errors="replace")
    entry = {"status": "done", "why": None, "command": command, "results": None}
    entry["shown"] = re.findall(part.shows, output, re.M)
    wrong = []
    if status is None:
        wrong.append(f"stopped after {seconds:.0f} s")
    elif status:
        wrong.append(f"ended with status {status}")
    try:
        entry["results"] = json.loads(result.read_text()) if result else None
    except (OSError, ValueError) as error:
        wrong.append(f"no results: {one_line(error)}")
    if wrong:
        entry |= {"status": "failed", "why": "; ".join(wrong), "output": output[-6000:]}
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
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in the driver
                    process.wait(10)


def pack(out):
    """Write report.tgz: all files of a report in one, but for checkpoints and earlier ones."""
    with atomic_write(out / "report.tgz") as file, tarfile.open(fileobj=file, mode="w:gz") as tar:
        for path in sorted(out.rglob("*")):
            if path.is_file() and path.suffix not in (".npz", ".tgz", ".tmp"):
                tar.add(path, Path(out.name) / path.relative_to(out))


def main(argv=None, parts=None):
    """Run the command; returns its exit status."""
    parser = Parser(prog="benchmarks.gpu_report", description=__doc__)
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="the report's folder"
    )
    parser.add_argument("--device", choices=["cuda", "emulated"], default="cuda")
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="MNIST's folder (default: MINICNN_TEST_MNIST, or .mnist in the checkout)",
    )
    parser.add_argument(
        "--seconds",
        type=positive,
        metavar="N",
        default=SECONDS,
        help=f"for all parts (default: {SECONDS}); the later ones are left out if it is too little",
    )
    options = parser.parse_args(argv)
    if options.device == "cuda" and cuda.problem():
        parser.error(f"argument --device: {cuda.problem()}")
    out = options.out.resolve()
    if parts is None:
        precisions = devices.choose(options.device)[1].precisions
        parts = parts_of(out, options.device, options.data, precisions)
    failed = make_report(out, options.device, parts, options.seconds)["failed"]
    pack(out)
    if failed:
        print(f"benchmarks.gpu_report: failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # stops the running part, too
    sys.exit(main())
