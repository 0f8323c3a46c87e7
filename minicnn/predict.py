"""python -m minicnn.predict: a trained ensemble's checkpoint and images in, a submission out."""

import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import checkpoint, devices, ensemble, training
from .command import (
    REFUSALS,
    Parser,
    StopOnSignal,
    images_bar,
    one_line,
    positive,
    run,
    warnings_in_one_line,
)
from .data import load_test, write_submission
from .files import DataError, brief
from .machine import cores
from .recipe import Recipe
from .resources import arrays_bytes, group_size
from .workers import Interrupted, run_jobs


def main(argv=None):
    """Run the command; returns its exit status."""
    return run("minicnn.predict", lambda: _main(argv))


def _main(argv):
    arguments = _parser().parse_args(argv)
    stop = StopOnSignal("stopping")
    try:
        with stop, warnings_in_one_line("minicnn.predict"):
            predict(arguments, stop)
    except (Interrupted, KeyboardInterrupt):
        return stop.status
    except REFUSALS as error:
        print(f"minicnn.predict: error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


def predict(arguments, should_stop=lambda: False):
    """Predict as the parsed arguments say, and write the submission."""
    device, ops, _ = devices.choose(arguments.device)
    if not arguments.out.resolve().parent.is_dir():  # known before the work, not after it
        raise ValueError(
            f"argument --out: got {arguments.out}, expected a file in a folder that is there"
        )
    if arguments.out.exists() and not arguments.out.is_file():
        raise ValueError(f"argument --out: {arguments.out} is no file, expected one or none")
    trained = load(arguments.checkpoint)
    images, truth = load_test(arguments.data, progress=not arguments.quiet)
    probabilities = probabilities_of(
        trained, images, device, ops, arguments.workers, arguments.quiet, should_stop
    )
    labels = ensemble.vote(probabilities)
    write_submission(arguments.out, labels)
    if truth is not None:
        print(f"Ensemble of {len(probabilities)}: Test accuracy={np.mean(labels == truth):.5f}")
    print(f"{len(labels):,} predictions: {arguments.out}")


@dataclass(frozen=True)
class Checkpoint:
    """A trained ensemble as a file has it: what checkpoint.load gives, and its Recipe."""

    path: Path
    recipe: Recipe
    arrays: dict
    about: dict

    @property
    def nets(self):
        """The numbers of the nets that have a vote: those that did not diverge."""
        diverged = {row["net"] for row in self.about["diverged"]}
        return [net + 1 for net in self.about["nets"] if net + 1 not in diverged]


def load(path):
    """The Checkpoint in a file. Raises DataError for one that is none, or without a net to use."""
    arrays, about = checkpoint.load(path)
    try:
        recipe = Recipe(**about["recipe"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not a trained ensemble: {brief(error, 200)}") from None
    checkpoint.check_shapes(path, arrays, recipe.nodes)
    trained = Checkpoint(path, recipe, arrays, about)
    if not trained.nets:
        raise DataError(f"{path}: every net of it diverged, expected one to use")
    return trained


def probabilities_of(trained, images, device, ops, workers, quiet, should_stop):
    """What a Checkpoint's nets say of images (N, H, W): (nets, N, classes), with a progress bar.

    Nets that predict no finite numbers are left out, with a warning. Raises DataError where none is
    left, and Interrupted.
    """
    nets, path = trained.nets, trained.path
    groups, workers = _share(trained.recipe, ops, nets, images, workers)
    shared = trained.recipe, device, path, trained.arrays, trained.about, images
    with images_bar(len(nets) * len(images), quiet) as bar:
        results = run_jobs(
            predict_group,
            shared,
            groups,
            workers,
            bar.update,
            lambda probabilities: None,
            should_stop,
        )
    probabilities = np.concatenate(results)
    finite = np.isfinite(probabilities).all(axis=(1, 2))
    for net in np.array(nets)[~finite]:
        warnings.warn(f"net {net} predicts no finite numbers, and has no vote", stacklevel=2)
    if not finite.any():
        raise DataError(f"{path}: no net of it predicts finite numbers")
    return probabilities[finite]


def _share(recipe, ops, nets, images, workers):
    """(groups of nets that predict together, processes) for a device."""
    size = 1
    if ops.lockstep:
        size = group_size(
            len(nets),
            ops.free_memory(),
            lambda count: arrays_bytes(recipe, ops, count, test_images=images),
        )
        workers = 1
    groups = ensemble.cut(nets, size)
    return groups, min(workers or cores(), len(groups))


def predict_group(shared, nets, report, should_stop):
    """The probabilities (E, N, classes) of the images by some nets of the checkpoint."""
    recipe, device, path, arrays, about, images = shared
    model = recipe.model(nets, device)
    chosen = checkpoint.select(arrays, about, model.nets, path)
    checkpoint.restore_model(model, *chosen, path)
    everything = np.broadcast_to(np.arange(len(images)), (len(nets), len(images)))
    return training.predict(model, model.ops.to_device(images), everything, report, should_stop)


def _parser():
    parser = Parser(
        prog="minicnn.predict",
        usage="python -m minicnn.predict --checkpoint FILE --data DIR [--out FILE] [options]",
        description="Predict digits with a trained ensemble, and write a submission.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=Path,
        metavar="FILE",
        help="checkpoint.npz of a run of minicnn.train",
    )
    parser.add_argument(
        "--data",
        required=True,
        metavar="DIR",
        help="a folder with Kaggle's test.csv or MNIST's two t10k files; or 'mnist' or 'digits', "
        "for their test images",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("submission.csv"),
        metavar="FILE",
        help="the submission (default: submission.csv)",
    )
    parser.add_argument("--device", choices=devices.NAMES, default="auto", help="default: auto")
    parser.add_argument(
        "--workers", type=positive, metavar="N", help="processes (default: one a core)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


if __name__ == "__main__":
    sys.exit(main())
