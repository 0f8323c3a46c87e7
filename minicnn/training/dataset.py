"""What is trained on and tested: images with labels, and where they come from.

A task for another machine contains a Source, not the images; the process that runs it loads them.
"""

import os
import socket
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from .. import __version__
from ..data.labels import DIGITS
from ..data.load import fingerprint, load
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
    def of(cls, source, limit=None, test_limit=None, held_out=0):
        """The first `limit` training images and `test_limit` test images of a DataSet.

        held_out: the number of training images, the last ones, that take the place of the test
        images. Raises DataError if the test images have another shape than the training images, or
        if no training image is left.
        """
        if held_out:
            source = _hold_out(source, held_out)
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


def _hold_out(source, count):
    """A copy of a DataSet whose test images are the last `count` of its training images."""
    x, y = source.x_train, source.y_train
    if count >= len(x):
        raise DataError(
            f"argument --hold-out: got {count:,}, expected fewer than the {len(x):,} images to "
            "train on"
        )
    about = {"x_train": x[:-count], "y_train": y[:-count], "x_test": x[-count:]}
    return replace(source, **about, y_test=y[-count:], test_ids=None)


@dataclass(frozen=True)
class Source:
    """A data set: its name for `load`, limits on the number of images, and fingerprints.

    held_out: as for Data.of.
    """

    name: str
    limit: int | None = None
    test_limit: int | None = None
    shape: tuple | None = None  # of an image in a CSV file
    images: int = 0  # number of training images; load() fills in this and the fingerprints
    train: str = ""
    test: str = ""
    held_out: int = 0

    def load(self, progress=False):
        """(Data, a copy of this Source with images and fingerprints). Raises DataError."""
        limits = self.limit, self.test_limit, self.held_out
        data = Data.of(load(self.name, progress, self.shape), *limits)
        tested = data.test_images is not None
        test = fingerprint(data.test_images, data.test_labels) if tested else ""
        images = len(data.train_images)
        return data, replace(self, images=images, train=data.fingerprint, test=test)

    def for_other_processes(self):
        """A copy with an absolute path: other processes have other working folders."""
        if self.name in ("digits", "mnist"):
            return self
        return replace(self, name=str(Path(self.name).absolute()))

    def load_in_worker(self, version):
        """The Data, in another process than the one that loaded it with a `version` of minicnn.

        It is kept for the next call. Raises DataError that names this process if it has another
        version, or if the data cannot be loaded or differ.
        """
        here = f"worker on {socket.gethostname()}, process {os.getpid()}"
        if version != __version__:
            raise DataError(f"{here}: has minicnn {__version__}, expected {version}")
        where = self.name, self.limit, self.test_limit, self.shape, self.held_out
        ours = self.train, self.test
        try:
            data, found = _load(*where)
            if (found.train, found.test) != ours:  # the files may have changed since
                _load.cache_clear()
                data, found = _load(*where)
        except DataError as error:
            raise DataError(f"{here}: {error}") from None
        if (found.train, found.test) != ours:
            raise DataError(
                f"{here}: {self.name}: has other images or labels than the command was started "
                "with, expected the same"
            )
        return data


@lru_cache(maxsize=1)
def _load(name, limit, test_limit, shape, held_out):
    return Source(name, limit, test_limit, shape, held_out=held_out).load()
