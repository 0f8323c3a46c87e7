"""prepare.js: what the networks see of strokes is what handwriting.py makes of a photo of them."""

import numpy as np
import pytest
from javascript import evaluate, needs_node

from minicnn import prepare_digits
from minicnn.data.digits import GLYPHS, curve

pytestmark = needs_node

PREPARE = """
given.map(([strokes, pen]) => {
  const image = prepare(strokes, pen);
  return image && Array.from(image);
})
"""


def prepared(*drawings):
    """The images (28, 28), or None, of drawings (strokes, pen)."""
    images = evaluate(["prepare.js"], PREPARE, drawings)
    return [image and np.array(image).reshape(28, 28) for image in images]


def strokes_of(shape):
    """The strokes of a shape of GLYPHS, about 100 units high."""
    return [curve(stroke).T.tolist() for stroke in shape.split("/")]


def photo(strokes, pen, side=200):
    """A black drawing of strokes on white paper, uint8."""
    points = np.concatenate(strokes)
    start = (side - points.max(axis=0) - points.min(axis=0)) / 2
    rows, columns = np.indices((side, side)) + 0.5
    far = np.full((side, side), np.inf)
    for stroke in strokes:
        for x, y in np.array(stroke) + start:
            far = np.minimum(far, np.hypot(columns - x, rows - y))
    return np.rint(255 * (1 - np.clip(pen / 2 + 0.5 - far, 0, 1))).astype(np.uint8)


def test_a_drawing_and_its_photo_are_the_same_image():
    drawings = [strokes_of(shapes[digit % len(shapes)]) for digit, shapes in GLYPHS.items()]
    found = prepared(*([strokes, 12] for strokes in drawings))
    for image, strokes in zip(found, drawings, strict=True):
        [expected], _ = prepare_digits(photo(strokes, 12))
        # Of 255. Moved by one pixel, most of them would differ by more than 10.
        assert np.abs(image - expected.astype(int)).mean() < 2


def test_the_strokes_of_a_small_drawing_are_thinner_than_on_its_photo():
    strokes = [(np.array(stroke) * 0.3).tolist() for stroke in strokes_of(GLYPHS[0][0])]
    [image] = prepared([strokes, 9])
    [expected], _ = prepare_digits(photo(strokes, 9))
    assert image.sum() < 0.9 * expected.sum()


def test_the_digit_is_fitted_and_its_mass_centred():
    [image] = prepared([strokes_of(GLYPHS[7][0]), 10])
    rows, columns = np.nonzero(image > 127)
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
    mass = image / image.sum()
    at = np.arange(28)
    assert mass.sum(axis=1) @ at == pytest.approx(14, abs=0.05)
    assert mass.sum(axis=0) @ at == pytest.approx(14, abs=0.05)
    assert image.max() == 255


def test_place_and_size_of_the_drawing_do_not_matter():
    strokes = np.array(strokes_of(GLYPHS[2][1])[0])
    first, second = prepared([[strokes.tolist()], 10], [[(3 * strokes + 55).tolist()], 30])
    assert np.abs(first - second).max() <= 1


@pytest.mark.parametrize(("pen", "width"), [(0.5, 1.9), (14, 20 * 14 / 114), (40, 3.5)])
def test_the_width_of_strokes(pen, width):
    [image] = prepared([[[[0, 0], [0, 100]]], pen])
    across = image[10:18].sum(axis=1) / 255  # the ink of a row is the width of the stroke
    assert across == pytest.approx(width, abs=0.1)


@pytest.mark.parametrize("strokes", [[], [[[0.5, 0.5]]], [[[0.5, 0.5], [0.55, 0.5]]]])
def test_a_dot_is_nothing(strokes):
    assert prepared([strokes, 0.1]) == [None]
