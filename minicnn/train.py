"""python -m minicnn.train: reads data, trains an ensemble, writes its submission and figures.

This is the front door. It reads the arguments and fills the run folder. The work is done further
down; read in this order:

    recipe.py                the settings
    training/ensemble.py     nets and processes (on a cluster: training/remote.py)
    training/trainer.py      the loop over epochs and steps
    nets.py                  one step; then network/stack.py, network/layers.py, network/plan.py
    backends/ops_numpy.py    the arithmetic; then kernels/
"""

import contextlib
import os
import shlex
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

from . import __version__, devices
from .backends import trace
from .command import (
    DASK_HELP,
    DATA_HELP,
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
from .files import DataError, in_use, remove_unfinished
from .recipe import RECIPES, SCHEDULES, Recipe
from .training import cluster, crews, ensemble, learnable, messages, run_folder
from .training.dataset import Source
from .training.interruption import StopOnSignal
from .training.json_files import read_config, source_of, warn_of_other_data
from .training.trainer import Job, steps_per_epoch
from .training.workers import Interrupted, WorkerDiedError


class RunStoppedError(Exception):
    """A run failed for lack of memory, disk or a process. Its last checkpoints are intact."""


def main(argv=None):
    """Run the command; returns its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    return run("minicnn.train", lambda: _main(argv))


def _main(argv):
    arguments = _parser().parse_args(argv)
    arguments.folder = None  # train() sets it
    when = "after this step" if arguments.dask is None else "without the epochs in progress"
    stop = StopOnSignal(f"stopping {when}; press Ctrl-C again to stop at once")
    try:
        with stop:
            train(arguments, arguments.out, stop)
    except Interrupted:
        if arguments.folder is None:
            print("stopped before the training", file=sys.stderr)
            return stop.status
        again = [a for a in argv if a != "--resume"]
        if not arguments.out:
            again += ["--out", str(arguments.folder)]
        print(
            "stopped and saved; continue with: python -m minicnn.train "
            f"{shlex.join(again)} --resume",
            file=sys.stderr,
        )
        return stop.status
    except (*REFUSALS, RunStoppedError) as error:
        print(f"minicnn.train: error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # a second signal
        print("stopped at once; the last checkpoints are intact", file=sys.stderr)
        return stop.status
    return 0


def train(arguments, out=None, should_stop=lambda: False):
    """Train an ensemble and fill the run folder, as the parsed arguments say.

    out: the run folder (default: a new one in runs/); it becomes `arguments.folder`. Raises
    RunStoppedError if training or writing fails after the run has claimed its folder.
    """
    started = time.monotonic()
    recipe, source, config = _wanted(arguments)
    set_threads(arguments)
    if arguments.resume and not arguments.out:
        raise ValueError("argument --resume: expected --out, the folder of the run to continue")
    with contextlib.ExitStack() as stack:
        asked = arguments.device, arguments.precision, arguments.memory
        if arguments.dask is None:
            crew = crews.Processes(*asked, arguments.workers)
        else:
            client = stack.enter_context(cluster.connect(arguments.dask))
            crew = crews.Cluster(client, arguments.dask, *asked, not arguments.no_graph)
        try:
            data, source = source.load(progress=not arguments.quiet)
        except DataError as error:
            if config is None or arguments.data is not None:
                raise
            raise DataError(f"{error}; {arguments.config} names it, --data another one") from None
        if config is not None:
            warn_of_other_data(arguments.config, config, source)
        recipe = recipe.of(data)
        with _naming_options():
            learnable.check(recipe, data)
        crew.prepare(recipe, data, source, should_stop)
        folder = arguments.folder = stack.enter_context(out_folder(out, "runs"))
        stack.enter_context(in_use(folder, alone=True))
        about = crew.device, crew.precision, folder, crew.group_size, not arguments.no_graph
        job = Job(recipe, data, *about)
        run_folder.claim(job, source, arguments.resume)
        try:
            if source.name != "digits":  # the embedded digits need no explanation
                print(f"Data: {data.description}", file=sys.stderr)
            print(
                f"Training images: {len(data.train_images):,}. Nets: {recipe.nets}. "
                f"Epochs: {recipe.epochs}. Device: {crew.about(job)}",
                file=sys.stderr,
                flush=True,
            )
            trained, images = _train(job, arguments, crew, should_stop)
            seconds = time.monotonic() - started
            run_folder.write_outputs(job, trained, draw=not arguments.no_figures)
            summary = run_folder.write_summary(job, trained, images, seconds)
            learnable.warn_of_guessing(
                recipe, data, trained.history, summary["ensemble_test_accuracy"]
            )
        except KeyboardInterrupt:
            remove_unfinished(folder)  # left by workers that were killed
            raise
        except (OSError, MemoryError, WorkerDiedError) as error:
            raise RunStoppedError(
                f"{one_line(error)}; the last checkpoints are intact; --resume continues from them"
            ) from error
    _print_summary(summary, folder)


def _train(job, arguments, crew, should_stop):
    """Train all nets, with progress and one line per net.

    Returns the ensemble's Trained, and the number of images trained on.
    """
    recipe = job.recipe
    steps = steps_per_epoch(recipe, len(job.data.train_images))
    total = recipe.nets * recipe.epochs * steps * recipe.batch_size
    done, images = ensemble.images_done(job), 0
    quiet = arguments.quiet or trace.is_wanted()  # a bar would break the lines of a trace
    last_rows = {}  # {net: its last row of the history, None if it diverged}
    with images_bar(
        total, quiet, done, lambda: messages.standing(last_rows, recipe.epochs, recipe.nets)
    ) as bar:

        def report(count, rows=()):
            nonlocal images
            images += count
            last_rows.update(rows)
            bar.update(count)

        def on_group(group):
            for line in _net_lines(group, recipe.epochs):
                bar.write(line, file=sys.stdout)
            for net, (epoch, step) in group.diverged.items():
                warn(
                    f"net {net} stopped: its loss or weights were not finite in epoch {epoch}, "
                    f"step {step} of {steps}"
                )

        def on_death(nets):
            which = f"net {nets[0]}" if len(nets) == 1 else f"nets {nets[0]} to {nets[-1]}"
            warn(
                f"the process that trained {which} died; another one continues from the checkpoint"
            )

        def warn(message):
            bar.write(f"minicnn.train: warning: {message}", file=sys.stderr)

        callbacks = report, on_group, should_stop, on_death
        with crew.at_work(warn) as at_work:
            trained = ensemble.train_ensemble(job, crew.workers, *callbacks, at_work)
        bar.update(total - bar.n)
    if len(trained.diverged) == recipe.nets:
        raise ValueError(
            "every net stopped because its loss or weights were not finite; try a smaller "
            "--learning-rate"
        )
    return trained, images


# ---- arguments -----------------------------------------------------------------------------------


def _parser():
    parser = Parser(
        prog="minicnn.train",
        usage="python -m minicnn.train [--data DIR] [options]",
        description="Train an ensemble of convolutional networks to tell images apart: digits, or "
        "any 2 to 1,000 classes. Without options, it trains the recipe 'demo' on the embedded "
        "digits, in a minute or less. On other data, it trains the recipe 'seed': 15 networks for "
        "45 epochs.",
        epilog="The run folder contains config.json, history.csv, checkpoint.npz, submission.csv, "
        "summary.json and figures/. Ctrl-C saves the run, with --dask as it was after its last "
        f"whole epochs; --resume continues it. {EXIT_STATUS}"
        f"\n\n{DATA_HELP}",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="a folder or file of images, or the name of a data set, as listed below (default: "
        "digits)",
    )
    parser.add_argument(
        "--recipe",
        choices=sorted(RECIPES),
        help="the defaults of the options under 'recipe': seed is the notebook's; fast takes "
        "6 epochs in place of 45; single is for one net (default: demo for the embedded digits, "
        "else seed)",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="repeat a run: the recipe, the data and their limits from its config.json, unless "
        "other options replace them; device and precision are chosen anew",
    )
    parser.add_argument("--out", metavar="DIR", help="the run folder (default: runs/DATE-TIME)")
    parser.add_argument(
        "--resume", action="store_true", help="continue the run in --out where it stopped"
    )

    group = parser.add_argument_group("recipe", "each option replaces a value of the recipe")
    helps = {
        "nets": "number of networks in the ensemble",
        "first_net": "number of the first network; network N is the same in every ensemble",
        "epochs": "passes over the training images",
        "batch_size": "images per training step",
        "validation_fraction": "fraction of the images for validation, other images for each "
        "network",
        "rotation": "largest random rotation, in degrees, in both directions",
        "zoom": "largest random zoom, as a fraction, separately for each axis",
        "width_shift": "largest random shift, as a fraction of the width",
        "height_shift": "largest random shift, as a fraction of the height",
        "elastic": "elastic distortion: largest random displacement of the nodes of a grid of 6x6, "
        "as a fraction of the width and of the height",
        "learning_rate": "Adam's highest learning rate, in the first epoch or after the warm-up",
        "decay": "factor on the learning rate after each whole epoch that follows the warm-up, for "
        "schedule exponential only",
        "schedule": "how the learning rate falls: exponential, epoch by epoch; linear or cosine, "
        "step by step, to 0 at the end",
        "warm_up": "fraction of all steps in which the learning rate first rises linearly from 0; "
        "with schedule linear or cosine this is a one-cycle policy",
        "label_smoothing": "fraction of each label that is spread evenly over all classes; the "
        "training loss includes it, the validation loss does not",
        "dropout": "fraction of the values that a dropout layer sets to 0",
        "momentum": "of batch normalisation's moving statistics; 0.9 suits trainings of fewer than "
        "about 500 steps",
        "average_epochs": "predict with the mean of the weights after each step of the last N "
        "epochs; of the history, only the last epoch's validation is that of the mean",
        "average_decay": "predict with an exponential average of the weights after each step, "
        "which keeps this fraction of itself, such as 0.999; not with --average-epochs",
        "views": "predict each test image as the mean over N views of it, at most 27: itself, and "
        "copies shifted by 1/28 of a side or rotated by 5 degrees, or both",
        "seed": "seed of all random numbers",
    }
    for name, text in helps.items():
        default = getattr(RECIPES["seed"], name)
        values = {recipe: getattr(values, name) for recipe, values in RECIPES.items()}
        values = [f"{recipe}: {v}" for recipe, v in values.items() if v != default]
        values = ", ".join([f"{'seed' if values else 'default'}: {default}", *values])
        kind, metavar = (integer, "N") if isinstance(default, int) else (number, "X")
        takes = {"choices": SCHEDULES} if name == "schedule" else {"type": kind, "metavar": metavar}
        group.add_argument(_option(name), help=f"{text} ({values})", **takes)

    group = parser.add_argument_group("data")
    group.add_argument(
        "--shape",
        type=image_shape,
        metavar="HxW",
        help="rows and columns of an image in a CSV file, or HxWxC with channels, such as 32x32x3 "
        "(default: from the number of columns)",
    )
    group.add_argument(
        "--limit", type=positive, metavar="N", help="use only the first N training images"
    )
    group.add_argument(
        "--test-limit", type=positive, metavar="N", help="use only the first N test images"
    )

    group = parser.add_argument_group("machine")
    group.add_argument("--device", choices=devices.NAMES, default="auto", help=DEVICE_HELP)
    group.add_argument(
        "--precision",
        choices=devices.PRECISIONS,
        help="precision of matrix products: tf32 uses tensor cores, which keep 10 bits of the "
        "mantissa; bfloat16 keeps 7, and also stores activations and their gradients in 16 bits "
        "(default: tf32 on a GPU that has it, else float32)",
    )
    group.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="number of processes; the result does not depend on it (default: as many as cores, "
        "networks and memory allow)",
    )
    group.add_argument("--threads", type=positive, metavar="N", help=THREADS_HELP)
    group.add_argument(
        "--memory",
        type=positive,
        metavar="BYTES",
        help="how much memory to use (with a GPU: of its memory); it limits the number of "
        "processes, or of networks trained together (default: what is free)",
    )
    group.add_argument(
        "--no-graph",
        action="store_true",
        help="launch the kernels of a training step one by one, instead of replaying a captured "
        "step (with a GPU: a CUDA graph)",
    )
    group.add_argument("--dask", metavar="ADDRESS", help=DASK_HELP)
    group.add_argument("--no-figures", action="store_true", help="draw no figures")
    group.add_argument("--quiet", action="store_true", help="show no progress")
    parser.add_argument("--version", action="version", version=f"minicnn {__version__}")
    return parser


def _option(name):
    return "--" + name.replace("_", "-")


def _wanted(arguments):
    """(recipe, Source, config) as the arguments say; config: of the run to repeat, or None.

    Raises DataError if --config is not the config of a run.
    """
    config, recipe = None, None
    if arguments.config is not None:
        config, recipe = read_config(Path(arguments.config))
        source = source_of(config, recipe, arguments.data)
    else:
        source = Source(arguments.data or "digits")
    limits = {name: getattr(arguments, name) for name in ("limit", "test_limit", "shape")}
    source = replace(source, **{name: v for name, v in limits.items() if v is not None})
    if arguments.recipe or recipe is None:
        recipe = RECIPES[arguments.recipe or ("demo" if source.name == "digits" else "seed")]
    given = {
        field.name: getattr(arguments, field.name)
        for field in fields(Recipe)
        if getattr(arguments, field.name, None) is not None
    }
    with _naming_options():
        recipe = replace(recipe, **given)
    if "decay" in given and recipe.schedule != "exponential":
        raise ValueError(
            f"argument --decay: schedule {recipe.schedule} has none, expected schedule exponential"
        )
    return recipe, source, config


@contextlib.contextmanager
def _naming_options():
    """A context in which errors that begin with a field of Recipe name its option instead."""
    try:
        yield
    except ValueError as error:
        field, colon, rest = str(error).partition(":")
        if field not in {field.name for field in fields(Recipe)}:
            raise
        raise ValueError(f"argument {_option(field)}{colon}{rest}") from None


# ---- output --------------------------------------------------------------------------------------


def _net_lines(trained, epochs):
    """One line per trained net, in the notebook's form: its best accuracies over the epochs."""
    for net in sorted({row["net"] for row in trained.history} - set(trained.diverged)):
        rows = [row for row in trained.history if row["net"] == net]
        line = f"CNN {net}: Epochs={epochs}, "
        line += f"Train accuracy={run_folder.best(rows, 'train_accuracy'):.5f}"
        validation = run_folder.best(rows, "validation_accuracy")
        if validation is not None:
            line += f", Validation accuracy={validation:.5f}"
        yield line


def _print_summary(summary, folder):
    of_nets = [net["test_accuracy"] for net in summary["nets"]]
    if summary["ensemble_test_accuracy"] is not None:
        print(
            f"Ensemble of {len(of_nets)}: Test accuracy="
            f"{summary['ensemble_test_accuracy']:.5f} (single nets: {min(of_nets):.5f} to "
            f"{max(of_nets):.5f})"
        )
    print(f"{summary['seconds']:.0f} s, {summary['images_per_second']:,.0f} images a second")
    print(f"Run folder: {folder}{os.sep}")


if __name__ == "__main__":
    sys.exit(main())
