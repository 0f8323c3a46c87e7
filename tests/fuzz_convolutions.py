"""Fuzz the convolutions in C: `python tests/fuzz_convolutions.py --shapes 200000 --widths all`.

Draws layers at random, with most of them where the fast kernels are: 3 x 3 with stride 1, 5 x 5
with stride 2. All three passes run in every version of ops_cpu.py and every width of vectors, and
are compared with NumPy in float64. Nothing may be read or written outside an array; the workspace
has the size that the backend asks for. With --sanitize each shape runs in builds with
AddressSanitizer and UndefinedBehaviorSanitizer, too (GCC only).

A shape depends on --seed and its number only. One that fails is printed with the command that
repeats it. The last line is JSON; the exit status is 1 after a failure. test_fuzz_convolutions.py
tries a few shapes.
"""

import argparse
import contextlib
import ctypes
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from math import prod
from pathlib import Path

import numpy as np
from drawn_convolutions import Expected, Shape, operands

from minicnn import machine
from minicnn.backends import native
from minicnn.backends.cpu import Cpu
from minicnn.backends.ops_cpu import VERSIONS, Operations

BOUNDS = {"rms": 2e-6, "largest": 1e-5}  # of the errors, relative to `Expected.scales`
WIDTHS = {"native": []}  # {width of vectors: the flags of the compiler}
if platform.machine().lower() in ("x86_64", "amd64"):
    WIDTHS |= {"avx2": ["-mno-avx512f"], "sse": ["-mno-avx"]}
# -O1: with -O3 the compiler takes minutes
SANITIZED = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
MOST_FAILURES = 10  # of a process, which then ends


# --- Memory ---------------------------------------------------------------------------------------

GUARD = 512  # bytes on either side: more than a tile's row
FILL = 0xFF  # of guards, results and workspaces: floats of these bytes are NaN


class Guarded:
    """An array (E, ...) within guards, and with `gap` bytes of guard after the row of each net.

    `offset` bytes from an aligned address.
    """

    def __init__(self, shape, dtype=np.float32, gap=0, offset=0):
        dtype = np.dtype(dtype)
        row, first = prod(shape[1:]) * dtype.itemsize, GUARD + offset
        end = first + shape[0] * (row + gap)
        memory = machine.aligned_empty(end + GUARD, np.uint8, 64)
        memory.fill(FILL)
        rows = memory[first:end].reshape(shape[0], row + gap)
        self.array = rows[:, :row].view(dtype).reshape(shape)
        self._guards = [memory[:first], memory[end:], *(rows[:, row:] if gap else ())]
        self._poison = [(guard.ctypes.data, guard.size) for guard in self._guards]

    def clear(self):
        """Fill the array with NaN."""
        self.array.fill(FILL if self.array.dtype == np.uint8 else np.nan)

    @property
    def intact(self):
        """Whether the guards are as they were."""
        return all((guard == FILL).all() for guard in self._guards)

    def forbid(self, function):
        """Call one of AddressSanitizer's two functions on the guards."""
        for address, size in self._poison:
            function(ctypes.c_void_p(address), ctypes.c_size_t(size))


PARAMETERS = {"gap": 20, "offset": 12}  # they lie in one array of all parameters, at any address


