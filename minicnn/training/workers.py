"""Independent jobs in several processes, with progress, and an orderly stop.

A process may die at any moment, and takes nothing with it but its task. Each has a pipe of its own,
whose other end only the parent holds: where it ends, the process has. What is told in passing,
progress one way and the wish to stop the other, are a few integers of shared memory, since the lock
of a queue or an event would be kept for ever by a process that is killed.
"""

import collections
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import threading
import traceback
from contextlib import contextmanager, suppress
from types import SimpleNamespace

from .. import machine

_POLL_SECONDS = 0.1
_GO_ON, _STOP, _STOP_AT_ONCE = range(3)  # what a worker is told
_TOLD, _DONE = range(2)  # the integers that it shares: that, and how much it has done of its task
_CONTEXT = multiprocessing.get_context("spawn")  # a fork would copy threads and GPU contexts


class Interrupted(Exception):  # noqa: N818  it is no error
    """A job was asked to stop, and has."""


class WorkerDiedError(Exception):
    """A worker process ended without a word, as one does that the system runs out of memory for."""


def run_jobs(
    function,
    shared,
    tasks,
    workers,
    report,
    on_result,
    should_stop,
    on_death=lambda task: None,
):
    """[function(shared, task, report, should_stop) for task in tasks], in `workers` processes.

    Each process has its share of the cores, at least one. function must be importable, and what it
    takes and gives picklable. report(n) adds up n over all of them; on_result(result) is called for
    each result in the order of the tasks. Where a process dies, on_death(task) is called, and its
    task is given to a new one, once; WorkerDiedError is raised if that dies, too. If a task raises,
    the others are asked to stop, and the exception is raised here: Interrupted only where nothing
    else went wrong. A KeyboardInterrupt ends all processes in the midst of whatever they do.
    """
    if workers <= 1 or len(tasks) <= 1:
        results = []
        for task in tasks:
            results.append(function(shared, task, report, should_stop))
            on_result(results[-1])
        return results
    workers = min(workers, len(tasks))
    cores = max(1, machine.cores() // workers)
    job = pickle.dumps((function, shared), pickle.HIGHEST_PROTOCOL)
    crew = _Crew(tasks, [Worker(job, cores) for _ in range(workers)], on_death)
    told = 0  # results handed to on_result so far
    try:
        while not crew.is_done():
            crew.wait()
            report(crew.progress())
            if should_stop():
                crew.stop()
            while told < len(tasks) and told in crew.results:
                on_result(crew.results[told])
                told += 1
    except KeyboardInterrupt:
        crew.stop(at_once=True)
        raise
    finally:
        crew.close()
    if faults := [error for error in crew.errors if not isinstance(error, Interrupted)]:
        raise faults[0]
    if len(crew.results) < len(tasks):
        raise Interrupted
    return [crew.results[number] for number in range(len(tasks))]


class _Crew:
    """Workers, the tasks that wait for one, and what has come of the others."""

    def __init__(self, tasks, workers, on_death):
        self.results, self.errors = {}, []  # {number of the task: result}
        self._tasks, self._on_death = tasks, on_death
        self._waiting = collections.deque(range(len(tasks)))
        self._workers, self._idle = workers, list(workers)
        self._running = {}  # {worker: number of its task}
        self._died = set()  # tasks whose process has died once
        self._stopping = self._at_once = False
        self._progress = 0  # since it was last asked for

    def is_done(self):
        """Whether no task is at work, and none will be."""
        while self._waiting and self._idle and not self._stopping:
            worker, number = self._idle.pop(), self._waiting.popleft()
            worker.start(self._tasks[number])
            self._running[worker] = number
        return not self._running

    def wait(self):
        """Wait a moment, or until a task ends; take note of what has happened."""
        connections = {worker.connection: worker for worker in self._running}
        ready = multiprocessing.connection.wait(list(connections), _POLL_SECONDS)
        for worker in self._running:
            self._progress += worker.progress()
        for connection in ready:
            worker = connections[connection]
            self._end(worker, self._running.pop(worker))

    def progress(self):
        """How much was done since this was last called; below 0 where a death undid some."""
        progress, self._progress = self._progress, 0
        return progress

    def stop(self, at_once=False):
        """Ask all to stop; `at_once`: in the midst of whatever they do."""
        self._stopping, self._at_once = True, self._at_once or at_once
        for worker in self._workers:
            worker.stop(at_once)

    def close(self):
        """End every process, after what it has in hand."""
        self.stop()
        while self._running:
            self.wait()
        for worker in self._workers:
            worker.close()

    def _end(self, worker, number):
        self._idle.append(worker)
        try:
            result, error = worker.connection.recv()
        except (EOFError, OSError):  # the process is no more
            self._progress -= worker.bury()
            if self._at_once:
                return
            self._on_death(self._tasks[number])
            if number not in self._died and not self._stopping:
                self._died.add(number)
                self._waiting.appendleft(number)
                return
            again = ", and so did the one in its place" if number in self._died else ""
            error = WorkerDiedError(
                f"a worker process died{again}; if it was for lack of memory, try fewer --workers"
            )
        if error is None:
            self.results[number] = result
        else:
            self.errors.append(error)
            self.stop()


class Worker:
    """A process that runs one task at a time; begun with its first, and anew after its death."""

    def __init__(self, job, cores):
        self.connection = None
        self._job, self._cores = job, cores
        self._words = _CONTEXT.RawArray("q", 2)
        self._reported = 0
        self._process = self._sender = None

    def start(self, task):
        """Give it a task."""
        self._words[_DONE] = self._reported = 0
        if self._process is None:
            self._begin(task)
        else:
            with suppress(OSError):  # if it is dead, its pipe has ended
                self.connection.send(task)

    def _begin(self, task):
        self.connection, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_work, args=(theirs, self._words, self._cores))
        # A thread, because a pipe takes so much only when the process at its end is ready for it.
        self._sender = threading.Thread(target=self._send_job, args=(task,), daemon=True)
        try:
            with _signals_held():
                self._process.start()
        finally:
            theirs.close()
        self._sender.start()

    def _send_job(self, task):
        with suppress(OSError):
            self.connection.send_bytes(self._job)
            self.connection.send(task)

    @property
    def done(self):
        """How much it has done of its task, the last one if it has none."""
        return self._words[_DONE]

    def progress(self):
        """How much of its task it has done since this was last called."""
        done = self.done
        more, self._reported = done - self._reported, done
        return more

    def stop(self, at_once=False):
        """Ask it to stop: after the step in hand, or `at_once`."""
        self._words[_TOLD] = max(self._words[_TOLD], _STOP_AT_ONCE if at_once else _STOP)

    def bury(self):
        """Forget a process that died. Returns how much of its task it had reported."""
        self._process.kill()  # it has let go of its pipe, whatever it is at
        self.close()
        return self._reported

    def close(self):
        """End the process when it has no task, and wait for that."""
        if self._process is None or self._process.pid is None:
            return
        if self._sender.ident is not None:
            self._sender.join()
        with suppress(OSError):
            self.connection.send(None)
        self._process.join()
        self.connection.close()
        self._process = None


