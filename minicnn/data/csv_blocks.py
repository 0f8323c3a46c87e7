"""Parses blocks of lines of a CSV file whose columns are known; see csv_files.py."""

import contextlib
import csv
import io
import re
from dataclasses import dataclass

import numpy as np

from ..files import DataError

SHORTEST_LIMIT = 1 << 14  # bytes that a line may have; the header of MNIST, 785 quoted names, 9 kB

_FEW_LINES = 64  # a block of at most so many lines is parsed without pandas
_FRACTION = re.compile(rb'\.0*(?=[,"\r\n]|$)')  # of a whole number such as 7.0
_PIXEL = re.compile(r"[0-9]+(\.0*)?")


@dataclass(frozen=True)
class Columns:
    """What the columns of a file are: texts and pixels.

    texts: the numbers of the columns that hold no pixels, in order; names: of all columns.
    """

    delimiter: bytes
    names: tuple
    texts: tuple
    header: bool = True  # whether the names are the file's

    @property
    def pixels(self):
        """How many columns hold pixels."""
        return len(self.names) - len(self.texts)

    @property
    def longest_line(self):
        """How many bytes a line may have."""
        return longest_line(len(self.names))


def longest_line(columns):
    """How many bytes a line with so many columns may have."""
    return max(SHORTEST_LIMIT, 20 * columns)


def parse(where, first, block, columns):
    """(pixels (rows, columns) uint8, the texts of each row, in lists) of a block of whole lines.

    first: the number of the block's first line. Empty lines are skipped. Raises DataError.
    """
    parsed = _parsed(block, columns)
    if parsed is None:
        raise _fault(where, first, block.split(b"\n"), columns)
    return parsed


def split_line(where, line, delimiter, most=SHORTEST_LIMIT):
    """The fields of one line, a list of str. Raises DataError."""
    if len(line) > most:
        raise too_long(where, most)
    try:
        text = line.decode("utf-8", "replace")
        return next(csv.reader([text], strict=True, delimiter=delimiter.decode()), [])
    except csv.Error:
        raise DataError(
            f"{where}: got a stray quote, carriage return or zero byte,"
            " expected fields separated by commas"
        ) from None


def too_long(where, most):
    """The DataError for a line of more than `most` bytes."""
    return DataError(f"{where}: line too long, expected at most {most} bytes")


def brief_field(field):
    """A field in quotes, shortened."""
    return repr(field if len(field) <= 40 else field[:40] + "...")


def is_empty(line):
    """Whether a line counts as empty."""
    return line in (b"", b"\r")


# --- Parsing --------------------------------------------------------------------------------------


def _parsed(block, columns):
    """See parse; None if a line is bad."""
    lines = block.split(b"\n")
    rows = [line for line in lines if not is_empty(line)]
    if not rows:
        return np.empty((0, columns.pixels), np.uint8), [[] for _ in columns.texts]
    if max(map(len, lines)) > columns.longest_line:
        return None
    numbers = _numbers(block, columns.delimiter)
    table = _table(numbers, len(rows), len(columns.names))
    if table is not None:
        texts = [_column(rows, columns, number) for number in columns.texts]
    elif columns.texts:
        if (taken := _without_texts(rows, columns)) is None:
            return None
        block, texts = taken
        table = _table(_numbers(block, b","), len(rows), len(columns.names))
    if table is None:
        return None
    table[:, list(columns.texts)] = 0
    if table.max() > 255:
        return None
    return _pixels(table.astype(np.uint8), columns), texts


def _pixels(table, columns):
    """The columns of a table (rows, columns) that hold pixels."""
    first, last = 0, len(columns.names)
    while first in columns.texts:
        first += 1
    while last - 1 in columns.texts:
        last -= 1
    inside = [number - first for number in columns.texts if first < number < last]
    return np.delete(table[:, first:last], inside, axis=1) if inside else table[:, first:last]


def _column(rows, columns, number):
    """The texts of a column in rows without delimiters inside of fields."""
    after = len(columns.names) - 1 - number
    if number <= after:
        texts = [row.split(columns.delimiter, number + 1)[number] for row in rows]
    else:
        texts = [row.rsplit(columns.delimiter, after + 1)[-1 - after] for row in rows]
    return [text.removesuffix(b"\r").strip(b'"') for text in texts]


