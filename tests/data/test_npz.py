"""Keras's .npz files: read without unpickling, or refused."""

import io
import zipfile

import numpy as np
import pytest
from digit_files import digits, fault, measure, npz_bytes, zip_bytes

from minicnn.data.load import load, load_test
from minicnn.data.npz_files import read_npz
from minicnn.files import DataError

IMAGES, LABELS = digits(40)
TESTED = digits(5, seed=1)


def write(folder, content, name="mnist.npz"):
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("as_file", [False, True])
def test_npz(tmp_path, save, as_file):
    arrays = {"x_train": IMAGES, "y_train": LABELS, "x_test": TESTED[0], "y_test": TESTED[1]}
    path = write(tmp_path, npz_bytes(save, **arrays))
    source = path if as_file else tmp_path
    data = load(source)
    for name, array in arrays.items():
        np.testing.assert_array_equal(getattr(data, name), array)
        assert getattr(data, name).dtype == np.uint8
    assert data.description == "40 images 28x28, 10 classes 0..9"
    test = load_test(source)
    assert test.x_train is None and test.description == "5 images 28x28, 10 classes 0..9"
    np.testing.assert_array_equal(test.y_test, TESTED[1])


COLOUR = np.random.default_rng(0).integers(0, 256, (40, 6, 5, 3), np.uint8)


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        pytest.param(COLOUR, LABELS[:, None], COLOUR, id="colour, labels (N, 1)"),
        pytest.param(COLOUR[..., :1], LABELS, COLOUR[..., 0], id="one channel"),
        pytest.param((COLOUR / 255).astype("f4"), LABELS, COLOUR, id="float32"),
        pytest.param((COLOUR / 255).astype(">f8"), LABELS.astype(">i8"), COLOUR, id="big-endian"),
        pytest.param(COLOUR.astype("i8"), LABELS.astype("f4"), COLOUR, id="int64, float labels"),
        pytest.param(np.asfortranarray(COLOUR), LABELS, COLOUR, id="Fortran's order"),
    ],
)
def test_types(tmp_path, monkeypatch, x, y, expected):
    monkeypatch.setattr("minicnn.data.npz_files._PIECE", 7)
    content = npz_bytes(np.savez_compressed, x_train=x, y_train=y, other=np.array([{}]))
    data = load(write(tmp_path, content))
    np.testing.assert_array_equal(data.x_train, expected)
    np.testing.assert_array_equal(data.y_train, LABELS)
    assert data.x_test is None


def test_names_of_medmnist(tmp_path):
    arrays = {"train_images": COLOUR, "train_labels": LABELS[:, None] % 7}
    arrays |= {"val_images": COLOUR, "test_images": COLOUR[:2], "test_labels": LABELS[:2, None] % 7}
    data = load(write(tmp_path, npz_bytes(np.savez, **arrays)))
    np.testing.assert_array_equal(data.y_train, LABELS % 7)
    np.testing.assert_array_equal(data.x_test, COLOUR[:2])
    assert data.description == "40 images 6x5x3, 7 classes 0..6"


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (IMAGES, None, "mnist.npz: found x_train; expected arrays x_train and y_train"),
        (IMAGES, np.array([{}] * 40), "y_train.npy: got Python objects (pickled), expected an arr"),
        (IMAGES, np.array(["a"] * 40), "y_train.npy: got text, expected an array of numbers as"),
        (IMAGES, LABELS[:39], "y_train.npy: got uint8 of shape (39,), expected a whole number for"),
        (
            IMAGES,
            np.eye(10)[LABELS],
            "y_train.npy: got float64 of shape (40, 10), expected a who",
        ),
        (IMAGES, LABELS + 0.5, "y_train.npy: label 1 of 40: got "),
        (IMAGES, np.full(40, np.nan), "y_train.npy: label 1 of 40: got nan, expected a whole numb"),
        (IMAGES, np.full(40, 1e30), "y_train.npy: label 1 of 40: got 1e+30, expected a whole numb"),
        (IMAGES, np.full(40, 2**64 - 1, "u8"), "y_train.npy: label 1 of 40: got 1844674407370955"),
        (IMAGES.reshape(40, 784), LABELS, "x_train.npy: got uint8 of shape (40, 784), expected im"),
        (IMAGES[:0], LABELS[:0], "x_train.npy: number of images: got 0, expected 1 to 2000000"),
        (IMAGES[:, :0], LABELS, "x_train.npy: image size: got 0 x 28, expected sides of 1 to 1024"),
        (
            *(COLOUR.reshape(40, 3, 5, 6)[..., None].repeat(17, 4)[:, 0], LABELS),
            "x_train.npy: image size: got 5 x 6 x 17, expected 1 to 16 channels, which come last",
        ),
        (IMAGES / 2, LABELS, "x_train.npy: got a pixel "),
        (IMAGES / np.nan, LABELS, "x_train.npy: got a pixel nan, expected uint8, or floats from 0"),
        (IMAGES.astype("i4") + 1, LABELS, "x_train.npy: got a pixel 256, expected integers from"),
        (IMAGES.astype("i1"), LABELS, "x_train.npy: got a pixel -"),
        (IMAGES * 1j, LABELS, "x_train.npy: got something else, expected an array of numbers"),
    ],
)
def test_bad_arrays(tmp_path, x, y, expected):
    arrays = {"x_train": x} | ({} if y is None else {"y_train": y})
    path = write(tmp_path, npz_bytes(np.savez, **arrays))
    folder = path if expected.startswith("mnist") else f"{path}/"
    assert fault(tmp_path).startswith(
        f"{folder}{expected}".replace("mnist.npzmnist.npz", "mnist.npz")
    )


