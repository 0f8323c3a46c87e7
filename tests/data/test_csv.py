"""CSV files: digits read or refused, predictions written."""

import csv
import gzip
import os
import stat

import numpy as np
import pytest
from digit_files import (
    append,
    check_survival,
    csv_bytes,
    csv_rows,
    digits,
    drop,
    drop_everywhere,
    fault,
    fuzzing,
    measure,
    quoted,
    with_field,
)
from hypothesis import example, given
from hypothesis import strategies as st
from levels import examples

from minicnn import load_data
from minicnn.data import csv_blocks, csv_files
from minicnn.data.csv_blocks import Columns
from minicnn.data.sources import File
from minicnn.data.submission import write_submission
from minicnn.files import DataError

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
    monkeypatch.setattr(csv_files, "_BLOCK", block)
    images, labels = digits(5)
    content = variant(csv_bytes(csv_rows(images, labels)))
    for name, written in ("train.csv", content), ("train.csv.gz", gzip.compress(content)):
        (tmp_path / name).write_bytes(written)
        (x, y), _ = load_data(tmp_path)
        np.testing.assert_array_equal(x, images)
        np.testing.assert_array_equal(y, labels)
        (tmp_path / name).unlink()


@fuzzing()
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
        patch.setattr(csv_files, "_BLOCK", block)
        part = csv_files.read_csv(File(path), labelled)
    np.testing.assert_array_equal(part.images, images)
    if labelled:
        assert [int(part.labels.names[code]) for code in part.labels.codes] == labels.tolist()
    else:
        assert part.labels is None


# --- CSV: what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (
            drop_everywhere(-1),
            "line 1: got 783 columns of pixels besides 'label', expected a",
        ),
        (drop_everywhere(5), "line 1, column 6: got 'pixel5', expected 'pixel4'"),
        (drop_everywhere(0), "line 1: got 784 columns of pixels (28x28) and no labels, expected"),
        (
            append(0, "extra"),
            "line 1: got 785 columns of pixels besides 'label', expected a",
        ),
        (with_field(0, 2, "pixel2"), "line 1, column 3: got 'pixel2', expected 'pixel1'"),
        (with_field(0, 2, "pixel" + "9" * 9), "line 1, column 3: got 'pixel999999999', expected"),
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
        *(
            (with_field(2, 0, text), f"line 3, label: got {text!r}, expected a number or a short")
            for text in ("", " ", "nan", "NaN", "a\x1b[2Jb", "\ufffd")
        ),
        (
            with_field(2, 0, "1." + "0" * 99),
            f"line 3, label: got '1.{'0' * 38}...', expected a num",
        ),
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
    monkeypatch.setattr(csv_files, "_BLOCK", block)
    rows = csv_rows(*digits(6))
    edit(rows)
    path = tmp_path / "train.csv"
    path.write_bytes(csv_bytes(rows))
    assert fault(tmp_path).startswith(f"{path}, {expected}")


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
    """Every line but two has the right number of fields."""
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
    "content", [b"\xff\xfel\0a\0b\0", b"\0" * 10_000, b"\n" * 100, b"\r", b'"']
)
def test_not_a_csv(tmp_path, content):
    (tmp_path / "train.csv").write_bytes(content)
    assert "train.csv, line 1" in fault(tmp_path)


def test_too_many_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_files, "MAX_IMAGES", 3)
    (tmp_path / "train.csv").write_bytes(csv_bytes(csv_rows(*digits(3))))
    assert len(load_data(tmp_path)[0][0]) == 3
    (tmp_path / "train.csv").write_bytes(csv_bytes(csv_rows(*digits(4))))
    assert "train.csv: got more than 3 lines" in fault(tmp_path)


@pytest.mark.parametrize(
    ("piece", "expected"),
    [
        (b"\n", "got more than 2000000 lines"),
        (b"0", "line 3: line too long"),
        (b",", "line 3: line too long"),
        (b" ", "line 3: line too long"),
        (b'"', "line 3: line too long"),
        (b",\n", "line 3: got 2 columns, expected 785"),
    ],
)
def test_csv_bomb(tmp_path, piece, expected):
    """A gigabyte in 1,000 gzip members of a megabyte in all: refused at once, in little memory."""
    good = csv_bytes(csv_rows(*digits(1)))
    bomb = gzip.compress(good) + gzip.compress(piece * ((1 << 20) // len(piece))) * 1000
    (tmp_path / "train.csv.gz").write_bytes(bomb)
    message, seconds, peak = measure(tmp_path)
    assert expected in message
    assert seconds < 5 and peak < 100e6


@fuzzing()
@given(st.binary(max_size=300), st.integers(0, 20_000), st.integers(0, 100))
def test_csv_survives_anything(tmp_path, noise, position, length):
    content = csv_bytes(csv_rows(*digits(3)))
    position = min(position, len(content))
    content = content[:position] + noise + content[position + length :]
    (tmp_path / "train.csv").write_bytes(content)
    check_survival(tmp_path)


@examples(300, derandomize=False)
@given(st.text('019,"\r\n', max_size=25) | st.from_regex(r'(("?[019]+"?,"?[019]+"?)\r?\n?)+'))
@example("\r0,0")
@example('"\r0",0')
@example('0,"0\r"')
def test_csv_means_what_the_csv_module_says(text):
    """A text that the fast path accepts has the values that a strict parser reads."""
    columns = Columns(b",", ("label", "pixel0"), (0,))
    try:
        pixels, (labels,) = csv_blocks.parse("file", 2, text.encode(), columns)
    except DataError:
        return
    lines = [line for line in text.split("\n") if line not in ("", "\r")]
    expected = [next(csv.reader([line], strict=True)) for line in lines]
    assert labels == [row[0].encode() for row in expected]
    assert all(row[1].isdecimal() for row in expected)  # int("\r0") is 0, too
    assert pixels.tolist() == [[int(row[1])] for row in expected]


# --- Submission -----------------------------------------------------------------------------------


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
