"""Files of a data set: plain or compressed by gzip, in a folder or in a zip archive.

No file is trusted. What a file is, is known by its first bytes and not by its name. Streams are
read in pieces, and the readers (csv_files.py, idx_files.py, npz_files.py) bound what they keep.
"""

import contextlib
import gzip
import os
import re
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..files import DataError, brief
from ..machine import free_memory
from .labels import Labels

MAX_IMAGES = 2_000_000  # in one file; the largest relative of MNIST has 814,255
MAX_SIDE = 1024  # rows or columns of an image
MAX_CHANNELS = 16
READABLE = (
    "Kaggle's train.csv or NAME_train.csv (optional: test.csv), or MNIST's train-images-idx3-ubyte"
    " and train-labels-idx1-ubyte (optional: t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte),"
    " each plain, .gz or in a .zip; an .npz with x_train and y_train; or folders of images, one"
    " for each class"
)

_LARGEST_DIRECTORY = 1 << 20  # bytes of a zip archive's list of members: some 10,000 members
_SORTS = (
    (b"\x1f\x8b", "a gzip stream"),
    (b"PK\3\4", "a zip archive"),
    (b"PK\5\6", "an empty zip archive"),
    (b"\x89PNG\r\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"%PDF-", "a PDF document"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"PAR1", "a Parquet file"),
    (b"ARROW1", "an Arrow file"),
    (b"FEA1", "a Feather file"),
    (b"\x93NUMPY", "a NumPy array (.npy)"),
    (b"MATLAB 5.0", "a MATLAB file (.mat)"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"BZh", "a bzip2 stream"),
    (b"\xfd7zXZ\0", "an xz stream"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard stream"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\7", "a RAR archive"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself"),
    (b"\xff\xfe", "text in UTF-16"),
    (b"\xfe\xff", "text in UTF-16"),
    (b"\x7fELF", "a program"),
)


@dataclass(frozen=True)
class Part:
    """The images of one file, or of one pair of files, as they were read."""

    file: object  # the File with the images
    images: np.ndarray  # uint8 (N, H, W) in grey, or (N, H, W, C)
    labels: Labels | None
    ids: tuple | None = None  # the name of the id column, and the id of each image
    label_name: str = "label"  # of the label column
    notes: tuple = ()  # what was understood, each a few words for the description


@dataclass(frozen=True)
class File:
    """A file, or a member of a zip archive."""

    path: Path  # of the file, or of the archive
    member: str = ""

    def __str__(self):
        return f"{self.path}{os.sep}{self.member}" if self.member else str(self.path)

    @property
    def name(self):
        """Its name without folders."""
        return self.member.rpartition("/")[2] or self.path.name

    @property
    def folder(self):
        """The text of its folder; in an archive it begins with the archive's path."""
        return str(self)[: -len(self.name)].rstrip("/\\") if self.member else str(self.path.parent)

    @contextlib.contextmanager
    def opened(self):
        """A context with a binary stream of the decompressed bytes. Its errors become DataError."""
        zipped = False
        try:
            with contextlib.ExitStack() as stack:
                stream = stack.enter_context(open(self.path, "rb"))
                if self.member:
                    archive = stack.enter_context(_opened_archive(stream))
                    stream = stack.enter_context(_opened_member(archive, self.member))
                zipped = stream.peek(2)[:2] == b"\x1f\x8b"
                yield stack.enter_context(gzip.GzipFile(fileobj=stream)) if zipped else stream
                if self.member and not stream.read(1):
                    _check_length(archive, self.member, stream.tell())
        except zipfile.BadZipFile as error:
            raise _bad_archive(self, error) from None
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            kind = "gzip stream" if zipped else "zip archive"
            reason = str(error) or "its end is missing"
            raise DataError(f"{self}: bad {kind}: {reason}, expected a complete one") from None
        except OSError as error:
            raise DataError(f"{self}: cannot be read: {error.strerror or error}") from None

    def start(self):
        """The first bytes, decompressed. Raises DataError."""
        with self.opened() as stream:
            return stream.read(512)


def members(path):
    """The files in a zip archive, in the order of their names. Raises DataError."""
    try:
        with open(path, "rb") as file, _opened_archive(file) as archive:
            names = {entry.filename for entry in archive.infolist()}
    except zipfile.BadZipFile as error:
        raise _bad_archive(path, error) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    return [File(Path(path), name) for name in sorted(names) if name and not name.endswith("/")]


def sort_of(start):
    """What a file with these first bytes is, such as "a PNG image"; None if it may be text."""
    for magic, sort in _SORTS:
        if start.startswith(magic):
            return sort
    if re.match(rb"\x80[\2-\5][.\]}(c\x8c\x95]", start):
        return "a Python pickle"
    if start[257:262] == b"ustar":
        return "a tar archive"
    if re.match(rb"\s*<(!doctype|html|head|\?xml|svg)", start, re.IGNORECASE):
        return "a web page"
    if re.match(rb"\s*@relation", start, re.IGNORECASE):
        return "an ARFF file"
    if re.match(rb"\s*[{\[]", start):
        return "JSON"
    return "binary data" if b"\0" in start else None


def check_size(where, count, shape, itemsize=1):
    """Check the size of images before memory is allocated for them. Raises DataError."""
    sides, channels = shape[:2], shape[2:]
    text = " x ".join(map(str, shape))
    if not all(1 <= side <= MAX_SIDE for side in sides):
        raise DataError(f"{where}: image size: got {text}, expected sides of 1 to {MAX_SIDE}")
    if not all(1 <= count <= MAX_CHANNELS for count in channels):
        raise DataError(
            f"{where}: image size: got {text}, expected 1 to {MAX_CHANNELS} channels, which come"
            " last"
        )
    check_memory(where, count * int(np.prod(shape, dtype=object)) * itemsize)


def check_memory(where, size):
    """Check that `size` bytes fit into the free memory. Raises DataError."""
    free = free_memory()
    if free is not None and size > free:
        raise DataError(
            f"{where}: too large for memory: got {size:,} bytes, expected no more than the"
            f" {free:,} that are free"
        )


def size_text(shape):
    """The size of images (H, W) or (H, W, C) as text, such as 28x28 or 32x32x3."""
    return "x".join(map(str, shape))


def _bad_archive(file, error):
    """The DataError; zipfile's messages quote the names of members, which may be long."""
    return DataError(f"{file}: bad zip archive: {brief(error, 80)}, expected a complete one")


def _check_length(archive, name, length):
    expected = archive.getinfo(name).file_size
    if length != expected:
        raise zipfile.BadZipFile(f"a member of {length:,} bytes instead of {expected:,}")


class _Limited:
    """A file for zipfile, which reads the list of members at once, however long it is."""

    def __init__(self, file):
        self.tell, self._file = file.tell, file

    def seek(self, offset, whence=0):
        if offset < 0 and whence == 0:
            raise zipfile.BadZipFile("a member before the start of the file")
        return self._file.seek(offset, whence)

    def read(self, size=-1):
        if size > _LARGEST_DIRECTORY:
            raise zipfile.BadZipFile(f"a list of members of {size:,} bytes")
        return self._file.read(size if size >= 0 else _LARGEST_DIRECTORY)

    def seekable(self):
        return True


@contextlib.contextmanager
def _opened_archive(file):
    try:
        archive = zipfile.ZipFile(_Limited(file))
    except (ValueError, OverflowError, NotImplementedError) as error:
        raise zipfile.BadZipFile(str(error)) from None
    with archive:
        yield archive


def _opened_member(archive, name):
    try:
        entry = archive.getinfo(name)
    except KeyError:
        raise zipfile.BadZipFile("a missing member") from None
    if entry.flag_bits & 1:
        raise zipfile.BadZipFile("a member with a password")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise zipfile.BadZipFile(f"compression method {entry.compress_type}")
    try:
        return archive.open(entry)
    except (ValueError, OverflowError, RuntimeError) as error:
        raise zipfile.BadZipFile(str(error)) from None
