"""load_data: folders, the embedded digits, MNIST; and the fingerprint of images."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from digit_files import (
    MNIST,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    csv_bytes,
    csv_rows,
    digits,
    fault,
    idx_bytes,
    needs_mnist,
)

from minicnn import load_data
from minicnn.data import csv_blocks, sources
from minicnn.data.digits import draw_digits
from minicnn.data.download import FILES
from minicnn.data.load import fingerprint, load_test
from minicnn.files import DataError


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
            f"found several data sets, {TRAIN_IMAGES}, train.csv; expected one, such as",
        ),
        (
            ["train.csv", TEST_IMAGES],
            f"found several data sets, {TEST_IMAGES}, train.csv; expected one, such as",
        ),
    ],
)
def test_folder_fault(tmp_path, names, expected):
    for name in names:
        (tmp_path / name).touch()
    message = fault(tmp_path)
    assert message.startswith(f"{tmp_path}: {expected}")
    assert "several" in message or TRAIN_LABELS in message


def test_no_folder(tmp_path):
    assert fault(tmp_path / "absent").startswith(f"{tmp_path / 'absent'}: No such file")
    (tmp_path / "train.csv").write_bytes(csv_bytes(csv_rows(*digits(2))))
    inside = tmp_path / "train.csv" / "inside"
    assert fault(inside).startswith(f"{inside}: No such file")


def test_line_break_in_a_path(tmp_path):
    assert r"two\nlines" in fault(tmp_path / "two\nlines")


def test_unreadable_file(tmp_path, monkeypatch):
    """The failure is planted, because chmod does not stop root."""
    path = tmp_path / "train.csv"
    path.touch()

    def fail(*_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(sources, "open", fail, raising=False)
    assert fault(tmp_path) == f"{path}: cannot be read: Permission denied"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes: POSIX only")
def test_only_regular_files_count(tmp_path):
    """Opening a pipe would wait for ever."""
    os.mkfifo(tmp_path / "train.csv")
    (tmp_path / "test.csv").mkdir()
    assert "found test.csv (a folder), train.csv (no file); expected" in fault(tmp_path)
    folder = tmp_path / "test.csv"
    assert fault(folder).startswith(f"{folder}: found a folder with nothing; expected Kaggle's")
    pipe = tmp_path / "train.csv"
    assert fault(pipe).startswith(
        f"{pipe}: neither a folder nor a file; expected Kaggle's train.csv"
    )


def test_embedded_digits():
    (x_train, y_train), (x_test, y_test) = load_data("digits")
    assert x_train.shape == (6_000, 28, 28) and x_test.shape == (2_000, 28, 28)
    assert y_train.shape == (6_000,) and y_test.shape == (2_000,)
    for array in (x_train, y_train, x_test, y_test):
        assert array.dtype == np.uint8
    for images, labels, first in (x_train, y_train, 0), (x_test, y_test, 6_000):
        drawn = draw_digits(50, first=first)
        np.testing.assert_array_equal(images[:50], drawn[0])
        np.testing.assert_array_equal(labels[:50], drawn[1])
    np.testing.assert_array_equal(load_test("digits").x_test, x_test)
    assert not {image.tobytes() for image in x_train} & {image.tobytes() for image in x_test}


@needs_mnist
def test_real_mnist():
    (x_train, y_train), (x_test, y_test) = load_data(MNIST)
    assert x_train.shape == (60_000, 28, 28) and x_test.shape == (10_000, 28, 28)
    assert y_train[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert y_test[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert round(x_train.mean() / 255, 4) == 0.1307  # the figure in every MNIST tutorial


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


def test_no_pandas_without_a_csv():
    """Importing pandas takes longer than drawing the digits."""
    source = Path(csv_blocks.__file__).read_text(encoding="utf-8")
    assert "\nimport pandas" not in source


@pytest.mark.parametrize("source", [5, None, b"digits", ("a", "b")])
def test_no_source(source):
    with pytest.raises(DataError, match=r"source: got .*, expected 'digits', 'mnist', a folder or"):
        load_data(source)


def test_mnist_in_the_cache(tmp_path, monkeypatch):
    """Labels are those of ten digits, however few there are."""
    for name, array in zip(FILES, (*digits(5), *digits(3, seed=1)), strict=True):
        (tmp_path / name).write_bytes(gzip.compress(idx_bytes(array)))
    monkeypatch.setattr("minicnn.data.load.fetch_mnist", lambda progress: tmp_path)
    (x_train, _), (x_test, y_test) = load_data("mnist")
    np.testing.assert_array_equal(x_train, digits(5)[0])
    np.testing.assert_array_equal(x_test, digits(3, seed=1)[0])
    test = load_test("mnist")
    assert test.x_train is None and test.classes == tuple("0123456789")
    np.testing.assert_array_equal(test.y_test, y_test)


def test_no_test_images(tmp_path):
    (tmp_path / "train.csv").write_bytes(csv_bytes(csv_rows(*digits(2))))
    with pytest.raises(DataError, match=r"found no test images, expected test\.csv or t10k-images"):
        load_test(tmp_path)


def test_unreadable_folder(tmp_path, monkeypatch):
    """The failure is planted, because chmod does not stop root."""

    def fail(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", fail)
    assert fault(tmp_path).startswith(f"{tmp_path}: Permission denied; expected a folder with Kag")


def test_many_folders_are_not_searched(tmp_path):
    for i in range(201):
        (tmp_path / f"{i}").mkdir()
    (tmp_path / "7" / "train.csv").write_bytes(csv_bytes(csv_rows(*digits(2))))
    assert fault(tmp_path).startswith(
        f"{tmp_path}: found 0, 1, 10, 100, 101 and 196 more; expected"
    )
