"""Sequential.fit: train nets that exist already, as ensemble.py trains new ones.

Each group of nets is a task for run_jobs (workers.py): a Trainer starts from the states of its nets
and returns their new ones. So fit and the command run the same code, and their bits agree.
"""

import contextlib
import itertools
import pickle
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .. import checks
from ..augment import RandomAffine
from ..files import brief
from ..nets import Nets
from ..network.architecture import Architecture
from ..network.optim import Adam, Averaging, Schedule
from ..network.stack import check_batch
from . import arguments, checkpoint, learnable
from .dataset import Data
from .history import named
from .resources import split_nets
from .trainer import Job, Trainer, steps_per_epoch
from .workers import Interrupted, in_worker, run_jobs, sendable


@dataclass(frozen=True)
class RatePerEpoch(Schedule):
    """A Schedule of given learning rates: equal in all steps of an epoch, from epoch `first` on."""

    rate_of_epoch: tuple
    first: int

    def __post_init__(self):
        pass

    def rates(self, epoch, steps, epochs):
        """The rates (steps,) of an epoch, from 1."""
        return np.full(steps, self.rate_of_epoch[epoch - self.first])


@dataclass(frozen=True)
class FitRecipe:
    """What a Trainer asks of a recipe (recipe.py), from the arguments of Sequential.fit.

    all_nets: numbers from 1. schedule: that of the learning rate, from initial_epoch on.
    initial_step: the optimizer steps of a group's nets before this training; see fit_group.
    """

    architecture: Architecture
    all_nets: tuple
    seed: int
    dtype: str
    optimizer: Adam
    epochs: int
    initial_epoch: int
    batch_size: int
    validation_fraction: float
    augment: RandomAffine
    schedule: Schedule
    averaging: Averaging | None
    label_smoothing: float
    initial_step: int = 0

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

    def learning_rates(self, epoch, steps):
        """The learning rates (steps,) of an epoch, from 1."""
        return self.schedule.rates(epoch, steps, self.epochs)

    def model(self, nets, device, precision):
        """New Nets with the numbers `nets`, from 1."""
        numbers = [net - 1 for net in nets]
        settings = device, self.dtype, precision, self.optimizer, self.label_smoothing
        return Nets(self.architecture, numbers, self.seed, *settings)

    def for_checkpoint(self):
        """Nothing: the states of fit go into the model. Its layers may be the user's own."""
        return {}


def prepare(
    model,
    x,
    y,
    *,
    batch_size,
    epochs,
    initial_epoch,
    validation_split,
    validation_data,
    augment,
    learning_rate,
    label_smoothing,
    average_epochs,
    average_decay,
):
    """(FitRecipe, Data) for a Sequential and the arguments of its fit. Raises ValueError."""
    model.check_trainable()
    arguments.check_classifier(model.architecture)
    batch_size = checks.word("batch_size", checks.integer("batch_size", batch_size, 1))
    check_batch(model.nodes, batch_size)
    epochs = checks.word("epochs", checks.integer("epochs", epochs, 1))
    initial_epoch = checks.integer("initial_epoch", initial_epoch, 0, epochs - 1)
    augment = RandomAffine() if augment is None else augment
    if not isinstance(augment, RandomAffine):
        raise ValueError(f"augment: got {augment!r}, expected a RandomAffine")
    label_smoothing = checks.number("label_smoothing", label_smoothing, 0, 1, "[)")
    fraction = checks.number("validation_split", validation_split, 0, 1, "[)")
    x, y = _images_and_labels(model, "x", x, "y", y)
    held_out = {}
    if validation_data is not None:
        if not isinstance(validation_data, (tuple, list)) or len(validation_data) != 2:
            got = brief(" ".join(repr(validation_data).split()))
            raise ValueError(f"validation_data: got {got}, expected (x, y)")
        names = "validation_data[0]", "validation_data[1]"
        pair = _images_and_labels(model, names[0], validation_data[0], names[1], validation_data[1])
        held_out = dict(zip(("validation_images", "validation_labels"), pair, strict=True))
        fraction = 0.0
    if learning_rate is None:
        learning_rate = model.optimizer.learning_rate
    trained = range(initial_epoch + 1, epochs + 1)
    recipe = FitRecipe(
        architecture=model.architecture,
        all_nets=tuple(int(net) + 1 for net in model.nets),
        seed=model.seed,
        dtype=model.dtype.name,
        optimizer=model.optimizer,
        epochs=epochs,
        initial_epoch=initial_epoch,
        batch_size=batch_size,
        validation_fraction=fraction,
        augment=augment,
        schedule=_schedule(learning_rate, trained),
        averaging=Averaging.of(average_epochs, average_decay, trained),
        label_smoothing=label_smoothing,
    )
    steps = steps_per_epoch(recipe, len(x))  # raises if there is none
    data = Data(x, y, classes=model.classes, **held_out)
    learnable.check_rate(_highest_rate(recipe, steps))
    learnable.check_images(model.classes, data)
    return recipe, data


def _images_and_labels(model, x_name, x, y_name, y):
    x = arguments.images(x_name, x, model.input_shape)
    return x, arguments.labels(y_name, y, x_name, len(x), len(model.classes))


def _schedule(learning_rate, epochs):
    """The Schedule of a number, of a function of the epoch, or the Schedule itself."""
    if isinstance(learning_rate, Schedule):
        return learning_rate
    if callable(learning_rate):
        rates = tuple(
            checks.number(f"learning_rate({epoch})", learning_rate(epoch), 0, ends="(]")
            for epoch in epochs
        )
    else:
        rates = (checks.number("learning_rate", learning_rate, 0, ends="(]"),) * len(epochs)
    return RatePerEpoch(rates, epochs[0])


