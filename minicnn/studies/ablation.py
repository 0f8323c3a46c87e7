"""ablation: from LeNet-5 to the seed network, one change at a time. Which changes help?"""

from math import prod

import numpy as np
import pandas as pd

from . import plots
from .findings import Findings, Picture, Table
from .networks import STEPS, Variant
from .statistics import difference_interval, gain_interval, mean_interval
from .store import Cell

NAME = "ablation"
HELP = "from LeNet-5 to the seed network, one change at a time"
FULL = {"trials": 10, "nets": 15, "epochs": 30}
QUICK = {"trials": 2, "nets": 3, "epochs": 3, "limit": 1280, "test_limit": 1000, "momentum": 0.9}

_AUGMENTED = STEPS.index("augmentation")


def cells(recipe, arguments):
    """The Cells to train: one net per trial of each step, but an ensemble per trial of the last."""
    plain = dict.fromkeys(("rotation", "zoom", "width_shift", "height_shift", "elastic"), 0.0)
    found = []
    for changes, name in enumerate(STEPS):
        values = {**recipe.as_dict(), "changes": changes}
        if changes < _AUGMENTED:
            values |= {**plain, "nets": 1}
        found.append(Cell(name, Variant(**values), arguments.trials))
    return found


def findings(results):
    """Evaluate a study's Results. Returns Findings."""
    rows, before = [], None
    for cell in results.cells:
        values = results.accuracies(cell)
        rows.append(_row(cell, values, before, _weights(results.cells[cell])))
        before = values
    last = list(results.cells)[-1]
    nets = results.ensemble[last]
    if nets > 1:
        whole = results.whole(last)
        rows.append(_row(f"an ensemble of {nets}", whole, None, nets * rows[-1]["weights"]))
        if len(whole):
            # Compare each ensemble with the mean of its own nets.
            alone = [values.mean() for values in results.by_trial(last).values() if len(values)]
            gains = whole - np.array(alone)
            rows[-1] |= {"gain": gains.mean()}
            rows[-1]["gain_low"], rows[-1]["gain_high"] = gain_interval(gains)
    table = pd.DataFrame(rows)
    lines = [*(_line(row) for row in rows if row["n"]), *results.notes()]
    pictures = {}
    if table["n"].any():
        pictures["steps"] = Picture(
            "Mean error rate on the test images after each change, with its 95 % interval",
            lambda: plots.steps(table),
        )
    caption = (
        "Mean test accuracy after each change, and its gain over the previous step, with 95 % "
        "intervals (Student's and Welch's); the gain of the ensembles is over their own nets"
    )
    fractions = "mean", "low", "high", "gain", "gain_low", "gain_high"
    tables = {"steps": Table(caption, table, fractions)}
    return Findings("From LeNet-5 to the seed network", lines, tables, pictures)


def _weights(recipe):
    """The number of weights in a recipe's network, moving statistics included."""
    nodes = recipe.nodes
    specs = (
        spec
        for node in nodes
        for group in (node.specs, node.moving_specs)
        for spec in group.values()
    )
    return sum(prod(spec.shape) for spec in specs)


def _row(step, values, before, weights):
    low, high = mean_interval(values)
    row = {
        "step": step,
        "weights": weights,
        "n": len(values),
        "mean": values.mean() if len(values) else np.nan,
        "low": low,
        "high": high,
        "gain": np.nan,
        "gain_low": np.nan,
        "gain_high": np.nan,
    }
    if before is not None and len(before) and len(values):
        row["gain"] = values.mean() - before.mean()
        row["gain_low"], row["gain_high"] = difference_interval(before, values)
    return row


def _line(row):
    text = f"{row['step']}: {100 * row['mean']:.3f} %"
    if np.isnan(row["gain_low"]):
        return text
    low, high = 100 * row["gain_low"], 100 * row["gain_high"]
    verdict = "helps" if low > 0 else "harms" if high < 0 else "not significant"
    return f"{text}, gain {100 * row['gain']:+.3f} ({low:+.3f} to {high:+.3f}): {verdict}"
