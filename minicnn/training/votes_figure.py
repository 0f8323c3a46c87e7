"""The figure of minicnn.predict --images: photos, their digits as the nets saw them, the votes."""

import numpy as np

from ..data.labels import short_names
from ..drawing import (
    FAINT,
    FOOT,
    HEAD,
    MARGIN,
    QUIET,
    TEXT,
    TILE,
    TRAINING,
    VALIDATION,
    WIDTH,
    WRONG,
    page,
    save,
    visible,
)
from ..files import brief, printable

MOST_SIDE = 1600  # pixels, of a picture
MOST_DIGITS = 40  # are drawn

_ACROSS = 8  # digits in a row
_CELL = (WIDTH - 2 * MARGIN) // _ACROSS  # pixels, the width of a digit and its votes
_BARS = 84  # pixels, the height of the votes
_ROW = TILE + _BARS + 128  # pixels, with the heading and the names of the classes
_CAPTION = 36  # pixels above a photo
_MOST_HEIGHT = 520  # pixels, of a photo
_MOST_CLASSES = 12  # all are shown; of more classes the most probable ones
_SHOWN_CLASSES = 8


def votes(path, sheets, probabilities, answers, classes):
    """Write photos, their digits and what the nets say of them as a PNG.

    sheets: objects with a name, a picture (H, W) or (H, W, 3) uint8, its scale shrunk, digits (n,
    28, 28) uint8 and boxes (n, 4) in pixels of the file. probabilities: (nets, all digits,
    classes). answers: for each digit an object with a name, probability, agreeing, nets, is_unsure.
    At most 40 digits are drawn.
    """
    save(path, _votes, sheets, probabilities, answers, classes)


def _votes(sheets, probabilities, answers, classes):
    total, firsts = len(answers), np.cumsum([0, *(len(sheet.digits) for sheet in sheets)])
    shown = [
        (sheet, first, min(len(sheet.digits), MOST_DIGITS - first))
        for sheet, first in zip(sheets, firsts, strict=False)
        if first < MOST_DIGITS
    ]
    heights = [
        _CAPTION + _photo_size(sheet)[0] + 24 + -(-count // _ACROSS) * _ROW
        for sheet, _, count in shown
    ]
    height = HEAD + sum(heights) + FOOT
    some = f"The first {MOST_DIGITS} of {total:,} digits" if total > MOST_DIGITS else "Each digit"
    notes = (
        f"{some} as the nets see it. Bars: share of the nets that vote for a class; dots: mean "
        "probability. Red: the ensemble is unsure."
    )
    figure = page(height, "Digits found, and how the nets vote", notes)
    names = np.array(short_names(classes, 6), object)
    top = HEAD - 32
    for (sheet, first, count), own in zip(shown, heights, strict=True):
        unsure = [answer.is_unsure for answer in answers[first : first + len(sheet.digits)]]
        _photo(figure, height, top, sheet, unsure)
        below = top + _CAPTION + _photo_size(sheet)[0] + 24
        for i in range(count):
            row, column = divmod(i, _ACROSS)
            corner = MARGIN + column * _CELL, below + row * _ROW
            digit = first + i
            _digit(figure, height, corner, i + 1, sheet.digits[i], answers[digit])
            _bars(figure, height, corner, probabilities[:, digit], names)
        top += own
    return figure


def _photo_size(sheet):
    """(height, width) of a photo on the page, in pixels."""
    height, width = sheet.picture.shape[:2]
    zoom = min((WIDTH - 2 * MARGIN) / width, _MOST_HEIGHT / height)
    return round(height * zoom), round(width * zoom)


def _axes(figure, page_height, left, top, width, height):
    """Axes at a place that is given in pixels from the upper left corner."""
    box = left / WIDTH, 1 - (top + height) / page_height, width / WIDTH, height / page_height
    axes = figure.add_axes(box, xticks=[], yticks=[])
    axes.grid(False)
    return axes


def _photo(figure, page_height, top, sheet, unsure):
    """The photo, with a numbered box around each digit."""
    height, width = _photo_size(sheet)
    axes = _axes(figure, page_height, MARGIN, top + _CAPTION, width, height)
    axes.spines[:].set_visible(True)
    axes.set_title(_end(sheet.name), loc="left", size=9, color=QUIET, parse_math=False)
    rows, columns = sheet.picture.shape[:2]
    axes.imshow(visible(sheet.picture), cmap="gray", vmin=0, vmax=255, aspect="auto")
    for number, (box, is_unsure) in enumerate(zip(sheet.boxes, unsure, strict=True), start=1):
        top, bottom, left, right = box / sheet.shrunk - 0.5
        color = WRONG if is_unsure else VALIDATION
        axes.plot(
            [left, right, right, left, left], [top, top, bottom, bottom, top], color, linewidth=1.5
        )
        label = {"facecolor": color, "edgecolor": "none", "pad": 1.5}
        axes.text(left, top, number, size=8, color="white", va="bottom", bbox=label)
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))


def _digit(figure, page_height, corner, number, image, answer):
    """What the nets saw, below the answer."""
    left, top = corner
    axes = _axes(figure, page_height, left, top + 44, TILE - 1e-6, TILE - 1e-6)
    axes.spines[:].set_visible(True)
    # As the nets see it: white on black
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    color = WRONG if answer.is_unsure else TEXT
    name = brief(answer.name, 8)
    size = 11 if len(name) <= 6 else 8
    style = {"color": color, "weight": "bold", "size": size, "parse_math": False}
    axes.set_title(f"{number}:  {name}", loc="left", pad=18, **style)
    sure = "> 99 %" if answer.probability > 0.99 else f"{100 * answer.probability:.0f} %"
    text = f"{sure}, {answer.agreeing} of {answer.nets}"
    axes.text(0, 1.05, text, size=8, color=color, transform=axes.transAxes)


def _bars(figure, page_height, corner, probabilities, names):
    """Bars for the votes of the nets, dots for their mean probability. probabilities: (E, C)."""
    left, top = corner
    axes = _axes(figure, page_height, left, top + 44 + TILE + 10, _CELL - 24, _BARS)
    mean = probabilities.mean(axis=0, dtype=np.float64)
    share = np.bincount(probabilities.argmax(axis=1), minlength=len(mean)) / len(probabilities)
    chosen = np.arange(len(mean))
    if len(mean) > _MOST_CLASSES:
        chosen = np.sort(np.argsort(-mean, kind="stable")[:_SHOWN_CLASSES])
    places = np.arange(len(chosen))
    axes.bar(places, share[chosen], width=0.7, color=VALIDATION)
    axes.plot(places, mean[chosen], "o", color=TRAINING, markersize=3.5, markeredgecolor="white")
    axes.set(xlim=(-0.7, len(chosen) - 0.3), ylim=(-0.06, 1.06))
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    long = max(map(len, names[chosen])) > 1
    axes.set_xticks(
        places, [name.replace("$", r"\$") for name in names[chosen]], size=6 if long else 8
    )
    axes.tick_params(length=0, pad=2, rotation=90 if long else 0)


def _end(path, most=100):
    """A path without its beginning if it is long, in printable characters."""
    return printable(path if len(path) <= most else "..." + path[-most:])
