"""IDX files of digits, compressed or not: read or refused."""

import gzip

import numpy as np
import pytest
from digit_files import (
    HUGE,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    check_survival,
    csv_bytes,
    csv_rows,
    digits,
    fault,
    fuzzing,
    header,
    idx_bytes,
    measure,
)
from hypothesis import given
from hypothesis import strategies as st

from minicnn import load_data
from minicnn.data.load import load, load_test


def write_idx(folder, train=None, test=None, dotted=False, compress=False):
    """Write the given pairs of images and labels: arrays, or the bytes of a file."""
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


@fuzzing()
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
WRONG_LABELS = np.array([LABELS[0], 12, 200], np.uint8)
LATER = "got bytes after the last of the"


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
        (IMAGES, header(2049, 0), TRAIN_LABELS, "number of labels: got 0, expected 1 to 2000000"),
        (header(2051, HUGE, 28, 28), LABELS, TRAIN_IMAGES, f"number of images: got {HUGE}"),
        *(
            (header(*numbers), LABELS, TRAIN_IMAGES, expected)
            for numbers, expected in (
                ((2051, 3, 0, 28), "image size: got 0 x 28, expected sides of 1 to 1024"),
                ((2051, 3, 28, 1025), "image size: got 28 x 1025, expected sides of 1 to 1024"),
                ((2052, 3, 28, 28, 17), "image size: got 28 x 28 x 17, expected 1 to 16 channels"),
                ((2052, 3, 28, 28), "got a part of a header, expected a header of 20 bytes"),
                ((3086, 3, 28, 28), "magic number: got 3086, expected 2051 for images"),
                ((0x89504E47, 0x0D0A1A0A, 0, 0), "magic number: got a PNG image, expected 2051"),
                ((2051, 2_000_000, 1024, 1024), "too large for memory: got 2,097,152,000,000 by"),
            )
        ),
        *(
            (IMAGES, header(*numbers), TRAIN_LABELS, expected)
            for numbers, expected in (
                ((3074, 3, 7), "columns of a label: got 7, expected 8"),
                ((3074, 3), "got a part of a header, expected a header of 12 bytes"),
                ((3074, 3, 8), "truncated: got 12 bytes, expected 108 for 3 labels"),
            )
        ),
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
    expected = f"{TEST_LABELS}: label 2 of 3: got '12', expected one of 10 classes 0..9"
    assert expected in fault(tmp_path)


# --- The relatives of MNIST ----------------------------------------------------------------------


