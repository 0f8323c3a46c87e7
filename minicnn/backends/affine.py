"""The affine augmentation in NumPy: its random parameters, and the resampling of images."""

from functools import lru_cache

import numpy as np

from .. import rng
from .scratch import chunks, scratch


def affine_parameters(ranges, seed, net, step, count):
    """Draw theta (degrees), tx, ty (pixels), zx and zy for each image of a batch: (5, count).

    ranges (2, 5) float32: the lowest and the highest value of each. Image b uses the first five
    words of the random blocks 2b and 2b + 1.
    """
    words = rng.random_words(seed, net, rng.AUGMENTATION, step, np.empty(8 * count, np.uint32))
    low, high = ranges[:, :, None]
    return rng.draw(low, high, words.reshape(count, 8)[:, :5].T)


def affine(images, parameters, out):
    """out = images (B, H, W, C), resampled at affinely mapped positions: bilinear, edges repeated.

        out[p] = image[R(theta) @ ([zx, zy] * p + [tx, ty])]    # p: (column, row) from the centre

    parameters (5, B): theta, tx, ty, zx, zy. Positions are computed in float64, so that only the
    interpolation rounds to the images' type.
    """
    B, H, W, C = images.shape
    theta, tx, ty, zx, zy = np.asarray(parameters, np.float64)
    cos, sin = np.cos(np.deg2rad(theta)), np.sin(np.deg2rad(theta))
    row = [sin * zx, cos * zy, sin * tx + cos * ty + (H - 1) / 2]
    column = [cos * zx, -sin * zy, cos * tx - sin * ty + (W - 1) / 2]
    matrices = np.array([row, column]).transpose(0, 2, 1)  # (2, B, 3)
    for part in chunks(B, (4 + 4 * C) * H * W, np.float64):
        positions = scratch("positions", (2, part.stop - part.start, H * W), np.float64)
        np.matmul(matrices[:, part], _grid(H, W), out=positions)
        _resample(images[part], positions, out[part])


def _resample(images, positions, out):
    """Interpolate images (B, H, W, C) at positions (2, B, H*W), row and column, into `out`."""
    B, H, W, C = images.shape
    last = np.array([H - 1.0, W - 1.0])[:, None, None]
    np.clip(positions, 0, last, out=positions)  # repeats the edge
    # Each position lies in a square of four pixels; `lower` is the first of them.
    lower = scratch("lower", positions.shape, np.float64)
    np.floor(positions, out=lower)
    np.clip(lower, 0, np.maximum(last - 1, 0), out=lower)
    positions -= lower
    weights = scratch("weights", (2, *positions.shape), images.dtype)  # of the next, of `lower`
    np.copyto(weights[0], positions, casting="same_kind")
    np.subtract(1, weights[0], out=weights[1])

    row, column = lower
    row *= W
    row += column
    row += np.arange(0.0, B * H * W, H * W)[:, None]
    index, neighbour = scratch("index", (2, *row.shape), np.intp)
    np.copyto(index, row, casting="unsafe")
    right, below = min(W - 1, 1), W * min(H - 1, 1)
    pixels = scratch("corners", (4, B, H * W, C), images.dtype)
    for corner, offset in zip(pixels, (0, right, below, below + right), strict=True):
        np.add(index, offset, out=neighbour)
        np.take(images.reshape(-1, C), neighbour, axis=0, out=corner, mode="clip")
    rows, columns = weights[:, 0, ..., None], weights[:, 1, ..., None]  # (2, B, H*W, 1) each
    _blend(pixels[0], pixels[1], columns)
    _blend(pixels[2], pixels[3], columns)
    _blend(pixels[0], pixels[2], rows)
    np.copyto(out, pixels[0].reshape(out.shape))


def _blend(first, second, weights):
    """first = weights[1] * first + weights[0] * second, in place; destroys `second`."""
    first *= weights[1]
    second *= weights[0]
    first += second


@lru_cache(maxsize=8)
def _grid(H, W):
    """(3, H*W): column and row of each pixel from the centre, and 1."""
    row, column = np.mgrid[:H, :W].reshape(2, -1)
    return np.array([column - (W - 1) / 2, row - (H - 1) / 2, np.ones(H * W)])
