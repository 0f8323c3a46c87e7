import csv
import gzip
import os
import stat
import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from minicnn import load_data, rng
from minicnn.data import formats
from minicnn.data.formats import write_submission
from minicnn.data.load import fingerprint
from minicnn.data.split import split
from minicnn.files import DataError, atomic_write

PIXELS = [f"pixel{i}" for i in range(784)]
TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"

MNIST = os.environ.get("MINICNN_TEST_MNIST")
needs_mnist = pytest.mark.skipif(
    not MNIST, reason="real MNIST: set MINICNN_TEST_MNIST to a folder with its four IDX files"
)
fuzzing = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # files are overwritten each time
)


def digits(count, seed=0):
    """(count, 28, 28) and (count,), uint8."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, 28, 28), np.uint8)
    return images, random.integers(0, 10, count, np.uint8)


def csv_rows(images, labels=None):
    """Header and rows, as lists of strings."""
    table = images.reshape(len(images), 784)
    header = PIXELS
    if labels is not None:
        table, header = np.column_stack([labels, table]), ["label", *PIXELS]
    return [header, *([str(value) for value in row] for row in table)]


def csv_bytes(rows, end="\n"):
    return "".join(",".join(row) + end for row in rows).encode()


def idx_bytes(array):
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def fault(folder):
    """The message of the DataError, which is one line."""
    with pytest.raises(DataError) as caught:
        load_data(folder)
    message = str(caught.value)
    assert message.isprintable()
    return message


# --- CSV: what is read ----------------------------------------------------------------------------


def test_kaggle_folder(tmp_path):
    images, labels = digits(7)
    (tmp_path / "train.csv").write_bytes(csv_bytes(csv_rows(images, labels)))
    (tmp_path / "test.csv").write_bytes(csv_bytes(csv_rows(images[:3])))
    (x_train, y_train), (x_test, y_test) = load_data(str(tmp_path))
    assert x_train.dtype == y_train.dtype == x_test.dtype == np.uint8
    np.testing.assert_array_equal(x_train, images)
    np.testing.assert_array_equal(y_train, labels)
    np.testing.assert_array_equal(x_test, images[:3])
    assert y_test is None
    (tmp_path / "test.csv").unlink()
    assert load_data(tmp_path)[1] == (None, None)


def quoted(data):
    return data.replace(b"\n", b'"\n"').replace(b",", b'","').join([b'"', b""])[:-1]


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(lambda data: b"\xef\xbb\xbf" + data, id="BOM"),
        pytest.param(lambda data: data.replace(b"\n", b"\r\n"), id="CRLF"),
        pytest.param(lambda data: b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n"), id="BOM, CRLF"),
        pytest.param(quoted, id="quoted"),
        pytest.param(lambda data: data[:-1], id="no newline at the end"),
        pytest.param(lambda data: data + b"\n\r\n", id="empty lines at the end"),
        pytest.param(lambda data: data.replace(b",0,", b",000,"), id="leading zeros"),
    ],
)
@pytest.mark.parametrize("block", [1000, 1 << 20])
def test_csv_variants(tmp_path, monkeypatch, variant, block):
    monkeypatch.setattr(formats, "_BLOCK", block)
    images, labels = digits(5)
    content = variant(csv_bytes(csv_rows(images, labels)))
    for name, written in ("train.csv", content), ("train.csv.gz", gzip.compress(content)):
        (tmp_path / name).write_bytes(written)
        (x, y), _ = load_data(tmp_path)
        np.testing.assert_array_equal(x, images)
        np.testing.assert_array_equal(y, labels)
        (tmp_path / name).unlink()


@fuzzing
@given(
    count=st.integers(1, 4),
    seed=st.integers(0, 1 << 32),
    end=st.sampled_from(["\n", "\r\n"]),
    bom=st.booleans(),
    labelled=st.booleans(),
    block=st.integers(1, 20_000),
)
def test_csv_round_trip(tmp_path, count, seed, end, bom, labelled, block):
    images, labels = digits(count, seed)
    (tmp_path / "train.csv").write_bytes(csv_bytes(csv_rows(images, labels)))
    content = b"\xef\xbb\xbf" * bom + csv_bytes(csv_rows(images, labels if labelled else None), end)
    path = tmp_path / "any.csv"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "_BLOCK", block)
        x, y = formats.read_csv(path, labelled)
    np.testing.assert_array_equal(x, images)
    if labelled:
        np.testing.assert_array_equal(y, labels)
    else:
        assert y is None


# --- CSV: what is refused -------------------------------------------------------------------------


def with_field(row, column, text):
    """An edit that puts `text` into a field; row 0 is the header, line 1."""

    def edit(rows):
        rows[row][column] = text

    return edit


def append(row, text):
    return lambda rows: rows[row].append(text)


def drop(row, column=-1):
    return lambda rows: rows[row].pop(column)


def drop_everywhere(column):
    return lambda rows: [row.pop(column) for row in rows]


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (drop_everywhere(-1), "line 1: got 784 columns, expected 785, label to pixel783"),
        (drop_everywhere(5), "line 1, column 6: got 'pixel5', expected 'pixel4'"),
        (drop_everywhere(0), "line 1, column 1: got 'pixel0', expected 'label'"),
        (append(0, "extra"), "line 1: got 786 columns, expected 785"),
        (with_field(0, 0, "Label"), "line 1, column 1: got 'Label', expected 'label'"),
        (with_field(0, 2, "pixel2"), "line 1, column 3: got 'pixel2', expected 'pixel1'"),
        (with_field(0, 2, "x" * 99), f"line 1, column 3: got '{'x' * 40}...', expected 'pixel1'"),
        (lambda rows: rows.pop(0), "line 1, column 1: got '"),
        (lambda rows: rows.__setitem__(slice(1, None), []), "line 2: got the end of the file"),
        (drop(3), "line 4: got 784 columns, expected 785"),
        (append(3, "0"), "line 4: got 786 columns, expected 785"),
        (append(3, ""), "line 4: got 786 columns, expected 785"),
        (lambda rows: (rows[2].append("0"), rows[3].pop()), "line 3: got 786 columns"),
        (lambda rows: rows.__setitem__(2, ["7"]), "line 3: got 1 columns, expected 785"),
        (lambda rows: [row.append("0") for row in rows[1:]], "line 2: got 786 columns"),
        *(
            (
                with_field(4, 101, text),
                f"line 5, pixel100: got {shown or repr(text)}, expected an integer from 0 to 255",
            )
            for text, shown in [
                ("text", None),
                ("", None),
                ('""', "''"),
                (" ", None),
                ("NaN", None),
                ("nan", None),
                ("NA", None),
                ("None", None),
                ("inf", None),
                ("-1", None),
                ("-0", None),
                ("256", None),
                ("65537", None),
                ("99999999999999999999999", None),
                ("1.5", None),
                ("1.0", None),
                ("1e2", None),
                ("0x10", None),
                ("1_0", None),
                ("+5", None),
                ("True", None),
                ("\u0663", None),
                ("1;2", None),
                ("a\x1b[2Jb", None),
                ("9" * 5000, f"'{'9' * 40}...'"),
            ]
        ),
        (with_field(2, 0, "10"), "line 3, label: got '10', expected an integer from 0 to 9"),
        (with_field(2, 0, "-1"), "line 3, label: got '-1', expected an integer from 0 to 9"),
        (with_field(2, 0, ""), "line 3, label: got '', expected an integer from 0 to 9"),
        (with_field(2, 0, "3.0"), "line 3, label: got '3.0', expected an integer from 0 to 9"),
        (with_field(5, 784, "256"), "line 6, pixel783: got '256'"),
        (with_field(2, 8, '"1'), "line 3: got a stray quote, carriage return"),
        (with_field(2, 8, '"1\n"'), "line 3: got a stray quote, carriage return"),
        (with_field(2, 8, '"1"2'), "line 3: got a stray quote, carriage return"),
        (with_field(2, 8, "1\r2"), "line 3: got a stray quote, carriage return"),
        (with_field(2, 8, "1\0"), "line 3"),
        (with_field(2, 8, "0" * 20_000), "line 3: line too long, expected at most 16384 bytes"),
        (with_field(0, 8, "0" * 20_000), "line 1: line too long, expected at most 16384 bytes"),
    ],
)
@pytest.mark.parametrize("block", [1000, 1 << 20])
def test_csv_fault(tmp_path, monkeypatch, edit, expected, block):
    monkeypatch.setattr(formats, "_BLOCK", block)
    rows = csv_rows(*digits(6))
    edit(rows)
    path = tmp_path / "train.csv"
    path.write_bytes(csv_bytes(rows))
    assert fault(tmp_path).startswith(f"{path}, {expected}")


def test_test_csv_with_labels(tmp_path):
    (tmp_path / "train.csv").write_bytes(csv_bytes(csv_rows(*digits(2))))
    (tmp_path / "test.csv").write_bytes(csv_bytes(csv_rows(*digits(2))))
    expected = "test.csv, line 1, column 1: got 'label', expected 'pixel0'"
    assert fault(tmp_path) == f"{tmp_path}{os.sep}{expected}"


def test_csv_line_numbers_count_empty_lines(tmp_path):
    rows = csv_rows(*digits(3))
    rows[3][1] = "x"
    (tmp_path / "train.csv").write_bytes(csv_bytes(rows).replace(b"\n", b"\n\n"))
    assert "train.csv, line 7, pixel0: got 'x'" in fault(tmp_path)


@pytest.mark.parametrize("row", [1, 16, 17, 30, 39])
def test_the_first_of_two_faults_among_many_rows_is_named(tmp_path, row):
    rows = csv_rows(*digits(40))
    rows[row][7] = rows[40][9] = "256"
    (tmp_path / "train.csv").write_bytes(csv_bytes(rows))
    assert f"train.csv, line {row + 1}, pixel6: got '256'" in fault(tmp_path)
    rows[row][7] = rows[40][9] = "0"
    rows[row].append("0")  # as many fields as there should be, in all
    rows[40].pop()
    (tmp_path / "train.csv").write_bytes(csv_bytes(rows).replace(b"\n", b"\r\n\n"))
    assert f"train.csv, line {2 * row + 1}: got 786 columns, expected 785" in fault(tmp_path)


@pytest.mark.parametrize("count", [3, 100])
def test_a_quoted_field_does_not_go_on_in_the_next_line(tmp_path, count):
    """Each line has as many fields as it should, but the last of one and the first of the next."""
    rows = csv_rows(*digits(count))
    rows[2][-1], rows[3][0] = '"1', '2"'
    (tmp_path / "train.csv").write_bytes(csv_bytes(rows))
    assert "train.csv, line 3: got a stray quote" in fault(tmp_path)


def test_zeros_before_a_number_change_nothing(tmp_path):
    rows = csv_rows(*digits(20))
    (tmp_path / "train.csv").write_bytes(csv_bytes(rows))
    (expected, _), _ = load_data(tmp_path)
    rows[3][5] = rows[3][5].zfill(19)
    (tmp_path / "train.csv").write_bytes(csv_bytes(rows))
    np.testing.assert_array_equal(load_data(tmp_path)[0][0], expected)
    rows[9][5] = "x"
    (tmp_path / "train.csv").write_bytes(csv_bytes(rows))
    assert "train.csv, line 10, pixel4: got 'x'" in fault(tmp_path)


def test_empty_csv(tmp_path):
    (tmp_path / "train.csv").write_bytes(b"")
    assert "train.csv: got an empty file, expected a header label, pixel0" in fault(tmp_path)


@pytest.mark.parametrize(
    "content", [b"\xff\xfel\0a\0b\0", b"\0" * 10_000, b"\n" * 100, b"\r", b'"', b"\x1f\x8b\x08"]
)
def test_not_a_csv(tmp_path, content):
    (tmp_path / "train.csv").write_bytes(content)
    assert "train.csv, line 1" in fault(tmp_path)


def test_too_many_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "MAX_IMAGES", 3)
    (tmp_path / "train.csv").write_bytes(csv_bytes(csv_rows(*digits(3))))
    assert len(load_data(tmp_path)[0][0]) == 3
    (tmp_path / "train.csv").write_bytes(csv_bytes(csv_rows(*digits(4))))
    assert "train.csv: got more than 3 lines" in fault(tmp_path)


@pytest.mark.parametrize(
    ("piece", "expected"),
    [
        (b"\n", "got more than 500000 lines"),
        (b"0", "line 3: line too long"),
        (b",", "line 3: line too long"),
        (b" ", "line 3: line too long"),
        (b'"', "line 3: line too long"),
        (b",\n", "line 3: got 2 columns, expected 785"),
    ],
)
def test_csv_bomb(tmp_path, piece, expected):
    """A gigabyte in a megabyte, as 1,000 gzip members: refused at once, without holding it."""
    good = csv_bytes(csv_rows(*digits(1)))
    bomb = gzip.compress(good) + gzip.compress(piece * ((1 << 20) // len(piece))) * 1000
    (tmp_path / "train.csv.gz").write_bytes(bomb)
    message, seconds, peak = measure(tmp_path)
    assert expected in message
    assert seconds < 5 and peak < 100e6


def measure(folder):
    """The fault's message, the seconds until then, and the peak of memory in bytes."""
    tracemalloc.start()
    start = time.perf_counter()
    try:
        return fault(folder), time.perf_counter() - start, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@fuzzing
