"""python -m minicnn.report DIR: reads a run or study folder, writes one HTML page about it.

This module reads the arguments and joins the sections of the page. reports/run.py and
reports/study.py write the sections. The folder may come from anywhere: reports/files.py validates
the files of a run, and reports/webpage.py escapes all text.
"""

import sys
from pathlib import Path

from . import __version__, devices, drawing
from .command import (
    DEVICE_HELP,
    EXIT_STATUS,
    Parser,
    check_out_file,
    run_short,
)
from .draw import write_page
from .files import DataError, atomic_write
from .reports import run as run_page
from .reports import study as study_page
from .reports import webpage
from .studies.store import FILE
from .training.ensemble import FINAL
from .training.run_folder import CONFIG
from .training.workers import Interrupted

_DRAW = "draw.html"  # what --draw writes


def main(argv=None):
    """Run the command; returns its exit status."""
    return run_short(_parser(), report, argv)


def report(arguments, should_stop=lambda: False):
    """Write the page, as the parsed arguments say."""
    folder = arguments.folder
    out = arguments.out or folder / "report.html"
    if not drawing.available():
        raise ValueError('a report needs matplotlib: pip install "minicnn[figures]"')
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder, expected the folder of a run or study")
    check_out_file(out)
    if arguments.draw and not (folder / CONFIG).exists():
        raise ValueError(f"argument --draw: {folder} holds no run, expected one to draw for")
    if arguments.draw and out.name == _DRAW:
        raise ValueError(f"argument --out: got {out}, expected another name, as --draw writes it")
    if arguments.draw:  # first: the rest takes longer, and a fault here would lose it
        page = out.with_name(_DRAW)
        check_out_file(page)
        write_page(folder / FINAL, page, should_stop=should_stop)
    kinds, parts = [], []
    if (folder / CONFIG).exists():
        kinds.append("Run")
        parts += run_page.parts(arguments, should_stop)
        if arguments.draw:
            parts.append(("Draw", webpage.link(page.name, "A page to draw on"), False))
    if (folder / FILE).exists():
        kinds.append("Studies")
        parts += study_page.parts(arguments, should_stop)
    if not kinds:
        raise DataError(
            f"{folder}: has neither {CONFIG} nor {FILE}, expected the folder of a run of "
            "minicnn.train or of a study of minicnn.study"
        )
    title = f"{' and '.join(kinds)}: {folder.resolve().name}"
    page = webpage.document(title, _body(title, parts))
    if should_stop():
        raise Interrupted
    with atomic_write(out) as file:
        file.write(page.encode())
    print(f"Report: {out}")


def _body(title, parts):
    """The page's HTML. parts: a list of (title, HTML, whether to start it on a new sheet)."""
    places = {f"part-{number}": part[0] for number, part in enumerate(parts, start=1)}
    sections = [
        webpage.section(webpage.heading(2, heading, place) + html, "sheet" if sheet else "")
        for place, (heading, html, sheet) in zip(places, parts, strict=True)
    ]
    footer = webpage.footer(f"Written by minicnn {__version__}, report.")
    header = f"<header>{webpage.heading(1, title)}\n{webpage.contents(places)}</header>"
    return "\n".join([header, "<main>", *sections, "</main>", footer])


# ---- arguments -----------------------------------------------------------------------------------


def _parser():
    parser = Parser(
        prog="minicnn.report",
        usage="python -m minicnn.report DIR [--out FILE] [options]",
        description="Write a report about a run or about studies: one HTML file with all pictures, "
        "for the browser or the printer.",
        epilog=EXIT_STATUS,
        allow_abbrev=False,
    )
    parser.add_argument(
        "folder",
        type=Path,
        metavar="DIR",
        help="a run folder of minicnn.train, or a study folder of minicnn.study",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the file to write (default: report.html in DIR)"
    )
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="where the test images are now, as for minicnn.predict (default: where they were for "
        "the run)",
    )
    parser.add_argument(
        "--draw",
        action="store_true",
        help="of a run, also write draw.html beside the page, with its nets to draw for, and link "
        "to it; see minicnn.draw",
    )
    parser.add_argument("--device", choices=devices.NAMES, default="auto", help=DEVICE_HELP)
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    return parser


if __name__ == "__main__":
    sys.exit(main())
