"""Read the results of a run and the test images; training/json_files.py reads config.json.

The files may come from an unknown source, so their size and every field are checked.
"""

import numpy as np
import pandas as pd

from ..data.load import fingerprint, load_test
from ..files import DataError
from ..training.checkpoint import HISTORY_COLUMNS
from ..training.json_files import COUNT, Number, check, read_bytes, read_json

_MOST_HISTORY = 1 << 26  # bytes of an accepted history.csv


_FRACTION = Number((int, float, type(None)), 0, 1)
_RATE = Number((int, float), 0, 1e30)
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


def read_summary(path):
    """Read summary.json, the summary of a run. Raises DataError."""
    summary = read_json(path, _OF_SUMMARY)
    for row in summary["nets"]:
        check(path, row, OF_NET)
    check(path, summary.setdefault("diverged", []), list)
    for row in summary["diverged"]:
        check(path, row, OF_DIVERGED)
    return summary


def read_history(path):
    """Read history.csv as a DataFrame. Raises DataError."""
    content = read_bytes(path, _MOST_HISTORY)
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
