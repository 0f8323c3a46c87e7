"""Strokes of a pen and the digits that they form: which pieces belong together, in reading order.

Read handwriting.py first: it makes the mask of the strokes that this module takes.
"""

import numpy as np
from scipy import ndimage

_MOST_PIECES = 2_000  # the largest ones are kept
_EIGHT = np.ones((3, 3), bool)  # pixels that touch at a corner belong together

# Sizes relative to the usual height of the digits
_SPECK = 0.12  # a smaller piece is dirt
_FRAGMENT = 0.7  # a smaller piece may be a part of a digit
_NEAR = 0.2  # a fragment belongs to the piece that is as near as that
_BREAK = 0.12  # a gap in a stroke
_LOW = 0.3  # a lower digit is none: a dash, a dot
_BLOB = 0.6  # of its longer side: a piece with thicker strokes is none
_LARGE = 4  # a larger piece is none: the edge of the paper, a margin line


def find_digits(mask, least):
    """The digits on a sheet: (labels (H, W), boxes (n, 4)), in reading order.

    mask (H, W) bool: where the strokes are. least: pixels, the lowest digit. labels: 1 to n where a
    digit's strokes are, else 0. boxes: the first and the end of the rows, the first and the end of
    the columns.
    """
    mask = without_rules(mask)
    pieces, count = ndimage.label(mask, _EIGHT)
    numbers, boxes = _sizeable(pieces, least)
    groups = _joined(boxes, least)
    area, radius = _area_and_radius(mask, pieces, count)
    outlines = np.array([_around(boxes[group]) for group in groups], int).reshape(-1, 4)
    height, width = _sides(outlines)
    usual = _usual(outlines, least)
    digit = (height >= max(least, _LOW * usual)) & ((width < 2.5 * height) | (height > usual / 2))
    thick = np.array([2 * radius[numbers[group] - 1].max() for group in groups])
    digit &= thick <= _BLOB * np.maximum(height, width)
    chosen = np.flatnonzero(digit)
    chosen = chosen[reading_order(outlines[chosen])]
    table = np.zeros(count + 1, np.int32)
    for number, group in enumerate(chosen, start=1):
        table[numbers[groups[group]]] = number
    small = np.max(_sides(_boxes_of(pieces)), axis=0) < least
    if area[small].sum() > area[(table[1:] > 0) & ~small].sum():
        # Noise: its largest spots are no digits either.
        return np.zeros_like(pieces), outlines[:0]
    return table[pieces], outlines[chosen]


def breadth(mask, least):
    """How broad the strokes in a mask (h, w) are for their length; infinity if there are none.

    The mean, weighted by area, of the ratios: twice the largest distance of a piece's pixels to its
    outside, by the longer side of its box. least: pixels, the longer side of a piece that counts.
    """
    pieces, count = ndimage.label(mask, _EIGHT)
    extent = np.max(_sides(_boxes_of(pieces)), axis=0)
    if not (extent >= least).any():
        return np.inf
    area, radius = _area_and_radius(mask, pieces, count)
    return np.average(2 * radius / extent, weights=area * (extent >= least))


