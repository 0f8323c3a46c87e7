"""Train a group of nets in lockstep: steps, epochs, validation, and its checkpoint.

for each epoch:
    take the cores that other worker processes have left (workers.py)
    set the learning rates of its steps and shuffle the training images
    for each step: load a batch, model.train_step, which adds loss and correct predictions to sums
    after the last step of the last epoch: take the average of the weights, if the recipe has one
    predict the validation images and append a row per net to the history

Images, labels, shuffles, step counter, averages and sums stay in the device's memory during an
epoch. A step copies nothing to the host. Read nets.py next, for the step itself; ensemble.py trains
the groups of a command, fit.py those of Sequential.fit.
"""

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import rng
from ..backends import trace
from ..data.sources import size_text
from ..data.split import split, validation_count
from ..files import DataError, brief
from ..recipe import Recipe, completed
from . import checkpoint
from .dataset import Data
from .inference import CapturedStep, Predictor, score
from .workers import Interrupted, take_cores

_STATISTICS_IMAGES = 6400  # from which moving statistics follow after averaging


@dataclass(frozen=True)
class Job:
    """Everything that a process needs to train any net of an ensemble."""

    recipe: Recipe
    data: Data
    device: object  # a name, or a Backend if all runs in this process
    precision: str
    folder: Path  # where the checkpoints are saved
    group_size: int = 1  # most nets trained together; it does not change the results
    graph: bool = True  # capture a step and replay it, if the backend supports that


