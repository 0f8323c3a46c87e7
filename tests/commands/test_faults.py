"""Commands refuse planted faults: status 2, one line that names the fault, nothing written.

Each table lists the faults of one kind of file, or of the arguments, and the text that the line
must contain. tests/data/ tests the readers alone, test_checkpoint.py checkpoints, and
test_machine_faults.py faults of the machine.
"""

import gzip
import os
import re
import signal
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from digit_files import (
    HUGE,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    append,
    csv_bytes,
    csv_rows,
    drop,
    drop_everywhere,
    header,
    idx_bytes,
    npz_bytes,
    quoted,
    with_field,
    zip_bytes,
)
from runs import command, state

from minicnn import devices, predict, train
from minicnn.backends import native
from minicnn.data.digits import draw_digits

SMALL = (
    "--data=data --limit=40 --nets=1 --epochs=1 --batch-size=16 --device=numpy --workers=1 "
    "--no-figures --quiet"
).split()
SECONDS = 5  # of CPU time that a refusal may take
WAITING = 60  # seconds after which a command hangs, for example at a pipe

IMAGES, LABELS = draw_digits(40)
TESTED, TESTED_LABELS = draw_digits(8, first=40)
CSV = {
    "train.csv": csv_bytes(csv_rows(IMAGES, LABELS)),
    "test.csv": csv_bytes(csv_rows(TESTED)),
}
SMALLER = csv_bytes(csv_rows(TESTED[:, 4:24, 4:24]))
OTHER = csv_bytes(csv_rows(TESTED[:3], [1, 2, 10]))
IDX = {
    TRAIN_IMAGES: idx_bytes(IMAGES),
    TRAIN_LABELS: idx_bytes(LABELS),
    TEST_IMAGES: idx_bytes(TESTED),
    TEST_LABELS: idx_bytes(TESTED_LABELS),
}


def write(files):
    """Write these files into the folder "data", and return it."""
    folder = Path("data")
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def compressed(files):
    return {f"{name}.gz": gzip.compress(content) for name, content in files.items()}


def everything():
    """{path: bytes} of everything in the working folder."""
    return {path: path.read_bytes() if path.is_file() else None for path in Path().rglob("*")}


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def main(capsys):
    """Calls a command's main and returns (status, stdout, stderr); stops one that hangs."""

    def call(module, arguments):
        with stopped_in_time():
            try:
                status = module.main(arguments)
            except SystemExit as stopped:
                status = stopped.code
        return status, *capsys.readouterr()

    return call


@contextmanager
def stopped_in_time():
    if not hasattr(signal, "setitimer"):  # on Windows
        yield
        return
    limits = (
        (signal.ITIMER_PROF, signal.SIGPROF, SECONDS),
        (signal.ITIMER_REAL, signal.SIGALRM, WAITING),
    )
    before = {}
    for timer, number, seconds in limits:
        message = f"took over {seconds} seconds"
        before[number] = signal.signal(number, lambda *_, message=message: pytest.fail(message))
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for timer, number, _ in limits:
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


def process(module, arguments):
    """As `main`, but in a new process."""
    done = command(module.__name__, *arguments)
    return done.returncode, done.stdout, done.stderr


def cpu_seconds():
    """CPU time of this process and its children, which does not depend on the machine's load."""
    return sum(os.times()[:4])


def assert_refused(run, module, arguments, pattern):
    """Assert that `run` gives status 2 and one line whose message matches the pattern."""
    before, start = everything(), cpu_seconds()
    status, stdout, stderr = run(module, arguments)
    assert cpu_seconds() - start < SECONDS
    assert (status, stdout) == (2, ""), stderr
    line = stderr.removesuffix("\n")
    assert line.isprintable() and "Traceback" not in line, stderr
    assert re.match(f"{module.__name__}: error: {pattern}", line), line
    assert re.search("expected|choose from|unrecognized|required", line), line
    assert everything() == before


# ---- Files ---------------------------------------------------------------------------------------


def field(text):
    return with_field(4, 101, text)


PIXEL = "line 5, pixel100: got '{}', expected an integer from 0 to 255"


def widen(rows):
    for row in rows:
        row.append("0")


