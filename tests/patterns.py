"""Data sets of any number of classes, image size and number of channels, drawn by the tests.

Each class is a random pattern of 7 x 7 blocks. Its images are shifted, of different contrast, and
noisy.
"""

import string

import numpy as np

from minicnn.data.load import DataSet

LETTERS = tuple(string.ascii_uppercase)


def draw(classes, count, shape=(28, 28), first=0):
    """Images (count, *shape) uint8 and labels (count,) of so many classes, in turn.

    first: the number of the first image; images of other numbers are other images.
    """
    H, W = shape[:2]
    inks = np.random.default_rng(1).random((classes, 7, 7, *shape[2:])) > 0.5
    stretched = inks[:, np.arange(H) * 7 // H][:, :, np.arange(W) * 7 // W]
    images = np.empty((count, *shape), np.uint8)
    labels = np.arange(first, first + count) % classes
    for i, label in enumerate(labels):
        dice = np.random.default_rng([7, first + i])
        image = np.roll(stretched[label], dice.integers(-2, 3, 2), (0, 1)) * dice.uniform(60, 200)
        images[i] = (image + dice.uniform(0, 55, shape)).astype(np.uint8)
    return images, labels.astype(np.uint8 if classes <= 256 else np.uint16)


def data_set(names, train, test, shape=(28, 28), **about):
    """A DataSet of `train` and `test` images, of classes with these names."""
    count = len(names)
    drawn = *draw(count, train, shape), *draw(count, test, shape, first=train)
    return DataSet(*drawn, tuple(names), f"{train + test:,} patterns", **about)
