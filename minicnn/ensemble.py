"""Training an ensemble: each net on a split of its own, then all of their predictions summed.

A Trainer takes a group of nets through the epochs in lockstep. train_ensemble hands the groups out
to processes (workers.py), and puts together what they bring back.
"""

import itertools
import re
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import checkpoint, rng
from .data import split, validation_count
from .files import DataError
from .model import PREDICT_BATCH
from .recipe import Recipe
from .workers import Interrupted, run_jobs


@dataclass(frozen=True)
class Data:
    """A data set: images uint8 (N, H, W), labels uint8 (N,). The test set, or its labels, may be
    None. `fingerprint` tells one training set from another.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray | None = None
    test_labels: np.ndarray | None = None
    fingerprint: str = ""


@dataclass(frozen=True)
class Job:
    """What a process needs to train any of the ensemble's nets."""

    recipe: Recipe
    data: Data
    device: str
    precision: str
    folder: Path  # of the nets' checkpoints
    group_size: int = 1  # nets trained together, at most; it changes no bit of the result
    graph: bool = True  # repeat a step by its capture, where the device has such a thing


FINAL = "checkpoint.npz"  # the state of all nets, once they are trained
_PARTIAL = re.compile(r"checkpoint-nets?-(\d+)(?:-(\d+))?\.npz")  # that of a group until then


class Trainer:
    """A group of nets, trained in lockstep.

    What a step needs lies where the backend computes: the images, each net's order of them, the
    step counter, the learning rate and the sums of the metrics.
    """

    def __init__(self, job, nets):
        recipe, data = job.recipe, job.data
        self.recipe, self.nets, self.fingerprint = recipe, nets, data.fingerprint
        self.model = recipe.model(nets, job.device, job.precision)
        self.ops = self.model.ops
        self.images = self.ops.to_device(data.train_images)
        self.labels = self.ops.to_device(data.train_labels)
        self.host_labels = data.train_labels
        splits = [
            split(len(data.train_images), recipe.validation_fraction, recipe.seed, int(net))
            for net in self.model.nets
        ]
        self.train_indices = np.stack([train for train, _ in splits])  # (E, n)
        self.validation_indices = np.stack([validation for _, validation in splits])
        self.steps = steps_per_epoch(recipe, len(data.train_images))
        bounds = recipe.augment.bounds(*data.train_images.shape[1:])
        self.bounds = None if bounds is None else self.ops.to_device(bounds)
        self.plan = self.model.plan(recipe.batch_size, training=True)
        self.order = self.ops.empty((len(nets), self.steps, recipe.batch_size), np.int32)
        self.sums = self.ops.zeros((len(nets), 2), np.float64)  # loss, correct of the epoch so far
        self.seconds = 0.0  # of the epoch so far
        self.history = []
        self.graph = job.graph
        self._repeat = Repeat(self.ops, job.graph)

    @property
    def steps_done(self):
        """Optimizer steps since the start."""
        return int(self.ops.to_host(self.model.step)[0])

    @property
    def epochs_done(self):
        """Epochs whose validation is done, too."""
        return len(self.history) // len(self.nets)

    def begin_epoch(self, epoch):
        """Set what holds for an epoch, counted from 0: the learning rate and the fresh shuffles."""
        self.model.learning_rate[...] = self.recipe.schedule(epoch + 1)
        used = self.steps * self.recipe.batch_size
        orders = []
        for net, indices in zip(self.model.nets, self.train_indices, strict=True):
            shuffle = rng.permutation(self.model.seed, int(net), rng.SHUFFLE, epoch, len(indices))
            orders.append(indices[shuffle[:used]])
        order = np.stack(orders).reshape(self.order.shape)
        self.ops.copy(self.ops.to_device(order), self.order)

    def step(self):
        """One step of every net: no array is made, and nothing is read back."""
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
        """Train to the end of the epoch, validate, and add a row for each net to the history.

        report(n) is told of n images trained on. Raises Interrupted after the step in hand where
        should_stop() turns true; called again, this goes on where it was.
        """
        epoch = self.epochs_done
        started = time.monotonic() - self.seconds
        try:
            with self.ops.session():
                self.begin_epoch(epoch)
                for _ in range(self.steps_done - epoch * self.steps, self.steps):
                    if should_stop():
                        raise Interrupted
                    self._repeat(self.step)
                    report(self.recipe.batch_size * len(self.nets))
                loss, correct = self.ops.to_host(self.sums).T  # (E,) each
                validation = self._validate(should_stop)
                self.sums[...] = 0
        finally:
            self.seconds = time.monotonic() - started
        for net, train_loss, train_correct, (validation_loss, validation_accuracy) in zip(
            self.nets, loss, correct, validation, strict=True
        ):
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

    def _validate(self, should_stop):
        """(loss, accuracy) of each net on its own validation images; (None, None) without any."""
        if not self.validation_indices.size:
            return [(None, None)] * len(self.nets)
        # (E, n, classes)
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

    def save(self, path):
        """Write the state: at the end of an epoch or in the midst of one."""
        arrays, about = checkpoint.model_state(self.model)
        arrays["sums"] = self.ops.to_host(self.sums)
        about.update(
            recipe=self.recipe.as_dict(),
            data=self.fingerprint,
            seconds=self.seconds,
            history=self.history,
        )
        checkpoint.save(path, arrays, about)

    def load(self, path):
        """Take the state that `save` wrote. Raises DataError if it is that of another training."""
        arrays, about = checkpoint.select(*checkpoint.load(path), self.model.nets, path)
        for name, ours in (("data", self.fingerprint), ("recipe", self.recipe.as_dict())):
            if about.get(name) != ours:
                raise DataError(f"{path}: was trained with another {name}")
        sums, seconds = arrays.get("sums"), about.get("seconds")
        if sums is None or sums.shape != self.sums.shape or not isinstance(seconds, float):
            raise DataError(f"{path}: not the checkpoint of a training")
        checkpoint.restore_model(self.model, arrays, about, path)
        self.ops.copy(self.ops.to_device(sums), self.sums)
        self.seconds, self.history = seconds, about["history"]


