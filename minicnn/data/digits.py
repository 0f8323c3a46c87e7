"""The embedded data set: draws any number of handwritten digits, without a file or network.

To draw a digit, choose one of its shapes in glyphs.py at random, move each of its points, then
distort, slant and scale it, place it as MNIST's digits are placed, and draw it with a round pen.

Image i of a seed depends on (seed, i) only, and its pixels are the same on every machine. So the
module uses neither a library's sine nor BLAS, whose last bits differ between machines.
"""

import numpy as np

from .. import checks, rng
from .glyphs import GLYPHS

SIZE = 28  # pixels, the side of an image

_POINTS = 80  # points of a digit at which the pen is drawn: about 0.7 pixels apart
_DETAIL = 32  # line segments between two points of a stroke, to measure its length

# The style of an image: random parameters, each uniform in its range
_RANGES = {
    "slant": (-0.25, 0.55),  # columns to the right per row up
    "tilt": (-0.12, 0.12),  # rows up per column to the right
    "width": (0.8, 1.3),  # factor on the width of the shape, before it is scaled
    "side": (18.5, 20.5),  # pixels, the longer side of the box around the ink
    "x": (-1.2, 1.2),  # pixels, from the centre of the image to that of mass, to the right
    "y": (-1.2, 1.2),  # pixels, the same downwards
    "radius": (0.065, 0.245),  # of the pen; the height of a shape is 2
    "pressure": (-0.25, 0.25),  # relative growth of the radius from the middle to the end
    "ink": (1.1, 1.6),  # brightness; values above 1 saturate
}
_CENTRE = 14  # the pixel on which the centre of mass lies, as in MNIST
_EDGE = 1.2  # pixels, the width of the pen's soft edge, from full ink to none

# The distortion of a shape, with x and y about -1 to 1 and T the Chebyshev polynomials:
#     x += sum of wobble_ij * T_i(x) * T_j(y) / (i + j); y likewise, with other wobbles
# It distorts the plane rather than single strokes, so strokes that meet stay joined.
_WOBBLE = [(i, n - i) for n in (2, 3, 4) for i in range(n + 1)]
_WOBBLE_SIZE = 0.08  # the largest |wobble_ij|
_MOVE = 0.055  # the largest distance, along x and along y, by which a point of a shape is moved

_CHUNK = 64  # images drawn at a time: two float32 arrays (28, 28, 64) fit the L2 cache


def curve(stroke):
    """A stroke "x,y x,y ..." as closely spaced points (2, S) of a Catmull-Rom spline."""
    return _spline(np.array([point.split(",") for point in stroke.split()], np.float64).T)


def _spline(p):
    """Closely spaced values (D, S) of a Catmull-Rom spline through p (D, P)."""
    if (p[:, 0] == p[:, -1]).all():
        before, after = p[:, -2], p[:, 1]
    else:
        before, after = 2 * p[:, 0] - p[:, 1], 2 * p[:, -1] - p[:, -2]
    q = np.column_stack([before, p, after])
    slope = (q[:, 2:] - q[:, :-2]) / 2
    a, b, u, v = (side[..., None] for side in (p[:, :-1], p[:, 1:], slope[:, :-1], slope[:, 1:]))
    t = np.arange(_DETAIL) / _DETAIL
    # Cubic Hermite spline from a to b with slopes u and v
    curve = a + t * (u + t * (3 * (b - a) - 2 * u - v + t * (2 * (a - b) + u + v)))
    return np.column_stack([curve.reshape(len(p), -1), p[:, -1]])


