"""The checkpoint file format: arrays and a JSON object in one file with a checksum.

The file is an .npz, a zip of uncompressed .npy arrays, which numpy.load can read. The zip's comment
is at the end of the file. It holds the format's name and version and the SHA-256 of all bytes
before it, so read() detects a truncated or changed file before it parses any content.

A checksum does not protect against a file that was made to do harm. Therefore read() accepts only
the layout that write() produces and parses it from front to back. It does not unpickle, decompress,
use the zip's directory or use any name from the file. Each array is a view of the bytes read, so a
false shape cannot allocate memory. checkpoint.py defines what the arrays mean.
"""

import hashlib
import json
import re
import stat
import struct
import zipfile
from pathlib import Path

import numpy as np

from ..files import DataError, atomic_write
from ..machine import free_memory

FORMAT = 2
MAX_TEXT = 1 << 21  # bytes of JSON; 10,000 nets and 1,000 classes take less

_COMMENT = f"minicnn checkpoint {FORMAT} sha256 "
_DIGEST = 64  # length of the SHA-256 in hexadecimal, the end of the file
_END = re.compile(rb"minicnn checkpoint (\d{1,9}) sha256 ([0-9a-f]{64})\Z")

# The local header of a zip entry: signature, version, flags, method, time, date, CRC-32, compressed
# and uncompressed size, lengths of the name and of the extra field (PKWARE, APPNOTE.TXT, 4.3.7).
_LOCAL = struct.Struct("<4s5H3L2H")
# The .npy header that NumPy writes for arrays of one or two axes (NumPy Enhancement Proposal 1).
_NPY = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(<f4|<f8|\|u1)', 'fortran_order': False, "
    rb"'shape': \((\d{1,12}),(?: (\d{1,12}))?\), \} *\n",
    re.DOTALL,
)


def write(path, arrays, about):
    """Write {name: array of one or two axes} and a JSON-compatible dict. Raises OSError."""
    text = np.frombuffer(json.dumps(about, allow_nan=False).encode(), np.uint8)
    with atomic_write(path) as file:
        with zipfile.ZipFile(file, "w") as archive:
            for name, array in {"about": text, **arrays}.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
                    np.lib.format.write_array(entry, little, allow_pickle=False)
            archive.comment = f"{_COMMENT}{'0' * _DIGEST}".encode()
        size = file.seek(-_DIGEST, 2)
        file.seek(0)
        digest = hashlib.sha256()
        while size > 0:
            piece = file.read(min(size, 1 << 20))
            digest.update(piece)
            size -= len(piece)
        file.seek(-_DIGEST, 2)
        file.write(digest.hexdigest().encode())


def read(path, names, last=None):
    """Read a file of write(): (arrays, about), two dicts.

    names: the names of the arrays, in the order written; last: that of one which may follow them.
    The arrays are read-only. Raises DataError for any file that write() cannot have written.
    """
    content = _content(path)
    end = _END.search(content, max(0, len(content) - 128))
    if not content.startswith(b"PK\3\4"):
        raise DataError(f"{path}: got another sort of file, expected a checkpoint of minicnn")
    if end is None:
        raise DataError(
            f"{path}: not a whole checkpoint of minicnn, expected its checksum at the end"
        )
    if int(end[1]) != FORMAT:
        raise DataError(f"{path}: got checkpoint format {int(end[1])}, expected {FORMAT}")
    if hashlib.sha256(memoryview(content)[:-_DIGEST]).hexdigest().encode() != end[2]:
        raise DataError(f"{path}: the content does not match its checksum, expected it unchanged")
    arrays, at = {}, 0
    for name in ("about", *names):
        arrays[name], at = _array(path, content, at, name, end.start())
    if last is not None and content.startswith(b"PK\3\4", at):  # another entry, no directory
        arrays[last], _ = _array(path, content, at, last, end.start())
    return arrays, _about(path, arrays.pop("about"))


def _content(path):
    """The bytes of a regular file. Raises DataError if it does not fit into the free memory."""
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path}: not a file, expected a checkpoint of minicnn")
        free = free_memory()
        if free is not None and status.st_size > free:
            raise DataError(
                f"{path}: too large for memory: got {status.st_size:,} bytes, expected no more "
                f"than the {free:,} that are free"
            )
        with open(path, "rb") as file:
            return file.read(status.st_size)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file, expected a checkpoint of minicnn") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def _array(path, content, at, name, limit):
    """(the array whose zip entry starts at offset `at`, the offset after its end)."""
    entry = f"{name}.npy".encode()
    fault = DataError(f"{path}: {name}: not as minicnn writes it, expected an entry {name}.npy")
    if at + _LOCAL.size > limit:
        raise fault
    signature, _, flags, method, *_, name_length, extra_length = _LOCAL.unpack_from(content, at)
    at += _LOCAL.size
    if (signature, flags, method) != (b"PK\3\4", 0, 0) or content[at : at + name_length] != entry:
        raise fault
    header = _NPY.match(content, at + name_length + extra_length, limit)
    if header is None:
        raise fault
    shape = tuple(int(length) for length in header.groups()[1:] if length is not None)
    dtype = np.dtype(header[1].decode())
    count = int(np.prod(shape, dtype=object))
    at = header.end()
    if count * dtype.itemsize > limit - at:
        raise DataError(f"{path}: {name}: got shape {shape}, expected one that fits into the file")
    array = np.frombuffer(content, dtype, count, at).reshape(shape)
    return array, at + array.nbytes


def _about(path, text):
    if text.dtype != np.uint8 or text.ndim != 1 or len(text) > MAX_TEXT:
        raise DataError(f"{path}: about: expected at most {MAX_TEXT} bytes of text")
    try:
        about = json.loads(
            text.tobytes().decode(), parse_int=_short_integer, parse_constant=_no_constant
        )
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict):
        raise DataError(f"{path}: about: expected a JSON object")
    return about


def _short_integer(digits):
    # Python 3.10 takes seconds to convert a million digits.
    if len(digits) > 20:
        raise ValueError
    return int(digits)


def _no_constant(name):
    raise ValueError(name)
