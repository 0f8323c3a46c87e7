"""Independent jobs in several processes, with progress, and an orderly stop.

Each process is a pool of its own, so that one that dies takes no other with it. A process and its
parent share a few integers of plain memory rather than a queue or an event, whose locks a process
that is killed would keep for ever.
"""

import collections
import concurrent.futures
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from types import SimpleNamespace

from . import machine

_POLL_SECONDS = 0.1
_GO_ON, _STOP, _STOP_AT_ONCE = range(3)  # what a worker is told
_TOLD, _DONE = range(2)  # the integers that it shares: that, and how much it has done of its task


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
    else went wrong.
    """
    if workers <= 1 or len(tasks) <= 1:
        results = []
        for task in tasks:
            results.append(function(shared, task, report, should_stop))
            on_result(results[-1])
        return results
    workers = min(workers, len(tasks))
    cores = max(1, machine.cores() // workers)
    crew = _Crew(tasks, [_Worker(function, shared, cores) for _ in range(workers)], on_death)
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
        self._running = {}  # {future: (worker, number of its task)}
        self._died = set()  # tasks whose process has died once
        self._stopping = False
        self._progress = 0  # since it was last asked for

    def is_done(self):
        """Whether no task is at work, and none will be."""
        while self._waiting and self._idle and not self._stopping:
            self._start(self._idle.pop(), self._waiting.popleft())
        return not self._running

    def wait(self):
        """Wait a moment, or until a task ends; take note of what has happened."""
        # Not concurrent.futures.wait: a KeyboardInterrupt in it may leave a future locked for ever.
        if not any(future.done() for future in self._running):
            time.sleep(_POLL_SECONDS)
        for worker, _ in self._running.values():
            self._progress += worker.progress()
        for future in [future for future in self._running if future.done()]:
            self._end(future, *self._running.pop(future))

    def progress(self):
        """How much was done since this was last called; below 0 where a death undid some."""
        progress, self._progress = self._progress, 0
        return progress

    def stop(self, at_once=False):
        """Ask all to stop; `at_once`: in the midst of whatever they do."""
        self._stopping = True
        for worker in self._workers:
            worker.stop(at_once)

    def close(self):
        """End every process, after what it has in hand."""
        self.stop()
        for worker in self._workers:
            worker.close()

    def _start(self, worker, number):
        self._running[worker.start(self._tasks[number])] = worker, number

    def _end(self, future, worker, number):
        error = future.exception()
        self._idle.append(worker)
        if isinstance(error, BrokenProcessPool):
            self._progress -= worker.restart()
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
            self.results[number] = future.result()
        else:
            self.errors.append(error)
            self.stop()


class _Worker:
    """A process that runs one task at a time; begun with its first, and anew after its death."""

    # "spawn", because a fork would copy whatever threads and GPU contexts the caller has.
    _context = multiprocessing.get_context("spawn")

    def __init__(self, function, shared, cores):
        self._initargs = function, shared, cores
        self._begin()

    def _begin(self):
        self._words = self._context.RawArray("q", 2)
        self._reported = 0
        self._pool = concurrent.futures.ProcessPoolExecutor(
            1, self._context, _start_worker, (*self._initargs, self._words)
        )

    def start(self, task):
        """The future of a task, which begins."""
        try:
            return self._submit(task)
        except BrokenProcessPool:  # it died while it had nothing to do
            self.restart()
            return self._submit(task)

    def _submit(self, task):
        self._words[_DONE] = self._reported = 0
        with _signals_held():
            return self._pool.submit(_run_task, task)

    def progress(self):
        """How much of its task it has done since this was last called."""
        done = self._words[_DONE]
        more, self._reported = done - self._reported, done
        return more

    def stop(self, at_once):
        self._words[_TOLD] = max(self._words[_TOLD], _STOP_AT_ONCE if at_once else _STOP)

    def restart(self):
        """A new process in place of one that died. Returns how much that had reported."""
        self._pool.shutdown()
        lost = self._reported
        self._begin()
        return lost

    def close(self):
        self._pool.shutdown(cancel_futures=True)


@contextmanager
def _signals_held():
    """Start processes with signals blocked, lest one kill a worker before _start_worker is done."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_here = SimpleNamespace(busy=threading.Lock())  # in a worker process: what its tasks share


def _start_worker(function, shared, cores, words):
    # A signal meant for all (Ctrl-C, `timeout`, a batch system) is answered by the parent, through
    # `words`. The pool itself still ends a worker by SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # forget one that came during the start
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    machine.use_cores(cores)
    orphaned = threading.Event()
    _here.function, _here.shared, _here.words = function, shared, words
    _here.should_stop = lambda: words[_TOLD] != _GO_ON or orphaned.is_set()
    threading.Thread(target=_watch_parent, args=(orphaned,), daemon=True).start()


def _watch_parent(orphaned):
    """End this process when its parent says so, or is no more.

    A worker whose parent was killed has nobody to work for: let its task save, then leave.
    """
    parent = multiprocessing.parent_process().sentinel
    while not multiprocessing.connection.wait([parent], _POLL_SECONDS):
        if _here.words[_TOLD] == _STOP_AT_ONCE:
            os._exit(1)
    orphaned.set()
    with _here.busy:
        os._exit(1)


def _report(count):
    _here.words[_DONE] += count


def _run_task(task):
    with _here.busy:
        return _here.function(_here.shared, task, _report, _here.should_stop)