ROWS = {
    "missing column": (
        drop_everywhere(-1),
        "line 1: got 783 columns of pixels besides 'label', ex",
    ),
    "extra column": (widen, "line 1: got 785 columns of pixels besides 'label', expected a square"),
    "no label column": (
        drop_everywhere(0),
        r"line 1: got 784 columns .*\(28x28\) and no labels, ex",
    ),
    "wrong name": (with_field(0, 3, "pixel1"), "line 1, column 4: got 'pixel1', expected 'pixel2'"),
    "header only": (lambda rows: rows.__delitem__(slice(1, None)), "line 2: got the end of the fi"),
    "short row": (drop(7), "line 8: got 784 columns, expected 785, label to pixel783"),
    "long row": (append(7, "0"), "line 8: got 786 columns, expected 785, label to pixel783"),
    "no label": (with_field(9, 0, ""), "line 10, label: got '', expected a number or a short text"),
    "label NaN": (with_field(9, 0, "NaN"), "line 10, label: got 'NaN', expected a number or a sho"),
    "stray quote": (field('"1'), "line 5: got a stray quote, .* expected fields separated by"),
    "zero byte": (field("1\0"), "line 5.*: got .*(zero byte|x00).*, expected"),
    "100 kB in a row": (field("1" * 100_000), "line 5: line too long, expected at most 16384 byte"),
    **{text: (field(text), PIXEL.format(text)) for text in ["ink", "NaN", "-1", "256", "1.5", ""]},
}


@pytest.mark.parametrize(("edit", "pattern"), ROWS.values(), ids=ROWS)
def test_bad_rows_are_refused(main, edit, pattern):
    rows = csv_rows(IMAGES, LABELS)
    edit(rows)
    write({**CSV, "train.csv": csv_bytes(rows)})
    assert_refused(main, train, SMALL, rf"data.train\.csv, {pattern}")


MEGABYTE = 1 << 20
CSV_GZ, IMAGES_GZ, LABELS_GZ = "train.csv.gz", f"{TRAIN_IMAGES}.gz", f"{TRAIN_LABELS}.gz"
LATER = "got bytes after the last of the"
GZIP = "bad gzip stream: "


def cut(end):
    return lambda good: good[:end]


def add(more):
    return lambda good: good + more


def swap(old, new):
    return lambda good: good.replace(old, new, 1)


def instead(content):
    return lambda good: content


def count(value):
    """An edit of the number of images or labels in an IDX header."""
    return lambda good: good[:4] + header(value) + good[8:]


def zipped(end, more=b""):
    """Compressed, cut off at `end`, and followed by other bytes."""
    return lambda good: gzip.compress(good)[:end] + more


def bomb(piece):
    """Compressed, followed by a gigabyte in a megabyte."""
    return lambda good: gzip.compress(good) + gzip.compress(piece * MEGABYTE) * 1000


