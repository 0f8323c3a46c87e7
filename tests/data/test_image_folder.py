"""Folders of PNG and JPEG files: layouts, and the kinds of images that are read."""

import tempfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from digit_files import fuzzing
from hypothesis import given
from hypothesis import strategies as st
from image_trees import SPLIT, fault, noise, save, tree

from minicnn.data import image_files
from minicnn.data.image_files import read_images
from minicnn.data.image_folder import read_image_folder
from minicnn.data.load import load, load_test
from minicnn.files import DataError

# ---- layouts -------------------------------------------------------------------------------------


def test_a_folder_with_training_and_test_images(tmp_path):
    images = tree(tmp_path, "train/cat/2.png", "train/dog/1.jpg", "train/cat/10.png")
    images |= tree(tmp_path, "test/dog/x.png", "test/cat/y.png", "test/cat/z.PNG")
    data = load(tmp_path)
    assert data.classes == ("cat", "dog")
    assert data.description == "3 images 5x4, 2 classes cat, dog, from image files"
    assert data.y_train.tolist() == [0, 1, 0] and data.y_test.tolist() == [0, 1, 0]
    assert {array.dtype for array in (data.x_train, data.y_train, data.y_test)} == {np.dtype("u1")}
    cats = [images["train/cat/2.png"], images["train/cat/10.png"]]
    np.testing.assert_array_equal(data.x_train[[0, 2]], cats)
    assert np.abs(data.x_train[1].astype(int) - images["train/dog/1.jpg"]).mean() < 20  # a JPEG
    tests = [images[f"test/{name}"] for name in ("cat/y.png", "dog/x.png", "cat/z.PNG")]
    np.testing.assert_array_equal(data.x_test, tests)
    assert data.test_ids == ("file", "label", ("cat/y.png", "dog/x.png", "cat/z.PNG"))


def test_only_class_folders_are_a_training_set(tmp_path):
    images = tree(tmp_path, "b/1.png", "a/1.png", shape=(3, 6, 3))
    data = load(tmp_path)
    np.testing.assert_array_equal(data.x_train, [images["a/1.png"], images["b/1.png"]])
    assert data.x_train.shape == (2, 3, 6, 3) and data.y_train.tolist() == [0, 1]
    assert data.description == "2 images 3x6x3, 2 classes a, b, from image files"
    assert (data.x_test, data.y_test, data.test_ids) == (None, None, None)


def test_classes_with_numbers_are_in_their_order(tmp_path):
    names = ["0", "1", "2", "9", "10", "a2", "a10", "b"]
    tree(tmp_path, *(f"training/{name}/1.png" for name in reversed(names)))
    assert load(tmp_path).classes == tuple(names)


def test_more_than_256_classes_have_labels_of_16_bits(tmp_path):
    tree(tmp_path, *(f"{name}/1.png" for name in range(257)), shape=(1, 1))
    data = load(tmp_path)
    assert data.y_train.dtype == np.uint16 and data.y_train.tolist() == list(range(257))


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(("training/0/1.png", "training/1/1.png", "testing/1/1.png"), id="mnist_png"),
        pytest.param(("m/training/0/1.png", "m/training/1/1.png", "m/testing/1/1.png"), id="inner"),
        pytest.param(
            (
                *("trainingSet/trainingSet/0/img_1.jpg", "trainingSet/trainingSet/1/img_2.jpg"),
                *("testSet/testSet/1/img_1.jpg", "trainingSample/trainingSample/0/img_1.jpg"),
            ),
            id="twice",
        ),
        pytest.param(("Train/0/1.png", "Train/1/1.png", "val/1/1.png"), id="val"),
        pytest.param(("train/0/1.png", "train/1/1.png", "Validation/1/1.png"), id="validation"),
    ],
)
def test_folders_that_people_have(tmp_path, names):
    tree(tmp_path, *names)
    data = load(tmp_path)
    assert data.classes == ("0", "1") and data.y_train.tolist() == [0, 1]
    assert data.y_test.tolist() == [1]


def test_a_validation_folder_beside_a_test_folder_is_not_used_and_that_is_said(tmp_path):
    tree(tmp_path, *SPLIT, "valid/a/1.png", "valid/c/1.png")
    data = load(tmp_path)
    assert data.classes == ("a", "b") and len(data.x_test) == 2
    assert data.description.endswith("from image files, valid is not used")


def test_test_images_without_class_folders_have_no_labels_and_the_order_of_their_numbers(tmp_path):
    images = tree(tmp_path, *SPLIT[:2], *(f"test/img_{i}.png" for i in (10, 9, 1)))
    data = load(tmp_path)
    assert data.y_test is None
    names = "img_1.png", "img_9.png", "img_10.png"
    assert data.test_ids == ("file", "label", names)
    np.testing.assert_array_equal(data.x_test, [images[f"test/{name}"] for name in names])


def test_classes_may_be_named_like_parts(tmp_path):
    tree(tmp_path, "car/1.png", "train/1.png", "test/1.png")
    data = load(tmp_path)
    assert data.classes == ("car", "test", "train") and data.x_test is None