@given(st.binary(max_size=300), st.integers(0, 20_000), st.integers(0, 100))
def test_csv_survives_anything(tmp_path, noise, position, length):
    content = csv_bytes(csv_rows(*digits(3)))
    position = min(position, len(content))
    content = content[:position] + noise + content[position + length :]
    (tmp_path / "train.csv").write_bytes(content)
    check_survival(tmp_path)


@settings(max_examples=300, deadline=None)
@given(st.text('019,"\r\n', max_size=25) | st.from_regex(r'(("?[019]+"?,"?[019]+"?)\r?\n?)+'))
@example("\r0,0")
@example('"\r0",0')
@example('0,"0\r"')
def test_csv_means_what_the_csv_module_says(text):
    """Whatever the fast path accepts is what a strict parser reads, line by line."""
    try:
        table = formats._parse(Path("file"), 2, text.encode(), ["label", "pixel0"])
    except DataError:
        return
    lines = [line for line in text.split("\n") if line not in ("", "\r")]
    expected = [next(csv.reader([line], strict=True)) for line in lines]
    assert all(field.isdecimal() for row in expected for field in row)  # int("\r0") is 0, too
    assert table.tolist() == [[int(field) for field in row] for row in expected]


def check_survival(folder):
    """Either plausible arrays or one clear line."""
    try:
        (x, y), _ = load_data(folder)
    except DataError as error:
        assert str(error).isprintable() and str(folder) in str(error)
    else:
        assert x.shape == (len(y), 28, 28) and len(y) and y.max() <= 9


