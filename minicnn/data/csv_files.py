"""Reads CSV files with an image in each line: Kaggle's digits and their relatives.

A file has H * W columns of pixels, or C planes of them, and maybe a label and an id. read_csv finds
out which column is what, from the header and the first lines, and then parses the file in blocks,
so that its values never exist as int64 all at once; csv_blocks.py parses a block.
"""

import codecs
import math
import re
from collections import Counter

import numpy as np

from ..files import DataError
from .csv_blocks import Columns, brief_field, is_empty, longest_line, parse, split_line, too_long
from .labels import MAX_CLASSES, Labels, as_emnist, label_name, too_many
from .sources import MAX_IMAGES, Part, check_memory, check_size, size_text, sort_of

_BLOCK = 1 << 20  # bytes parsed at a time, about 600 images
_MOST_COLUMNS = 1 << 18  # three planes of 295 x 295 pixels
_CHECKED = 1 << 26  # bytes of pixels after which the free memory is checked again
_SAMPLE = 200  # lines that show which column is the label
_LONGEST_TEXT = 100  # bytes of a label as it is written, or of an id
_LABEL_NAMES = {"label", "labels", "class", "target"}
_ID_NAMES = {"id", "imageid", "image_id"}  # a submission has this column
_INDEX_NAMES = {"", "index", "unnamed: 0"}  # pandas writes them; they say nothing
_MOST_EXTRA = 4  # columns of such names
_NUMBERED = re.compile(r"(.*?)([0-9]{1,9})")


def read_csv(file, training=True, shape=None):
    """Read the Part of a CSV file. Raises DataError.

    training: whether labels are needed; only without it ids are kept. shape: (H, W) or (H, W, C) of
    an image (default: a square in grey, or three planes of a square). Channels are planes, as in
    CIFAR: all pixels of the first come first.
    """
    with file.opened() as stream:
        start = stream.readline(longest_line(_MOST_COLUMNS) + 1).removeprefix(codecs.BOM_UTF8)
        sample = stream.read(_BLOCK)
        layout = _Layout(file, start, sample, training, shape)
        piece = sample if layout.columns.header else start + sample
        pixels, labels, ids = _read_rows(file, stream, piece, layout, not training)
    images = _images(pixels, layout.shape)
    if layout.notes and labels and len(labels.names) == 1:
        raise DataError(
            f"{file}, column {layout.label + 1}: got {labels.names[0]!r} in each line, expected"
            " labels; name their column label in a header"
        )
    images, labels, notes = as_emnist(file.name, images, labels)
    return Part(file, images, labels, ids, layout.label_name, layout.notes + notes)


def _read_rows(file, stream, piece, layout, need_ids):
    """(the pixels of all rows, in a bytearray, Labels or None, Part.ids), from `piece` on."""
    columns, label, ids = layout.columns, layout.label, layout.ids if need_ids else None
    pixels, labels, texts = bytearray(), _LabelReader(file), []
    begin = 2 if columns.header else 1
    for first, block in _blocks(file, stream, begin, piece, columns.longest_line):
        rows, fields = parse(file, first, block, columns)
        fields = dict(zip(columns.texts, fields, strict=True))
        if label is not None:
            labels.add(first, block, fields[label])
        if ids is not None:
            texts += _checked_ids(file, first, block, fields[ids])
        pixels += rows.tobytes()
        if len(pixels) // _CHECKED > (len(pixels) - rows.size) // _CHECKED:
            check_memory(file, len(pixels))  # growing may copy them
    if not pixels:
        raise DataError(
            f"{file}, line 2: got the end of the file, expected images after the header"
        )
    found = None if ids is None else (columns.names[ids].strip(), tuple(texts))
    return pixels, None if label is None else labels.read(), found


def _images(pixels, shape):
    planes = np.frombuffer(pixels, np.uint8)
    if len(shape) == 2:
        return planes.reshape(-1, *shape)
    planes = planes.reshape(-1, shape[2], *shape[:2])
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1))


def _blocks(file, stream, first, piece, longest):
    """Yield (number of the block's first line, block of whole lines), from line `first` on."""
    rest = b""
    while piece:
        block = rest + piece
        end = block.rfind(b"\n") + 1
        rest = block[end:]
        if end:
            yield first, block[:end]
            first += block.count(b"\n")
        if first > MAX_IMAGES + 2:
            raise DataError(
                f"{file}: got more than {MAX_IMAGES} lines, expected at most {MAX_IMAGES}"
            )
        if len(rest) > longest:
            raise too_long(f"{file}, line {first}", longest)
        piece = stream.read(_BLOCK)
    if rest:
        yield first, rest


def _line_numbers(first, block):
    """The number of the line of each row, in a block that starts with line `first`."""
    lines = enumerate(block.split(b"\n"), first)
    return [number for number, line in lines if not is_empty(line)]


