"""Where a study's tasks run: in processes of this machine, or on a Dask cluster.

Each is a concurrent.futures.Executor, so any other executor can be added. work.py submits the
tasks.
"""

import contextlib
import functools
import logging
import pickle
import queue
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Executor, ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit

from .. import __version__, machine
from ..training.workers import Interrupted, Worker, WorkerDiedError, divide_cores

_PATIENCE = 10  # seconds to wait for an answer of a cluster
_CHECK_SECONDS = 3  # between two checks that the cluster has workers


@dataclass(frozen=True)
class Place:
    """An executor, and the number of tasks that it runs at the same time.

    in_hand(): the images trained on so far by the running tasks; 0 if the executor does not report
    it. look(): checks the executor and prints a warning if it cannot work. Call it regularly.
    """

    executor: Executor
    count: int
    in_hand: Callable = lambda: 0
    look: Callable = lambda: None


class Processes(Executor):
    """An executor with `count` local processes, each with an equal share of the cores.

    When fewer tasks than processes are left, these share all cores, from their next epochs on.

    If a process dies, only its task is lost: on_death() is called, and a new process runs the task
    again, once. If that process dies, too, the future raises WorkerDiedError. (A
    ProcessPoolExecutor breaks as a whole when one process dies.)
    """

    def __init__(self, count, on_death=lambda: None):
        job = pickle.dumps((_call, None), pickle.HIGHEST_PROTOCOL)
        threads = machine.threads(count)
        self._workers = [Worker(job, threads) for _ in range(count)]
        self._idle = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(count)  # each thread waits for one process
        self._busy = set()
        self._unfinished = 0  # number of tasks, waiting and running ones
        self._changing = threading.Lock()  # for the two above
        self._on_death, self._stopping = on_death, False

    def submit(self, function, /, *arguments, **named):
        """A future of function(*arguments, **named); function and arguments must be picklable."""
        call = functools.partial(function, *arguments, **named)
        self._count(1)
        future = self._threads.submit(self._run, call)
        future.add_done_callback(lambda future: self._count(-1))  # finished, or cancelled
        return future

    def in_hand(self):
        """The progress that the running tasks have reported, added up."""
        return sum(worker.done for worker in list(self._busy))

    def stop(self, at_once=False):
        """Ask the processes to stop after their current step; with `at_once`, kill them."""
        self._stopping = True
        for worker in self._workers:
            worker.stop(at_once)

    def shutdown(self, wait=True, *, cancel_futures=False):
        """End the processes after all submitted tasks, or only the running ones if cancelled."""
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
                with self._cores_divided():
                    self._busy.add(worker)
                try:
                    result, error = worker.connection.recv()
                except (EOFError, OSError):  # the process died
                    worker.reap()
                    if not self._stopping:
                        self._on_death()
                    continue
                finally:
                    with self._changing:
                        self._busy.remove(worker)
                if error is not None:
                    raise error
                return result
            if self._stopping:
                raise Interrupted
            raise WorkerDiedError("a worker process died, and so did its replacement")
        finally:
            self._idle.put(worker)

    def _count(self, more):
        with self._cores_divided():
            self._unfinished += more

    @contextlib.contextmanager
    def _cores_divided(self):
        """A context in which _busy or _unfinished changes. Then the tasks share all cores."""
        with self._changing:
            yield
            busy = [worker for worker in self._workers if worker in self._busy]
            divide_cores(busy, min(len(self._workers), self._unfinished))


def _call(shared, call, report, should_stop):
    """Run a task in a worker process."""
    return call()


@contextlib.contextmanager
def local(count, on_death):
    """A context with the Place for `count` processes of this machine."""
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
        except KeyboardInterrupt:  # a second Ctrl-C, while the tasks finish their current step
            executor.stop(at_once=True)
            executor.shutdown(cancel_futures=True)
            raise


def connect(address):
    """A Client of the Dask scheduler at an address. Raises ValueError if none answers."""
    try:
        from distributed import Client  # noqa: PLC0415
    except ImportError:
        raise ValueError(
            'argument --dask: needs the package distributed: pip install "minicnn[dask]"'
        ) from None
    # Errors are reported below in one line; Dask would log tracebacks as well.
    for logger in ("distributed", "distributed.client"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    try:
        parts = urlsplit(address)
        if parts.scheme not in ("tcp", "tls") or not parts.hostname or not parts.port:
            raise ValueError("not of the form tcp://HOST:PORT")
        _probe(parts.hostname, parts.port, silent=parts.scheme == "tls")
        return Client(address, timeout=_PATIENCE, set_as_default=False)
    except (OSError, ValueError, RuntimeError, MemoryError) as error:  # from a wrong server, too
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"argument --dask: no scheduler answers at {address!r}: {reason}; expected the address "
            "that `dask scheduler` prints, such as tcp://10.0.0.1:8786"
        ) from None


def _probe(host, port, silent):
    """Raise OSError unless a scheduler answers. A Client would wait forever for another server.

    A Dask scheduler sends the first bytes of a connection. With TLS it is `silent` until the client
    has sent something, so then only the connection is tested.
    """
    with socket.create_connection((host, port), _PATIENCE) as connection:
        if not silent:
            connection.settimeout(_PATIENCE)
            if not connection.recv(1):
                raise OSError("the connection was closed")


@contextlib.contextmanager
def cluster(client, address, tell):
    """A context with the Place for a Dask cluster.

    Dask itself reruns the task of a worker that died on another worker. A task keeps the threads of
    its process, however many tasks are left: what else a cluster's machines do is not known here.
    tell(line) prints a warning when no worker is left. Raises ValueError if there is no worker at
    the start.
    """
    from distributed import KilledWorker  # noqa: PLC0415

    try:
        client.wait_for_workers(1, timeout=_PATIENCE)
    except TimeoutError:
        raise ValueError(
            f"argument --dask: the scheduler at {address} has no workers; start some with "
            f"`dask worker {address} --nthreads 1`"
        ) from None
    # A worker runs one task at a time, even if it has several threads.
    count = len(client.nthreads())
    try:
        # pure=False: run each call, even with equal arguments. `measure` is submitted repeatedly.
        executor = client.get_executor(pure=False)
        yield Place(executor, count, look=_WorkerMonitor(client, address, tell))
    except KilledWorker as error:
        raise WorkerDiedError(
            f"several workers of {address} died while they ran the same task: "
            f"{' '.join(str(error).split())}"
        ) from None
    except CancelledError:
        raise OSError(
            f"the cluster at {address} is gone; the nets trained so far are saved"
        ) from None
    except ImportError as error:
        raise ValueError(
            f"argument --dask: the cluster at {address} cannot load the task: {error}; "
            f"expected minicnn {__version__} on its scheduler and on every worker"
        ) from None


class _WorkerMonitor:
    """Warns when a cluster has no workers left. Calls within _CHECK_SECONDS are ignored."""

    def __init__(self, client, address, tell):
        self._client, self._address, self._tell = client, address, tell
        self._next, self._warned = 0.0, False

    def __call__(self):
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _CHECK_SECONDS
        try:
            workers = self._client.nthreads()
        except OSError:  # the scheduler is gone: the futures will raise an error
            return
        if not workers and not self._warned:
            self._tell(
                f"minicnn.study: warning: the cluster at {self._address} has no workers left; "
                "waiting for new ones"
            )
        self._warned = not workers
