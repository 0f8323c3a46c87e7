"""Fuzz the convolutions in C: `python tests/fuzz_convolutions.py --shapes 200000 --widths all`.

Draws layers at random, with most of them where the fast kernels are: 3 x 3 with stride 1, 5 x 5
with stride 2. All three passes run in every version of cpu_convolution.py and every width of
vectors, and are compared with NumPy in float64. Nothing may be read or written outside an array;
the workspace has the size that the backend asks for. With --sanitize each shape runs in builds with
AddressSanitizer and UndefinedBehaviorSanitizer, too (GCC only).

A shape depends on --seed and its number only. One that fails is printed with the command that
repeats it. The last line is JSON; the exit status is 1 after a failure. test_fuzz_convolutions.py
tries a few shapes.
"""

import argparse
import ctypes
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path

import numpy as np

from minicnn import machine
from minicnn.backends import native
from minicnn.backends.cpu import Cpu
from minicnn.backends.cpu_convolution import VERSIONS
from minicnn.backends.ops_cpu import Operations
from minicnn.network.geometry import Window

BOUNDS = {"rms": 2e-6, "largest": 1e-5}  # of the errors, relative to `Expected.scales`
# Elements from which on the rms error is that of the method. The error of a sum of rounded terms is
# about normal, so the rms of one or two sums is often twice that of many.
LEAST_FOR_RMS = 64
WIDTHS = {"native": []}  # {width of vectors: the flags of the compiler}
if platform.machine().lower() in ("x86_64", "amd64"):
    WIDTHS |= {"avx2": ["-mno-avx512f"], "sse": ["-mno-avx"]}
SANITIZED = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
MOST_FAILURES = 10  # of a process, which then ends