# --- IDX ------------------------------------------------------------------------------------------


def write_idx(folder, train=None, test=None, dotted=False, compress=False):
    """Write each given pair; an element is an array, or the bytes of a file."""
    pairs = zip(
        (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS),
        (*(train or (None, None)), *(test or (None, None))),
        strict=True,
    )
    for name, content in pairs:
        if content is None:
            continue
        written = content if isinstance(content, bytes) else idx_bytes(content)
        name = name.replace("-idx", ".idx") if dotted else name  # noqa: PLW2901
        if compress:
            (folder / f"{name}.gz").write_bytes(gzip.compress(written))
        else:
            (folder / name).write_bytes(written)


@pytest.mark.parametrize("dotted", [False, True])
@pytest.mark.parametrize("compress", [False, True])
def test_idx_folder(tmp_path, dotted, compress):
    train, test = digits(5, seed=1), digits(3, seed=2)
    write_idx(tmp_path, train, dotted=dotted, compress=compress)
    (x, y), (x_test, y_test) = load_data(tmp_path)
    np.testing.assert_array_equal(x, train[0])
    np.testing.assert_array_equal(y, train[1])
    assert x.dtype == y.dtype == np.uint8
    assert x_test is None and y_test is None
    write_idx(tmp_path, test=test, dotted=dotted, compress=compress)
    _, (x_test, y_test) = load_data(tmp_path)
    np.testing.assert_array_equal(x_test, test[0])
    np.testing.assert_array_equal(y_test, test[1])


