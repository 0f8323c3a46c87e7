"""The page of a study folder: the results of each study, and the nets that it trained."""

import warnings
from collections import Counter

import numpy as np
import pandas as pd

from .. import __version__, drawing
from ..command import one_line
from ..files import DataError, brief
from ..studies import STUDIES, hardest
from ..studies.store import FILE, Store
from ..training import ensemble
from ..training.workers import Interrupted
from . import webpage
from .files import COUNT, check, checked_history, test_images
from .parts import (
    MOST_ROWS,
    confusion,
    count_pairs,
    curves,
    diverged_nets,
    first_of,
    percent,
    recipe_facts,
    shown_value,
    spaced,
    thousands,
)

_MOST_COLUMNS = 30  # nets shown in a row of a table


def parts(arguments, should_stop):
    """The sections of a study folder's page, in the form of run.parts: the studies, then quizzes.

    Raises DataError if the file of results is missing or invalid, and Interrupted.
    """
    path = arguments.folder / FILE
    found, quizzes = [], []
    with Store(path, create=False) as store:
        for name, seed in store.studies():
            if should_stop():
                raise Interrupted
            if name not in STUDIES:
                warnings.warn(
                    f"{path}: has a study {brief(name)}, which minicnn {__version__} does not know",
                    stacklevel=2,
                )
                continue
            try:
                title, html, quiz = _study(store, name, seed, arguments, should_stop)
            except DataError:
                raise
            # The file's content may be anything, so findings() can fail in many ways.
            except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
                raise DataError(
                    f"{path}: the study {name} of seed {brief(seed)} is damaged "
                    f"({brief(one_line(error))}), expected what minicnn.study writes"
                ) from None
            found.append((title, html, False))
            if quiz:
                quizzes.append((f"Quiz: {title[0].lower()}{title[1:]}", quiz, True))
    if not found:
        raise DataError(f"{path}: has no study, expected one of {', '.join(STUDIES)}")
    return found + quizzes


def _study(store, name, seed, arguments, should_stop):
    """(title, HTML, HTML of its quiz or "") of a study."""
    module = STUDIES[name]
    results = store.results(name, seed)
    most = len(results.classes) - 1
    if results.labels is not None and len(results.labels) and results.labels.max() > most:
        raise DataError(
            f"{store.path}: the study {name} has labels above {most}, expected 0 to {most}"
        )
    quiz, missing = "", None
    if module is hardest:
        try:
            of_data = results.input_shape, results.classes
            images, _ = test_images(_test_settings(store.path, results), of_data, arguments)
            quiz = _quiz_of_study(results, images)
        except (DataError, OSError) as error:
            missing = f"No quiz: {one_line(error)}"
            warnings.warn(f"{name}: {missing[0].lower()}{missing[1:]}", stacklevel=2)
    found = module.findings(results)
    html = webpage.bullets(found.lines)
    if missing:
        html += webpage.paragraph(missing, "note")
    pictures = {}
    for picture in found.pictures.values():
        if should_stop():
            raise Interrupted
        pictures[picture.caption] = drawing.png(picture.build)
    html += webpage.panels(pictures)
    if not quiz:  # a quiz has the same table among its answers
        for table in found.tables.values():
            html += webpage.table(table.caption, table.readable()[:MOST_ROWS])
    html += webpage.heading(3, "Settings") + _settings_of_study(results)
    if results.cells:
        html += _cells(results)
        if len(results.nets):
            html += _nets(store.path, results)
    title = found.title if seed == 0 else f"{found.title}, seed {seed}"
    return title, html, quiz


def _test_settings(path, results):
    """The settings of a study; the fields that identify its test images are checked."""
    check(path, results.settings, {"source": str, "test_images": COUNT, "test_data": str})
    return results.settings


def _quiz_of_study(results, images):
    """The quiz, with the images ranked by all complete ensembles together; "" without any."""
    (cell,) = results.cells
    arrays = [results.probabilities(cell, trial) for trial in results.trials(cell)]
    arrays = [array for array in arrays if len(array)]
    if not arrays:
        return ""
    probabilities = np.concatenate(arrays)
    if probabilities.shape[1] != len(images):
        raise DataError(f"{probabilities.shape[1]:,} predictions of {len(images):,} test images")
    table = hardest.rank(probabilities, results.labels, results.classes)
    return webpage.quiz(images, table, results.classes)


def _settings_of_study(results):
    settings = results.settings
    tested = "held-out training images" if settings.get("held_out") else "test images"
    about = {
        "data": settings.get("source"),
        "training images": thousands(settings.get("train_images")),
        tested: thousands(settings.get("test_images")),
        "seed": results.seed,
    }
    makers = [{str(k): str(v) for k, v in maker.items()} for maker in results.nets["made_by"]]
    for name in dict.fromkeys(name for maker in makers for name in maker):
        counts = Counter(maker.get(name, "unknown") for maker in makers)
        about[name] = ", ".join(
            value if len(counts) == 1 else f"{value} ({count:,} nets)"
            for value, count in counts.most_common()
        )
    about["fingerprint of the data"] = str(settings.get("data"))[:16]
    html = webpage.facts({name: "unknown" if v is None else v for name, v in about.items()})
    if any(maker != makers[0] for maker in makers):
        html += webpage.paragraph(
            "The nets were trained with different devices or versions: rounding may differ.",
            "note",
        )
    return html


