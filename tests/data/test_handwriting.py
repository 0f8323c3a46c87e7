"""Digits on photos: found, put in order, and prepared as MNIST's are."""

import time
import tracemalloc

import levels
import numpy as np
import pytest
from digit_files import MNIST, needs_mnist
from runs import python
from scipy import ndimage
from sheets import blown_up, decoded, no_digits, pen_drawing, sheet

import minicnn
from minicnn import load_data, prepare_digits
from minicnn.data.digits import draw_digits
from minicnn.data.strokes import reading_order

IMAGES, LABELS = draw_digits(48, seed=3)
NO_DIGITS = no_digits()


def likeness(image, other):
    """The correlation of two images."""
    return np.corrcoef(image.ravel(), other.ravel())[0, 1]


def centred(image):
    """An image (28, 28) moved so that its mass is around pixel 14, 14: by parts of a pixel, too."""
    mass = image / image.sum()
    move = [14 - mass.sum(axis=1 - axis) @ np.arange(28) for axis in (0, 1)]
    return ndimage.shift(image.astype(float), move, order=1)


# ---- found and in order --------------------------------------------------------------------------


@pytest.mark.full(but="3-dark-PNG|5-light-JPEG|8-dark-JPEG|12-light-PNG")
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("dark", [True, False], ids=["dark", "light"])
@pytest.mark.parametrize("times", [3, 5, 8, 12])
def test_lines_of_eight_are_found_and_ordered(times, dark, kind):
    for line in range(0, 48 if levels.in_full else 8, 8):
        images = IMAGES[line : line + 8]
        digits, boxes = prepare_digits(decoded(sheet(images, times, dark, seed=line), kind))
        assert digits.shape == (8, 28, 28) and digits.dtype == np.uint8
        assert boxes.shape == (8, 4) and (np.diff(boxes[:, 2]) > 0).all()
        for place, (digit, (top, bottom, left, right)) in enumerate(
            zip(digits, boxes, strict=True)
        ):
            own = [likeness(digit, centred(image)) for image in images]
            assert int(np.argmax(own)) == place or own[place] > max(own) - 0.05
            # It is in its cell of 30 old pixels, and not smaller than the embedded digits are.
            assert place * 30 * times <= left < right <= (place + 1) * 30 * times
            assert 14 * times <= max(bottom - top, right - left) <= 24 * times


@pytest.mark.full(but="1-dark|3-light|12-light")
@pytest.mark.parametrize("dark", [True, False], ids=["dark", "light"])
@pytest.mark.parametrize("times", [1, 3, 12])
def test_single_digits_are_found(times, dark):
    calm = {"noise": 2.0} if times == 1 else {}
    for image in IMAGES[: 48 if levels.in_full else 4]:
        digits, boxes = prepare_digits(sheet([image], times, dark, **calm))
        assert len(digits) == 1
        assert likeness(digits[0], centred(image)) > 0.8


@needs_mnist
@pytest.mark.parametrize("dark", [True, False], ids=["dark", "light"])
def test_the_images_of_mnist_are_their_own_preparation(dark):
    _, (images, _) = load_data(MNIST)
    found = []
    for line in range(0, 200 if levels.in_full else 32, 8):
        digits, _ = prepare_digits(decoded(sheet(images[line : line + 8], 4, dark), "JPEG"))
        assert len(digits) == 8
        found.extend(map(likeness, digits, images[line : line + 8]))
    assert np.mean(found) > 0.9 and np.min(found) > 0.75


