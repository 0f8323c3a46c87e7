"""Loads a data set: CSV, IDX and .npz files, folders of images, MNIST downloaded, drawn digits.

    (x_train, y_train), (x_test, y_test) = load_data("digits")

folders.py finds the files; csv_files.py, idx_files.py, npz_files.py and image_folder.py read them;
labels.py makes classes of the labels. download.py fetches MNIST, digits.py draws the embedded
digits. split.py splits a training set for each net.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..files import DataError
from .csv_files import read_csv
from .download import FILES, fetch_mnist
from .folders import contents, find_files, npz_files
from .idx_files import is_idx, read_idx_pair
from .image_files import ENDINGS
from .image_folder import read_image_folder
from .labels import DIGITS, Labels, class_numbers, classes_of, classes_text
from .npz_files import read_npz
from .sources import READABLE, File, Part, members, size_text, sort_of

_ZIP = sort_of(b"PK\3\4")


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
    test_ids: tuple | None = None  # names of the id and label columns, ids of the test images


def load(source, progress=True, shape=None):
    """The DataSet of a source. Raises DataError.

    source: "digits": embedded, 6,000 training and 2,000 test images; "mnist": downloaded once; or
    the path of a folder, a zip archive or a file of a data set. In a folder with several data sets,
    FOLDER/NAME is the one whose files begin with NAME, such as FOLDER/emnist-letters.
    progress: whether to show a download's progress on stderr. shape: (H, W) or (H, W, C) of an
    image; a CSV file does not say it (default: a square, or three planes of a square).
    """
    return _load(source, progress, shape)


def load_data(source, progress=True):
    """Images and labels of load(source), ((x_train, y_train), (x_test, y_test)).

    Images are uint8 (N, H, W) or (N, H, W, C); labels are integers (N,) from 0, None if the file
    has none (Kaggle's test.csv). The test pair is (None, None) without test files. Raises
    DataError.
    """
    data = load(source, progress)
    return (data.x_train, data.y_train), (data.x_test, data.y_test)


def load_test(source, progress=True, shape=None, classes=None):
    """The DataSet of a source's test images; x_train and y_train are None.

    A folder needs no training files, and a CSV file of its own holds test images. classes: the
    names of a network's classes; labels count them (default: the classes that the test labels
    have). Raises DataError, also if there are no test images, or if a label is none of `classes`.
    """
    data = _load(source, progress, shape, False, classes)
    if data.x_test is None:
        raise DataError(f"{source}: found no test images, expected test.csv or t10k-images")
    return data


def _load(source, progress, shape, need_train=True, classes=None):
    shape = _checked_shape(shape)
    if source == "digits":
        train, test = (_drawn(6_000, 0) if need_train else None), _drawn(2_000, 6_000)
    elif source == "mnist":
        folder = fetch_mnist(progress=progress)
        files = [File(folder / name) for name in FILES]
        train = read_idx_pair(*files[:2]) if need_train else None
        test = read_idx_pair(*files[2:])
    elif isinstance(source, (str, os.PathLike)):
        train, test = _read(Path(source), need_train, shape)
    else:
        raise DataError(f"source: got {source!r}, expected 'digits', 'mnist', a folder or a file")
    for part in train, test:
        if part and shape and part.images.shape[1:] != shape:
            got, expected = size_text(part.images.shape[1:]), size_text(shape)
            raise DataError(f"{part.file}: got images {got}, expected the shape {expected}")
    return _data_set(train, test, classes)


def _checked_shape(shape):
    """The shape as Part.images have it, without a single channel; None if there is none."""
    if shape is None:
        return None
    whole = all(isinstance(length, (int, np.integer)) and length > 0 for length in shape)
    if len(shape) not in (2, 3) or not whole:
        raise DataError(f"shape: got {shape!r}, expected (H, W) or (H, W, C)")
    return tuple(shape[:2] if shape[2:] == (1,) else shape)


def _drawn(count, first):
    from .digits import draw_digits  # noqa: PLC0415

    images, labels = draw_digits(count, first=first)
    return Part("digits", images, Labels(labels, DIGITS, ("digits",) * len(DIGITS), DIGITS))


def _data_set(train, test, classes):
    """The DataSet of two Parts; either may be None. Raises DataError if they do not go together."""
    if train and test and train.images.shape[1:] != test.images.shape[1:]:
        size, expected = (size_text(part.images.shape[1:]) for part in (test, train))
        raise DataError(f"{test.file}: got images {size}, expected {expected} as for training")
    labelled = next((part for part in (train, test) if part and part.labels), None)
    if classes is None and labelled:
        classes = classes_of(labelled.labels, labelled.file)
    arrays, ids = [], None
    for part in train, test:
        labels = class_numbers(part.labels, classes) if part and part.labels else None
        arrays += [part and part.images, labels]
    if test and test.ids:
        ids = (test.ids[0], (labelled or test).label_name, test.ids[1])
    return DataSet(*arrays, classes or DIGITS, _description(train or test, classes), ids)


def _description(part, classes):
    if part is None:
        return ""
    texts = [f"{len(part.images):,} images {size_text(part.images.shape[1:])}"]
    return ", ".join([*texts, *([classes_text(classes)] if classes else []), *part.notes])


# --- Files ----------------------------------------------------------------------------------------


def _read(path, need_train, shape):
    """(training Part, test Part) of a path; what is absent or not needed is None."""
    if path.is_dir():
        return _read_folder(path, need_train, shape)
    if path.is_file():
        return _read_file(path, need_train, shape)
    if path.exists():
        raise DataError(f"{path}: neither a folder nor a file; expected {READABLE}")
    parent = path.parent
    if parent.is_dir() or (parent.is_file() and sort_of(File(parent).start()) == _ZIP):
        found = find_files(parent, need_train, wanted=path.name)
        if found:
            return _read_set(found, need_train, shape)
    raise DataError(f"{path}: No such file or directory; expected a folder with {READABLE}")


def _read_folder(folder, need_train, shape):
    if found := find_files(folder, need_train, deep=False):
        return _read_set(found, need_train, shape)
    if len(arrays := npz_files(folder)) == 1:
        return read_npz(arrays[0], need_train)
    if parts := read_image_folder(folder, need_train):
        return parts
    if found := find_files(folder, need_train):
        return _read_set(found, need_train, shape)
    raise DataError(f"{folder}: found {contents(folder)}; expected {READABLE}")


def _read_file(path, need_train, shape):
    start = File(path).start()
    if sort_of(start) == _ZIP or (sort_of(start) is None and path.suffix.lower() == ".npz"):
        inside = members(path)
        if any(file.member.endswith(".npy") for file in inside):
            return read_npz(path, need_train)
        if found := find_files(path, need_train):
            return _read_set(found, need_train, shape)
        if any(file.name.lower().endswith(ENDINGS) for file in inside):
            raise DataError(f"{path}: got a zip archive of images, expected a folder of them")
        raise DataError(f"{path}: found {contents(path)}; expected {READABLE}")
    found = find_files(path.parent, need_train, wanted=path.name, deep=False)
    alone = not need_train and found and found.files.get(("train", "csv")) == File(path)
    if found and not alone and (need_train or any(part == "test" for part, _ in found.files)):
        return _read_set(found, need_train, shape)
    if is_idx(start):
        raise DataError(
            f"{path}: got an IDX file alone, expected images and labels, named as MNIST's are"
        )
    if sort := sort_of(start):
        raise DataError(f"{path}: got {sort}; expected {READABLE}")
    part = read_csv(File(path), need_train, shape)
    return (part, None) if need_train else (None, part)


def _read_set(found, need_train, shape):
    files, train, test = found.files, None, None
    if ("train", "csv") in files or ("test", "csv") in files:
        if need_train:
            train = read_csv(files["train", "csv"], True, shape)
            shape = train.images.shape[1:]
        if ("test", "csv") in files:
            test = read_csv(files["test", "csv"], False, shape)
        return train, test
    train, test = (
        read_idx_pair(files[part, "images"], files[part, "labels"])
        if (part, "images") in files and (need_train or part == "test")
        else None
        for part in ("train", "test")
    )
    return train, test


def fingerprint(images, labels=None):
    """A SHA-256, in hexadecimal, of the types, shapes and values of both arrays."""
    digest = hashlib.sha256()
    for array in (images, np.empty(0) if labels is None else labels):
        digest.update(f"{array.dtype.str} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()
