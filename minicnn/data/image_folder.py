"""Reads a folder of images in class folders: PNG or JPEG files, one folder for each class.

    train/cat/1.png  train/dog/1.png  test/cat/2.png  ...     or only     cat/1.png  dog/1.png  ...

The folders' names are those of the classes. image_files.py reads the files.
"""

import os
import re
from dataclasses import replace
from itertools import islice, zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..files import DataError, printable
from . import image_files
from .labels import MAX_CLASSES, Labels
from .sources import MAX_IMAGES, Part

_LONGEST_NAME = 100  # characters of a class
_ROLES = {  # what a folder is for, by the letters of its name
    **dict.fromkeys(("train", "training", "trainset", "trainingset"), "train"),
    **dict.fromkeys(("test", "testing", "testset", "testingset"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "validationset"), "validation"),
}


def read_image_folder(folder, need_train=True):
    """Read (training Part, test Part) of a folder of class folders; None if it has no such layout.

    The training set is in a folder `train` (or training, trainingSet, ...), the test set in `test`.
    A folder `val` (or valid, validation) is the test set if there is no other; else it is not used.
    Without a training folder all class folders are for training. The images of a test folder may
    lie in it without class folders; they then have no labels. Each of these folders, and `folder`
    itself, may have its content in a folder of its own.

    Images come from the classes in turn. The ids of test images are their paths in the test folder.
    Hidden files, and files whose names do not end as those of images, are ignored. The test Part is
    None if there are no test images. Without `need_train` the training Part is None, and without a
    training folder `folder` is the test folder. Raises DataError.
    """
    top = _inner(_open(Path(folder), os.path.realpath(folder)))
    roles = _roles(top)
    train, test = roles.get("train"), roles.get("test", roles.get("validation"))
    if not roles and need_train:
        train = top if _has_classes(top) else None
    elif not roles:
        test = top if top.images or _has_classes(top) else None
    if not (train if need_train else test or train):
        return None
    image_files.check_pillow(folder)
    notes = ("from image files",)
    if {"test", "validation"} <= roles.keys():
        notes += (f"{roles['validation'].path.name} is not used",)
    classes = tuple((train or test).folders)
    of_train = _part(train, _class_files(train), classes, notes) if need_train else None
    if test is None:
        return of_train, None
    files = _class_files(test, is_test=True) if test.folders else _files(test)
    of_test = _part(test, files, classes, notes, of_train)
    ids = tuple(printable(Path(path).relative_to(test.path).as_posix()) for path, _ in files)
    of_test = replace(of_test, ids=("file", ids))
    if of_train and of_train.images.ndim != of_test.images.ndim:
        of_train, of_test = (
            replace(part, images=image_files.in_colour(part.images)) for part in (of_train, of_test)
        )
    return of_train, of_test


class _Folder(NamedTuple):
    """The content of a folder; names are in order, with numbers in them by their values."""

    path: Path
    root: str  # the real path of the folder that links must not leave
    folders: list
    images: list
    faults: dict  # {name: message} of entries that look like images or folders and cannot be used

    def child(self, name):
        return _open(self.path / name, self.root)