def _without_texts(rows, columns):
    """(the rows with 0 in place of their texts, separated by commas; the texts), None if bad."""
    lines, texts = [], [[] for _ in columns.texts]
    for row in rows:
        try:
            fields = split_line("", row, columns.delimiter, columns.longest_line)
        except DataError:
            return None
        if len(fields) != len(columns.names):
            return None
        for column, number in zip(texts, columns.texts, strict=True):
            column.append(fields[number].encode("utf-8", "surrogatepass"))
            fields[number] = "0"
        line = ",".join(fields).encode()
        if line.translate(None, b"0123456789.,"):  # csv has removed quotes around other texts
            return None
        lines.append(line)
    return b"\n".join(lines), texts


def _numbers(block, delimiter):
    """A block with commas between its fields, and without the fraction of whole numbers."""
    if delimiter != b",":
        if b"," in block:
            return None
        block = block.replace(delimiter, b",")
    if b"." in block:
        short = block
        for end in b",", b"\n", b"\r":
            short = short.replace(b".0" + end, end)
        block = _FRACTION.sub(b"", block) if b"." in short else short
    return block


def _table(block, rows, columns):
    """The integers (rows, columns) of a block of numbers, None if it is another."""
    if block is None or not _is_plain(block) or block.count(b",") != rows * (columns - 1):
        return None
    with contextlib.suppress(ValueError, OverflowError):
        table = _parse_few(block) if rows <= _FEW_LINES else _parse_many(block)
        if table.shape == (rows, columns):
            return table
    return None


def _parse_many(block):
    """The integers of a block, parsed by pandas. Raises ValueError or OverflowError."""
    import pandas  # noqa: PLC0415  its import takes 0.5 s and 50 MB

    options = {"header": None, "na_filter": False, "low_memory": False}
    return pandas.read_csv(io.BytesIO(block), dtype=np.int64, **options).to_numpy()


def _parse_few(block):
    """The integers of a few lines, faster than by pandas. Raises ValueError.

    A field has a quote on both sides or on none: a single one would continue in the next line.
    """
    table = []
    for row in block.split(b"\n"):
        if is_empty(row):
            continue
        fields = row.removesuffix(b"\r").split(b",")
        if b'"' in row:
            if any(b'"' in f and not (len(f) > 2 and f[:1] == f[-1:] == b'"') for f in fields):
                raise ValueError
            fields = [field.strip(b'"') for field in fields]
        table.append([int(field) for field in fields])
    return np.array(table, np.int64)


def _is_plain(block):
    """Whether a block holds only digits, commas, line ends, and quotes around whole fields.

    Without this check pandas would read "True", "1e2" and "1.5" as integers, and '"1"2' as 12. It
    would also ignore a carriage return inside a line, which the csv module rejects.
    """
    if re.search(rb"\r[^\r\n]", block):
        return False
    if b'"' in block:
        block = b"\n%b\n" % block
        for edge in b',"', b'",', b'\n"', b'"\n', b'"\r':
            block = block.replace(edge, edge.strip(b'"'))
    return not block.translate(None, b"0123456789,\r\n")


# --- Faults ---------------------------------------------------------------------------------------


def _fault(where, first, lines, columns):
    """The DataError for the first bad value in `lines`, which start at line number `first`."""
    while len(lines) > _FEW_LINES:
        half = lines[: len(lines) // 2]
        if _parsed(b"\n".join(half), columns) is None:
            lines = half
        else:
            first, lines = first + len(half), lines[len(half) :]
    for number, line in enumerate(lines, first):
        if is_empty(line):
            continue
        place = f"{where}, line {number}"
        fields = split_line(place, line, columns.delimiter, columns.longest_line)
        if len(fields) != len(columns.names):
            names = columns.names
            raise DataError(
                f"{place}: got {len(fields)} columns, expected {len(names)}, {names[0]} to"
                f" {names[-1]}"
            )
        for column, (name, field) in enumerate(zip(columns.names, fields, strict=True)):
            if column in columns.texts:
                continue
            whole = field.partition(".")[0].lstrip("0") or "0"
            if not _PIXEL.fullmatch(field) or len(whole) > 3 or int(whole) > 255:
                return DataError(
                    f"{place}, {name}: got {brief_field(field)}, expected an integer from 0 to 255"
                )
    return DataError(
        f"{where}, lines {first} to {number}: expected rows of {len(columns.names)} fields"
    )
