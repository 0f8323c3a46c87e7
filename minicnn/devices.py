"""Which backend computes: the one place where the name of a device becomes a module."""

from . import ops_numpy

DEVICES = "auto", "numpy"
PRECISIONS = ("float32",)


def choose(device, precision="float32"):
    """The (name, operations, reason) of a device. Raises ValueError for one that is not here."""
    if device not in DEVICES:
        raise ValueError(
            f"device: got {device!r}, this version has {' and '.join(map(repr, DEVICES))}"
        )
    if precision not in PRECISIONS:
        raise ValueError(f"precision: got {precision!r}, the device 'numpy' has 'float32'")
    reason = "the reference in NumPy" if device == "numpy" else "chosen as the only device so far"
    return "numpy", ops_numpy, reason
