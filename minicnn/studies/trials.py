"""trials: many independent ensembles. How much does the accuracy vary between trainings?"""

import numpy as np
import pandas as pd

from ..recipe import RECIPES
from . import plots
from .findings import Findings, Picture, Table
from .statistics import mean_interval, spread
from .store import Cell

NAME = "trials"
HELP = "independent ensembles: how accuracy varies, and how it grows with ensemble size"
FULL = {"trials": 100, "nets": 15, "epochs": 30}
QUICK = {"trials": 3, "nets": 3, "epochs": 2, "limit": 1920, "test_limit": 1000, "momentum": 0.9}

# Source: C. Deotte, "25 Million Images! [0.99757] MNIST", Kaggle, 2018, "CNN performance".
NOTEBOOK = [
    {"of": "single nets, the notebook", "n": 1500, "mean": 0.99641, "sd": 0.00047, "max": 0.9981},
    {
        "of": "ensembles of 15, the notebook",
        "n": 100,
        "mean": 0.99745,
        "sd": 0.00020,
        "max": 0.9979,
    },
]
_FRACTIONS = "mean", "mean_low", "mean_high", "sd", "sd_low", "sd_high", "min", "max"


def cells(recipe, arguments):
    """The Cells to train: the recipe."""
    return [Cell(arguments.recipe, recipe, arguments.trials)]


def add_arguments(group):
    """The options of this study alone."""
    group.add_argument(
        "--recipe",
        choices=sorted(RECIPES),
        default="seed",
        help="what is trained; with another recipe than seed, its numbers of networks and epochs "
        "and its momentum are the defaults (default: seed)",
    )
    group.add_argument(
        "--distorted",
        action="store_true",
        help="test each net on randomly distorted test images, too: augmented as in training",
    )


def findings(results):
    """Evaluate a study's Results. Returns Findings."""
    (cell,) = results.cells
    nets = results.ensemble[cell]
    single, ensembles = results.accuracies(cell), results.ensembles(cell)
    whole = results.whole(cell)
    rows = [
        {"of": "single nets", **spread(single)},
        {"of": f"ensembles of {nets}", **spread(whole)},
    ]
    distorted = results.distorted_accuracies(cell)
    if len(distorted):
        rows.append({"of": "single nets on distorted test images", **spread(distorted)})
    table = pd.DataFrame([*rows, *NOTEBOOK])
    sizes = _by_size(ensembles)
    lines = [*map(_line, rows), *results.notes()]
    pictures = {}
    if len(single):
        same = results.is_mnist
        pictures = {
            "histogram": Picture(
                "Test accuracies of single nets and of ensembles"
                + ", and the notebook's mean and standard deviation" * same,
                lambda: plots.histograms(
                    single, whole, nets, len(results.labels), NOTEBOOK if same else []
                ),
            ),
            "by_size": Picture(
                "Test accuracy by the number of nets in the ensemble",
                lambda: plots.by_size(sizes),
            ),
        }
    tables = {
        "summary": Table(
            "Test accuracies, with bootstrap 95 % intervals of mean and standard deviation",
            table,
            _FRACTIONS,
        ),
        "by_size": Table(
            "Test accuracy of ensembles of the first nets of each trial, with the 95 % interval of "
            "the mean",
            sizes,
            ("mean", "low", "high", "min", "max"),
        ),
    }
    return Findings("Trials", lines, tables, pictures)


def _by_size(ensembles):
    """A DataFrame with statistics over the trials for each ensemble size.

    ensembles: accuracies (trials, sizes), NaN where a size is missing.
    """
    rows = []
    for size, column in enumerate(ensembles.T, start=1):
        values = column[~np.isnan(column)]
        if not len(values):
            continue
        low, high = mean_interval(values)
        about = {"n": len(values), "mean": values.mean(), "low": low, "high": high}
        rows.append({"size": size, **about, "min": values.min(), "max": values.max()})
    return pd.DataFrame(rows, columns=["size", "n", "mean", "low", "high", "min", "max"])


def _line(row):
    if not row["n"]:
        return f"{row['of']}: none yet"
    if row["n"] == 1:
        return f"{row['of']}: {100 * row['mean']:.3f} % (only one)"
    return (
        f"{row['n']:,} {row['of']}: mean {100 * row['mean']:.3f} % ({100 * row['mean_low']:.3f} to "
        f"{100 * row['mean_high']:.3f}), standard deviation {100 * row['sd']:.3f}, "
        f"range {100 * row['min']:.3f} to {100 * row['max']:.3f} %"
    )
