"""Inputs of the fuzzer for each reader of files: seeds, mutations of the format, and checks.

Each class has seeds (valid inputs), mutate, and read, which also checks the result. In inputs of
CSV and IDX the first byte says whether the rest is compressed, and whether it has labels. fuzz.py
is the command.
"""

import csv
import gzip
import hashlib
import importlib
import io
import re
import zlib
from functools import partial
from random import Random

import numpy as np
from fuzz_images import ImageFile

LONGEST = 1 << 15  # bytes of an input; gzip makes at most 1,032 times as many of them
LONGEST_TEXT = 3 << 19  # bytes of a file that a mutation decompresses or makes: two blocks of CSV
LABELLED = 1 << 7  # in an input's first byte: CSV with labels

PIXELS = [b"pixel%d" % i for i in range(784)]
FIELDS = [
    *(b"0", b"7", b"255", b"007", b'"1"', b"", b"-1", b"-0", b"+5", b"10", b"256", b"65536"),
    *(b"2147483648", b"9223372036854775808", b"18446744073709551616", b"9" * 40, b"0" * 40),
    *(b"NaN", b"NA", b"inf", b"None", b"True", b"text", b"1e2", b"0x10", b"1_0", b"1.0", b"1;2"),
    *(b'"', b'""', b'"""', b'"1', b'1"', b'"1"2', b'1""', b'"1,2"', b'"1\n"', b"'1'", b"#", b"\\"),
    *(b" ", b"\t1", b"1\r", b"\r1", b"\0", b"1\0", b"\xff", b"\x1b[2J", b"label", b"pixel0"),
    *("\uff11 \u0663 \u2028 \u202e1 \u00b2 1\u00a0 \U0001d7d9 \ufeff".encode().split(b" ")),
]
LINES = [b"", b"\r", b"\r\r", b" ", b",", b'""', b"," * 783, b"," * 784, *FIELDS]
REPLACED = [
    *((b"\n", b"\r\n"), (b"\n", b"\r"), (b"\n", b"\n\n"), (b"\n", b"\r\r\n"), (b"\n", b"\n\r")),
    *((b"\r\n", b"\n"), (b",", b'","'), (b",", b",,"), (b",", b";"), (b'"', b""), (b"0", b"00")),
]
WORDS = 0, 1, 2, 9, 27, 28, 29, 784, 500_000, 500_001, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF
JSON = [
    *(b"0", b"1", b"-1", b"1.5", b"1e999", b"9" * 12, b"9" * 30, b"null", b"true", b"NaN"),
    *(b"{}", b"[]", b"[[", b'"', b'"x"', b"[0,0]", b'"\\ud800"', b'"a\\u0000b"', b"[1e3]"),
    *(b'{"net": 1, "epoch": 1, "step": 1}', b"Infinity", b'"nets"', b'"step"', b'"\xff"'),
]
MAGIC = 0, 0x800, 0x801, 0x802, 0x803, 0x804, 0xD03, 0x01080000, 0x1F8B0800


# --- Mutations ------------------------------------------------------------------------------------


def noise(content, random):
    """The bytes after a mutation that ignores the format."""
    first, last = sorted(random.randrange(len(content) + 1) for _ in range(2))
    last = random.choice((last, min(last, first + random.randrange(9))))
    start, piece, rest = content[:first], content[first:last], content[last:]
    flipped = bytes(byte ^ (1 << random.randrange(8)) for byte in piece[:9]) + piece[9:]
    filled = random.choice((b"\0", b"\xff", b"\n", b",", b'"')) * max(1, len(piece))
    added = piece + random.randbytes(random.randrange(1, 17))
    return start + random.choice((flipped, filled, added, piece * 2, b"")) + rest


def edit_items(items, new, random):
    """Fields or lines after one was removed, replaced or quoted, or others were inserted."""
    place = random.randrange(len(items)) * (random.random() < 0.9)  # often the first: the label
    old, other, token = items[place], random.choice(items), random.choice(new)
    many = token * int(10 ** random.uniform(0, 4.3))
    choices = (), (old, old), (token, old), (other,), (b'"%b"' % old,), (many,), (token,), (token,)
    return [*items[:place], *random.choice(choices), *items[place + 1 :]]


def inflate(content):
    """The content of a gzip stream, or None for a bad or a long one."""
    try:
        with gzip.open(io.BytesIO(content)) as stream:
            plain = stream.read(LONGEST_TEXT + 1)
    except (OSError, EOFError, zlib.error):
        return None
    return plain if len(plain) <= LONGEST_TEXT else None


def deflate(plain):
    """A gzip stream without a time stamp."""
    return gzip.compress(plain, 1, mtime=0)


