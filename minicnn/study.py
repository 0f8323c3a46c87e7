"""python -m minicnn.study NAME: a study, most of them the notebook's, here or on a cluster.

A study trains many nets, stores each result in the study folder as soon as it is known, and writes
tables and figures. (The study `variance` measures images and trains nothing.) This module reads the
arguments, prints the estimated time and starts the tasks whose results are not stored yet. The work
is done in studies/: read studies/__init__.py next.
"""

import contextlib
import os
import shlex
import sys
from dataclasses import replace
from statistics import fmean

from . import __version__, checks, devices, drawing
from .command import (
    DASK_HELP,
    DEVICE_HELP,
    EXIT_STATUS,
    REFUSALS,
    THREADS_HELP,
    Parser,
    image_shape,
    images_bar,
    integer,
    number,
    one_line,
    out_folder,
    positive,
    run,
    set_threads,
)
from .files import DataError, atomic_write, in_use
from .recipe import RECIPES, Recipe
from .reports import webpage
from .studies import STUDIES, executors, findings, hardest, recipes, variance
from .studies.store import FILE, Store
from .studies.work import Work, in_words
from .training import cluster, learnable
from .training.dataset import Source
from .training.guard import expect_guard
from .training.interruption import StopOnSignal
from .training.resources import processes, share
from .training.workers import Interrupted

_MOST_NETS = 1_000_000  # in one study; the notebook's largest study has 1,500


