"""python -m benchmarks.storage --data DIR: bfloat16 or float16 for a step on a GPU in 16 bits?

Trains the seed network in C on MNIST, with the values rounded that such a step would round:
rounded_blocks.py says which. The nets of all arms have the same weights at the start, shuffles,
augmentation and dropout, so their results are compared in pairs. Predictions are float32.
kernels/README.md shows the result.
"""

import concurrent.futures
import multiprocessing
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from math import ceil, log2

import numpy as np
from tqdm import tqdm

from benchmarks import timing
from benchmarks.rounded_blocks import GRADIENTS, RoundingOperations
from benchmarks.rounding import Rounder
from minicnn import machine
from minicnn.backends.ops_cpu import Operations
from minicnn.recipe import RECIPES, Recipe
from minicnn.studies.statistics import gain_interval
from minicnn.training.dataset import Source
from minicnn.training.inference import score
from minicnn.training.trainer import Job, Trainer

BASE = "float32"
# The last one rounds nothing, but computes the moments in other groups. It shows by how much nets
# differ whose sums differ in their last bits.
OTHER_ORDER = "float32, other sums"
ARMS = BASE, "bfloat16", "float16"


@dataclass(frozen=True)
class Setting:
    """A training that every arm does: how many of the training images, and the recipe."""

    images: int | None  # None: all
    recipe: Recipe
    arms: tuple


# As few epochs as this takes; `seed` with the decay of its 45 and the momentum of `demo`.
_SEED = {"epochs": 6, "decay": RECIPES["seed"].decay ** (45 / 6), "momentum": 0.9}
_FAST = {"epochs": 2, "views": 1}
_ALONE = {"nets": 3, "validation_fraction": 0.0}
# The longest first, so that processes end at about the same time.
SETTINGS = {
    "fast": Setting(None, replace(RECIPES["fast"], **_FAST, **_ALONE), ARMS),
    "seed": Setting(6400, replace(RECIPES["seed"], **_SEED, **_ALONE), (*ARMS, OTHER_ORDER)),
}
QUICK = {
    name: replace(s, images=128, recipe=replace(s.recipe, epochs=1, nets=2, batch_size=32))
    for name, s in SETTINGS.items()
}


def loss_scale(batch):
    """The power of two by which float16 gradients are multiplied: 512 times the batch, rounded up.

    The loss is a mean over the batch, so this leaves 512 times the gradients of an image. They are
    at most about 2 in float32, and float16 ends at 65504: a margin of 60 times for other trainings.
    """
    return 2.0 ** (9 + ceil(log2(batch)))


@dataclass(frozen=True)
class Training:
    """One net to train: the name of its setting, the arm, its number, its data."""

    name: str
    setting: Setting
    arm: str
    net: int
    source: str
    test_images: int | None = None


def operations(arm, batch, every=50):
    """(the operations of an arm, its Rounder; None for OTHER_ORDER)."""
    if arm == OTHER_ORDER:
        return Operations(), None
    scales = dict.fromkeys(GRADIENTS, loss_scale(batch)) if arm == "float16" else {}
    rounder = Rounder(arm, scales, every)
    return RoundingOperations(rounder), rounder


def train(training):
    """Train a net and predict the test images: a dict for JSON.

    accuracy and log_loss are None for a net that diverged.
    """
    recipe = training.setting.recipe
    data = _load(training.source, training.setting.images, training.test_images)
    ops, rounder = operations(training.arm, recipe.batch_size)
    trainer = Trainer(Job(recipe, data, ops, "float32", None), [training.net])
    while not trainer.is_done:
        trainer.train_epoch(lambda images: None, lambda: False)
    found = trainer.predict(data.test_images, lambda: False)  # (1, N, classes), or (0, ...)
    log_loss, accuracy = score(found[0], data.test_labels) if len(found) else (None, None)
    return {
        "setting": training.name,
        "arm": training.arm,
        "net": training.net,
        "images": len(data.train_images),
        "test_images": len(data.test_images),
        "accuracy": accuracy,
        "log_loss": log_loss,
        "train_loss": trainer.history[-1]["train_loss"] if trainer.history else None,
        "diverged": trainer.diverged.get(training.net),
        "counts": {kind: dict(of_kind) for kind, of_kind in rounder.counts.items()}
        if rounder
        else {},
    }