# --- Shapes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """A layer, a batch, and the kinds of its operands."""

    E: int
    B: int
    H: int
    W: int
    Cin: int
    Cout: int
    size: tuple
    strides: tuple
    padding: str
    activation: str
    x: str  # of INPUTS
    mixed: bool  # each channel has a scale of its own
    threads: int

    @classmethod
    def draw(cls, seed, number):
        """Shape `number` of a seed."""
        draw = random.Random(f"{seed} {number}")
        kind = draw.random()
        if kind < 0.45:
            size, strides = (3, 3), (1, 1)
        elif kind < 0.7:
            size, strides = (5, 5), (2, 2)
        else:
            size, strides = _pair(draw, 1, 7), _pair(draw, 1, 3)
        H, W = _pair(draw, 1, 30)
        padding = "same" if draw.random() < 0.6 else "valid"
        if padding == "valid":
            H, W = max(H, size[0]), max(W, size[1])
        least = (1, 1) if padding == "same" else size
        axes = {"E": draw.randint(1, 2), "B": draw.randint(1, 9), "H": H, "W": W}
        multiples = (16, 32) if kind < 0.4 else (1, 1, 4, 16, 32)
        axes |= {name: _channels(draw, multiples) for name in ("Cin", "Cout")}
        lowest = dict.fromkeys(axes, 1) | dict(zip("HW", least, strict=True))
        most = 2 ** draw.uniform(15, 23)
        while _cost(size, strides, **axes) > most:
            names = [name for name in ("B", "H", "W") if axes[name] > lowest[name]]
            names = names or [name for name in axes if axes[name] > lowest[name]]
            if not names:
                break
            name = draw.choice(names)
            axes[name] = max(lowest[name], axes[name] * 2 // 3)
        return cls(
            **axes,
            size=size,
            strides=strides,
            padding=padding,
            activation=draw.choice(["relu", "linear"]),
            x=draw.choice(list(INPUTS)),
            mixed=draw.random() < 0.3,
            threads=2 if draw.random() < 0.2 else 1,
        )

    @cached_property
    def window(self):
        """The geometry.Window."""
        return Window.fit(self.size, self.strides, self.padding, (self.H, self.W))


def _pair(draw, least, most):
    """Two numbers, equal in half of the cases."""
    first = draw.randint(least, most)
    return first, first if draw.random() < 0.5 else draw.randint(least, most)


def _channels(draw, multiples):
    """A number of channels: often a multiple of a vector or a panel."""
    multiple = draw.choice(multiples)
    return multiple * draw.randint(1, 80 // multiple)


def _cost(size, strides, E, B, H, W, Cin, Cout):
    """About the multiplications of a pass; an element of an array counts like 16 of them."""
    outputs = E * B * -(-H // strides[0]) * -(-W // strides[1])
    taps = prod(size)
    elements = E * B * H * W * Cin + outputs * Cout + E * taps * Cin * Cout
    return outputs * taps * Cin * Cout + 16 * elements


INPUTS = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "positive": lambda rng, shape: rng.uniform(0, 1, shape),
    "rectified": lambda rng, shape: np.maximum(rng.standard_normal(shape), 0),
    "sparse": lambda rng, shape: rng.standard_normal(shape) * (rng.random(shape) < 0.1),
}


def operands(shape, seed, number):
    """{name: float32 array} of x, kernel, bias and dz."""
    rng = np.random.default_rng([seed, number])
    E, Cin, Cout, window = shape.E, shape.Cin, shape.Cout, shape.window
    found = {
        "x": INPUTS[shape.x](rng, (E, shape.B, *window.input, Cin)),
        "kernel": rng.standard_normal((E, *window.size, Cin, Cout)),
        "bias": rng.standard_normal((E, Cout)),
        "dz": rng.standard_normal((E, shape.B, *window.output, Cout)),
    }
    for name, array in found.items():
        array *= 10 ** rng.uniform(-3, 3)
        if shape.mixed:
            array *= 10 ** rng.uniform(-1, 1, array.shape[-1])
    return {name: array.astype(np.float32) for name, array in found.items()}


# --- What is expected -----------------------------------------------------------------------------


class Expected:
    """y, dx, dkernel and dbias in float64, {name: array}, and the scales of their errors.

    `scales` has the same arrays of max(|sum|, root of the sum of squared terms). A sum whose terms
    cancel has an error in proportion to its terms. The second value is about what the sum is
    without such chance, so an array of many sums has nearly its own rms and maximum as its scale.
    But a layer may have a single sum, or few.
    """

    def __init__(self, shape, x, kernel, bias, dz):
        given = [array.astype(np.float64) for array in (x, kernel, bias, dz)]
        self.arrays = _convolve(shape, *given)
        squares = _convolve(shape, *(array**2 for array in given))
        self.scales = {
            name: np.maximum(np.abs(array), np.sqrt(squares[name]))
            for name, array in self.arrays.items()
        }
        if shape.activation == "relu":
            self.arrays["y"] = np.maximum(self.arrays["y"], 0)
        axes = {name: tuple(range(1, array.ndim)) for name, array in self.arrays.items()}
        self._rms = {n: np.sqrt((s**2).mean(axes[n])) for n, s in self.scales.items()}
        self._most = {n: s.max(axes[n]) for n, s in self.scales.items()}

    def errors(self, name, found):
        """{"rms": error, "largest": error}, relative, of the net that has the largest.

        NaN stays NaN. An array of few elements has no rms error.
        """
        error = (found - self.arrays[name]).reshape(len(found), -1)
        largest = np.maximum(error.max(axis=1), -error.min(axis=1))
        errors = {"largest": _ratio(largest, self._most[name])}
        if error.shape[1] < LEAST_FOR_RMS:
            return errors
        rms = np.sqrt(np.einsum("ei,ei->e", error, error) / error.shape[1])
        return errors | {"rms": _ratio(rms, self._rms[name])}


def _ratio(errors, scales):
    """The largest quotient; 0 / 0 is 0: the operands may be zeros."""
    with np.errstate(divide="ignore", invalid="ignore"):
        quotients = np.where((errors == 0) & (scales == 0), 0, errors / scales)
    return float(quotients.max())


def _convolve(shape, x, kernel, bias, dz):
    """{name: array} before the activation, one tap of the kernel after the other."""
    E, B, H, W, Cin = x.shape
    (kh, kw), (sh, sw), (Ho, Wo) = shape.size, shape.strides, dz.shape[2:4]
    top = left = 0
    if shape.padding == "same":
        top = max((Ho - 1) * sh + kh - H, 0) // 2
        left = max((Wo - 1) * sw + kw - W, 0) // 2
    rows, columns = max((Ho - 1) * sh + kh, top + H), max((Wo - 1) * sw + kw, left + W)
    wide = np.zeros((E, B, rows, columns, Cin))
    wide[:, :, top : top + H, left : left + W] = x
    d_wide, dkernel = np.zeros_like(wide), np.zeros_like(kernel)
    flat = dz.reshape(E, -1, dz.shape[-1])
    y = np.zeros_like(flat)
    for i in range(kh):
        for j in range(kw):
            at = np.s_[:, :, i : i + (Ho - 1) * sh + 1 : sh, j : j + (Wo - 1) * sw + 1 : sw]
            under = wide[at].reshape(E, -1, Cin)
            y += under @ kernel[:, i, j]
            dkernel[:, i, j] = under.transpose(0, 2, 1) @ flat
            d_wide[at] += (flat @ kernel[:, i, j].transpose(0, 2, 1)).reshape(wide[at].shape)
    return {
        "y": y.reshape(dz.shape) + bias[:, None, None, None],
        "dx": d_wide[:, :, top : top + H, left : left + W],
        "dkernel": dkernel,
        "dbias": flat.sum(axis=1),
    }


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
        self._shape, self._expected = shape, given

    def run(self, ops, sanitized):
        """Run the three passes."""
        shape, window, activation = self._shape, self._shape.window, self._shape.activation
        size = ops.conv2d_workspace(shape.E, shape.B, window, shape.Cin, shape.Cout)
        self._workspace = Guarded((1, size), np.uint8)
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
        with _forbidden(self._all.values() if sanitized else ()):
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


class _forbidden:  # noqa: N801  a context
    """AddressSanitizer reports an access to the guards of these arrays within."""

    def __init__(self, arrays):
        self._arrays = list(arrays)

    def __enter__(self):
        self._call("__asan_poison_memory_region")

    def __exit__(self, *_):
        self._call("__asan_unpoison_memory_region")

    def _call(self, name):
        for array in self._arrays:
            array.forbid(getattr(ctypes.CDLL(None), name))


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
    return {"LD_PRELOAD": library, "ASAN_OPTIONS": "detect_leaks=0"}


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
    builds(options.widths, sanitize=False)  # compiled once, not by each process
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
    number = int(at.read_text()) if at.exists() else None
    if number is None:
        raise RuntimeError(f"a process ended with status {process.returncode}")
    _print_failure(options, number, f"the process ended with status {process.returncode}")
    return {"shapes": 0, "failures": 1, "own_kernels": {}, "worst": {}}


if __name__ == "__main__":
    sys.exit(main())
