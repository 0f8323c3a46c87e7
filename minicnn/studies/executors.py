"""The processes of this machine in which a study's tasks run. work.py submits the tasks.

They are a concurrent.futures.Executor, as the workers of a Dask cluster are: training/cluster.py.
"""

import contextlib
import functools
import pickle
import queue
import threading
from concurrent.futures import Executor, ThreadPoolExecutor

from .. import machine
from ..training.cluster import Place
from ..training.workers import Interrupted, Worker, WorkerDiedError, divide_cores


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