@fuzzing
@given(count=st.integers(1, 5), seed=st.integers(0, 1 << 32), compress=st.booleans())
def test_idx_round_trip(tmp_path, count, seed, compress):
    for old in tmp_path.iterdir():
        old.unlink()
    images, labels = digits(count, seed)
    write_idx(tmp_path, (images, labels), compress=compress)
    (x, y), _ = load_data(tmp_path)
    np.testing.assert_array_equal(x, images)
    np.testing.assert_array_equal(y, labels)


IMAGES, LABELS = digits(3)
WRONG_LABELS = np.array([3, 12, 200], np.uint8)


HUGE = 4_294_967_295
LATER = "got bytes after the last of the"


def header(*numbers):
    return struct.pack(f">{len(numbers)}I", *numbers)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(
    ("images", "labels", "name", "expected"),
    [
        (b"", LABELS, TRAIN_IMAGES, "got 0 bytes, expected a header of 16 bytes"),
        (LABELS, LABELS, TRAIN_IMAGES, "got 11 bytes, expected a header of 16 bytes"),
        (IMAGES, b"1234567", TRAIN_LABELS, "got 7 bytes, expected a header of 8 bytes"),
        (
            *(header(2049, 1, 2, 3), LABELS, TRAIN_IMAGES),
            "magic number: got 2049, expected 2051 for images",
        ),
        (
            *(IMAGES, IMAGES, TRAIN_LABELS),
            "magic number: got 2051, expected 2049 for labels",
        ),
        (b"label,pixel0,pixel1", LABELS, TRAIN_IMAGES, "magic number: got 1818321509"),
        (header(2051, 0, 28, 28), LABELS, TRAIN_IMAGES, "number of images: got 0, expected 1 to"),
        (IMAGES, header(2049, 0), TRAIN_LABELS, "number of labels: got 0, expected 1 to 500000"),
        (header(2051, HUGE, 28, 28), LABELS, TRAIN_IMAGES, f"number of images: got {HUGE}"),
        (IMAGES[:, :27], LABELS, TRAIN_IMAGES, "image size: got 27 x 28, expected 28 x 28"),
        (header(2051, 3, HUGE, HUGE), LABELS, TRAIN_IMAGES, f"image size: got {HUGE} x {HUGE}"),
        (
            *(idx_bytes(IMAGES)[:-1], LABELS, TRAIN_IMAGES),
            "truncated: got 2367 bytes, expected 2368 for 3 images",
        ),
        (
            *(IMAGES, idx_bytes(LABELS)[:-2], TRAIN_LABELS),
            "truncated: got 9 bytes, expected 11 for 3 labels",
        ),
        (
            *(header(2051, 500_000, 28, 28), LABELS, TRAIN_IMAGES),
            "truncated: got 16 bytes, expected 392000016 for 500000 images",
        ),
        (idx_bytes(IMAGES) + b"x", LABELS, TRAIN_IMAGES, f"{LATER} images, expected 2368 bytes"),
        (IMAGES, idx_bytes(LABELS) + b"\0", TRAIN_LABELS, f"{LATER} labels, expected 11 bytes"),
        (
            *(IMAGES, LABELS[:2], TRAIN_LABELS),
            f"got 2 labels, expected 3, the number of images in {TRAIN_IMAGES}",
        ),
        (
            *(IMAGES[:2], LABELS, TRAIN_LABELS),
            f"got 3 labels, expected 2, the number of images in {TRAIN_IMAGES}",
        ),
        (IMAGES, WRONG_LABELS, TRAIN_LABELS, "label 2 of 3: got 12, expected 0 to 9"),
    ],
)
def test_idx_fault(tmp_path, images, labels, name, expected, compress):
    write_idx(tmp_path, (images, labels), compress=compress)
    message = fault(tmp_path)
    if compress:
        message = message.replace("-ubyte.gz", "-ubyte")
    assert message.startswith(f"{tmp_path / name}: {expected}")


