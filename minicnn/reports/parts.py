"""Parts that the pages of runs and of studies have in common: HTML from results."""

from dataclasses import fields

import numpy as np
import pandas as pd

from .. import drawing
from ..recipe import Recipe
from ..training.figures import learning_panel
from . import webpage

MOST_ROWS = 1_000  # shown of a table
_MOST_CURVES = 100  # nets drawn in a figure of learning curves
_MOST_IN_MATRIX = 62  # classes: EMNIST's largest split has so many
_MOST_PAIRS = 30


def curves(history, which=""):
    """The learning curves of nets, in two panels. `which` ends the caption's first sentence."""
    nets = history["net"].drop_duplicates()
    shown = history[history["net"].isin(nets[:_MOST_CURVES])]
    count = f"{len(nets):,} nets" if len(nets) > 1 else "one net"
    caption = f"Learning curves of {count}{which}{first_of(len(nets), _MOST_CURVES)}."
    if len(nets) > 1:
        caption += " Thin: each net; bold: their mean."
    caption += " Training is measured during the epoch, with the recipe's augmentation, dropout and"
    caption += " label smoothing"
    if history["validation_loss"].notna().any():
        caption += "; validation after it, without"
    last = shown[shown["epoch"] == shown["epoch"].max()]
    pictures = []
    for measure, of in (("accuracy", "Error rate"), ("loss", "Loss")):
        ends = []
        for part in ("train", "validation"):
            mean = last[f"{part}_{measure}"].mean()
            if not np.isnan(mean):
                value = percent(1 - mean) if measure == "accuracy" else f"{mean:.3g}"
                ends.append(f"{value} ({part})")
        shows = f"{of} by epoch; the mean of the nets ends at {', '.join(ends)}"
        pictures.append((drawing.png(learning_panel, shown, measure), shows))
    return webpage.figure(f"{caption}.", *pictures)


def diverged_nets(frame):
    """A table of the diverged nets."""
    caption = "Diverged nets: their loss or weights are not finite, so they do not vote"
    caption = f"{caption}{first_of(len(frame), MOST_ROWS)}."
    return webpage.table(caption, frame[:MOST_ROWS])


def count_pairs(labels, predicted, classes):
    """The confusion matrix: counts by label (row) and predicted class (column), of so many."""
    pairs = labels.astype(int) * classes + predicted
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def confusion(caption, counts, classes):
    """A confusion matrix (see count_pairs) of classes of these names, as HTML.

    Of many classes: tables of the most frequent confusions and of the hardest classes.
    """
    if len(classes) <= _MOST_IN_MATRIX:
        return webpage.confusion(caption, counts, classes)
    totals, right = counts.sum(axis=1), counts.diagonal()
    wrong = counts - np.diag(right)
    pairs = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_PAIRS]
    rows = [
        [classes[a], classes[b], f"{wrong[a, b]:,}", percent(wrong[a, b] / totals[a])]
        for a, b in zip(*np.unravel_index(pairs, wrong.shape), strict=True)
        if wrong[a, b]
    ]
    frame = pd.DataFrame(rows, columns=["class", "predicted as", "images", "of the class"])
    html = webpage.table(f"{caption} The {len(rows)} most frequent confusions.", frame)
    tested = np.flatnonzero(totals)
    hardest = tested[np.argsort(right[tested] / totals[tested], kind="stable")][:_MOST_PAIRS]
    rows = [
        [classes[i], f"{right[i]:,} of {totals[i]:,}", percent(right[i] / totals[i])]
        for i in hardest
    ]
    frame = pd.DataFrame(rows, columns=["class", "correct", "accuracy"])
    return html + webpage.table(f"The {len(rows)} classes with the lowest accuracy.", frame)


def recipe_facts(recipe):
    """{name: value} of a recipe's fields, both as text, in the order of Recipe."""
    order = [field.name for field in fields(Recipe)]
    names = sorted(recipe, key=lambda name: order.index(name) if name in order else len(order))
    return {spaced(name): shown_value(recipe[name]) for name in names}


def first_of(count, most):
    """The end of a caption if only the first `most` of `count` rows are shown, else ""."""
    return f"; the first {most:,} of {count:,}" if count > most else ""


def spaced(name):
    """The name of a field, with spaces for underscores."""
    return name.replace("_", " ")


def shown_value(value):
    """The value of a field as text."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def thousands(value):
    """An integer with commas between thousands; any other value unchanged."""
    return f"{value:,}" if isinstance(value, int) else value


def percent(share):
    """A fraction in percent as text; "" for None."""
    return "" if share is None else f"{100 * share:.2f} %"
