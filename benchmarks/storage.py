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

from tqdm import tqdm

from benchmarks import timing
from benchmarks.rounded_blocks import GRADIENTS, RoundingOperations
from benchmarks.rounding import Rounder
from benchmarks.storage_tables import ARMS, COUNTED, OTHER_ORDER, counts_table, table
from minicnn import machine
from minicnn.backends.ops_cpu import Operations
from minicnn.recipe import RECIPES, Recipe
from minicnn.training.dataset import Source
from minicnn.training.inference import score
from minicnn.training.trainer import Job, Trainer


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
    name: replace(s, images=64, recipe=replace(s.recipe, epochs=1, nets=2, batch_size=32))
    for name, s in SETTINGS.items()
}


def loss_scale(batch):
    """The power of two by which float16 gradients are multiplied: 512 times the batch, rounded up.

    The loss is a mean over the batch, so this leaves 512 times the gradients of an image. In the
    trainings below the largest are about 2.5, so 65504, where float16 ends, is 50 times as far.
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


def operations(arm, batch):
    """(the operations of an arm, its Rounder; None for OTHER_ORDER)."""
    if arm == OTHER_ORDER:
        return Operations(), None
    scales = dict.fromkeys(GRADIENTS, loss_scale(batch)) if arm == "float16" else {}
    rounder = Rounder(arm, scales, COUNTED)
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
