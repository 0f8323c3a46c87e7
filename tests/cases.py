"""An operation and its arguments, for any backend: what the tests of kernels are made of.

A Case runs on the emulator or a GPU, on the reference, for one net or for all, under a driver that
checks or in another order of threads.
"""

import inspect
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import settings

few = settings(deadline=None, max_examples=40, derandomize=True)
with_kernels = pytest.mark.usefixtures("cpu_ops")  # for tests that run kernels in C elsewhere


@dataclass
class Case:
    """A call of an operation, its arrays by the names of the operation's parameters.

    inputs, results and changed (inputs that are changed in place) are (E, ...); results are
    (shape, dtype); `others` are the same for all nets. A float is float64 here.
    """

    operation: str
    inputs: dict
    results: dict = field(default_factory=dict)
    changed: tuple = ()
    others: dict = field(default_factory=dict)
    workspace: callable = None  # its bytes: workspace(ops, nets)

    def run(self, ops, nets=slice(None), dtype=np.float32, place=None):
        """{name: array on the host} of the results, on the nets chosen; poisoned beforehand."""

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
    """An array of numbers that no operation makes."""
    value = {"f": np.nan, "b": True}.get(np.dtype(dtype).kind, 119)
    return np.full(shape, value, dtype)


class Apart:
    """Puts (E, ...) arrays on the device with other numbers between the rows, as weights lie."""

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
        """Nobody has written between the rows."""
        for found, expected in self.between:
            np.testing.assert_array_equal(self.ops.to_host(found), expected)


def as_float32(random, shape, scale=1.0, center=0.0):
    """Normal random numbers that float32 holds, in float64."""
    return random.normal(center, scale, shape).astype(np.float32).astype(np.float64)


def relative(found, expected):
    """The norm of the difference, by that of what is expected."""
    size = np.linalg.norm(expected)
    difference = np.linalg.norm(np.float64(found) - expected)
    return difference / size if size else difference


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
