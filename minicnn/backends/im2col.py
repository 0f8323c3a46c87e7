"""Patches of images as rows of a matrix, so that a convolution is a matrix product.

Source: K. Chellapilla, S. Puri, P. Simard, "High performance convolutional neural networks for
document processing", 2006. The matrix is built for a few images at a time, so that it stays in the
cache.
"""

import numpy as np
from numpy.lib.stride_tricks import as_strided

from .scratch import chunks, scratch


def patches(x, window):
    """Yield (images, rows) for one slice of images after the other: the patches under the window.

    x (B, H, W, Cin); rows (images*Ho*Wo, K), valid until the next iteration.
    """
    (top, left), (bottom, right) = window.before, window.after
    height, width = top + window.input[0] + bottom, left + window.input[1] + right
    for images in _slices(x, window.output, window.size):
        padded = _crop(x[images], -top, -left, height, width)
        yield images, _rows(padded, window.size, window.strides, window.output)


def phase_patches(dz, r, c):
    """Yield (images, rows): the patches of dz for phases r and c (geometry.Phase) of dx.

    dz (B, Ho, Wo, Cout); rows (images*r.count*c.count, r.taps*c.taps*Cout).
    """
    size, output = (r.taps, c.taps), (r.count, c.count)
    for images in _slices(dz, output, size):
        padded = _crop(dz[images], r.start, c.start, r.count + r.taps - 1, c.count + c.taps - 1)
        yield images, _rows(padded, size, (1, 1), output)


def _slices(x, output, size):
    return chunks(len(x), output[0] * output[1] * size[0] * size[1] * x.shape[-1], x.dtype)


def _rows(x, size, strides, output):
    """The patches of x (B, H, W, C), which includes the padding, as rows (B*Ho*Wo, kh*kw*C)."""
    (kh, kw), (sh, sw), (Ho, Wo) = size, strides, output
    B, C = len(x), x.shape[-1]
    image, row, column, channel = x.strides
    # The kw*C elements of a patch's row are contiguous in memory, so they are one axis here.
    view = as_strided(
        x, (B, Ho, Wo, kh, kw * C), (image, sh * row, sw * column, row, channel), writeable=False
    )
    rows = scratch("patches", view.shape, x.dtype)
    np.copyto(rows, view)
    return rows.reshape(B * Ho * Wo, kh * kw * C)


def _crop(x, top, left, height, width):
    """x[:, top : top + height, left : left + width] of x (B, H, W, C), with zeros outside of x."""
    B, H, W, C = x.shape
    if (top, left, height, width) == (0, 0, H, W):
        return x
    cropped = scratch("cropped", (B, height, width, C), x.dtype)
    cropped[...] = 0
    rows = slice(max(top, 0), min(top + height, H))
    columns = slice(max(left, 0), min(left + width, W))
    inside = cropped[
        :, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
    ]
    np.copyto(inside, x[:, rows, columns])
    return cropped
