"""CSV files of many makers: which column holds what, and what is said about it."""

import gzip

import numpy as np
import pytest
from digit_files import csv_bytes, csv_rows, fault

from minicnn.data.load import load, load_test
from minicnn.files import DataError

COUNT = 60
LABELS = np.arange(COUNT) * 7 % 10
WORDS = [("cat", "dog", "a b", "\N{LATIN SMALL LETTER U WITH DIAERESIS}")[i % 4] for i in LABELS]


def images(count=COUNT, shape=(28, 28), seed=0):
    """Random images with a border that is almost black, as digits have."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (count, *shape), np.uint8)
    pixels[:, 0] = pixels[:, -1] = 0
    pixels[1, -1, -1] = 3
    return pixels


def table(pixels, labels=None, last=False, name="label", ids=None, index=None):
    """The rows of a file: a header, then [index,] [id,] [label,] pixels [, label]."""
    rows = csv_rows(pixels)
    if labels is not None:
        for row, value in zip(rows, [name, *map(str, labels)], strict=True):
            row.insert(len(row) if last else 0, value)
    for column in ids, index:
        if column is not None:
            for row, value in zip(rows, column, strict=True):
                row.insert(0, str(value))
    return rows


def read(folder, reader=load, **files):
    """Load files, given as rows or as bytes, from a folder."""
    for name, content in files.items():
        content = content if isinstance(content, bytes) else csv_bytes(content)  # noqa: PLW2901
        (folder / f"{name}.csv").write_bytes(content)
    return reader(folder)


def text_of(rows, delimiter=",", number="{}", header=True):
    """The bytes of a file whose fields are written in another way."""
    lines = [rows[0]] * header + [[number.format(f) for f in row] for row in rows[1:]]
    return "".join(delimiter.join(line) + "\n" for line in lines).encode()


@pytest.mark.parametrize("block", [1000, 1 << 20])
@pytest.mark.parametrize(
    ("rows", "options", "note"),
    [
        pytest.param(table(images(), LABELS, last=True), {}, "", id="label last"),
        pytest.param(table(images(), LABELS, name=" Label "), {}, "", id="Label"),
        pytest.param(table(images(), LABELS, last=True, name="class"), {}, "", id="class"),
        pytest.param(
            table(images(), LABELS, name="digit"), {}, ", label in the first column", id="digit"
        ),
        pytest.param(
            table(images(), LABELS, last=True, name="y"), {}, ", label in the last column", id="y"
        ),
        pytest.param(table(images(), LABELS), {"delimiter": ";"}, "", id="semicolons"),
        pytest.param(table(images(), LABELS), {"delimiter": "\t"}, "", id="tabs"),
        pytest.param(table(images(), LABELS), {"number": "{}.0"}, "", id="fractions"),
        pytest.param(table(images(), LABELS), {"number": "{}.000"}, "", id="long fractions"),
        pytest.param(
            table(images(), LABELS), {"delimiter": ";", "number": '"{}."'}, "", id="quoted points"
        ),
        pytest.param(
            table(images(), LABELS, index=["", *range(COUNT)]), {}, "", id="index of pandas"
        ),
        pytest.param(
            table(images(), LABELS, index=["Unnamed: 0", *range(COUNT)]), {}, "", id="Unnamed"
        ),
        pytest.param(
            table(images(), LABELS, ids=["id", *range(COUNT)], index=["", *range(COUNT)]),
            {},
            "",
            id="id and index",
        ),
    ],
)
def test_layouts(tmp_path, monkeypatch, block, rows, options, note):
    monkeypatch.setattr("minicnn.data.csv_files._BLOCK", block)
    if note and block < 10_000:
        return  # a sample of the first block shows which column is the label
    data = read(tmp_path, train=text_of(rows, **options))
    np.testing.assert_array_equal(data.x_train, images())
    np.testing.assert_array_equal(data.y_train, LABELS)
    assert data.y_train.dtype == np.uint8
    assert data.description == f"60 images 28x28, 10 classes 0..9{note}"


@pytest.mark.parametrize("labels", [LABELS, LABELS + 1, LABELS % 2, WORDS])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("index", [None, ["", *range(1, COUNT + 1)]])
@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_no_header(tmp_path, labels, last, index, noise, start):
    """Labels repeat; pixels on the border hardly vary, or are noise."""
    pixels = images() if not noise else np.uint8(np.random.default_rng(1).random((60, 4, 4)) * 256)
    rows = table(pixels, labels, last, index=index)[1:]
    data = read(tmp_path, train=start + csv_bytes(rows))
    names = [data.classes[label] for label in data.y_train]
    assert names == list(map(str, labels))
    np.testing.assert_array_equal(data.x_train, pixels)
    where = "last" if last else "first"
    assert data.description.endswith(f"label in the {where} column")


def test_numbers_as_names_of_columns(tmp_path):
    """DataFrame(array).to_csv() writes them."""
    rows = table(images(), LABELS, index=["", *range(COUNT)])
    rows[0][1:] = map(str, range(785))
    data = read(tmp_path, train=rows)
    np.testing.assert_array_equal(data.x_train, images())
    np.testing.assert_array_equal(data.y_train, LABELS)


def test_a_first_row_that_pandas_made_a_header_of(tmp_path):
    """A_Z Handwritten Data.csv has these names."""
    rows = table(images(), LABELS)
    rows[0] = ["0", *(f"0.{i}" for i in range(1, 785))]
    data = read(tmp_path, train=rows)
    np.testing.assert_array_equal(data.x_train, images())
    np.testing.assert_array_equal(data.y_train, LABELS)
    assert data.description == "60 images 28x28, 10 classes 0..9, label in the first column"


def test_a_first_row_that_rises_is_no_header(tmp_path):
    pixels = images()
    pixels[0] = np.arange(784).reshape(28, 28) % 256
    pixels[0, -1] = range(200, 228)
    data = read(tmp_path, train=table(pixels, LABELS)[1:])
    np.testing.assert_array_equal(data.x_train, pixels)


def test_a_label_column_that_does_not_vary(tmp_path):
    rows = table(images(), np.zeros(COUNT, int))[1:]
    (tmp_path / "train.csv").write_bytes(csv_bytes(rows))
    assert fault(tmp_path) == (
        f"{tmp_path / 'train.csv'}, column 1: got '0' in each line, expected labels; name their"
        " column label in a header"
    )


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_labels_that_are_texts(tmp_path, delimiter):
    words = [f'"{word}"' if i % 3 else word for i, word in enumerate(WORDS)]
    words[5] = '"a, b; c"'
    data = read(tmp_path, train=text_of(table(images(), words), delimiter))
    assert data.classes == ("a b", "a, b; c", "cat", "dog", "\u00fc")
    assert [data.classes[label] for label in data.y_train][:6] == [*WORDS[:5], "a, b; c"]
    np.testing.assert_array_equal(data.x_train, images())


# --- Sizes and channels ---------------------------------------------------------------------------


def test_three_planes_are_colours(tmp_path):
    planes = images(shape=(3, 8, 8))  # CIFAR's order
    data = read(tmp_path, train=table(planes, LABELS), test=table(planes[:5]))
    np.testing.assert_array_equal(data.x_train, planes.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(data.x_test, data.x_train[:5])
    assert data.description == "60 images 8x8x3, 10 classes 0..9"


@pytest.mark.parametrize(
    ("size", "shape"), [((20, 14), (20, 14)), ((3, 9, 5), (9, 5, 3)), ((2, 7, 7), (7, 7, 2))]
)
def test_other_sizes_have_a_shape(tmp_path, size, shape):
    pixels = images(shape=size)
    (tmp_path / "train.csv").write_bytes(csv_bytes(table(pixels, LABELS)))
    (tmp_path / "test.csv").write_bytes(csv_bytes(table(pixels[:9], LABELS[:9])))
    data = load(tmp_path, shape=shape)
    expected = pixels if len(size) == 2 else pixels.transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(data.x_train, expected)
    if len(size) == 2:
        np.testing.assert_array_equal(load(tmp_path, shape=(*shape, 1)).x_train, expected)
    np.testing.assert_array_equal(load_test(tmp_path, shape=shape).x_test, expected[:9])
    with pytest.raises(DataError, match="columns of pixels besides 'label', expected a square num"):
        load(tmp_path)
    with pytest.raises(DataError, match=r"columns of pixels .*expected 784 for images 28x28"):
        load(tmp_path, shape=(28, 28))


def test_a_shape_that_the_images_have_not(tmp_path):
    assert load("digits", shape=(28, 28, 1)).x_train.shape == (6000, 28, 28)
    with pytest.raises(DataError, match="digits: got images 28x28, expected the shape 32x32x3"):
        load("digits", shape=(32, 32, 3))


@pytest.mark.parametrize("shape", [(28,), (28, 0), (1, 2, 3, 4), (28.0, 28), ()])
def test_bad_shape(shape):
    with pytest.raises(DataError, match=r"shape: got .*, expected \(H, W\) or \(H, W, C\)"):
        load("digits", shape=shape)


# --- Test files -----------------------------------------------------------------------------------


def test_ids_of_test_images(tmp_path):
    """Kannada MNIST's submission has the columns id and label."""
    ids = ["id", "x01", *map(str, range(3, 10))]
    data = read(tmp_path, train=table(images(), LABELS), test=table(images(8), ids=ids))
    assert data.test_ids == ("id", "label", tuple(ids[1:]))
    np.testing.assert_array_equal(data.x_test, images(8))
    assert data.y_test is None
    assert load_test(tmp_path).test_ids == data.test_ids


