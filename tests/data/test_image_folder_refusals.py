"""Folders of PNG and JPEG files: what is refused, and how much memory that takes."""

import io
import os
import sys
import zlib
from functools import partial

import numpy as np
import PIL.Image
import pytest
from image_trees import SPLIT, fault, noise, peak_of, save, tree

from minicnn.data import image_files, image_folder, sources
from minicnn.data.image_files import read_images
from minicnn.data.image_folder import read_image_folder
from minicnn.data.load import load
from minicnn.files import DataError


def test_another_size_is_refused_before_decoding(tmp_path, monkeypatch):
    tree(tmp_path, *SPLIT)
    save(tmp_path / "train/b/1.png", noise(4, 5))
    expected = "train/b/1.png: image size: got 4x5, expected 5x4 as of the first image"
    assert fault(tmp_path) == expected
    save(tmp_path / "train/b/1.png", noise(5, 4))
    save(tmp_path / "test/a/1.png", noise(5, 5))
    assert (
        fault(tmp_path) == "test/a/1.png: image size: got 5x5, expected 5x4 as of the first image"
    )


def png(width, height, data=b"", depth=8, colour=0):
    """The bytes of a PNG file with any header, and any compressed data."""

    def chunk(name, content):
        size, check = len(content).to_bytes(4, "big"), zlib.crc32(name + content).to_bytes(4, "big")
        return size + name + content + check

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    header = chunk(b"IHDR", size + bytes([depth, colour, 0, 0, 0]))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")


BOMBS = {
    "many pixels": (png(60_000, 60_000, zlib.compress(bytes(1 << 20))), None),
    "beyond Pillow's warning": (png(10_000, 10_000, zlib.compress(bytes(1 << 20))), None),
    "another size": (png(1024, 1024, zlib.compress(bytes(1 << 20))), "got 1024x1024, expected 5x4"),
    "a long stream": (png(4, 5, zlib.compress(bytes(1 << 26))), ""),
    "a long text": (
        png(4, 5, zlib.compress(bytes(25)))[:-12]
        + b"".join(
            (len(t) + 6).to_bytes(4, "big")
            + b"zTXta\0\0"
            + t
            + zlib.crc32(b"zTXta\0\0" + t).to_bytes(4, "big")
            for t in [zlib.compress(bytes(1 << 26))]
        ),
        "cannot be decoded",
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_decompression_bombs_take_little_memory(tmp_path, name):
    content, expected = BOMBS[name]
    tree(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "b/1.png").write_bytes(content)
    if expected == "":  # what follows the image is not decompressed
        assert not load(tmp_path).x_train[1].any()
        call = partial(load, tmp_path)
    else:
        message = fault(tmp_path)
        assert message.startswith("b/1.png: ") and (expected or "expected") in message
        call = partial(fault, tmp_path)
    assert peak_of(call) < 10 << 20


def test_the_first_image_has_a_largest_size(tmp_path):
    path = tmp_path / "1.png"
    save(path, np.zeros((1024, 1), np.uint8))
    assert read_images([path]).shape == (1, 1024, 1)
    save(path, np.zeros((1, 1025), np.uint8))
    with pytest.raises(DataError, match=r"1 x 1025, expected sides of 1 to 1024$"):
        read_images([path])


def test_images_that_do_not_fit_the_memory_are_refused(tmp_path, monkeypatch):
    tree(tmp_path, "a/1.png", "b/1.png")
    monkeypatch.setattr(sources, "free_memory", lambda: 39)
    message = fault(tmp_path)
    assert (
        "the first of 2 images 5x4: too large for memory: got 40 bytes, expected no more" in message
    )
    monkeypatch.setattr(sources, "free_memory", lambda: 40)
    assert len(load(tmp_path).x_train) == 2


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "got another kind of file, expected a PNG or JPEG image"),
        (b"text", "got another kind of file, expected a PNG or JPEG image"),
        (b"GIF89a" + bytes(99), "got another kind of file, expected a PNG or JPEG image"),
        (png(4, 5), "cannot be decoded"),
        (png(4, 5, b"no zlib stream"), "cannot be decoded"),
        (png(0, 0), ""),
        (bytes(image_files.MAX_BYTES + 1), "got 16,777,217 bytes, expected at most 16,777,216"),
    ],
)
def test_bad_files_are_named(tmp_path, content, expected):
    tree(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "b/1.png").write_bytes(content)
    assert fault(tmp_path).startswith(f"b/1.png: {expected}")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_truncated_file_is_refused_at_any_length(tmp_path, kind):
    buffer = io.BytesIO()
    PIL.Image.fromarray(noise(5, 4)).save(buffer, kind)
    content, path = buffer.getvalue(), tmp_path / "1.png"
    for length in range(len(content) - 24):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"expected a (whole )?PNG or JPEG image$"):
            read_images([path])


