"""Training an ensemble: each net on a split of its own, then all of their predictions summed.

A Trainer (trainer.py) takes a group of nets through the epochs. train_ensemble hands the groups
out to processes (workers.py), and puts together what they bring back.
"""

import itertools
import re
from dataclasses import dataclass

import numpy as np

from ..files import in_use
from . import checkpoint
from .resources import split_nets
from .trainer import Trainer
from .workers import Interrupted, run_jobs

FINAL = "checkpoint.npz"  # the state of all nets, once they are trained
_PARTIAL = re.compile(r"checkpoint-nets?-(\d+)(?:-(\d+))?\.npz")  # that of a group until then


@dataclass(frozen=True)
class Trained:
    """What comes of training nets: the history, a list of dicts, of all; `diverged` {net: (epoch,
    step)} of those whose loss or weights were no longer finite after that; and of the others, in
    order, the probabilities (nets, N, classes) of the test images, None without test images.
    """

    history: list
    diverged: dict
    probabilities: np.ndarray | None


def train_group(job, nets, report, should_stop):
    """Train a group of nets from the start, or from its checkpoint, to the end: a Trained.

    Raises Interrupted, the state saved, if should_stop() turns true.
    """
    with in_use(job.folder):  # as long as a worker is, which may outlive its parent for a moment
        trainer = Trainer(job, nets)
        path = group_checkpoint(job.folder, nets)
        saved = _saved(job.folder, nets)
        if saved[nets[0]]:
            trainer.load(saved[nets[0]][0])
        while not trainer.is_done:
            try:
                trainer.train_epoch(report, should_stop)
            except Interrupted:
                trainer.save(path)
                raise
            trainer.save(path)
        probabilities = None
        if job.data.test_images is not None:
            known = len(trainer.diverged)
            probabilities = trainer.predict(job.data.test_images, should_stop)
            if len(trainer.diverged) > known:
                trainer.save(path)
        return Trained(trainer.history, trainer.diverged, probabilities)


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
    found, best = dict.fromkeys(nets), dict.fromkeys(nets)
    for path, inside in files.items():
        held = [net for net in nets if net in inside]
        if held:
            about = checkpoint.load(path)[1]
            diverged = {row["net"] for row in about["diverged"]}
            for net in held:
                # A net may diverge when all is trained, as it predicts: that is no step further.
                progress = about["step"], net in diverged
                if best[net] is None or progress > best[net]:
                    best[net], found[net] = progress, (path, about["step"])
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
    return [part for _, nets in together for part in split_nets(nets, job.group_size)]


def _nothing(_):
    pass


def train_ensemble(
    job,
    workers=1,
    report=_nothing,
    on_group=_nothing,
    should_stop=lambda: False,
    on_death=_nothing,
):
    """Train every net of the job's recipe, in `workers` processes: a Trained.

    report(n): n images were trained on; on_group(trained): the next group of nets is done;
    on_death(nets): the process of a group died, which goes on in another from its checkpoint.
    Leaves one checkpoint of all nets in the job's folder. Raises Interrupted once should_stop() is
    true and every state is saved.
    """
    results = run_jobs(
        train_group, job, groups(job), workers, report, on_group, should_stop, on_death
    )
    _merge_checkpoints(job)
    history = by_net(row for trained in results for row in trained.history)
    diverged = {net: where for trained in results for net, where in trained.diverged.items()}
    probabilities = None
    if job.data.test_images is not None:
        probabilities = np.concatenate([trained.probabilities for trained in results])
    return Trained(history, diverged, probabilities)


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
        net, epoch = arrays["history"][:, 0], arrays["history"][:, 1]
        arrays["history"] = arrays["history"][np.lexsort((epoch, net))]
        checkpoint.save(final, arrays, about)
    for path in _partial_checkpoints(job.folder):
        path.unlink(missing_ok=True)
