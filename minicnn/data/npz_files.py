"""Reads .npz files with the arrays x_train, y_train, x_test, y_test, as Keras and MedMNIST have.

An .npz is a zip of .npy arrays. Nothing is unpickled: only the headers that NumPy writes for arrays
of numbers are accepted. Sizes are checked first, and members are decompressed in pieces.
"""

import math
import re

import numpy as np

from ..files import DataError
from .labels import integer_labels
from .sources import MAX_IMAGES, Part, check_memory, check_size, members

_PARTS = {  # the names of the images and of the labels: Keras's, and MedMNIST's
    "train": (("x_train", "y_train"), ("train_images", "train_labels")),
    "test": (("x_test", "y_test"), ("test_images", "test_labels")),
}
_PIECE = 1 << 18  # values converted at a time
_LONGEST_HEADER = 4096
# Source: NumPy Enhancement Proposal 1. Python 2 wrote lengths as 60000L.
_LENGTH = r"(?:0|[1-9]\d{0,11})L?"
_HEADER = re.compile(
    r"\{'descr': '([<>|](?:[ui][1248]|f[248]))', 'fortran_order': (True|False), "
    rf"'shape': \(((?:{_LENGTH}, ?)+(?:{_LENGTH})?)\),? ?\}}[ \n]*"
)


def read_npz(path, need_train=True):
    """Read (training Part, test Part) of an .npz file. Raises DataError.

    The test Part is None if the file has none; without `need_train` the training Part is None.
    """
    files = {file.member[:-4]: file for file in members(path) if file.member.endswith(".npy")}
    train = _read_part(files, "train") if need_train else None
    test = _read_part(files, "test")
    if train is None and (need_train or test is None):
        names = ", ".join(sorted(files)[:5]) or "nothing"
        more = f" and {len(files) - 5} more" if len(files) > 5 else ""
        expected = "x_train and y_train (optional: x_test and y_test)"
        if not need_train:
            expected = "x_test (optional: y_test)"
        raise DataError(f"{path}: found {names}{more}; expected arrays {expected}")
    return train, test


def _read_part(files, part):
    """The Part of a training or test set; None if the file has none."""
    for images_name, labels_name in _PARTS[part]:
        if images_name not in files or (part == "train" and labels_name not in files):
            continue
        file = files[images_name]
        images, labels = _read_images(file), None
        if labels_name in files:
            values = _read_labels(files[labels_name], len(images), images_name)
            labels = integer_labels(values, files[labels_name])
        return Part(file, images, labels)
    return None


def _read_images(file):
    with file.opened() as stream:
        dtype, shape, fortran = _header(file, stream)
        if len(shape) not in (3, 4):
            raise DataError(
                f"{file}: got {dtype.name} of shape {shape}, expected images (N, H, W) or"
                " (N, H, W, C), uint8 or floats from 0 to 1"
            )
        if not 1 <= shape[0] <= MAX_IMAGES:
            raise DataError(f"{file}: number of images: got {shape[0]}, expected 1 to {MAX_IMAGES}")
        check_size(file, shape[0], shape[1:])
        images = np.empty(math.prod(shape), np.uint8)
        for start, values in _pieces(file, stream, dtype, len(images)):
            images[start : start + len(values)] = _as_bytes(file, values)
    images = _shaped(images, shape, fortran)
    return images[..., 0] if shape[3:] == (1,) else images


def _read_labels(file, count, images_name):
    with file.opened() as stream:
        dtype, shape, _ = _header(file, stream)
        if shape not in ((count,), (count, 1)):
            raise DataError(
                f"{file}: got {dtype.name} of shape {shape}, expected a whole number for each of"
                f" the {count} images in {images_name}"
            )
        check_memory(file, 8 * count)
        labels = np.empty(count, np.int64)
        for start, values in _pieces(file, stream, dtype, count):
            # A float that is no int64 changes; those of 2 ** 63 and more become negative.
            whole = labels[start : start + len(values)]
            with np.errstate(invalid="ignore"):
                whole[:] = values.astype(np.int64)
            if (wrong := (whole != values) | ((values > 0) != (whole > 0))).any():
                i = int(wrong.argmax())
                raise DataError(
                    f"{file}: label {start + i + 1} of {count}: got {values[i]}, expected a whole"
                    " number"
                )
    return labels


def _header(file, stream):
    """(dtype, shape, whether in Fortran's order) of an .npy stream, read up to its values."""
    start = stream.read(8)
    length = int.from_bytes(stream.read(2 if start[6:] == b"\1\0" else 4), "little")
    text = stream.read(min(length, _LONGEST_HEADER)).decode("latin-1")
    versions = [b"\x93NUMPY%b\0" % version for version in (b"\1", b"\2", b"\3")]
    found = _HEADER.fullmatch(text) if start in versions and len(text) == length else None
    if found is None:
        other = re.match(r"\{'descr': '[<>|](O|S\d+|U\d+)'", text)
        objects, letters = "Python objects (pickled)", "text"
        got = (objects if other[1] == "O" else letters) if other else "something else"
        raise DataError(f"{file}: got {got}, expected an array of numbers as NumPy writes it")
    shape = tuple(int(length) for length in re.findall(r"\d+", found[3]))
    return np.dtype(found[1]), shape, found[2] == "True"


def _pieces(file, stream, dtype, count):
    """Yield (index of the first value, values) up to `count` values, the last of the stream."""
    done = 0
    while done < count:
        size = min(count - done, _PIECE) * dtype.itemsize
        content = stream.read(size)
        if len(content) < size:
            raise DataError(
                f"{file}: truncated: got {done + len(content) // dtype.itemsize} values, expected"
                f" {count}"
            )
        values = np.frombuffer(content, dtype)
        yield done, values
        done += len(values)
    if stream.read(1):
        raise DataError(f"{file}: got bytes after the last value, expected {count} values")


def _as_bytes(file, values):
    """Pixels as uint8: integers from 0 to 255, or floats from 0 to 1. Raises DataError."""
    if values.dtype == np.uint8:
        return values
    most = 1 if values.dtype.kind == "f" else 255
    if not (fine := (values >= 0) & (values <= most)).all():
        kind = "uint8, or floats from 0 to 1" if most == 1 else "integers from 0 to 255"
        raise DataError(f"{file}: got a pixel {values[fine.argmin()]}, expected {kind}")
    if most == 255:
        return values.astype(np.uint8)
    return np.rint(values.astype(np.float64) * 255).astype(np.uint8)


def _shaped(values, shape, fortran):
    if fortran:
        return np.ascontiguousarray(values.reshape(shape[::-1]).T)
    return values.reshape(shape)
