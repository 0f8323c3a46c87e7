"""Checkpoints are whole or refused, whatever a file contains; in the library and the commands."""

import hashlib
import io
import json
import os
import pickle
import random
import re
import struct
import time
import tracemalloc
import zipfile

import numpy as np
import pytest

from minicnn import predict, train
from minicnn.data.digits import draw_digits
from minicnn.files import DataError
from minicnn.recipe import Recipe
from minicnn.training import archive, checkpoint
from minicnn.training.dataset import Data
from minicnn.training.trainer import Job, Trainer

TINY = Recipe(nets=2, epochs=3, batch_size=16, seed=5)
NAMES = "params", "moving", "moment_1", "moment_2", "sums", "history"
ROW = {"epoch": 1, "learning_rate": 1e-3, "train_loss": 0.5, "train_accuracy": 0.25}
ROW |= {"validation_loss": None, "validation_accuracy": 0.125, "seconds": 2.5}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The file of two nets, one of which has diverged, and its bytes."""
    folder = tmp_path_factory.mktemp("saved")
    job = Job(TINY, Data(*draw_digits(40)), "numpy", "float32", folder)
    trainer = Trainer(job, range(1, 3))
    trainer.history = [{"net": 1, **ROW}]
    trainer.diverged = {2: (1, 2)}
    trainer.model.step[...] = trainer.steps
    trainer.save(folder / "state.npz")
    return folder / "state.npz", (folder / "state.npz").read_bytes()


@pytest.fixture
def good(saved):
    return saved[1]


def sign(content):
    """The content with a valid checksum at its end, as an attacker can add."""
    content += b"minicnn checkpoint 2 sha256 "
    return content + hashlib.sha256(content).hexdigest().encode()


def packed(entries, **options):
    """A signed zip of {name: bytes}."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as target:
        for name, content in entries:
            with target.open(name, "w", force_zip64=True) as entry:
                entry.write(content)
        target.comment = bytes(92)
    return sign(file.getvalue()[:-92])


def unpacked(content):
    with zipfile.ZipFile(io.BytesIO(content)) as source:
        return [(name, source.read(name)) for name in source.namelist()]


def repacked(content, name, change, **options):
    """The file with one entry changed, and a valid checksum."""
    entries = [(n, change(c) if n == f"{name}.npy" else c) for n, c in unpacked(content)]
    return packed(entries, **options)


def npy(header, content=b""):
    """An .npy entry with this header."""
    return lambda old: b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + content


def text(about):
    """An entry `about` with this text."""
    shape = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({len(about)},), }}   \n"
    return npy(shape.encode(), about)


class Planted:
    """An object that must never be unpickled."""

    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


def pickled_array():
    file = io.BytesIO()
    np.savez(file, about=np.array([Planted()], dtype=object))
    return file.getvalue()


HUGE = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 999999999999), }\n"
OBJECTS = b"{'descr': '|O', 'fortran_order': False, 'shape': (2, 3), }\n"
FORTRAN = b"{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }\n"
CODE = b"{'descr': '<f4', 'fortran_order': exit(), 'shape': (2, 3), }\n"
NOT_WHOLE = "not a whole checkpoint of minicnn, expected its checksum"
ANOTHER = "got another sort of file, expected a checkpoint of minicnn"
CHANGED = "the content does not match its checksum, expected it unchanged"