# --- Texts ----------------------------------------------------------------------------------------


class _LabelReader:
    """Collects the labels of a file from the texts in its label column."""

    def __init__(self, file):
        self._file, self._codes = file, []
        self._code_of_text, self._code_of_name, self._places = {}, {}, []

    def add(self, first, block, texts):
        """Add the labels of a block that starts with line number `first`. Raises DataError."""
        new = [row for row, text in enumerate(texts) if text not in self._code_of_text]
        lines = _line_numbers(first, block) if new else []
        for row in new:
            if (text := texts[row]) not in self._code_of_text:
                place = f"{self._file}, line {lines[row]}, label"
                self._code_of_text[text] = self._new(text, place)
        self._codes.append(np.array([self._code_of_text[text] for text in texts], np.uint16))

    def _new(self, text, place):
        shown = text.decode("utf-8", "replace")
        name = label_name(shown) if len(text) <= _LONGEST_TEXT else None
        if name is None or "\ufffd" in name:
            raise DataError(f"{place}: got {brief_field(shown)}, expected a number or a short text")
        if name not in self._code_of_name:
            if len(self._places) == MAX_CLASSES:
                raise too_many(place)
            self._code_of_name[name] = len(self._places)
            self._places.append(place)
        return self._code_of_name[name]

    def read(self):
        """The Labels of the file."""
        codes = np.concatenate(self._codes)
        return Labels(codes, tuple(self._code_of_name), tuple(self._places))


def _checked_ids(file, first, block, texts):
    """The ids of a block as str. They are written into a submission: raises DataError if bad."""
    ids = [text.decode("utf-8", "replace") for text in texts]
    for row, name in enumerate(ids):
        if not (0 < len(name) <= _LONGEST_TEXT and name.isprintable()) or set(name) & set(
            '",;\ufffd'
        ):
            place = f"{file}, line {_line_numbers(first, block)[row]}"
            raise DataError(f"{place}, id: got {brief_field(name)}, expected a number or a name")
    return ids


# --- Columns --------------------------------------------------------------------------------------


