"""Reads a folder of images in class folders: PNG or JPEG files, one folder for each class.

    train/cat/1.png  train/dog/1.png  test/cat/2.png  ...     or only     cat/1.png  dog/1.png  ...

The folders' names are those of the classes. image_files.py reads the files.
"""

import os
import re
from itertools import islice, zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..files import DataError, brief, printable
from . import image_files
from .load import DataSet

MAX_IMAGES = 2_000_000
MAX_CLASSES = 1000
_LONGEST_NAME = 100  # characters of a class
_PARTS = {  # what a folder is for, by the letters of its name
    **dict.fromkeys(("train", "training", "trainset", "trainingset"), "train"),
    **dict.fromkeys(("test", "testing", "testset", "testingset"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "validationset"), "validation"),
}


def read_image_folder(folder, need_train=True):
    """Read the DataSet of a folder of class folders; None if the folder has no such layout.

    The training set is in a folder `train` (or training, trainingSet, ...), the test set in `test`.
    A folder `val` (or valid, validation) is the test set if there is no other; else it is not used.
    Without a training folder all class folders are for training. The images of a test folder may
    lie in it without class folders; they then have no labels. Each of these folders, and `folder`
    itself, may have its content in a folder of its own.

    Images come from the classes in turn. test_ids are the paths of the test images in the test
    folder. Hidden files, and files whose names do not end as those of images, are ignored. Without
    `need_train` only the test set is read: the test folder, or `folder` if there is no training
    folder either. Its classes are those of the training folder, or its own. Raises DataError.
    """
    top = _inner(_open(Path(folder), os.path.realpath(folder)))
    parts = _parts(top)
    train, test = parts.get("train"), parts.get("test", parts.get("validation"))
    if not parts and need_train:
        train = top if _has_classes(top) else None
    elif not parts:
        test = top if top.images or _has_classes(top) else None
    if not (train if need_train else test or train):
        return None
    image_files.check_pillow(folder)
    classes = _classes(train) if train else _classes(test) if test.folders else ()
    x_train, y_train, x_test, y_test, ids = [None] * 5
    if need_train:
        x_train, y_train = _read_labelled(_class_files(train, classes), len(classes))
    if test:
        shape = x_train.shape[1:3] if need_train else None
        files = _test_files(test, train, classes)
        x_test, y_test = _read_labelled(files, len(classes), shape)
        ids = "file", "label", tuple(_id(path, test) for path, _ in files)
    if need_train and test and x_train.ndim != x_test.ndim:
        x_train, x_test = image_files.in_colour(x_train), image_files.in_colour(x_test)
    unused = parts["validation"].path.name if {"test", "validation"} <= parts.keys() else ""
    images = x_train if need_train else x_test
    about = "" if images is None else _description(images, classes, unused)
    return DataSet(x_train, y_train, x_test, y_test, classes, about, ids)


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
                is_image, is_folder = ending in image_files.ENDINGS, entry.is_dir()
                if name.startswith((".", "__")):  # hidden, or __MACOSX
                    continue
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
    return _Folder(path, root, sorted(folders, key=_order), sorted(images, key=_order), faults)


def _check(folder):
    """Raise the first fault of a folder that is to be read."""
    for name in sorted(folder.faults, key=_order):
        raise DataError(folder.faults[name])


def _is_in(path, root):
    return os.path.realpath(path).startswith(os.path.join(root, ""))