def main(argv=None):
    """Run the command; returns its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    return run("minicnn.study", lambda: _main(argv))


def _main(argv):
    arguments = _parser().parse_args(argv)
    arguments.folder = arguments.out
    stop = StopOnSignal("stopping after this step; press Ctrl-C again to stop at once")
    try:
        with stop:
            study(arguments, arguments.out, stop)
    except (Interrupted, KeyboardInterrupt):
        again = list(argv)
        if arguments.folder and not arguments.out:
            again += ["--out", str(arguments.folder)]
        print(
            "stopped; the results of finished tasks are saved; continue with: python -m "
            f"minicnn.study {shlex.join(again)}",
            file=sys.stderr,
        )
        return stop.status
    except REFUSALS as error:
        print(f"minicnn.study: error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


def study(arguments, out=None, should_stop=lambda: False):
    """Train the nets that are missing, and write the findings, as the parsed arguments say.

    out: the study folder (default: a new one in studies/); it becomes `arguments.folder`.
    """
    module = STUDIES[arguments.study]
    _fill_in(arguments, module)
    seed = checks.word("argument --seed", arguments.seed)
    if module is not variance:
        set_threads(arguments)
    held_out = getattr(arguments, "hold_out", 0)
    limits = arguments.limit, arguments.test_limit, arguments.shape
    source = Source(arguments.data, *limits, held_out=held_out)
    data, source = source.for_other_processes().load(progress=not arguments.quiet)
    settings = {
        "source": source.name,
        "train_images": len(data.train_images),
        "test_images": None if data.test_images is None else len(data.test_images),
        "data": source.train,
        "test_data": source.test,
    }
    if getattr(arguments, "distorted", False):
        settings["distorted"] = True
    if held_out:
        settings["held_out"] = held_out
    settings |= Recipe(input_shape=data.input_shape, classes=data.classes).about_data
    cells = [] if module is variance else _cells(arguments, module, data)
    with contextlib.ExitStack() as stack:
        client = None
        if module is not variance and arguments.dask is not None:
            client = stack.enter_context(cluster.connect(arguments.dask))
        elif module is not variance:
            # raises if it is not available
            devices.choose_openly(arguments.device, arguments.precision)
            expect_guard()
        folder = arguments.folder = stack.enter_context(out_folder(out, "studies"))
        own = folder / (module.NAME if seed == 0 else f"{module.NAME}-seed-{seed}")
        own.mkdir(parents=True, exist_ok=True)
        stack.enter_context(in_use(own, alone=True))
        store = stack.enter_context(Store(folder / FILE))
        varied = getattr(module, "VARIED", ())
        store.claim(module.NAME, seed, settings, data.test_labels, cells, varied)
        if source.name != "digits":  # the embedded digits need no explanation
            print(f"Data: {data.description}", file=sys.stderr, flush=True)
        if module is variance:
            measures = variance.measure(data.train_images, data.train_labels)
            store.add_images(module.NAME, seed, measures)
        else:
            _train(arguments, client, store, cells, data, source, should_stop)
        found = _write(arguments, module, store.results(module.NAME, seed), data, own)
    for line in found.lines:
        print(line)
    print(f"Study folder: {folder}{os.sep}; for a report: python -m minicnn.report {folder}")


def _write(arguments, module, results, data, folder):
    """Write the tables and figures of a study into its folder. Returns the Findings."""
    images = (data.test_images,) if module is hardest else ()
    found = module.findings(results, *images)
    draw = not arguments.no_figures
    if draw and not drawing.available():
        print(
            'no figures, because matplotlib is missing: pip install "minicnn[figures]"',
            file=sys.stderr,
        )
        draw = False
    findings.write(found, folder, draw)
    if images and "hardest" in found.tables:
        page = webpage.quiz_page(*images, found.tables["hardest"].data, data.classes)
        with atomic_write(folder / "quiz.html") as file:
            file.write(page.encode())
    return found


def _fill_in(arguments, module):
    """Set each argument that is None to the notebook's value, or with --quick to the quick one.

    With --recipe, the recipe's values stay.
    """
    size = module.QUICK if arguments.quick else module.FULL
    other_recipe = getattr(arguments, "recipe", "seed") != "seed"
    for name, value in size.items():
        if getattr(arguments, name) is None and not (other_recipe and hasattr(Recipe, name)):
            setattr(arguments, name, value)
    if arguments.data is None:
        arguments.data = "digits" if arguments.quick else "mnist"


def _cells(arguments, module, data):
    """The cells that the study trains. Raises ValueError that names the argument at fault."""
    given = {
        name: getattr(arguments, name)
        for name in ("nets", "epochs", "momentum", "seed")
        if getattr(arguments, name) is not None
    }
    about_data = {"input_shape": data.input_shape, "classes": data.classes}
    try:
        # No validation images: nothing is selected by them, so all training images are used.
        recipe = RECIPES[getattr(arguments, "recipe", "seed")]
        recipe = replace(recipe, validation_fraction=0.0, **given, **about_data)
        cells = module.cells(recipe, arguments)
    except ValueError as error:
        raise ValueError(f"argument --{error}") from None
    nets = sum(cell.recipe.nets * cell.trials for cell in cells)
    if nets > _MOST_NETS:
        raise ValueError(
            f"argument --trials: {arguments.trials:,} trials need {nets:,} nets, expected at most "
            f"{_MOST_NETS:,}"
        )
    batch = max(cell.recipe.batch_size for cell in cells)
    if len(data.train_images) < batch:
        raise DataError(
            f"{arguments.data}: got {len(data.train_images)} training images, expected at least "
            f"one batch of {batch}"
        )
    if data.test_images is None:
        raise DataError(f"{arguments.data}: has no test images, expected at least one")
    if data.test_labels is None and module is not hardest:
        raise DataError(f"{arguments.data}: has no labels for its test images, expected labels")
    for cell in cells:
        cell.recipe.check_size()
    for cell in cells if module is recipes else cells[-1:]:
        try:
            learnable.check(cell.recipe, data)
        except ValueError as error:
            if module is not recipes or isinstance(error, DataError):
                raise
            raise ValueError(f"argument --candidate: {cell.name}: {error}") from None
    return cells


# ---- training ------------------------------------------------------------------------------------


def _train(arguments, client, store, cells, data, source, should_stop):
    """Train the nets whose results are not in the store, and add them.

    client: the client of a Dask cluster, or None to work on this machine.
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
    cost = f"{arguments.study}: {work.nets:,} nets to train, on {work.images:,} images in total"
    if work.trained_nets:
        cost += f"; {work.trained_nets:,} nets are already trained"
    print(cost, file=sys.stderr, flush=True)
    if not work.nets:
        return
    before = work.total_images - work.images
    trained, accuracies = work.trained_nets, []

    def standing():
        line = f"{trained} of {work.trained_nets + work.nets} nets trained"
        return f"{line}, test accuracy {fmean(accuracies):.5f} (mean)" if accuracies else line

    with images_bar(work.total_images, arguments.quiet, before, standing) as bar:

        def report(images):
            bar.update(max(min(before + images, bar.total) - bar.n, 0))

        def keep(found):
            nonlocal trained
            for cell, nets in found:
                store.add(*key, cell, nets, data.test_labels)
            trained += len(nets)
            for net in nets:
                if net.probabilities is not None and data.test_labels is not None:
                    right = net.probabilities.argmax(axis=1) == data.test_labels
                    accuracies.append(right.mean())

        def warn(message):
            bar.write(f"minicnn.study: warning: {message}", file=sys.stderr)

        try:
            with _place(arguments, client, cells, data, warn) as place:
                seconds, groups = work.measure(place, len(data.test_images), should_stop)
                bar.write(f"this takes {in_words(seconds, place)}", file=sys.stderr)
                work.do(place, groups, arguments.group, keep, report, should_stop)
        except ConnectionError as error:
            raise ConnectionError(f"{error}; the nets trained so far are saved") from None


