"""python -m minicnn.predict --images: finds the digits on photos, and tells how the nets vote.

predict.py reads the arguments. data/photos.py reads the files, data/handwriting.py prepares the
digits as MNIST's are, training/votes_figure.py draws the figure.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import drawing
from .command import check_out_file, images_bar, one_line
from .data.digits import SIZE
from .data.image_files import check_pillow
from .data.photos import photo_files, read_photo
from .files import DataError, printable
from .training import ensemble, prediction, votes_figure
from .training.workers import Interrupted

OUT = Path("digits.png")
UNSURE = (
    "An answer is called unsure if its probability is below 50 %, or fewer than two thirds of the "
    "nets agree."
)


class Sheet(NamedTuple):
    """A photo, and the digits on it."""

    name: str  # of the file
    picture: np.ndarray  # uint8 (H, W) or (H, W, 3), small enough to be kept
    shrunk: float  # pixels of the file for one of `picture`
    digits: np.ndarray  # uint8 (n, 28, 28)
    boxes: np.ndarray  # (n, 4), in pixels of the file


def predict_images(arguments, device, ops, should_stop):
    """Print what the nets make of each digit, and draw it, as the parsed arguments say.

    A file that cannot be read is reported at the end, after the answers for the others: raises
    DataError.
    """
    out = arguments.out or OUT
    check_out_file(out)
    trained = prediction.load_classifier(arguments.checkpoint)
    _check_shape(trained)
    check_pillow("--images")
    sheets, faults = _sheets(photo_files(arguments.images), should_stop)
    digits = np.concatenate([np.zeros((0, SIZE, SIZE), np.uint8), *(s.digits for s in sheets)])
    if len(digits):
        views = arguments.views or trained.views
        with images_bar(len(trained.nets) * views * len(digits), arguments.quiet) as bar:
            probabilities = prediction.probabilities_of(
                trained, digits, views, device, ops, arguments.workers, bar.update, should_stop
            )
        answers = _answers(probabilities, trained.architecture.classes)
    else:
        answers = []
    _print(sheets, answers)
    if answers:
        _draw(out, sheets, probabilities, answers, trained.architecture.classes)
    for fault in faults[:-1]:
        print(f"minicnn.predict: error: {one_line(fault)}", file=sys.stderr)
    if faults:
        raise faults[-1]


def _check_shape(trained):
    shape = trained.architecture.input_shape
    if shape != (SIZE, SIZE, 1):
        raise DataError(
            f"{trained.path}: was trained on {trained.architecture.purpose}, expected "
            f"{SIZE}x{SIZE} images in grey: --images prepares digits in that size"
        )


def _sheets(paths, should_stop):
    """(the Sheets in files, the DataErrors of those that cannot be read)."""
    # It imports scipy.ndimage, which takes a while; worker processes need neither.
    from .data.handwriting import prepare_digits  # noqa: PLC0415

    sheets, faults = [], []
    for path in paths:
        if should_stop():
            raise Interrupted
        try:
            photo = read_photo(path)
        except DataError as fault:
            faults.append(fault)
            continue
        digits, boxes = prepare_digits(photo.pixels)
        step = -(-max(photo.pixels.shape[:2]) // votes_figure.MOST_SIDE)
        picture = photo.pixels[::step, ::step].copy()
        boxes = boxes * photo.reduced
        sheets.append(Sheet(str(path), picture, step * photo.reduced, digits, boxes))
    return sheets, faults


# ---- answers -------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """What the ensemble says of a digit."""

    name: str  # of its class
    probability: float  # the mean of the nets
    agreeing: int  # nets whose most probable class it is
    nets: int

    @property
    def is_unsure(self):
        return self.probability < 0.5 or 3 * self.agreeing < 2 * self.nets


def _answers(probabilities, classes):
    """A list of Answers from probabilities (nets, n, classes)."""
    labels = ensemble.vote(probabilities)
    agreeing = (probabilities.argmax(axis=2) == labels).sum(axis=0)
    means = probabilities.mean(axis=0, dtype=np.float64)[np.arange(len(labels)), labels]
    return [
        Answer(classes[label], float(mean), int(count), len(probabilities))
        for label, mean, count in zip(labels, means, agreeing, strict=True)
    ]


def _print(sheets, answers):
    """Print a line for each digit, or that there is none, and a summary."""
    remaining = iter(answers)
    for sheet in sheets:
        name = printable(sheet.name)
        if not len(sheet.digits):
            print(f"{name}: nothing like a digit is found")
        for number, (top, bottom, left, right) in enumerate(sheet.boxes, start=1):
            answer = next(remaining)
            print(
                f"{name}: digit {number}, rows {top + 1} to {bottom}, columns {left + 1} to "
                f"{right}: {printable(answer.name)}, probability {answer.probability:.4f}, "
                f"{answer.agreeing} of {answer.nets} nets agree{', unsure' * answer.is_unsure}"
            )
    if sheets:
        unsure = sum(answer.is_unsure for answer in answers)
        print(
            f"{_count(len(answers), 'digit')} in {_count(len(sheets), 'image')}, "
            f"{unsure or 'none'} unsure"
        )


def _count(number, noun):
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _draw(out, sheets, probabilities, answers, classes):
    """Write the figure, if matplotlib is there."""
    if not drawing.available():
        print(
            'no figure, because matplotlib is missing: pip install "minicnn[figures]"',
            file=sys.stderr,
        )
        return
    found = [sheet for sheet in sheets if len(sheet.digits)]
    votes_figure.votes(out, found, probabilities, answers, classes)
    print(f"Figure: {out}")