FILES = {
    "empty": (lambda good: b"", ANOTHER),
    "text": (lambda good: b"label,pixel0\n" * 100, ANOTHER),
    "pickled": (lambda good: pickle.dumps(Planted()), ANOTHER),
    "an .npz with a pickle": (lambda good: pickled_array(), NOT_WHOLE),
    "truncated at the end": (lambda good: good[:-1], NOT_WHOLE),
    "truncated in the midst": (lambda good: good[: len(good) // 2], NOT_WHOLE),
    "a byte more": (lambda good: good + b"\n", NOT_WHOLE),
    "a flipped bit": (lambda good: flip(good, len(good) // 2), CHANGED),
    "a flipped bit in the directory": (lambda good: flip(good, len(good) - 200), CHANGED),
    "another checksum": (lambda good: good[:-64] + b"0" * 64, CHANGED),
    "another format": (
        lambda good: good.replace(b"checkpoint 2 sha256", b"checkpoint 7 sha256"),
        "got checkpoint format 7, expected 2",
    ),
    "not a zip, but signed": (lambda good: sign(b"PK\3\4" + bytes(90)), "about: not as minicnn"),
    "nothing, but signed": (lambda good: sign(b"PK\3\4"), "about: not as minicnn writes it"),
    "a zip bomb": (
        lambda good: repacked(
            good, "params", lambda c: bytes(10**8), compression=zipfile.ZIP_DEFLATED
        ),
        "about: not as minicnn writes it",
    ),
    "a path upwards": (
        lambda good: packed([(f"../../{name}", c) for name, c in unpacked(good)]),
        "about: not as minicnn writes it, expected an entry about.npy",
    ),
    "an absolute path": (
        lambda good: packed([(n.replace("moving", "/etc/passwd"), c) for n, c in unpacked(good)]),
        "moving: not as minicnn writes it, expected an entry moving.npy",
    ),
    "an entry twice": (
        lambda good: packed([e for e in unpacked(good) for _ in range(1 + ("params" in e[0]))]),
        "moving: not as minicnn",
    ),
    "an entry less": (lambda good: packed(unpacked(good)[:-1]), "history: not as minicnn writes"),
    "a lie about a size": (
        lambda good: repacked(good, "history", npy(HUGE)),
        r"history: got shape \(2, 999999999999\), expected one that fits into the file",
    ),
    "an array of objects": (
        lambda good: repacked(good, "moving", npy(OBJECTS, pickle.dumps(Planted()))),
        "moving: not as minicnn writes it",
    ),
    "another order": (lambda good: repacked(good, "moving", npy(FORTRAN, bytes(24))), "moving"),
    "code in a header": (lambda good: repacked(good, "moving", npy(CODE, bytes(24))), "moving"),
    "no JSON": (lambda good: repacked(good, "about", text(b"{")), "about: expected a JSON object"),
    "a JSON list": (lambda good: repacked(good, "about", text(b"[]")), "about: expected a JSON"),
    "not UTF-8": (lambda good: repacked(good, "about", text(b"\xff")), "about: expected a JSON"),
    "deep JSON": (lambda good: repacked(good, "about", text(b"[" * 10**6)), "about: expected a"),
    "a long number": (
        lambda good: repacked(good, "about", text(b'{"step": ' + b"9" * 10**6 + b"}")),
        "about: expected a JSON object",
    ),
    "a number without end": (
        lambda good: repacked(good, "about", text(b'{"seconds": 1e999, "nets": [0], "seed": 0}')),
        "step: got None|seconds: got inf, expected a number from 0 up",
    ),
    "NaN in JSON": (
        lambda good: repacked(good, "about", text(b'{"seconds": NaN}')),
        "about: expected a JSON object",
    ),
    "a long text": (
        lambda good: repacked(good, "about", text(b" " * (1 << 22))),
        "about: expected at most 2097152 bytes",
    ),
}


def flip(content, position):
    return content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :]


def assert_refused(path, expected, tmp_path, capsys):
    """Both commands that read checkpoints give status 2 and one line, and write nothing."""
    before = sorted(tmp_path.rglob("*"))
    out = tmp_path / "submission.csv"
    arguments = ["--checkpoint", str(path), "--data=digits", "--device=numpy", "--workers=1"]
    assert predict.main([*arguments, "--quiet", "--out", str(out)]) == 2
    stdout, stderr = capsys.readouterr()
    assert stdout == "" and stderr.count("\n") == 1
    assert stderr.startswith(f"minicnn.predict: error: {path}: ")
    assert re.search(expected, stderr), stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("fault", FILES)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, capsys, good, fault):
    make, expected = FILES[fault]
    path = tmp_path / "bad.npz"
    path.write_bytes(make(good))
    started = time.process_time()
    assert_refused(path, expected, tmp_path, capsys)
    assert time.process_time() - started < 5


def test_a_claimed_size_allocates_no_memory(tmp_path, good):
    for fault in ("a lie about a size", "a zip bomb", "deep JSON", "a long number"):
        content = FILES[fault][0](good)
        (tmp_path / "bad.npz").write_bytes(content)
        tracemalloc.start()
        with pytest.raises(DataError):
            checkpoint.load(tmp_path / "bad.npz")
        assert tracemalloc.get_traced_memory()[1] < len(content) + 20e6, fault
        tracemalloc.stop()


def test_what_is_no_file_is_refused(tmp_path, capsys):
    assert_refused(tmp_path / "none.npz", "no such file", tmp_path, capsys)
    assert_refused(tmp_path, "not a file, expected a checkpoint", tmp_path, capsys)
    assert_refused("/dev/zero", "not a file, expected a checkpoint", tmp_path, capsys)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.npz")
        assert_refused(tmp_path / "pipe.npz", "not a file, expected", tmp_path, capsys)


def test_a_file_larger_than_memory_is_refused_unread(tmp_path, capsys):
    path = tmp_path / "large.npz"
    with open(path, "wb") as file:
        try:
            file.truncate(1 << 42)
        except OSError:
            pytest.skip("this file system has no sparse files of that size")
    expected = "too large for memory: got 4,398,046,511,104 bytes, expected no more than the"
    assert_refused(path, expected, tmp_path, capsys)


def replaced(name, value):
    return lambda arrays, about: (arrays if name in arrays else about).update({name: value})


def changed(name, change):
    def spoil(arrays, about):
        where = arrays if name in arrays else about
        where[name] = change(where[name])

    return spoil


def at(row, column, value):
    def change(table):
        table = table.copy()
        table[row, column] = value
        return table

    return changed("history", change)


FIELDS = [
    (changed("params", lambda a: a[:, :-1]), r"params: got shape \(2, .*, expected \(2, "),
    (changed("params", lambda a: a[:1]), "params: got shape .* expected floats in 2 rows"),
    (changed("params", lambda a: a[0]), "params: got shape .* expected floats in 2 rows"),
    (changed("moving", lambda a: a.astype(np.uint8)), "moving: got shape .* of uint8, expected"),
    (replaced("step", -1), "step: got -1, expected an integer from 0"),
    (replaced("step", 1.5), "step: got 1.5, expected an integer"),
    (replaced("step", 2**32), "step: got 4294967296, expected"),
    (replaced("seed", "5"), "seed: got '5', expected an integer"),
    (replaced("seed", 6), "seed: got 6, expected 5"),
    (replaced("seconds", -1.0), "seconds: got -1.0, expected a number from 0 up"),
    (replaced("nets", 5), "nets: got 5, expected a list"),
    (replaced("nets", []), r"nets: got \[\], expected a list of 1 to 10000 numbers"),
    (replaced("nets", [0, 0]), r"nets: got \[0, 0\], expected different numbers"),
    (replaced("nets", list(range(10_001))), "nets: got .* expected a list of 1 to 10000"),
    (replaced("recipe", None), "recipe: got None, expected a recipe's fields"),
    (replaced("recipe", {"nets": -1}), "not a trained ensemble: nets: got -1, expected"),
    (replaced("recipe", {"exec": 1}), "not a trained ensemble: .* argument 'exec'"),
    (replaced("data", 7), "data: got 7, expected the data's fingerprint"),
    (replaced("network", {}), "network: got {}, expected {'conv2d/kernel'"),
    (replaced("network", {"dense/kernel": [-1]}), "network: got .* expected the shape of each"),
    (replaced("diverged", [{"net": 3, "epoch": 1, "step": 1}]), "diverged: got net 3, expected a"),
    (replaced("diverged", [{"net": 1}]), "diverged: got .* expected a list of {net, epoch, step}"),
    (
        replaced("diverged", [{"net": net, "epoch": 1, "step": 1} for net in (1, 2)]),
        "all of its nets diverged, expected one to use",
    ),
    (changed("history", lambda a: a[:, :-1]), r"history: got shape \(1, 7\) .* rows of 8 numbers"),
    (changed("history", lambda a: a[0]), r"history: got shape \(8,\) of float64, expected"),
    (changed("history", lambda a: a + 8), "history: row 1, net: got 9.0, expected a net of the fi"),
    (changed("history", lambda a: a + 0.5), "history: row 1, net: got 1.5, expected a net of the"),
    (changed("history", lambda a: a * np.inf), "history: row 1, net: got inf, expected a net"),
    (at(0, 1, 0.5), "history: row 1, epoch: got 0.5, expected a positive integer"),
    (at(0, 3, np.nan), "history: row 1, train_loss: got nan, expected a number"),
    (at(0, 5, -np.inf), "history: row 1, validation_loss: got -inf, expected a number or none"),
    *(
        (lambda arrays, about, name=name: about.pop(name), f"{name}: got None, expected")
        for name in "nets seed step seconds recipe data network diverged".split()
    ),
]


@pytest.mark.parametrize(("spoil", "expected"), FIELDS)
def test_a_field_that_does_not_fit_is_refused(tmp_path, capsys, saved, spoil, expected):
    arrays, about = archive.read(saved[0], NAMES)
    arrays = dict(arrays)
    spoil(arrays, about)
    path = tmp_path / "bad.npz"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive.json, "dumps", lambda value, **_: json.JSONEncoder().encode(value))
        archive.write(path, arrays, about)
    assert_refused(path, expected, tmp_path, capsys)


def test_what_is_saved_is_loaded(saved):
    arrays, about = checkpoint.load(saved[0])
    assert about["nets"] == [0, 1] and about["seed"] == 5
    assert about["diverged"] == [{"net": 2, "epoch": 1, "step": 2}]
    assert checkpoint.history_rows(arrays["history"]) == [{"net": 1, **ROW}]
    for name in ("params", "moving", "moment_1", "moment_2"):
        assert np.isfinite(arrays[name][0]).all() and np.isnan(arrays[name][1]).all()
    with np.load(saved[0]) as file:  # NumPy reads it too
        np.testing.assert_array_equal(file["params"], arrays["params"])


def test_no_prefix_and_no_flipped_bit_passes_for_a_checkpoint(tmp_path, good):
    """Tries more places at the two ends, because most bytes between are weights."""
    dice, path = random.Random(0), tmp_path / "bad.npz"
    for _ in range(100):
        at = dice.choice([dice.randrange(len(good)), dice.randrange(9000), -dice.randrange(1, 900)])
        for content in (good[:at], flip(good, at % len(good))):
            path.write_bytes(content)
            with pytest.raises(DataError, match=r"bad\.npz: "):
                checkpoint.load(path)


@pytest.mark.full(but="nan")
@pytest.mark.parametrize("weight", [np.nan, 1e30])
def test_a_net_whose_predictions_are_not_finite_has_no_vote(tmp_path, capsys, saved, weight):
    arrays, about = archive.read(saved[0], NAMES)
    params = np.repeat(arrays["params"][:1], 2, axis=0)
    params[1] = weight
    moving = np.repeat(arrays["moving"][:1], 2, axis=0)
    path, out = tmp_path / "mixed.npz", tmp_path / "submission.csv"
    arguments = ["--checkpoint", str(path), "--data=digits", "--device=numpy", "--workers=1"]
    arguments += ["--quiet", "--out", str(out)]
    archive.write(path, {**arrays, "params": params, "moving": moving}, {**about, "diverged": []})
    assert predict.main(arguments) == 0
    stdout, stderr = capsys.readouterr()
    assert (
        stderr
        == "minicnn.predict: warning: net 2 does not predict finite values, and has no vote\n"
    )
    assert "Ensemble of 1: " in stdout
    params[0] = weight
    out.unlink()
    archive.write(path, {**arrays, "params": params, "moving": moving}, {**about, "diverged": []})
    assert predict.main(arguments) == 2
    assert "none of its nets predicts finite values" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("out", ["/dev/null", "."])
def test_predictions_replace_files_only(tmp_path, capsys, monkeypatch, saved, out):
    monkeypatch.chdir(tmp_path)
    arguments = ["--checkpoint", str(saved[0]), "--data=digits", "--out", out]
    assert predict.main(arguments) == 2
    assert (
        f"argument --out: {out} is not a file, expected a file or a new name"
        in capsys.readouterr().err
    )


# ---- going on with a training -------------------------------------------------------------------


RUN = "--limit=150 --test-limit=40 --nets=1 --epochs=2 --batch-size=32 --device=numpy".split()


@pytest.fixture(scope="module")
def half_a_run(tmp_path_factory):
    """The folder of a run that stopped after its first epoch."""
    folder = tmp_path_factory.mktemp("half") / "out"
    calls = iter(range(10_000))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.StopOnSignal, "__call__", lambda self: next(calls) > 5)
        patch.setattr(train.StopOnSignal, "status", 130)
        arguments = [*RUN, "--quiet", "--no-figures", "--workers=1", "--out", str(folder)]
        assert train.main(arguments) == 130
    return folder, arguments


