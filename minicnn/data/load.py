"""Loads a data set: Kaggle's CSV files, MNIST's IDX files, MNIST downloaded, or embedded digits.

    (x_train, y_train), (x_test, y_test) = load_data("digits")

formats.py reads the files, download.py fetches MNIST, digits.py draws the embedded digits. split.py
splits a training set for each net.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..files import DataError
from .download import FILES, fetch_mnist
from .formats import read_csv, read_idx_pair

_CSV = "train.csv", "test.csv"
_IDX = tuple(name.removesuffix(".gz") for name in FILES)
_EXPECTED = (
    f"Kaggle's train.csv (optional: test.csv), or MNIST's {_IDX[0]} and {_IDX[1]}"
    f" (optional: {_IDX[2]} and {_IDX[3]}), each plain or .gz"
)


DIGITS = tuple("0123456789")


@dataclass(frozen=True)
class DataSet:
    """A data set as it was understood: images, labels, and the names of the classes.

    Images are uint8, (N, H, W) in grey or (N, H, W, C) in C > 1 channels. Labels are integers from
    0: label k is the class named classes[k]. What a source has not is None.
    """

    x_train: np.ndarray | None
    y_train: np.ndarray | None
    x_test: np.ndarray | None
    y_test: np.ndarray | None
    classes: tuple = DIGITS
    description: str = ""  # one line, such as "60,000 images 28x28, 10 classes 0..9"
    test_ids: tuple | None = None  # names of the id and label columns, the ids of the test images


def load(source, progress=True, shape=None):
    """The DataSet of a source: see load_data. Raises DataError.

    shape: (H, W) or (H, W, C) of an image in a CSV file (default: from the number of columns).
    """
    (x_train, y_train), (x_test, y_test) = load_data(source, progress)
    return DataSet(x_train, y_train, x_test, y_test)


def load_data(source, progress=True):
    """Images and labels, ((x_train, y_train), (x_test, y_test)).

    source: "digits": embedded, 6,000 training and 2,000 test images; "mnist": downloaded once; or
    the path of a folder with Kaggle's CSV files or MNIST's IDX files.
    progress: whether to show a download's progress on stderr.
    Images are uint8 (N, 28, 28), labels uint8 (N,) from 0 to 9. Labels are None if the file has
    none (Kaggle's test.csv); the test pair is (None, None) without a test file. Raises DataError.
    """
    if source == "digits":
        from .digits import draw_digits  # noqa: PLC0415

        return draw_digits(6_000), draw_digits(2_000, first=6_000)
    if source == "mnist":
        folder = fetch_mnist(progress=progress)
        paths = [folder / name for name in FILES]
        return read_idx_pair(*paths[:2]), read_idx_pair(*paths[2:])
    return _read_folder(_folder(source))


def load_test(source, progress=True, shape=None, classes=None):
    """The DataSet of a source's test images; x_train and y_train are None.

    A folder needs no training files. classes: the names of a network's classes; labels count them
    (default: the classes that the test labels have). Raises DataError, also if there are no test
    images, or if a label is none of `classes`.
    """
    if source in ("digits", "mnist"):
        test = load_data(source, progress)[1]
    else:
        test = _read_folder(_folder(source), need_train=False)[1]
    if test[0] is None:
        raise DataError(f"{source}: found no test images, expected {_CSV[1]} or {_IDX[2]}")
    return DataSet(None, None, *test)


def _folder(source):
    if not isinstance(source, (str, os.PathLike)):
        raise DataError(f"source: got {source!r}, expected 'digits', 'mnist' or a folder")
    return Path(source)


def _read_folder(folder, need_train=True):
    try:
        content = sorted(os.listdir(folder))
        train_csv, test_csv = (_find(folder, name) for name in _CSV)
        idx = [_find(folder, name) for name in _IDX]
    except OSError as error:
        raise DataError(
            f"{folder}: {error.strerror or error}; expected a folder with {_EXPECTED}"
        ) from None
    found = [path.name for path in (train_csv, test_csv, *idx) if path]
    if any(idx) and (train_csv or test_csv):
        raise DataError(
            f"{folder}: found files of both kinds, {', '.join(found)}; expected {_EXPECTED}"
        )
    if train_csv or (test_csv and not need_train):
        train = read_csv(train_csv) if need_train else (None, None)
        return train, read_csv(test_csv, labelled=False) if test_csv else (None, None)
    whole = [any(pair) == all(pair) for pair in (idx[:2], idx[2:])]
    if all(whole) and (all(idx[:2]) or (all(idx[2:]) and not need_train)):
        train = read_idx_pair(*idx[:2]) if need_train else (None, None)
        return train, read_idx_pair(*idx[2:]) if idx[2] else (None, None)
    found = found or content
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    raise DataError(
        f"{folder}: found {', '.join(found[:5]) or 'nothing'}{more}; expected {_EXPECTED}"
    )


def _find(folder, name):
    """The path of the file `name`, plain or .gz; None if absent.

    Some archives name it with ".idx" in place of "-idx".
    """
    for variant in (name, name.replace("-idx", ".idx")):
        for suffix in ("", ".gz"):
            if (path := folder / f"{variant}{suffix}").is_file():
                return path
    return None


def fingerprint(images, labels=None):
    """A SHA-256, in hexadecimal, of the types, shapes and values of both arrays."""
    digest = hashlib.sha256()
    for array in (images, np.empty(0) if labels is None else labels):
        digest.update(f"{array.dtype.str} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()