def _glyph(shape):
    """A shape as (places (2, _MOVABLE), weights (_MOVABLE, _POINTS)), zero beyond its points.

    places: of its different points, y from -1 to 1. A spline is linear in its points, so evenly
    spaced points of the strokes are sums of the places with these weights.
    """
    names = list(dict.fromkeys(shape.replace("/", " ").split()))
    strokes = [stroke.split() for stroke in shape.split("/")]
    identity = np.eye(_MOVABLE)
    weights = [_spline(identity[:, [names.index(name) for name in s]]) for s in strokes]
    weights = np.concatenate(weights, axis=1)
    curves = [curve(stroke) for stroke in shape.split("/")]
    # Distances between neighbouring points of a stroke; 0 from one stroke to the next.
    steps = [np.append(0, np.sqrt((np.diff(c) ** 2).sum(0))) for c in curves]
    way = np.cumsum(np.concatenate(steps))
    at = np.linspace(0, way[-1], _POINTS)
    after = np.clip(np.searchsorted(way, at), 1, len(way) - 1)
    part = (at - way[after - 1]) / (way[after] - way[after - 1])
    weights = weights[:, after - 1] * (1 - part) + weights[:, after] * part
    places = np.zeros((2, _MOVABLE))
    places[:, : len(names)] = np.array([name.split(",") for name in names], np.float64).T
    drawn = (places[..., None] * weights).sum(1)
    low, high = drawn.min(1, keepdims=True), drawn.max(1, keepdims=True)
    return (2 * places - low - high) / (high - low)[1], weights


_MOVABLE = max(len(set(s.replace("/", " ").split())) for d in range(10) for s in GLYPHS[d])
_PLACES, _WEIGHTS = (
    np.stack(arrays, axis=-1).astype(np.float32)
    for arrays in zip(*(_glyph(s) for d in range(10) for s in GLYPHS[d]), strict=True)
)  # (2, _MOVABLE, shapes), (_MOVABLE, _POINTS, shapes)
_COUNT = np.array([len(GLYPHS[d]) for d in range(10)])
_FIRST = np.cumsum(_COUNT) - _COUNT  # a digit's first shape
_WORDS = 2 + len(_RANGES) + 2 * len(_WOBBLE) + _MOVABLE  # random words per image


def draw_digits(count, seed=0, first=0):
    """Draw the digits `first` to `first + count - 1` of the sequence of 2^32 digits of a seed.

    Returns images (count, 28, 28) uint8, white ink on black, and labels (count,) uint8 from 0 to 9.
    Digit i depends on (seed, i) only: draw_digits(10, first=5) draws the last ten of
    draw_digits(15). Raises ValueError unless count, seed and first are integers from 0 to 2^32 - 1
    and first + count is at most 2^32.
    """
    count, seed = checks.word("count", count), checks.word("seed", seed)
    first = checks.word("first", first)
    if first + count > 1 << 32:
        raise ValueError(
            f"first: got {first}, expected at most {(1 << 32) - count} for {count} digits"
        )
    images = np.empty((count, SIZE, SIZE), np.uint8)
    labels = np.empty(count, np.uint8)
    for start in range(0, count, _CHUNK):
        chunk = slice(start, min(start + _CHUNK, count))
        words = _words(seed, first + np.arange(chunk.start, chunk.stop, dtype=np.int64))
        digit = _choose(words[0], 10)
        shape = _FIRST[digit] + _choose(words[1], _COUNT[digit])
        style_words, wobble_words, move_words = np.split(
            words[2:], np.cumsum([len(_RANGES), 2 * len(_WOBBLE)])
        )
        style = {
            name: rng.draw(low, high, word)
            for (name, (low, high)), word in zip(_RANGES.items(), style_words, strict=True)
        }
        wobble = rng.draw(-_WOBBLE_SIZE, _WOBBLE_SIZE, wobble_words)
        x, y, radius = _transform(*_strokes(shape, move_words), wobble, style)
        images[chunk] = _ink(x, y, radius, style)
        labels[chunk] = digit
    return images, labels


