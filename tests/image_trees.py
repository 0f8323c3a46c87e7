"""Folders of images for tests of the readers: write them, check the refusals."""

import tracemalloc

import numpy as np
import PIL.Image
import pytest

from minicnn.data.load import load
from minicnn.files import DataError

SPLIT = "train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png"


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def save(path, pixels, **options):
    """Write an image, and the folders above it; returns its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, PIL.Image.Image) else PIL.Image.fromarray(pixels)
    image.save(path, **options)
    return np.asarray(pixels)


def tree(folder, *names, shape=(5, 4)):
    """Write images of noise with these names, such as "train/a/1.png"; returns {name: pixels}."""
    return {name: save(folder / name, noise(*shape, seed=seed)) for seed, name in enumerate(names)}


def fault(folder):
    """The message of the DataError, one printable line that names the folder."""
    with pytest.raises(DataError) as caught:
        load(folder)
    message = str(caught.value)
    assert message.startswith(str(folder)) and message.isprintable()
    return message.removeprefix(str(folder)).lstrip("/")


def peak_of(call):
    """The most bytes that a call holds: the least of three calls.

    In one of them Python's table of interned strings may grow by megabytes.
    """
    peaks = []
    for _ in range(3):
        tracemalloc.start()
        try:
            call()
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    return min(peaks)
