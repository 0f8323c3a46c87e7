"""python -m minicnn.study NAME: one of the notebook's studies, on this machine or on many.

The front door of studies/. It reads the arguments, says what the study will cost, has the tasks
done that are not yet, keeps each result as it comes, and writes what was found.
"""

import contextlib
import os
import shlex
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from . import __version__, checks, devices, drawing
from .command import (
    REFUSALS,
    Parser,
    StopOnSignal,
    images_bar,
    integer,
    number,
    one_line,
    positive,
    run,
    warnings_in_one_line,
)
from .files import DataError, atomic_write, in_use
from .machine import cores
from .recipe import Recipe
from .reports import webpage
from .studies import STUDIES, executors, findings, hardest, variance
from .studies.store import FILE, Store
from .studies.tasks import Source
from .studies.work import Work, in_words
from .training.resources import share
from .training.workers import Interrupted

_MOST_NETS = 1_000_000  # of a study; the notebook's largest has 1,500


def main(argv=None):
    """Run the command; returns its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    return run("minicnn.study", lambda: _main(argv))


def _main(argv):
    arguments = _parser().parse_args(argv)
    folder = Path(arguments.out or Path("studies") / datetime.now().strftime("%Y%m%d-%H%M%S"))
    stop = StopOnSignal("stopping after the step in hand; once more stops at once")
    try:
        with stop, warnings_in_one_line("minicnn.study"):
            study(arguments, folder, stop)
    except (Interrupted, KeyboardInterrupt):
        again = list(argv) if arguments.out else [*argv, "--out", str(folder)]
        print(
            "stopped; the nets of the tasks that had ended are kept; go on with: python -m "
            f"minicnn.study {shlex.join(again)}",
            file=sys.stderr,
        )
        return stop.status
    except REFUSALS as error:
        print(f"minicnn.study: error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


def study(arguments, folder, should_stop=lambda: False):
    """Do what the parsed arguments say: train what is missing, and write what was found."""
    module = STUDIES[arguments.study]
    _fill_in(arguments, module)
    seed = checks.word("argument --seed", arguments.seed)
    if module is not variance and arguments.dask is not None and arguments.workers is not None:
        raise ValueError("argument --workers: is for this machine's processes, not for --dask")
    name = arguments.data
    if name not in ("digits", "mnist"):
        name = str(Path(name).absolute())  # workers have folders of their own to be in
    source = Source(name, arguments.limit, arguments.test_limit)
    data, source = source.load(progress=not arguments.quiet)
    settings = {
        "source": source.name,
        "train_images": len(data.train_images),
        "test_images": None if data.test_images is None else len(data.test_images),
        "data": source.train,
        "test_data": source.test,
    }
    if getattr(arguments, "distorted", False):
        settings["distorted"] = True
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"argument --out: {folder} is a file, expected a folder")
    cells = [] if module is variance else _cells(arguments, module, data)
    with contextlib.ExitStack() as stack:
        client = None
        if module is not variance and arguments.dask is not None:
            client = stack.enter_context(executors.connect(arguments.dask))
        elif module is not variance:
            devices.choose(arguments.device, arguments.precision)  # it is there
        own = folder / (module.NAME if seed == 0 else f"{module.NAME}-seed-{seed}")
        own.mkdir(parents=True, exist_ok=True)
        stack.enter_context(in_use(own, alone=True))
        store = stack.enter_context(Store(folder / FILE))
        store.claim(module.NAME, seed, settings, data.test_labels, cells)
        if module is variance:
            measures = variance.measure(data.train_images, data.train_labels)
            store.add_images(module.NAME, seed, measures)
        else:
            _train(arguments, client, store, cells, data, source, should_stop)
        found = _write(arguments, module, store.results(module.NAME, seed), data, own)
    for line in found.lines:
        print(line)
    print(f"Study folder: {folder}{os.sep}; a page of it: python -m minicnn.report {folder}")


def _write(arguments, module, results, data, folder):
    """Write what a study has found into its own folder: the Findings."""
    images = (data.test_images,) if module is hardest else ()
    found = module.findings(results, *images)
    draw = not arguments.no_figures
    if draw and not drawing.available():
        print("no figures without matplotlib: pip install matplotlib", file=sys.stderr)
        draw = False
    findings.write(found, folder, draw)
    if images and "hardest" in found.tables:
        page = webpage.quiz_page(*images, found.tables["hardest"].data)
        with atomic_write(folder / "quiz.html") as file:
            file.write(page.encode())
    return found


def _fill_in(arguments, module):
    """Give what was not said the value that it has in the notebook's study, or the quick one."""
    size = module.QUICK if arguments.quick else module.FULL
    for name, value in size.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    if arguments.data is None:
        arguments.data = "digits" if arguments.quick else "mnist"


