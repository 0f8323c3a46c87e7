"""Which backend computes: the one place where the name of a device becomes a Backend."""

import multiprocessing
import warnings
from functools import lru_cache

from . import checks, machine
from .backends import cuda, native, ops_cpu, ops_cuda, ops_numpy
from .backends.backend import Backend
from .emulator import Emulator

NAMES = "auto", "numpy", "cpu", "cuda", "emulated"
PRECISIONS = "float32", "tf32", "bfloat16"


def choose(device, precision="float32", dtype="float32"):
    """The (name, backend, reason) for a device: one of NAMES, or a Backend, which is returned.

    "auto" is the fastest device here that computes in `dtype`. Without a working C compiler "numpy"
    replaces "cpu", with a warning that says why. precision None means the fastest one that is fit
    for training; the backend's `precision` says which. Raises ValueError for a device or precision
    that is not available, with what is missing and how to install it.
    """
    if precision is not None:
        checks.choice("precision", precision, PRECISIONS)
    if isinstance(device, Backend):
        return device.name, device, "as given"
    reason = "as asked"
    checks.choice("device", device, NAMES)
    if device == "auto":
        device, reason = _fastest(dtype)
    elif device == "cpu" and cpu_problem():
        device, reason = "numpy", "in place of cpu"
        message = f"device 'cpu' cannot be used, 'numpy' replaces it: {cpu_problem()}"
        warnings.warn(message, stacklevel=checks.outside())
    backend = _operations(device)
    if precision is None:  # the emulator computes TF32 more slowly than float32
        precision = "tf32" if device == "cuda" and "tf32" in backend.precisions else "float32"
    if precision == backend.precision:
        return device, backend, reason
    if precision not in backend.precisions:
        raise ValueError(
            f"precision: got {precision!r}, expected 'float32': the device {device!r} has no "
            "tensor cores (GPUs of compute capability 8.0 and later have them)"
        )
    return device, _operations(device, precision), reason


def choose_openly(device, precision="float32"):
    """As `choose`, for a command that does not show the reason: warns if "auto" is only "numpy"."""
    name, backend, reason = choose(device, precision)
    if device == "auto" and name == "numpy":
        message = f"device 'auto' is 'numpy', which is slow: {cpu_problem()}"
        warnings.warn(message, stacklevel=2)
    return name, backend, reason


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
    """The backend of a device; kept, because it holds the kernels that it compiled."""
    if device == "numpy":
        return ops_numpy
    if device == "cpu":
        backend = ops_cpu.Operations()
        if not backend.threaded and machine.threads() > 1 and not multiprocessing.parent_process():
            message = "the C compiler has no OpenMP: one core works in each process"
            warnings.warn(message, stacklevel=checks.outside())
        return backend
    if device == "cuda":
        missing = cuda.problem()
        if missing:
            raise ValueError(f"device: 'cuda' cannot be used: {missing}")
        return ops_cuda.Operations(cuda.Cuda(), precision=precision)
    missing = native.problem()
    if missing:
        raise ValueError(f"device: 'emulated' cannot be used: {missing}")
    return ops_cuda.Operations(Emulator(), precision=precision)
