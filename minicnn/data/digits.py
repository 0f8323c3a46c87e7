"""The embedded data set: draws any number of handwritten digits, without a file or network.

To draw a digit, choose one of its shapes in `GLYPHS` at random, then distort, slant, scale and move
it, then draw it with a round pen. The images resemble MNIST's.

Image i of a seed depends on (seed, i) only, and its pixels are the same on every machine. So the
module uses neither a library's sine nor BLAS, whose last bits differ between machines.
"""

import numpy as np

from .. import checks, rng

SIZE = 28  # pixels, the side of an image

# The shapes of each digit. A shape is a list of strokes, separated by "/". A stroke is a smooth
# curve through points x,y (x to the right, y down, about 100 units high); if its first and last
# points are the same, it is closed smoothly. At a corner, one stroke ends and the next one begins.
GLYPHS = {
    0: [
        "30,0 9,14 0,50 9,86 30,100 51,86 60,50 51,14 30,0",
        "37,0 14,8 1,36 2,70 20,97 46,96 67,70 70,34 56,7 37,0",
        "36,0 18,16 8,48 10,82 24,100 40,86 48,52 48,18 36,0",
        "54,1 33,3 10,19 0,54 11,87 34,100 56,81 61,44 47,13 22,0",
    ],
    1: [
        "6,0 5,50 4,100",
        "0,30 13,17 22,0 / 22,0 21,50 20,100",
        "5,28 18,15 26,0 / 26,0 26,50 26,100 / 2,100 26,99 52,100",
        "0,46 14,27 26,0 / 26,0 25,50 24,100",
    ],
    2: [
        "2,24 11,6 31,0 51,9 54,31 40,57 22,77 2,98 / 2,98 30,97 62,98",
        "4,20 22,1 46,7 51,30 38,60 20,87 6,96 1,87 11,79 29,88 46,98 66,88",
        "0,32 9,8 31,0 51,15 47,42 26,70 0,95 / 0,95 17,83 35,89 52,99 72,88",
        "4,10 27,0 49,7 51,30 30,56 8,78 0,97 / 0,97 34,96 72,92",
    ],
    3: [
        "4,12 23,0 46,6 50,25 38,41 20,46 / 20,46 45,50 58,71 46,93 22,100 0,88",
        "4,2 30,2 54,1 / 54,1 40,21 26,40 / 26,40 50,46 58,69 45,94 20,100 0,90",
        "4,14 24,0 46,7 47,27 33,42 17,49 10,43 19,38 38,46 56,62 55,84 34,100 0,92",
        "6,8 24,0 40,6 42,22 32,35 18,39 / 18,39 46,42 62,65 50,92 24,100 0,90",
    ],
    4: [
        "10,0 6,30 2,60 / 2,60 36,59 72,57 / 54,14 50,55 46,100",
        "46,0 24,32 0,66 / 0,66 36,66 74,65 / 46,0 46,50 45,100",
        "4,2 0,30 7,51 29,56 55,50 / 60,0 56,50 51,100",
        "24,0 14,32 0,63 / 0,63 36,62 72,59 / 47,30 43,66 38,100",
    ],
    5: [
        "12,2 8,24 5,46 / 5,46 26,38 49,46 57,69 44,93 20,100 0,89 / 12,2 34,2 58,0",
        "56,0 34,2 12,3 / 12,3 9,24 6,44 / 6,44 30,45 50,56 54,76 40,95 18,100 0,94",
        "60,1 36,0 13,4 / 13,4 6,24 20,38 43,49 55,69 45,92 22,100 0,91",
        "14,4 11,26 10,44 / 10,44 32,38 52,52 53,78 34,98 14,99 2,86 / 14,4 38,6 64,2",
    ],
    6: [
        "48,0 22,17 5,46 3,76 18,98 41,97 54,78 46,59 26,54 9,65 3,76",
        "34,0 18,30 5,60 5,85 22,100 42,93 48,75 36,61 20,63 7,76",
        "42,7 29,0 13,16 3,46 2,76 14,97 34,99 48,84 45,65 30,57 13,64 3,78",
        "56,4 34,12 14,34 2,62 6,90 26,100 50,92 56,72 42,58 20,64 10,82",
    ],
    7: [
        "0,4 30,3 64,2 / 64,2 46,34 32,66 22,100",
        "0,4 30,3 64,2 / 64,2 46,36 32,68 22,100 / 16,54 36,51 60,48",
        "0,20 1,11 2,3 / 2,3 32,4 66,2 / 66,2 50,28 37,62 30,100",
        "0,18 9,3 38,6 70,2 / 70,2 50,28 37,62 34,100",
    ],
    8: [
        "50,18 32,0 10,8 9,30 30,48 51,65 53,88 30,100 6,89 7,66 30,48 48,34 50,18",
        "30,0 11,8 9,32 29,46 50,33 50,9 30,0 / 29,46 6,58 3,84 28,100 54,86 52,59 29,46",
        "54,12 34,0 12,10 13,32 34,51 48,76 34,98 11,95 5,76 22,54 46,34 60,10",
        "32,0 12,7 10,27 32,41 53,27 51,7 32,0 / 32,41 7,55 1,80 30,100 62,82 56,55 32,41",
    ],
    9: [
        "50,14 31,0 9,9 3,31 17,48 38,44 50,22 / 51,4 49,50 46,100",
        "52,24 38,1 13,7 3,31 17,49 39,44 52,24 / 52,24 54,54 46,84 28,100 6,93",
        "50,10 30,0 8,13 4,34 20,45 40,34 52,12 / 52,12 42,52 22,100",
        "46,2 22,4 3,24 8,46 28,48 46,32 54,3 / 54,3 50,52 52,100",
    ],
}
_POINTS = 80  # points of a digit at which the pen is drawn: about 0.7 pixels apart
_DETAIL = 32  # line segments between two points of a stroke, to measure its length