@lru_cache(maxsize=2)
def _load(source, images, test_images):
    return Source(source, images, test_images).load()[0]


def measure(source, settings, test_images=None, processes=1):
    """[the result of each training]: of all settings, nets and arms, in this order."""
    trainings = [
        Training(name, setting, arm, net, source, test_images)
        for name, setting in settings.items()
        for net in setting.recipe.all_nets
        for arm in setting.arms
    ]
    show = partial(tqdm, total=len(trainings), desc="nets")
    if processes == 1:
        return list(show(map(train, trainings)))
    with concurrent.futures.ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), machine.use_threads, (1,)
    ) as pool:
        return list(show(pool.map(train, trainings)))


# ---- what came out -------------------------------------------------------------------------------


def differences(trainings, setting, arm, key):
    """The paired differences (n,) of an arm to BASE in `key`; NaN where one of a pair diverged."""
    of = {
        (row["arm"], row["net"]): np.nan if row[key] is None else row[key]
        for row in trainings
        if row["setting"] == setting
    }
    nets = sorted(net for each, net in of if each == arm)
    return np.array([of[arm, net] - of[BASE, net] for net in nets])


def table(result):
    """Accuracies and losses of each setting and arm in Markdown, with differences in pairs."""
    heads = "recipe", "arm", "nets", "test accuracy", "to float32", "mean log loss", "to float32"
    rows = []
    for setting in result["settings"]:
        for arm in (*ARMS, OTHER_ORDER):
            of = [
                row for row in result["trainings"] if (row["setting"], row["arm"]) == (setting, arm)
            ]
            if not of:
                continue
            cells = [setting, arm, len(of)]
            for key, unit, digits in (("accuracy", 100, 3), ("log_loss", 1, 5)):
                values = [np.nan if row[key] is None else unit * row[key] for row in of]
                cells.append(f"{np.mean(values):.{digits}f}{' %' * (unit == 100)}")
                gains = unit * differences(result["trainings"], setting, arm, key)
                cells.append("" if arm == BASE else _with_interval(gains, digits))
            rows.append(cells)
    return timing.table(heads, rows)


def _with_interval(gains, digits):
    low, high = gain_interval(gains)
    return f"{np.mean(gains):+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def counts_table(result):
    """What rounding did to each kind of value, over all nets of an arm, in Markdown."""
    heads = "arm", "values", "largest", "become 0", "subnormal", "overflows"
    rows = []
    for arm in ARMS:
        of = [row["counts"] for row in result["trainings"] if row["arm"] == arm and row["counts"]]
        for kind in of[0] if of else []:
            elements = sum(counts[kind]["elements"] for counts in of)
            shares = [sum(c[kind][what] for c in of) / elements for what in ("zero", "subnormal")]
            largest = max(counts[kind]["largest"] for counts in of)
            overflows = sum(counts[kind]["overflows"] for counts in of)
            cells = [f"{100 * share:.3g} %" if share else "0" for share in shares]
            rows.append([arm, f"`{kind}`", f"{largest:.3g}", *cells, f"{overflows:,}"])
    return timing.table(heads, rows)


def main(argv=None):
    parser = timing.parser("storage", __doc__, "few of the embedded digits: some seconds")
    parser.add_argument("--data", metavar="DIR", help="MNIST's folder, or 'mnist'")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        settings, trainings = QUICK, measure(arguments.data or "digits", QUICK, 64)
    elif arguments.data:
        settings = SETTINGS
        trainings = measure(arguments.data, SETTINGS, processes=machine.cores())
    else:
        parser.error("argument --data: got nothing, expected MNIST's folder")
    result = {
        "what": "the seed network trained with values rounded as a 16-bit step would round them",
        "settings": {
            name: {
                "recipe": setting.recipe.as_dict(),
                "loss_scale": loss_scale(setting.recipe.batch_size),
            }
            for name, setting in settings.items()
        },
        "trainings": trainings,
        "machine": timing.machine(),
        "versions": timing.versions("scipy"),
    }
    print(timing.aligned(table(result)), timing.aligned(counts_table(result)), sep="\n\n")
    if arguments.out or not arguments.quick:
        timing.write("storage-cpu", result, arguments.out)


if __name__ == "__main__":
    main()
