"""A Case: one call of an operation, with its arguments, for any backend. Tests of kernels use it.

The same Case runs on NumPy, in C, on the emulator or a GPU; for one net or for all; with every
access checked, or with the threads in another order.
"""

import inspect
from dataclasses import dataclass, field

import numpy as np
import pytest

with_kernels = pytest.mark.usefixtures("cpu_ops")  # for tests that run kernels in C elsewhere


@dataclass
class Case:
    """A call of an operation. Its arrays have the names of the operation's parameters.

    inputs, results and changed (inputs that are changed in place) are (E, ...); results are
    (shape, dtype); `others` are the same for all nets. Floating-point arrays are float64.
    """

    operation: str
    inputs: dict
    results: dict = field(default_factory=dict)
    changed: tuple = ()
    others: dict = field(default_factory=dict)
    workspace: callable = None  # its bytes: workspace(ops, nets)

    def run(self, ops, nets=slice(None), dtype=np.float32, place=None):
        """{name: array on the host}: the results of the chosen nets; poisoned beforehand."""

        def typed(name, kind):  # sums are float64 on any backend
            real = np.dtype(kind).kind == "f" and name != "sums"
            return np.dtype(dtype if real else kind)

        put = place or ops.to_device
        arrays = {n: put(a[nets].astype(typed(n, a.dtype))) for n, a in self.inputs.items()}
        count = len(next(iter(arrays.values())))
        for name, (shape, kind) in self.results.items():
            arrays[name] = put(poison((count, *shape[1:]), typed(name, kind)))
        others = {
            name: ops.to_device(value.copy()) if isinstance(value, np.ndarray) else value
            for name, value in self.others.items()
        }
        if self.workspace:
            arrays["workspace"] = put(poison((self.workspace(ops, count),), np.uint8))
        arrays |= others
        function = getattr(ops, self.operation)
        names = inspect.signature(function).parameters
        with ops.session():
            function(*(arrays[name] for name in names if name in arrays))
        return {name: ops.to_host(arrays[name]) for name in (*self.results, *self.changed)}


def poison(shape, dtype):
    """An array of values that no operation computes, to show elements never written."""
    value = {"f": np.nan, "b": True}.get(np.dtype(dtype).kind, 119)
    return np.full(shape, value, dtype)


class Apart:
    """Puts (E, ...) arrays on the device with gaps between the nets' rows, as in `params`."""

    def __init__(self, ops):
        self.ops, self.between = ops, []

    def __call__(self, array):
        if array.ndim < 2:
            return self.ops.to_device(array)
        flat = array.reshape(len(array), -1)
        gap = poison((len(flat), 16), array.dtype)
        wide = self.ops.to_device(np.concatenate([gap, flat, gap], axis=1))
        self.between += [(wide[:, :16], gap), (wide[:, -16:], gap)]
        return wide[:, 16:-16].reshape(array.shape)

    def check(self):
        """Assert that nothing was written into the gaps."""
        for found, expected in self.between:
            np.testing.assert_array_equal(self.ops.to_host(found), expected)


def as_float32(random, shape, scale=1.0, center=0.0):
    """Normal random values, exact in float32, as float64."""
    return random.normal(center, scale, shape).astype(np.float32).astype(np.float64)


def relative(found, expected):
    """norm(found - expected) / norm(expected)."""
    size = np.linalg.norm(expected)
    difference = np.linalg.norm(np.float64(found) - expected)
    return difference / size if size else difference


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
