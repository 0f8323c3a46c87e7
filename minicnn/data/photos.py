"""Reads photos and drawings, PNG or JPEG files of any size, with Pillow, which is optional.

handwriting.py finds the digits in them. As in image_files.py, no file is trusted: a fault raises
DataError, which names the file.
"""

import io
import os
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..files import DataError
from . import image_files
from .image_folder import by_numbers
from .sources import check_memory

MOST_BYTES = 1 << 27  # of a file
MOST_PIXELS = 150_000_000  # of an image
MOST_FILES = 1_000  # in a folder
_MOST_SIDE = 4_000  # pixels; larger images are reduced


class Photo(NamedTuple):
    """A photo as it is to be looked at."""

    pixels: np.ndarray  # uint8 (H, W) or (H, W, 3)
    reduced: int  # rows of the file, upright, for one row of `pixels`


def photo_files(given):
    """The paths of the image files in `given`: files, and folders with PNG or JPEG files.

    Those of a folder are in the order of their names, numbers in them by their values; hidden files
    and folders in it are ignored. Raises DataError for a folder without images.
    """
    paths = []
    for path in map(Path, given):
        paths += _in_folder(path) if path.is_dir() else [path]
    return paths


def _in_folder(folder):
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror or error}") from None
    files = [
        folder / name
        for name in sorted(names, key=by_numbers)
        if name.lower().endswith(image_files.ENDINGS) and not name.startswith(".")
    ]
    files = [path for path in files if path.is_file()]
    if not 1 <= len(files) <= MOST_FILES:
        got = f"{len(files):,} images" if files else "no images"
        raise DataError(f"{folder}: got {got}, expected 1 to {MOST_FILES:,} PNG or JPEG files")
    return files


def read_photo(path):
    """The Photo in a file. It is upright, as a camera's note (EXIF) says.

    An image of more than 4,000 rows or columns is reduced by a whole number. Transparent pixels
    become white, or black where the opaque ones are light. Raises DataError.
    """
    import PIL.Image  # noqa: PLC0415
    import PIL.ImageOps  # noqa: PLC0415

    content = image_files.content_of(path, MOST_BYTES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about metadata and many pixels
        try:
            image = PIL.Image.open(io.BytesIO(content), formats=image_files.FORMATS)
        except PIL.Image.DecompressionBombError:
            raise DataError(
                f"{path}: got too many pixels, expected at most {MOST_PIXELS:,}"
            ) from None
        except Exception as error:  # Pillow's errors for broken files are of many kinds
            raise image_files.broken(path, error) from None
        width, height = image.size
        if width * height > MOST_PIXELS:
            raise DataError(
                f"{path}: got {width * height:,} pixels, expected at most {MOST_PIXELS:,}"
            )
        check_memory(path, 4 * width * height)
        try:
            factor = -(-max(width, height) // _MOST_SIDE)
            image = PIL.ImageOps.exif_transpose(_small(image, factor))
            return Photo(_on_background(image), factor)
        except Exception as error:
            raise image_files.broken(path, error) from None


def _small(image, factor):
    """The decoded image, reduced by a whole number; what is known about it is kept."""
    image.load()
    if factor == 1 or image.mode.startswith("I"):  # 16 bits: Pillow does not reduce them
        return image
    if image.mode in ("P", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
    return (image.convert("L") if image.mode == "1" else image).reduce(factor)


def _on_background(image):
    """The pixels of an image, uint8 (H, W) or (H, W, 3), without transparency."""
    if image.mode.startswith("I"):
        return image_files.pixels_of(image)
    if "A" not in image.mode and "transparency" not in image.info:
        return np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))
    rgba = np.asarray(image.convert("RGBA"))
    opacity = rgba[..., 3:].astype(np.float32) / 255
    light = (rgba[..., :3] * opacity).sum() > 127 * 3 * opacity.sum()
    background = 0 if light and opacity.min() < 1 else 255
    return np.rint(rgba[..., :3] * opacity + background * (1 - opacity)).astype(np.uint8)
