"""Which backend computes: the one place where the name of a device becomes operations."""

import warnings
from functools import lru_cache

from . import checks
from .backends import cuda, native, ops_cpu, ops_cuda, ops_numpy
from .emulator import Emulator

NAMES = "auto", "numpy", "cpu", "cuda", "emulated"
PRECISIONS = "float32", "tf32", "bfloat16"


def choose(device, precision="float32", dtype="float32"):
    """The (name, operations, reason) of a device, by its name; or of operations made by hand.

    "auto" is the fastest one here that computes in `dtype`. Where no C compiler works, "numpy"
    takes the place of "cpu", and a warning says why. precision None is the fastest of a device that
    training does with: operations have it as `precision`. Raises ValueError for one that is not
    here, and says what is missing and how it is had.
    """
    if precision is not None:
        checks.choice("precision", precision, PRECISIONS)
    if isinstance(device, ops_cpu.Operations | ops_cuda.Operations):
        return device.name, device, "as given"
    reason = "as asked"
    checks.choice("device", device, NAMES)
    if device == "auto":
        device, reason = _fastest(dtype)
    elif device == "cpu" and cpu_problem():
        device, reason = "numpy", "in place of cpu"
        message = f"cpu cannot be had, numpy takes its place: {cpu_problem()}"
        warnings.warn(message, stacklevel=3)
    operations = _operations(device)
    if precision is None:
        precision = "tf32" if device == "cuda" and not _tf32_problem(operations) else "float32"
    if precision == operations.precision:
        return device, operations, reason
    problem = _tf32_problem(operations) if precision == "tf32" else f"has no {precision!r}"
    if problem:
        raise ValueError(
            f"precision: got {precision!r}, expected 'float32': the device {device!r} {problem}"
        )
    return device, _operations(device, precision), reason


def _tf32_problem(operations):
    """Why a backend cannot compute in TF32; None if it can."""
    if not isinstance(operations, ops_cuda.Operations):
        return "has no other"
    if not operations.has_tf32:
        return "has no tensor cores for TF32: these came with compute capability 8.0"
    return None


def _fastest(dtype):
    """The (device, reason) of "auto"."""
    if dtype != "float32":
        return "numpy", f"auto: {dtype}"
    no_cuda = cuda.problem()
    if not no_cuda:
        return "cuda", f"auto: {cuda.gpu_name()}"
    if not cpu_problem():
        return "cpu", f"auto: no CUDA, {no_cuda}"
    return "numpy", f"auto: no CUDA, {no_cuda}; no C, {cpu_problem()}"


@lru_cache
def cpu_problem():
    """Why the C kernels cannot be compiled, in one line; None if they can."""
    try:
        _operations("cpu")
    except native.CompileError as error:
        return " ".join(str(error).split())
    return None


@lru_cache
def _operations(device, precision="float32"):
    """The operations of a device; kept, since with them are the kernels that they compiled."""
    if device == "numpy":
        return ops_numpy
    if device == "cpu":
        return ops_cpu.Operations()
    if device == "cuda":
        missing = cuda.problem()
        if missing:
            raise ValueError(f"device: 'cuda' cannot be used: {missing}")
        return ops_cuda.Operations(cuda.Cuda(), precision=precision)
    missing = native.problem()
    if missing:
        raise ValueError(f"device: 'emulated' cannot be used: {missing}")
    return ops_cuda.Operations(Emulator(), precision=precision)
