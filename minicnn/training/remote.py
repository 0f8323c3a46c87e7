"""Train an ensemble on a Dask cluster: the state of each group of nets comes back every epoch.

A task is one epoch of one group. It contains the group's state after the epoch before, and its
result is the new state. This process writes the state to the group's checkpoint in the run folder,
as training on this machine does, and submits the next epoch. So nothing else is needed to resume,
here or on a cluster, and a worker that is killed costs the epoch in progress, which another worker
repeats.

ask and train_groups run in the process of the command; offer and train_epoch run in the workers.
cluster.py connects to the cluster.
"""

import secrets
import warnings
from collections import deque
from dataclasses import dataclass

import numpy as np

from .. import __version__, devices
from ..recipe import Recipe
from . import checkpoint, ensemble
from .cluster import Calls, one_at_a_time, worker_address
from .dataset import Source
from .resources import fitting
from .trainer import Job, Trainer

_JOIN = ", "  # between the names of several devices


@dataclass(frozen=True)
class Assignment:
    """What a worker needs to train nets of an ensemble: the fields of Job, as they were asked for.

    Each worker loads the data from their source and chooses its device.
    """

    recipe: Recipe
    source: Source
    device: str = "auto"
    precision: str | None = None
    memory: int | None = None  # bytes
    graph: bool = True
    version: str = __version__


@dataclass(frozen=True)
class Offer:
    """What a worker has: device, precision, and the number of nets that it trains together."""

    device: str
    precision: str
    lockstep: bool
    group: int
    worker: str | None = None  # its address


@dataclass(frozen=True)
class Epoch:
    """Result of an epoch of a group of nets: its state (arrays, about), see checkpoint.py.

    steps: how many were trained. done: whether this was the last epoch; if so, probabilities are
    those of Trained. worker: the address of the worker. token: identifies this result.
    """

    state: tuple
    steps: int
    done: bool
    probabilities: np.ndarray | None
    worker: str | None
    token: str
    computed: tuple  # device and precision


# ---- in the process of the command ---------------------------------------------------------------


def ask(place, assignment, should_stop):
    """The Offer that all workers of a Place can keep. Raises what `offer` raises, and Interrupted.

    Warns if the workers have different devices or precisions.
    """
    offers = {}  # {address of a worker: its Offer}
    for _ in range(2):  # an idle worker may have answered in place of a busy one
        asked = [address for address in place.workers() if address not in offers]
        with Calls(place) as calls:
            for number, address in enumerate(asked):
                calls.submit(number, offer, assignment, near=address)
            for ended in calls.ended(should_stop):
                offers |= {found.worker or asked[number]: found for number, found in ended}
    found = sorted({(offer.device, offer.precision) for offer in offers.values()})
    if len(found) > 1:
        warnings.warn(
            f"the workers compute on {' and '.join(' in '.join(one) for one in found)}: rounding "
            "may differ from a run with only one of them",
            stacklevel=2,
        )
    return Offer(
        device=_JOIN.join(sorted({device for device, _ in found})),
        precision=_JOIN.join(sorted({precision for _, precision in found})),
        lockstep=any(offer.lockstep for offer in offers.values()),
        # A worker without lockstep trains a group of any size, though no faster than net by net.
        group=min([offer.group for offer in offers.values() if offer.lockstep] or [1]),
    )