class Memory:
    """The arrays of a shape: `given` has the operands, `results` and `workspace` are written."""

    def __init__(self, shape, given):
        kinds = {"kernel": PARAMETERS, "bias": PARAMETERS}
        self.given = {n: Guarded(a.shape, **kinds.get(n, {})) for n, a in given.items()}
        for name, array in given.items():
            self.given[name].array[...] = array
        self.results = {
            "y": Guarded(given["dz"].shape),
            "dx": Guarded(given["x"].shape),
            "dkernel": Guarded(given["kernel"].shape, **PARAMETERS),
            "dbias": Guarded(given["bias"].shape, **PARAMETERS),
        }
        self._shape, self._expected, self._workspaces = shape, given, {}

    def run(self, ops, sanitized):
        """Run the three passes."""
        shape, window, activation = self._shape, self._shape.window, self._shape.activation
        size = ops.conv2d_workspace(shape.E, shape.B, window, shape.Cin, shape.Cout)
        self._workspace = self._workspaces.get(size) or Guarded((1, size), np.uint8)
        self._workspaces[size] = self._workspace
        for result in self.results.values():
            result.clear()
        x, kernel, bias, dz = (guarded.array for guarded in self.given.values())
        y, dx, dkernel, dbias = (guarded.array for guarded in self.results.values())
        [workspace] = self._workspace.array
        passes = (
            lambda: ops.conv2d(x, kernel, bias, window, activation, y, workspace),
            lambda: ops.conv2d_input_gradient(dz, kernel, window, dx, workspace),
            lambda: ops.conv2d_weight_gradient(x, dz, window, dkernel, dbias, workspace),
        )
        with forbidden(self._all.values()) if sanitized else contextlib.nullcontext():
            for run in passes:
                self._workspace.clear()
                run()

    def faults(self):
        """A generator of messages on memory that a run should not have written."""
        for name, guarded in self._all.items():
            if not guarded.intact:
                yield f"written outside {name}"
        for name, guarded in self.given.items():
            if not np.array_equal(guarded.array, self._expected[name]):
                yield f"written to {name}, an operand"

    @property
    def _all(self):
        return {**self.given, **self.results, "the workspace": self._workspace}


@contextlib.contextmanager
def forbidden(arrays):
    """AddressSanitizer reports an access to the guards of these arrays within the context."""
    names = "__asan_poison_memory_region", "__asan_unpoison_memory_region"
    poison, unpoison = (getattr(ctypes.CDLL(None), name) for name in names)
    for array in arrays:
        array.forbid(poison)
    try:
        yield
    finally:
        for array in arrays:
            array.forbid(unpoison)


# --- Running --------------------------------------------------------------------------------------


def builds(widths, sanitize):
    """{(name, version): (Operations, whether it is sanitized)}."""
    found = {}
    for width in widths:
        for sanitized in (False, True) if sanitize else (False,):
            kernels = Cpu([*WIDTHS[width], *(SANITIZED if sanitized else ())])
            name = f"{width}, sanitized" if sanitized else width
            for version in VERSIONS:
                found[name, version] = Operations(kernels, version), sanitized
    return found


def check(shape, seed, number, kernels, counts, worst):
    """[what is wrong] of a shape in all builds.

    `worst` keeps the largest errors. `counts` counts, for each version, the runs whose bits are not
    those of the first version: it has kernels of its own for the shape.
    """
    given = operands(shape, seed, number)
    expected, memory, wrong = Expected(shape, **given), Memory(shape, given), []
    machine.use_cores(shape.threads)
    first = {}
    for (build, version), (ops, sanitized) in kernels.items():
        ops.cpu.use_threads()
        memory.run(ops, sanitized)
        where = f"{build}, {version}"
        wrong += [f"{where}: {fault}" for fault in memory.faults()]
        bits = b"".join(guarded.array.tobytes() for guarded in memory.results.values())
        counts[version] += bits != first.setdefault(build, bits)
        for name, guarded in memory.results.items():
            for kind, error in expected.errors(name, guarded.array).items():
                key, bound = f"{version} {name} {kind}", BOUNDS[kind]
                worst[key] = max(worst.get(key, 0.0), error)
                if not error < bound:
                    wrong.append(f"{where}: {name}: {kind} error {error:.1e}, expected {bound:g}")
        if wrong:  # memory may be damaged
            break
    return wrong


def fuzz(options):
    """A process's share: check its shapes, print what fails; the last line is JSON."""
    kernels, failures, done = builds(options.widths, options.sanitize), 0, 0
    counts, worst = dict.fromkeys(VERSIONS, 0), {}
    with open(options.at, "w") as at:
        for number in options.numbers:
            at.seek(0)
            at.write(f"{number}\n")
            at.flush()  # known even if this process is killed
            shape = Shape.draw(options.seed, number)
            wrong = check(shape, options.seed, number, kernels, counts, worst)
            done += 1
            if wrong:
                _print_failure(options, number, *wrong)
                failures += 1
                if failures == MOST_FAILURES:
                    break
    found = {"shapes": done, "failures": failures, "own_kernels": counts, "worst": worst}
    print(json.dumps(found))


def _print_failure(options, number, *wrong):
    words = ["--seed", options.seed, "--shape", number, "--widths", *options.widths]
    words += ["--sanitize"] * options.sanitize
    print(f"{Shape.draw(options.seed, number)}", *wrong, sep="\n    ")
    print("    repeat: python tests/fuzz_convolutions.py", *words, flush=True)