def _words(seed, index):
    """The random words (_WORDS, N) of images `index` (N,), used as the step of the counter."""
    blocks = -(-_WORDS // 4)
    counter = np.zeros((len(index), blocks, 4), np.int64)
    counter[..., 0] = np.arange(blocks)
    counter[..., 1] = index[:, None]
    counter[..., 2] = rng.DIGITS
    key = np.broadcast_to(np.array([seed, 0], np.int64), (len(index) * blocks, 2))
    return rng.philox4x32(counter.reshape(-1, 4), key).reshape(len(index), -1).T[:_WORDS]


def _choose(words, count):
    """Words as integers from 0 to `count` - 1, each about equally likely."""
    return (words.astype(np.int64) * count) >> 32


def _strokes(shape, words):
    """The points x, y (_POINTS, N) of shapes (N,) whose own points are moved at random.

    words (_MOVABLE, N): the upper half of a word moves a point along x, the lower one along y.
    """
    x, y = (
        places + rng.draw(-_MOVE, _MOVE, halves)
        for places, halves in zip(_PLACES[..., shape], (words, words << 16), strict=True)
    )
    weights = _WEIGHTS[..., shape]  # (_MOVABLE, _POINTS, N)
    return ((weights * axis[:, None]).sum(0) for axis in (x, y))


def _transform(x, y, wobble, style):
    """Distort, slant, scale and place points x, y (_POINTS, N).

    Returns x, y and the pen's radius (N,) in pixels. wobble: (2 * len(_WOBBLE), N); style: {name:
    values (N,)} of `_RANGES`.
    """
    tx, ty = _chebyshev(x), _chebyshev(y)
    for term, (i, j) in enumerate(_WOBBLE):
        bend = tx[i] * ty[j] / (i + j)
        x = x + wobble[2 * term] * bend
        y = y + wobble[2 * term + 1] * bend
    x = x * style["width"]
    x, y = x - style["slant"] * y, y - style["tilt"] * x
    longer = np.maximum(x.max(0) - x.min(0), y.max(0) - y.min(0)) + 2 * style["radius"]
    scale = style["side"] / longer
    x, y = (scale * (axis - axis.sum(0) / len(axis)) for axis in (x, y))
    radius = style["radius"] * scale
    margin = radius + 0.5  # pixels between strokes and the border: its pixels stay dark
    x, y = (
        axis + np.clip(_CENTRE + offset, margin - axis.min(0), SIZE - 1 - margin - axis.max(0))
        for axis, offset in ((x, style["x"]), (y, style["y"]))
    )
    return x, y, radius


def _chebyshev(t):
    """The Chebyshev polynomials T_0 .. T_4 at `t`."""
    square = t * t
    return 1, t, 2 * square - 1, (4 * square - 3) * t, 8 * square * (square - 1) + 1


def _ink(x, y, radius, style):
    """Draw a round pen at the points x, y (_POINTS, N), with the radius (N,), all in pixels.

    Returns images (N, 28, 28) uint8.
    """
    along = np.linspace(-1, 1, _POINTS, dtype=np.float32)[:, None]
    pen = radius * (1 + style["pressure"] * along)  # (_POINTS, N)
    grid = np.arange(SIZE, dtype=np.float32)[:, None]
    # With d the distance of a pixel from a point and r the pen's radius there, the point with the
    # smallest d^2 - r^2 gives the pixel most ink. Images are the last axis, so that NumPy's inner
    # loops are long.
    columns = (grid - x[:, None]) ** 2 - (pen * pen)[:, None]  # (_POINTS, 28, N)
    rows = (grid - y[:, None]) ** 2
    nearest = np.full((SIZE, SIZE, x.shape[1]), np.float32(SIZE * SIZE))
    power = np.empty_like(nearest)
    for row, column in zip(rows, columns, strict=True):
        np.add(row[:, None], column, out=power)
        np.minimum(nearest, power, out=nearest)
    # d^2 - r^2 = (d - r) (d + r), about 2 r (d - r) at the edge
    cover = np.clip(0.5 - nearest / (2 * _EDGE * radius), 0, 1)
    return np.rint(255 * np.minimum(style["ink"] * cover, 1)).astype(np.uint8).transpose(2, 0, 1)