class Trainer:
    """A group of E nets that train in lockstep: each step trains every net on its own batch.

    The arrays that a step uses are in the device's memory: images, labels, the order of the images
    for each net, step counter, learning rates of the epoch, and the sums of the metrics.
    """

    def __init__(self, job, nets):
        recipe, data = job.recipe, job.data
        labels, architecture = int(data.train_labels.max()), recipe.architecture
        if data.input_shape != architecture.input_shape or labels >= len(architecture.classes):
            raise ValueError(
                f"data: got images {size_text(data.input_shape)} and labels up to {labels}, the "
                f"recipe is for {architecture.purpose}; expected Recipe.of(data)"
            )
        self.recipe, self.nets, self.fingerprint = recipe, nets, data.fingerprint
        self.model = recipe.model(nets, job.device, job.precision)
        self.ops = self.model.ops
        self.images = self.ops.to_device(data.train_images)
        self.labels = self.ops.to_device(data.train_labels.astype(np.uint16))
        splits = [
            split(len(data.train_images), recipe.validation_fraction, recipe.seed, int(net))
            for net in self.model.nets
        ]
        self.train_indices = np.stack([train for train, _ in splits])  # (E, n)
        self.validation_images, self.validation_labels = self.images, data.train_labels
        self.validation_indices = np.stack([validation for _, validation in splits])
        if data.validation_images is not None:  # the same for each net
            self.validation_images = self.ops.to_device(data.validation_images)
            self.validation_labels = data.validation_labels
            of_net = np.arange(len(data.validation_images))
            self.validation_indices = np.tile(of_net, (len(nets), 1))
        self.steps = steps_per_epoch(recipe, len(data.train_images))
        bounds = recipe.augment.bounds(*data.train_images.shape[1:3])
        self.bounds = None if bounds is None else self.ops.to_device(bounds)
        self.plan = self.model.plan(recipe.batch_size, training=True)
        self.order = self.ops.empty((len(nets), self.steps, recipe.batch_size), np.int32)
        self.rates = self.ops.empty((self.steps,), np.float64)  # learning rates of the epoch
        self.averaged = self.average_shares = None
        if recipe.averaging is not None:
            self.averaged = self.ops.zeros(self.model.params.shape, self.model.dtype)  # (E, P)
            self.average_shares = self.ops.empty((self.steps,), np.float64)
        # Of the epoch so far: loss, correct predictions, steps before the first loss not finite.
        self.sums = self.ops.zeros((len(nets), 3), np.float64)
        self.seconds = 0.0  # time spent in the epoch so far
        self.history = []
        self._on_host = {}  # {name: NumPy array}: memory that _record_diverged uses again
        self.diverged = {}  # {net: (epoch, step)} where its loss or a weight stopped being finite
        # {net: (optimizer steps, {name: its row of each array of the state})} when it was stopped
        self._stopped = {}
        self.graph = job.graph
        is_first = nets[0] == recipe.first_net
        self._around_first = trace.printing if is_first else contextlib.nullcontext
        self._validation = None  # its Predictor, once there is one
        self._next_order = None, None  # (epoch, its order), prepared in the epoch before
        self._averages = False  # whether the steps of the epoch take part in the average
        self._run_steps = {}  # {whether they do: CapturedStep}

    @property
    def steps_done(self):
        """Optimizer steps since the start of training."""
        return int(self.ops.to_host(self.model.step)[0])

    @property
    def steps_of_nets(self):
        """{net: its optimizer steps}; they differ where nets were stopped."""
        done = self.steps_done
        return {net: self._stopped[net][0] if net in self._stopped else done for net in self.nets}

    @property
    def epochs_done(self):
        """Number of complete epochs, validation included."""
        return max((row["epoch"] for row in self.history), default=self.recipe.initial_epoch)

    @property
    def is_done(self):
        """Whether every net has finished all epochs, has diverged or was stopped."""
        gone = self.diverged.keys() | self._stopped.keys()
        return len(gone) == len(self.nets) or self.epochs_done >= self.recipe.epochs

    def begin_epoch(self, epoch):
        """Set what the steps of an epoch, counted from 0, take: rates, averaging, new shuffles."""
        self._set_for_steps(self.rates, self._learning_rates(epoch))
        averaging, shares = self.recipe.averaging, None
        if averaging is not None:
            shares = averaging.shares(epoch + 1, self.steps)
        self._averages = shares is not None
        if self._averages:
            self._set_for_steps(self.average_shares, shares)
        self._shuffle(epoch)

    def _shuffle(self, epoch):
        if self._next_order[0] != epoch:
            self._prepare_order(epoch)
        self.ops.copy(self.ops.to_device(self._next_order[1]), self.order)

    def _prepare_order(self, epoch):
        """Shuffle the training images for an epoch, on the host."""
        used = self.steps * self.recipe.batch_size
        orders = []
        for net, indices in zip(self.model.nets, self.train_indices, strict=True):
            shuffle = rng.permutation(self.model.seed, int(net), rng.SHUFFLE, epoch, len(indices))
            orders.append(indices[shuffle[:used]])
        self._next_order = epoch, np.stack(orders).reshape(self.order.shape)

    def _learning_rates(self, epoch):
        """The learning rates (steps,) of an epoch, counted from 0."""
        return self.recipe.learning_rates(epoch + 1, self.steps)

    def _set_for_steps(self, array, values):
        """Copy values (steps,), one for each step of an epoch, into an array of the device.

        Operations take element s % steps in optimizer step s, and the first step of an epoch need
        not be a multiple of `steps`: see FitRecipe.initial_step.
        """
        turned = np.roll(values, self.recipe.initial_step % self.steps)
        self.ops.copy(self.ops.to_device(turned), array)

    def step(self):
        """One training step of every net; it allocates no array and reads nothing back."""
        model = self.model
        self._load_batch()
        model.train_step(self.plan, self.rates, self.sums)
        if self._averages:
            self.ops.average(model.params, self.averaged, model.step, self.average_shares)

    def _captured_step(self):
        """What runs the steps of the epoch that begin_epoch has set."""
        if self._averages not in self._run_steps:
            around_first = contextlib.nullcontext if self._run_steps else self._around_first
            self._run_steps[self._averages] = CapturedStep(self.ops, self.graph, around_first)
        return self._run_steps[self._averages]

    def _load_batch(self):
        """The images of the next step, shuffled and augmented, into the plan."""
        model, plan = self.model, self.plan
        self.ops.load_batch(
            self.images,
            self.labels,
            self.order,
            self.bounds,
            model.seed,
            model.net_numbers,
            model.step,
            plan.x,
            plan.labels,
        )

    def _take_average(self):
        """After the last step: make the averages the weights, and compute their moving statistics.

        The moving statistics are the means of the statistics of batches, augmented and with dropout
        as in training. The batches hold _STATISTICS_IMAGES images, or an epoch's if that is fewer;
        they are the first ones of the epoch that would follow. This is never interrupted, so the
        weights always have statistics of their own. Called again, it computes the same bits.
        """
        step, done = self.model.step, self.steps_done
        batches = min(self.steps, -(-_STATISTICS_IMAGES // self.recipe.batch_size))
        self.ops.copy(self.averaged, self.model.params)
        self._shuffle(self.recipe.epochs)
        for i in range(batches):
            self._load_batch()
            self.plan.forward()
            self.plan.update_moving(momentum=i / (i + 1))
            step[...] = done + i + 1
        step[...] = done

    def train_epoch(self, report, should_stop):
        """Train to the end of the current epoch and validate. Returns the new rows of the history.

        They are one for each net, except for nets that were stopped or that diverged, because their
        loss or a weight is not finite. Such nets still take part in the steps, which does not
        affect the other nets.

        report(n): n more images were trained on. When should_stop() returns True, raises
        Interrupted before the next step, or in the validation; calling train_epoch again continues
        from there. After the last step the weights are their averages, if the recipe has some, and
        the moving statistics are those of the averages.
        """
        recipe, epoch = self.recipe, self.epochs_done
        first_step = recipe.initial_step + (epoch - recipe.initial_epoch) * self.steps
        started = time.monotonic() - self.seconds
        take_cores()
        try:
            with self.ops.session():
                self.begin_epoch(epoch)
                run_step = self._captured_step()
                for _ in range(self.steps_done - first_step, self.steps):
                    if should_stop():
                        raise Interrupted
                    run_step(self.step)
                    report(self.recipe.batch_size * len(self.nets))
                if epoch + 1 < recipe.epochs:
                    self._prepare_order(epoch + 1)  # while a GPU has yet to do the steps
                loss, correct, finite_steps = self.ops.to_host(self.sums).T  # (E,) each
                if self.averaged is not None and epoch + 1 == recipe.epochs:
                    self._take_average()
                validation = self._validate(should_stop)
                self.sums[...] = 0
        finally:
            self.seconds = time.monotonic() - started
        self._record_diverged(epoch + 1, finite_steps, [loss for loss, _ in validation])
        last_rate = float(self._learning_rates(epoch)[-1])
        rows = [
            {
                "net": net,
                "epoch": epoch + 1,
                "learning_rate": last_rate,  # of the last step
                "train_loss": float(train_loss) / self.steps,
                "train_accuracy": float(train_correct) / (self.steps * recipe.batch_size),
                "validation_loss": validation_loss,
                "validation_accuracy": validation_accuracy,
                "seconds": self.seconds,
            }
            for net, train_loss, train_correct, (validation_loss, validation_accuracy) in zip(
                self.nets, loss, correct, validation, strict=True
            )
            if net not in self.diverged and net not in self._stopped
        ]
        self.history += rows
        self.seconds = 0.0
        return rows

    def _record_diverged(self, epoch, finite_steps, validation_losses):
        """Record the nets that diverged in an epoch, counted from 1."""
        extremes = []
        for name in ("params", "moving"):
            array = self.ops.to_host(getattr(self.model, name), self._on_host.get(name))
            self._on_host[name] = array
            # Both are NaN if a value is. isfinite of all values would make a temporary array.
            extremes += [array.max(axis=1, initial=0), array.min(axis=1, initial=0)]
        extremes += [[0 if loss is None else loss for loss in validation_losses]]
        finite = np.isfinite(extremes).all(axis=0)
        for net, steps, is_finite in zip(self.nets, finite_steps, finite, strict=True):
            if net in self.diverged or net in self._stopped:
                continue
            if steps < self.steps or not is_finite:
                self.diverged[net] = epoch, min(int(steps) + 1, self.steps)

    def _validate(self, should_stop):
        """(loss, accuracy) of each net on its validation images; (None, None) if it has none."""
        if not self.validation_indices.size:
            return [(None, None)] * len(self.nets)
        if self._validation is None:
            images = self.validation_images, self.validation_indices
            self._validation = Predictor(self.model, *images, self.graph)
        # (E, n, classes), n validation images per net
        probabilities = self._validation.predict(should_stop=should_stop)
        return [
            score(of_net, self.validation_labels[indices])
            for of_net, indices in zip(probabilities, self.validation_indices, strict=True)
        ]

    def predict(self, images, should_stop, views=None):
        """Probabilities (nets, N, classes) of images (N, H, W) by the nets that did not diverge.

        views: over how many views of an image they are averaged (default: the recipe's). A net
        whose probabilities are not finite is recorded as diverged in the last step.
        """
        everything = np.broadcast_to(np.arange(len(images)), (len(self.nets), len(images)))
        self._validation = None  # its arrays make room
        images = self.ops.to_device(images)
        predictor = Predictor(self.model, images, everything, self.graph)
        views = views or self.recipe.views
        probabilities = predictor.predict(should_stop=should_stop, views=views)
        for net, of_net in zip(self.nets, probabilities, strict=True):
            if net not in self.diverged and not np.isfinite(of_net).all():
                self.diverged[net] = self.recipe.epochs, self.steps
        return probabilities[[net not in self.diverged for net in self.nets]]

    def stop(self, net):
        """End the training of a net after an epoch: its state stays as it is now."""
        place = self.nets.index(net)
        rows = {name: array[place].copy() for name, array in self._arrays()[0].items()}
        self._stopped[net] = self.steps_done, rows

    def _arrays(self, into=None):
        """The arrays of the state but for the history, and the model's part of `about`."""
        arrays, about = checkpoint.model_state(self.model, into)
        return arrays | {"sums": self.ops.to_host(self.sums)}, about

    def state(self, into=None):
        """The state (arrays, about), as a checkpoint holds it; possible between any two steps.

        into: the arrays of an earlier state of this trainer, or {}. Their memory is used again, so
        that state is lost.
        """
        arrays, about = self._arrays(into)
        for net, (_, rows) in self._stopped.items():
            for name, row in rows.items():
                arrays[name][self.nets.index(net)] = row
        if self.averaged is not None and not self.is_done:
            into = (into or {}).get(checkpoint.AVERAGED)
            arrays[checkpoint.AVERAGED] = self.ops.to_host(self.averaged, into)
        # The values of a diverged net depend on the other nets of its group: do not save them.
        gone = [i for i, net in enumerate(self.nets) if net in self.diverged]
        for array in arrays.values():
            array[gone] = np.nan
        arrays["history"] = checkpoint.history_table(self.history)
        about.update(
            self.recipe.for_checkpoint(),
            data=self.fingerprint,
            seconds=self.seconds,
            diverged=[
                {"net": net, "epoch": epoch, "step": step}
                for net, (epoch, step) in self.diverged.items()
            ],
        )
        return arrays, about

    def save(self, path):
        """Write the state to a checkpoint."""
        checkpoint.save(path, *self.state())

    def load(self, path):
        """Restore the state in a checkpoint. Raises DataError if it does not fit this job."""
        self.restore(*checkpoint.load(path), path)

    def restore(self, arrays, about, path):
        """Restore a state that holds these nets. Raises DataError, which calls the state `path`."""
        arrays, about = checkpoint.select(arrays, about, self.model.nets, path)
        if about["data"] != self.fingerprint:
            theirs = brief(repr(about["data"]), 70)
            raise DataError(f"{path}: data: got {theirs}, expected {self.fingerprint!r}")
        saved = completed(about["recipe"])
        for name, ours in self.recipe.as_dict().items():
            if saved.get(name) != ours:
                theirs = brief(repr(saved.get(name)))
                raise DataError(f"{path}: recipe: got {name} {theirs}, expected {ours!r}")
        if arrays["sums"].shape != self.sums.shape:
            raise DataError(
                f"{path}: sums: got shape {arrays['sums'].shape}, expected {self.sums.shape}"
            )
        diverged = {row["net"]: (row["epoch"], row["step"]) for row in about["diverged"]}
        done = self._check_progress(path, arrays["history"], diverged, about["step"])
        averages = self.averaged is not None and len(diverged) < len(self.nets)
        averages = averages and done < self.recipe.epochs
        if averages and checkpoint.AVERAGED not in arrays:
            raise DataError(f"{path}: averaged: got nothing, expected averages of the weights")
        checkpoint.restore_model(self.model, arrays, about, path)
        if averages:
            averaged = arrays[checkpoint.AVERAGED].astype(self.model.dtype)
            self.ops.copy(self.ops.to_device(averaged), self.averaged)
        self.ops.copy(self.ops.to_device(arrays["sums"].astype(np.float64)), self.sums)
        self.history = checkpoint.history_rows(arrays["history"])
        self.seconds, self.diverged = about["seconds"], diverged

    def _check_progress(self, path, history, diverged, step):
        """The number of epochs done by the nets that did not diverge.

        Raises DataError unless the history (rows, columns) has all epochs up to `step`.
        """
        epochs = {net: history[history[:, 0] == net, 1] for net in self.nets}
        alive = [net for net in self.nets if net not in diverged]
        done = max((len(epochs[net]) for net in alive), default=0)
        complete = all(np.array_equal(epochs[net], np.arange(1, done + 1)) for net in alive)
        if alive:
            complete &= 0 <= step - done * self.steps <= self.steps
        for net, (epoch, _) in diverged.items():
            count = len(epochs[net])
            complete &= count <= (done if alive else epoch) <= self.recipe.epochs
            complete &= np.array_equal(epochs[net], np.arange(1, count + 1))
        if not complete or done > self.recipe.epochs:
            raise DataError(f"{path}: history: expected all epochs of each net up to step {step}")
        return done


def steps_per_epoch(recipe, images):
    """The number of whole batches in a net's training images. Raises DataError if it is 0."""
    train = images - validation_count(images, recipe.validation_fraction)
    if train < recipe.batch_size:
        raise DataError(
            f"batch_size: got {recipe.batch_size}, expected at most the {train:,} training images "
            "that a net has"
        )
    return train // recipe.batch_size
