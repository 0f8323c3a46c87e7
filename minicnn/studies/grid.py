"""grid: which augmentation helps? Each cell has another combination of rotation, zoom and shift."""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd

from .. import checks
from ..command import number
from . import plots
from .findings import Findings, Picture, Table
from .statistics import mean_interval
from .store import Cell

NAME = "grid"
HELP = "grid search over the augmentation: rotation with zoom, and shifts"
FULL = {"trials": 6, "nets": 15, "epochs": 30}
QUICK = {
    "trials": 2,
    "nets": 2,
    "epochs": 1,
    "limit": 2560,
    "test_limit": 1000,
    "momentum": 0.9,
    "rotation": [0, 15],
    "shift": [0, 0.1],
}
VARIED = "rotation", "zoom", "width_shift", "height_shift"  # the fields of recipes that differ

# The notebook's test accuracies in percent: {shift: one value for each of _ROTATIONS}. Means of 6
# ensembles of 15 nets, and of 30 single nets. None: not measured.
# Source: C. Deotte, "25 Million Images! [0.99757] MNIST", Kaggle, 2018, "Data augmentation
# hyper-parameters".
_ROTATIONS = range(0, 35, 5)
NOTEBOOK = {
    "ensembles": {
        0.0: (99.70, 99.70, 99.70, 99.70, 99.69, 99.65, 99.62),
        0.1: (99.73, 99.73, 99.75, 99.75, 99.72, 99.67, 99.64),
        0.2: (None, None, 99.72, 99.72, None, None, None),
    },
    "single nets": {
        0.0: (99.57, 99.58, 99.62, 99.62, 99.62, 99.57, 99.52),
        0.1: (99.62, 99.63, 99.65, 99.65, 99.63, 99.58, 99.52),
        0.2: (None, None, 99.62, 99.62, None, None, None),
    },
}


def add_arguments(group):
    """Add the options that only this study has."""
    group.add_argument(
        "--rotation",
        type=number,
        nargs="+",
        metavar="X",
        help="rotations in degrees; zoom is rotation / 100 (default: 0 to 30 by 5; --quick: 0 15)",
    )
    group.add_argument(
        "--shift",
        type=number,
        nargs="+",
        metavar="X",
        help="shifts as fractions of width and height; each is combined with each rotation "
        "(default: 0 0.1 0.2; without --rotation, the notebook's combinations; --quick: 0 0.1)",
    )


def cells(recipe, arguments):
    """The Cells to train: the notebook's, or every rotation combined with every shift."""
    if arguments.rotation is None and arguments.shift is None:
        pairs = [
            (rotation, shift)
            for shift, row in NOTEBOOK["ensembles"].items()
            for rotation, value in zip(_ROTATIONS, row, strict=True)
            if value is not None
        ]
    else:
        rotations = _ROTATIONS if arguments.rotation is None else arguments.rotation
        shifts = list(NOTEBOOK["ensembles"]) if arguments.shift is None else arguments.shift
        pairs = [(rotation, shift) for shift, rotation in itertools.product(shifts, rotations)]
    found = {}
    for rotation, shift in pairs:
        checks.number("rotation", rotation, 0, 100, "[)")  # zoom, a hundredth of it, is below 1
        checks.number("shift", shift, 0, 1)
        degrees, part = abs(float(rotation)), abs(float(shift))  # turns -0.0 into 0.0
        name = f"rotation {degrees:.12g}, zoom {degrees / 100:.12g}, shift {part:.12g}"
        augment = {
            "rotation": degrees,
            "zoom": degrees / 100,
            "width_shift": part,
            "height_shift": part,
        }
        found[name] = Cell(name, replace(recipe, **augment), arguments.trials)
    return list(found.values())


def findings(results):
    """Evaluate a study's Results. Returns Findings."""
    rows = []
    for cell, recipe in results.cells.items():
        for kind, values in (
            ("ensembles", results.whole(cell)),
            ("single nets", results.accuracies(cell)),
        ):
            low, high = mean_interval(values)
            rotation, shift = recipe.rotation, recipe.width_shift
            rows.append(
                {
                    "of": kind,
                    "rotation": rotation,
                    "zoom": recipe.zoom,
                    "shift": shift,
                    "n": len(values),
                    "mean": values.mean() if len(values) else np.nan,
                    "low": low,
                    "high": high,
                    "notebook": _notebook(kind, rotation, shift),
                }
            )
    columns = ["of", "rotation", "zoom", "shift", "n", "mean", "low", "high", "notebook"]
    table = pd.DataFrame(rows, columns=columns)
    nets = max(results.ensemble.values(), default=0)
    tables, pictures, lines = {}, {}, results.notes()
    for kind in ("ensembles", "single nets"):
        part = table[table["of"] == kind].drop(columns="of").reset_index(drop=True)
        name = kind.replace(" ", "_")
        what = f"ensembles of {nets}" if kind == "ensembles" else kind
        tables[name] = Table(
            f"Mean test accuracy of {what} by augmentation, with its 95 % interval, and the "
            "notebook's",
            part,
            ("mean", "low", "high", "notebook"),
        )
        if part["n"].any():
            pictures[name] = Picture(
                f"Mean test accuracy of {what} in percent, ± half of its 95 % interval; below, "
                "smaller: the notebook's",
                lambda part=part, what=what: plots.heat_map(part, what),
            )
            lines.append(_line(part, what))
    return Findings("Grid search over augmentation", lines, tables, pictures)


def _notebook(kind, rotation, shift):
    row = dict(zip(_ROTATIONS, NOTEBOOK[kind].get(shift, ()), strict=False))
    value = row.get(rotation)
    return np.nan if value is None else value / 100


def _line(part, what):
    """A line: the best cell, and how many other cells have an interval that overlaps its own."""
    best = part.loc[part["mean"].idxmax()]
    text = (
        f"{what}: highest mean {100 * best['mean']:.3f} % at rotation {best['rotation']:g}, shift "
        f"{best['shift']:g}"
    )
    if np.isnan(best["low"]):
        return text + "; each cell has only one trial, so there are no intervals"
    others = (part["high"] >= best["low"]).sum() - 1
    return text + f"; {others} of {len(part) - 1} other cells have overlapping 95 % intervals"
