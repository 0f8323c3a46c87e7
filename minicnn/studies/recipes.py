"""recipes: candidate recipes compared in pairs, on training images that no net has trained on.

Net n of each candidate begins with the same weights, so the differences between two candidates are
taken net by net, and ensemble by ensemble. The test images have no part in it: a recipe is chosen
here, and then `trials --recipe` tests it once.
"""

import re
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd

from ..command import positive
from ..files import brief
from ..recipe import Recipe
from . import effects, plots
from .effects import VARIED
from .findings import Findings, Picture, Table
from .statistics import gain_interval, mean_interval
from .store import Cell

NAME = "recipes"
HELP = "candidate recipes compared in pairs, on training images held out from all of them"
FULL = {"trials": 3, "nets": 5, "epochs": 6, "hold_out": 10_000}
QUICK = {
    "trials": 2,
    "nets": 2,
    "epochs": 2,
    "limit": 1280,
    "hold_out": 1000,
    "momentum": 0.9,
    "candidate": ["constant: decay=1", "decay: decay=0.3"],
}

# What is compared unless --candidate is given: for each name, the fields in which it differs from
# the seed recipe. The first is what the others are compared with: each changes one thing in it.
_LINEAR = {"learning_rate": 2e-3, "schedule": "linear", "warm_up": 0.1}
CANDIDATES = {
    "linear": _LINEAR,
    "exponential": {"learning_rate": 2e-3, "decay": 0.5},
    "cosine": _LINEAR | {"schedule": "cosine"},
    "rate 0.004": _LINEAR | {"learning_rate": 4e-3},
    "batches of 32": _LINEAR | {"batch_size": 32},
    "batches of 128": _LINEAR | {"batch_size": 128},
    "dropout 0.2": _LINEAR | {"dropout": 0.2},
    "no dropout": _LINEAR | {"dropout": 0.0},
    "smooth labels": _LINEAR | {"label_smoothing": 0.1},
    "average of weights": _LINEAR | {"average_decay": 0.998},
    "elastic": _LINEAR | {"elastic": 0.1},
    "9 views": _LINEAR | {"views": 9},
}

_MOST_NAME = 40  # characters

_FRACTIONS = "mean", "low", "high", "gain", "gain_low", "gain_high"


def add_arguments(group):
    """The options of this study alone."""
    group.add_argument(
        "--candidate",
        action="append",
        metavar="NAME:FIELD=VALUE,...",
        help='compare the recipe NAME, which differs from seed in some fields, such as "smooth: '
        'dropout=0.2, label_smoothing=0.1"; give it several times; the first one '
        "in the study folder is what the others are compared with (default: the candidates in "
        "studies/recipes.py; --quick: two)",
    )
    group.add_argument(
        "--hold-out",
        type=positive,
        metavar="N",
        help="the last N training images judge; no net trains on them (default: "
        f"{FULL['hold_out']}; --quick: {QUICK['hold_out']})",
    )


def cells(recipe, arguments):
    """The Cells to train: one for each candidate. Raises ValueError that begins with the option."""
    found = CANDIDATES
    if arguments.candidate:
        pairs = [_parsed(text) for text in arguments.candidate]
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("candidate: got the same name twice, expected one for each")
    return [
        Cell(name, _changed(name, recipe, changes), arguments.trials)
        for name, changes in found.items()
    ]


def _parsed(text):
    """(name, {field: value}) from "NAME: FIELD=VALUE, ..."."""
    match = re.fullmatch(r"\s*([^:=,]*[^:=,\s])\s*:(.*)", text, re.DOTALL)
    if not match or not match[1].isprintable() or len(match[1]) > _MOST_NAME:
        raise ValueError(
            f"candidate: got {brief(repr(text))}, expected NAME:FIELD=VALUE,... with a name of at "
            f"most {_MOST_NAME} characters"
        )
    changes = {}
    for part in filter(None, (part.strip() for part in match[2].split(","))):
        field, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or field not in VARIED:
            raise ValueError(
                f"candidate: {match[1]}: got {brief(repr(part))}, expected FIELD=VALUE with one of "
                f"the fields {', '.join(VARIED)}"
            )
        if field in changes:
            raise ValueError(f"candidate: {match[1]}: got {field} twice, expected it once")
        kind = type(getattr(Recipe, field))
        try:
            changes[field] = kind(value)
        except ValueError:
            wanted = {int: "an integer", float: "a number"}[kind]
            raise ValueError(
                f"candidate: {match[1]}: {field}: got {brief(repr(value))}, expected {wanted}"
            ) from None
    if "decay" in changes and changes.get("schedule", "exponential") != "exponential":
        raise ValueError(
            f"candidate: {match[1]}: got decay, which schedule={changes['schedule']} does not use"
        )
    return match[1], changes


def _changed(name, recipe, changes):
    try:
        return replace(recipe, **changes)
    except ValueError as error:
        raise ValueError(f"candidate: {name}: {error}") from None


