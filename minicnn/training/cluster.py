"""Functions that run somewhere else: connect to a Dask cluster, submit calls, collect results.

A Place is where calls run: the workers of a cluster, or the processes of studies/executors.py.
remote.py trains an ensemble on a cluster; studies/work.py does the tasks of a study at any Place.
"""

import asyncio
import contextlib
import logging
import pickle
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, wait
from dataclasses import dataclass
from urllib.parse import urlsplit

from .. import __version__
from .workers import Interrupted, WorkerDiedError, sendable

_PATIENCE = 10  # seconds to wait for an answer of a cluster
_CHECK_SECONDS = 1  # between two looks at the workers of a cluster
_MOST_SENT = 1 << 40  # bytes of a call's arguments without a warning of Dask

one_at_a_time = threading.Lock()  # threads of a process share its kernels: one call at a time


@dataclass(frozen=True)
class Place:
    """An executor, and the number of calls that it runs at the same time.

    in_hand(): the images trained on so far by the running calls; 0 if the executor does not report
    it. look(): checks the executor and prints a warning if it cannot work; call it regularly. It
    returns whether none of the workers of the last look is left, but others are.
    workers(): addresses of a cluster's workers, as of the last look; of other executors none.
    """

    executor: Executor
    count: int
    in_hand: Callable = lambda: 0
    look: Callable = lambda: False
    workers: Callable = tuple


class Calls:
    """Calls of functions at a Place. Each has a number.

    It is a context; at its end, the calls that have not begun are cancelled.
    """

    def __init__(self, place):
        self._place, self._calls = place, {}  # {future: (number, what was submitted, near)}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for future in self._calls:
            future.cancel()

    def submit(self, number, function, *arguments, near=None):
        """Submit function(*arguments); near: the address of the worker that should run it.

        If this worker is gone, or too busy, another one runs it.
        """
        hints = {} if near is None else {"workers": [near], "allow_other_workers": True}
        future = self._place.executor.submit(_Answering(function), *arguments, **hints)
        self._calls[future] = number, (function, *arguments), near

    def ended(self, should_stop):
        """Yield several times a second: the list of (number, result) of calls that ended since.

        Ends when all calls have ended; more may be submitted meanwhile. Raises what a call raises,
        and Interrupted when should_stop() returns True, after yielding the other results.
        """
        while self._calls:
            ended, fault = self._collect()
            yield ended
            if self._place.look():
                self._submit_again()
            if fault is not None:
                raise fault
            if should_stop():
                raise Interrupted

    def _collect(self):
        """Wait until a call ends, 0.2 s at most. Returns (list of (number, result), an error).

        It keeps no future: a cluster holds a result as long as there is one, and computes it again
        if the worker that has it dies.
        """
        ended, fault = [], None
        for future in wait(self._calls, timeout=0.2, return_when=FIRST_COMPLETED).done:
            number, _, _ = self._calls.pop(future)
            try:
                result, error = pickle.loads(future.result())
            except Exception as problem:  # the call could not be run, or its answer not be read
                result, error = None, problem
            if error is None:
                ended.append((number, result))
            else:  # raised after the other results are yielded
                fault = error
        return ended, fault

    def _submit_again(self):
        """Submit the calls that should run near a worker again, for any worker.

        If no worker is left, Dask keeps such a call for the worker that is gone, even when others
        come.
        """
        for future, (number, call, near) in list(self._calls.items()):
            if near is not None and future.cancel():
                del self._calls[future]
                self.submit(number, *call)


class _Answering:
    """A function whose call returns (result, None) or (None, error), as bytes.

    So every result and error comes back: Dask loses those that it cannot pickle or show as text,
    and some errors end its worker.
    """

    def __init__(self, function):
        self.function = function
        self.__name__ = function.__name__  # Dask names its tasks after it

    def __call__(self, *arguments):
        try:
            return pickle.dumps((self.function(*arguments), None), pickle.HIGHEST_PROTOCOL)
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            return pickle.dumps((None, sendable(error)), pickle.HIGHEST_PROTOCOL)


def run_each(place, function, tasks, should_stop):
    """Run function(task) for each task at a Place; yields and raises as Calls.ended."""
    with Calls(place) as calls:
        for number, task in enumerate(tasks):
            calls.submit(number, function, task)
        yield from calls.ended(should_stop)


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

    Dask itself reruns the call of a worker that died on another worker. A call keeps the threads of
    its process, however few calls are left: what else a cluster's machines do is not known here.
    tell(text) prints a warning when no worker is left. Raises ValueError if there is no worker at
    the start, ConnectionError when the scheduler is gone, and WorkerDiedError.
    """
    import dask  # noqa: PLC0415
    from distributed import KilledWorker  # noqa: PLC0415

    # In Python 3.10 these are two classes.
    with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
        client.wait_for_workers(1, timeout=_PATIENCE)
    monitor = _WorkerMonitor(client, address, tell)
    if not monitor.workers:
        raise ValueError(
            f"argument --dask: the scheduler at {address} has no workers; start some with "
            f"`dask worker {address} --nthreads 1`"
        )
    try:
        # pure=False: run each call, even with equal arguments, as when speed is measured.
        executor = client.get_executor(pure=False)
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": _MOST_SENT}):
            # A worker runs one call at a time, even if it has several threads.
            yield Place(
                executor, len(monitor.workers), look=monitor, workers=lambda: monitor.workers
            )
    except KilledWorker as error:
        raise WorkerDiedError(
            f"several workers of {address} died while they ran the same task: "
            f"{' '.join(str(error).split())}"
        ) from None
    except CancelledError:
        raise ConnectionError(f"the cluster at {address} is gone") from None
    except ImportError as error:
        raise ValueError(
            f"argument --dask: the cluster at {address} cannot load the task: {error}; "
            f"expected minicnn {__version__} on its scheduler and on every worker"
        ) from None


class _WorkerMonitor:
    """Keeps the addresses of a cluster's workers, and warns when it has none left.

    Calling it looks again, unless the last look was less than _CHECK_SECONDS ago. It returns
    whether all workers are others than before.
    """

    def __init__(self, client, address, tell):
        self._client, self._address, self._tell = client, address, tell
        self.workers = tuple(client.nthreads())
        self._next = time.monotonic() + _CHECK_SECONDS

    def __call__(self):
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + _CHECK_SECONDS
        try:
            before, self.workers = self.workers, tuple(self._client.nthreads())
        except OSError:  # the scheduler is gone: the futures will raise an error
            return False
        if before and not self.workers:
            self._tell(f"the cluster at {self._address} has no workers left; waiting for new ones")
        return bool(self.workers) and not set(before) & set(self.workers)


def worker_address():
    """The address of the Dask worker that runs this call; None elsewhere."""
    try:
        from distributed import get_worker  # noqa: PLC0415

        return get_worker().address
    except (ImportError, ValueError):
        return None
