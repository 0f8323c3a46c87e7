"""Train a group of nets in lockstep: steps, epochs, validation, and its checkpoint.

for each epoch:
    take the cores that other worker processes have left (workers.py)
    set the learning rate and shuffle the training images
    for each step: load a batch, model.train_step, add loss and correct predictions to sums
    predict the validation images and append a row per net to the history

Images, labels, shuffles, step counter and sums stay in the device's memory during an epoch. A step
copies nothing to the host. Read model.py next, for the step itself; ensemble.py trains the groups.
"""

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import rng
from ..backends import trace
from ..data.labels import DIGITS
from ..data.load import fingerprint
from ..data.sources import size_text
from ..data.split import split, validation_count
from ..files import DataError, brief
from ..model import PREDICT_BATCH
from ..recipe import Recipe, image_shape
from . import checkpoint
from .workers import Interrupted, take_cores


@dataclass(frozen=True)
class Data:
    """A data set: images uint8 (N, H, W) or (N, H, W, C), and labels (N,) that count its classes.

    The test set, or only its labels, may be None. `fingerprint` identifies the training set.
    classes, test_ids and description: as in data/load.py's DataSet.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray | None = None
    test_labels: np.ndarray | None = None
    fingerprint: str = ""
    classes: tuple = DIGITS
    test_ids: tuple | None = None
    description: str = ""

    @classmethod
    def of(cls, source, limit=None, test_limit=None):
        """The first `limit` training images and `test_limit` test images of a DataSet.

        Raises DataError if the test images have another shape than the training images.
        """
        x, y, x_test, y_test = source.x_train, source.y_train, source.x_test, source.y_test
        if x_test is not None and image_shape(x) != image_shape(x_test):
            found, expected = (size_text(images.shape[1:]) for images in (x_test, x))
            raise DataError(f"test images: got {found}, expected {expected} as for training")
        x, y = x[:limit], y[:limit]
        x_test, y_test = (a if a is None else a[:test_limit] for a in (x_test, y_test))
        ids = source.test_ids
        if ids is not None:
            ids = *ids[:2], ids[2][:test_limit]
        about = source.classes, ids, source.description
        return cls(x, y, x_test, y_test, fingerprint(x, y), *about)

    @property
    def input_shape(self):
        """(H, W, C) of an image."""
        return image_shape(self.train_images)


@dataclass(frozen=True)
class Job:
    """Everything that a process needs to train any net of an ensemble."""

    recipe: Recipe
    data: Data
    device: str
    precision: str
    folder: Path  # where the checkpoints are saved
    group_size: int = 1  # most nets trained together; it does not change the results
    graph: bool = True  # capture a step and replay it, if the backend supports that


class Trainer:
    """A group of E nets that train in lockstep: each step trains every net on its own batch.

    The arrays that a step uses are in the device's memory: images, labels, the order of the images
    for each net, step counter, learning rate, and the sums of the metrics.
    """

    def __init__(self, job, nets):
        recipe, data = job.recipe, job.data
        labels = int(data.train_labels.max())
        if data.input_shape != recipe.input_shape or labels >= len(recipe.classes):
            raise ValueError(
                f"data: got images {size_text(data.input_shape)} and labels up to {labels}, the "
                f"recipe is for {recipe.purpose}; expected Recipe.of(data)"
            )
        self.recipe, self.nets, self.fingerprint = recipe, nets, data.fingerprint
        self.model = recipe.model(nets, job.device, job.precision)
        self.ops = self.model.ops
        self.images = self.ops.to_device(data.train_images)
        self.labels = self.ops.to_device(data.train_labels.astype(np.uint16))
        self.host_labels = data.train_labels
        splits = [
            split(len(data.train_images), recipe.validation_fraction, recipe.seed, int(net))
            for net in self.model.nets
        ]
        self.train_indices = np.stack([train for train, _ in splits])  # (E, n)
        self.validation_indices = np.stack([validation for _, validation in splits])
        self.steps = steps_per_epoch(recipe, len(data.train_images))
        bounds = recipe.augment.bounds(*data.train_images.shape[1:3])
        self.bounds = None if bounds is None else self.ops.to_device(bounds)
        self.plan = self.model.plan(recipe.batch_size, training=True)
        self.order = self.ops.empty((len(nets), self.steps, recipe.batch_size), np.int32)
        # Of the epoch so far: loss, correct predictions, steps before the first loss not finite.
        self.sums = self.ops.zeros((len(nets), 3), np.float64)
        self.seconds = 0.0  # time spent in the epoch so far
        self.history = []
        self.diverged = {}  # {net: (epoch, step)} where its loss or a weight stopped being finite
        self.graph = job.graph
        around_first = trace.printing if nets[0] == recipe.first_net else contextlib.nullcontext
        self._run_step = CapturedStep(self.ops, job.graph, around_first)

    @property
    def steps_done(self):
        """Optimizer steps since the start of training."""
        return int(self.ops.to_host(self.model.step)[0])

    @property
    def epochs_done(self):
        """Number of complete epochs, validation included."""
        return max((row["epoch"] for row in self.history), default=0)

    @property
    def is_done(self):
        """Whether every net has finished all epochs or has diverged."""
        return len(self.diverged) == len(self.nets) or self.epochs_done >= self.recipe.epochs

    def begin_epoch(self, epoch):
        """Set the learning rate and new shuffles for an epoch, counted from 0."""
        self.model.learning_rate[...] = self.recipe.schedule(epoch + 1)
        used = self.steps * self.recipe.batch_size
        orders = []
        for net, indices in zip(self.model.nets, self.train_indices, strict=True):
            shuffle = rng.permutation(self.model.seed, int(net), rng.SHUFFLE, epoch, len(indices))
            orders.append(indices[shuffle[:used]])
        order = np.stack(orders).reshape(self.order.shape)
        self.ops.copy(self.ops.to_device(order), self.order)

    def step(self):
        """One training step of every net; it allocates no array and reads nothing back."""
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
        model.train_step(plan)
        self.ops.accumulate(plan.loss, plan.correct, self.sums)

    def train_epoch(self, report, should_stop):
        """Train to the end of the current epoch, validate, and append a row per net to the history.

        A net diverges when its loss or a weight is not finite. Diverged nets get no more rows. They
        still take part in the steps, which does not affect the other nets.

        report(n): n more images were trained on. When should_stop() returns True, raises
        Interrupted before the next step; calling train_epoch again continues from there.
        """
        epoch = self.epochs_done
        started = time.monotonic() - self.seconds
        take_cores()
        try:
            with self.ops.session():
                self.begin_epoch(epoch)
                for _ in range(self.steps_done - epoch * self.steps, self.steps):
                    if should_stop():
                        raise Interrupted
                    self._run_step(self.step)
                    report(self.recipe.batch_size * len(self.nets))
                loss, correct, finite_steps = self.ops.to_host(self.sums).T  # (E,) each
                validation = self._validate(should_stop)
                self.sums[...] = 0
        finally:
            self.seconds = time.monotonic() - started
        self._record_diverged(epoch + 1, finite_steps, [loss for loss, _ in validation])
        for net, train_loss, train_correct, (validation_loss, validation_accuracy) in zip(
            self.nets, loss, correct, validation, strict=True
        ):
            if net in self.diverged:
                continue
            self.history.append(
                {
                    "net": net,
                    "epoch": epoch + 1,
                    "learning_rate": self.recipe.schedule(epoch + 1),
                    "train_loss": float(train_loss) / self.steps,
                    "train_accuracy": float(train_correct) / (self.steps * self.recipe.batch_size),
                    "validation_loss": validation_loss,
                    "validation_accuracy": validation_accuracy,
                    "seconds": self.seconds,
                }
            )
        self.seconds = 0.0

    def _record_diverged(self, epoch, finite_steps, validation_losses):
        """Record the nets that diverged in an epoch, counted from 1."""
        weights = [self.ops.to_host(a) for a in (self.model.params, self.model.moving)]
        for i, (net, steps, loss) in enumerate(
            zip(self.nets, finite_steps, validation_losses, strict=True)
        ):
            finite = all(np.isfinite(array[i]).all() for array in weights)
            finite = finite and (loss is None or np.isfinite(loss))
            if net not in self.diverged and (steps < self.steps or not finite):
                self.diverged[net] = epoch, min(int(steps) + 1, self.steps)

    def _validate(self, should_stop):
        """(loss, accuracy) of each net on its validation images; (None, None) if it has none."""
        if not self.validation_indices.size:
            return [(None, None)] * len(self.nets)
        # (E, n, classes), n validation images per net
        probabilities = predict(
            self.model,
            self.images,
            self.validation_indices,
            should_stop=should_stop,
            graph=self.graph,
        )
        results = []
        for of_net, indices in zip(probabilities, self.validation_indices, strict=True):
            labels = self.host_labels[indices]
            at_label = of_net[np.arange(len(labels)), labels].astype(np.float64)
            loss = -np.log(np.maximum(at_label, np.finfo(np.float32).tiny)).mean()
            results.append((float(loss), float(np.mean(of_net.argmax(axis=1) == labels))))
        return results

    def predict(self, images, should_stop):
        """Probabilities (nets, N, classes) of images (N, H, W) by the nets that did not diverge.

        A net whose probabilities are not finite is recorded as diverged in the last step.
        """
        everything = np.broadcast_to(np.arange(len(images)), (len(self.nets), len(images)))
        probabilities = predict(
            self.model,
            self.ops.to_device(images),
            everything,
            should_stop=should_stop,
            graph=self.graph,
        )
        for net, of_net in zip(self.nets, probabilities, strict=True):
            if net not in self.diverged and not np.isfinite(of_net).all():
                self.diverged[net] = self.recipe.epochs, self.steps
        return probabilities[[net not in self.diverged for net in self.nets]]

    def save(self, path):
        """Write a checkpoint; possible between any two steps."""
        arrays, about = checkpoint.model_state(self.model)
        arrays["sums"] = self.ops.to_host(self.sums)
        # The values of a diverged net depend on the other nets of its group: do not save them.
        gone = [i for i, net in enumerate(self.nets) if net in self.diverged]
        for array in arrays.values():
            array[gone] = np.nan
        arrays["history"] = checkpoint.history_table(self.history)
        about.update(
            recipe=self.recipe.as_dict(),
            data=self.fingerprint,
            seconds=self.seconds,
            diverged=[
                {"net": net, "epoch": epoch, "step": step}
                for net, (epoch, step) in self.diverged.items()
            ],
        )
        checkpoint.save(path, arrays, about)

    def load(self, path):
        """Restore the state that `save` wrote. Raises DataError if it does not fit this job."""
        arrays, about = checkpoint.select(*checkpoint.load(path), self.model.nets, path)
        if about["data"] != self.fingerprint:
            theirs = brief(repr(about["data"]), 70)
            raise DataError(f"{path}: data: got {theirs}, expected {self.fingerprint!r}")
        for name, ours in self.recipe.as_dict().items():
            if about["recipe"].get(name) != ours:
                theirs = brief(repr(about["recipe"].get(name)))
                raise DataError(f"{path}: recipe: got {name} {theirs}, expected {ours!r}")
        if arrays["sums"].shape != self.sums.shape:
            raise DataError(
                f"{path}: sums: got shape {arrays['sums'].shape}, expected {self.sums.shape}"
            )
        diverged = {row["net"]: (row["epoch"], row["step"]) for row in about["diverged"]}
        self._check_progress(path, arrays["history"], diverged, about["step"])
        checkpoint.restore_model(self.model, arrays, about, path)
        self.ops.copy(self.ops.to_device(arrays["sums"].astype(np.float64)), self.sums)
        self.history = checkpoint.history_rows(arrays["history"])
        self.seconds, self.diverged = about["seconds"], diverged

    def _check_progress(self, path, history, diverged, step):
        """Raise DataError unless the history (rows, columns) has all epochs up to `step`."""
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


def predict(
    model, images, indices, report=lambda images: None, should_stop=lambda: False, graph=True
):
    """Class probabilities (E, n, classes), on the host, of n images for each of E nets.

    images: (N, H, W) uint8, on the device. indices: (E, n), on the host; row e selects the images
    of net e. report(n): n more images were predicted. Raises Interrupted when should_stop() returns
    True.
    """
    ops = model.ops
    E, n = indices.shape
    plan = model.plan(PREDICT_BATCH, training=False)
    batches = -(-n // plan.batch)
    padded = np.zeros((E, batches * plan.batch), np.int32)  # fills the last batch
    padded[:, :n] = indices
    order = ops.to_device(padded.reshape(E, batches, plan.batch))
    outputs = ops.empty((E, batches, plan.batch, *model.output_shape), model.dtype)
    done = ops.zeros((1,), np.int64)  # batches so far, counted on the device

    def predict_batch():
        ops.load_batch(
            images, None, order, None, model.seed, model.net_numbers, done, plan.x, plan.labels
        )
        ops.collect(model.infer(plan), done, outputs)

    take_cores()
    with ops.session():
        run_step = CapturedStep(ops, graph)
        for batch in range(batches):
            if should_stop():
                raise Interrupted
            run_step(predict_batch)
            report(E * (min((batch + 1) * plan.batch, n) - batch * plan.batch))
        return ops.to_host(outputs).reshape(E, -1, *model.output_shape)[:, :n]


class CapturedStep:
    """Runs a step; from the second call on it replays a captured copy.

    Call it with the same function each time. The first call runs the function, which compiles its
    kernels. The second call captures it (a CUDA graph on a GPU) and replays the capture, as all
    later calls do. Without support for capture, every call runs the function.

    The function is an argument of each call, not an attribute: it refers to a Trainer, whose arrays
    an attribute would keep in memory.
    """

    def __init__(self, ops, graph, around_first=contextlib.nullcontext):
        self._capture = ops.capture if graph else None
        self._around_first = around_first  # makes a context manager for the first call
        self._called, self._replay = False, None

    def __call__(self, function):
        if not self._called:
            with self._around_first():
                function()
            self._called = True
            return
        if self._capture and not self._replay:
            self._replay = self._capture(function)
        (self._replay or function)()


def steps_per_epoch(recipe, images):
    """The number of whole batches in a net's training images. Raises DataError if it is 0."""
    train = images - validation_count(images, recipe.validation_fraction)
    if train < recipe.batch_size:
        raise DataError(
            f"batch size: got {train} training images after the validation split, "
            f"expected at least one batch of {recipe.batch_size}"
        )
    return train // recipe.batch_size