def _cells(arguments, module, data):
    """What the study trains. Raises ValueError that names the argument for what cannot be."""
    given = {
        name: getattr(arguments, name)
        for name in ("nets", "epochs", "momentum", "seed")
        if getattr(arguments, name) is not None
    }
    try:
        # The split is that of the data: nothing is chosen by the test images, nor by others.
        cells = module.cells(Recipe(validation_fraction=0.0, **given), arguments)
    except ValueError as error:
        raise ValueError(f"argument --{error}") from None
    nets = sum(cell.recipe.nets * cell.trials for cell in cells)
    if nets > _MOST_NETS:
        raise ValueError(
            f"argument --trials: {arguments.trials:,} trials are {nets:,} nets, expected at most "
            f"{_MOST_NETS:,}"
        )
    batch = cells[0].recipe.batch_size
    if len(data.train_images) < batch:
        raise DataError(
            f"{arguments.data}: got {len(data.train_images)} training images, expected at least "
            f"one batch of {batch}"
        )
    if data.test_images is None:
        raise DataError(f"{arguments.data}: has no test images, expected some to be predicted")
    if data.test_labels is None and module is not hardest:
        raise DataError(f"{arguments.data}: has no labels of its test images, expected them")
    return cells


# ---- training ------------------------------------------------------------------------------------


def _train(arguments, client, store, cells, data, source, should_stop):
    """Train the nets that the store has not, and put them there.

    client: of a cluster, None for this machine.
    """
    key = arguments.study, arguments.seed
    work = Work(
        cells,
        store.trained(*key),
        source=source,
        device=arguments.device,
        precision=arguments.precision,
        memory=arguments.memory,
        distorted=getattr(arguments, "distorted", False),
    )
    cost = f"{arguments.study}: {work.nets:,} nets to train, on {work.images:,} images"
    if work.trained_nets:
        cost += f"; {work.trained_nets:,} are trained already"
    print(cost, file=sys.stderr, flush=True)
    if not work.nets:
        return
    before = work.total_images - work.images
    with images_bar(work.total_images, arguments.quiet, before) as bar:

        def report(images):
            bar.update(max(min(before + images, bar.total) - bar.n, 0))

        def keep(cell, nets):
            store.add(*key, cell, nets, data.test_labels)

        def tell(message):
            bar.write(message, file=sys.stderr)

        with _place(arguments, client, cells, data, tell) as place:
            seconds, groups = work.measure(place, len(data.test_images), should_stop)
            tell(f"this takes {in_words(seconds, place)}")
            work.do(place, groups, arguments.group, keep, report, should_stop)


def _place(arguments, client, cells, data, tell):
    """Where the tasks are done, an executors.Place, as a context."""
    if client is not None:
        return executors.cluster(client, arguments.dask, tell)
    _, ops, _ = devices.choose(arguments.device, arguments.precision)
    nets = min(sum(cell.recipe.nets * cell.trials for cell in cells), arguments.workers or cores())
    recipe = replace(cells[-1].recipe, nets=nets)
    _, count = share(recipe, data, ops, arguments.memory, arguments.workers)
    message = "minicnn.study: warning: a worker process died; another does its task once more"
    return executors.local(count, lambda: tell(message))


# ---- arguments -----------------------------------------------------------------------------------


