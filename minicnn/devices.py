"""Which backend computes: the one place where the name of a device becomes a module."""

from . import checks, ops_numpy

NAMES = "auto", "numpy", "cpu", "cuda", "emulated"
PRECISIONS = "float32", "tf32", "bfloat16"


def choose(device, precision="float32"):
    """The (name, operations, reason) of a device. Raises ValueError for one that is not here."""
    checks.choice("device", device, NAMES)
    checks.choice("precision", precision, PRECISIONS)
    if device not in ("auto", "numpy"):
        raise ValueError(f"device: {device!r} is not in this version, use 'numpy' or 'auto'")
    if precision != "float32":
        raise ValueError(f"precision: got {precision!r}, the device 'numpy' has only 'float32'")
    reason = "as asked" if device == "numpy" else "auto: the only one in this version"
    return "numpy", ops_numpy, reason