def _order(name):
    """The key that sorts names, with numbers in them by their values."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


# ---- which folder is for what --------------------------------------------------------------------


def _part(name):
    return _PARTS.get(re.sub("[^a-z]", "", name.lower()))


def _inner(folder, part=None):
    """The folder with the content of `folder`, which may be its only folder."""
    if folder.images or len(folder.folders) != 1:
        return folder
    child = folder.child(folder.folders[0])
    named = _part(child.path.name)
    is_inner = (child.folders or named == part) if part else (child.folders and not named)
    return child if is_inner else folder


def _has_classes(folder):
    """Whether there are images in folders in it that are not named like parts."""
    names = (name for name in folder.folders if not _part(name))
    return any(folder.child(name).images for name in islice(names, MAX_CLASSES))


def _parts(top):
    """{"train", "test" or "validation": the _Folder}; empty if these names are those of classes."""
    parts = {}
    for name in sorted([*top.folders, *top.faults], key=_order):
        if part := _part(name):
            if name in top.faults:
                raise DataError(top.faults[name])
            folder = _inner(top.child(name), part)
            if part in parts:
                names = f"{parts[part].path} and {folder.path}"
                raise DataError(f"{top.path}: got {names}, expected one folder for {part}")
            if _has_classes(folder) or (folder.images and part != "train"):
                parts[part] = folder
    return parts if "train" in parts or not _has_classes(top) else {}


# ---- files and labels ----------------------------------------------------------------------------


def _classes(folder):
    """The names of the classes. Raises DataError."""
    names = tuple(folder.folders)
    if not 2 <= len(names) <= MAX_CLASSES:
        got = f"{len(names):,} class folder" + "s" * (len(names) != 1)
        raise DataError(f"{folder.path}: got {got}, expected 2 to {MAX_CLASSES:,}")
    for name in names:
        if not name.isprintable() or len(name) > _LONGEST_NAME:
            raise DataError(
                f"{folder.path / name}: expected a class name of up to {_LONGEST_NAME} printable"
                " characters"
            )
    return names


def _class_files(folder, classes, may_lack=False):
    """[(path, class number)] of the images in class folders, from each class in turn."""
    _check(folder)
    if folder.images:
        raise DataError(
            f"{folder.path / folder.images[0]}: got an image beside class folders,"
            " expected it in one of them"
        )
    columns, count = [], 0
    for number, name in enumerate(classes):
        child = folder.child(name) if name in folder.folders else None
        if child is None:
            continue
        _check(child)
        if child.folders:
            raise DataError(
                f"{child.path / child.folders[0]}: got a folder in a class folder, expected images"
            )
        if not child.images and not may_lack:
            raise DataError(f"{child.path}: got no images, expected PNG or JPEG files")
        columns.append([(os.path.join(child.path, image), number) for image in child.images])
        count += len(child.images)
        if count > MAX_IMAGES:
            raise _too_many(folder.path)
    return [file for row in zip_longest(*columns) for file in row if file]


def _test_files(test, train, classes):
    """[(path, class number or None)] of the test images."""
    if not test.folders:
        _check(test)
        return [(os.path.join(test.path, image), None) for image in test.images]
    for name in test.folders:
        if name not in classes:
            raise DataError(
                f"{test.path / name}: got a class that {train.path} has not,"
                f" expected one of {_classes_text(classes)}"
            )
    return _class_files(test, classes, may_lack=True)


def _read_labelled(files, count, shape=None):
    """Images and labels (or None) of [(path, class number or None)], of `count` classes."""
    images = image_files.read_images([path for path, _ in files], shape)
    if files[0][1] is None:
        return images, None
    return images, np.array([n for _, n in files], np.uint8 if count <= 256 else np.uint16)


def _id(path, test):
    return printable(Path(path).relative_to(test.path).as_posix())


def _too_many(path):
    return DataError(f"{path}: got more than {MAX_IMAGES:,} images, expected at most so many")


def _classes_text(classes):
    return f"{len(classes):,} classes {brief(classes[0], 20)}..{brief(classes[-1], 20)}"


def _description(images, classes, unused):
    size, notes = "x".join(map(str, images.shape[1:])), []
    if classes:
        notes.append(_classes_text(classes))
    notes.append("from image files")
    if unused:
        notes.append(f"{unused} is not used")
    return ", ".join([f"{len(images):,} images {size}", *notes])
