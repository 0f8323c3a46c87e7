"""Frames (see layers.Layer) of one layer, for tests of layers and operations.

Results are poisoned first, so that an element that was never written shows.
"""

from types import SimpleNamespace

import numpy as np
import pytest

from minicnn import rng
from minicnn.network.plan import Frame

ACTIVATIONS = "linear", "relu", "sigmoid", "tanh", "softmax"
FLOAT64 = pytest.param("float64", marks=pytest.mark.float64)
DTYPES = "float32", FLOAT64


def poisoned(ops, shape, dtype):
    """A poisoned array for a result."""
    dtype = np.dtype(dtype)
    poison = {"f": np.nan, "b": True}.get(dtype.kind, 77)
    return ops.to_device(np.full(shape, poison, dtype))


def make_frame(ops, layer, x, seed=3, nets=None, stream=rng.DROPOUT, step=0):
    """A frame for x (E, B, ...), with random weights and with all results poisoned.

    x becomes float32 where the device computes in float32 only.
    """
    if x.dtype.name not in ops.dtypes:
        x = x.astype(np.float32)
    E, B, *shape = x.shape
    shape = tuple(shape)
    random = np.random.default_rng(99)

    def group(specs, make):
        arrays = {name: make((E, *spec.shape)) for name, spec in specs.items()}
        return SimpleNamespace(**arrays)

    def numbers(shape):
        return ops.to_device(random.uniform(0.5, 1.5, shape).astype(x.dtype))

    def signed(shape):
        return ops.to_device(random.normal(size=shape).astype(x.dtype))

    saved = {
        name: poisoned(ops, (*((E, B) if per == "image" else (E,)), *shape_), kind or x.dtype)
        for name, (per, shape_, kind) in layer.saved(shape).items()
    }
    return Frame(
        x=ops.to_device(x),
        y=poisoned(ops, (E, B, *layer.output_shape(shape)), x.dtype),
        dx=poisoned(ops, x.shape, x.dtype),
        dy=None,
        wants_dx=True,
        weights=group(layer.weights(shape), signed),
        gradients=group(layer.weights(shape), lambda s: poisoned(ops, s, x.dtype)),
        moving=group(layer.moving(shape), numbers),
        saved=SimpleNamespace(**saved),
        seed=seed,
        nets=ops.to_device(np.arange(E) if nets is None else np.asarray(nets)),
        stream=stream,
        step=ops.to_device(np.array([step], np.int64)),
        workspace=poisoned(ops, (layer.workspace(ops, E, B, shape),), np.uint8),
    )


def forward(ops, layer, f, training=True):
    """The layer's output, as a NumPy array."""
    if layer.shares_memory(training):
        return ops.to_host(f.x).reshape(f.y.shape)
    layer.forward(ops, f, training)
    return ops.to_host(f.y)


def backward(ops, layer, f, dy):
    """{"x": ..., "kernel": ..., ...}: the layer's gradients; call forward() first."""
    if layer.shares_memory(training=True):
        return {"x": np.asarray(dy).reshape(f.x.shape)}
    f.dy = ops.to_device(np.array(dy, f.x.dtype))
    layer.backward(ops, f)
    found = {name: ops.to_host(value) for name, value in vars(f.gradients).items()}
    return {"x": ops.to_host(f.dx), **found}


def host_weights(ops, f):
    return {name: ops.to_host(value) for name, value in vars(f.weights).items()}


def assert_close(actual, expected, factor=200):
    """Assert equality within `factor` roundings of the largest element (or of 1)."""
    assert actual.shape == np.shape(expected)
    tolerance = factor * np.finfo(actual.dtype).eps * max(1, np.abs(expected).max(initial=0))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


def central_differences(function, array, h=1e-4):
    """d function() / d array by central differences; `array` is changed in place and back."""
    gradient = np.zeros(array.shape)
    for index in np.ndindex(array.shape):
        kept = array[index]
        array[index] = kept + h
        above = function()
        array[index] = kept - h
        below = function()
        array[index] = kept
        gradient[index] = (above - below) / (2 * h)
    return gradient


def check_gradients(ops, layer, x):
    """Check every gradient of a layer, under a random upstream gradient."""
    assert x.dtype == np.float64
    f = make_frame(ops, layer, x)
    y = forward(ops, layer, f)
    upstream = np.random.default_rng(5).normal(size=y.shape)
    found = backward(ops, layer, f, upstream)
    f = make_frame(ops, layer, x)
    checked = {"x": x, **host_weights(ops, f)}
    assert set(found) == set(checked)
    for name, array in checked.items():

        def loss(name=name, array=array):
            target = f.x if name == "x" else getattr(f.weights, name)
            ops.copy(ops.to_device(array), target)
            return np.sum(forward(ops, layer, f) * upstream)

        expected = central_differences(loss, array)
        loss()  # leaves the target as it was
        error = np.abs(found[name] - expected).max()
        assert error <= 1e-6 * np.abs(expected).max(), name


def away_from_kinks(ops, linear_layer, shape):
    """A random input for which no element before the activation is near 0."""
    for seed in range(500):
        x = np.random.default_rng(seed).normal(size=shape)
        if np.abs(forward(ops, linear_layer, make_frame(ops, linear_layer, x))).min() > 2e-3:
            return x
    raise AssertionError("no such input")
