"""hardest: the test images that are hardest for an ensemble, as a quiz for people."""

import numpy as np
import pandas as pd

from ..training.ensemble import vote
from . import plots
from .findings import Findings, Picture, Table
from .store import Cell

NAME = "hardest"
HELP = "the 50 test images that are hardest for an ensemble: a figure, and a quiz"
FULL = {"trials": 1, "nets": 15, "epochs": 30}
QUICK = {"trials": 1, "nets": 3, "epochs": 2, "limit": 3840, "momentum": 0.9}
COUNT = 50


def cells(recipe, arguments):
    """The Cells to train: the seed network."""
    return [Cell("seed", recipe, arguments.trials)]


def rank(probabilities, labels=None, classes=None):
    """The COUNT hardest of N images, a DataFrame, the hardest first.

    Columns: image (counted from 1), label, predicted, probability of the predicted class, and loss
    or entropy in nats. probabilities: (nets, N, classes). labels: (N,) or None. classes: their
    names, in place of numbers.

    p = mean of probabilities over nets
    with labels: sort by loss = -log(p[label]); without: by entropy = -sum(p * log(p))
    """
    mean = probabilities.mean(axis=0, dtype=np.float64)  # (N, classes)
    logs = np.log(np.maximum(mean, np.finfo(np.float32).tiny))
    predicted = vote(probabilities)
    table = pd.DataFrame(
        {
            "image": np.arange(1, len(mean) + 1),
            "predicted": predicted,
            "probability": mean[np.arange(len(mean)), predicted],
        }
    )
    if labels is None:
        measure = "entropy"
        table[measure] = -(mean * logs).sum(axis=1)
    else:
        measure = "loss"
        table.insert(1, "label", labels)
        table[measure] = -logs[np.arange(len(mean)), labels]
    table = table.sort_values(measure, ascending=False, kind="stable")[:COUNT]
    if classes is not None:
        for column in {"label", "predicted"} & set(table):
            table[column] = [classes[number] for number in table[column]]
    return table.reset_index(drop=True)


def findings(results, images=None):
    """Evaluate a study's Results. Returns Findings, with a picture if `images` is given.

    images: the test images (N, H, W) or (N, H, W, C).
    """
    (cell,) = results.cells
    trials = results.trials(cell)
    if not trials:
        return Findings("The hardest images", ["no ensemble is trained yet"])
    probabilities = np.concatenate([results.probabilities(cell, trial) for trial in trials])
    if not len(probabilities):
        return Findings("The hardest images", ["all nets diverged"])
    table = rank(probabilities, results.labels, results.classes)
    shown = f"The {len(table)} hardest test images for {len(probabilities)} nets together"
    if results.labels is None:
        lines = [f"{shown}: entropy up to {table['entropy'].max():.3f} nats"]
    else:
        wrong = (table["label"] != table["predicted"]).sum()
        total = np.mean(vote(probabilities) != results.labels)
        lines = [
            f"{shown}: {wrong} are misclassified; error rate on all test images: "
            f"{100 * total:.2f} %"
        ]
    lines += results.notes()
    tables = {"hardest": Table("The hardest images, the hardest first", table, ("probability",))}
    pictures = {}
    if images is not None:
        pictures["hardest"] = Picture(
            "The hardest images, the hardest first", lambda: plots.hardest(images, table)
        )
    return Findings("The hardest images", lines, tables, pictures)
