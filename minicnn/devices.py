"""Which backend computes: the one place where the name of a device becomes operations."""

from functools import lru_cache

from . import checks, cuda, native, ops_numpy
from .emulator import Emulator
from .ops_cuda import Operations

NAMES = "auto", "numpy", "cpu", "cuda", "emulated"
PRECISIONS = "float32", "tf32", "bfloat16"


def choose(device, precision="float32"):
    """The (name, operations, reason) of a device, by its name; or of operations made by hand.

    Raises ValueError for one that is not here, and says what is missing and how it is had.
    """
    reason = "as asked"
    if isinstance(device, Operations):
        device, operations = device.name, device
    else:
        checks.choice("device", device, NAMES)
        if device == "auto":
            missing = cuda.problem()
            device = "numpy" if missing else "cuda"
            reason = f"auto: no CUDA, {missing}" if missing else f"auto: {cuda.gpu_name()}"
        operations = _operations(device)
    checks.choice("precision", precision, PRECISIONS)
    if precision != "float32":
        raise ValueError(f"precision: got {precision!r}, the device {device!r} has only 'float32'")
    return device, operations, reason


@lru_cache
def _operations(device):
    """The operations of a device; kept, since with them are the kernels that they compiled."""
    if device == "numpy":
        return ops_numpy
    if device == "cuda":
        missing = cuda.problem()
        if missing:
            raise ValueError(f"device: 'cuda' cannot be used: {missing}")
        return Operations(cuda.Cuda())
    if device == "emulated":
        missing = native.problem()
        if missing:
            raise ValueError(f"device: 'emulated' cannot be used: {missing}")
        return Operations(Emulator())
    raise ValueError(f"device: {device!r} is not in this version, use 'numpy' or 'auto'")
