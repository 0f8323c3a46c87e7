"""Photos in files: any size and mode, upright, on a background; damaged ones are refused."""

import numpy as np
import PIL.Image
import pytest
from image_trees import noise, save

from minicnn.data import photos
from minicnn.data.photos import photo_files, read_photo
from minicnn.files import DataError

GREY, COLOUR = noise(20, 30), noise(20, 30, 3)


def refusal(path):
    with pytest.raises(DataError) as caught:
        read_photo(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and message.isprintable()
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("pixels", [GREY, COLOUR], ids=["grey", "colour"])
def test_pixels_are_those_of_the_file(tmp_path, pixels):
    save(tmp_path / "a.png", pixels)
    photo = read_photo(tmp_path / "a.png")
    assert photo.reduced == 1 and (photo.pixels == pixels).all()


@pytest.mark.parametrize("ending", ["png", "jpg"])
@pytest.mark.parametrize("side", [40, 8_400])
def test_a_camera_says_which_side_is_up(tmp_path, ending, side):
    lying = np.full((20, side), 255, np.uint8)
    lying[:, : side // 2] = 0  # the left half is dark
    notes = PIL.Image.Exif()
    notes[0x0112] = 6  # turn it to the right: left becomes up
    save(tmp_path / f"a.{ending}", lying, exif=notes)
    photo = read_photo(tmp_path / f"a.{ending}")
    assert photo.reduced == (3 if side > 4_000 else 1)
    H, W = photo.pixels.shape
    assert (H, W) == (side // photo.reduced, -(-20 // photo.reduced))
    assert photo.pixels[: H // 2 - 8].max() < 20 and photo.pixels[H // 2 + 8 :].min() > 235


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"])
@pytest.mark.parametrize("large", [False, True])
def test_every_mode_is_read(tmp_path, mode, large):
    grey = np.full((20, 4_100 if large else 60), 255, np.uint8)
    grey[5:15, 10:50] = 0
    image = PIL.Image.fromarray(grey)
    if mode == "I;16":
        image = PIL.Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    save(path, image)
    pixels = read_photo(path).pixels
    assert pixels.dtype == np.uint8 and pixels.ndim in (2, 3)
    assert pixels.min() < 20 and pixels.max() > 235 and pixels.mean() > 100


@pytest.mark.parametrize(("ink", "behind"), [(0, 255), (90, 255), (255, 0)])
def test_what_is_behind_transparent_pixels(tmp_path, ink, behind):
    drawing = np.zeros((20, 30, 4), np.uint8)
    drawing[5:15, 10:20] = ink, ink, ink, 255
    save(tmp_path / "a.png", drawing)
    pixels = read_photo(tmp_path / "a.png").pixels
    assert (pixels[5:15, 10:20] == ink).all() and (pixels[:, :10] == behind).all()


def test_a_large_photo_is_reduced(tmp_path):
    save(tmp_path / "a.png", np.repeat(noise(7, 1_025), 8, axis=1))
    photo = read_photo(tmp_path / "a.png")
    assert photo.reduced == 3 and photo.pixels.shape == (3, 2_734)


def test_damaged_files_are_refused(tmp_path):
    save(tmp_path / "a.png", noise(50, 50))
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    assert "cannot be decoded: " in refusal(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8\xff" + bytes(100))
    assert "expected a PNG or JPEG" in refusal(tmp_path / "b.jpg")
    (tmp_path / "c.png").write_bytes(b"")
    assert "expected a PNG or JPEG" in refusal(tmp_path / "c.png")
    PIL.Image.fromarray(GREY).save(tmp_path / "d.png", "GIF")
    assert "expected a PNG or JPEG" in refusal(tmp_path / "d.png")
    assert "cannot be read: No such file" in refusal(tmp_path / "missing.png")


def test_too_large_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "MOST_PIXELS", 9_999)
    save(tmp_path / "a.png", noise(100, 100))
    assert refusal(tmp_path / "a.png") == "got 10,000 pixels, expected at most 9,999"
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 4_999)  # Pillow's own limit is twice that
    assert refusal(tmp_path / "a.png") == "got too many pixels, expected at most 9,999"
    save(tmp_path / "c.png", noise(100, 100))
    monkeypatch.setattr(photos, "MOST_BYTES", 5_000)
    assert "expected at most 5,000" in refusal(tmp_path / "c.png")


def test_the_files_of_a_folder(tmp_path):
    for name in "10.png", "9.JPG", "2.jpeg", ".hidden.png", "notes.txt", "inner/1.png":
        save(tmp_path / "a" / name, GREY, format="PNG")
    given = [tmp_path / "x.png", tmp_path / "a"]
    expected = ["x.png", "a/2.jpeg", "a/9.JPG", "a/10.png"]
    assert photo_files(given) == [tmp_path / name for name in expected]


def test_folders_without_images_are_refused(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="a: got no images, expected 1 to 1,000 PNG or JPEG files"):
        photo_files([tmp_path / "a"])
    for name in "1.png", "2.png":
        save(tmp_path / "a" / name, GREY)
    monkeypatch.setattr(photos, "MOST_FILES", 1)
    with pytest.raises(DataError, match="a: got 2 images, expected 1 to 1 PNG"):
        photo_files([tmp_path / "a"])
