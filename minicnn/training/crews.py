"""Who trains the nets of a run: processes of this machine, or the workers of a Dask cluster.

Each crew chooses its device and says how the nets are divided, then trains them:

    prepare(recipe, data, source, should_stop)   sets device, precision, group_size and workers, as
                                                 a Job and ensemble.train_ensemble take them
    about(job)                                   text for the user: where and how the nets train
    at_work(warn)                                a context with the `crew` of train_ensemble;
                                                 warn(text) prints a warning
"""

import contextlib
import functools

from .. import devices
from . import cluster, ensemble, remote
from .guard import expect_guard
from .resources import check_merging, share


class Processes:
    """Processes of this machine. Raises ValueError if the device is not available.

    memory: how many bytes to use; workers: the number of processes (None: as many as possible).
    """

    def __init__(self, device, precision, memory=None, workers=None):
        self.device, self._ops, self._reason = devices.choose(device, precision)
        self.precision, self._asked = self._ops.precision, (memory, workers)

    def prepare(self, recipe, data, source, should_stop):
        """Divide the machine. Raises ValueError if it has too little memory."""
        self.group_size, self.workers = share(recipe, data, self._ops, *self._asked)
        if self.workers > 1:
            expect_guard()

    def about(self, job):
        """Device and number of processes, or the groups of nets."""
        if self._ops.lockstep:
            how = _groups(job, "as memory allows")
        else:
            how = f"Processes: {self.workers}."
        return f"{self.device} ({self._reason}){_precision(self.precision)}. {how}"

    def at_work(self, warn):
        """A context with None: train_ensemble starts the processes."""
        return contextlib.nullcontext()


class Cluster:
    """The workers of a Dask cluster, at the address of its scheduler; client: cluster.connect's.

    device, precision, memory and graph: as asked for; each worker chooses by them.
    """

    def __init__(self, client, address, device, precision, memory=None, graph=True):
        self._client, self._address = client, address
        self._asked = device, precision, memory, graph
        self.workers = 1

    def prepare(self, recipe, data, source, should_stop):
        """Ask the workers for their devices, and for how many nets they train together.

        Raises what a worker raises, in particular DataError if its data or version differ;
        ValueError if there is no worker; Interrupted when should_stop() returns True.
        """
        check_merging(recipe, data)
        given = recipe, source.for_other_processes(), *self._asked
        self._assignment = remote.Assignment(*given)
        with cluster.cluster(self._client, self._address, lambda text: None) as place:
            offer = remote.ask(place, self._assignment, should_stop)
            self._count = place.count
        self.device, self.precision = offer.device, offer.precision
        fair = -(-recipe.nets // self._count)  # with larger groups, a worker could have none
        self._lockstep, self._fits = offer.lockstep, offer.group
        self.group_size = min(offer.group, fair)

    def about(self, job):
        """Device, number of workers, and the groups of nets."""
        workers = f"{self._count} worker{'s' * (self._count > 1)} of {self._address}"
        if self._lockstep:
            fits = self.group_size == self._fits
            how = _groups(job, "as memory allows" if fits else "shared by the workers")
        else:
            how = "Nets one by one."
        return f"{self.device} ({workers}){_precision(self.precision)}. {how}"

    @contextlib.contextmanager
    def at_work(self, warn):
        """A context with remote.train_groups at this cluster. Raises as cluster.cluster."""
        with cluster.cluster(self._client, self._address, warn) as place:
            yield functools.partial(remote.train_groups, place, self._assignment)


def _precision(precision):
    names = {"float32": "", "tf32": ", in TF32"}
    return names.get(precision, f", in {precision}")


def _groups(job, why):
    """A sentence on the groups in which nets train; why: the reason for a limit on their size."""
    sizes = [len(nets) for nets in ensemble.groups(job)]
    if len(sizes) == 1:
        return "All nets together."
    why = why if job.group_size < job.recipe.nets else "as in the checkpoints"
    if max(sizes) == 1:
        return f"Nets one by one, {why}."
    return f"In groups of {', '.join(map(str, sizes))} nets, {why}."