def damage(stream, random):
    """A gzip stream after a mutation of its headers, its members, its checksum or of any byte."""
    member = deflate(random.choice((b"", b"0", b"\n", random.randbytes(20))))
    place = random.choice([*range(10), *range(len(stream) - 8, len(stream))])
    changed = stream[: max(0, place)] + random.randbytes(1) + stream[max(0, place) + 1 :]
    longer = stream + random.choice((member, bytes(1), bytes(20), b"trailing", stream[:11]))
    shorter = stream[: -random.randrange(1, 10)]
    return random.choice((changed, longer, shorter, noise(stream, random), noise(stream, random)))


def mutate_file(content, zipped, edit, random):
    """(the bytes of a file, whether its name ends in .gz) after one mutation."""
    if random.random() < 0.01:
        return content, not zipped
    plain = inflate(content) if zipped else content
    if plain is None or (zipped and random.random() < 0.25):
        return damage(content, random), True
    plain = edit(plain, random)[:LONGEST_TEXT]
    if zipped and random.random() < 0.1:  # two members
        half = random.randrange(len(plain) + 1)
        return deflate(plain[:half]) + deflate(plain[half:]), True
    if len(plain) > LONGEST - 5 or random.random() < (0.9 if zipped else 0.05):
        return deflate(plain), True
    return plain, False


# --- Readers --------------------------------------------------------------------------------------


class Csv:
    """Kaggle's CSV: a byte that says how it is read, 1 for gzip plus LABELLED; then the file."""

    modules = "minicnn.data.formats", "minicnn.files"  # where branches are counted

    def __init__(self, folder):
        # Not at the top: the command has them instrumented as they are imported.
        self._read_csv = importlib.import_module("minicnn.data.formats").read_csv
        self.paths = [folder / "any.csv", folder / "any.csv.gz"]
        self._texts = self._make_texts(0) + self._make_texts(1)

    def _make_texts(self, labelled):
        random, names = Random(labelled), [b"label"] * labelled + PIXELS
        rows = [[random.randrange(10), *random.choices(range(256), k=784)] for _ in range(3)]
        lines = [b",".join(b"%d" % value for value in row[-len(names) :]) + b"\n" for row in rows]
        header = b",".join(names) + b"\n"
        short, long = header + lines[0], header + b"".join(lines)
        quoted = b'"%b"\n' % short[:-1].replace(b",", b'","').replace(b"\n", b'"\n"')
        variants = b"\xef\xbb\xbf" + short, short[:-1], short.replace(b"\n", b"\n\n\r\n"), quoted
        return [short, long, long.replace(b"\n", b"\r\n"), *variants]

    def seeds(self):
        inputs = [bytes([LABELLED * (b"label" in text)]) + text for text in self._texts]
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
        path, labelled = self.paths[how & 1], bool(how & LABELLED)
        path.write_bytes(content[1:])
        images, labels = self._read_csv(path, labelled)
        check_arrays(images, labels, labelled)
        text = inflate(content[1:]) if how & 1 else content[1:]
        if text is not None:
            lines = [line for line in text.decode().split("\n")[1:] if line not in ("", "\r")]
            rows = [next(csv.reader([line], strict=True)) for line in lines]
            assert all(re.fullmatch("[0-9]+", field) for row in rows for field in row)
            columns = [labels[:, None]] if labelled else []
            table = np.hstack([*columns, images.reshape(-1, 784)])
            assert table.tolist() == [[int(field[-18:]) for field in row] for row in rows]


class Idx:
    """MNIST's IDX: a byte, 1 for gzip in images plus 2 in labels; the images' file's size; both."""

    modules = Csv.modules

    def __init__(self, folder):
        self._read_pair = importlib.import_module("minicnn.data.formats").read_idx_pair
        self.paths = [folder / name for name in ("images", "images.gz", "labels", "labels.gz")]

    def seeds(self):
        random, inputs = Random(0), []
        for count, how in (1, 0), (2, 0), (3, 1), (3, 2), (2, 3):
            images = idx(0x803, count, 28, 28) + random.randbytes(count * 784)
            labels = idx(0x801, count) + bytes(random.choices(range(10), k=count))
            images = deflate(images) if how & 1 else images
            inputs.append(self._join(how, images, deflate(labels) if how & 2 else labels))
        return inputs

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
        images, labels = self._read_pair(*paths)
        check_arrays(images, labels, True)
        for array, path, file in zip((images, labels), paths, files, strict=True):
            plain = inflate(file) if path.suffix else file
            again = idx(0x800 + array.ndim, *array.shape) + array.tobytes()
            assert plain in (None, again), "got other values"