def test_images_come_from_the_classes_in_turn(tmp_path):
    tree(tmp_path, *(f"a/{i}.png" for i in range(4)), "b/1.png", "c/1.png", "c/2.png")
    assert load(tmp_path).y_train.tolist() == [0, 1, 2, 0, 2, 0, 0]


@pytest.mark.parametrize(
    "names",
    [
        (),
        ("1.png", "2.png"),
        ("train/1.png", "test/1.png"),
        ("train/1.png",),
        ("test/a/1.png", "test/b/1.png"),
        ("one/two/three/1.png",),
    ],
)
def test_other_folders_are_no_layout(tmp_path, names):
    tree(tmp_path, *names)
    (tmp_path / "train.csv").write_text("label\n")
    (tmp_path / "empty").mkdir()
    assert read_image_folder(tmp_path) is None


def test_hidden_and_other_files_are_ignored(tmp_path):
    tree(tmp_path, *SPLIT)
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "notes.txt", "._1.png"):
        for folder in (".", "train", "train/a", "test", "test/b"):
            (tmp_path / folder / name).write_bytes(b"\0")
    for name in ("__MACOSX", ".ipynb_checkpoints"):
        tree(tmp_path, f"{name}/1.png", f"train/{name}/1.png", f"train/a/{name}/1.png")
    data = load(tmp_path)
    assert data.classes == ("a", "b") and len(data.x_train) == len(data.x_test) == 2


def test_names_with_spaces_and_letters_of_any_language(tmp_path):
    tree(tmp_path, "über gut/ein Bild.png", "木/二.png")
    assert load(tmp_path).classes == ("über gut", "木")


ROLES = "train", "train", "test", "val", "trainingSet/trainingSet", "data/train", "data/test", "."
CLASSES = "a", "a", "b", "b", "1", "10", ".hidden", "__MACOSX", "train", "a/b", "."
FILES = "1.png", "2.PNG", "3.jpg", "10.png", ".1.png", "notes.txt", "test.png", "bad.png", "old.gif"


@fuzzing(200)
@given(
    roles=st.lists(st.sampled_from(ROLES), min_size=1, max_size=3),
    paths=st.lists(
        st.tuples(
            st.integers(0, 2),
            st.integers(0, 40).map(lambda n: CLASSES[n if n < 11 else n % 4]),
            st.integers(0, 50).map(lambda n: FILES[n if n < 9 else n % 5]),
        ),
        max_size=12,
    ),
    need_train=st.booleans(),
)
def test_any_tree_is_read_or_refused(tmp_path, roles, paths, need_train):
    """What is read are files of the tree, each once, with the names of their folders."""
    with tempfile.TemporaryDirectory(dir=tmp_path) as name:
        root = Path(name)
        for value, (role, label, file) in enumerate([(0, "a", "0.png"), (0, "b", "0.png"), *paths]):
            path = root / roles[role % len(roles)] / label / file
            save(path, np.full((2, 2), value, np.uint8), format="PNG")
            if file == "bad.png":
                path.write_bytes(b"")
        try:
            found = read_image_folder(root, need_train)
        except DataError as error:
            assert str(error).startswith(name) and str(error).isprintable()
            return
        train, test = found or (None, None)
        assert found is None or bool(train) == need_train
        for part in filter(None, (train, test)):
            files = [
                path
                for path in Path(part.file).rglob("*")
                if path.suffix.lower() in image_files.ENDINGS
                and not any(n.startswith((".", "__")) for n in path.relative_to(root).parts)
            ]
            contents = sorted(PIL.Image.open(path).getpixel((0, 0)) for path in files)
            assert sorted(part.images[:, 0, 0].tolist()) == contents and contents
            if part.labels:
                names = [part.labels.names[code] for code in part.labels.codes]
                assert sorted(names) == sorted(path.parent.name for path in files)
                assert (
                    set(names) <= set(part.labels.known or names) or not need_train or part is test
                )
            if part.ids:
                assert all((Path(part.file) / path).is_file() for path in part.ids[1])


# ---- only the test images ------------------------------------------------------------------------


def test_the_test_images_alone_have_the_training_folders_classes(tmp_path):
    tree(tmp_path, "train/a/1.png", "train/b/1.png", "train/c/1.png", "test/c/1.png")
    (tmp_path / "train/a/1.png").write_bytes(b"is not read")
    data = load_test(tmp_path)
    assert data.x_train is None and data.y_train is None
    assert data.classes == ("a", "b", "c") and data.y_test.tolist() == [2]
    assert data.description == "1 images 5x4, 3 classes a, b, c, from image files"


@pytest.mark.parametrize("folder", ["test", "."])
def test_test_images_need_no_training_folder(tmp_path, folder):
    tree(tmp_path, f"{folder}/a/1.png", f"{folder}/b/1.png")
    data = load_test(tmp_path)
    assert data.classes == ("a", "b") and data.y_test.tolist() == [0, 1]