def _cells(results):
    """What was trained: the fields that all recipes share, and a table of those that differ."""
    recipes = {cell: recipe.as_dict() for cell, recipe in results.cells.items()}
    names = dict.fromkeys(name for recipe in recipes.values() for name in recipe)
    differ = [name for name in names if len({str(r.get(name)) for r in recipes.values()}) > 1]
    shared = {name: next(iter(recipes.values()))[name] for name in names if name not in differ}
    html = webpage.heading(3, "Recipe") + webpage.facts(recipe_facts(shared))
    done = {
        cell: f"{len(results.trials(cell)):,} of {asked:,}" for cell, asked in results.asked.items()
    }
    if len(done) == 1:
        return html + webpage.paragraph(f"Trials done: {''.join(done.values())}.")
    rows = [
        [cell, *(shown_value(recipe.get(name, "")) for name in differ), done[cell]]
        for cell, recipe in recipes.items()
    ]
    frame = pd.DataFrame(rows, columns=["cell", *map(spaced, differ), "trials done"])
    return html + webpage.table("Settings that differ between cells.", frame[:MOST_ROWS])


def _nets(path, results):
    """Learning curves, confusion matrix, accuracies, and diverged nets."""
    html, cell = "", list(results.cells)[-1]
    which = "" if len(results.cells) == 1 else f" of the cell “{cell}”, the last one"
    history = checked_history(path, results.history(cell))
    if len(history):
        html += webpage.heading(3, "Learning curves") + curves(
            history, which, averages=results.cells[cell].averaging is not None
        )
    if results.labels is not None:
        html += _confusion_of_study(results, cell)
        html += _accuracies(results)
    diverged = results.nets[[value is not None for value in results.nets["diverged"]]]
    if len(diverged):
        html += diverged_nets(
            pd.DataFrame(
                [
                    [row.cell, row.trial, row.net, *map(str, row.diverged)]
                    for row in diverged.itertuples()
                ],
                columns=["cell", "trial", "net", "epoch", "step"],
            )
        )
    return html


def _confusion_of_study(results, cell):
    """The confusion matrix of a cell's ensembles, added up over all complete trials."""
    classes, ensembles = len(results.classes), 0
    counts = np.zeros((classes, classes), int)
    for trial in results.trials(cell):
        probabilities = results.probabilities(cell, trial)
        if len(probabilities):
            counts += count_pairs(results.labels, ensemble.vote(probabilities), classes)
            ensembles += 1
    if not ensembles:
        return ""
    caption = f"Predictions of the {len(results.labels):,} test images by "
    caption += "the ensemble" if ensembles == 1 else f"{ensembles:,} ensembles, added up"
    if len(results.cells) > 1:
        caption += f"; the cell “{cell}”, the last one"
    matrix = confusion(f"{caption}.", counts, results.classes)
    return webpage.heading(3, "Confusion matrix") + matrix


def _accuracies(results):
    """A folded table: for each trial, the accuracies of its nets and of its ensemble."""
    rows, most = [], min(max(results.ensemble.values()), _MOST_COLUMNS)
    for cell, nets in results.ensemble.items():
        whole = dict(zip(results.trials(cell), results.ensembles(cell), strict=True))
        of_cell = results.nets[results.nets["cell"] == cell]
        for trial, of_trial in of_cell.groupby("trial"):
            shown = [""] * most
            for net, accuracy in zip(of_trial["net"], of_trial["accuracy"], strict=True):
                place = (net - 1) % nets
                if place < most:
                    shown[place] = "diverged" if np.isnan(accuracy) else percent(accuracy)
            sizes = whole.get(trial, np.array([np.nan]))
            sizes = sizes[~np.isnan(sizes)]
            rows.append([cell, trial, *shown, percent(sizes[-1]) if len(sizes) else ""])
    numbers = [f"net {number}" for number in range(1, most + 1)]
    frame = pd.DataFrame(rows, columns=["cell", "trial", *numbers, "ensemble"])
    caption = f"Test accuracies of single nets and of ensembles{first_of(len(frame), MOST_ROWS)}."
    if most < max(results.ensemble.values()):
        caption += f" Only the first {most} nets of each ensemble are shown."
    if len(results.cells) == 1:
        frame = frame.drop(columns="cell")
    return webpage.fold(
        f"Accuracies of all {len(results.nets):,} nets",
        webpage.table(caption, frame[:MOST_ROWS]),
    )