def findings(results):
    """Evaluate a study's Results. Returns Findings."""
    first = next(iter(results.cells))
    baselines = _singles(results, first), _ensembles(results, first)
    rows = []
    for cell in results.cells:
        costs = _costs(results, cell)
        for kind, of_cell, baseline in zip(
            ("single nets", "ensembles"),
            (_singles(results, cell), _ensembles(results, cell)),
            baselines,
            strict=True,
        ):
            changes = _changes(results.cells[cell])
            row = {"of": kind, "candidate": cell, "changes": changes, **costs, **_row(of_cell)}
            rows.append(row | (_gains(of_cell, baseline) if cell != first else {}))
    table = pd.DataFrame(rows)
    for column in _FRACTIONS:
        table[column] = table[column].astype(float) if column in table else np.nan
    nets = max(results.ensemble.values(), default=0)
    tables, pictures, lines = {}, {}, []
    for kind in ("single nets", "ensembles"):
        part = table[table["of"] == kind].drop(columns="of").reset_index(drop=True)
        what = f"ensembles of {nets}" if kind == "ensembles" else kind
        name = kind.replace(" ", "_")
        tables[name] = Table(
            f"Accuracy of {what} on the held-out images; images and seconds of a net's training "
            "(seconds only where nets are trained one by one, as on a CPU); gain over "
            f"'{first}' with the same nets; 95 % intervals, each for one comparison alone",
            part,
            _FRACTIONS,
        )
        lines += [_line(row, what) for row in part[part["n"] > 0].to_dict("records")]
        shown = part[part["gain"].notna()]
        if len(shown):
            pictures[name] = Picture(
                f"Gain of {what} over '{first}' in percentage points, with its 95 % interval where "
                "there is more than one",
                partial(
                    plots.gains,
                    shown["candidate"],
                    *(shown[name] for name in ("gain", "gain_low", "gain_high")),
                    f"Gain of {what} over '{first}'",
                ),
            )
    if (found := _effects(results)) is not None:
        tables["effects"], pictures["effects"] = found
    return Findings("Recipes compared", [*lines, *results.notes()], tables, pictures)


def _effects(results):
    """(Table, Picture) of the effects of changes, None if they cannot be told."""
    accuracies = {cell: _singles(results, cell) for cell in results.cells}
    known = {cell: recipe for cell, recipe in results.cells.items() if accuracies[cell]}
    table = effects.of_changes(known, accuracies)
    if table is None:
        return None
    caption = (
        f"Effect of each change on the accuracy of single nets of {len(known)} candidates, by "
        "least squares, with 95 % intervals, each for one change alone. It is the mean effect in "
        "company of the other changes, as far as they do not act on each other. Candidates that "
        "differ in views only have the same nets: these count once"
    )
    names = [change.replace("_", " ") for change in table["change"]]
    draw = partial(plots.gains, names, *(table[name] for name in effects.COLUMNS))
    picture = Picture(caption, partial(draw, "Effects of changes on single nets"))
    return Table(caption, table, effects.COLUMNS), picture


def _changes(recipe):
    """The fields in which a recipe differs from the seed recipe, as text."""
    values = {name: getattr(recipe, name) for name in VARIED}
    changed = [f"{name} {v}" for name, v in values.items() if v != getattr(Recipe, name)]
    return ", ".join(changed)


def _singles(results, cell):
    """{net: accuracy on the held-out images} of the nets of complete trials."""
    nets = results.nets[results.nets["cell"] == cell].dropna(subset="accuracy")
    complete = nets[nets["trial"].isin(results.trials(cell))]
    return dict(zip(complete["net"], complete["accuracy"], strict=True))


def _ensembles(results, cell):
    """{trial: accuracy of its ensemble} of complete trials with a net that did not diverge."""
    rows = zip(results.trials(cell), results.ensembles(cell), strict=True)
    known = ((trial, row[~np.isnan(row)]) for trial, row in rows)
    return {trial: row[-1] for trial, row in known if len(row)}


def _costs(results, cell):
    """{"images", "seconds"} of the training of one net of a cell."""
    recipe = results.cells[cell]
    steps = results.settings["train_images"] // recipe.batch_size
    nets = results.nets[results.nets["cell"] == cell].dropna(subset="accuracy")
    # A GPU trains nets together: then each has the seconds of all.
    alone = [maker.get("device") in ("cpu", "numpy") for maker in nets["made_by"]]
    history = results.history(cell)
    spent = history[history["net"].isin(nets["net"][alone])].groupby("net")["seconds"].sum()
    return {
        "images": recipe.epochs * steps * recipe.batch_size,
        "seconds": spent.mean() if len(spent) else np.nan,
    }


def _row(accuracies):
    values = np.array(list(accuracies.values()))
    low, high = mean_interval(values)
    mean = values.mean() if len(values) else np.nan
    return {"n": len(values), "mean": mean, "low": low, "high": high}


def _gains(ours, theirs):
    """The mean gain over the baseline of what both have, and its interval."""
    gains = np.array([ours[key] - theirs[key] for key in ours.keys() & theirs.keys()])
    if not len(gains):
        return {}
    low, high = gain_interval(gains)
    return {"gain": gains.mean(), "gain_low": low, "gain_high": high}


def _line(row, what):
    text = f"{row['candidate']}: {what} {100 * row['mean']:.3f} %"
    if np.isnan(row["gain"]):
        return text
    text += f", gain {100 * row['gain']:+.3f}"
    if np.isnan(row["gain_low"]):
        return f"{text} (only one)"
    low, high = 100 * row["gain_low"], 100 * row["gain_high"]
    verdict = "helps" if low > 0 else "harms" if high < 0 else "not significant"
    return f"{text} ({low:+.3f} to {high:+.3f}): {verdict}"