# The style of an image: random parameters, each uniform in its range
_RANGES = {
    "slant": (-0.2, 0.5),  # columns to the right per row up
    "tilt": (-0.15, 0.15),  # rows up per column to the right
    "width": (0.75, 1.3),  # factor on the width of the shape, before it is scaled
    "side": (15.0, 20.0),  # pixels, the longer side of the box around the strokes
    "x": (-2.5, 2.5),  # pixels, from the centre of the image to that of the box, to the right
    "y": (-1.8, 1.8),  # pixels, the same downwards
    "radius": (0.9, 1.8),  # pixels, of the pen
    "pressure": (-0.25, 0.25),  # relative growth of the radius from the middle to the end
    "ink": (0.9, 1.4),  # brightness; values above 1 saturate
}
_EDGE = 1.2  # pixels, the width of the pen's soft edge, from full ink to none

# The distortion of a shape, with x and y about -1 to 1 and T the Chebyshev polynomials:
#     x += sum of wobble_ij * T_i(x) * T_j(y) / (i + j); y likewise, with other wobbles
# It distorts the plane rather than single strokes, so strokes that meet stay joined.
_WOBBLE = [(i, n - i) for n in (2, 3, 4) for i in range(n + 1)]
_WOBBLE_SIZE = 0.14  # the largest |wobble_ij|
_WORDS = 2 + len(_RANGES) + 2 * len(_WOBBLE)  # random words per image

_CHUNK = 64  # images drawn at a time: two float32 arrays (28, 28, 64) fit the L2 cache


def curve(stroke):
    """A stroke "x,y x,y ..." as closely spaced points (2, S) of a Catmull-Rom spline."""
    p = np.array([point.split(",") for point in stroke.split()], np.float64).T  # (2, P)
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
    return np.column_stack([curve.reshape(2, -1), p[:, -1]])


