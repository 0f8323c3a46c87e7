"""What Sequential.fit, evaluate and predict take: images and labels, checked and converted."""

import warnings

import numpy as np

from ..checks import outside
from ..network.architecture import MAX_CLASSES

_LEVELS = 255
_ROUNDED = 1e-3  # of a level: floats that are no farther from bytes were bytes
_PIECE = 1 << 12  # images converted at a time


def check_classifier(architecture):
    """Raise ValueError unless an Architecture is for images and ends in the names of classes."""
    if len(architecture.input_shape) != 3 or architecture.classes is None:
        raise ValueError(
            f"layers: this network is for {architecture.purpose}, expected one that takes images "
            f"(H, W, C) and ends in softmax over 2 to {MAX_CLASSES:,} classes"
        )


def _array(name, values):
    try:
        return np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"{name}: {error}, expected an array") from None


def shaped(name, x, input_shape):
    """Images of a network for `input_shape` (H, W, C), as an array (N, H, W, C).

    x: (N, H, W, C), (N, H, W) where C is 1, or (N, H*W*C), such as a table of pixels. Raises
    ValueError.
    """
    x = _array(name, x)
    N = len(x) if x.ndim else 0
    H, W, C = input_shape
    shapes = [(H, W, C), (H * W * C,), *([(H, W)] if C == 1 else [])]
    if x.shape[1:] not in shapes or not x.ndim:
        grey = f", (N, {H}, {W})" if C == 1 else ""
        raise ValueError(
            f"{name}: got shape {x.shape}, expected (N, {H}, {W}, {C}){grey} or (N, {H * W * C})"
        )
    return x.reshape(N, H, W, C)


def check_range(name, x):
    """Raise ValueError unless images are floats in [0, 1], or integers from 0 to 255."""
    if not x.size:
        return
    low, high = x.min(), x.max()
    if x.dtype.kind == "f":
        kind, most, hint = "floats", 1, "; divide bytes by 255"
    else:
        kind, most, hint = "integers", _LEVELS, ""
    if not (low >= 0 and high <= most):
        raise ValueError(f"{name}: got {kind} from {low} to {high}, expected 0 to {most}{hint}")


def images(name, x, input_shape):
    """Images as bytes (N, H, W, C), as the trainer keeps them.

    x: as for shaped(); integers from 0 to 255, or floats in [0, 1], of which it warns if they are
    no multiples of 1/255. Raises ValueError.
    """
    x = shaped(name, x, input_shape)
    if not len(x):
        raise ValueError(f"{name}: got no images, expected at least one")
    if x.dtype == np.uint8:
        return np.ascontiguousarray(x)
    if x.dtype.kind not in "iuf":
        raise ValueError(f"{name}: got {x.dtype}, expected bytes, or floats in [0, 1]")
    check_range(name, x)
    if x.dtype.kind != "f":
        return x.astype(np.uint8)
    found, rounded = np.empty(x.shape, np.uint8), False
    for first in range(0, len(x), _PIECE):
        piece = x[first : first + _PIECE].astype(np.float64) * _LEVELS
        nearest = np.rint(piece)
        rounded = rounded or np.abs(piece - nearest).max() > _ROUNDED
        found[first : first + _PIECE] = nearest
    if rounded:
        warnings.warn(
            f"{name}: the floats are rounded to multiples of 1/{_LEVELS}: nets train on bytes",
            stacklevel=outside(),
        )
    return found


def labels(name, y, images_name, count, classes):
    """Labels as integers (N,) from 0 to classes - 1, for `count` images. Raises ValueError."""
    y = _array(name, y)
    expected = f"{count:,} integers from 0 to {classes - 1}"
    if y.ndim == 2 and y.shape[1] == 1:  # a table of one column
        y = y[:, 0]
    if y.ndim != 1 or y.dtype.kind not in "iu":
        hint = "; take argmax(axis=1) of one-hot labels" if y.ndim == 2 else ""
        raise ValueError(f"{name}: got shape {y.shape} of {y.dtype}, expected {expected}{hint}")
    if len(y) != count:
        raise ValueError(f"{name}: got {len(y):,} labels, expected {count:,} as in {images_name}")
    if len(y) and (y.min() < 0 or y.max() >= classes):
        raise ValueError(f"{name}: got labels from {y.min()} to {y.max()}, expected {expected}")
    return y