@pytest.mark.parametrize("bad", ["", "a,b", "a\x1b[2J", '"', "x" * 200])
def test_bad_ids(tmp_path, bad):
    ids = ["id", "1", "2", f'"{bad}"' if "," in bad else bad, *map(str, range(5))]
    rows = table(images(8), ids=ids)
    (tmp_path / "test.csv").write_bytes(csv_bytes(rows))
    message = fault(tmp_path, load_test)
    assert "test.csv, line 4" in message and ("id: got" in message or "stray quote" in message)


def test_a_labelled_test_file(tmp_path):
    """Its labels are those of the training file, of which it may lack some."""
    labels = ["b", "a", "c"] * 20
    data = read(tmp_path, train=table(images(), labels), test=table(images(2), ["c", "a"]))
    assert data.y_test.tolist() == [2, 0]
    assert load_test(tmp_path, classes=("a", "b", "c")).y_test.tolist() == [2, 0]
    expected = "test.csv, line 2, label: got 'c', expected one of 2 classes a, b"
    with pytest.raises(DataError, match=expected):
        load_test(tmp_path, classes=("a", "b"))
    with pytest.raises(DataError, match=r"test\.csv, line 3, label: got 'd', expected one of 3"):
        read(tmp_path, test=table(images(2), ["c", "d"]))


