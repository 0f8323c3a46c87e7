"""Reads PNG and JPEG files of one size into an array, with Pillow, which is optional.

No file is trusted. A file is read no further than a bound; its image is decoded only if the header
promises the size of the others. A fault raises DataError, which names the file.
"""

import io
import os
import warnings
from math import prod

import numpy as np

from ..files import DataError
from .sources import check_memory, check_size, size_text

MAX_BYTES = 1 << 24  # of a file: more than the largest image takes without compression
ENDINGS = ".png", ".jpg", ".jpeg"
FORMATS = "PNG", "JPEG"
OTHER_ENDINGS = ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".heic", ".avif", ".jp2"

_COLOUR = 3  # channels
_GREY_MODES = "1", "L", "LA"
_COLOUR_MODES = "RGB", "RGBA", "P", "PA"


def check_pillow(where):
    """Raise DataError with the command that installs Pillow, if it is missing."""
    try:
        import PIL.Image  # noqa: F401, PLC0415
    except ImportError:
        raise DataError(
            f'{where}: images in files need Pillow: pip install "minicnn[images]"'
        ) from None


def read_images(paths, shape=None):
    """The images in files as uint8: (N, H, W) if all are grey, else (N, H, W, 3).

    paths: N of them, at least one. shape: (H, W) that the images must have; without it, that of
    the first. Grey images among coloured ones get three equal channels. Images with 16 bits are
    reduced to 8 bits. A camera's note that an image is to be turned (EXIF) is ignored. Raises
    DataError, also for images with transparent pixels, since nothing says what is behind them.
    """
    images = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about metadata
        for i, path in enumerate(paths):
            pixels = _decode(path, shape or (images is not None and images.shape[1:3]))
            if images is None:
                images = _room(path, len(paths), pixels.shape)
            elif pixels.ndim == images.ndim:  # the first in colour
                grey, images = images, _room(path, len(paths), pixels.shape)
                images[:i] = grey[:i, ..., None]
            images[i] = pixels if pixels.ndim == images.ndim - 1 else pixels[..., None]
    return images


def in_colour(images):
    """Images with three channels: those of (N, H, W) are made equal."""
    return images if images.ndim == 4 else np.repeat(images[..., None], _COLOUR, axis=-1)


def _room(path, count, shape):
    """An empty array for `count` images. Raises DataError if they do not fit the memory."""
    check_memory(f"{path}, the first of {count:,} images {size_text(shape)}", count * prod(shape))
    return np.empty((count, *shape), np.uint8)


def _decode(path, expected):
    """The pixels of a file, uint8 (H, W) or (H, W, 3). expected: (H, W), or False for any."""
    import PIL.Image  # noqa: PLC0415

    content = content_of(path)
    try:
        image = PIL.Image.open(io.BytesIO(content), formats=FORMATS)
        shape = image.height, image.width
    except Exception as error:  # Pillow's errors for broken files are of many kinds
        raise broken(path, error) from None
    check_size(path, 1, shape)
    if expected and shape != expected:
        got, wanted = size_text(shape), size_text(expected)
        raise DataError(f"{path}: image size: got {got}, expected {wanted} as of the first image")
    try:
        image.load()
        opaque = _is_opaque(image)
        pixels = pixels_of(image) if opaque else None
    except Exception as error:
        raise broken(path, error) from None
    if not opaque:
        raise DataError(
            f"{path}: got transparent pixels, expected an opaque image: choose a background for it"
        )
    if pixels is None:
        raise DataError(f"{path}: colours: got {image.mode}, expected grey or RGB")
    return pixels


def content_of(path, most=MAX_BYTES):
    """The bytes of a file, at most `most` of them. Raises DataError."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size <= most:
                return file.read(size)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    raise DataError(f"{path}: got {size:,} bytes, expected at most {most:,}")


def broken(path, error):
    """The DataError for an error of Pillow."""
    if type(error).__name__ == "UnidentifiedImageError":
        return DataError(f"{path}: got another kind of file, expected a PNG or JPEG image")
    text = str(error).rstrip(".") or type(error).__name__
    return DataError(f"{path}: cannot be decoded: {text}, expected a whole PNG or JPEG image")


def _is_opaque(image):
    """Whether no pixel of a decoded image is transparent."""
    if image.mode not in ("LA", "PA", "RGBA") and "transparency" not in image.info:
        return True
    if image.mode.startswith("I"):  # 16 bits: one value is transparent
        return not (np.asarray(image) == image.info["transparency"]).any()
    return np.asarray(image.convert("RGBA"))[..., 3].min() == 255


def pixels_of(image):
    """The pixels of a decoded image, uint8 (H, W) or (H, W, 3); None for modes of other colours."""
    if image.mode.startswith("I"):
        return np.uint8((np.asarray(image).astype(np.uint32) * 255 + 32767) // 65535)
    if image.mode in _GREY_MODES or (image.mode in ("P", "PA") and _is_grey(image.getpalette())):
        return np.asarray(image.convert("L"))
    return np.asarray(image.convert("RGB")) if image.mode in _COLOUR_MODES else None


def _is_grey(palette):
    red, green, blue = palette[::3], palette[1::3], palette[2::3]
    return red == green == blue
