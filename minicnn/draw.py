"""python -m minicnn.draw: reads a checkpoint, writes a web page to draw on, with its nets in it.

This module reads the arguments. drawpage/ writes the page.
"""

import sys
from pathlib import Path

from .command import CHECKPOINT_HELP, EXIT_STATUS, Parser, check_out_file, positive, run_short
from .drawpage import document
from .files import DataError, atomic_write
from .model import load_model
from .training.workers import Interrupted


def main(argv=None):
    """Run the command; returns its exit status."""
    return run_short(_parser(), draw, argv)


def draw(arguments, should_stop=lambda: False):
    """Write the page, as the parsed arguments say."""
    check_out_file(arguments.out)
    count, size = write_page(arguments.checkpoint, arguments.out, arguments.nets, should_stop)
    print(f"{count:,} net{'s' * (count > 1)}, {size / 1e6:,.1f} MB: {arguments.out}")


def write_page(checkpoint, out, count=None, should_stop=lambda: False):
    """Write the page with the first `count` nets (default: all) of a checkpoint to `out`.

    Returns (the number of nets, bytes). Raises DataError for a checkpoint whose nets it cannot
    hold, ValueError for one of fewer nets, OSError, and Interrupted.
    """
    model = load_model(checkpoint, device="numpy")  # it only holds the weights
    nets = len(model.nets)
    if count is not None and count > nets:
        raise ValueError(
            f"argument --nets: got {count}, expected at most {nets}, the nets in {checkpoint}"
        )
    try:
        page = document(model, count).encode()
    except ValueError as error:
        raise DataError(f"{checkpoint}: {error}") from None
    if should_stop():
        raise Interrupted
    with atomic_write(out) as file:
        file.write(page)
    return count or nets, len(page)


def _parser():
    parser = Parser(
        prog="minicnn.draw",
        usage="python -m minicnn.draw --checkpoint FILE [--out FILE] [--nets N]",
        description="Write a web page on which to draw digits: one HTML file with a trained "
        "ensemble in it. While you draw, it shows the image that the nets see, their probabilities "
        "and votes, and the output of each layer. The browser runs the nets, once for each "
        "drawing, whatever --views was in the training. The page loads and sends nothing. It is "
        "for nets that were trained on 28x28 images in grey.",
        epilog=EXIT_STATUS,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--checkpoint", required=True, type=Path, metavar="FILE", help=CHECKPOINT_HELP
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("draw.html"),
        metavar="FILE",
        help="the file to write (default: draw.html)",
    )
    parser.add_argument(
        "--nets",
        type=positive,
        metavar="N",
        help="take the first N nets only: the page is smaller, and answers sooner (default: all)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
