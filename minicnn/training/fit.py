"""Sequential.fit: train nets that exist already, as ensemble.py trains new ones.

Each group of nets is a task for run_jobs (workers.py): a Trainer starts from the states of its nets
and returns their new ones. So fit and the command run the same code, and their bits agree.
"""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..augment import RandomAffine
from ..nets import Nets
from ..network.architecture import Architecture
from ..network.optim import Adam
from . import checkpoint
from .dataset import Data
from .history import named
from .trainer import Job, Trainer
from .workers import Interrupted, run_jobs


@dataclass(frozen=True)
class FitRecipe:
    """What a Trainer asks of a recipe (recipe.py), from the arguments of Sequential.fit.

    all_nets: numbers from 1. rates: the learning rates of the epochs from initial_epoch on.
    initial_step: the optimizer steps before this training.
    """

    architecture: Architecture
    all_nets: tuple
    seed: int
    dtype: str
    optimizer: Adam
    epochs: int
    initial_epoch: int
    initial_step: int
    batch_size: int
    validation_fraction: float
    augment: RandomAffine
    rates: tuple

    @property
    def nets(self):
        """How many nets there are."""
        return len(self.all_nets)

    @property
    def first_net(self):
        """The number of the first net."""
        return self.all_nets[0]

    @property
    def nodes(self):
        """The network's layers with their names and shapes."""
        return self.architecture.nodes

    def schedule(self, epoch):
        """The learning rate of an epoch, from 1."""
        return self.rates[epoch - 1 - self.initial_epoch]

    def model(self, nets, device, precision):
        """New Nets with the numbers `nets`, from 1."""
        numbers = [net - 1 for net in nets]
        settings = device, self.dtype, precision, self.optimizer
        return Nets(self.architecture, numbers, self.seed, *settings)

    def as_dict(self):
        """Nothing: a file of Sequential.save says what its nets are, not how they were trained."""
        return {}


@dataclass(frozen=True)
class Part:
    """What all groups of nets share. state: (arrays, about) of all nets before the training."""

    recipe: FitRecipe
    data: Data
    device: object  # a name, or a Backend if all runs in this process
    precision: str
    state: tuple
    on_epoch: Callable | None


@dataclass(frozen=True)
class Fitted:
    """The result of a group: its state, history, diverged nets, and whether it was interrupted."""

    state: tuple
    history: list
    diverged: dict
    interrupted: bool


def initial_state(model):
    """The state (arrays, about) of a model's nets, before a training."""
    arrays, about = checkpoint.model_state(model)
    arrays["history"] = checkpoint.history_table([])
    return arrays, {**about, "diverged": []}


def fit_group(part, nets, report, should_stop):
    """Train a group of nets, a range of numbers from 1. Returns a Fitted.

    report(n): n more images were trained on. report(0, rows): an epoch has ended; rows = {net: its
    row of the history}. on_epoch(row) that returns true ends the training of its net.
    """
    job = Job(part.recipe, part.data, part.device, part.precision, Path(), len(nets))
    trainer = Trainer(job, nets)
    chosen = checkpoint.select(*part.state, trainer.model.nets, "model")
    checkpoint.restore_model(trainer.model, *chosen, "model")
    interrupted = False
    while not trainer.is_done and not interrupted:
        try:
            rows = trainer.train_epoch(report, should_stop)
        except Interrupted:
            interrupted = True
            continue
        report(0, {row["net"]: row for row in rows})
        for row in rows:
            if part.on_epoch is not None and part.on_epoch(named(row)):
                trainer.stop(row["net"])
    return Fitted(trainer.state(), trainer.history, trainer.diverged, interrupted)


def fit(part, groups, workers, report, on_result, should_stop, on_death):
    """Train groups of nets in `workers` processes; on_result(fitted) for each, in their order.

    Raises Interrupted if should_stop() returned True, and what a task or on_epoch raises.
    """
    if workers > 1:
        _check_importable(part)
    results = run_jobs(fit_group, part, groups, workers, report, on_result, should_stop, on_death)
    if any(fitted.interrupted for fitted in results):
        raise Interrupted


def _check_importable(part):
    """Raise ValueError for what another process cannot have."""
    for name, value in (("on_epoch", part.on_epoch), ("layers", part.recipe.architecture)):
        try:
            pickle.dumps(value)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ValueError(
                f"{name}: worker processes cannot import it ({error}); expected a function or "
                "class of a module, or workers=1"
            ) from None


def merged(state, results):
    """The state (arrays, about) of all nets: of those in `results` the new one, else the old."""
    arrays, about = {name: array.copy() for name, array in state[0].items()}, dict(state[1])
    places = {net: place for place, net in enumerate(about["nets"])}
    for fitted in results:
        theirs, of_group = fitted.state
        rows = [places[net] for net in of_group["nets"]]
        for name in checkpoint.MODEL_ARRAYS:
            arrays[name][rows] = theirs[name]
        about["step"] = max(about["step"], of_group["step"])
    rows = np.concatenate([fitted.state[0]["history"] for fitted in results] or [arrays["history"]])
    arrays["history"] = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
    return arrays, about
