"""Handwritten digits on a photo or drawing, prepared as MNIST's images are.

MNIST's digits are white on black, fitted into 20x20 pixels with their aspect ratio kept, in greys
that come from anti-aliasing, and moved so that their centre of mass is the centre of 28x28 pixels.
Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits".

    photo -> ink: light removed, strokes light on dark -> mask of the strokes
    -> strokes.py: digits in reading order -> each fitted, thickened and centred

photos.py reads photos from files.
"""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from ..files import brief
from .strokes import breadth, find_digits

SIDE = 28  # pixels, the side of a prepared image
_FITTED = 20  # pixels, the longer side of the digit in it
_CENTRE = 14.5  # pixels from the edge: the middle of the pixel with index 14, as in MNIST
_PEN = 1.9  # pixels, the narrowest stroke of a prepared digit: 95 % of MNIST's are wider

_MOST = 2_000  # pixels, the longer side of a sheet on which digits are looked for
_LEAST = 112  # pixels, its shorter side; smaller images are enlarged
_LOWEST = 8  # pixels of the image, the lowest digit
_COARSE = 128  # pixels, the shorter side at which the light is estimated
_STROKE = 0.25  # of the shorter side: strokes are narrower than that
_NOISE = 5  # standard deviations of the paper's noise: ink is stronger
_CONTRAST = 16  # of 255: ink is stronger
_FAINT = 0.4  # of the contrast of the strokes: what is weaker is none of them
_MOST_INK = 0.5  # of the sheet: more is no writing
_BAND = 16  # rows of a reduced image that are made at a time
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green, blue: ITU-R BT.601


def prepare_digits(image):
    """The digits on a photo or a drawing: (digits (n, 28, 28) uint8, boxes (n, 4) integers).

    image: uint8 (H, W), or (H, W, 3) for red, green, blue. Digits may be dark on light or light on
    dark, on one line or several, under uneven light and on ruled paper. They come in reading order,
    n is 0 if nothing looks like a digit.

    digits: light on dark, as MNIST's. boxes: where they are in the image, as the first row, the row
    after the last one, the first column, the column after the last one. Raises ValueError for
    another kind of array.
    """
    image = _checked(image)
    grey, scale = _sheet(image)
    lowest = _LOWEST * max(scale, 1)
    sheet = _sheet_of(grey, lowest)
    labels, boxes = find_digits(sheet.mask, lowest)
    digits = [_prepared(sheet, labels, i + 1, box) for i, box in enumerate(boxes)]
    places = boxes / scale
    places[:, ::2], places[:, 1::2] = np.floor(places[:, ::2]), np.ceil(places[:, 1::2])
    H, W = image.shape[:2]
    return (
        np.array(digits, np.uint8).reshape(-1, SIDE, SIDE),
        np.minimum(places.astype(int), [H, H, W, W]),
    )


def _checked(image):
    """The image as an array. Raises ValueError."""
    array = np.asarray(image)
    sizes = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if array.dtype != np.uint8 or not sizes or not array.size:
        got = f"{array.dtype} {array.shape}" if array.ndim else brief(repr(image))
        raise ValueError(f"image: got {got}, expected uint8 (H, W) or (H, W, 3), not empty")
    return array


# ---- size ----------------------------------------------------------------------------------------


