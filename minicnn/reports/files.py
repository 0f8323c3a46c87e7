"""Read the files of a run and the test images.

The files may come from an unknown source, so their size and every field are checked.
"""

import json
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..data.load import fingerprint, load_test
from ..files import DataError, brief
from ..recipe import Recipe
from ..training.checkpoint import HISTORY_COLUMNS

_MOST_JSON, _MOST_HISTORY = 1 << 24, 1 << 26  # largest accepted size in bytes


@dataclass(frozen=True)
class Number:
    """The allowed types and range of a number in a JSON file."""

    kinds: tuple
    low: float
    high: float


COUNT = Number((int,), 1, 2**32)
_FRACTION = Number((int, float, type(None)), 0, 1)
_RATE = Number((int, float), 0, 1e30)
_OF_CONFIG = {
    "recipe": dict,
    "source": str,
    "train_images": COUNT,
    "data": str,
    "device": str,
    "precision": str,
    "versions": dict,
}
_OF_SUMMARY = {
    "device": str,
    "images_per_second": _RATE,
    "seconds": _RATE,
    "nets": list,
    "ensemble_test_accuracy": _FRACTION,
}
OF_NET = {
    "net": COUNT,
    "best_train_accuracy": _FRACTION,
    "best_validation_accuracy": _FRACTION,
    "test_accuracy": _FRACTION,
}
OF_DIVERGED = dict.fromkeys(("net", "epoch", "step"), COUNT)


def read_config(path):
    """Read config.json: (config, its Recipe). Raises DataError."""
    config = _read_json(path, _OF_CONFIG)
    if config.get("test_images") is None:
        config["test_images"] = config["test_data"] = None
    else:
        check(path, config, {"test_images": COUNT, "test_data": str})
    try:
        return config, Recipe(**config["recipe"])
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: recipe: {brief(error, 200)}") from None


def read_summary(path):
    """Read summary.json, the summary of a run. Raises DataError."""
    summary = _read_json(path, _OF_SUMMARY)
    for row in summary["nets"]:
        check(path, row, OF_NET)
    check(path, summary.setdefault("diverged", []), list)
    for row in summary["diverged"]:
        check(path, row, OF_DIVERGED)
    return summary


def _read_json(path, fields):
    content = _read(path, _MOST_JSON)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        raise DataError(f"{path}: not JSON, expected what minicnn.train writes") from None
    check(path, value, fields)
    return value


def _read(path, most):
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


def read_history(path):
    """Read history.csv as a DataFrame. Raises DataError."""
    content = _read(path, _MOST_HISTORY)
    lines = content.decode("utf-8", "replace").splitlines()
    try:
        if lines[:1] != [",".join(HISTORY_COLUMNS)]:
            raise ValueError
        rows = [[float(v) if v else np.nan for v in line.split(",")] for line in lines[1:]]
        table = pd.DataFrame(rows, columns=list(HISTORY_COLUMNS))
        return checked_history(path, table.astype({"net": int, "epoch": int}))
    except DataError:
        raise
    except ValueError:
        raise DataError(f"{path}: not a history, expected what minicnn.train writes") from None


def checked_history(path, history):
    """Return a history after checking it. Raises DataError if it cannot be drawn."""
    values = history[[c for c in HISTORY_COLUMNS if not c.startswith("validation")]].astype(float)
    fine = np.isfinite(values).all(axis=None) and (history["epoch"] >= 1).all()
    if not fine or history.duplicated(["net", "epoch"]).any():
        raise DataError(f"{path}: history: expected one row of numbers for each net and epoch")
    return history


def test_images(settings, of_data, arguments):
    """Load the test images and labels of a run or study, as described by its settings.

    of_data: the shape of an image, (H, W, C), and the names of the classes. Raises DataError if
    they cannot be loaded or differ from those of the run or study.
    """
    source = arguments.data or settings["source"]
    hint = "; use --data DIR to say where they are"
    try:
        data = load_test(source, not arguments.quiet, *of_data)
    except DataError as error:
        raise DataError(f"{error}{hint}") from None
    count = settings["test_images"]
    images, labels = data.x_test[:count], None if data.y_test is None else data.y_test[:count]
    if fingerprint(images, labels) != settings["test_data"]:
        raise DataError(
            f"{source}: has other test images or labels than {arguments.folder} was made with, "
            f"expected the same{hint}"
        )
    return images, labels
