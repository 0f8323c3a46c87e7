"""The augmentation in NumPy: its random parameters, and the resampling of images.

An affine map says which position of the image each output pixel shows. An elastic distortion adds
a displacement to it, which changes smoothly over the image: a B-spline whose control points, here
called nodes, are drawn at random.
"""

from functools import lru_cache

import numpy as np

from .. import rng
from .scratch import chunks, scratch

_AFFINE = 5  # parameters of an affine map
_INTERVALS = 3  # of the spline, along each axis of an image
NODES = _INTERVALS + 3  # of the spline, along each axis


def augment(images, ranges, seed, net, step, out):
    """out = images (B, H, W, C), resampled with the parameters drawn for (seed, net, step).

    ranges (2, 5) float32: the lowest and the highest value of each of affine_parameters. ranges
    (2, 7): also those of elastic_nodes.
    """
    parameters = affine_parameters(ranges[:, :_AFFINE], seed, net, step, len(images))
    nodes = None
    if ranges.shape[1] > _AFFINE:
        nodes = elastic_nodes(ranges[:, _AFFINE:], seed, net, step, len(images))
    affine(images, parameters, out, nodes)


def affine_parameters(ranges, seed, net, step, count):
    """Draw theta (degrees), tx, ty (pixels), zx and zy for each image of a batch: (5, count).

    ranges (2, 5) float32: the lowest and the highest value of each. Image b uses the first five
    words of the random blocks 2b and 2b + 1.
    """
    words = rng.random_words(seed, net, rng.AUGMENTATION, step, np.empty(8 * count, np.uint32))
    low, high = ranges[:, :, None]
    return rng.draw(low, high, words.reshape(count, 8)[:, :5].T)


def elastic_nodes(ranges, seed, net, step, count):
    """Draw the nodes' displacements in pixels: (count, 2, NODES, NODES), along x, then along y.

    ranges (2, 2) float32: the lowest and the highest displacement along x and along y. Image b uses
    the random blocks 18b to 18b + 17, word after word.
    """
    words = np.empty((count, 2, NODES, NODES), np.uint32)
    rng.random_words(seed, net, rng.ELASTIC, step, words.reshape(-1))
    low, high = ranges[:, :, None, None]
    return rng.draw(low, high, words)


def affine(images, parameters, out, nodes=None):
    """out = images (B, H, W, C), resampled at affinely mapped positions: bilinear, edges repeated.

        out[p] = image[R(theta) @ ([zx, zy] * p + [tx, ty]) + d[p]]    # p: (column, row) from the
                                                                       # centre
    parameters (5, B): theta, tx, ty, zx, zy. nodes (B, 2, NODES, NODES): the displacement d is
    their B-spline, see `_spline`; None: there is none. Positions are computed in float64, so that
    only the interpolation rounds to the images' type.
    """
    B, H, W, C = images.shape
    theta, tx, ty, zx, zy = np.asarray(parameters, np.float64)
    cos, sin = np.cos(np.deg2rad(theta)), np.sin(np.deg2rad(theta))
    row = [sin * zx, cos * zy, sin * tx + cos * ty + (H - 1) / 2]
    column = [cos * zx, -sin * zy, cos * tx - sin * ty + (W - 1) / 2]
    matrices = np.array([row, column]).transpose(0, 2, 1)  # (2, B, 3)
    numbers = (4 + 4 * C) * H * W  # of scratch memory, an image
    if nodes is not None:
        numbers += 2 * (H + NODES) * W
    for part in chunks(B, numbers, np.float64):
        positions = scratch("positions", (2, part.stop - part.start, H * W), np.float64)
        np.matmul(matrices[:, part], _grid(H, W), out=positions)
        if nodes is not None:
            _displace(positions, nodes[part], H, W)
        _resample(images[part], positions, out[part])


def _displace(positions, nodes, H, W):
    """Add the splines of nodes (B, 2, NODES, NODES) to positions (2, B, H*W), row and column."""
    of_rows = nodes[:, ::-1].transpose(1, 0, 2, 3)  # (2, B, NODES, NODES), along y, then along x
    across = scratch("across", (*of_rows.shape[:3], W), np.float64)
    np.matmul(of_rows, _spline(W), out=across)
    displacements = scratch("displacements", (*of_rows.shape[:2], H, W), np.float64)
    np.matmul(_spline(H).T, across, out=displacements)
    positions += displacements.reshape(positions.shape)


@lru_cache(maxsize=8)
def _spline(length):
    """Weights (NODES, length) of the nodes in the displacement of each pixel along an axis.

    The spline is cubic and uniform: its second derivative is continuous, and each of its intervals
    depends on four nodes. The first pixel's centre is where the first interval starts, the last
    one's where the last interval ends. No weight is negative, and those of a pixel add up to 1. So
    no displacement is larger than the nodes' largest.
    """
    along = np.arange(length) * (_INTERVALS / max(length - 1, 1))
    interval = np.minimum(along.astype(int), _INTERVALS - 1)
    t = along - interval
    rest = 1 - t
    weights = np.zeros((NODES, length))
    pixels = np.arange(length)
    weights[interval, pixels] = rest**3 / 6
    weights[interval + 1, pixels] = (4 - 3 * t**2 * (1 + rest)) / 6
    weights[interval + 2, pixels] = (4 - 3 * rest**2 * (1 + t)) / 6
    weights[interval + 3, pixels] = t**3 / 6
    return weights


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