def _place(arguments, client, cells, data, warn):
    """A context with the cluster.Place that runs the tasks: this machine or a cluster."""
    if client is not None:
        return cluster.cluster(client, arguments.dask, warn)
    _, ops, _ = devices.choose(arguments.device, arguments.precision)
    nets = sum(cell.recipe.nets * cell.trials for cell in cells)
    nets = min(nets, processes(ops, arguments.workers))
    limits = arguments.memory, arguments.workers
    count = min(share(replace(cell.recipe, nets=nets), data, ops, *limits)[1] for cell in cells)
    message = "a worker process died; another one repeats its task"
    return executors.local(count, lambda: warn(message))


# ---- arguments -----------------------------------------------------------------------------------


def _parser():
    parser = Parser(
        prog="minicnn.study",
        usage="python -m minicnn.study NAME [--quick] [--data DIR] [--out DIR] [options]",
        description="Run a study: train many networks, and write tables and figures. By default, "
        "it uses MNIST, and a study of the notebook has the notebook's size: days on a CPU. "
        "--quick uses the embedded digits and takes two minutes.",
        epilog="For the options of a study: python -m minicnn.study NAME --help. Each result is "
        "stored in results.sqlite in the study folder as soon as it is known. To continue a "
        "stopped study, repeat the command with its --out. Several studies may share a folder. "
        + EXIT_STATUS,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"minicnn {__version__}")
    studies = parser.add_subparsers(
        dest="study", metavar="NAME", required=True, parser_class=Parser, prog="minicnn.study"
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
        "--quick", action="store_true", help="a small study: at most two minutes on two cores"
    )
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="a folder, a file, 'mnist' or 'digits', as for minicnn.train (default: mnist; "
        "--quick: digits)",
    )
    parser.add_argument(
        "--shape",
        type=image_shape,
        metavar="HxW",
        help="rows, columns and channels of an image in a CSV file, as for minicnn.train",
    )
    parser.add_argument(
        "--out", metavar="DIR", help="the study folder (default: studies/DATE-TIME)"
    )
    limit = module.QUICK.get("limit", "all")
    parser.add_argument(
        "--limit",
        type=positive,
        metavar="N",
        help=f"use only the first N training images (default: all; --quick: {limit})",
    )
    if not trains:
        parser.set_defaults(test_limit=None, seed=0)
    else:
        parser.add_argument(
            "--test-limit",
            type=positive,
            metavar="N",
            help="use only the first N test images (default: all; --quick: "
            f"{module.QUICK.get('test_limit', 'all')})",
        )
        _add_size(parser.add_argument_group("size"), module)
        _add_machine(parser.add_argument_group("machine"))
    parser.add_argument("--no-figures", action="store_true", help="draw no figures")
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def _add_size(group, module):
    def default(name):
        values = [
            size.get(name, getattr(Recipe, name, None)) for size in (module.FULL, module.QUICK)
        ]
        return f"(default: {values[0]}; --quick: {values[1]})"

    group.add_argument(
        "--trials",
        type=positive,
        metavar="N",
        help=f"trials of each configuration {default('trials')}",
    )
    group.add_argument(
        "--nets", type=positive, metavar="N", help=f"networks in an ensemble {default('nets')}"
    )
    group.add_argument(
        "--epochs", type=positive, metavar="N", help=f"epochs of each network {default('epochs')}"
    )
    group.add_argument(
        "--momentum",
        type=number,
        metavar="X",
        help="momentum of the moving statistics; use 0.9 for training of fewer than about 500 "
        f"steps {default('momentum')}",
    )
    group.add_argument(
        "--seed",
        type=integer,
        default=0,
        metavar="N",
        help="seed of all random numbers (default: 0)",
    )
    if hasattr(module, "add_arguments"):
        module.add_arguments(group)


def _add_machine(group):
    group.add_argument("--device", choices=devices.NAMES, default="auto", help=DEVICE_HELP)
    group.add_argument(
        "--precision",
        choices=devices.PRECISIONS,
        help="precision of matrix products, as for minicnn.train",
    )
    group.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="number of processes on this machine; the result does not depend on it (default: as "
        "many as cores and memory allow; 1 with a GPU)",
    )
    group.add_argument("--threads", type=positive, metavar="N", help=THREADS_HELP)
    group.add_argument(
        "--group",
        type=positive,
        metavar="N",
        help="train at most N networks together on a GPU (default: as many as memory allows)",
    )
    group.add_argument(
        "--memory",
        type=positive,
        metavar="BYTES",
        help="how much memory to use, as for minicnn.train",
    )
    group.add_argument("--dask", metavar="ADDRESS", help=DASK_HELP)


if __name__ == "__main__":
    sys.exit(main())
