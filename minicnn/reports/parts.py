"""Parts of a page that runs and studies have in common: HTML from their numbers."""

from dataclasses import fields

import numpy as np

from .. import drawing
from ..recipe import Recipe
from ..training.figures import learning_panel
from . import webpage

MOST_ROWS = 1_000  # of a table
_MOST_CURVES = 100  # nets whose curves can be told apart at all


def curves(history, which=""):
    """The learning curves of nets, in two panels."""
    nets = history["net"].drop_duplicates()
    shown = history[history["net"].isin(nets[:_MOST_CURVES])]
    count = f"{len(nets):,} nets" if len(nets) > 1 else "one net"
    caption = f"Learning curves of {count}{which}{first_of(len(nets), _MOST_CURVES)}."
    if len(nets) > 1:
        caption += " Thin: each net; bold: their mean."
    caption += " Training is measured during the epoch, with augmentation and dropout"
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
    """Those nets whose numbers ran away."""
    caption = (
        "Nets that diverged, for their loss or weights were no longer finite: they have no vote"
    )
    caption = f"{caption}{first_of(len(frame), MOST_ROWS)}."
    return webpage.table(caption, frame[:MOST_ROWS])


def count_pairs(labels, predicted):
    """How often each label (row) was predicted as each digit (column): (10, 10)."""
    pairs = labels.astype(int) * 10 + predicted
    return np.bincount(pairs, minlength=100).reshape(10, 10)


def recipe_facts(recipe):
    """The fields of a recipe, in words, in the order of Recipe."""
    order = [field.name for field in fields(Recipe)]
    names = sorted(recipe, key=lambda name: order.index(name) if name in order else len(order))
    return {spaced(name): shown_value(recipe[name]) for name in names}


def first_of(count, most):
    """What to add to a caption where only the first are shown."""
    return f"; the first {most:,} of {count:,}" if count > most else ""


def spaced(name):
    """The name of a field in words."""
    return name.replace("_", " ")


def shown_value(value):
    """The value of a field as a text."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def thousands(value):
    """A number with commas; what is none stays as it is."""
    return f"{value:,}" if isinstance(value, int) else value


def percent(share):
    """A fraction in percent, nothing for None."""
    return "" if share is None else f"{100 * share:.2f} %"
