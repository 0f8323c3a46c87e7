"""Inputs of the fuzzer for the readers of .npz, zip and checkpoints. Read fuzz_readers.py first."""

import hashlib
import importlib
import io
import re
import shutil
import zipfile
from random import Random

import numpy as np
from fuzz_images import ImageFile
from fuzz_mutations import JSON, WORDS, deflate, idx, noise
from fuzz_readers import Csv, Idx, check_arrays


class Npz:
    """Keras's .npz: an input is a file."""

    modules = "minicnn.data.npz_files", *Csv.modules[2:]

    def __init__(self, folder):
        self._read_npz = importlib.import_module("minicnn.data.npz_files").read_npz
        self.paths = [folder / "any.npz"]

    def seeds(self):
        random, inputs = np.random.default_rng(0), []
        for save, shape, dtype in (
            (np.savez, (3, 5, 4), "u1"),
            (np.savez_compressed, (2, 4, 4, 3), "u1"),
            (np.savez_compressed, (3, 4, 4, 1), "f4"),
            (np.savez, (2, 4, 5), "i8"),
        ):
            x = (random.random(shape) * (1 if dtype == "f4" else 255)).astype(dtype)
            y = np.arange(len(x)).astype(random.choice(["u1", "i8", "f8"]))
            buffer = io.BytesIO()
            save(buffer, x_train=x, y_train=y[:, None], x_test=np.asfortranarray(x), y_test=y)
            inputs.append(buffer.getvalue())
        return inputs

    def mutate(self, content, random):
        kind = random.randrange(12)
        if kind < 3:
            return edit_header(content, random)
        if kind < 10:
            arrays = members(content)
            if arrays:
                return zipped(self._edited(arrays, random), random)
        return noise(content, random)

    def _edited(self, arrays, random):
        """The members after a change of one; the zip around them is whole."""
        name = random.choice(list(arrays))
        text = arrays[name]
        match random.randrange(9):
            case 0:
                arrays[name] = noise(text, random)
            case 5 | 6:  # a byte of a value
                place = random.randrange(128, max(129, len(text)))
                arrays[name] = text[:place] + random.randbytes(1) + text[place + 1 :]
            case 7:
                arrays[f"{name[:-4]}_2.npy"] = text
            case 8 if name.startswith("y_"):
                labels = np.array(random.choices((0, 1, 7, 300, -1), k=random.randrange(1, 5)))
                arrays[name] = npy(labels)
            case 1:
                arrays[random.choice(("x_train.npy", "y_train.npy", "z"))] = arrays.pop(name)
            case 2:  # a number of the header
                places = [m.span() for m in re.finditer(rb"[0-9]+", text[:128])] or [(0, 0)]
                first, last = random.choice(places)
                number = random.choice((b"0", b"1", b"2", b"3", b"4", b"9" * 12, b"8"))
                arrays[name] = text[:first] + number + text[last:]
            case 3:
                array = random.choice(
                    (np.float32([[[np.nan]]]), np.array(["a"]), np.arange(3.5), np.ones((2, 2, 2)))
                )
                arrays[name] = npy(array)
            case 4:
                arrays[name] = text[: -random.randrange(1, 20)]
        return arrays

    def read(self, content):
        """Read an input, and compare the arrays with those that NumPy reads."""
        self.paths[0].write_bytes(content)
        parts = self._read_npz(self.paths[0])
        for part, name in zip(parts, ("train", "test"), strict=True):
            if part is None:
                continue
            check_arrays(part, name == "train")
            images = self._array(f"x_{name}")
            if images.dtype.kind == "f":
                images = np.rint(images.astype("f8") * 255)
            assert np.array_equal(part.images.reshape(images.shape), images), "other pixels"
            if part.labels is not None:
                names = [int(part.labels.names[code]) for code in part.labels.codes]
                assert names == self._array(f"y_{name}").reshape(-1).tolist(), "other labels"

    def _array(self, name):
        with zipfile.ZipFile(self.paths[0]) as archive:
            return np.load(io.BytesIO(archive.read(f"{name}.npy")), allow_pickle=False)