# {fault: (file, edit of its content, pattern of the message)}
FILES = {
    "empty CSV": ("train.csv", cut(0), "got an empty file, expected a header label, pixel0"),
    "UTF-16": (
        "train.csv",
        lambda good: good.decode().encode("utf-16"),
        "line 1: got text in UTF-16, exp",
    ),
    "20 MB in a line": ("train.csv", add(b"0" * 20 * MEGABYTE), "line 42: line too long, expected"),
    "truncated CSV": (CSV_GZ, zipped(-20), f"{GZIP}Compressed file ended"),
    "bomb of lines": (CSV_GZ, bomb(b"\n"), "got more than 2000000 lines, expected at most 200"),
    "bomb of digits": (CSV_GZ, bomb(b"0"), "line 42: line too long, expected at most 16384 bytes"),
    "in test.csv": ("test.csv", swap(b"0\n", b"x\n"), "line 2, pixel783: got 'x', expected an int"),
    "20 x 20 in test.csv": ("test.csv", instead(SMALLER), "line 1: got 400 columns of pixels, exp"),
    "label 10 in test.csv": (
        "test.csv",
        instead(OTHER),
        "line 4, label: got '10', expected one of",
    ),
    "web page for CSV": (
        "train.csv",
        instead(b"<!DOCTYPE html>"),
        "line 1: got a web page, expect",
    ),
    "CSV for IDX": (TRAIN_IMAGES, instead(CSV["train.csv"]), "magic number: got .* expected 2051"),
    "images for labels": (TRAIN_LABELS, instead(IDX[TRAIN_IMAGES]), "magic number: got 2051, exp"),
    "empty IDX": (TRAIN_IMAGES, cut(0), "got 0 bytes, expected a header of 16 bytes"),
    "truncated header": (TRAIN_LABELS, cut(7), "got 7 bytes, expected a header of 8 bytes"),
    "truncated": (TRAIN_IMAGES, cut(-1), "truncated: got 31375 bytes, expected 31376 for 40"),
    "counts differ": (TRAIN_LABELS, instead(idx_bytes(LABELS[:39])), "got 39 labels, expected 40"),
    "no images": (TRAIN_IMAGES, count(0), "number of images: got 0, expected 1 to 2000000"),
    "4 billion": (TRAIN_LABELS, count(HUGE), f"number of labels: got {HUGE}, expected 1 to 2000"),
    "too many": (TRAIN_IMAGES, count(500_000), "truncated: got 31376 bytes, expected 392000016"),
    "20 x 20": (TEST_IMAGES, instead(idx_bytes(TESTED[:, 4:24, 4:24])), "got images 20x20, expect"),
    "trailing bytes": (TRAIN_LABELS, add(b"\0"), f"{LATER} labels, expected 48 bytes for 40"),
    "label 10": (TEST_LABELS, lambda good: good[:-1] + b"\x0a", "label 8 of 8: got '10', expected"),
    "test labels": (TEST_LABELS, cut(-1), "truncated: got 15 bytes, expected 16 for 8 labels"),
    "truncated gzip": (IMAGES_GZ, zipped(-20), f"{GZIP}Compressed file ended"),
    "damaged gzip": (IMAGES_GZ, zipped(99, b"\xff" * 9999), f"{GZIP}Error -3 while decompressing"),
    "wrong checksum": (IMAGES_GZ, zipped(-8, bytes(8)), f"{GZIP}CRC check failed"),
    "bomb of zeros": (IMAGES_GZ, bomb(b"\0"), f"{LATER} images, expected 31376 bytes for 40"),
}


def plant(name, edit):
    """Write the folder "data" with one file changed."""
    plain = name.removesuffix(".gz")
    files = dict(CSV if plain in CSV else IDX)
    good = files.pop(plain)
    write({**files, name: edit(good)})


@pytest.mark.parametrize(("name", "edit", "pattern"), FILES.values(), ids=FILES)
def test_bad_files_are_refused(main, name, edit, pattern):
    plant(name, edit)
    assert_refused(main, train, SMALL, rf"data.{re.escape(name)}[:,] {pattern}")


# ---- Folders -------------------------------------------------------------------------------------

FOLDERS = {
    "nothing in it": ([], "data: found nothing; expected Kaggle's train.csv"),
    "no training": (["test.csv"], "data: found test.csv; expected Kaggle's train.csv"),
    "no labels": ([TRAIN_IMAGES], f"data: found {TRAIN_IMAGES}; expected .*{TRAIN_LABELS}"),
    "no images": ([TRAIN_LABELS], f"data: found {TRAIN_LABELS}; expected .*{TRAIN_IMAGES}"),
    "both kinds": (
        [*CSV, *IDX],
        f"data: found several data sets, {TRAIN_IMAGES}, train.csv; expected one, such as data",
    ),
}


@pytest.mark.parametrize(("names", "pattern"), FOLDERS.values(), ids=FOLDERS)
def test_bad_folders_are_refused(main, names, pattern):
    write({name: {**CSV, **IDX}[name] for name in names})
    assert_refused(main, train, SMALL, pattern)


def test_a_missing_folder_is_refused(main):
    assert_refused(main, train, SMALL, "data: No such file or directory; expected a folder with")


PIPES = [os.mkfifo] if hasattr(os, "mkfifo") else []  # POSIX only


@pytest.mark.parametrize("make", [os.mkdir, *PIPES])
def test_a_folder_or_pipe_in_place_of_a_file_is_refused(main, make):
    """Opening a named pipe would wait for ever."""
    pattern = r"data: found train.csv \((a folder|no file)\); expected Kaggle's train.csv"
    make(write({}) / "train.csv")
    assert_refused(main, train, SMALL, pattern)