def _glyph(shape):
    """The strokes of a shape as evenly spaced points (2, _POINTS), y from -1 to 1."""
    strokes = [curve(stroke) for stroke in shape.split("/")]
    # Distances between neighbouring points of a stroke; 0 from one stroke to the next.
    steps = [np.append(0, np.sqrt((np.diff(stroke) ** 2).sum(0))) for stroke in strokes]
    way = np.cumsum(np.concatenate(steps))
    at = np.linspace(0, way[-1], _POINTS)
    points = np.stack([np.interp(at, way, axis) for axis in np.concatenate(strokes, axis=1)])
    low, high = points.min(1, keepdims=True), points.max(1, keepdims=True)
    return (2 * points - low - high) / (high - low)[1]


_SHAPES = np.stack([_glyph(s) for d in range(10) for s in GLYPHS[d]], axis=1).astype(np.float32)
_COUNT = np.array([len(GLYPHS[d]) for d in range(10)])
_FIRST = np.cumsum(_COUNT) - _COUNT  # a digit's first shape in _SHAPES (2, shapes, _POINTS)


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
        style_words, wobble_words = np.split(words[2:], [len(_RANGES)])
        style = {
            name: rng.draw(low, high, word)
            for (name, (low, high)), word in zip(_RANGES.items(), style_words, strict=True)
        }
        wobble = rng.draw(-_WOBBLE_SIZE, _WOBBLE_SIZE, wobble_words)
        x, y = _transform(*_SHAPES[:, shape].transpose(0, 2, 1), wobble, style)
        images[chunk] = _ink(x, y, style)
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


def _transform(x, y, wobble, style):
    """Distort, slant, scale and move points x, y (_POINTS, N). Returns x, y in pixels.

    wobble: (2 * len(_WOBBLE), N); style: {name: values (N,)} of `_RANGES`.
    """
    tx, ty = _chebyshev(x), _chebyshev(y)
    for term, (i, j) in enumerate(_WOBBLE):
        bend = tx[i] * ty[j] / (i + j)
        x = x + wobble[2 * term] * bend
        y = y + wobble[2 * term + 1] * bend
    x = x * style["width"]
    x, y = x - style["slant"] * y, y - style["tilt"] * x
    scale = style["side"] / np.maximum(x.max(0) - x.min(0), y.max(0) - y.min(0))
    x, y = (scale * (axis - (axis.min(0) + axis.max(0)) / 2) for axis in (x, y))
    middle = (SIZE - 1) / 2
    return x + (middle + style["x"]), y + (middle + style["y"])


def _chebyshev(t):
    """The Chebyshev polynomials T_0 .. T_4 at `t`."""
    square = t * t
    return 1, t, 2 * square - 1, (4 * square - 3) * t, 8 * square * (square - 1) + 1


def _ink(x, y, style):
    """Draw a round pen at the points x, y (_POINTS, N). Returns images (N, 28, 28) uint8."""
    along = np.linspace(-1, 1, _POINTS, dtype=np.float32)[:, None]
    radius = style["radius"] * (1 + style["pressure"] * along)  # (_POINTS, N)
    grid = np.arange(SIZE, dtype=np.float32)[:, None]
    # With d the distance of a pixel from a point and r the pen's radius there, the point with the
    # smallest d^2 - r^2 gives the pixel most ink. Images are the last axis, so that NumPy's inner
    # loops are long.
    columns = (grid - x[:, None]) ** 2 - (radius * radius)[:, None]  # (_POINTS, 28, N)
    rows = (grid - y[:, None]) ** 2
    nearest = np.full((SIZE, SIZE, x.shape[1]), np.float32(SIZE * SIZE))
    power = np.empty_like(nearest)
    for row, column in zip(rows, columns, strict=True):
        np.add(row[:, None], column, out=power)
        np.minimum(nearest, power, out=nearest)
    # d^2 - r^2 = (d - r) (d + r), about 2 r (d - r) at the edge
    cover = np.clip(0.5 - nearest / (2 * _EDGE * style["radius"]), 0, 1)
    return np.rint(255 * np.minimum(style["ink"] * cover, 1)).astype(np.uint8).transpose(2, 0, 1)
