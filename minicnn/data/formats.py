"""File formats: reads MNIST's IDX and Kaggle's CSV files.

No file is trusted. Sizes in headers are checked before memory is allocated, and a compressed stream
is read no further than its expected end. A fault raises DataError, which names the file and the
line or field.
"""

import codecs
import contextlib
import csv
import gzip
import io
import re
import struct
import zlib

import numpy as np

from ..files import DataError

SIZE = 28  # rows and columns of an image
MAX_IMAGES = 500_000  # in one file, seven times MNIST: limits the memory that a bad file can use

_PIXELS = [f"pixel{i}" for i in range(SIZE * SIZE)]
_BLOCK = 1 << 20  # bytes of CSV parsed at a time, about 600 images
_FEW_LINES = 64  # a block of at most so many lines is parsed without pandas
_LONGEST_LINE = 1 << 14  # bytes; the header, 785 quoted names, has 9 kB


@contextlib.contextmanager
def _opened(path):
    """A context with a stream of the file's decompressed bytes. Its errors become DataError."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as stream:
            yield stream
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: bad gzip stream: {error}, expected a complete one") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


# --- IDX ------------------------------------------------------------------------------------------


def read_idx_pair(images_path, labels_path):
    """Read images (N, 28, 28) and labels (N,), both uint8, from two IDX files. Raises DataError."""
    images = _read_idx(images_path, "images", (SIZE, SIZE))
    labels = _read_idx(labels_path, "labels", ())
    if len(images) != len(labels):
        raise DataError(
            f"{labels_path}: got {len(labels)} labels, expected {len(images)}, the number of images"
            f" in {images_path.name}"
        )
    if (wrong := labels > 9).any():
        first = int(wrong.argmax())
        raise DataError(
            f"{labels_path}: label {first + 1} of {len(labels)}: got {labels[first]},"
            " expected 0 to 9"
        )
    return images, labels


def _read_idx(path, what, shape):
    """Read the array (N, *shape) uint8 of an IDX file. The format, with big-endian integers:

        4 bytes     0, 0, 8 for uint8, the number of axes
        4 an axis   its length
        the rest    the values, row-major

    Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database".
    """
    axes = 1 + len(shape)
    with _opened(path) as stream:
        header = stream.read(4 + 4 * axes)
        if len(header) < 4 + 4 * axes:
            raise DataError(
                f"{path}: got {len(header)} bytes, expected a header of {4 + 4 * axes} bytes"
            )
        magic, count, *size = struct.unpack(f">{1 + axes}I", header)
        if magic != 0x800 + axes:
            raise DataError(
                f"{path}: magic number: got {magic}, expected {0x800 + axes} for {what}"
            )
        if tuple(size) != shape:
            raise DataError(
                f"{path}: image size: got {size[0]} x {size[1]}, expected {SIZE} x {SIZE}"
            )
        if not 1 <= count <= MAX_IMAGES:
            raise DataError(f"{path}: number of {what}: got {count}, expected 1 to {MAX_IMAGES}")
        # The system provides memory when it is first written, so a short file with a header that
        # promises more uses no more memory than it fills.
        values = np.empty((count, *shape), np.uint8)
        flat, filled = memoryview(values.reshape(-1)), 0
        while got := stream.readinto(flat[filled : filled + (1 << 20)]):
            filled += got
        if filled < len(flat):
            raise DataError(
                f"{path}: truncated: got {len(header) + filled} bytes,"
                f" expected {len(header) + len(flat)} for {count} {what}"
            )
        if stream.read(1):
            raise DataError(
                f"{path}: got bytes after the last of the {what},"
                f" expected {len(header) + len(flat)} bytes for {count} {what}"
            )
    return values


# --- CSV ------------------------------------------------------------------------------------------


def read_csv(path, labelled=True):
    """Read images (N, 28, 28) and labels (N,), both uint8, from a CSV file in Kaggle's form.

    Without `labelled`, the file has no label column, and labels are None. The file is parsed in
    blocks, so that its values never exist as int64 all at once. pandas parses each block; only if
    it fails are the block's lines searched for the error. Raises DataError.
    """
    names = ["label"] * labelled + _PIXELS
    pixels, labels = bytearray(), bytearray()
    with _opened(path) as stream:
        _check_header(path, stream.readline(_LONGEST_LINE + 1), names)
        for first, block in _blocks(path, stream):
            table = _parse(path, first, block, names)  # (rows, columns)
            labels += table[:, : -(SIZE * SIZE)].tobytes()
            pixels += table[:, -(SIZE * SIZE) :].tobytes()
    if not pixels:
        raise DataError(
            f"{path}, line 2: got the end of the file, expected images after the header"
        )
    images = np.frombuffer(pixels, np.uint8).reshape(-1, SIZE, SIZE)
    return images, np.frombuffer(labels, np.uint8) if labelled else None


def _check_header(path, line, names):
    where = f"{path}, line 1"
    if not line:
        raise DataError(f"{path}: got an empty file, expected a header {names[0]}, {names[1]}, ...")
    fields = _fields(where, line.removeprefix(codecs.BOM_UTF8).rstrip(b"\r\n"))
    if fields == names:
        return
    for column, (got, expected) in enumerate(zip(fields, names, strict=False), 1):
        if got != expected:
            raise DataError(f"{where}, column {column}: got {_brief(got)}, expected {expected!r}")
    _check_count(where, fields, names)


def _blocks(path, stream):
    """Yield (number of the block's first line, block of whole lines), from line 2 on."""
    first, rest = 2, b""
    while piece := stream.read(_BLOCK):
        block = rest + piece
        end = block.rfind(b"\n") + 1
        rest = block[end:]
        if end:
            yield first, block[:end]
            first += block.count(b"\n")
        if first > MAX_IMAGES + 2:
            raise DataError(
                f"{path}: got more than {MAX_IMAGES} lines, expected at most {MAX_IMAGES}"
            )
        if len(rest) > _LONGEST_LINE:
            raise _too_long(f"{path}, line {first}")
    if rest:
        yield first, rest


def _parse(path, first, block, names):
    """The values (rows, columns) uint8 of a block. Empty lines are skipped. Raises DataError."""
    table = _table(block, names)
    if table is None:
        raise _fault(path, first, block.split(b"\n"), names)
    return table


def _table(block, names):
    """The values (rows, columns) uint8 of a block, or None if a line is bad."""
    lines = block.split(b"\n")
    rows = [line for line in lines if line not in (b"", b"\r")]
    if not rows:
        return np.empty((0, len(names)), np.uint8)
    if (
        _is_plain(block)
        and max(map(len, lines)) <= _LONGEST_LINE
        and block.count(b",") == len(rows) * (len(names) - 1)
    ):
        with contextlib.suppress(ValueError, OverflowError):
            table = _parse_few(rows) if len(rows) <= _FEW_LINES else _parse_many(block)
            if table.shape == (len(rows), len(names)) and (table <= _largest(names)).all():
                return table.astype(np.uint8)
    return None


def _parse_many(block):
    """The integers of a block, parsed by pandas. Raises ValueError or OverflowError."""
    import pandas  # noqa: PLC0415  its import takes 0.5 s and 50 MB

    options = {"header": None, "na_filter": False, "low_memory": False}
    return pandas.read_csv(io.BytesIO(block), dtype=np.int64, **options).to_numpy()


def _parse_few(rows):
    """The integers of a few lines, faster than by pandas. Raises ValueError.

    A field has a quote on both sides or on none: a single one would continue in the next line.
    """
    table = []
    for row in rows:
        fields = row.removesuffix(b"\r").split(b",")
        if b'"' in row:
            if any(b'"' in f and not (len(f) > 2 and f[:1] == f[-1:] == b'"') for f in fields):
                raise ValueError
            fields = [field.strip(b'"') for field in fields]
        table.append([int(field) for field in fields])
    return np.array(table, np.int64)


def _is_plain(block):
    """Whether a block holds only digits, commas, line ends, and quotes around whole fields.

    Without this check pandas would read "True", "1e2" and "1.0" as integers, and '"1"2' as 12. It
    would also ignore a carriage return inside a line, which the csv module rejects.
    """
    if re.search(rb"\r[^\r\n]", block):
        return False
    if b'"' in block:
        block = b"\n%b\n" % block
        for edge in b',"', b'",', b'\n"', b'"\n', b'"\r':
            block = block.replace(edge, edge.strip(b'"'))
    return not block.translate(None, b"0123456789,\r\n")


def _largest(names):
    return np.array([9 if name == "label" else 255 for name in names])


def _fault(path, first, lines, names):
    """The DataError for the first bad value in `lines`, which start at line number `first`."""
    while len(lines) > _FEW_LINES:
        half = lines[: len(lines) // 2]
        if _table(b"\n".join(half), names) is None:
            lines = half
        else:
            first, lines = first + len(half), lines[len(half) :]
    for number, line in enumerate(lines, first):
        if line in (b"", b"\r"):
            continue
        where = f"{path}, line {number}"
        fields = _fields(where, line)
        _check_count(where, fields, names)
        for name, field, largest in zip(names, fields, _largest(names), strict=True):
            digits = field.isascii() and field.isdigit() and (field.lstrip("0") or "0")
            if not digits or len(digits) > 3 or int(digits) > largest:
                return DataError(
                    f"{where}, {name}: got {_brief(field)}, expected an integer from 0 to {largest}"
                )
    return DataError(f"{path}, lines {first} to {number}: expected rows of {len(names)} integers")


def _fields(where, line):
    """The fields of one line, a list of str."""
    if len(line) > _LONGEST_LINE:
        raise _too_long(where)
    try:
        return next(csv.reader([line.decode("utf-8", "replace")], strict=True), [])
    except csv.Error:
        raise DataError(
            f"{where}: got a stray quote, carriage return or zero byte,"
            " expected fields separated by commas"
        ) from None


def _too_long(where):
    return DataError(f"{where}: line too long, expected at most {_LONGEST_LINE} bytes")


def _check_count(where, fields, names):
    if len(fields) != len(names):
        raise DataError(
            f"{where}: got {len(fields)} columns, expected {len(names)}, {names[0]} to {names[-1]}"
        )


def _brief(field):
    return repr(field if len(field) <= 40 else field[:40] + "...")
