"""The page of a run: results, settings, learning curves, confusion matrix, figures and a quiz.

A run does not save its probabilities, so its nets predict the test images again.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .. import devices
from ..command import images_bar, one_line
from ..files import DataError
from ..recipe import completed
from ..studies import hardest
from ..training import ensemble, prediction
from ..training.json_files import read_config
from ..training.run_folder import CONFIG, HISTORY, SUMMARY
from . import webpage
from .files import OF_DIVERGED, OF_NET, read_history, read_summary, test_images
from .parts import (
    MOST_ROWS,
    confusion,
    count_pairs,
    curves,
    diverged_nets,
    percent,
    recipe_facts,
)

_CAPTIONS = {
    "training_images": "The first training images, with their labels.",
    "augmented_images": "Three training images, each augmented ten times.",
    "predictions": "The first test images, with the ensemble's predictions.",
}
_MOST_PICTURE = 1 << 23  # bytes


def parts(arguments, should_stop):
    """The sections of a run's page: [(title, HTML, whether it starts a new sheet when printed)].

    Raises DataError if files of the run are missing or invalid, and Interrupted.
    """
    folder = arguments.folder
    config, recipe = read_config(folder / CONFIG)
    if not (folder / SUMMARY).exists():
        raise DataError(
            f"{folder}: has no {SUMMARY}, expected a finished run; continue it with "
            "python -m minicnn.train --resume"
        )
    summary = read_summary(folder / SUMMARY)
    history = read_history(folder / HISTORY)
    predictions, missing = None, "The run had no test images."
    if config["test_images"] is not None:
        try:
            predictions, missing = _predict_again(config, recipe, arguments, should_stop), None
        except (DataError, OSError) as error:
            missing = f"No confusion matrix and no quiz: {one_line(error)}"
            warnings.warn(missing[0].lower() + missing[1:], stacklevel=2)

    found = [
        ("Result", _result(summary, config, missing), False),
        ("Settings", _settings_of_run(config, recipe, summary), False),
    ]
    if len(history):
        found.append(("Learning curves", curves(history), False))
    if predictions and predictions.labels is not None:
        found.append(("Confusion matrix", _confusion_of_run(summary, recipe, predictions), False))
    if pictures := _figures(folder / "figures"):
        found.append(("Figures", pictures, False))
    if predictions:
        table = hardest.rank(predictions.probabilities, predictions.labels, recipe.classes)
        quiz = webpage.quiz(predictions.images, table, recipe.classes)
        found.append(("Quiz", quiz, True))
    return found


@dataclass(frozen=True)
class _Predictions:
    """Test images (N, H, W) or (N, H, W, C), labels (N,) or None, probabilities (nets, N, classes),
    and the device that computed them.
    """

    images: np.ndarray
    labels: np.ndarray | None
    probabilities: np.ndarray
    device: str


def _predict_again(config, recipe, arguments, should_stop):
    """Predict the test images of a run with its nets. Raises DataError, Interrupted."""
    path = arguments.folder / ensemble.FINAL
    trained = prediction.load(path)
    fields = completed(trained.about["recipe"]), completed(config["recipe"])
    if trained.about["data"] != config["data"] or fields[0] != fields[1]:
        raise DataError(f"{path}: belongs to another run than {CONFIG}, expected the same")
    images, labels = test_images(config, (recipe.input_shape, recipe.classes), arguments)
    device, ops, _ = devices.choose_openly(arguments.device)
    views = recipe.views
    with images_bar(len(trained.nets) * views * len(images), arguments.quiet) as bar:
        probabilities = prediction.probabilities_of(
            trained, images, views, device, ops, None, bar.update, should_stop
        )
    return _Predictions(images, labels, probabilities, device)


def _result(summary, config, missing):
    """The results of a run: a sentence, and a table of accuracies of the nets and the ensemble."""
    nets, accuracy = summary["nets"], summary["ensemble_test_accuracy"]
    count = config["test_images"]
    if accuracy is None:
        lead = "The labels of the test images are unknown, so there is no test accuracy."
    else:
        lead = (
            f"The ensemble of {len(nets)} predicts {percent(accuracy)} of {count or 0:,} test "
            "images correctly."
        )
        alone = [net["test_accuracy"] for net in nets if net["test_accuracy"] is not None]
        if alone:
            lead += f" Its single nets: {percent(min(alone))} to {percent(max(alone))}."
    html = webpage.paragraph(lead)
    if missing:
        html += webpage.paragraph(missing, "note")
    rows = [
        [net["net"], *(percent(net[name]) for name in list(OF_NET)[1:])] for net in nets[:MOST_ROWS]
    ]
    rows.append(["ensemble", "", "", percent(accuracy)])
    columns = ["net", "best training", "best validation", "test"]
    caption = (
        "Accuracies. Training is measured during an epoch, with augmentation and dropout; "
        "validation after it, without."
    )
    html += webpage.table(caption, pd.DataFrame(rows, columns=columns))
    if summary["diverged"]:
        html += diverged_nets(pd.DataFrame(summary["diverged"], columns=list(OF_DIVERGED)))
    return html


def _settings_of_run(config, recipe, summary):
    known = config["test_images"] is not None
    versions = [f"{name} {version}" for name, version in config["versions"].items()]
    about = {
        "data": config["source"],
        "training images": f"{config['train_images']:,}",
        "test images": f"{config['test_images']:,}" if known else "none",
        "seed": recipe.seed,
        "device": config["device"],
        "precision": config["precision"],
        "versions": ", ".join(versions),
        "time": f"{summary['seconds']:,.0f} s",
        "images a second": f"{summary['images_per_second']:,.0f}",
        "fingerprint of the data": config["data"][:16],
    }
    html = webpage.facts(about) + webpage.heading(3, "Recipe")
    return html + webpage.facts(recipe_facts(recipe.as_dict()))


def _confusion_of_run(summary, recipe, predictions):
    predicted = ensemble.vote(predictions.probabilities)
    right = float(np.mean(predicted == predictions.labels))
    html = ""
    told = summary["ensemble_test_accuracy"]
    if told is not None and abs(right - told) > 1e-9:
        html = webpage.paragraph(
            f"Predicted again, on {predictions.device}, the ensemble has a test accuracy of "
            f"{percent(right)}; in the run it was {percent(told)}.",
            "note",
        )
    counts = count_pairs(predictions.labels, predicted, len(recipe.classes))
    caption = f"Predictions of the {len(predicted):,} test images by the ensemble."
    return html + confusion(caption, counts, recipe.classes)


def _figures(folder):
    """The figures in the run folder, as HTML; "" without any."""
    found = {}
    for name, caption in _CAPTIONS.items():
        path = folder / f"{name}.png"
        if not path.is_file():
            continue
        with open(path, "rb") as file:
            content = file.read(_MOST_PICTURE + 1)
        if not content.startswith(webpage.PNG) or len(content) > _MOST_PICTURE:
            warnings.warn(f"{path}: not a PNG of a run; left out", stacklevel=2)
            continue
        found[caption] = content
    return webpage.panels(found) if found else ""
