"""Train an ensemble: each net on its own split of the images; the nets then vote.

The nets are split into groups. train_ensemble trains the groups in processes (workers.py), or on a
cluster (remote.py), one Trainer (trainer.py) per group. It merges their histories, checkpoints and
test probabilities.
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

FINAL = "checkpoint.npz"  # the state of all nets, written when all are trained
_PARTIAL = re.compile(r"checkpoint-nets?-(\d+)(?:-(\d+))?\.npz")  # of a group, during training


@dataclass(frozen=True)
class Trained:
    """Result of training nets.

    history: one dict for each net and epoch.
    diverged: {net: (epoch, step)} at which the loss or a weight of a net stopped being finite.
    probabilities: (nets, N, classes) of the N test images by the nets that did not diverge, in
    order of the nets; None without test images.
    """

    history: list
    diverged: dict
    probabilities: np.ndarray | None


def train_group(job, nets, report, should_stop):
    """Train a group of nets to the end, from its checkpoint if there is one. Returns a Trained.

    report(n): n more images were trained on. report(0, rows): an epoch has ended; rows = {net: its
    last row of the history, None if it diverged}. Saves a checkpoint after each epoch, while the
    next one trains. When should_stop() returns True, saves the state and raises Interrupted.
    """
    # The folder is locked by each worker, too: it may end later than its parent.
    with in_use(job.folder), checkpoint.Saver() as saver:
        trainer = Trainer(job, nets)
        path = group_checkpoint(job.folder, nets)
        saved = saved_checkpoint(job.folder, nets)
        if saved:
            trainer.load(saved)
        while not trainer.is_done:
            try:
                trainer.train_epoch(report, should_stop)
            except Interrupted:
                saver.wait()
                trainer.save(path)
                raise
            saver.save(path, trainer.state)
            report(0, last_rows(nets, trainer.history, trainer.diverged))
        probabilities = None
        if job.data.test_images is not None:
            known = len(trainer.diverged)
            probabilities = trainer.predict(job.data.test_images, should_stop)
            if len(trainer.diverged) > known:
                saver.save(path, trainer.state)
        return Trained(trainer.history, trainer.diverged, probabilities)


def last_rows(nets, history, diverged):
    """{net: its last row of the history, None if it diverged}."""
    rows = {row["net"]: row for row in history}
    return {net: None if net in diverged else rows[net] for net in nets}


def group_checkpoint(folder, nets):
    """The path of a group's checkpoint during training."""
    numbers = f"net-{nets[0]:03}" if len(nets) == 1 else f"nets-{nets[0]:03}-{nets[-1]:03}"
    return folder / f"checkpoint-{numbers}.npz"


def _partial_checkpoints(folder):
    """{path: range of its net numbers} of the checkpoints of groups in a folder."""
    names = ((path, _PARTIAL.fullmatch(path.name)) for path in folder.glob("checkpoint-*.npz"))
    return {path: range(int(m[1]), int(m[2] or m[1]) + 1) for path, m in names if m}


def _saved(folder, nets):
    """{net: (path, step)} of the checkpoint where each net is furthest; None without one."""
    files = dict.fromkeys([folder / FINAL], nets) if (folder / FINAL).exists() else {}
    files.update(_partial_checkpoints(folder))
    found, best = dict.fromkeys(nets), dict.fromkeys(nets)
    for path, inside in files.items():
        held = [net for net in nets if net in inside]
        if held:
            arrays, about = checkpoint.load(path)
            diverged = {row["net"] for row in about["diverged"]}
            for net in held:
                # After the last step, the validation completes the epoch. Then predicting the test
                # images may still find that the net diverged. The step stays the same.
                epochs = np.count_nonzero(arrays["history"][:, 0] == net)
                progress = about["step"], epochs, net in diverged
                if best[net] is None or progress > best[net]:
                    best[net], found[net] = progress, (path, about["step"])
    return found


def saved_checkpoint(folder, nets):
    """The path of the checkpoint from which a group continues, None without one."""
    found = _saved(folder, nets)[nets[0]]
    return found and found[0]


def images_done(job):
    """The number of images that the nets saved in the job's folder have been trained on."""
    saved = _saved(job.folder, job.recipe.all_nets).values()
    return sum(state[1] for state in saved if state) * job.recipe.batch_size


def groups(job):
    """The groups of nets that are trained together: ranges of net numbers, in order.

    Groups have at most job.group_size nets and are as equal in size as possible. On resuming, a
    group holds only nets of one checkpoint, because all nets of a group must be at the same step.
    """
    saved = _saved(job.folder, job.recipe.all_nets)
    together = itertools.groupby(job.recipe.all_nets, lambda net: saved[net])
    return [part for _, nets in together for part in split_nets(nets, job.group_size)]


def _ignore(*_):
    pass


def train_ensemble(
    job,
    workers=1,
    report=_ignore,
    on_group=_ignore,
    should_stop=lambda: False,
    on_death=_ignore,
    crew=None,
):
    """Train every net of the job's recipe in `workers` processes. Returns a Trained.

    crew: trains the groups in place of processes of this machine, as remote.train_groups does:
    crew(job, groups, report, on_group, should_stop, on_death) returns a Trained for each group and
    leaves their checkpoints in the job's folder.

    Callbacks:
    - report(n), report(0, rows): as in train_group.
    - on_group(trained): the next group is trained; called in the order of the groups.
    - on_death(nets): the process of a group died; another process resumes from its checkpoint.
    - should_stop(): when it returns True, all states are saved, then Interrupted is raised. A crew
      may save those after the last complete epochs.

    At the end the job's folder holds one checkpoint with all nets.
    """
    callbacks = report, on_group, should_stop, on_death
    if crew is None:
        results = run_jobs(train_group, job, groups(job), workers, *callbacks)
    else:
        results = crew(job, groups(job), *callbacks)
    _merge_checkpoints(job)
    history = by_net(row for trained in results for row in trained.history)
    diverged = {net: where for trained in results for net, where in trained.diverged.items()}
    probabilities = None
    if job.data.test_images is not None:
        probabilities = np.concatenate([trained.probabilities for trained in results])
    return Trained(history, diverged, probabilities)


def by_net(history):
    """The rows of a history, sorted by net, then by epoch."""
    return sorted(history, key=lambda row: (row["net"], row["epoch"]))


def vote(probabilities):
    """The classes (N,) that nets predict together, from their probabilities (nets, N, classes).

    class = argmax over classes of: sum over nets of probabilities
    """
    return probabilities.sum(axis=0, dtype=np.float64).argmax(axis=1)


def _merge_checkpoints(job):
    """Merge the checkpoints of the groups into one file, and delete them."""
    saved = _saved(job.folder, job.recipe.all_nets)
    paths = list(dict.fromkeys(path for path, _ in saved.values()))
    final = job.folder / FINAL
    if paths != [final]:  # otherwise an earlier process of this run has merged them
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