def _sheet(image):
    """(grey (h, w) float32, scale): the image at a size that is quick to work with.

    scale: pixels of the result for one of the image.
    """
    shorter, longer = sorted(image.shape[:2])
    if longer > _MOST:
        factor = -(-longer // _MOST)
        return _reduced(image, factor), 1 / factor
    factor = max(1, min(-(-_LEAST // shorter), _MOST // longer))
    grey = _grey(image)
    if factor > 1:
        grey = ndimage.zoom(grey, factor, order=1, mode="nearest", grid_mode=True)
    return grey, factor


def _grey(image):
    """The luminance (H, W) float32 of an image (H, W) or (H, W, 3)."""
    return image.astype(np.float32) if image.ndim == 2 else image.astype(np.float32) @ _LUMINANCE


def _reduced(image, factor):
    """The means (h, w) of blocks of factor x factor pixels; the last ones may be smaller.

    A few rows are made at a time, so that a large image takes little more memory than its own.
    """
    H, W = image.shape[:2]
    starts = np.arange(0, W, factor)
    sizes = np.diff(starts, append=W)
    rows = []
    for first in range(0, H, factor * _BAND):
        band = np.add.reduceat(_grey(image[first : first + factor * _BAND]), starts, axis=1)
        firsts = np.arange(0, len(band), factor)
        lengths = np.diff(firsts, append=len(band))
        rows.append(np.add.reduceat(band, firsts, axis=0) / np.outer(lengths, sizes))
    return np.concatenate(rows).astype(np.float32)


# ---- ink -----------------------------------------------------------------------------------------


class _Sheet(NamedTuple):
    ink: np.ndarray  # float32 (h, w): how much stronger than the paper
    paper: float  # the ink up to which there is only paper with its noise
    mask: np.ndarray  # bool (h, w): where strokes are
    contrast: float  # of the strokes with the paper, 0 without strokes


def _sheet_of(grey, lowest):
    """The _Sheet of a grey image (h, w): light removed, strokes found. lowest: the lowest digit.

    Both dark strokes on light paper and light ones on dark are tried. Strokes are narrow; what lies
    between them, which is found with the wrong choice, is less so, or it is faint.
    """
    sheets = _ink_of(-grey), _ink_of(grey)
    least = _FAINT * max(sheet.contrast for sheet in sheets)
    strong = [sheet for sheet in sheets if sheet.contrast >= least]
    return min(strong, key=lambda sheet: breadth(sheet.mask, lowest))


def _ink_of(grey):
    """The _Sheet of a grey image (h, w) with strokes that are lighter than the paper."""
    factor = -(-min(grey.shape) // _COARSE)
    ink = grey - _enlarged(_paper(_reduced(grey, factor)), factor, grey.shape)
    smooth = ndimage.gaussian_filter(ink, 1)
    # The darkest fifth is paper, whatever is written. For normal noise its quantiles tell the rest.
    low, high = np.percentile(smooth, [5, 20])
    deviation = (high - low) / 0.803
    level = high + 0.842 * deviation
    least = level + max(_NOISE * deviation, _CONTRAST)
    mask = smooth > max(_threshold(smooth[smooth > least], level), least)
    if mask.mean() > _MOST_INK:
        mask[:] = False
    contrast = np.median(smooth[mask]) - level if mask.any() else 0
    return _Sheet(ink, level + 2 * deviation, mask, contrast)


def _paper(coarse):
    """The light of the paper (h, w): the strokes, which are lighter and narrow, are removed.

    An opening keeps edges and even slopes as they are. Beyond the edge the paper goes on as it is.
    """
    window = int(_STROKE * min(coarse.shape)) + 1
    padded = np.pad(coarse, window, mode="edge")
    opened = ndimage.grey_opening(padded, (window, window))
    return ndimage.gaussian_filter(opened[window:-window, window:-window], 1)


def _enlarged(coarse, factor, shape):
    """The inverse of _reduced, interpolated linearly."""
    if factor == 1:
        return coarse
    rows, columns = ((np.arange(n, dtype=np.float32) + 0.5) / factor - 0.5 for n in shape)
    rows, columns = (
        np.clip(at, 0, n - 1) for at, n in zip((rows, columns), coarse.shape, strict=True)
    )
    return _interpolated(_interpolated(coarse, rows).T, columns).T


def _interpolated(values, at):
    """Rows of `values` at fractional indices."""
    below = np.minimum(at.astype(int), len(values) - 1)
    above = np.minimum(below + 1, len(values) - 1)
    weight = (at - below)[:, None]
    return values[below] * (1 - weight) + values[above] * weight


def _threshold(ink, paper):
    """The ink between paper and strokes, by Otsu's method; infinity without ink.

    ink (n,): what may be strokes. paper: the level of the paper, which counts as much as all of the
    ink, since a small digit on a large sheet would have no weight. The threshold is the middle
    between the means of the two classes. Source: N. Otsu, "A threshold selection method from
    gray-level histograms" (1979).
    """
    if not len(ink):
        return np.inf
    counts, edges = np.histogram(ink, 256, (paper, ink.max()))
    values = (edges[1:] + edges[:-1]) / 2
    counts = np.concatenate([[len(ink)], counts]).astype(np.float64)
    values = np.concatenate([[paper], values])
    below = np.cumsum(counts)[:-1]
    above = 2 * len(ink) - below
    sums = np.cumsum(counts * values)
    means = sums[:-1] / below, (sums[-1] - sums[:-1]) / np.maximum(above, 1)
    between = below * above * (means[1] - means[0]) ** 2
    best = between.argmax()
    return (means[0][best] + means[1][best]) / 2


# ---- one digit -----------------------------------------------------------------------------------


def _prepared(sheet, labels, number, box):
    """The image (28, 28) uint8 of the digit with this number in `labels`."""
    side = max(box[1] - box[0], box[3] - box[2])
    margin = int(np.ceil(0.2 * side)) + 2
    top, left = max(0, box[0] - margin), max(0, box[2] - margin)
    part = np.s_[top : box[1] + margin, left : box[3] + margin]
    own = labels[part] == number
    near = ndimage.distance_transform_edt(~own)  # pixels to the digit
    level = np.median(sheet.ink[part][own])
    strength = np.clip((sheet.ink[part] - sheet.paper) / max(level - sheet.paper, 1), 0, 1)
    strength[(near > side / _FITTED) | ((labels[part] > 0) & ~own)] = 0
    more = _thickening(own, side)
    if more > 0:
        strength = np.maximum(strength, np.clip(more + 0.5 - near, 0, 1))
        side += 2 * more
    return _centred(strength, side / _FITTED)


def _thickening(mask, side):
    """Pixels by which to widen the strokes on each side, so that they are _PEN wide when fitted.

    A pen on paper is narrower than those of MNIST's writers, whose digits were small. Its strokes
    would turn faint, or break.
    """
    inside = ndimage.distance_transform_edt(np.pad(mask, 1))
    middle = (inside > 0) & (inside == ndimage.maximum_filter(inside, 3))
    width = 2 * np.median(inside[middle]) - 0.5
    # With m more on each side: (width + 2 m) * fitted / (side + 2 m) = pen
    return (_PEN * side / _FITTED - width) / (2 - 2 * _PEN / _FITTED)


def _centred(strength, scale):
    """`strength` (h, w), 0 to 1, as (28, 28) uint8, centred by its mass; scale: pixels for one."""
    total = strength.sum()
    centre = [
        (strength.sum(axis=1 - axis) @ (np.arange(n) + 0.5)) / total
        for axis, n in enumerate(strength.shape)
    ]
    rows, columns = (_weights(n, at, scale) for n, at in zip(strength.shape, centre, strict=True))
    fitted = rows @ strength @ columns.T
    return np.rint(fitted * (255 / fitted.max())).astype(np.uint8)


def _weights(count, centre, scale):
    """The weights (28, count) of pixels in each pixel of the result: a triangle around its middle.

    centre: the place that becomes the centre of the result.
    """
    middle = centre + (np.arange(SIDE) + 0.5 - _CENTRE) * scale
    distance = np.abs(np.arange(count) + 0.5 - middle[:, None]) / max(scale, 1)
    return np.maximum(1 - distance, 0) / max(scale, 1)