def test_idx_fault_in_the_test_pair(tmp_path):
    write_idx(tmp_path, (IMAGES, LABELS), (IMAGES, WRONG_LABELS))
    assert f"{TEST_LABELS}: label 2 of 3: got 12" in fault(tmp_path)


good_gzip = gzip.compress(idx_bytes(IMAGES))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(idx_bytes(IMAGES), id="not compressed"),
        pytest.param(b"", id="empty"),
        pytest.param(good_gzip[:5], id="half a header"),
        pytest.param(good_gzip[:-30], id="truncated"),
        pytest.param(good_gzip[:-3], id="truncated checksum"),
        pytest.param(good_gzip[:-8] + bytes(8), id="wrong checksum"),
        pytest.param(good_gzip[:100] + b"\xff" * 50 + good_gzip[150:], id="damaged"),
        pytest.param(good_gzip + b"trailing", id="trailing bytes"),
    ],
)
def test_bad_gzip_stream(tmp_path, content):
    (tmp_path / f"{TRAIN_IMAGES}.gz").write_bytes(content)
    (tmp_path / TRAIN_LABELS).write_bytes(idx_bytes(LABELS))
    message = fault(tmp_path)
    assert f"{TRAIN_IMAGES}.gz: " in message
    assert "bad gzip stream" in message or "got 0 bytes" in message


