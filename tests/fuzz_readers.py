"""Inputs of the fuzzer for the readers of data sets: seeds, mutations of the format, and checks.

Each class has seeds (valid inputs), mutate, and read, which also checks the result. In inputs of
CSV and IDX the first byte says whether the rest is compressed, and whether it has labels. fuzz.py
is the command.
"""

import csv
import importlib
import re
from functools import partial
from random import Random

import numpy as np
from fuzz_mutations import (
    FIELDS,
    LINES,
    LONGEST_TEXT,
    MAGIC,
    REPLACED,
    WORDS,
    deflate,
    edit_items,
    idx,
    inflate,
    mutate_file,
    noise,
)

LABELLED = 1 << 7  # in an input's first byte: CSV with labels
PIXELS = [b"pixel%d" % i for i in range(784)]


class Csv:
    """CSV: a byte that says how it is read, 1 for gzip plus LABELLED for training; then a file."""

    modules = (  # where branches are counted
        *("minicnn.data.csv_files", "minicnn.data.csv_blocks", "minicnn.data.labels"),
        *("minicnn.data.sources", "minicnn.files"),
    )

    def __init__(self, folder):
        # Not at the top: the command has them instrumented as they are imported.
        self._read_csv = importlib.import_module("minicnn.data.csv_files").read_csv
        self._file = importlib.import_module("minicnn.data.sources").File
        self.paths = [folder / "any.csv", folder / "any.csv.gz"]
        self._texts = self._make_texts(0) + self._make_texts(1)
        self._others = self._make_others()

    def _make_texts(self, labelled):
        random, names = Random(labelled), [b"label"] * labelled + PIXELS
        rows = [[random.randrange(10), *random.choices(range(256), k=784)] for _ in range(3)]
        lines = [b",".join(b"%d" % value for value in row[-len(names) :]) + b"\n" for row in rows]
        header = b",".join(names) + b"\n"
        short, long = header + lines[0], header + b"".join(lines)
        quoted = b'"%b"\n' % short[:-1].replace(b",", b'","').replace(b"\n", b'"\n"')
        variants = b"\xef\xbb\xbf" + short, short[:-1], short.replace(b"\n", b"\n\n\r\n"), quoted
        return [short, long, long.replace(b"\n", b"\r\n"), *variants]

    def _make_others(self):
        """Small files in other forms, all with labels."""
        random = Random(3)
        rows = [[b"%d" % random.randrange(256) for _ in range(12)] for _ in range(4)]
        names, labels = [b"p%d" % i for i in range(12)], [b"cat", b'"a, b"', b"cat", b"-1"]
        tables = (
            [[b"id", b"label", *names]] + [[b"%d" % i, labels[i], *r] for i, r in enumerate(rows)],
            [[*names, b"class"]] + [[*r, b"%d" % i] for i, r in enumerate(rows)],
            [[b"7", *r] for r in rows[:2]] + [[b"8", *r] for r in rows[2:]],
            [[b"%d" % i, *r, b"ABAB"[i : i + 1]] for i, r in enumerate(rows)],
            [[b"label", *names]]
            + [[b"%d.0" % i, *(v + b".0" for v in r)] for i, r in enumerate(rows)],
        )
        texts = [b"".join(b",".join(row) + b"\n" for row in table) for table in tables]
        return [*texts, texts[1].replace(b",", b";"), texts[4].replace(b",", b"\t")]

    def seeds(self):
        inputs = [bytes([LABELLED * (b"label" in text)]) + text for text in self._texts]
        inputs += [bytes([LABELLED]) + text for text in self._others] + [b"\0" + self._others[0]]
        return inputs + [bytes([file[0] | 1]) + deflate(file[1:]) for file in inputs[::3]]

    def mutate(self, content, random):
        how = content[0] if content else 0
        how ^= LABELLED * (random.random() < 0.02)
        file, zipped = mutate_file(content[1:], how & 1, self._edit, random)
        return bytes([how & ~1 | zipped]) + file

    def _edit(self, text, random):
        body = text.find(b"\n") + 1 if random.random() < 0.9 else 0  # the header is rarely changed
        return text[:body] + self._edit_lines(text[body:], random)

    def _edit_lines(self, text, random):
        kind, place = random.randrange(30), random.randrange(len(text) + 1)
        match kind:
            case 0 | 1:
                return noise(text, random)
            case 2:
                return text[:place]
            case 3:
                other = random.choice(self._texts).partition(b"\n")[2]
                return text[:place] + other[random.choice((place, random.randrange(len(other)))) :]
            case 4 | 5:
                return text.replace(*random.choice(REPLACED), random.choice((-1, 1)))
            case 6:
                last = text.rstrip(b"\r\n").rpartition(b"\n")[2] + b"\n"
                piece = random.choice((last, last, text[place : place + 99], b"\n", b"\r\n", b"0"))
                most = 6.2 if random.random() < 0.02 else 2  # a long file takes long to read
                count = int(10 ** random.uniform(0, most))
                return text + piece * min(count, LONGEST_TEXT // max(1, len(piece)))
        lines = text.split(b"\n")
        if kind < 11:
            return b"\n".join(edit_items(lines, LINES, random))
        row = random.randrange(len(lines))
        lines[row] = b",".join(edit_items(lines[row].split(b","), FIELDS, random))
        return b"\n".join(lines)

    def read(self, content):
        """Read an input, and compare the result with a strict parser's."""
        how = content[0] if content else 0
        path, training = self.paths[how & 1], bool(how & LABELLED)
        path.write_bytes(content[1:])
        part = self._read_csv(self._file(path), training)
        check_arrays(part, training)
        zipped = content[1:3] == b"\x1f\x8b"
        text = inflate(content[1:]) if zipped else content[1:]
        if text is not None:
            check_table(part, text.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace"))


def check_table(part, text):
    """Compare a Part with the rows that the csv module reads."""
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    lines = [
        line for number, line in enumerate(text.split("\n")) if number == 0 or line.strip("\r")
    ]
    rows = [next(csv.reader([line], strict=True, delimiter=delimiter), []) for line in lines]
    images = part.images if part.images.ndim == 3 else part.images.transpose(0, 3, 1, 2)
    pixels = images.reshape(len(images), -1)
    header = rows[0] if len(rows) > len(images) else None
    rows = rows[-len(images) :]
    columns = range(len(rows[0]))
    assert all(len(row) == len(columns) for row in rows)
    names = [name.strip().lower() for name in header or ()]
    texts = ("id", "imageid", "image_id", "", "index", "unnamed: 0")
    label = [n for n, name in enumerate(names) if name in ("label", "labels", "class", "target")][
        :1
    ]
    extra = {n for n, name in enumerate(names) if name in texts} | set(label)
    rest = [n for n in columns if n not in extra]
    match len(rest) - pixels.shape[1]:
        case 0:
            choices = [(label, set())]
        case 1:  # a label without a name, or an index without labels
            ends = {rest[0]}, {rest[-1]}
            choices = [(sorted(e) if part.labels else [], e) for e in ends]
        case _:  # an index, and a label
            choices = [([rest[1]], set(rest[:2])), ([rest[-1]], {rest[0], rest[-1]})]
    assert any(
        fits(part, pixels, rows, label, [n for n in rest if n not in left])
        for label, left in choices
    ), "got other values"


def fits(part, pixels, rows, label, columns):
    """Whether a Part has the pixels of some columns, and the labels of another."""
    fields = [[row[n] for n in columns] for row in rows]
    if not all(re.fullmatch(r"[0-9]+(\.0*)?", field) for row in fields for field in row):
        return False
    if [[int(field.partition(".")[0][-18:]) for field in row] for row in fields] != pixels.tolist():
        return False
    if part.labels is None:
        return True
    names = [part.labels.names[code] for code in part.labels.codes]
    texts = [row[n].strip() for row in rows for n in label]
    plain = [re.sub(r"^\+|(?<=[0-9])\.0*$", "", text) for text in texts]
    short = [re.sub(r"^(-?)0+(?=[0-9])", r"\1", text) for text in plain]
    short = ["0" if text == "-0" else text for text in short]
    return all(name in pair for name, *pair in zip(names, texts, short, strict=True))


class Idx:
    """IDX: a byte, 1 for gzip in images plus 2 in labels; the size of the images' file; both."""

    modules = "minicnn.data.idx_files", *Csv.modules[2:]

    def __init__(self, folder):
        self._read_pair = importlib.import_module("minicnn.data.idx_files").read_idx_pair
        self._file = importlib.import_module("minicnn.data.sources").File
        self.paths = [folder / name for name in ("images", "images.gz", "labels", "labels.gz")]

    def seeds(self):
        random, inputs = Random(0), []
        for count, how in (1, 0), (2, 0), (3, 1), (3, 2), (2, 3):
            images = idx(0x803, count, 28, 28) + random.randbytes(count * 784)
            labels = idx(0x801, count) + bytes(random.choices(range(10), k=count))
            images = deflate(images) if how & 1 else images
            inputs.append(self._join(how, images, deflate(labels) if how & 2 else labels))
        colour = idx(0x804, 2, 5, 4, 3) + random.randbytes(120)
        qmnist = idx(0xC02, 2, 8, *range(16))
        small = idx(0x803, 2, 4, 7) + random.randbytes(56)
        return [*inputs, self._join(0, colour, qmnist), self._join(0, small, idx(0xC01, 2, 1, 9))]

    def _join(self, how, images, labels):
        return bytes([how]) + idx(len(images)) + images + labels

    def _split(self, content):
        size = 5 + int.from_bytes(content[1:5], "big")
        return content[0] & 3 if content else 0, content[5:size], content[size:]

    def mutate(self, content, random):
        how, images, labels = self._split(content)
        kind = random.randrange(50)
        if kind == 0:
            return self._join(how, labels, images)
        if kind < 4 and how == 0:  # more in both; many fit into an input only if compressed
            more = random.choice((1, 2, 9, 1000))
            images = idx(0x803, len(labels) - 8 + more & 0xFFFFFFFF, 28, 28) + images[16:]
            labels = idx(0x801, len(labels) - 8 + more & 0xFFFFFFFF) + labels[8:] + bytes(more)
            return self._join(1, deflate(images + bytes(784 * more)), labels)
        if kind % 2:
            images, zipped = mutate_file(images, how & 1, partial(self._edit, 4, 784), random)
            return self._join(how & 2 | zipped, images, labels)
        labels, zipped = mutate_file(labels, how >> 1, partial(self._edit, 2, 1), random)
        return self._join(how & 1 | zipped << 1, images, labels)

    def _edit(self, words, item, file, random):
        header, values = file[: 4 * words], bytearray(file[4 * words :])
        match random.randrange(8):
            case 0:
                place = 4 * random.randrange(words)
                word = random.choice(WORDS if place else MAGIC)
                return header[:place] + idx(word) + header[place + 4 :] + values
            case 1:
                return file + random.choice((b"\0", bytes(item), bytes(LONGEST_TEXT)))
            case 2:
                return file[: -random.choice((1, item, random.randrange(1, 99)))]
            case 3:  # one more or one less, and the header says so
                count = max(0, len(values) // item + random.choice((-1, 1)))
                return header[:4] + idx(count) + header[8:] + (values + bytes(item))[: count * item]
            case 4 | 5 | 6 if values:  # a label, or a pixel
                values[random.randrange(len(values))] = random.randint(0, random.choice((9, 255)))
                return header + values
        return noise(file, random)

    def read(self, content):
        """Read an input, and check that the arrays give the same files again."""
        how, *files = self._split(content)
        paths = self.paths[how & 1], self.paths[2 + (how >> 1)]
        for path, file in zip(paths, files, strict=True):
            path.write_bytes(file)
        part = self._read_pair(*map(self._file, paths))
        check_arrays(part, True)
        images, labels = (inflate(f) if f[:2] == b"\x1f\x8b" else f for f in files)
        if images is not None:
            axes = images[3]
            shape = [int.from_bytes(images[4 * i : 4 * i + 4], "big") for i in range(1, 1 + axes)]
            assert tuple(shape[:3]) == part.images.shape[:3] and shape[3:] in (
                [],
                [1],
                [part.images.shape[-1]],
            )
            assert images[4 + 4 * axes :] == part.images.tobytes(), "got other pixels"
        if labels is not None:
            dtype = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4"}[labels[2]]
            values = np.frombuffer(labels[4 + 4 * labels[3] :], dtype).reshape(len(part.images), -1)
            names = [int(part.labels.names[code]) for code in part.labels.codes]
            assert names == values[:, 0].tolist(), "got other labels"


def check_arrays(part, labelled):
    """Check types, shapes and labels of a Part."""
    images, labels, count = part.images, part.labels, len(part.images)
    assert images.dtype == "uint8" and images.ndim in (3, 4) and images.size, images.shape
    assert images.ndim == 3 or images.shape[3] > 1
    assert labels is not None or not labelled
    if labels is not None:
        assert labels.codes.shape == (count,) and labels.codes.max() < len(labels.names) <= 1000
        assert len(labels.names) == len(labels.places) == len(set(labels.names))
