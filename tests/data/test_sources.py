"""Where data is found: archives, files of other sorts, and what a refusal says about them."""

import gzip
import io
import struct
import zipfile

import numpy as np
import pytest
from digit_files import (
    TEST_IMAGES,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    csv_bytes,
    csv_rows,
    digits,
    fault,
    idx_bytes,
    measure,
    npz_bytes,
    zip_bytes,
)

from minicnn.data.load import load, load_test
from minicnn.data.sources import READABLE, sort_of

IMAGES, LABELS = digits(40)
TRAIN, TEST = csv_bytes(csv_rows(IMAGES, LABELS)), csv_bytes(csv_rows(IMAGES[:3]))
KAGGLE = {"train.csv": TRAIN, "test.csv": TEST, "sample_submission.csv": b"ImageId,Label\n1,0\n"}


# --- Zip archives ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "files",
    [
        pytest.param(KAGGLE, id="digit-recognizer"),
        pytest.param({f"in/{name}": content for name, content in KAGGLE.items()}, id="folder"),
        pytest.param(
            KAGGLE | {"__MACOSX/train.csv": b"\0", "._test.csv": b"\0", "in/": b""}, id="of a Mac"
        ),
        pytest.param({"a_train.csv": TRAIN, "a_test.csv": gzip.compress(TEST)}, id="named"),
        pytest.param(
            {
                TRAIN_IMAGES: idx_bytes(IMAGES),
                f"{TRAIN_LABELS}.gz": gzip.compress(idx_bytes(LABELS)),
                f"x/{TEST_IMAGES}": idx_bytes(IMAGES[:3]),
                "y/t10k-labels.idx1-ubyte": idx_bytes(LABELS[:3]),
            },
            id="IDX",
        ),
    ],
)
def test_zip(tmp_path, files):
    path = tmp_path / "digit-recognizer.zip"
    path.write_bytes(zip_bytes(files))
    for source in tmp_path, path:
        data = load(source)
        np.testing.assert_array_equal(data.x_train, IMAGES)
        np.testing.assert_array_equal(data.y_train, LABELS)
        np.testing.assert_array_equal(data.x_test, IMAGES[:3])
        np.testing.assert_array_equal(load_test(source).x_test, IMAGES[:3])


def test_a_member_without_a_name(tmp_path):
    """ZipInfo.is_dir fails on it."""
    path = tmp_path / "any.zip"
    path.write_bytes(zip_bytes(KAGGLE))
    with zipfile.ZipFile(path, "a") as archive, archive.open(zipfile.ZipInfo(""), "w") as member:
        member.write(b"content")
    assert load(path).x_train.shape == IMAGES.shape


def test_one_archive_for_each_file(tmp_path):
    """The API of Kaggle gives train.csv.zip and test.csv.zip."""
    for name in "train.csv", "test.csv":
        (tmp_path / f"{name}.zip").write_bytes(zip_bytes({name: KAGGLE[name]}))
    data = load(tmp_path)
    np.testing.assert_array_equal(data.x_train, IMAGES)
    np.testing.assert_array_equal(data.x_test, IMAGES[:3])


def test_a_set_in_an_archive_of_several(tmp_path):
    path = tmp_path / "both.zip"
    path.write_bytes(zip_bytes({"a_train.csv": TRAIN, "b_train.csv": TRAIN, "b_test.csv": TEST}))
    assert fault(path) == (
        f"{path}: found several data sets, a, b; expected one, such as {path / 'a'}"
    )
    assert load(path / "b").x_test.shape == (3, 28, 28)
    assert load(path / "b_train.csv").x_test.shape == (3, 28, 28)


def changed(content, mark, offset, value):
    """An archive after a change of the field at `offset` behind each mark."""
    parts = content.split(mark)
    edited = [part[:offset] + value + part[offset + len(value) :] for part in parts[1:]]
    return mark.join([parts[0], *edited])


GOOD = zip_bytes({"train.csv": TRAIN})
LOCAL, CENTRAL, END = b"PK\3\4", b"PK\1\2", b"PK\5\6"
BAD = "bad zip archive: "


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (GOOD[:-30], f": {BAD}File is not a zip file, expected a complete one"),
        (GOOD[:100] + GOOD[200:], f"/train.csv: {BAD}a member before the start of the file"),
        (changed(GOOD, CENTRAL, 4, b"\1"), f"/train.csv: {BAD}a member with a password"),
        (changed(GOOD, CENTRAL, 6, b"\x63"), f"/train.csv: {BAD}compression method 99"),
        (changed(GOOD, CENTRAL, 6, b"\0"), "/train.csv"),  # compressed, but said to be stored
        (changed(GOOD, CENTRAL, 12, bytes(4)), f"/train.csv: {BAD}Bad CRC-32"),
        (changed(GOOD, CENTRAL, 16, bytes(4)), f"/train.csv: {BAD}Bad CRC-32"),
        *(
            (changed(GOOD, CENTRAL, place, struct.pack("<L", value)), f"/train.csv: {BAD}{reason}")
            for place, value, reason in (
                (20, 1 << 30, f"a member of {len(TRAIN):,} bytes instead of 1,073,741,824"),
                (38, 5, "Bad magic number for file header"),
                (38, len(GOOD), "Truncated file header"),
                (38, 1 << 31, "Truncated file header"),
            )
        ),
        (changed(GOOD, LOCAL, 22, struct.pack("<H", 60000)), f"/train.csv: {BAD}"),
        (changed(GOOD, END, 8, struct.pack("<L", 1 << 28)), f": {BAD}"),
        (zip_bytes({}), ": got an empty zip archive; expected Kaggle's train.csv"),
        (zip_bytes({"a.txt": b"", "b": b""}), ": found a.txt, b; expected Kaggle's train.csv"),
        (zip_bytes({"test.csv": TEST}), ": found test.csv; expected Kaggle's train.csv"),
        (zip_bytes({"a/1.JPG": b""}), ": got a zip archive of images, expected a folder of them"),
        (zip_bytes({"train.csv": GOOD}), "/train.csv, line 1: got a zip archive, expected a head"),
    ],
)
def test_bad_zip(tmp_path, content, expected):
    path = tmp_path / "any.zip"
    path.write_bytes(content)
    assert fault(path).startswith(f"{path}{expected}")


