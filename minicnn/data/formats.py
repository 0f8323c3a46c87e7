"""The file formats: MNIST's IDX, Kaggle's CSV, and Kaggle's submission.

Files come from anywhere. Sizes in headers are checked before anything is allocated, compressed
streams are read no further than they should go, and a fault is a DataError that names the file and
the line or field.
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

from ..files import DataError, atomic_write

SIZE = 28  # rows and columns of an image
MAX_IMAGES = 500_000  # in one file: seven times MNIST, and what a hostile one can make us hold

_PIXELS = [f"pixel{i}" for i in range(SIZE * SIZE)]
_BLOCK = 1 << 20  # bytes of CSV parsed at a time, about 600 images
_FEW_LINES = 64  # that are read one by one
_LONGEST_LINE = 1 << 14  # bytes; 785 quoted names take 9 kB


@contextlib.contextmanager
def _opened(path):
    """The file's decompressed bytes as a stream; all that can go wrong with it is a DataError."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as stream:
            yield stream
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: bad gzip stream: {error}, expected a whole one") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


# --- IDX ------------------------------------------------------------------------------------------


def read_idx_pair(images_path, labels_path):
    """Images (N, 28, 28) and labels (N,), both uint8, of two IDX files. Raises DataError."""
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
    """The array of an IDX file: (N, *shape) uint8.

    A magic number (0, 0, 8 for uint8, number of axes), the length of each axis, then the values;
    all numbers are big-endian (Y. LeCun, C. Cortes, C. Burges, "The MNIST database").
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
        # Untouched memory costs nothing, so a header that lies about a short file gains nothing.
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
    """Images (N, 28, 28) and labels (N,), or None, of a file in Kaggle's form.

    It goes block by block, so that 42,000 x 785 integers never exist as such, and fast: what looks
    regular is given to pandas, and only what fails is searched for its line and column.
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
    """Yield (number of its first line, block of whole lines), from line 2 on."""
    first, rest = 2, b""
    while piece := stream.read(_BLOCK):
        block = rest + piece
        end = block.rfind(b"\n") + 1
        rest = block[end:]
        if end:
            yield first, block[:end]
            first += block.count(b"\n")
        if first > MAX_IMAGES + 2:
            raise DataError(f"{path}: got more than {MAX_IMAGES} lines, expected at most that")
        if len(rest) > _LONGEST_LINE:
            raise _too_long(f"{path}, line {first}")
    if rest:
        yield first, rest


def _parse(path, first, block, names):
    """The block's values, (rows, columns) uint8. Empty lines are left out."""
    table = _table(block, names)
    if table is None:
        raise _fault(path, first, block.split(b"\n"), names)
    return table


def _table(block, names):
    """The values of a block of lines, or None where one of them is bad."""
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
            table = _few(rows) if len(rows) <= _FEW_LINES else _many(block)
            if table.shape == (len(rows), len(names)) and (table <= _largest(names)).all():
                return table.astype(np.uint8)
    return None


def _many(block):
    """The integers of a block's lines, by pandas. Raises ValueError."""
    import pandas  # noqa: PLC0415  half a second and 50 MB

    options = {"header": None, "na_filter": False, "low_memory": False}
    return pandas.read_csv(io.BytesIO(block), dtype=np.int64, **options).to_numpy()


def _few(rows):
    """The integers of some lines, which pandas would take longer to set out for. Raises ValueError.

    What is around them is quotes only: a field has both or none, lest one go on in the next line.
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
    """Whether it holds digits, commas and line ends only, and quotes only around fields.

    pandas would also take "True", "1e2" and "1.0" for integers, and '"1"2' for 12. And it would
    leave out a carriage return before a field, which is no line end: the csv module refuses it.
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
    """The DataError for the first bad value in `lines`, the first of which is line `first`."""
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


# --- Kaggle's submission -------------------------------------------------------------------------


def write_submission(path, labels):
    """Write `labels` (N,), integers, in Kaggle's form: ImageId, from 1, and Label.

    The file is whole or not there at all. Raises OSError.
    """
    rows = (f"{image},{int(label)}\n" for image, label in enumerate(labels, 1))
    with atomic_write(path) as file:
        file.write(f"ImageId,Label\n{''.join(rows)}".encode())