class _Layout:
    """What is in which column: columns, label and ids (their numbers or None), shape, notes."""

    def __init__(self, file, start, sample, training, shape):
        self._where = f"{file}, line 1"
        self._check_sort(start, sample)
        fields, delimiter = self._first_line(file, start)
        header = not _is_data(fields)
        lines = [] if header else [start]
        lines += sample.split(b"\n", _SAMPLE + 1)[:-1][:_SAMPLE]
        self._rows = self._split(lines, delimiter, len(fields))
        self._names = fields if header else [f"column {n + 1}" for n in range(len(fields))]
        self._header, self._shape = header, shape
        named = [name.strip().lower() if header else "-" for name in self._names]
        self.label = next((n for n, name in enumerate(named) if name in _LABEL_NAMES), None)
        self.ids = next((n for n, name in enumerate(named) if name in _ID_NAMES), None)
        extra = {n for n, name in enumerate(named) if name in _ID_NAMES | _INDEX_NAMES}
        extra -= {self.label}
        if len(extra) > _MOST_EXTRA:
            raise DataError(
                f"{self._where}: got {len(extra)} columns without a name or with one such as id,"
                f" expected at most {_MOST_EXTRA}"
            )
        self.notes = ()
        if self.label is None:
            extra |= self._find_label(sorted(set(range(len(fields))) - extra), training)
        texts = sorted(extra | ({self.label} - {None}))
        self.label_name = "label"
        if header and self.label is not None:
            self.label_name = self._names[self.label].strip()
        self.columns = Columns(delimiter, tuple(self._names), tuple(texts), header)
        self._check_names(texts)
        self.shape = self._image_shape(self.columns.pixels)
        if self.shape is None:
            raise self._wrong_count(self.columns.pixels)
        check_size(self._where, 1, self.shape)
        if training and self.label is None:
            pixels = f"{self.columns.pixels} column{'s' * (self.columns.pixels > 1)} of pixels"
            raise DataError(
                f"{self._where}: got {pixels} ({size_text(self.shape)}) and no labels, expected a"
                " column named label"
            )

    def _check_sort(self, line, rest):
        # A zero byte in a later line is a fault of that line.
        if sort := sort_of((line + rest[:512].replace(b"\0", b"0"))[:512]):
            raise DataError(f"{self._where}: got {sort}, expected a header or rows of pixels")

    def _first_line(self, file, line):
        if not line:
            raise DataError(
                f"{file}: got an empty file, expected a header label, pixel0, ... or rows of pixels"
            )
        line = line.rstrip(b"\r\n")
        delimiter = max((b",", b";", b"\t"), key=line.count)
        if (count := line.count(delimiter) + 1) > _MOST_COLUMNS:
            raise DataError(f"{self._where}: got {count} columns, expected at most {_MOST_COLUMNS}")
        return split_line(self._where, line, delimiter, longest_line(count)), delimiter

    def _split(self, lines, delimiter, count):
        """The fields of those of some lines that have the right number of them."""
        rows = []
        for line in lines:
            try:
                row = split_line("", line.rstrip(b"\r\n"), delimiter, longest_line(count))
            except DataError:  # parse finds it again
                continue
            if len(row) == count:
                rows.append(row)
        return rows

    def _find_label(self, rest, training):
        """Find a label without a name, in the first or last column; returns indices to ignore."""
        count, ignored = len(rest), set()
        indexed = bool(self._image_shape(count - 2)) and not self._image_shape(count - 1)
        # Without labels, a file with an index looks like one with labels: 16 lines tell.
        indexed |= bool(self._image_shape(count - 1)) and not training and len(self._rows) > 15
        if not self._header and indexed and _rises([row[0] for row in self._rows]):
            ignored, rest = {0}, rest[1:]
        fits, fits_labelled = (self._image_shape(len(rest) - labels) for labels in (0, 1))
        if fits_labelled and (training or not fits):
            self.label = self._edge(rest)
            self.notes = (f"label in the {'first' if self.label == rest[0] else 'last'} column",)
        return ignored

    def _edge(self, rest):
        """The first or the last column: the one that looks like a label."""
        if self._header:
            names = [_NUMBERED.fullmatch(self._names[n]) for n in (*rest[:2], *rest[-2:])]
            first, second, before, last = [name and name[1] for name in names]
            if second is not None and first != second and last == before:
                return rest[0]
            if before is not None and last != before and first == second:
                return rest[-1]
        unlikely = [_unlikely_label([row[n] for row in self._rows]) for n in (rest[0], rest[-1])]
        return rest[-1] if unlikely[1] < unlikely[0] else rest[0]

    def _image_shape(self, pixels):
        """The shape of an image with so many values; None if there is none."""
        if self._shape is not None:
            return tuple(self._shape) if math.prod(self._shape) == pixels else None
        for channels in (), (3,):
            area = pixels // math.prod(channels)
            side = math.isqrt(max(0, area))
            if side and side * side * math.prod(channels) == pixels:
                return side, side, *channels
        return None

    def _wrong_count(self, pixels):
        besides = [brief_field(self._names[n]) for n in self.columns.texts if self._header]
        besides = f" besides {', '.join(besides[:3])}" if besides else ""
        if self._shape is not None:
            expected = f"{math.prod(self._shape)} for images {size_text(self._shape)}"
        else:
            expected = (
                "a square number of them such as 784 (or 3 times a square in colour), or their size"
                " by --shape"
            )
        return DataError(
            f"{self._where}: got {pixels} columns of pixels{besides}, expected {expected}"
        )

    def _check_names(self, texts):
        """Numbered names must rise one by one: a column may be missing, twice or out of place."""
        pixels = [n for n in range(len(self._names)) if n not in texts] if self._header else []
        numbered = [_NUMBERED.fullmatch(self._names[n]) for n in pixels]
        if not all(numbered) or len({name[1] for name in numbered}) != 1:
            return
        for n, before, name in zip(pixels[1:], numbered, numbered[1:], strict=False):
            if int(name[2]) != int(before[2]) + 1:
                raise DataError(
                    f"{self._where}, column {n + 1}: got {brief_field(name[0])}, expected"
                    f" {brief_field(before[1] + str(int(before[2]) + 1))}"
                )


def _is_data(fields):
    """Whether a line has pixels.

    A header may have numbers, too: those that count the columns, or those that pandas makes of a
    first row, such as 0, 0.1, 0.2 for three zeros.
    """
    numbers = [field for field in fields if re.fullmatch(r"[0-9]{1,9}(\.0*)?", field)]
    counts = _rises(fields[len(fields) // 2 :]) and int(fields[-1]) > len(fields) - 4
    return 2 * len(numbers) > len(fields) and not counts


def _rises(fields):
    """Whether fields are whole numbers, each one more than that before it."""
    if not all(re.fullmatch("[0-9]{1,9}", field) for field in fields):
        return False
    numbers = [int(field) for field in fields]
    return numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else False


def _unlikely_label(values):
    """How unlikely a column is the label, as a tuple to compare: pixels vary less, or more.

    Pixels on the border hardly vary; others have more different values than there are classes.
    """
    count, distinct = len(values), Counter(values)
    pixels = sum(bool(re.fullmatch(r"[0-9]{1,3}(\.0*)?", v)) and float(v) <= 255 for v in values)
    if 2 * pixels < count:
        return -1, 0
    if not count or distinct.most_common(1)[0][1] >= 0.9 * count:
        return 1, 0
    return (2 if count >= 64 and 2 * len(distinct) > count else 0), len(distinct)