def test_a_long_list_of_members(tmp_path):
    path = tmp_path / "any.zip"
    path.write_bytes(zip_bytes({f"{i:099}": b"" for i in range(8000)}))
    message, seconds, peak = measure(path)
    assert f"{path}: bad zip archive: a list of members of 1,160,000 bytes, expected" in message
    assert seconds < 1 and peak < 20e6


@pytest.mark.parametrize(
    ("piece", "expected"),
    [
        (b"0", "line 42: line too long"),
        (b",\n", "line 42: got 2 columns, expected 785"),
    ],
)
def test_a_bomb(tmp_path, piece, expected):
    """Much more than the archive has: refused at once, in little memory."""
    buffer, megabyte = io.BytesIO(), piece * ((1 << 20) // len(piece))
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("train.csv", "w") as member,
    ):
        member.write(TRAIN)
        for _ in range(200):
            member.write(megabyte)
    path = tmp_path / "any.zip"
    path.write_bytes(buffer.getvalue())
    message, seconds, peak = measure(path)
    assert expected in message
    assert seconds < 5 and peak < 100e6


# --- Other files ----------------------------------------------------------------------------------

SORTS = {
    b"\x89PNG\r\n\x1a\n": "a PNG image",
    b"\xff\xd8\xff\xe0\0\x10JFIF": "a JPEG image",
    b"\x89HDF\r\n\x1a\n\0": "an HDF5 file",
    b"PAR1\x15\4": "a Parquet file",
    b"\x80\4\x95\0\0": "a Python pickle",
    b"\x80\2}q\1": "a Python pickle",
    b"\x93NUMPY\1\0": "a NumPy array (.npy)",
    b"MATLAB 5.0 MAT-file": "a MATLAB file (.mat)",
    b"BZh91AY": "a bzip2 stream",
    b"\xfd7zXZ\0": "an xz stream",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"a" + bytes(256) + b"ustar": "a tar archive",
    b"\n<!DOCTYPE html><title>Sign in": "a web page",
    b"<HTML>": "a web page",
    b'{"code": 403}': "JSON",
    b"@RELATION mnist_784": "an ARFF file",
    b"version https://git-lfs.github.com/spec/v1": "a pointer of Git LFS, not the file itself",
    b"\xff\xfel\0a\0": "text in UTF-16",
    b"\1\2\0\3": "binary data",
}


@pytest.mark.parametrize(("content", "sort"), SORTS.items(), ids=SORTS.values())
@pytest.mark.parametrize("compress", [False, True])
def test_a_file_of_another_sort(tmp_path, content, sort, compress):
    assert sort_of(content) == sort
    path = tmp_path / "data"
    path.write_bytes(gzip.compress(content) if compress else content)
    assert fault(path) == f"{path}: got {sort}; expected {READABLE}"
    train = tmp_path / "folder" / "train.csv"
    train.parent.mkdir()
    train.write_bytes(path.read_bytes())
    expected = f"{train}, line 1: got {sort}, expected a header or rows of pixels"
    assert fault(train.parent) == expected


def test_text_has_no_sort():
    assert sort_of(TRAIN[:512]) is None and sort_of(b"") is None


def test_an_idx_file_alone(tmp_path):
    path = tmp_path / "digits.bin"
    path.write_bytes(idx_bytes(IMAGES))
    assert fault(path) == (
        f"{path}: got an IDX file alone, expected images and labels, named as MNIST's are"
    )
    named = tmp_path / TRAIN_IMAGES
    named.write_bytes(idx_bytes(IMAGES))
    assert fault(named).startswith(f"{named}: got an IDX file alone, expected images and labels")


def test_folders_that_are_named_like_files(tmp_path):
    for name in "train.csv", "mnist.npz", TRAIN_IMAGES, "other":
        (tmp_path / name).mkdir()
    assert fault(tmp_path) == (
        f"{tmp_path}: found mnist.npz (a folder), other, {TRAIN_IMAGES} (a folder),"
        f" train.csv (a folder); expected {READABLE}"
    )
    (tmp_path / "train.csv" / "train.csv").write_bytes(TRAIN)
    assert load(tmp_path).x_train.shape == IMAGES.shape


def test_kaggles_files_come_before_others(tmp_path):
    (tmp_path / "train.csv").write_bytes(TRAIN)
    (tmp_path / "a_train.csv").write_bytes(b"another data set")
    for name in "a.npz", "b.zip":
        (tmp_path / name).write_bytes(npz_bytes(np.savez, z=IMAGES))
    assert load(tmp_path).x_train.shape == IMAGES.shape


def test_files_of_kaggle_that_are_not_whole_are_not_ignored(tmp_path):
    (tmp_path / "a_train.csv").write_bytes(TRAIN)
    (tmp_path / "test.csv").write_bytes(TEST)
    expected = f"{tmp_path}: found several data sets, a, test.csv; expected one, such as"
    assert fault(tmp_path) == f"{expected} {tmp_path / 'a'}"
    assert load(tmp_path / "a").x_test is None