def test_a_file_in_place_of_the_folder_is_refused(main):
    Path("data").touch()
    assert_refused(main, train, SMALL, "data: got an empty file, expected a header label, pixel0")


# ---- Arguments -----------------------------------------------------------------------------------

NUMBERS = {
    "nets": "-1 0 nan inf x 1.5 10001 100000000",
    "first-net": "-1 0 nan inf x 1.5 4294967296",
    "seed": "-1 nan inf x 1.5 4294967296",
    "epochs batch-size limit test-limit workers memory": "-1 0 nan inf x 1.5",
    "validation-fraction zoom warm-up average-decay": "-0.1 1 nan inf x",
    "width-shift height-shift elastic": "-0.1 1.5 nan inf x",
    "rotation": "-1 181 nan inf x",
    "learning-rate": "-1 0 nan inf x",
    "average-epochs": "-1 nan inf x 1.5 3",
    "decay": "-0.5 0 1.5 nan inf x",
}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        (option, value)
        for options, values in NUMBERS.items()
        for option, value in product(options.split(), values.split())
    ],
)
def test_bad_numbers_are_refused(main, option, value):
    write(CSV)
    shown = rf"'?{re.escape(value)}(\.0)?'?"
    pattern = rf"argument --{option}: got {shown}, expected an? (positive )?(integer|number)"
    assert_refused(main, train, [*SMALL, f"--{option}={value}"], pattern)


ARGUMENTS = {
    "--batch-size=1000000000": "argument --batch-size: got 1000000000, expected at most the 36",
    "--limit=17 --batch-size=16": "argument --batch-size: got 16, expected at most the 15",
    "--data=digits --limit=6000 --batch-size=5000 --memory=200000000": (
        r"memory: 1 process takes [\d,]+ bytes, expected at most the 200,000,000 of"
    ),
    "--memory=1": r"memory: 1 process takes [\d,]+ bytes, expected at most the 1 of",
    "--resume": "argument --resume: expected --out, the folder of the run to continue",
    "--precision=tf32": "precision: got 'tf32', expected 'float32': the device 'numpy' has",
    "--precision=half": ".*precision: invalid choice: 'half' .*choose from .*float32",
    "--out=data/train.csv": "argument --out: data/train.csv is a file, expected a folder",
    "--recipe=none": "argument --recipe: invalid choice: 'none' .*choose from .*demo.*seed",
    "--schedule=step": "argument --schedule: invalid choice: 'step' .*choose from .*cosine",
    "--schedule=linear --decay=0.9": "argument --decay: schedule linear has none, expected",
    "--average-epochs=1 --average-decay=0.9": (
        "argument --average-decay: got 0.9 with average_epochs 1, expected only one of them"
    ),
    "--device=tpu": "argument --device: invalid choice: 'tpu' .*choose from .*auto.*numpy",
    "--data": "argument --data: expected one argument",
    "--frob": "unrecognized arguments: --frob$",
    "--epoch=3": "unrecognized arguments: --epoch=3$",
    "data": "unrecognized arguments: data$",
    "--frob=two\nlines": "unrecognized arguments: --frob=two",
    "--config=data/test.csv": "data/test.csv: not JSON, expected what minicnn.train writes",
}


@pytest.mark.parametrize(("arguments", "pattern"), ARGUMENTS.items(), ids=ARGUMENTS)
def test_bad_arguments_are_refused(main, arguments, pattern):
    write(CSV)
    assert_refused(main, train, [*SMALL, *arguments.split(" ")], pattern)


def test_a_number_too_long_to_read_is_refused(main):
    """Python converts no more than 4,300 digits."""
    arguments = [*SMALL, f"--epochs={'9' * 5000}"]
    assert_refused(main, train, arguments, "argument --epochs: got '9+', expected an integer")


def test_two_processes_are_refused_where_one_trains_all_nets(main):
    if problem := native.problem():
        pytest.skip(problem)
    devices.choose("emulated")  # compile first: it takes longer than a refusal may
    write(CSV)
    arguments = [*SMALL, "--device=emulated", "--nets=2", "--workers=2"]
    assert_refused(
        main, train, arguments, "workers: got 2, expected 1: this device trains its nets together"
    )