def test_a_test_file_without_header_and_labels(tmp_path):
    rows = table(images())
    data = read(tmp_path, train=table(images(), LABELS)[1:], test=rows[1:])
    np.testing.assert_array_equal(data.x_test, images())
    index = [["", *range(COUNT)][i] for i in range(COUNT + 1)]
    data = read(tmp_path, test=table(images(), index=index)[1:])
    np.testing.assert_array_equal(data.x_test, images())
    assert data.y_test is None and data.test_ids is None


# --- Names of files -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ("train.csv", "test.csv"),
        ("fashion-mnist_train.csv", "fashion-mnist_test.csv"),
        ("mnist_train.csv", "mnist_test.csv"),
        ("sign_mnist_train.csv.gz", "sign_mnist_test.csv"),
        ("Training.csv", "Testing.csv"),
        ("archive/train.csv", "archive/test.csv"),
        ("train.csv/train.csv", "test.csv/test.csv"),
    ],
)
def test_names(tmp_path, names):
    for name, rows in zip(names, (table(images(), LABELS), table(images(3))), strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(csv_bytes(rows))
    for source in tmp_path, tmp_path / names[0]:
        data = load(source)
        np.testing.assert_array_equal(data.x_train, images())
        if source == tmp_path or "/" not in names[0] or names[0].startswith("archive"):
            np.testing.assert_array_equal(data.x_test, images(3))


def test_the_training_file_as_test_images(tmp_path):
    """A CSV file that is named is the one that is predicted, whatever lies beside it."""
    for name, rows in ("train.csv", table(images(), LABELS)), ("test.csv", table(images(3))):
        (tmp_path / name).write_bytes(csv_bytes(rows))
    data = load_test(tmp_path / "train.csv")
    np.testing.assert_array_equal(data.x_test, images())
    assert data.y_test is not None and data.x_train is None
    for source in tmp_path, tmp_path / "test.csv":
        np.testing.assert_array_equal(load_test(source).x_test, images(3))


def test_a_file_of_any_name(tmp_path):
    path = tmp_path / "A_Z Handwritten Data.csv"
    path.write_bytes(gzip.compress(csv_bytes(table(images(), LABELS))))
    np.testing.assert_array_equal(load(path).x_train, images())
    assert load(path).x_test is None
    np.testing.assert_array_equal(load_test(path).x_test, images())
    assert "A_Z Handwritten Data.csv; expected Kaggle's" in fault(tmp_path)


@pytest.mark.parametrize(
    ("split", "labels", "classes", "names"),
    [
        ("letters", range(1, 27), "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "26 classes A..Z"),
        ("balanced", (0, 10, 36, 46), "0Aat", "47 classes 0..t"),
        ("bymerge", (9, 35, 37, 45), "9Zbr", "47 classes 0..t"),
        ("byclass", (0, 35, 36, 61), "0Zaz", "62 classes 0..z"),
        ("digits", (0, 9), "09", "10 classes 0..9"),
        ("mnist", (0, 9), "09", "10 classes 0..9"),
    ],
)
def test_emnist(tmp_path, split, labels, classes, names):
    """Its files have no header, and columns of pixels one after the other."""
    pixels = images(shape=(7, 7))
    rows = table(pixels.swapaxes(1, 2), np.resize(labels, COUNT))[1:]
    (tmp_path / f"emnist-{split}-train.csv").write_bytes(csv_bytes(rows))
    data = load(tmp_path)
    np.testing.assert_array_equal(data.x_train, pixels)
    found = [data.classes[label] for label in data.y_train]
    assert found[: len(classes)] == list(classes)
    assert data.description == (
        f"60 images 7x7, {names}, label in the first column, transposed as EMNIST stores them"
    )


def test_a_label_that_emnist_has_not(tmp_path):
    rows = table(images(), [1, 2, 27] * 20)[1:]
    (tmp_path / "emnist-letters-train.csv").write_bytes(csv_bytes(rows))
    assert "train.csv, line 3, label: got '27', expected 1 to 26" in fault(tmp_path)


# --- What is refused ------------------------------------------------------------------------------


def test_more_labels_than_classes(tmp_path):
    labels = np.arange(1002)
    path = tmp_path / "train.csv"
    path.write_bytes(csv_bytes(table(images(1002, (4, 4)), labels)))
    expected = ", line 1002, label: got more than 1,000 different labels, expected 2 to 1,000"
    assert fault(tmp_path).startswith(f"{path}{expected}")
    path.write_bytes(csv_bytes(table(images(1000, (4, 4)), labels[:1000])))
    data = load(tmp_path)
    assert data.y_train.tolist() == list(range(1000)) and data.y_train.dtype == np.uint16


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (
            [["", "", "", "", "", "label", *["p"] * 784]],
            "line 1: got 5 columns without a name or with one such as id, expected at most 4",
        ),
        ([["label", *["p"] * (1 << 18)]], "line 1: got 262145 columns, expected at most 262144"),
        ([["label"], ["1"]], "line 1: got 0 columns of pixels besides 'label', expected a square"),
        ([["ImageId", "Label"], ["1", "2"]], "line 1: got 0 columns of pixels besides 'ImageId'"),
        ([["p0", "p1", "p2", "p3", "4"]], "line 2: got the end of the file, expected images"),
    ],
)
def test_bad_columns(tmp_path, rows, expected):
    path = tmp_path / "train.csv"
    path.write_bytes(csv_bytes(rows))
    assert fault(tmp_path).startswith(f"{path}, {expected}")


def test_a_file_that_outgrows_the_memory(tmp_path, monkeypatch):
    (tmp_path / "train.csv").write_bytes(csv_bytes(table(images(64, (4, 4)), np.arange(64) % 5)))
    monkeypatch.setattr("minicnn.data.sources.free_memory", lambda: 900)
    monkeypatch.setattr("minicnn.data.csv_files._CHECKED", 9)
    assert "train.csv: too large for memory: got 1,024 bytes, expected no more" in fault(tmp_path)
