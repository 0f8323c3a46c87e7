"""Where a study's tasks are done: in processes of this machine, or by a cluster of Dask's.

Both are executors as concurrent.futures has them, and so would any other be.
"""

import contextlib
import functools
import logging
import pickle
import queue
import socket
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Executor, ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit

from .. import __version__, machine
from ..training.workers import Interrupted, Worker, WorkerDiedError

_PATIENCE = 10  # seconds until a cluster that does not answer counts as gone
_LOOK_SECONDS = 3  # between looks at whether it has workers


@dataclass(frozen=True)
class Place:
    """An executor, and how many tasks it does at once.

    in_hand(): the images trained on in the tasks that it is at, as far as it can tell. look(), to
    be called from time to time, tells of what keeps it from working.
    """

    executor: Executor
    count: int
    in_hand: Callable = lambda: 0
    look: Callable = lambda: None


class Processes(Executor):
    """An executor of `count` local processes, each with its share of the cores.

    One that dies takes nothing along but the task in its hands: on_death() is called, and the task
    is done once more, by another. If that dies, too, its future raises WorkerDiedError. (In a
    ProcessPoolExecutor, one death is that of all.)
    """

    def __init__(self, count, on_death=lambda: None):
        job = pickle.dumps((_call, None), pickle.HIGHEST_PROTOCOL)
        cores = max(1, machine.cores() // count)
        self._workers = [Worker(job, cores) for _ in range(count)]
        self._idle = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(count)  # one waits for each process
        self._busy = set()
        self._on_death, self._stopping = on_death, False

    def submit(self, function, /, *arguments, **named):
        """A future of function(*arguments, **named): all of them importable or picklable."""
        return self._threads.submit(self._run, functools.partial(function, *arguments, **named))

    def in_hand(self):
        """What the processes have reported of the tasks that they are at."""
        return sum(worker.done for worker in list(self._busy))

    def stop(self, at_once=False):
        """Ask the processes to stop: after the step in hand, or `at_once`."""
        self._stopping = True
        for worker in self._workers:
            worker.stop(at_once)

    def shutdown(self, wait=True, *, cancel_futures=False):
        """End the processes after the tasks that they are at, or all that were submitted."""
        self._threads.shutdown(wait, cancel_futures=cancel_futures)
        for worker in self._workers:
            worker.close()

    def _run(self, call):
        worker = self._idle.get()
        try:
            for _ in range(2):
                if self._stopping:
                    break
                worker.start(call)
                self._busy.add(worker)
                try:
                    result, error = worker.connection.recv()
                except (EOFError, OSError):  # the process is no more
                    worker.reap()
                    if not self._stopping:
                        self._on_death()
                    continue
                finally:
                    self._busy.discard(worker)
                if error is not None:
                    raise error
                return result
            if self._stopping:
                raise Interrupted
            raise WorkerDiedError("a worker process died, and so did the one in its place")
        finally:
            self._idle.put(worker)


def _call(shared, call, report, should_stop):
    """What a worker process does with a task."""
    return call()


@contextlib.contextmanager
def local(count, on_death):
    """As a context, the Place of `count` processes of this machine."""
    executor = Processes(count, on_death)
    try:
        yield Place(executor, count, executor.in_hand)
    except KeyboardInterrupt:
        executor.stop(at_once=True)
        raise
    except BaseException:
        executor.stop()
        raise
    finally:
        try:
            executor.shutdown(cancel_futures=True)
        except KeyboardInterrupt:  # the second one, while tasks did the step in hand
            executor.stop(at_once=True)
            executor.shutdown(cancel_futures=True)
            raise


def connect(address):
    """A Client of the Dask cluster by the address of its scheduler. Raises ValueError."""
    try:
        from distributed import Client  # noqa: PLC0415
    except ImportError:
        raise ValueError(
            'argument --dask: needs the package distributed: pip install "minicnn[dask]"'
        ) from None
    # Dask would log what goes wrong at length, which is told in one line here.
    for logger in ("distributed", "distributed.client"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    try:
        parts = urlsplit(address)
        if parts.scheme not in ("tcp", "tls") or not parts.hostname or not parts.port:
            raise ValueError("not of the form tcp://HOST:PORT")
        _knock(parts.hostname, parts.port, silent=parts.scheme == "tls")
        return Client(address, timeout=_PATIENCE, set_as_default=False)
    except (OSError, ValueError, RuntimeError, MemoryError) as error:  # what no scheduler says
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"argument --dask: no scheduler answers at {address!r}: {reason}; expected the address "
            "that `dask scheduler` prints, such as tcp://10.0.0.1:8786"
        ) from None


def _knock(host, port, silent):
    """Raise OSError unless a scheduler is there: a Client would wait for ever for what is none.

    One of Dask's says its part at once, and first, but one that expects TLS is `silent`.
    """
    with socket.create_connection((host, port), _PATIENCE) as connection:
        if not silent:
            connection.settimeout(_PATIENCE)
            if not connection.recv(1):
                raise OSError("the connection was closed")


@contextlib.contextmanager
def cluster(client, address, tell):
    """As a context, the Place of a Dask cluster, by its Client.

    Dask itself gives the task of a worker that died to another. tell(line) is called when no worker
    is left. Raises ValueError where there is none to begin with.
    """
    from distributed import KilledWorker  # noqa: PLC0415

    try:
        client.wait_for_workers(1, timeout=_PATIENCE)
    except TimeoutError:
        raise ValueError(
            f"argument --dask: the scheduler at {address} has no workers; start some by "
            f"`dask worker {address} --nthreads 1`"
        ) from None
    # A worker does one task at a time, however many threads it has.
    count = len(client.nthreads())
    try:
        # Two calls with the same arguments are two calls: `measure` is made several times.
        executor = client.get_executor(pure=False)
        yield Place(executor, count, look=_Lookout(client, address, tell))
    except KilledWorker as error:
        raise WorkerDiedError(
            f"the workers of {address} died one after the other of the same task: "
            f"{' '.join(str(error).split())}"
        ) from None
    except CancelledError:
        raise OSError(f"the cluster at {address} is gone; what was trained is kept") from None
    except ImportError as error:
        raise ValueError(
            f"argument --dask: the cluster at {address} cannot load the task: {error}; "
            f"expected minicnn {__version__} with its scheduler and each worker"
        ) from None


class _Lookout:
    """Tells when a cluster has no workers; however often it is called, it looks now and then."""

    def __init__(self, client, address, tell):
        self._client, self._address, self._tell = client, address, tell
        self._next, self._told = 0.0, False

    def __call__(self):
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _LOOK_SECONDS
        try:
            workers = self._client.nthreads()
        except OSError:  # if the scheduler is gone, the tasks will tell
            return
        if not workers and not self._told:
            self._tell(
                f"minicnn.study: warning: the cluster at {self._address} has no workers left; "
                "waiting for some"
            )
        self._told = not workers