@contextmanager
def _signals_held():
    """Start processes with signals blocked, lest one kill a worker before _work has begun."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ---- in a worker process -------------------------------------------------------------------------


_here = SimpleNamespace(busy=threading.Lock(), orphaned=threading.Event(), words=None)


def _work(connection, words, cores):
    """What a worker process does: the tasks that come through its pipe, until there is None."""
    # A signal meant for all (Ctrl-C, `timeout`, a batch system) is answered by the parent, through
    # `words`.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # forget one that came during the start
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    machine.use_cores(cores)
    _here.words = words
    threading.Thread(target=_watch_parent, daemon=True).start()
    with suppress(EOFError, OSError):  # the parent is no more
        try:
            function, shared = pickle.loads(connection.recv_bytes())
        except MemoryError as error:
            connection.send((None, error))
            return
        while (task := connection.recv()) is not None:
            with _here.busy:
                answer = _answer(function, shared, task)
            connection.send(answer)


def _answer(function, shared, task):
    """(result, None) or (None, error) of a task."""
    try:
        return function(shared, task, report, should_stop), None
    except (Interrupted, ValueError, OSError, MemoryError) as error:
        return None, error
    except Exception as error:  # a mistake of ours, which only its traceback explains
        traceback.print_exc()
        return None, error


def _watch_parent():
    """End this process when its parent says so, or is no more.

    A worker whose parent was killed has nobody to work for: let its task save, then leave.
    """
    parent = multiprocessing.parent_process().sentinel
    while not multiprocessing.connection.wait([parent], _POLL_SECONDS):
        if _here.words[_TOLD] == _STOP_AT_ONCE:
            os._exit(1)
    _here.orphaned.set()
    with _here.busy:
        os._exit(1)


def should_stop():
    """Whether this process was asked to stop. Where it is none of these workers, nobody asks."""
    return _here.words is not None and (_here.words[_TOLD] != _GO_ON or _here.orphaned.is_set())


def report(count):
    """Tell the parent of so much more that is done. Where there is none, nobody listens."""
    if _here.words is not None:
        _here.words[_DONE] += count
