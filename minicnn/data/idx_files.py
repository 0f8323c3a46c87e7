"""Reads IDX files: those of MNIST and of its relatives EMNIST, QMNIST, Fashion-MNIST, KMNIST."""

import math
import struct

import numpy as np

from ..files import DataError
from .labels import as_emnist, integer_labels
from .sources import MAX_IMAGES, Part, check_memory, check_size, sort_of

_IMAGES = {0x803: 3, 0x804: 4}  # magic number: axes; (N, H, W) in grey, (N, H, W, C) else
_LABELS = {0x801: ">u1", 0x901: ">i1", 0xB01: ">i2", 0xC01: ">i4", 0xC02: ">i4"}
_QMNIST = 8  # columns of a label; column 0 is the digit
_PIECE = 1 << 20


def read_idx_pair(images_file, labels_file):
    """Read the Part of two IDX files. Raises DataError. The format, with big-endian integers:

        4 bytes     0, 0, the type of the values (8 for uint8), the number of axes
        4 an axis   its length
        the rest    the values, row-major

    Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database". EMNIST's images, transposed in its
    files, are turned upright.
    """
    images = _read_images(images_file)
    values = _read_labels(labels_file)
    if len(images) != len(values):
        raise DataError(
            f"{labels_file}: got {len(values)} labels, expected {len(images)}, the number of images"
            f" in {images_file.name}"
        )
    labels = integer_labels(values, labels_file)
    images, labels, notes = as_emnist(images_file.name, images, labels)
    return Part(images_file, images, labels, notes=notes)


def is_idx(start):
    """Whether a file with these first bytes is an IDX file."""
    return int.from_bytes(start[:4], "big") in {*_IMAGES, *_LABELS}


def _read_images(file):
    with file.opened() as stream:
        header = _header(file, stream, 16)
        magic = int.from_bytes(header[:4], "big")
        if magic not in _IMAGES:
            raise _wrong_magic(file, header, "2051 for images (2052 for images with channels)")
        header += _read_exactly(file, stream, 4 * (_IMAGES[magic] - 3), 20)
        count, *shape = struct.unpack(f">{_IMAGES[magic]}I", header[4:])
        _check_count(file, "images", count)
        if shape[2:] == [1]:
            shape = shape[:2]
        check_size(file, count, shape)
        return _values(file, stream, len(header), "images", (count, *shape))


def _read_labels(file):
    with file.opened() as stream:
        header = _header(file, stream, 8)
        magic, count = struct.unpack(">2I", header)
        if magic not in _LABELS:
            raise _wrong_magic(file, header, "2049 for labels (3074 for QMNIST's)")
        dtype, columns = np.dtype(_LABELS[magic]), 1
        if magic == 0xC02:
            header += _read_exactly(file, stream, 4, 12)
            columns = int.from_bytes(header[8:], "big")
            if columns not in (1, _QMNIST):
                raise DataError(f"{file}: columns of a label: got {columns}, expected {_QMNIST}")
        _check_count(file, "labels", count)
        size = columns * dtype.itemsize
        check_memory(file, count * size)
        content = _values(file, stream, len(header), "labels", (count, size))
    return content.reshape(-1).view(dtype).reshape(count, columns)[:, 0]


def _header(file, stream, size):
    start = stream.read(size)
    if len(start) < size:
        raise DataError(f"{file}: got {len(start)} bytes, expected a header of {size} bytes")
    return start


def _read_exactly(file, stream, size, whole):
    """More bytes of a header that has `whole` bytes."""
    more = stream.read(size)
    if len(more) < size:
        raise DataError(f"{file}: got a part of a header, expected a header of {whole} bytes")
    return more


def _wrong_magic(file, header, expected):
    sort, magic = sort_of(header), int.from_bytes(header[:4], "big")
    got = sort if sort not in (None, "binary data") else str(magic)
    return DataError(f"{file}: magic number: got {got}, expected {expected}")


def _check_count(file, what, count):
    if not 1 <= count <= MAX_IMAGES:
        raise DataError(f"{file}: number of {what}: got {count}, expected 1 to {MAX_IMAGES}")


def _values(file, stream, start, what, shape):
    """The bytes after a header of `start` bytes, an array of this shape. Raises DataError."""
    # The system provides memory when it is first written, so a short file with a header that
    # promises more uses no more memory than it fills.
    values = np.empty(shape, np.uint8)
    flat, filled = memoryview(values.reshape(-1)), 0
    while got := stream.readinto(flat[filled : filled + _PIECE]):
        filled += got
    whole = start + math.prod(shape)
    if filled < len(flat):
        raise DataError(
            f"{file}: truncated: got {start + filled} bytes, expected {whole} for {shape[0]} {what}"
        )
    if stream.read(1):
        raise DataError(
            f"{file}: got bytes after the last of the {what},"
            f" expected {whole} bytes for {shape[0]} {what}"
        )
    return values