def _parser():
    parser = Parser(
        prog="minicnn.study",
        usage="python -m minicnn.study NAME [--quick] [--data DIR] [--out DIR] [options]",
        description="Do one of the studies of the notebook: train many nets, and write tables and "
        "figures. Without options it is the notebook's size, on MNIST: days on a CPU. --quick "
        "takes the embedded digits and is done in two minutes.",
        epilog="python -m minicnn.study NAME --help tells of a study's options. Results go into "
        "results.sqlite in the study folder as they come: the same command goes on with a study "
        "that was stopped, and several studies may share a folder. Exit status: 0; 2 for bad "
        "arguments or input, or where the machine fails; 130 after Ctrl-C, 143 after SIGTERM.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"minicnn {__version__}")
    studies = parser.add_subparsers(
        dest="study", metavar="NAME", required=True, parser_class=Parser
    )
    for name, module in STUDIES.items():
        _add_study(studies, name, module)
    return parser


def _add_study(studies, name, module):
    trains = module is not variance
    parser = studies.add_parser(
        name,
        help=module.HELP,
        usage=f"python -m minicnn.study {name} [--quick] [--data DIR] [--out DIR] [options]",
        description=f"{module.HELP[0].upper()}{module.HELP[1:]}.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--quick", action="store_true", help="a small size: two minutes at most on two cores"
    )
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="as for minicnn.train: a folder, 'mnist' or 'digits' (default: mnist; --quick: "
        "digits)",
    )
    parser.add_argument("--out", metavar="DIR", help="study folder (default: studies/DATE-TIME)")
    limit = module.QUICK.get("limit", "all")
    parser.add_argument(
        "--limit",
        type=positive,
        metavar="N",
        help=f"the first N training images (default: all; --quick: {limit})",
    )
    if not trains:
        parser.set_defaults(test_limit=None, seed=0)
    else:
        parser.add_argument(
            "--test-limit",
            type=positive,
            metavar="N",
            help="the first N test images (default: all; --quick: "
            f"{module.QUICK.get('test_limit', 'all')})",
        )
        _add_size(parser.add_argument_group("size"), module)
        _add_machine(parser.add_argument_group("machine"))
    parser.add_argument("--no-figures", action="store_true", help="draw no figures")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_size(group, module):
    def default(name):
        values = [
            size.get(name, getattr(Recipe, name, None)) for size in (module.FULL, module.QUICK)
        ]
        return f"(default: {values[0]}; --quick: {values[1]})"

    group.add_argument(
        "--trials", type=positive, metavar="N", help=f"of each cell {default('trials')}"
    )
    group.add_argument(
        "--nets", type=positive, metavar="N", help=f"in an ensemble {default('nets')}"
    )
    group.add_argument(
        "--epochs", type=positive, metavar="N", help=f"of each net {default('epochs')}"
    )
    group.add_argument(
        "--momentum",
        type=number,
        metavar="X",
        help="of the moving statistics; 0.9 for nets that are trained for less than some 500 steps "
        f"{default('momentum')}",
    )
    group.add_argument(
        "--seed", type=integer, default=0, metavar="N", help="of all random numbers (0)"
    )
    if hasattr(module, "add_arguments"):
        module.add_arguments(group)


def _add_machine(group):
    group.add_argument("--device", choices=devices.NAMES, default="auto", help="default: auto")
    group.add_argument(
        "--precision", choices=devices.PRECISIONS, help="of products, as for minicnn.train"
    )
    group.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="processes of this machine; they change the time, not a bit of the result (default: "
        "as many as there are cores and memory for; 1 on a GPU)",
    )
    group.add_argument(
        "--group",
        type=positive,
        metavar="N",
        help="nets that a GPU trains together, at most (default: as many as memory allows)",
    )
    group.add_argument(
        "--memory", type=positive, metavar="BYTES", help="how much to use, as for minicnn.train"
    )
    group.add_argument(
        "--dask",
        metavar="ADDRESS",
        help="do the work on a Dask cluster, by the address of its scheduler: tcp://HOST:8786",
    )


if __name__ == "__main__":
    sys.exit(main())