def sanitizer():
    """The environment in which Python can load sanitized libraries. Raises ValueError."""
    problem = native.problem("c")
    if problem:
        raise ValueError(problem)
    command, version = native._compiler("c")
    library = native.call([*command, "-print-file-name=libasan.so"]).stdout.strip()
    if "clang" in version or not Path(library).is_absolute():
        raise ValueError(f"{command[0]} has no libasan.so as GCC has")
    return {"LD_PRELOAD": library, "ASAN_OPTIONS": "detect_leaks=0:quarantine_size_mb=16"}


def main(arguments=None):
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", type=int, default=2000, help="how many (default: 2000)")
    parser.add_argument("--seed", type=int, default=1, help="the same shapes for the same seed")
    parser.add_argument("--widths", nargs="+", choices=["all", *WIDTHS], default=["native"])
    parser.add_argument("--sanitize", action="store_true", help="run sanitized builds, too")
    parser.add_argument("--shape", type=int, metavar="NUMBER", help="check this one only")
    parser.add_argument("--processes", type=int, default=machine.cores(), metavar="N")
    parser.add_argument("--at", help=argparse.SUPPRESS)  # a process's file and its first shape
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if "all" in options.widths:
        options.widths = list(WIDTHS)
    if options.at:
        options.numbers = range(options.first, options.shapes, options.processes)
        if options.shape is not None:
            options.numbers = [options.shape]
        fuzz(options)
        return 0
    try:
        environment = {**os.environ, **(sanitizer() if options.sanitize else {})}
    except ValueError as error:
        parser.error(f"argument --sanitize: {error}")
    result = _share(options, {**environment, "OPENBLAS_NUM_THREADS": "1"})
    print(json.dumps(result))
    return int(result["failures"] > 0)


def _share(options, environment):
    """The result of all processes together."""
    _compile(options, environment)
    started, running = time.perf_counter(), []
    count = 1 if options.shape is not None else options.processes
    words = [f"--seed={options.seed}", f"--shapes={options.shapes}", f"--processes={count}"]
    words += ["--widths", *options.widths, *["--sanitize"] * options.sanitize]
    words += [] if options.shape is None else [f"--shape={options.shape}"]
    with tempfile.TemporaryDirectory() as folder:
        try:
            for first in range(count):
                at = Path(folder) / str(first)
                own = [f"--at={at}", f"--first={first}"]
                process = subprocess.Popen(
                    [sys.executable, __file__, *words, *own],
                    env=environment,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                running.append((process, at))
            parts = [_finish(options, process, at) for process, at in running]
        finally:
            for process, _ in running:
                process.kill()
                process.wait()
    return {
        "shapes": sum(part["shapes"] for part in parts),
        "failures": sum(part["failures"] for part in parts),
        "own_kernels": {
            version: sum(part["own_kernels"].get(version, 0) for part in parts)
            for version in VERSIONS
        },
        "widths": options.widths,
        "sanitized": options.sanitize,
        "worst": {
            key: float(f"{max(part['worst'].get(key, 0) for part in parts):.2e}")
            for key in sorted(set().union(*(part["worst"] for part in parts)))
        },
        "seconds": round(time.perf_counter() - started, 1),
    }


def _compile(options, environment):
    """Compile the kernels, those of each width in a process, for the processes that come next."""
    words = ["--shapes=0", f"--at={os.devnull}", *["--sanitize"] * options.sanitize]
    running = [
        subprocess.Popen(
            [sys.executable, __file__, *words, "--widths", width],
            env=environment,
            stdout=subprocess.DEVNULL,
        )
        for width in options.widths
    ]
    for process in running:
        process.wait()


def _finish(options, process, at):
    """The report of a process; what it prints before that is printed here."""
    last = ""
    for line in process.stdout:
        if last:
            print(last, end="", flush=True)
        last = line
    if process.wait() == 0:
        return json.loads(last)
    print(last, end="")
    why = f"the process ended with status {process.returncode}"
    if not at.exists():
        raise RuntimeError(why)
    _print_failure(options, int(at.read_text()), why)
    return {"shapes": 0, "failures": 1, "own_kernels": {}, "worst": {}}


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # ends its processes
    sys.exit(main())
