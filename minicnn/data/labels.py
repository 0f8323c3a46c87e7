"""Labels as files have them, numbers or short texts, and the classes that they name."""

import re
from dataclasses import dataclass

import numpy as np

from ..files import DataError, brief

MAX_CLASSES = 1000
DIGITS = tuple("0123456789")

_LONGEST_NAME = 40  # characters
_NUMBER = re.compile(r"[+-]?[0-9]{1,18}(\.0*)?")
_UPPER = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_MERGED = DIGITS + _UPPER + tuple("abdefghnqrt")
# The classes of EMNIST's splits. Source: G. Cohen, S. Afshar, J. Tapson, A. van Schaik, "EMNIST: an
# extension of MNIST to handwritten letters" (2017).
_EMNIST = {
    "balanced": _MERGED,
    "byclass": DIGITS + _UPPER + tuple("abcdefghijklmnopqrstuvwxyz"),
    "bymerge": _MERGED,
    "digits": DIGITS,
    "letters": ("", *_UPPER),  # labels begin at 1
    "mnist": DIGITS,
}


@dataclass(frozen=True)
class Labels:
    """The labels of a file: label i is names[codes[i]].

    places[code] says where the file has a name first, such as "train.csv, line 7". known: all
    classes of the data set, where its name tells them.
    """

    codes: np.ndarray  # integers (N,)
    names: tuple
    places: tuple
    known: tuple | None = None


def label_name(text):
    """The name of a label in a text file: a number without zeros that say nothing, or a text.

    None if it cannot be a label.
    """
    text = text.strip()
    if _NUMBER.fullmatch(text):
        return str(int(text.partition(".")[0]))
    fine = 1 <= len(text) <= _LONGEST_NAME and text.isprintable() and text.lower() != "nan"
    return text if fine else None


def integer_labels(values, file):
    """The Labels of the integers (N,) in a file. Raises DataError."""
    distinct, first, codes = np.unique(values, return_index=True, return_inverse=True)
    places = [f"{file}: label {i + 1} of {len(values)}" for i in first[: MAX_CLASSES + 1]]
    if len(distinct) > MAX_CLASSES:
        raise too_many(places[-1])
    return Labels(codes.reshape(-1), tuple(str(int(v)) for v in distinct), tuple(places))


def too_many(place):
    """The DataError for the first label that makes one class too many."""
    return DataError(
        f"{place}: got more than {MAX_CLASSES:,} different labels, expected 2 to {MAX_CLASSES:,}"
        " classes"
    )


def as_emnist(name, images, labels):
    """(images, labels, notes) of a file with this name; those of EMNIST are made usable.

    EMNIST's images (N, H, W) are stored transposed, and its labels are numbers of characters.
    `labels` may be None. Raises DataError for a label that the split has not.
    """
    found = re.match(r"emnist[-_]([a-z]+)[-_]", name.lower())
    if found is None or found[1] not in _EMNIST:
        return images, labels, ()
    images = np.ascontiguousarray(images.swapaxes(1, 2))
    if labels is not None:
        labels = _named(labels, _EMNIST[found[1]])
    return images, labels, ("transposed as EMNIST stores them",)


def _named(labels, names):
    for name, place in zip(labels.names, labels.places, strict=True):
        if not (name.isdecimal() and int(name) < len(names) and names[int(name)]):
            first = 0 if names[0] else 1
            raise DataError(f"{place}: got {name!r}, expected {first} to {len(names) - 1}")
    named = tuple(names[int(name)] for name in labels.names)
    return Labels(labels.codes, named, labels.places, tuple(filter(None, names)))


def classes_of(labels, file):
    """The classes of the labels of a training set, in order. Raises DataError.

    Labels from 0 to 9 in a small file are digits, of which it lacks some.
    """
    if labels.known:
        return labels.known
    if set(labels.names) <= set(DIGITS) and _lacks_digits(labels):
        return DIGITS
    if len(labels.names) < 2:
        raise DataError(
            f"{file}: got the label {labels.names[0]!r} only, expected 2 to {MAX_CLASSES:,} classes"
        )
    return tuple(sorted(labels.names, key=_order))


def _lacks_digits(labels):
    """Whether these are probably some of the ten digits, and not all classes."""
    numbers = sorted(map(int, labels.names))
    have_gaps = numbers[-1] - numbers[0] >= len(numbers)
    return len(numbers) < 2 or len(labels.codes) < (100 if have_gaps else 5 * len(numbers))


def _order(name):
    """Numbers come first, as numbers; then texts."""
    number = _NUMBER.fullmatch(name)
    return (not number, int(name) if number else 0, name)


def class_numbers(labels, classes):
    """The classes of labels, counted from 0: (N,) uint8, or uint16 for more than 256 classes.

    Raises DataError for a label that is none of `classes`.
    """
    number_of = {name: number for number, name in enumerate(classes)}
    for name, place in zip(labels.names, labels.places, strict=True):
        if name not in number_of:
            raise DataError(f"{place}: got {name!r}, expected one of {classes_text(classes)}")
    table = np.array([number_of[name] for name in labels.names])
    return table.astype(np.uint8 if len(classes) <= 256 else np.uint16)[labels.codes]


def short_names(names, most):
    """The names, those of more than `most` characters shortened so that all still differ."""
    half = most // 2
    ways = (
        lambda number, name: brief(name, most),
        lambda number, name: f"{name[:half]}...{name[half - most :]}",
        lambda number, name: f"{name[:half]}...{number}",
    )
    for way in ways:
        short = tuple(n if len(n) <= most else way(i, n) for i, n in enumerate(names, 1))
        if len(set(short)) == len(set(names)):
            break
    return short


def classes_text(classes):
    """The classes in a few words, such as "26 classes A..Z"."""
    first, last = brief(classes[0], 20), brief(classes[-1], 20)
    names = f"{first}..{last}" if ".." not in first + last else f"{first} to {last}"
    if len(classes) <= 3:
        names = ", ".join(classes)
    return f"{len(classes):,} classes {names}"