def train_groups(place, assignment, job, groups, report, on_group, should_stop, on_death):
    """Train groups of nets at a Place: a crew for ensemble.train_ensemble, with its callbacks.

    As many groups train at a time as the place has workers. Saves each state that comes back.
    Raises what a task raises. When should_stop() returns True, raises Interrupted; the epochs in
    progress are lost.
    """
    waiting, at_work = deque(enumerate(groups)), {}  # {group in training: address of its worker}
    trained, delivered = {}, 0
    offered = {*job.device.split(_JOIN), *job.precision.split(_JOIN)}
    with Calls(place) as calls:

        def submit(number, state, path, token=None, last=None):
            """Submit the next epoch of a group; last: the address of its last worker."""
            taken = {address for other, address in at_work.items() if other != number}
            free = [address for address in place.workers() if address not in taken]
            near = last if last in free else next(iter(free), None)
            at_work[number] = near
            task = assignment, groups[number], state, str(path), token
            calls.submit(number, train_epoch, *task, near=near)

        def start():
            """Start waiting groups while there are free workers; without any worker, one group."""
            while waiting and (len(at_work) < len(place.workers()) or not at_work):
                number, nets = waiting.popleft()
                path, state = ensemble.saved_checkpoint(job.folder, nets), None
                if path:
                    numbers = [net - 1 for net in nets]
                    state = checkpoint.select(*checkpoint.load(path), numbers, path)
                submit(number, state, path)

        start()
        for ended in calls.ended(should_stop):
            for number, epoch in ended:
                path = ensemble.group_checkpoint(job.folder, groups[number])
                if epoch.done:
                    del at_work[number]
                else:  # before the state is saved: the worker need not wait for the disk
                    submit(number, epoch.state, path, epoch.token, epoch.worker)
            start()
            for number, epoch in ended:
                nets = groups[number]
                checkpoint.save(ensemble.group_checkpoint(job.folder, nets), *epoch.state)
                group = _trained(epoch)
                if not offered.issuperset(epoch.computed):
                    offered.update(epoch.computed)
                    warnings.warn(
                        f"a worker that has joined computes on {' in '.join(epoch.computed)}, the "
                        f"run began on {job.device} in {job.precision}: rounding may differ",
                        stacklevel=2,
                    )
                if epoch.steps:
                    report(epoch.steps * len(nets) * job.recipe.batch_size)
                    report(0, ensemble.last_rows(nets, group.history, group.diverged))
                if epoch.done:
                    trained[number] = group
            for number, address in at_work.items():
                if address is not None and address not in place.workers():
                    at_work[number] = None
                    on_death(groups[number])
            while delivered in trained:
                on_group(trained[delivered])
                delivered += 1
    return [trained[number] for number in range(len(groups))]


def _trained(epoch):
    arrays, about = epoch.state
    diverged = {row["net"]: (row["epoch"], row["step"]) for row in about["diverged"]}
    history = checkpoint.history_rows(arrays["history"])
    return ensemble.Trained(history, diverged, epoch.probabilities)


# ---- in a worker ---------------------------------------------------------------------------------

_kept = {}  # {token of the last result: its Trainer}


def offer(assignment):
    """What this process offers: an Offer. Raises DataError if its data or version differ."""
    with one_at_a_time:
        _kept.clear()
        data, device, ops = _prepare(assignment)
        recipe = assignment.recipe
        group = fitting(recipe, data, ops, recipe.nets, assignment.memory)
        return Offer(device, ops.precision, ops.lockstep, group, worker_address())


def train_epoch(assignment, nets, state, path, token):
    """Train a group of nets for an epoch, and after the last one predict the test images.

    state: (arrays, about) of a checkpoint, None at first; an error calls it `path`. token: of the
    result with this state, None if it was read from a file. Returns an Epoch. Raises DataError and
    ValueError.
    """
    with one_at_a_time:
        # The trainer of the last call has this very state already if this call continues it.
        trainer = _kept.pop(token, None)
        if trainer is None:
            _kept.clear()
            data, device, ops = _prepare(assignment)
            about = assignment.recipe, data, device, ops.precision
            trainer = Trainer(Job(*about, None, len(nets), assignment.graph), nets)
            if state is not None:
                trainer.restore(*state, path)
        before = trainer.steps_done
        if not trainer.is_done:
            trainer.train_epoch(_ignore, _never)
        steps, done, probabilities = trainer.steps_done - before, trainer.is_done, None
        if done:
            data = assignment.source.load_in_worker(assignment.version)
            if data.test_images is not None:
                probabilities = trainer.predict(data.test_images, _never)
        token = secrets.token_hex(8)
        if not done:
            _kept[token] = trainer
        model = trainer.model
        computed = model.device, model.ops.precision
        return Epoch(trainer.state(), steps, done, probabilities, worker_address(), token, computed)


def forget():
    """Let go of the Trainer that this process keeps for the next epoch."""
    _kept.clear()


def _prepare(assignment):
    """(data, device, its operations) for an assignment in this process."""
    data = assignment.source.load_in_worker(assignment.version)
    device, ops, _ = devices.choose(assignment.device, assignment.precision)
    return data, device, ops


def _ignore(*_):
    pass


def _never():
    return False
