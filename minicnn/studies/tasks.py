"""What a study trains, cut into tasks that any process can do by itself, here or on other machines.

A study has cells, each a recipe, and trains each `trials` times: trial t of a recipe of 15 nets are
the nets 15 (t - 1) + 1 to 15 t of its seed. So the first trial is what minicnn.train makes of the
same recipe, and nets of several trials can be trained together, since no net depends on another.

A task is told the name of its data, and finds them itself: it raises DataError where they are not
those of the study, or where this is another version of minicnn.
"""

import os
import platform
import socket
import threading
import time
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from .. import __version__, devices
from ..data.load import fingerprint, load_data
from ..files import DataError
from ..recipe import Recipe
from ..training import workers
from ..training.resources import arrays_bytes, group_size, split_nets
from ..training.trainer import CapturedStep, Data, Job, Trainer, steps_per_epoch

_MEASURED_SECONDS = 0.4
_DISTORTION = 99  # seed of the distorted test images, which are the same for every net and study
_one_at_a_time = threading.Lock()  # a process that has several threads has one set of kernels


@dataclass(frozen=True)
class Source:
    """A data set by its name, as load_data knows it, cut off at so many images; and which it is."""

    name: str
    limit: int | None = None
    test_limit: int | None = None
    images: int = 0  # to train on; this and the fingerprints are what was found
    train: str = ""
    test: str = ""

    def load(self, progress=False):
        """(the Data, this source with what was found). Raises DataError."""
        (x, y), (x_test, y_test) = load_data(self.name, progress)
        x, y = x[: self.limit], y[: self.limit]
        if x_test is not None:
            x_test = x_test[: self.test_limit]
            y_test = None if y_test is None else y_test[: self.test_limit]
        data = Data(x, y, x_test, y_test, fingerprint(x, y))
        test = "" if x_test is None else fingerprint(x_test, y_test)
        return data, replace(self, images=len(x), train=data.fingerprint, test=test)


@dataclass(frozen=True)
class Task:
    """Some nets of a cell, to be trained with its recipe."""

    cell: str
    recipe: Recipe
    nets: range
    source: Source
    device: str = "auto"
    precision: str | None = None
    memory: int | None = None  # bytes
    distorted: bool = False  # whether the nets are tested on distorted images, too
    version: str = __version__

    @property
    def images(self):
        """How many it trains on, in all."""
        steps = steps_per_epoch(self.recipe, self.source.images)
        return len(self.nets) * self.recipe.epochs * steps * self.recipe.batch_size


@dataclass(frozen=True)
class TrainedNet:
    """What is kept of a net: its number, the rows of its history, (epoch, step) if it diverged,
    else its probabilities (N, classes) of the test images; and what made it.
    """

    net: int
    history: list
    diverged: tuple | None
    probabilities: np.ndarray | None
    made_by: dict
    distorted_accuracy: float | None = None  # where the task asks for it


@dataclass(frozen=True)
class Measured:
    """What a process would do a task with: so many nets together, so many images a second."""

    made_by: dict
    group: int
    images_per_second: float


def train_nets(task):
    """Do a task: [TrainedNet for each of its nets]. Raises DataError, Interrupted, ValueError."""
    with _one_at_a_time:
        data, device, ops, group = _prepare(task)
        results = []
        for nets in split_nets(task.nets, group):
            trainer = _trainer(task, data, device, ops, nets)
            while not trainer.is_done:
                trainer.train_epoch(workers.report, workers.should_stop)
            rows = iter(trainer.predict(data.test_images, workers.should_stop))
            distorted = _distorted_accuracies(trainer, data) if task.distorted else {}
            for net in nets:
                history = [row for row in trainer.history if row["net"] == net]
                diverged = trainer.diverged.get(net)
                probabilities = None if diverged else next(rows)
                made_by = _made_by(device, ops)
                results.append(
                    TrainedNet(net, history, diverged, probabilities, made_by, distorted.get(net))
                )
        return results


def _distorted_accuracies(trainer, data, batch=1000):
    """{net: accuracy} on the test images, randomly distorted as the recipe augments its training.

    Nets that diverged have none.
    """
    correct = np.zeros(len(trainer.nets))
    for first in range(0, len(data.test_images), batch):
        x = (data.test_images[first : first + batch, ..., None] / 255).astype(np.float32)
        x = trainer.recipe.augment(x, _DISTORTION, 0, first)
        predicted = trainer.model.predict(x).argmax(axis=-1)  # (E, B)
        correct += (predicted == data.test_labels[first : first + batch]).sum(axis=1)
    accuracies = correct / len(data.test_images)
    return {
        net: float(accuracy)
        for net, accuracy in zip(trainer.nets, accuracies, strict=True)
        if net not in trainer.diverged
    }


def measure(task):
    """What this process would do a task with: a Measured, after some steps of it."""
    with _one_at_a_time:
        data, device, ops, group = _prepare(task)
        trainer = _trainer(task, data, device, ops, task.nets[:group])
        again = CapturedStep(ops, graph=True)
        with ops.session():
            trainer.begin_epoch(0)
            for _ in range(3):  # compiles, captures, and runs it once
                again(trainer.step)
            first = last = trainer.steps_done  # to read it waits for the device
            start = now = time.monotonic()
            while now - start < _MEASURED_SECONDS:
                again(trainer.step)
                last, now = trainer.steps_done, time.monotonic()
        images = (last - first) * task.recipe.batch_size * min(group, len(task.nets))
        return Measured(_made_by(device, ops), group, images / (now - start))


def _prepare(task):
    """(the task's data, device, its operations, how many nets are trained together)."""
    if task.version != __version__:
        raise DataError(f"{_here()}: has minicnn {__version__}, expected {task.version}")
    try:
        data, found = _load(task.source.name, task.source.limit, task.source.test_limit)
    except DataError as error:
        raise DataError(f"{_here()}: {error}") from None
    if (found.train, found.test) != (task.source.train, task.source.test):
        raise DataError(
            f"{_here()}: {task.source.name}: holds other images or labels than where the study "
            "was begun, expected the same"
        )
    device, ops, _ = devices.choose(task.device, task.precision)
    if not ops.lockstep:
        return data, device, ops, 1

    def needed(nets):
        return arrays_bytes(task.recipe, ops, nets, data.train_images, data.test_images)

    group = group_size(len(task.nets), task.memory or ops.free_memory(), needed)
    return data, device, ops, group


@lru_cache(maxsize=1)
def _load(name, limit, test_limit):
    return Source(name, limit, test_limit).load()


def _trainer(task, data, device, ops, nets):
    return Trainer(Job(task.recipe, data, device, ops.precision, None, len(nets)), nets)


def _made_by(device, ops):
    return {
        "device": device,
        "precision": ops.precision,
        "minicnn": __version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def _here():
    return f"worker on {socket.gethostname()}, process {os.getpid()}"