EPOCH = np.eye(8)[1]  # one more, in a row of a history


def copied(folder, target):
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda arrays, about: about.update(data="x"), "data: got 'x', expected '"),
        (lambda arrays, about: about["recipe"].update(decay=1.5), "recipe: got decay 1.5, exp"),
        (lambda arrays, about: about.update(seed=1), "seed: got 1, expected 0"),
        (lambda arrays, about: about.update(nets=[3]), "does not hold net 1|history"),
        (lambda arrays, about: about.update(network={}), "network: got {}, expected {'conv2d"),
        (lambda arrays, about: about.update(step=1), "history: expected all epochs of each net"),
        (lambda arrays, about: about.update(step=99), "history: expected all epochs of each net"),
        (changed("sums", lambda a: a[:, :2]), r"sums: got shape \(1, 2\), expected \(1, 3\)"),
        (changed("history", lambda a: np.concatenate([a, a])), "history: expected all epochs"),
        (
            lambda arrays, about: (
                about.update(step=12),
                arrays.update(
                    history=np.concatenate([arrays["history"] + k * EPOCH for k in (0, 1, 2)])
                ),
            ),
            "history: expected all epochs",
        ),
        (changed("moment_1", lambda a: a[:, 1:]), "moment_1: got shape"),
    ],
)
def test_resume_refuses_a_checkpoint_that_does_not_fit(
    tmp_path, capsys, half_a_run, spoil, expected
):
    folder = copied(half_a_run[0], tmp_path / "out")
    path = folder / "checkpoint-net-001.npz"
    arrays, about = archive.read(path, NAMES)
    arrays = dict(arrays)
    spoil(arrays, about)
    archive.write(path, arrays, about)
    content = path.read_bytes()
    assert train.main([*half_a_run[1][:-1], str(folder), "--resume"]) == 2
    stderr = capsys.readouterr().err.splitlines()
    assert stderr[-1].startswith(f"minicnn.train: error: {path}: ")
    assert re.search(expected, stderr[-1]), stderr
    assert path.read_bytes() == content


@pytest.mark.parametrize("fault", ["truncated in the midst", "a flipped bit", "empty"])
def test_resume_refuses_a_damaged_checkpoint(tmp_path, capsys, half_a_run, fault):
    folder = copied(half_a_run[0], tmp_path / "out")
    path = folder / "checkpoint-net-001.npz"
    path.write_bytes(FILES[fault][0](path.read_bytes()))
    arguments = [*half_a_run[1][:-1], str(folder), "--resume"]
    assert train.main(arguments) == 2
    stderr = capsys.readouterr().err
    assert stderr.splitlines()[-1].startswith(f"minicnn.train: error: {path}: ")
    path.unlink()  # without it, its nets begin anew
    assert train.main(arguments) == 0
