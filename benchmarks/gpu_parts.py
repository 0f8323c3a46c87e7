"""What a part of gpu_report.py is told and can do; and the parts that say what is there and right.

A part is a generator function of a Run: it yields dicts of results as they come, among them a
"headline", and raises Failed or LeftOut where it cannot go on. Here are the machine, a training
step held against NumPy, the tests of the kernels, and training; the times are in gpu_times.py.
"""

import contextlib
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import timing
from minicnn.backends import cuda
from minicnn.command import one_line
from minicnn.data.digits import draw_digits
from minicnn.devices import choose
from minicnn.recipe import Recipe
from minicnn.training.trainer import CapturedStep, Data, Job, Trainer

ROOT = Path(__file__).parent.parent


# ---- what a part is told and can do --------------------------------------------------------------


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
    rounds: int
    seconds: float  # of a round
    repeats: int  # of a launch within one graph: its time is then not that of launching


FULL = Sizes(15, 64, (1, 5, 15, 30), (2, 16, 15), ("tf32", "float32"), 42_000, 9, 0.2, 20)
QUICK = replace(FULL, rounds=3, seconds=0.05)
EMULATED = Sizes(1, 1, (1, 2), (1, 2, 2), ("float32",), 12, 2, 0, 1)


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
        return read_part(self.out, part).get("results", {})

    def precisions(self):
        """Those that the device has, the fastest first."""
        precisions = choose(self.device)[1].precisions
        return [p for p in self.sizes.precisions if p in precisions]


def read_part(out, name):
    """What is known of a part so far, as gpu_report.py writes it; {} of one that was not begun."""
    path = part_file(out, name)
    return json.loads(path.read_text()) if path.exists() else {}


def part_file(out, name):
    """Where that is."""
    return Path(out) / "parts" / f"{name}.json"


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


def _require_success(status, what, detail=""):
    if status != 0:
        end = "had no time" if status is None else f"ended with {status}"
        raise Failed(f"{what} {end}{detail}")


def make_trainer(device, precision, nets, batch, images):
    """A Trainer of the seed network on so many drawn digits, at the start of an epoch."""
    recipe = Recipe(nets=nets, batch_size=batch, validation_fraction=0)
    job = Job(recipe, Data(*some_digits(images)), device, precision, None)
    trainer = Trainer(job, recipe.all_nets)
    trainer.begin_epoch(0)
    return trainer


def some_digits(count):
    """(images, labels) of so many drawn digits, of which 2000 differ."""
    images, labels = draw_digits(min(count, 2000))
    return np.resize(images, (count, *images.shape[1:])), np.resize(labels, count)


def repeated(trainer, graph=True):
    """A function that does one step of the trainer's, captured or launch by launch."""
    again = CapturedStep(trainer.ops, graph)
    return lambda: again(trainer.step)


# ---- the machine ---------------------------------------------------------------------------------

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
    versions = timing.versions("torch", "jax", "keras", "triton", "matplotlib", "pytest")
    yield {
        "machine": timing.machine(),
        "cores": os.cpu_count(),
        "versions": versions,
        "headline": f"{run.device}, Python {sys.version.split()[0]}",
    }
    if run.device == "cuda":
        yield from _gpu(versions)


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


# ---- is it right? --------------------------------------------------------------------------------

STATE = "params", "moving", "moment_1", "moment_2", "step"
FORWARD, BACKWARD = ("x", "loss", "moving"), ("gradients", "moment_1", "moment_2")
# The largest relative errors of a step against NumPy's: of FORWARD and of BACKWARD. A rounding that
# switches one ReLU moves a gradient by a thousandth, and those of TF32, which keeps eleven bits of
# a factor, by 0.07 on the emulator, with two nets of 16 images.
TOLERANCES = {"float32": (1e-4, 2e-3), "tf32": (5e-3, 0.2)}


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


_TEST_FILES = [
    *(
        f"tests/backends/test_{name}.py"
        for name in "kernel_ops kernel_convolution step blocks head fusion".split()
    ),
    "tests/training/test_train_on_kernels.py",
]


def tests(run):
    """Part: the kernels' tests on the GPU."""
    files = [name for name in _TEST_FILES if (ROOT / name).exists()]
    log = run.out / "tests.txt"
    command = [sys.executable, "-m", "pytest", "--device", run.device, "-v", "--tb=short"]
    status = run_command([*command, "-p", "no:cacheprovider", *files], run.left - 5, log)
    output = log.read_text(errors="replace")
    counts = count_outcomes(output)
    shown = ", ".join(f"{count} {outcome}" for outcome, count in counts.items()) or "no tests"
    yield {
        "files": files,
        "missing": [name for name in _TEST_FILES if name not in files],
        "status": status,
        "counts": counts,
        "output": output[-6000:],
        "headline": shown,
    }
    _require_success(status, "pytest", f": {shown}")


def count_outcomes(output):
    """{outcome: how many} in what pytest -v wrote, complete or not."""
    line = r"^tests/\S+::.* (PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b"
    return dict(Counter(outcome.lower() for outcome in re.findall(line, output, re.M)))


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
    _require_success(status, "training")
    result = json.loads((folder / "summary.json").read_text())
    accuracy = result["ensemble_test_accuracy"]
    shown = "unknown" if accuracy is None else f"{accuracy:.4f}"
    yield {
        **{key: result[key] for key in ("device", "seconds", "images_per_second")},
        "ensemble_test_accuracy": accuracy,
        "net_test_accuracies": [net["test_accuracy"] for net in result["nets"]],
        "headline": f"{result['seconds']:.0f} s, {result['images_per_second']:,.0f} images a "
        f"second, test accuracy {shown}",
    }


def mnist_folder(given):
    """MNIST's folder: what is given, or the usual ones. Raises LeftOut where it is missing."""
    folder = Path(given or os.environ.get("MINICNN_TEST_MNIST") or ROOT / ".mnist")
    if not folder.is_dir():
        raise LeftOut(f"no MNIST: {folder} is no folder; --data says where it is")
    return folder.resolve()