def without_rules(mask):
    """A mask (H, W) without the lines of ruled paper: thin, level and across most of the sheet.

    One line must cross nine tenths of the sheet, so that the bar of a large 7 is none; several must
    cross half of it. Strokes that cross a line stay.
    """
    H, W = mask.shape
    runs = _opened(mask, W // 16, axis=1)
    lines, _ = ndimage.label(ndimage.binary_dilation(runs, np.ones((3, 5), bool)), _EIGHT)
    places = ndimage.find_objects(lines)
    area = np.bincount(lines[runs], minlength=len(places) + 1)[1:]
    width = np.array([place[1].stop - place[1].start for place in places], int)
    thickness = area / np.maximum(width, 1)
    rules = (width >= W / 2) & (thickness <= max(0.02 * H, 1))
    if rules.sum() == 1:
        rules &= width >= 0.9 * W
    if not rules.any():
        return mask
    on_rule = np.isin(lines, np.flatnonzero(rules) + 1)
    crossing = _opened(mask, 2 * int(np.ceil(thickness[rules].max())) + 1, axis=0)
    return mask & (crossing | ~on_rule)


def _opened(mask, length, axis):
    """Where a mask has runs of at least `length` pixels, made odd, along an axis."""
    length += 1 - length % 2
    end = {"mode": "constant", "axis": axis}
    shorter = ndimage.minimum_filter1d(mask.view(np.uint8), length, **end)
    return ndimage.maximum_filter1d(shorter, length, **end).astype(bool)


# ---- pieces --------------------------------------------------------------------------------------


def _sizeable(pieces, least):
    """(numbers (n,), boxes (n, 4)) of the pieces that are neither dirt nor larger than digits."""
    boxes = _boxes_of(pieces)
    shorter, extent = np.sort(_sides(boxes), axis=0)
    usual = _usual(boxes, least)
    ends = np.array(pieces.shape).repeat(2) * [0, 1, 0, 1]
    across = (boxes == ends).reshape(-1, 2, 2).all(axis=2).any(axis=1)  # from edge to edge
    fitting = (extent >= max(_SPECK * usual, 2)) & (extent <= _LARGE * usual)
    kept = np.flatnonzero(fitting & ~(across & (extent > 8 * shorter)))
    kept = kept[np.argsort(-extent[kept], kind="stable")[:_MOST_PIECES]]
    return kept + 1, boxes[kept]


def _boxes_of(pieces):
    """The boxes (n, 4) of the pieces that labels (h, w) number from 1 to n."""
    found = ndimage.find_objects(pieces)
    return np.array([(r.start, r.stop, c.start, c.stop) for r, c in found], int).reshape(-1, 4)


def _area_and_radius(mask, pieces, count):
    """Of each piece of a mask: its pixels, and the largest distance of one to the outside."""
    inside = ndimage.distance_transform_edt(mask)
    radius = np.asarray(ndimage.maximum(inside, pieces, np.arange(1, count + 1)))
    return np.bincount(pieces.ravel(), minlength=count + 1)[1:], radius


def _usual(boxes, least):
    """The usual size of the digits in boxes (n, 4): the median, large ones having more weight.

    Long thin pieces have none, unless there are no others: the line of a margin is one.
    """
    sides = np.sort(_sides(boxes), axis=0)
    large = sides[1] >= least
    wide = large & (sides[1] < 8 * sides[0])
    extent = np.sort(sides[1][wide if wide.any() else large])
    if not len(extent):
        return least
    weight = np.cumsum(extent)
    return extent[np.searchsorted(weight, weight[-1] / 2)]


def _joined(boxes, least):
    """Lists of the pieces (n, 4) that form a digit each."""
    usual = _usual(boxes, least)
    top, bottom, left, right = boxes.T
    height, width = _sides(boxes)
    extent = np.maximum(height, width)
    beside = np.maximum.outer(left, left) - np.minimum.outer(right, right)  # below 0: they overlap
    above = np.maximum.outer(top, top) - np.minimum.outer(bottom, bottom)
    over = -beside / np.minimum.outer(width, width)  # share of the narrower one
    # A break in an upright stroke: one part is above the other one.
    joined = (over >= 0.5) & (above <= _BREAK * np.minimum(np.maximum.outer(extent, extent), usual))
    # A fragment goes to the nearest larger piece.
    gap = np.maximum(np.maximum(beside, above), 0) - 0.01 * usual * np.clip(over, 0, 1)
    for piece in np.flatnonzero(extent < _FRAGMENT * usual):
        others = np.flatnonzero((extent > extent[piece]) | (extent >= _FRAGMENT * usual))
        if len(others):
            nearest = others[gap[piece, others].argmin()]
            joined[piece, nearest] |= gap[piece, nearest] <= _NEAR * usual
    return _connected(joined)


def _connected(links):
    """Lists of the indices that links (n, n) connect."""
    from scipy.sparse.csgraph import connected_components  # noqa: PLC0415

    if not len(links):
        return []
    count, group = connected_components(links, directed=False)
    return [np.flatnonzero(group == number) for number in range(count)]


def _sides(boxes):
    """Heights (n,) and widths (n,) of boxes (n, 4)."""
    return boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]


def _around(boxes):
    """The box around boxes (n, 4)."""
    (top, _, left, _), (_, bottom, _, right) = boxes.min(axis=0), boxes.max(axis=0)
    return top, bottom, left, right


# ---- lines ---------------------------------------------------------------------------------------


def reading_order(boxes):
    """The indices (n,) that put boxes (n, 4) in order: line by line, each from left to right.

    The next digit of a line is the nearest one to the right that is at about the same height. So
    lines may rise or fall.
    """
    top, bottom, left, right = boxes.T
    height, centre = bottom - top, (left + right) / 2
    over = np.minimum.outer(bottom, bottom) - np.maximum.outer(top, top)
    level = over >= 0.5 * np.minimum.outer(height, height)
    links = np.zeros(level.shape, bool)
    for box in range(len(boxes)):
        to_the_right = np.flatnonzero(level[box] & (centre > centre[box]))
        if len(to_the_right):
            links[box, to_the_right[centre[to_the_right].argmin()]] = True
    lines = [line[np.argsort(centre[line], kind="stable")] for line in _connected(links)]
    lines.sort(key=lambda line: (top + bottom)[line].mean())
    return np.concatenate([np.zeros(0, int), *lines])