# ---- Processes, predict, and what is no fault ----------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "arguments", "pattern"),
    [
        ("in test.csv", [], r"data.test\.csv, line 2, pixel783: got 'x', expected an integer"),
        ("bomb of lines", [], r"data.train\.csv\.gz: got more than 2000000 lines, expected"),
        ("trailing bytes", [], f"data.{TRAIN_LABELS}: {LATER} labels, expected 48 bytes"),
        ("in test.csv", ["--epochs=0"], "argument --epochs: got 0, expected a positive integer"),
        ("in test.csv", ["--epoch=3"], "unrecognized arguments: --epoch=3"),
    ],
)
def test_the_exit_status_of_a_process(fault, arguments, pattern):
    plant(*FILES[fault][:2])
    assert_refused(process, train, [*SMALL, *arguments], pattern)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The run folder after training on plain CSV files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("plain"))
        write(CSV)
        assert train.main([*SMALL, "--out=run"]) == 0
        return Path("run").absolute()


PREDICT = {
    "--data=missing": "missing: No such file or directory; expected a folder with Kaggle's",
    "--data=data": r"data.test\.csv, line 2, pixel783: got 'x', expected an integer from 0 to",
    "--data=digits --out=missing/labels.csv": "argument --out: got missing/labels.csv, expected a",
    "--data=digits --checkpoint=missing.npz": r"missing\.npz: .*[Nn]o such file",
    "--data=digits --workers=0": "argument --workers: got 0, expected a positive integer",
    "--quiet": "one of the arguments --data --images is required",
}


@pytest.mark.parametrize(("arguments", "pattern"), PREDICT.items(), ids=PREDICT)
def test_predict_refuses_bad_arguments(main, plain, arguments, pattern):
    plant(*FILES["in test.csv"][:2])
    checkpoint = f"--checkpoint={plain / 'checkpoint.npz'}"
    arguments = [checkpoint, "--device=numpy", *arguments.split()]
    assert_refused(main, predict, arguments, pattern)


def every(edit):
    return {name: edit(content) for name, content in CSV.items()}


GOOD = {
    "byte order mark": every(lambda content: b"\xef\xbb\xbf" + content),
    "CRLF": every(lambda content: content.replace(b"\n", b"\r\n")),
    "both": every(lambda content: b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n")),
    "gzip": compressed(CSV),
    "quotes": every(quoted),
    "no newline at the end": every(lambda content: content.removesuffix(b"\n")),
    "empty lines at the end": every(lambda content: content + b"\n\r\n\n"),
    "no header": every(lambda content: content.partition(b"\n")[2]),
    "semicolons and fractions": every(lambda content: content.replace(b",", b".0;")),
    "names of their own": {f"mnist_{name}": content for name, content in CSV.items()},
    "zip": {"digit-recognizer.zip": zip_bytes(CSV)},
    "named .gz only": {f"{name}.gz": content for name, content in {**CSV}.items()},
    "npz": {"mnist.npz": npz_bytes(np.savez, x_train=IMAGES, y_train=LABELS, x_test=TESTED)},
    "IDX": IDX,
    "gzip of IDX": compressed(IDX),
}


@pytest.mark.parametrize("files", GOOD.values(), ids=GOOD)
def test_equivalent_files_give_the_same_run(plain, files):
    write(files)
    assert train.main([*SMALL, "--out=run"]) == 0
    assert Path("run/submission.csv").read_bytes() == (plain / "submission.csv").read_bytes()
    assert state(Path("run")) == state(plain)


def test_labels_of_test_images_give_an_accuracy(main, plain):
    labelled = csv_bytes(csv_rows(TESTED, TESTED_LABELS))
    write({"train.csv": CSV["train.csv"], "digits_test.csv": labelled, "test.csv": labelled})
    status, stdout, stderr = main(train, [*SMALL, "--out=run"])
    assert status == 0, stderr
    accuracy = re.search(r"Test accuracy=([01]\.\d{5})", stdout)[1]
    for source in "data", "data/test.csv", "data/digits", "data/digits_test.csv":
        arguments = [f"--checkpoint={plain / 'checkpoint.npz'}", f"--data={source}"]
        status, stdout, stderr = main(predict, [*arguments, "--device=numpy", "--quiet"])
        assert status == 0, stderr
        assert f"Test accuracy={accuracy}\n8 predictions" in stdout
