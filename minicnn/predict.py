"""python -m minicnn.predict: reads a checkpoint and test images, writes a submission.

This module reads the arguments. training/prediction.py loads the checkpoint and predicts.
predict_images.py does so for photos of handwritten digits.
"""

import sys
from pathlib import Path

import numpy as np

from . import checks, devices, machine, predict_images
from .augment import MOST_VIEWS
from .command import (
    CHECKPOINT_HELP,
    DATA_HELP,
    DEVICE_HELP,
    EXIT_STATUS,
    THREADS_HELP,
    Parser,
    check_out_file,
    images_bar,
    integer,
    positive,
    run_short,
)
from .data.submission import write_submission
from .training import ensemble, prediction


def main(argv=None):
    """Run the command; returns its exit status."""
    return run_short(_parser(), predict, argv)


def predict(arguments, should_stop=lambda: False):
    """Predict the test images, and write the submission, as the parsed arguments say."""
    if arguments.views is not None:
        checks.integer("argument --views", arguments.views, 1, MOST_VIEWS)
    machine.use_threads(arguments.threads)
    device, ops, _ = devices.choose_openly(arguments.device)
    if arguments.images is not None:
        predict_images.predict_images(arguments, device, ops, should_stop)
        return
    out = arguments.out or Path("submission.csv")
    check_out_file(out)
    trained = prediction.load_classifier(arguments.checkpoint)
    data = prediction.test_set(trained, arguments.data, progress=not arguments.quiet)
    images, truth = data.x_test, data.y_test
    if arguments.data != "digits":  # the embedded digits need no explanation
        print(f"Data: {data.description}", file=sys.stderr)
    views = arguments.views or trained.views
    with images_bar(len(trained.nets) * views * len(images), arguments.quiet) as bar:
        probabilities = prediction.probabilities_of(
            trained, images, views, device, ops, arguments.workers, bar.update, should_stop
        )
    labels = ensemble.vote(probabilities)
    write_submission(out, labels, trained.architecture.classes, data.test_ids)
    if truth is not None:
        print(f"Ensemble of {len(probabilities)}: Test accuracy={np.mean(labels == truth):.5f}")
    print(f"{len(labels):,} predictions: {out}")


def _parser():
    parser = Parser(
        prog="minicnn.predict",
        usage="python -m minicnn.predict --checkpoint FILE (--data DIR | --images FILE ...) "
        "[--out FILE] [options]",
        description="Predict the classes of images with a trained ensemble. With --data, write a "
        "Kaggle submission and, where the labels are known, print the accuracy. With --images, "
        "find the handwritten digits on photos or drawings, prepare them as MNIST's are, print "
        "what the nets make of each, and draw it. " + predict_images.UNSURE,
        epilog=f"{EXIT_STATUS}\n\n{DATA_HELP}",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--checkpoint", required=True, type=Path, metavar="FILE", help=CHECKPOINT_HELP
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--data",
        metavar="DIR",
        help="where the test images are, in a form listed below; training files are not needed",
    )
    source.add_argument(
        "--images",
        nargs="+",
        metavar="FILE",
        help="photos or drawings of handwritten digits: PNG or JPEG files of any size, or folders "
        "of them; needs Pillow",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the submission to write (default: submission.csv), or with --images the figure "
        f"(default: {predict_images.OUT})",
    )
    parser.add_argument(
        "--views",
        type=integer,
        metavar="N",
        help="predict each image as the mean over N views of it, at most 27: itself, and copies "
        "shifted by 1/28 of a side or rotated by 5 degrees, or both (default: as in the training)",
    )
    parser.add_argument("--device", choices=devices.NAMES, default="auto", help=DEVICE_HELP)
    parser.add_argument(
        "--workers", type=positive, metavar="N", help="number of processes (default: one per core)"
    )
    parser.add_argument("--threads", type=positive, metavar="N", help=THREADS_HELP)
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    return parser


if __name__ == "__main__":
    sys.exit(main())
