"""What is trained on and tested: images with labels, and where they come from."""

from dataclasses import dataclass

import numpy as np

from ..data.labels import DIGITS
from ..data.load import fingerprint
from ..data.sources import size_text
from ..files import DataError
from ..recipe import image_shape


@dataclass(frozen=True)
class Data:
    """A data set: images uint8 (N, H, W) or (N, H, W, C), and labels (N,) that count its classes.

    The test set, or only its labels, may be None. `fingerprint` identifies the training set.
    classes, test_ids and description: as in data/load.py's DataSet. validation_images: images for
    all nets; without them a recipe's validation_fraction counts.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray | None = None
    test_labels: np.ndarray | None = None
    fingerprint: str = ""
    classes: tuple = DIGITS
    test_ids: tuple | None = None
    description: str = ""
    validation_images: np.ndarray | None = None
    validation_labels: np.ndarray | None = None

    @classmethod
    def of(cls, source, limit=None, test_limit=None):
        """The first `limit` training images and `test_limit` test images of a DataSet.

        Raises DataError if the test images have another shape than the training images.
        """
        x, y, x_test, y_test = source.x_train, source.y_train, source.x_test, source.y_test
        if x_test is not None and image_shape(x) != image_shape(x_test):
            found, expected = (size_text(images.shape[1:]) for images in (x_test, x))
            raise DataError(f"test images: got {found}, expected {expected} as for training")
        x, y = x[:limit], y[:limit]
        x_test, y_test = (a if a is None else a[:test_limit] for a in (x_test, y_test))
        ids = source.test_ids
        if ids is not None:
            ids = *ids[:2], ids[2][:test_limit]
        about = source.classes, ids, source.description
        return cls(x, y, x_test, y_test, fingerprint(x, y), *about)

    @property
    def input_shape(self):
        """(H, W, C) of an image."""
        return image_shape(self.train_images)
