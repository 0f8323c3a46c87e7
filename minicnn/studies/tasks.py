"""The tasks of a study. Any process, on this machine or another, can run a task by itself.

A study has cells. A cell is a recipe that is trained `trials` times. With 15 nets in the recipe,
trial t trains the nets 15 (t - 1) + 1 to 15 t of its seed. So the first trial equals what
minicnn.train computes for this recipe. Nets are independent, so nets of several trials can train
together.

A task contains the name of its data set, not the images; the process that runs it loads them. It
raises DataError if they differ from those of the study, or if its version of minicnn differs.
"""

import platform
import time
from dataclasses import dataclass, field

import numpy as np

from .. import __version__, devices
from ..recipe import Recipe, image_shape
from ..training import remote, workers
from ..training.cluster import one_at_a_time
from ..training.dataset import Source
from ..training.inference import CapturedStep
from ..training.resources import fitting, split_nets
from ..training.trainer import Job, Trainer, steps_per_epoch

_MEASURED_SECONDS = 0.4
_DISTORTION = 99  # seed of the distorted test images, which are the same for every net and study


@dataclass(frozen=True)
class Task:
    """Train some nets of a cell with its recipe.

    views: further numbers of views with which they predict the test images.
    """

    cell: str
    recipe: Recipe
    nets: range
    source: Source
    device: str = "auto"
    precision: str | None = None
    memory: int | None = None  # bytes
    distorted: bool = False  # whether the nets are tested on distorted images, too
    views: tuple = ()
    version: str = __version__

    @property
    def images(self):
        """The number of images that the task trains on, over all nets and epochs."""
        steps = steps_per_epoch(self.recipe, self.source.images)
        return len(self.nets) * self.recipe.epochs * steps * self.recipe.batch_size


@dataclass(frozen=True)
class TrainedNet:
    """The results of training a net.

    history: its rows. diverged: (epoch, step), or None. probabilities: (N, classes) of the test
    images, None if it diverged. by_views: the same, with the further numbers of views of its task.
    made_by: device, precision and versions.
    """

    net: int
    history: list
    diverged: tuple | None
    probabilities: np.ndarray | None
    made_by: dict
    distorted_accuracy: float | None = None  # where the task asks for it
    by_views: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """The measured speed of a process: nets trained together, and images a second."""

    made_by: dict
    group: int
    images_per_second: float


def train_nets(task):
    """Run a task. Returns a TrainedNet per net. Raises DataError, Interrupted, ValueError."""
    with one_at_a_time:
        remote.forget()  # it may have trained nets of a run before
        data, device, ops, group = _prepare(task)
        results = []
        for nets in split_nets(task.nets, group):
            trainer = _trainer(task, data, device, ops, nets)
            while not trainer.is_done:
                trainer.train_epoch(workers.report, workers.should_stop)
            found = {v: _predicted(trainer, data, v) for v in (task.recipe.views, *task.views)}
            distorted = _distorted_accuracies(trainer, data) if task.distorted else {}
            for net in nets:
                history = [row for row in trainer.history if row["net"] == net]
                diverged = trainer.diverged.get(net)
                by_views = {v: None if diverged else of_nets[net] for v, of_nets in found.items()}
                probabilities = by_views.pop(task.recipe.views)
                about = _made_by(device, ops), distorted.get(net), by_views
                results.append(TrainedNet(net, history, diverged, probabilities, *about))
        return results


def _predicted(trainer, data, views):
    """{net: probabilities (N, classes) of the test images} of the nets that did not diverge."""
    rows = trainer.predict(data.test_images, workers.should_stop, views)
    sound = (net for net in trainer.nets if net not in trainer.diverged)
    return dict(zip(sound, rows, strict=True))


def _distorted_accuracies(trainer, data, batch=1000):
    """{net: accuracy} on the test images, randomly distorted as the recipe augments its training.

    Nets that diverged have none.
    """
    correct = np.zeros(len(trainer.nets))
    for first in range(0, len(data.test_images), batch):
        x = data.test_images[first : first + batch]
        x = (x.reshape(len(x), *image_shape(x)) / 255).astype(np.float32)  # (B, H, W, C)
        x = trainer.recipe.augment(x, _DISTORTION, 0, first)
        predicted = trainer.model.predict(x, trainer.recipe.views).argmax(axis=-1)  # (E, B)
        correct += (predicted == data.test_labels[first : first + batch]).sum(axis=1)
    accuracies = correct / len(data.test_images)
    return {
        net: float(accuracy)
        for net, accuracy in zip(trainer.nets, accuracies, strict=True)
        if net not in trainer.diverged
    }


def measure(task):
    """Time some steps of a task in this process. Returns a Measured."""
    with one_at_a_time:
        remote.forget()  # it may have trained nets of a run before
        data, device, ops, group = _prepare(task)
        trainer = _trainer(task, data, device, ops, task.nets[:group])
        run_step = CapturedStep(ops, graph=True)
        with ops.session():
            trainer.begin_epoch(0)
            for _ in range(3):  # warm-up: compile, capture, replay
                run_step(trainer.step)
            first = last = trainer.steps_done  # reading it waits for the device
            start = now = time.monotonic()
            while now - start < _MEASURED_SECONDS:
                run_step(trainer.step)
                last, now = trainer.steps_done, time.monotonic()
        images = (last - first) * task.recipe.batch_size * min(group, len(task.nets))
        return Measured(_made_by(device, ops), group, images / (now - start))


def _prepare(task):
    """(data, device, its operations, number of nets trained together) for a task."""
    data = task.source.load_in_worker(task.version)
    device, ops, _ = devices.choose(task.device, task.precision)
    return data, device, ops, fitting(task.recipe, data, ops, len(task.nets), task.memory)


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