def _highest_rate(recipe, steps):
    """The highest learning rate of all steps. Raises ValueError unless all are positive numbers."""
    highest = 0.0
    for epoch in range(recipe.initial_epoch + 1, recipe.epochs + 1):
        rates = recipe.learning_rates(epoch, steps)
        for rate in (rates.min(), rates.max()):
            checks.number(f"learning_rate({epoch})", float(rate), 0, ends="(]")
        highest = max(highest, float(rates.max()))
    return highest


@dataclass(frozen=True)
class Part:
    """What all groups of nets share."""

    recipe: FitRecipe
    data: Data
    device: object  # a name, or a Backend if all runs in this process
    precision: str
    on_epoch: Callable | None


@dataclass(frozen=True)
class Fitted:
    """The result of a group of nets.

    state: (arrays, about). steps: {net: its optimizer steps}. diverged: {net: (epoch, step)}. Nets
    count from 1.
    """

    state: tuple
    steps: dict
    diverged: dict


def initial_state(model):
    """The state (arrays, about) of a model's nets, before a training."""
    arrays, about = checkpoint.model_state(model)
    arrays["history"] = checkpoint.history_table([])
    return arrays, {**about, "diverged": []}


def are_finite(arrays):
    """(E,) whether all weights, moving statistics and moments of each net are finite."""
    finite = [np.isfinite(arrays[name]).all(axis=1) for name in checkpoint.MODEL_ARRAYS]
    return np.all(finite, axis=0)


def split_state(arrays, about, steps, size):
    """[(nets, state), ...] of the groups to train: ranges of numbers from 1, and their states.

    arrays, about: the state of all nets; steps: {number from 0: the net's optimizer steps}. Nets of
    a group are at the same step, and at most `size`. Nets with weights that are not finite are left
    out: what they compute is not finite, either.
    """
    finite = are_finite(arrays)
    numbers = [net for net, fine in zip(about["nets"], finite, strict=True) if fine]
    groups = []
    for step, same in itertools.groupby(numbers, steps.get):
        for nets in split_nets([net + 1 for net in same], size):
            chosen = checkpoint.select(arrays, about, [net - 1 for net in nets], "model")
            groups.append((nets, (chosen[0], {**chosen[1], "step": step})))
    return groups


def fit_group(part, group, report, should_stop):
    """Train a group (nets, state), as split_state gives it. Returns a Fitted.

    report(n): n more images were trained on. report(0, rows): an epoch has ended; rows = {net: its
    row of the history, None if it diverged}. on_epoch(row) that returns true ends the training of
    its net. What it raises ends the training of the group: report(0, the exception).
    """
    nets, (arrays, about) = group
    recipe = replace(part.recipe, initial_step=about["step"])
    trainer = Trainer(Job(recipe, part.data, part.device, part.precision, Path(), len(nets)), nets)
    checkpoint.restore_model(trainer.model, arrays, about, "model")
    while not trainer.is_done:
        try:
            rows = trainer.train_epoch(report, should_stop)
        except Interrupted:  # the state after the last step is a result, too
            break
        try:
            report(0, {row["net"]: row for row in rows} | dict.fromkeys(trainer.diverged))
            for row in rows:
                if part.on_epoch is not None and part.on_epoch(named(row)):
                    trainer.stop(row["net"])
        except BaseException as error:  # the epoch is a result all the same
            report(0, _for_parent(error))
            break
    return Fitted(trainer.state(), trainer.steps_of_nets, trainer.diverged)


def _for_parent(error):
    """An exception for the process that called fit; in a worker, it prints where it was raised."""
    if not in_worker():
        return error
    traceback.print_exception(error)
    return sendable(error)


def fit(part, groups, workers, report, on_result, should_stop, on_death):
    """Train groups of nets in `workers` processes; on_result(fitted) for each, in their order.

    Raises Interrupted if should_stop() returned True, and what a task or on_epoch raises; then all
    groups stop after their current step.
    """
    raised = []

    def told(count, note=()):
        if isinstance(note, BaseException):
            raised.append(note)
        else:
            report(count, note)

    def stopping():
        return bool(raised) or should_stop()

    with contextlib.suppress(Interrupted):  # raised below, unless there is another reason
        run_jobs(fit_group, part, groups, workers, told, on_result, stopping, on_death)
    if raised:
        raise raised[0]
    if should_stop():
        raise Interrupted


def check_importable(part):
    """Raise ValueError for what worker processes cannot have."""
    for name, value in (("on_epoch", part.on_epoch), ("layers", part.recipe.architecture)):
        try:
            pickle.dumps(value)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ValueError(
                f"{name}: worker processes cannot import it ({error}); expected a function or "
                "class of a module, or workers=1"
            ) from None


def merged(state, results):
    """(arrays, {net, from 1: its optimizer steps}) of `results` put over the arrays of all nets.

    Of nets without a result, the arrays are as before.
    """
    arrays, about = {name: array.copy() for name, array in state[0].items()}, state[1]
    places, steps = {net: place for place, net in enumerate(about["nets"])}, {}
    for fitted in results:
        theirs, of_group = fitted.state
        rows = [places[net] for net in of_group["nets"]]
        for name in checkpoint.MODEL_ARRAYS:
            arrays[name][rows] = theirs[name]
        steps |= fitted.steps
    rows = np.concatenate([fitted.state[0]["history"] for fitted in results] or [arrays["history"]])
    arrays["history"] = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
    return arrays, steps