def npy(header, values=b"", version=b"\1\0"):
    text = header.encode()
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text + values


GOOD = "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 3, 3), }\n"
FLAT = npy("{'descr': '|u1', 'fortran_order': False, 'shape': (2,), }\n", b"\3\4")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (npy(GOOD, bytes(17)), "truncated: got 17 values, expected 18"),
        (npy(GOOD, bytes(19)), "got bytes after the last value, expected 18 values"),
        (npy(GOOD.replace("2", "200000"), bytes(18)), "truncated: got 18 values, expected 1800000"),
        (npy(GOOD.replace("2", "9" * 12)), "number of images: got 999999999999, expected 1 to 20"),
        (
            npy(GOOD.replace("2", "9" * 13)),
            "got something else, expected an array of numbers as N",
        ),
        (npy(GOOD.replace("2", "-2"), bytes(18)), "got something else, expected an array"),
        (npy(GOOD.replace("|u1", "|O"), b"cos\nsystem"), "got Python objects (pickled), expected"),
        (npy(GOOD.replace("'|u1'", "print()"), bytes(18)), "got something else, expected an arr"),
        (npy(GOOD, bytes(18), b"\4\0"), "got something else, expected an array"),
        (npy(GOOD + " " * 5000, bytes(18)), "got something else, expected an array"),
        (b"", "got something else, expected an array"),
    ],
)
def test_bad_members(tmp_path, content, expected):
    path = write(tmp_path, zip_bytes({"x_train.npy": content, "y_train.npy": FLAT}))
    assert fault(path).startswith(f"{path}/x_train.npy: {expected}")


def test_what_python_2_wrote(tmp_path):
    text = "{'descr': '|u1', 'fortran_order': False, 'shape': (2L, 3L, 3L), }           \n"
    content = zip_bytes({"x_train.npy": npy(text, bytes(range(18))), "y_train.npy": FLAT})
    train, test = read_npz(write(tmp_path, content))
    assert train.images.reshape(-1).tolist() == list(range(18)) and test is None
    assert train.labels.names == ("3", "4")


def test_a_bomb(tmp_path):
    """A header that promises less than its member has."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("x_train.npy", "w", force_zip64=True) as member:
            member.write(npy(GOOD))
            for _ in range(200):
                member.write(bytes(1 << 20))
        archive.writestr("y_train.npy", FLAT)
    path = write(tmp_path, buffer.getvalue())
    message, seconds, peak = measure(path)
    assert "got bytes after the last value, expected 18 values" in message
    assert seconds < 1 and peak < 20e6


def test_more_than_the_memory(tmp_path, monkeypatch):
    path = write(tmp_path, npz_bytes(np.savez, x_train=IMAGES, y_train=LABELS))
    monkeypatch.setattr("minicnn.data.sources.free_memory", lambda: 1000)
    assert fault(path).startswith(
        f"{path}/x_train.npy: too large for memory: got 31,360 bytes, exp"
    )


def test_two_files_in_a_folder(tmp_path):
    for name in "a.npz", "b.npz":
        write(tmp_path, npz_bytes(np.savez, x_train=IMAGES, y_train=LABELS), name)
    assert f"{tmp_path}: found a.npz, b.npz; expected" in fault(tmp_path)
    assert load(tmp_path / "b.npz").x_train.shape == IMAGES.shape


def test_no_test_images(tmp_path):
    path = write(tmp_path, npz_bytes(np.savez, x_train=IMAGES, y_train=LABELS))
    with pytest.raises(DataError, match=r"found x_train, y_train; expected arrays x_test \(opt"):
        load_test(path)


@pytest.mark.parametrize("content", [b"", b"<unknown>"])
def test_no_archive(tmp_path, content):
    path = write(tmp_path, content)
    for source in path, tmp_path:
        assert fault(source).startswith(
            f"{path}: bad zip archive: File is not a zip file, expected"
        )
