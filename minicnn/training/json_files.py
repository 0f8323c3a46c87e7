"""Read the JSON files of a run folder: config.json, from which a run can be repeated, and others.

The files may come from an unknown source, so their size and every field are checked.
"""

import json
import warnings
from dataclasses import dataclass

from ..files import DataError, brief
from ..recipe import Recipe
from .dataset import Source

_MOST_BYTES = 1 << 24  # of an accepted JSON file


@dataclass(frozen=True)
class Number:
    """The allowed types and range of a number in a JSON file."""

    kinds: tuple
    low: float
    high: float


COUNT = Number((int,), 1, 2**32)
_LIMIT = Number((int, type(None)), 1, 2**32)
_OF_CONFIG = {
    "recipe": dict,
    "source": str,
    "train_images": COUNT,
    "data": str,
    "device": str,
    "precision": str,
    "versions": dict,
}


def read_config(path):
    """Read config.json: (config, its Recipe). Raises DataError."""
    config = read_json(path, _OF_CONFIG)
    if not config["source"]:
        raise DataError(f"{path}: source: got nothing, expected where the data are")
    if config.get("test_images") is None:
        config["test_images"] = config["test_data"] = None
    else:
        check(path, config, {"test_images": COUNT, "test_data": str})
    if "limit" in config:  # earlier versions did not write these three
        check(path, config, {"limit": _LIMIT, "test_limit": _LIMIT})
        if config.get("shape") is not None:
            check(path, config, {"shape": list})
            for length in config["shape"]:
                check(path, length, COUNT, "shape")
    try:
        return config, Recipe(**config["recipe"])
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: recipe: {brief(error, 200)}") from None


def source_of(config, recipe, name=None):
    """The Source of a run's data, from what read_config has read; name: another data set instead.

    Without another one, the limits on the number of images, and the shape of an image in a CSV
    file, are those of the run. Where an earlier version has not written them, they are what its
    data had.
    """
    if name is not None:
        return Source(name)
    if "limit" in config:
        shape = config.get("shape")
        shape = None if shape is None else tuple(shape)
        return Source(config["source"], config["limit"], config["test_limit"], shape)
    shape = recipe.input_shape if recipe.about_data else None
    return Source(config["source"], config["train_images"], config["test_images"], shape)


def warn_of_other_data(path, config, source):
    """Warn if a Source that was loaded differs from the data of the run with this config."""
    theirs, ours = (config["data"], config["test_data"]), (source.train, source.test)
    for name, *digests in zip(("training", "test"), theirs, ours, strict=True):
        before, now = (brief(digest, 16) if digest else "none" for digest in digests)
        if before != now:
            warnings.warn(
                f"{path}: its run had other {name} images or labels: fingerprint {before}, got "
                f"{now}",
                stacklevel=2,
            )


def read_json(path, fields):
    """Read an object from a JSON file; fields: {key: expected}, see `check`. Raises DataError."""
    content = read_bytes(path, _MOST_BYTES)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        raise DataError(f"{path}: not JSON, expected what minicnn.train writes") from None
    check(path, value, fields)
    return value


def read_bytes(path, most):
    """The content of a file of at most `most` bytes. Raises DataError."""
    if not path.is_file():  # opening a pipe would block
        raise DataError(f"{path}: no such file, expected what minicnn.train writes")
    with open(path, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise DataError(f"{path}: got more than {most:,} bytes, expected a file of minicnn.train")
    return content


def check(path, value, expected, name="the file"):
    """Raise DataError unless a value from a JSON file is as expected.

    expected: a type, a Number, or {key: expected} for a dict. name: the value's name in messages.
    """
    if isinstance(expected, dict):
        check(path, value, dict, name)
        for key, of_key in expected.items():
            if key not in value:
                raise DataError(f"{path}: {key}: got nothing, expected what minicnn.train writes")
            check(path, value[key], of_key, key)
        return
    if isinstance(expected, Number):
        fine = type(value) in expected.kinds
        fine = fine and (value is None or expected.low <= value <= expected.high)
        words = f"a number from {expected.low} to {expected.high:g}"
    else:
        fine = type(value) is expected
        words = {dict: "an object", list: "a list", str: "a text"}[expected]
    if not fine:
        raise DataError(f"{path}: {name}: got {brief(value)}, expected {words}")