@pytest.mark.parametrize("folder", ["test", "."])
def test_test_images_need_no_classes(tmp_path, folder):
    tree(tmp_path, f"{folder}/1.png", f"{folder}/2.png")
    data = load_test(tmp_path)
    assert data.y_test is None and data.x_test.shape == (2, 5, 4)
    assert data.description == "2 images 5x4, from image files"
    assert data.test_ids[2] == ("1.png", "2.png")


def test_a_training_folder_alone_has_no_test_images(tmp_path):
    tree(tmp_path, *SPLIT[:2])
    with pytest.raises(DataError, match="found no test images"):
        load_test(tmp_path)


# ---- kinds of images -----------------------------------------------------------------------------

GREY = noise(6, 7)
COLOUR = noise(6, 7, 3, seed=1)
OPAQUE = np.full((6, 7), 255, np.uint8)


def palette_image(palette):
    image = PIL.Image.fromarray(GREY % 4, mode="P")
    image.putpalette(palette)
    return image


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        pytest.param(GREY, GREY, id="L"),
        pytest.param(COLOUR, COLOUR, id="RGB"),
        pytest.param(np.dstack([COLOUR, OPAQUE]), COLOUR, id="RGBA"),
        pytest.param(np.dstack([GREY, OPAQUE]), GREY, id="LA"),
        pytest.param(GREY > 99, np.uint8(GREY > 99) * 255, id="1"),
        pytest.param(np.uint16(GREY) * 257, GREY, id="I;16"),
        pytest.param(np.uint16(GREY) * 257 - np.uint16(100) * (GREY > 0), GREY, id="I;16, rounded"),
        pytest.param(
            palette_image([1, 2, 3, 9, 9, 9, 0, 255, 7, 4, 4, 4]),
            np.uint8([[1, 2, 3], [9, 9, 9], [0, 255, 7], [4, 4, 4]])[GREY % 4],
            id="P",
        ),
        pytest.param(
            palette_image([9, 9, 9, 200, 200, 200, 0, 0, 0, 255, 255, 255]),
            np.uint8([9, 200, 0, 255])[GREY % 4],
            id="P in grey",
        ),
    ],
)
def test_kinds_of_png(tmp_path, image, expected):
    save(tmp_path / "1.png", image)
    found = read_images([tmp_path / "1.png"])
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected[None])


@pytest.mark.parametrize("pixels", [GREY, COLOUR])
def test_jpeg_files_under_any_name(tmp_path, pixels):
    for name, kind in (("1.jpg", "JPEG"), ("2.jpeg", "JPEG"), ("3.png", "JPEG"), ("4.jpg", "PNG")):
        save(tmp_path / name, pixels, format=kind, **({"quality": 100} if kind == "JPEG" else {}))
    found = read_images(sorted(tmp_path.iterdir()))
    assert found.shape == (4, *pixels.shape)
    np.testing.assert_array_equal(found[3], pixels)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    if pixels is GREY:
        assert np.abs(found[0].astype(int) - pixels).max() < 5


@pytest.mark.parametrize("order", [(GREY, GREY, COLOUR, GREY), (COLOUR, GREY)])
def test_grey_images_among_coloured_ones_get_equal_channels(tmp_path, order):
    paths = [tmp_path / f"{i}.png" for i in range(len(order))]
    for path, pixels in zip(paths, order, strict=True):
        save(path, pixels)
    found = read_images(paths)
    assert found.shape == (len(order), 6, 7, 3)
    for image, pixels in zip(found, order, strict=True):
        np.testing.assert_array_equal(
            image, pixels if pixels.ndim == 3 else [[[v] * 3 for v in r] for r in pixels]
        )


def test_training_and_test_images_have_the_same_channels(tmp_path):
    for grey, colour in (("train", "test"), ("test", "train")):
        for label in "ab":
            save(tmp_path / grey / label / "1.png", GREY)
            save(tmp_path / colour / label / "1.png", COLOUR)
        data = load(tmp_path)
        assert data.x_train.shape == data.x_test.shape == (2, 6, 7, 3)
        assert data.description.startswith("2 images 6x7x3")
        for path in tmp_path.rglob("*.png"):
            path.unlink()


TRANSPARENT = OPAQUE.copy()
TRANSPARENT[2, 3] = 254


@pytest.mark.parametrize(
    ("image", "options", "expected"),
    [
        (np.dstack([COLOUR, TRANSPARENT]), {}, "got transparent pixels"),
        (np.dstack([GREY, TRANSPARENT]), {}, "got transparent pixels"),
        (palette_image([0, 0, 0, 9, 9, 9]), {"transparency": 1}, "got transparent pixels"),
        (GREY, {"transparency": int(GREY[1, 1])}, "got transparent pixels"),
        (np.uint16(GREY), {"transparency": int(GREY[1, 1])}, "got transparent pixels"),
        (PIL.Image.new("CMYK", (7, 6)), {"format": "JPEG"}, "colours: got CMYK, expected grey or"),
    ],
)
def test_other_kinds_are_refused(tmp_path, image, options, expected):
    tree(tmp_path, "a/1.png", "b/1.png", shape=(6, 7))
    save(tmp_path / "b/1.png", image, **options)
    assert fault(tmp_path).startswith(f"b/1.png: {expected}")