def test_bad_gzip_stream_in_a_csv(tmp_path):
    content = gzip.compress(csv_bytes(csv_rows(*digits(3))))
    (tmp_path / "train.csv.gz").write_bytes(content[:-20])
    assert "train.csv.gz: bad gzip stream: " in fault(tmp_path)


def test_idx_bomb(tmp_path):
    bomb = gzip.compress(idx_bytes(IMAGES)) + gzip.compress(bytes(1 << 20)) * 1000
    (tmp_path / f"{TRAIN_IMAGES}.gz").write_bytes(bomb)
    (tmp_path / TRAIN_LABELS).write_bytes(idx_bytes(LABELS))
    message, seconds, peak = measure(tmp_path)
    assert "got bytes after the last of the images" in message
    assert seconds < 1 and peak < 20e6


@fuzzing
@given(st.binary(max_size=60), st.integers(0, 2400), st.integers(0, 60), st.booleans())
def test_idx_survives_anything(tmp_path, noise, position, length, compress):
    for old in tmp_path.iterdir():
        old.unlink()
    content = idx_bytes(IMAGES)
    content = content[:position] + noise + content[position + length :]
    write_idx(tmp_path, (content, LABELS), compress=compress)
    check_survival(tmp_path)


@fuzzing
@given(st.binary(max_size=60), st.integers(0, 2400), st.integers(0, 60))
def test_gzip_survives_anything(tmp_path, noise, position, length):
    content = good_gzip[:position] + noise + good_gzip[position + length :]
    (tmp_path / f"{TRAIN_IMAGES}.gz").write_bytes(content)
    (tmp_path / TRAIN_LABELS).write_bytes(idx_bytes(LABELS))
    check_survival(tmp_path)