def write_set(folder, prefix, train, test, suffix=""):
    """Write the four files of a set, such as emnist-letters."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, (images, labels) in (("train", train), ("test", test)):
        for kind, array in ("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels):
            content = array if isinstance(array, bytes) else idx_bytes(array)
            content = gzip.compress(content) if suffix else content
            (folder / f"{prefix}-{part}-{kind}{suffix}").write_bytes(content)


def split(labels, seed=0, count=60):
    """Images (60, 9, 7) and labels that repeat the given ones."""
    images = np.random.default_rng(seed).integers(0, 256, (count, 9, 7), np.uint8)
    return images, np.resize(labels, count).astype(np.uint8)


SPLITS = {
    "letters": (range(1, 27), "26 classes A..Z", "ABC"),
    "balanced": (range(47), "47 classes 0..t", "012"),
    "bymerge": (range(47), "47 classes 0..t", "012"),
    "byclass": (range(62), "62 classes 0..z", "012"),
    "digits": (range(10), "10 classes 0..9", "012"),
    "mnist": (range(10), "10 classes 0..9", "012"),
}


@pytest.mark.parametrize("name", SPLITS)
def test_emnist(tmp_path, name):
    labels, classes, first = SPLITS[name]
    train, test = split(labels, 1, 124), split(labels, 2)
    write_set(tmp_path / "gzip", f"emnist-{name}", train, test, ".gz")
    data = load(tmp_path)
    np.testing.assert_array_equal(data.x_train, train[0].swapaxes(1, 2))
    np.testing.assert_array_equal(data.x_test, test[0].swapaxes(1, 2))
    np.testing.assert_array_equal(data.y_train, train[1] - min(labels))
    assert "".join(data.classes[label] for label in data.y_train[:3]) == first
    assert data.description == f"124 images 7x9, {classes}, transposed as EMNIST stores them"


def test_a_label_that_the_split_has_not(tmp_path):
    write_set(tmp_path, "emnist-letters", split([1, 0, 26]), split([1]))
    assert "labels-idx1-ubyte: label 2 of 60: got '0', expected 1 to 26" in fault(tmp_path)


def test_several_splits_in_a_folder(tmp_path):
    for name, (labels, *_) in SPLITS.items():
        write_set(tmp_path / "gzip", f"emnist-{name}", split(labels), split(labels), ".gz")
    assert fault(tmp_path) == (
        f"{tmp_path}: found several data sets, emnist-balanced, emnist-byclass, emnist-bymerge,"
        f" emnist-digits, emnist-letters, emnist-mnist; expected one, such as"
        f" {tmp_path / 'emnist-balanced'}"
    )
    for source in (
        *("emnist-letters", "gzip/emnist-letters"),
        *(f"gzip/emnist-letters-test-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")),
    ):
        assert load(tmp_path / source).classes == tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
        assert len(load_test(tmp_path / source).x_test) == 60
    assert "emnist-none: No such file or directory; expected" in fault(tmp_path / "emnist-none")


def test_qmnist(tmp_path):
    """A label has 8 columns of 32 bits; the first is the digit."""
    images, digit = split(range(10))
    columns = np.arange(480, dtype=">i4").reshape(60, 8)
    columns[:, 0] = digit
    content = header(0xC02, 60, 8) + columns.tobytes()
    for part in "train", "test":
        (tmp_path / f"qmnist-{part}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (tmp_path / f"qmnist-{part}-labels-idx2-int.gz").write_bytes(gzip.compress(content))
    data = load(tmp_path)
    np.testing.assert_array_equal(data.y_train, digit)
    np.testing.assert_array_equal(data.y_test, digit)
    assert data.y_train.dtype == np.uint8
    assert data.description == "60 images 9x7, 10 classes 0..9"


@pytest.mark.parametrize("channels", [1, 3])
def test_images_with_channels(tmp_path, channels):
    images = np.random.default_rng(0).integers(0, 256, (60, 6, 5, channels), np.uint8)
    (tmp_path / TRAIN_IMAGES).write_bytes(header(0x804, *images.shape) + images.tobytes())
    (tmp_path / TRAIN_LABELS).write_bytes(idx_bytes(np.uint8(np.arange(60) % 4)))
    data = load(tmp_path)
    np.testing.assert_array_equal(data.x_train, images[..., 0] if channels == 1 else images)
    assert data.description == f"60 images 6x5{'x3' * (channels == 3)}, 4 classes 0..3"


@pytest.mark.parametrize(
    "folders",
    [
        pytest.param({}, id="none"),
        pytest.param(dict.fromkeys(range(4), "MNIST/raw"), id="torchvision"),
        pytest.param(dict.fromkeys(range(4), "gzip"), id="one"),
        pytest.param({i: f"{i}-ubyte" for i in range(4)}, id="each in its own"),
        pytest.param({2: "test", 3: "test"}, id="test files"),
    ],
)
def test_nested_folders(tmp_path, folders):
    names, contents = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS), [*split([1, 2])] * 2
    for i, (name, array) in enumerate(zip(names, contents, strict=True)):
        folder = tmp_path / folders.get(i, "")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(idx_bytes(array))
    if 2 in folders and 0 not in folders:  # what is at the top is a data set of its own
        assert load(tmp_path).x_test is None
    else:
        np.testing.assert_array_equal(load(tmp_path).x_test, contents[2])
    np.testing.assert_array_equal(load(tmp_path).x_train, contents[0])


def test_the_same_names_in_two_folders(tmp_path):
    for name in "digits", "fashion":
        (tmp_path / name).mkdir()
        write_idx(tmp_path / name, split(range(10), len(name)))
    assert fault(tmp_path) == (
        f"{tmp_path}: found several data sets, digits/{TRAIN_IMAGES}, fashion/{TRAIN_IMAGES};"
        f" expected one, such as {tmp_path / 'digits' / TRAIN_IMAGES}"
    )
    data = load(tmp_path / "fashion" / TRAIN_IMAGES)
    np.testing.assert_array_equal(data.x_train, split(range(10), 7)[0])


def test_more_labels_than_classes(tmp_path):
    images, labels = np.zeros((1001, 2, 2), np.uint8), np.arange(1001).astype(">i2")
    (tmp_path / TRAIN_IMAGES).write_bytes(idx_bytes(images))
    (tmp_path / TRAIN_LABELS).write_bytes(header(0xB01, 1001) + labels.tobytes())
    expected = "label 1001 of 1001: got more than 1,000 different labels, expected 2 to 1,000"
    assert f"{TRAIN_LABELS}: {expected}" in fault(tmp_path)


def test_gzip_is_known_by_its_bytes(tmp_path):
    images, labels = split(range(10))
    (tmp_path / TRAIN_IMAGES).write_bytes(gzip.compress(idx_bytes(images)))
    (tmp_path / f"{TRAIN_LABELS}.gz").write_bytes(idx_bytes(labels))
    np.testing.assert_array_equal(load(tmp_path).x_train, images)


def test_as_many_images_as_emnist_has(tmp_path):
    count = 814_255
    labels = np.resize(np.arange(62), count).astype(np.uint8)
    images = np.zeros((count, 2, 2), np.uint8)
    for name, array in (TRAIN_IMAGES, images), (TRAIN_LABELS, labels):
        (tmp_path / name).write_bytes(idx_bytes(array))
    assert load(tmp_path).description == "814,255 images 2x2, 62 classes 0..61"


def test_images_of_another_size_for_testing(tmp_path):
    write_idx(tmp_path, split(range(10)), (IMAGES, LABELS))
    expected = f"{tmp_path / TEST_IMAGES}: got images 28x28, expected 9x7 as for training"
    assert fault(tmp_path) == expected


# --- Bad gzip streams -----------------------------------------------------------------------------

good_gzip = gzip.compress(idx_bytes(IMAGES))


@pytest.mark.parametrize(
    "content",
    [
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


@fuzzing()
@given(st.binary(max_size=60), st.integers(0, 2400), st.integers(0, 60), st.booleans())
def test_idx_survives_anything(tmp_path, noise, position, length, compress):
    for old in tmp_path.iterdir():
        old.unlink()
    content = idx_bytes(IMAGES)
    content = content[:position] + noise + content[position + length :]
    write_idx(tmp_path, (content, LABELS), compress=compress)
    check_survival(tmp_path)


@fuzzing()
@given(st.binary(max_size=60), st.integers(0, 2400), st.integers(0, 60))
def test_gzip_survives_anything(tmp_path, noise, position, length):
    content = good_gzip[:position] + noise + good_gzip[position + length :]
    (tmp_path / f"{TRAIN_IMAGES}.gz").write_bytes(content)
    (tmp_path / TRAIN_LABELS).write_bytes(idx_bytes(LABELS))
    check_survival(tmp_path)
