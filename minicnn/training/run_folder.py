"""The run folder: check that it belongs to this run, and write its files.

A run writes config.json first: what is trained, and with which versions. The checkpoints follow
(ensemble.py), then the history, the submission, the figures and summary.json. Every file is written
atomically.
"""

import json
import platform
import sys
import warnings

import numpy as np

from .. import __version__, drawing
from ..data.submission import write_submission
from ..files import DataError, atomic_write, brief, remove_unfinished
from ..recipe import completed
from . import ensemble, figures
from .checkpoint import HISTORY_COLUMNS
from .json_files import read_json

CONFIG, HISTORY = "config.json", "history.csv"
SUBMISSION, SUMMARY = "submission.csv", "summary.json"
_OUTPUTS = HISTORY, SUBMISSION, SUMMARY, "checkpoint*.npz"


def claim(job, source, resume):
    """Write config.json into a job's folder, or check that the folder holds this very run.

    source: the Source of the data. resume: whether the folder may hold a run already. Raises
    ValueError or DataError if the folder holds anything else, and OSError.
    """
    folder, data = job.folder, job.data
    config = {
        "recipe": job.recipe.as_dict(),
        "data": data.fingerprint,
        "source": source.for_other_processes().name,
        "limit": source.limit,
        "test_limit": source.test_limit,
        "shape": source.shape,
        "train_images": len(data.train_images),
        "test_images": None if data.test_images is None else len(data.test_images),
        "test_data": source.test or None,
        "device": job.device,
        "precision": job.precision,
        "versions": {
            "minicnn": __version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }
    if (folder / CONFIG).exists():
        if not resume:
            raise ValueError(f"{folder}: holds a run; continue it with --resume, or choose another")
        _check_config(folder / CONFIG, config)
    elif taken := [path.name for name in _OUTPUTS for path in folder.glob(name)]:
        raise ValueError(f"{folder}: holds {taken[0]} without {CONFIG}; choose another folder")
    elif resume:
        warnings.warn(f"{folder} holds no run to resume; a new one starts", stacklevel=2)
    remove_unfinished(folder)
    remove_unfinished(folder / "figures")
    _write_json(folder / CONFIG, config)


def _check_config(path, config):
    """Raise unless the config of the run to resume agrees in everything that affects results.

    Other versions or another device change only rounding: for them it warns.
    """
    try:
        old = read_json(path, {"recipe": dict, "data": str, "device": str, "versions": dict})
        old_environment = _environment(old)
    except (DataError, KeyError):
        raise DataError(
            f"{path}: not the config of a run, expected what minicnn.train writes"
        ) from None
    if old["data"] != config["data"]:
        raise ValueError(
            f"argument --resume: the run in {path.parent} was trained on other data: "
            f"{brief(old.get('source'))}, {brief(old.get('train_images'))} images"
        )
    recipe, old_recipe = config["recipe"], completed(old["recipe"])
    for name in old_recipe | recipe:
        if old_recipe.get(name) != recipe.get(name):
            raise ValueError(
                f"argument --resume: the run in {path.parent} has {name} "
                f"{brief(old_recipe.get(name))}, got {brief(recipe.get(name))}"
            )
    if old.get("test_data") != config["test_data"]:
        raise ValueError(
            f"argument --resume: the run in {path.parent} has other test images: "
            f"{brief(old.get('test_images'))}, got {config['test_images']}"
        )
    if old_environment != _environment(config):
        warnings.warn(
            f"the run in {path.parent} started with {old_environment} and continues with "
            f"{_environment(config)}: rounding may differ from a run with only one of them",
            stacklevel=2,
        )


def _environment(config):
    """What affects only the rounding of a run's results, as text: device, precision, versions."""
    versions = config["versions"]
    return brief(
        f"{config['device']} in {config['precision']}, minicnn {versions['minicnn']}, "
        f"numpy {versions['numpy']}"
    )


def write_outputs(job, trained, draw=True):
    """Write a run's results: history, submission and, with `draw`, figures. Raises OSError."""
    folder, data = job.folder, job.data
    with atomic_write(folder / HISTORY) as file:
        lines = [",".join(HISTORY_COLUMNS)]
        for row in trained.history:
            values = (row[column] for column in HISTORY_COLUMNS)
            lines.append(",".join("" if v is None else f"{v:.10g}" for v in values))
        file.write(("\n".join(lines) + "\n").encode())
    predicted = None
    if trained.probabilities is not None:
        predicted = ensemble.vote(trained.probabilities)
        write_submission(folder / SUBMISSION, predicted, job.recipe.classes, data.test_ids)
    if not draw:
        return
    if not drawing.available():
        print(
            'no figures, because matplotlib is missing: pip install "minicnn[figures]"',
            file=sys.stderr,
        )
        return
    figures.write_all(
        folder / "figures",
        data.train_images,
        data.train_labels,
        job.recipe.augment,
        trained.history,
        data.test_images,
        predicted,
        data.test_labels,
        job.recipe.classes,
    )


def write_summary(job, trained, images, seconds):
    """Write summary.json and return its content: speed, and accuracies where labels are known.

    images: how many images this process trained on. seconds: its time. Raises OSError.
    """
    truth, probabilities = job.data.test_labels, trained.probabilities
    known = probabilities is not None and truth is not None
    nets = []
    for i, net in enumerate(net for net in job.recipe.all_nets if net not in trained.diverged):
        rows = [row for row in trained.history if row["net"] == net]
        right = probabilities[i].argmax(axis=1) == truth if known else None
        nets.append(
            {
                "net": net,
                "best_train_accuracy": best(rows, "train_accuracy"),
                "best_validation_accuracy": best(rows, "validation_accuracy"),
                "test_accuracy": float(right.mean()) if known else None,
            }
        )
    right = ensemble.vote(probabilities) == truth if known else None
    summary = {
        "device": job.device,
        "images_per_second": images / seconds,
        "seconds": seconds,
        "nets": nets,
        "ensemble_test_accuracy": float(right.mean()) if known else None,
    }
    summary |= job.recipe.about_data
    if trained.diverged:
        summary["diverged"] = [
            {"net": net, "epoch": epoch, "step": step}
            for net, (epoch, step) in trained.diverged.items()
        ]
    _write_json(job.folder / SUMMARY, summary)
    return summary


def best(rows, column):
    """The highest value of a column of a history; None if the column has no value."""
    return max((row[column] for row in rows if row[column] is not None), default=None)


def _write_json(path, value):
    with atomic_write(path) as file:
        file.write((json.dumps(value, indent=2) + "\n").encode())