# --- Folders --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], "found nothing; expected Kaggle's train.csv"),
        (["notes.txt"], "found notes.txt; expected Kaggle's train.csv"),
        (list("abcdefgh"), "found a, b, c, d, e and 3 more; expected"),
        (["test.csv"], "found test.csv; expected Kaggle's train.csv"),
        ([TRAIN_IMAGES, "z"], f"found {TRAIN_IMAGES}; expected"),
        ([TRAIN_LABELS + ".gz"], f"found {TRAIN_LABELS}.gz; expected"),
        ([TEST_IMAGES, TEST_LABELS], f"found {TEST_IMAGES}, {TEST_LABELS}; expected"),
        (
            [TRAIN_IMAGES, TRAIN_LABELS, TEST_LABELS],
            f"found {TRAIN_IMAGES}, {TRAIN_LABELS}, {TEST_LABELS}; expected",
        ),
        (
            ["train.csv", TRAIN_IMAGES, TRAIN_LABELS],
            f"found both kinds, train.csv, {TRAIN_IMAGES}, {TRAIN_LABELS}; expected",
        ),
        (["train.csv", TEST_IMAGES], f"found both kinds, train.csv, {TEST_IMAGES}; expected"),
    ],
)
def test_folder_fault(tmp_path, names, expected):
    for name in names:
        (tmp_path / name).touch()
    message = fault(tmp_path)
    assert message.startswith(f"{tmp_path}: {expected}")
    assert TRAIN_LABELS in message


def test_no_folder(tmp_path):
    assert fault(tmp_path / "absent").startswith(f"{tmp_path / 'absent'}: No such file")
    (tmp_path / "train.csv").write_bytes(csv_bytes(csv_rows(*digits(2))))
    assert fault(tmp_path / "train.csv").startswith(f"{tmp_path / 'train.csv'}: Not a directory")


def test_line_break_in_a_path(tmp_path):
    assert r"two\nlines" in fault(tmp_path / "two\nlines")