def _open(path, root):
    """The _Folder of a path. Raises DataError."""
    folders, images, faults = [], [], {}
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                name, ending = entry.name, os.path.splitext(entry.name)[1].lower()
                if name.startswith((".", "__")):  # hidden, or __MACOSX
                    continue
                is_image, is_folder = ending in image_files.ENDINGS, entry.is_dir()
                if (is_image or is_folder) and entry.is_symlink() and not _is_in(entry.path, root):
                    faults[name] = f"{entry.path}: got a link out of {root}, expected none"
                elif is_folder:
                    folders.append(name)
                elif is_image and not entry.is_file():
                    faults[name] = f"{entry.path}: got no file, expected a PNG or JPEG image"
                elif is_image:
                    images.append(name)
                elif ending in image_files.OTHER_ENDINGS:
                    faults[name] = f"{entry.path}: got a file *{ending}, expected PNG or JPEG"
                if len(images) > MAX_IMAGES:
                    raise _too_many(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    return _Folder(
        path, root, sorted(folders, key=by_numbers), sorted(images, key=by_numbers), faults
    )


def _check(folder):
    """Raise the first fault of a folder that is to be read."""
    for name in sorted(folder.faults, key=by_numbers):
        raise DataError(folder.faults[name])


def _is_in(path, root):
    return os.path.realpath(path).startswith(os.path.join(root, ""))


def by_numbers(name):
    """The key that sorts names, with numbers in them by their values."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


# ---- which folder is for what --------------------------------------------------------------------


def _role(name):
    return _ROLES.get(re.sub("[^a-z]", "", name.lower()))


def _inner(folder, role=None):
    """The folder with the content of `folder`, which may be its only folder."""
    if folder.images or len(folder.folders) != 1:
        return folder
    child = folder.child(folder.folders[0])
    named = _role(child.path.name)
    is_inner = (child.folders or named == role) if role else (child.folders and not named)
    return child if is_inner else folder


def _has_classes(folder):
    """Whether there are images in folders in it that are not named by a role."""
    names = (name for name in folder.folders if not _role(name))
    return any(folder.child(name).images for name in islice(names, MAX_CLASSES))


def _roles(top):
    """{"train", "test" or "validation": the _Folder}; empty if these names are those of classes."""
    roles = {}
    for name in sorted([*top.folders, *top.faults], key=by_numbers):
        if role := _role(name):
            if name in top.faults:
                raise DataError(top.faults[name])
            folder = _inner(top.child(name), role)
            if role in roles:
                names = f"{roles[role].path} and {folder.path}"
                raise DataError(f"{top.path}: got {names}, expected one folder for {role}")
            if _has_classes(folder) or (folder.images and role != "train"):
                roles[role] = folder
    return roles if "train" in roles or not _has_classes(top) else {}


# ---- files and labels ----------------------------------------------------------------------------


def _class_files(folder, is_test=False):
    """[(path, number of the class folder)] of the images in class folders, each class in turn.

    Raises DataError for anything else in there; class folders of a test set may be empty, or few.
    """
    _check(folder)
    count, least = len(folder.folders), 1 if is_test else 2
    if not least <= count <= MAX_CLASSES:
        got = f"{count:,} class folder" + "s" * (count != 1)
        raise DataError(f"{folder.path}: got {got}, expected {least} to {MAX_CLASSES:,}")
    if folder.images:
        raise DataError(
            f"{folder.path / folder.images[0]}: got an image beside class folders,"
            " expected it in one of them"
        )
    columns = []
    for number, name in enumerate(folder.folders):
        child = folder.child(name)
        if not name.isprintable() or len(name) > _LONGEST_NAME:
            raise DataError(
                f"{child.path}: expected a class name of up to {_LONGEST_NAME} printable characters"
            )
        if child.folders:
            raise DataError(
                f"{child.path / child.folders[0]}: got a folder in a class folder, expected images"
            )
        if not child.images and not is_test:
            raise DataError(f"{child.path}: got no images, expected PNG or JPEG files")
        columns.append([(path, number) for path, _ in _files(child)])
        if sum(map(len, columns)) > MAX_IMAGES:
            raise _too_many(folder.path)
    return [file for row in zip_longest(*columns) for file in row if file]


def _files(folder):
    """[(path, None)] of the images in a folder."""
    _check(folder)
    return [(os.path.join(folder.path, image), None) for image in folder.images]


def _part(folder, files, classes, notes, train=None):
    """The Part of a folder with these files; its images have the size of those of `train`."""
    shape = train.images.shape[1:3] if train else None
    images, labels = image_files.read_images([path for path, _ in files], shape), None
    if folder.folders:
        places = tuple(str(folder.path / name) for name in folder.folders)
        codes = np.array([number for _, number in files], np.uint16)
        labels = Labels(codes, tuple(folder.folders), places, classes)
    return Part(folder.path, images, labels, notes=notes)


def _too_many(path):
    return DataError(f"{path}: got more than {MAX_IMAGES:,} images, expected at most so many")