class Zip:
    """A zip archive with CSV or IDX files: an input is a file."""

    modules = "minicnn.data.folders", "minicnn.data.load", *Csv.modules, "minicnn.data.idx_files"

    def __init__(self, folder):
        self._load = importlib.import_module("minicnn.data.load").load
        self.paths = [folder / "any.zip"]
        self._unpacked = folder / "unpacked"

    def seeds(self):
        random = Random(5)
        lines = [b"label," + b",".join(b"p%d" % i for i in range(9))]
        lines += [b",".join(b"%d" % random.randrange(256) for _ in range(10)) for _ in range(4)]
        images = idx(0x803, 3, 4, 4) + random.randbytes(48)
        labels = idx(0x801, 3) + bytes([3, 4, 3])
        csvs = {"train.csv": b"\n".join(lines), "test.csv": b"\n".join(lines[:3])}
        pair = {"train-images-idx3-ubyte": images, "train-labels-idx1-ubyte.gz": deflate(labels)}
        return [zipped(files, random) for files in (csvs, pair, csvs | {"readme.txt": b"x"})]

    def mutate(self, content, random):
        if (kind := random.random()) < 0.5:
            return noise(content, random) if kind < 0.3 else edit_header(content, random)
        files = members(content)
        if not files:
            return noise(content, random)
        name = random.choice(list(files))
        match random.randrange(4):
            case 0 | 1:
                files[name] = noise(files[name], random)
            case 2:
                new = ["train.csv", "b/train.csv", "test.csv.gz", "../train.csv", "a\nb"]
                new += ["t10k-images-idx3-ubyte", "/etc/x", "__MACOSX/test.csv"]
                files[random.choice(new)] = files[name]
            case 3:
                del files[name]
        return zipped(files, random)

    def read(self, content):
        """Read an input, and compare it with the members unpacked by zipfile."""
        self.paths[0].write_bytes(content)
        data = self._load(self.paths[0])
        files = members(content)
        if not files or any("/" in name or not name.isprintable() for name in files):
            return  # another member is damaged; or a folder's own files would come first
        shutil.rmtree(self._unpacked, ignore_errors=True)
        self._unpacked.mkdir()
        for name, file in files.items():
            (self._unpacked / name).write_bytes(file)
        again = self._load(self._unpacked)
        for name in ("x_train", "y_train", "x_test", "y_test"):
            ours, theirs = getattr(data, name), getattr(again, name)
            assert np.array_equal(ours, theirs), f"other {name}"
        assert (data.classes, data.description) == (again.classes, again.description)


def edit_header(content, random):
    """An archive after a change of a field of a header, of the zip's or of an array's."""
    marks = (b"PK\1\2", b"PK\3\4", b"PK\5\6", b"\x93NUMPY", b"'descr': '", b"'shape': (")
    mark = re.escape(random.choice(marks))
    places = [found.end() for found in re.finditer(mark, content)] or [0]
    place = random.choice(places) + random.randrange(40)
    word = random.choice(WORDS).to_bytes(4, "little")
    word = random.choice((word, word[:2], word[:1], random.randbytes(1), b"9", b"0", b"|O"))
    return content[:place] + word + content[place + len(word) :]


def npy(array):
    """The bytes of an .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def members(content):
    """{name: content} of a zip archive; empty for a bad one."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return {name: archive.read(name) for name in archive.namelist() if name[-1:] != "/"}
    except Exception:  # zipfile raises many kinds
        return {}


def zipped(files, random):
    """A zip archive of {name: content} without time stamps."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", random.choice((0, 8))) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, random.choice((0, 8)))
    return buffer.getvalue()


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


READERS = {
    **{"csv": Csv, "idx": Idx, "npz": Npz, "zip": Zip, "image": ImageFile},
    "checkpoint": Checkpoint,
}
