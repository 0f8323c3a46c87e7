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


def draw_parts(classes, train, test, shape=(28, 28)):
    """x_train, y_train, x_test, y_test of so many images."""
    return *draw(classes, train, shape), *draw(classes, test, shape, first=train)


def data_set(names, train, test, shape=(28, 28)):
    """A DataSet of `train` and `test` images, of classes with these names."""
    return DataSet(*draw_parts(len(names), train, test, shape), tuple(names), "patterns")


def write_csv(folder, names, train, test, columns=("label", "id")):
    """Kaggle's two files in a folder: labels by name, test images with ids in place of labels."""
    x, y, x_test, _ = draw_parts(len(names), train, test)
    rows = [(names[label], *image.ravel()) for image, label in zip(x, y, strict=True)]
    _write(folder / "train.csv", columns[0], rows)
    rows = [(f"test-{i}", *image.ravel()) for i, image in enumerate(x_test)]
    _write(folder / "test.csv", columns[1], rows)


def _write(path, first, rows):
    header = ",".join([first, *(f"pixel{i}" for i in range(len(rows[0]) - 1))])
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows), ""]))


def write_npz(path, classes, train, test, shape):
    """An .npz in the form of Keras; its labels are numbers."""
    names = "x_train", "y_train", "x_test", "y_test"
    np.savez(path, **dict(zip(names, draw_parts(classes, train, test, shape), strict=True)))