def test_a_class_that_the_training_set_has_not(tmp_path):
    tree(tmp_path, *SPLIT, "test/c/1.png")
    expected = "test/c: got 'c', expected one of 2 classes a, b"
    assert fault(tmp_path) == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("train/a/1.png",), "train: got 1 class folder, expected 2 to 1,000"),
        (("a/1.png",), ": got 1 class folder, expected 2 to 1,000"),
        (("a/1.png", "b/1.png", "c/d/1.png"), "c/d: got a folder in a class folder"),
        (("a/1.png", "b/1.png", "b/c/1.png"), "b/c: got a folder in a class folder"),
        (("a/1.png", "b/1.png", "1.png"), "1.png: got an image beside class folders"),
        ((*SPLIT, "train/1.png"), "train/1.png: got an image beside class folders"),
        ((*SPLIT, "test/1.png"), "test/1.png: got an image beside class folders"),
        ((*SPLIT, "train/b/1.bmp"), "train/b/1.bmp: got a file *.bmp, expected PNG or JPEG"),
        ((*SPLIT, "testing/a/1.png"), "expected one folder for test"),
        (("a/1.png", f"{'b' * 101}/1.png"), "expected a class name of up to 100 printable"),
        (("a/1.png", "b\nc/1.png"), "b\\nc: expected a class name"),
    ],
)
def test_bad_layouts_are_named(tmp_path, names, expected):
    tree(tmp_path, *names)
    assert expected in ": " + fault(tmp_path)


def test_a_class_without_test_images_is_fine_and_one_without_training_images_is_not(tmp_path):
    tree(tmp_path, *SPLIT)
    (tmp_path / "test/b/1.png").unlink()
    assert load(tmp_path).y_test.tolist() == [0]
    (tmp_path / "train/b/1.png").unlink()
    assert fault(tmp_path) == "train/b: got no images, expected PNG or JPEG files"


def test_too_many_classes_or_images_are_refused(tmp_path, monkeypatch):
    tree(tmp_path, "a/1.png", "a/2.png", "b/1.png", "c/1.png")
    monkeypatch.setattr(image_folder, "MAX_IMAGES", 4)
    assert len(load(tmp_path).x_train) == 4
    monkeypatch.setattr(image_folder, "MAX_IMAGES", 3)
    assert fault(tmp_path).endswith("got more than 3 images, expected at most so many")
    monkeypatch.setattr(image_folder, "MAX_IMAGES", 1)
    assert fault(tmp_path).startswith("a: got more than 1 images")
    monkeypatch.setattr(image_folder, "MAX_CLASSES", 2)
    tree(tmp_path, "train/a/1.png", "train/b/1.png", "train/c/1.png")
    assert fault(tmp_path) == "train: got 3 class folders, expected 2 to 2"


def link(path, target):
    try:
        path.symlink_to(target)
    except OSError as error:
        pytest.skip(f"no symbolic links here: {error}")


@pytest.mark.parametrize("name", ["train", "train/c", "train/b/2.png", "test", "test/b/2.png"])
def test_links_out_of_the_folder_are_refused(tmp_path, name):
    folder, outside = tmp_path / "data", tmp_path / "outside"
    tree(folder, *(n for n in SPLIT if not n.startswith(f"{name}/")))
    tree(outside, "a/1.png", "b/1.png")
    link(folder / name, outside / "a/1.png" if name.endswith("png") else outside)
    assert fault(folder) == f"{name}: got a link out of {folder}, expected none"


def test_broken_links_are_refused(tmp_path):
    tree(tmp_path, *SPLIT)
    link(tmp_path / "train/a/2.png", tmp_path / "train/a/3.png")
    assert fault(tmp_path) == "train/a/2.png: got no file, expected a PNG or JPEG image"


def test_links_within_the_folder_are_followed(tmp_path):
    folder = tmp_path / "data"
    tree(folder, *SPLIT)
    link(folder / "train/b/2.png", folder / "train/a/1.png")
    link(folder / "train/c", "a")
    link(tmp_path / "link", folder)
    assert load(tmp_path / "link").y_train.tolist() == [0, 1, 2, 1]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    tree(tmp_path, *SPLIT)
    os.mkfifo(tmp_path / "train/a/2.png")
    assert fault(tmp_path) == "train/a/2.png: got no file, expected a PNG or JPEG image"


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    tree(tmp_path, *SPLIT)
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(DataError, match=r"train/b: cannot be read: Permission denied$"):
        read_image_folder(tmp_path)


def test_without_pillow_one_line_says_how_to_install_it(tmp_path, monkeypatch):
    assert read_image_folder(tmp_path) is None
    tree(tmp_path, *SPLIT)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    expected = 'images in files need Pillow: pip install "minicnn[images]"'
    assert fault(tmp_path) == f": {expected}"


def test_images_take_their_own_memory_only(tmp_path):
    for i in range(200):
        save(tmp_path / str(i % 2) / f"{i}.png", noise(64, 64, seed=i))
    size = load(tmp_path).x_train.nbytes
    assert size < peak_of(partial(load, tmp_path)) < 1.3 * size