def test_a_page_is_read_line_by_line():
    lines = [pen_drawing([1, 2, 3, 4], 5), pen_drawing([5, 6, 7], 5), pen_drawing([8, 9, 0], 5)]
    width = max(line.shape[1] for line in lines)
    page = np.concatenate(
        [np.pad(s, ((0, 0), (0, width - s.shape[1])), constant_values=230) for s in lines]
    )
    tilted = np.stack([np.roll(column, i // 20) for i, column in enumerate(page.T)], axis=1)
    alone = [prepare_digits(pen_drawing([digit], 5))[0][0] for digit in (1, 2, 3, 4, 5, 6, 7, 8, 9)]
    for sheet_of_lines in page, tilted:
        digits, _ = prepare_digits(sheet_of_lines)
        assert len(digits) == 10
        for digit, expected in zip(digits, alone, strict=False):
            assert likeness(digit, expected) > 0.8


@pytest.mark.parametrize("pen", [1, 3, 8])
def test_strokes_are_as_wide_as_those_of_mnist_whatever_the_pen(pen):
    digits, _ = prepare_digits(pen_drawing([2, 3, 4, 7], pen, height=120))
    assert len(digits) == 4
    ink = digits.sum(axis=(1, 2)) / 255
    assert (ink > 50).all() and (ink < 196).all()  # MNIST's 1st and 99th percentile without ones
    assert (digits.max(axis=(1, 2)) == 255).all()


@pytest.mark.parametrize("fall", [0.0, 0.01])
def test_ruled_paper(fall):
    digits, _ = prepare_digits(pen_drawing([3, 4, 5, 6, 9], 6, ruled=30, fall=fall))
    expected, _ = prepare_digits(pen_drawing([3, 4, 5, 6, 9], 6))
    assert len(digits) == len(expected) == 5
    assert min(map(likeness, digits, expected)) > 0.85


def test_paper_on_a_dark_table():
    photo = np.random.default_rng(0).normal(60, 5, (320, 700))
    drawn = pen_drawing([2, 5, 8, 9], 5)
    photo[100 : 100 + drawn.shape[0], 120 : 120 + drawn.shape[1]] = drawn
    digits, boxes = prepare_digits(photo.astype(np.uint8))
    expected, places = prepare_digits(drawn)
    assert len(digits) == 4
    assert min(map(likeness, digits, expected)) > 0.95
    assert np.abs(boxes - places - [100, 100, 120, 120]).max() <= 2


def test_pieces_of_a_digit_are_joined():
    drawn = pen_drawing([0, 4, 5, 7], 6, height=100)
    expected, _ = prepare_digits(drawn)
    broken = drawn.copy()
    broken[95:101] = 230  # a gap across all digits
    digits, _ = prepare_digits(broken)
    assert len(digits) == 4 and min(map(likeness, digits, expected)) > 0.8


def test_the_bar_of_a_5_belongs_to_it():
    body = "12,2 8,24 5,46 / 5,46 26,38 49,46 57,69 44,93 20,100 0,89"
    drawn = pen_drawing([f"{body} / 24,2 34,2 58,0", 7, f"{body} / 22,0 34,0 58,-2"], 6, height=100)
    digits, boxes = prepare_digits(drawn)
    [[expected], _] = prepare_digits(pen_drawing([5], 6, height=100))
    assert len(digits) == 3
    assert min(likeness(digits[0], expected), likeness(digits[2], expected)) > 0.85
    assert boxes[0, 1] - boxes[0, 0] > 98 and boxes[2, 1] - boxes[2, 0] > 98


def test_colours_and_the_size_of_the_image_do_not_matter():
    grey = sheet(IMAGES[:4], 4, noise=0)
    colours = np.stack([grey, grey, np.full_like(grey, 200)], axis=-1)
    expected, boxes = prepare_digits(grey)
    digits, same = prepare_digits(colours)
    assert np.abs(same - boxes).max() <= 1 and min(map(likeness, digits, expected)) > 0.99
    large, wide = prepare_digits(grey.repeat(8, axis=0).repeat(8, axis=1))
    assert np.abs(wide / 8 - boxes).max() <= 2 and min(map(likeness, large, expected)) > 0.97


# ---- prepared ------------------------------------------------------------------------------------


def test_a_digit_is_fitted_into_20_pixels_and_centred_by_its_mass():
    shape = np.full((300, 260), 255, np.uint8)
    shape[40:240, 60:90] = 0  # an L: 200 high, 120 wide
    shape[210:240, 60:180] = 0
    [digit], [box] = prepare_digits(shape)
    assert np.abs(box - [40, 240, 60, 180]).max() <= 1
    ink = digit > 127
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    assert np.ptp(rows) + 1 in (19, 20, 21) and np.ptp(columns) + 1 in (11, 12, 13)
    mass = digit / digit.sum()
    assert mass.sum(axis=1) @ np.arange(28) == pytest.approx(14, abs=0.05)
    assert mass.sum(axis=0) @ np.arange(28) == pytest.approx(14, abs=0.05)
    assert ((digit > 20) & (digit < 235)).any()  # anti-aliased


def test_the_public_name():
    assert minicnn.prepare_digits is prepare_digits
    with pytest.raises(AttributeError, match="module 'minicnn' has no attribute 'prepare_digit'"):
        _ = minicnn.prepare_digit


def test_importing_the_package_does_not_import_what_only_photos_need():
    code = "import sys, minicnn.predict; sys.exit('scipy.ndimage' in sys.modules)"
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


# ---- no digits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NO_DIGITS)
def test_nothing_like_a_digit(name):
    digits, boxes = prepare_digits(NO_DIGITS[name])
    assert digits.shape == (0, 28, 28) and digits.dtype == np.uint8
    assert boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("image", "got"),
    [
        (np.zeros((4, 4)), r"float64 \(4, 4\)"),
        (np.zeros((0, 4), np.uint8), r"uint8 \(0, 4\)"),
        (np.zeros((2, 2, 4), np.uint8), r"uint8 \(2, 2, 4\)"),
        (np.zeros(4, np.uint8), r"uint8 \(4,\)"),
        ("photo.png", "'photo.png'"),
    ],
)
def test_other_arrays_are_refused(image, got):
    with pytest.raises(ValueError, match=rf"^image: got {got}, expected uint8 \(H, W\) or"):
        prepare_digits(image)


@pytest.mark.full(beside="test_colours_and_the_size_of_the_image_do_not_matter")
def test_a_huge_image_takes_little_more_memory_than_its_own():
    image = np.full((9_000, 12_000), 220, np.uint8)
    for place, digit in enumerate(IMAGES[:3]):
        left = 2_000 + 3_000 * place
        image[3_000:4_680, left : left + 1_680] -= blown_up(digit, 60).astype(np.uint8) // 2
    tracemalloc.start()
    try:
        start = time.process_time()
        digits, boxes = prepare_digits(image)
        seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(digits) == 3 and (boxes[:, 0] > 3_000).all() and (boxes[:, 1] < 4_680).all()
    assert peak < 2 * image.nbytes
    assert seconds < 30  # about two


# ---- order ---------------------------------------------------------------------------------------


def test_reading_order_of_falling_lines():
    # Two lines of five; the second begins higher than the first ends.
    boxes = [(10 * i + 60 * line, 10 * i + 60 * line + 40, 50 * i, 50 * i + 30)
             for line in range(2) for i in range(5)]  # fmt: skip
    mixed = np.random.default_rng(0).permutation(10)
    order = reading_order(np.array(boxes)[mixed])
    assert mixed[order].tolist() == list(range(10))


def test_reading_order_of_nothing():
    assert reading_order(np.zeros((0, 4), int)).tolist() == []