class Checkpoint:
    """Checkpoints of a small network: an input is a file.

    Most get a valid checksum after the change, so that reading continues behind it.
    """

    modules = "minicnn.training.archive", "minicnn.training.checkpoint", "minicnn.files"

    def __init__(self, folder):
        self._checkpoint = importlib.import_module("minicnn.training.checkpoint")
        self.paths = [folder / "any.npz"]

    def seeds(self):
        about = {"seed": 0, "step": 4, "seconds": 0.5, "recipe": {"nets": 2}, "data": "0" * 64}
        about["network"] = {"dense/kernel": [3, 2], "dense/bias": [2]}
        row = dict.fromkeys(self._checkpoint.HISTORY_COLUMNS, 1) | {"validation_loss": None}
        inputs = []
        for nets in (1, 2, 3):
            arrays = {name: np.full((nets, 8), 0.5, "f4") for name in ("params", "moment_1")}
            arrays["moment_2"] = np.full((nets, 8), np.nan, "f8")
            arrays |= {"moving": np.ones((nets, 0), "f4"), "sums": np.ones((nets, 3))}
            arrays["history"] = self._checkpoint.history_table([row] * (nets - 1))
            about["nets"] = list(range(nets))
            about["diverged"] = [{"net": nets, "epoch": 1, "step": 2}] * (nets > 1)
            self._checkpoint.save(self.paths[0], arrays, about)
            inputs.append(self.paths[0].read_bytes())
        return inputs

    def mutate(self, content, random):
        kind, body = random.randrange(20), content[:-64]
        if kind == 0:
            return noise(content, random)
        if kind < 3:  # the first number of an array
            places = [match.end() for match in re.finditer(rb"\), \} *\n", body)] or [0]
            place, size = random.choice(places), random.choice((1, 4, 8))
            number = np.array(random.choice((0, 1, -1, 0.5, np.nan, np.inf, 1e300))).tobytes()
            body = body[:place] + number[:size] + body[place + size :]
        elif kind < 10:
            body = self._edit_text(body, random)
        elif kind < 15:  # a number in digits
            places = [match.start() for match in re.finditer(rb"\d+", body)] or [0]
            place = random.choice(places)
            digits = random.choice((b"%d" % random.choice(WORDS), b"9" * 12, b"-1", b"1.5", b""))
            body = body[:place] + digits + body[place + random.randrange(1, 4) :]
        elif kind < 17:  # a number in binary
            place = random.randrange(len(body) + 1)
            word = random.choice(WORDS).to_bytes(4, random.choice(("big", "little")))
            word = random.choice((word, word[:2], word * 2))
            body = body[:place] + word + body[place + len(word) :]
        else:
            body = noise(body, random)
        return body + hashlib.sha256(body).hexdigest().encode()

    def _edit_text(self, body, random):
        """Change the text, and its length in the header before it."""
        found = re.search(rb"'shape': \((\d+),\), \} *\n(\{.*?\})PK\x03\x04", body, re.DOTALL)
        if not found:
            return noise(body, random)
        text = found[2]
        kind = random.randrange(5)
        if kind == 0:
            text = noise(text, random)
        elif kind == 1:
            deep = random.choice((b"[", b'{"a":', b"9", b" ", b'"', b"[],"))
            text += deep * int(10 ** random.uniform(0, 6)) if random.random() < 0.1 else deep
        else:
            values = [m.span() for m in re.finditer(rb'"[^"]*"|\d+(?:\.\d+)?|\[[^[]*?\]', text)]
            first, last = random.choice(values or [(0, 0)])
            text = text[:first] + random.choice(JSON) + text[last:]
        length = b"%d" % len(text)
        start, end = found.span(1)
        return body[:start] + length + body[end : found.start(2)] + text + body[found.end(2) :]

    def read(self, content):
        """Read an input, and compare its arrays with the bytes of the file."""
        self.paths[0].write_bytes(content)
        arrays, about = self._checkpoint.load(self.paths[0])
        nets = about["nets"]
        assert 1 <= len(nets) <= 10_000 and 0 <= about["step"] < 2**32 and about["seconds"] >= 0
        for name, array in arrays.items():
            assert array.ndim == 2 and array.dtype.kind == "f" and array.tobytes() in content
            assert name == "history" or len(array) == len(nets)
        rows = self._checkpoint.history_rows(arrays["history"]) + about["diverged"]
        assert {row["net"] - 1 for row in rows} <= set(nets)
        chosen = self._checkpoint.select(arrays, about, nets[:1], self.paths[0])
        self._checkpoint.concatenate([chosen])


def idx(*words):
    """Words of 32 bits as in the header of an IDX file."""
    return b"".join(word.to_bytes(4, "big") for word in words)


def check_arrays(images, labels, labelled):
    """Check types, shapes and labels."""
    count = len(images)
    assert images.dtype == "uint8" and images.shape == (count, 28, 28) and count, images.shape
    if labelled:
        assert labels.dtype == "uint8" and labels.shape == (count,) and labels.max() <= 9, labels
    else:
        assert labels is None


READERS = {"csv": Csv, "idx": Idx, "image": ImageFile, "checkpoint": Checkpoint}