def test_unreadable_file(tmp_path, monkeypatch):
    """chmod does not stop root, so the failure is planted."""
    path = tmp_path / "train.csv"
    path.touch()

    def fail(*_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(formats, "open", fail, raising=False)
    assert fault(tmp_path) == f"{path}: cannot be read: Permission denied"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes: POSIX only")
def test_only_regular_files_count(tmp_path):
    """Opening a pipe would wait for ever."""
    os.mkfifo(tmp_path / "train.csv")
    (tmp_path / "test.csv").mkdir()
    assert "found test.csv, train.csv; expected" in fault(tmp_path)


def test_embedded_digits():
    (x_train, y_train), (x_test, y_test) = load_data("digits")
    assert x_train.shape == (6_000, 28, 28) and x_test.shape == (2_000, 28, 28)
    assert y_train.shape == (6_000,) and y_test.shape == (2_000,)
    for array in (x_train, y_train, x_test, y_test):
        assert array.dtype == np.uint8
    assert not {image.tobytes() for image in x_train} & {image.tobytes() for image in x_test}


@needs_mnist
def test_real_mnist():
    (x_train, y_train), (x_test, y_test) = load_data(MNIST)
    assert x_train.shape == (60_000, 28, 28) and x_test.shape == (10_000, 28, 28)
    assert y_train[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert y_test[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert round(x_train.mean() / 255, 4) == 0.1307  # the figure in every MNIST tutorial


# --- Split, fingerprint, submission ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "fraction", "expected"),
    [(10, 0.1, 1), (100, 0.07, 7), (42_000, 0.1, 4_200), (101, 0.1, 11), (10, 0, 0), (5, 0.01, 1)],
)
def test_split_rounds_up(count, fraction, expected):
    train, validation = split(count, fraction, seed=0, net=0)
    assert len(validation) == expected and len(train) == count - expected
    assert train.dtype == validation.dtype == np.int32


@given(st.integers(2, 3000), st.integers(0, 999))
@settings(max_examples=200, deadline=None)
def test_split_is_exact_in_thousandths(count, thousandths):
    expected = -(-count * thousandths // 1000)
    if expected < count:
        assert len(split(count, thousandths / 1000, 0, 0)[1]) == expected


def test_split_is_a_permutation_of_its_own_for_each_net():
    order = rng.permutation(3, 5, rng.SPLIT, 0, 50)
    train, validation = split(50, 0.1, seed=3, net=5)
    np.testing.assert_array_equal(np.concatenate([validation, train]), order)
    assert sorted(order) == list(range(50))
    assert set(validation) != set(split(50, 0.1, seed=3, net=6)[1])


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5, float("nan"), float("inf")])
def test_split_fraction(fraction):
    with pytest.raises(ValueError, match=r"fraction: got .*, expected 0 <= fraction < 1"):
        split(10, fraction, 0, 0)


@pytest.mark.parametrize(("count", "fraction"), [(0, 0), (0, 0.1), (1, 0.1), (3, 0.9)])
def test_split_leaves_none(count, fraction):
    with pytest.raises(ValueError, match=f"count: got {count} images"):
        split(count, fraction, 0, 0)


def test_split_checks_seed_and_net():
    with pytest.raises(ValueError, match="seed"):
        split(10, 0.1, -1, 0)
    with pytest.raises(ValueError, match="net"):
        split(10, 0.1, 0, 1 << 32)


def test_fingerprint():
    images, labels = digits(4)
    original = fingerprint(images, labels)
    assert len(original) == 64 and original == fingerprint(images.copy(), labels.copy())
    assert original == fingerprint(np.asfortranarray(images), labels)
    changed = images.copy()
    changed[3, 27, 27] ^= 1
    assert original != fingerprint(changed, labels)
    assert original != fingerprint(images, labels[::-1])
    assert original != fingerprint(images.reshape(4, 784), labels)
    assert original != fingerprint(images)
    assert original != fingerprint(images, labels.astype(np.int64))
    assert fingerprint(images[:0], labels[:0]) != fingerprint(images[:0])


def test_submission(tmp_path):
    path = tmp_path / "submission.csv"
    path.write_text("older")
    write_submission(path, np.array([2, 0, 9], np.int64))
    assert path.read_bytes() == b"ImageId,Label\n1,2\n2,0\n3,9\n"
    with open(path, newline="") as file:
        assert list(csv.DictReader(file))[2] == {"ImageId": "3", "Label": "9"}
    assert os.listdir(tmp_path) == ["submission.csv"]


def test_submission_is_readable_like_any_file(tmp_path):
    write_submission(tmp_path / "submission.csv", [1])
    (tmp_path / "ordinary").touch()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize("error", [ValueError("stop"), KeyboardInterrupt(), OSError(28, "Full")])
def test_atomic_write_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(type(error)) as caught, atomic_write(path) as file:
        file.write(b"new")
        raise error
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
    if isinstance(error, OSError):
        assert str(caught.value) == f"[Errno 28] Full: {str(path)!r}"


def test_atomic_write_names_the_file_that_was_asked_for(tmp_path):
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "absent" / "file", tmp_path / "folder"):
        with pytest.raises(OSError) as caught, atomic_write(path) as file:
            file.write(b"new")
        assert caught.value.filename == str(path) and caught.value.filename2 is None
    assert os.listdir(tmp_path) == ["folder"]


def test_no_pandas_without_a_csv():
    """Importing pandas takes longer than drawing the digits."""
    source = Path(formats.__file__).read_text(encoding="utf-8")
    assert "\nimport pandas" not in source