def predict(
    model, images, indices, report=lambda images: None, should_stop=lambda: False, graph=True
):
    """Class probabilities (E, n, classes), on the host, of images chosen for each net.

    images (N, H, W) uint8 lie on the device, indices (E, n) on the host. report(n): n more images
    are done. Raises Interrupted where should_stop() turns true.
    """
    ops = model.ops
    E, n = indices.shape
    plan = model.plan(PREDICT_BATCH, training=False)
    batches = -(-n // plan.batch)
    padded = np.zeros((E, batches * plan.batch), np.int32)  # a short last batch is filled up
    padded[:, :n] = indices
    order = ops.to_device(padded.reshape(E, batches, plan.batch))
    outputs = ops.empty((E, batches, plan.batch, *model.output_shape), model.dtype)
    done = ops.zeros((1,), np.int64)  # batches so far, counted where the backend computes

    def predict_batch():
        ops.load_batch(
            images, None, order, None, model.seed, model.net_numbers, done, plan.x, plan.labels
        )
        ops.collect(model.infer(plan), done, outputs)

    with ops.session():
        again = Repeat(ops, graph)
        for batch in range(batches):
            if should_stop():
                raise Interrupted
            again(predict_batch)
            report(E * (min((batch + 1) * plan.batch, n) - batch * plan.batch))
        return ops.to_host(outputs).reshape(E, -1, *model.output_shape)[:, :n]


class Repeat:
    """Called with the same function time after time, does what that does: soon by its capture.

    The first call is the function's own, which compiles what it launches. The function itself is
    not kept: it holds a Trainer, whose arrays would then outlive their group.
    """

    def __init__(self, ops, graph):
        self._capture = ops.capture if graph else None
        self._called, self._replay = False, None

    def __call__(self, function):
        if self._called and self._capture and not self._replay:
            self._replay = self._capture(function)
        (self._replay or function)()
        self._called = True


def steps_per_epoch(recipe, images):
    """Whole batches in a net's training images. Raises DataError where there is none."""
    train = images - validation_count(images, recipe.validation_fraction)
    if train < recipe.batch_size:
        raise DataError(
            f"got {train} training images beside those for validation, "
            f"expected at least one batch of {recipe.batch_size}"
        )
    return train // recipe.batch_size


def train_group(job, nets, report, should_stop):
    """Train a group of nets from the start, or from its checkpoint, to the end.

    Returns its history, a list of dicts, and its probabilities of the test images (E, N, classes),
    None without test images. Raises Interrupted, the state saved, if should_stop() turns true.
    """
    trainer = Trainer(job, nets)
    path = group_checkpoint(job.folder, nets)
    saved = _saved(job.folder, nets)
    if saved[nets[0]]:
        trainer.load(saved[nets[0]][0])
    while trainer.epochs_done < job.recipe.epochs:
        try:
            trainer.train_epoch(report, should_stop)
        except Interrupted:
            trainer.save(path)
            raise
        trainer.save(path)
    probabilities = None
    if job.data.test_images is not None:
        count = len(job.data.test_images)
        everything = np.broadcast_to(np.arange(count), (len(nets), count))
        images = trainer.ops.to_device(job.data.test_images)
        probabilities = predict(
            trainer.model, images, everything, should_stop=should_stop, graph=job.graph
        )
    return trainer.history, probabilities


def group_checkpoint(folder, nets):
    """The file of a group's state while the ensemble is being trained."""
    numbers = f"net-{nets[0]:03}" if len(nets) == 1 else f"nets-{nets[0]:03}-{nets[-1]:03}"
    return folder / f"checkpoint-{numbers}.npz"


def _partial_checkpoints(folder):
    """{path: the numbers of the nets in it} of the groups' files in a folder."""
    names = ((path, _PARTIAL.fullmatch(path.name)) for path in folder.glob("checkpoint-*.npz"))
    return {path: range(int(m[1]), int(m[2] or m[1]) + 1) for path, m in names if m}


def _saved(folder, nets):
    """{net: (path, step)}, or None, of the file that has each of the nets furthest in training."""
    files = dict.fromkeys([folder / FINAL], nets) if (folder / FINAL).exists() else {}
    files.update(_partial_checkpoints(folder))
    found = dict.fromkeys(nets)
    for path, inside in files.items():
        held = [net for net in nets if net in inside]
        if held:
            step = checkpoint.load(path)[1]["step"]
            for net in held:
                if found[net] is None or step > found[net][1]:
                    found[net] = path, step
    return found


def images_done(job):
    """How many images the nets saved in the job's folder have been trained on."""
    saved = _saved(job.folder, job.recipe.all_nets).values()
    return sum(state[1] for state in saved if state) * job.recipe.batch_size


def groups(job):
    """The nets that are trained together: ranges of net numbers, in order.

    They are as equal as can be, and none is longer than job.group_size. Nets go on together only
    if they were saved together, for those of a group are all at one step.
    """
    saved = _saved(job.folder, job.recipe.all_nets)
    together = itertools.groupby(job.recipe.all_nets, lambda net: saved[net])
    return [part for _, nets in together for part in cut(nets, job.group_size)]


def cut(nets, size):
    """Net numbers as ranges of consecutive ones, as equal as can be, none longer than `size`."""
    parts = []
    for _, pairs in itertools.groupby(enumerate(nets), lambda pair: pair[1] - pair[0]):
        run = [net for _, net in pairs]
        count = -(-len(run) // size)
        step = -(-len(run) // count)
        parts += [range(n, min(n + step, run[-1] + 1)) for n in range(run[0], run[-1] + 1, step)]
    return parts


def train_ensemble(job, workers=1, report=None, on_group=None, should_stop=None):
    """Train every net of the job's recipe, in `workers` processes.

    report(n): n images were trained on; on_group(history): the next group of nets is done. Leaves
    one checkpoint of all nets in the job's folder. Returns the history, a list of dicts by net and
    epoch, and the probabilities (nets, N, classes) of the test images, or None. Raises Interrupted
    once should_stop() is true and every state is saved.
    """
    results = run_jobs(
        train_group,
        job,
        groups(job),
        workers,
        report or (lambda images: None),
        lambda result: on_group(result[0]) if on_group else None,
        should_stop or (lambda: False),
    )
    _merge_checkpoints(job)
    history = by_net(row for rows, _ in results for row in rows)
    if job.data.test_images is None:
        return history, None
    return history, np.concatenate([probabilities for _, probabilities in results])


def by_net(history):
    """Rows of a history, all epochs of the first net first."""
    return sorted(history, key=lambda row: (row["net"], row["epoch"]))


def vote(probabilities):
    """The class with the largest sum of probabilities (nets, N, classes) over the nets: (N,)."""
    return probabilities.sum(axis=0, dtype=np.float64).argmax(axis=1)


def _merge_checkpoints(job):
    """Put the groups' checkpoints into one, and remove them."""
    saved = _saved(job.folder, job.recipe.all_nets)
    paths = list(dict.fromkeys(path for path, _ in saved.values()))
    final = job.folder / FINAL
    if paths != [final]:  # else they were merged before this run was resumed
        states = []
        for path in paths:
            nets = [net - 1 for net, (source, _) in saved.items() if source == path]
            states.append(checkpoint.select(*checkpoint.load(path), nets, path))
        arrays, about = checkpoint.concatenate(states)
        checkpoint.save(final, arrays, {**about, "history": by_net(about["history"])})
    for path in _partial_checkpoints(job.folder):
        path.unlink(missing_ok=True)
