"""A pool of worker processes: independent tasks, progress reports and a clean stop.

A worker process may die at any moment. Only its task is lost, and the pool runs that task again.

- Tasks and results go through one pipe per worker. A closed pipe means that the process died.
- Progress (worker to parent), the stop request and the number of threads (parent to worker) are
  integers in shared memory. Queues and events use locks, and a process that is killed never
  releases its lock.
- When fewer tasks than processes are left, they share all cores: see divide_cores, take_cores.
- A new process imports the main script, as Python's multiprocessing does: see guard.py.

`run_jobs` is the entry point; ensemble.py, fit.py and prediction.py call it. studies/executors.py
uses `Worker` and `divide_cores` directly.
"""

import collections
import multiprocessing
import multiprocessing.connection
import multiprocessing.resource_tracker
import os
import pickle
import signal
import threading
import traceback
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import SimpleNamespace

from .. import machine
from .guard import (
    UNGUARDED,
    WORKER,
    UnguardedScriptError,
    check_guard,
    expect_guard,
    main_script_as_file,
)
from .shared_integers import shared_integers

_POLL_SECONDS = 0.1
_CONTINUE, _STOP, _STOP_AT_ONCE = range(3)  # requests to a worker
_REQUEST, _PROGRESS, _THREADS = range(3)  # indices into a worker's channel, shared integers
_CONTEXT = multiprocessing.get_context("spawn")  # fork would copy threads and GPU contexts


class Interrupted(Exception):  # noqa: N818  it is not an error
    """A job stopped because it was asked to."""


class WorkerDiedError(Exception):
    """A worker process ended without a result, for example killed by the system for its memory."""


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

    function must be importable; its arguments and results must be picklable. Each process starts
    with an equal share of the cores (machine.threads); take_cores may add to it. With one worker or
    one task, all runs in this process.

    Callbacks, called in this process:
    - report(n): all tasks together advanced by n since the last call. report(0, note): a task
      called report(0, note); only for tasks that do.
    - on_result(result): called for each result, in the order of the tasks, also if a task fails.
    - should_stop(): when it returns True, all tasks are asked to stop.
    - on_death(task): a process died while it ran this task. A new process runs the task again,
      once.

    Raises:
    - the exception of a task. The other tasks are asked to stop first.
    - WorkerDiedError if the process of the same task dies twice, or dies after a stop request.
    - Interrupted if the tasks stopped on request and nothing else failed.
    - KeyboardInterrupt, after killing all processes.
    - UnguardedScriptError if the main script starts the same work again in each process.
    """
    check_guard()
    if workers <= 1 or len(tasks) <= 1:
        results = []
        for task in tasks:
            if results and should_stop():
                raise Interrupted
            results.append(function(shared, task, report, should_stop))
            on_result(results[-1])
        return results
    expect_guard()
    workers = min(workers, len(tasks))
    threads = machine.threads(workers)
    job = pickle.dumps((function, shared), pickle.HIGHEST_PROTOCOL)
    pool = _Pool(tasks, [Worker(job, threads) for _ in range(workers)], on_death)
    delivered = 0  # results passed to on_result
    try:
        while pool.start_tasks():
            pool.wait()
            for note in pool.notes():
                report(0, note)
            report(pool.progress())
            if should_stop():
                pool.stop()
            while delivered in pool.results:
                delivered += 1
                on_result(pool.results[delivered - 1])
    except KeyboardInterrupt:
        pool.stop(at_once=True)
        raise
    finally:
        pool.close()
        # A task that failed does not hold up the others' results.
        for index in sorted(index for index in pool.results if index >= delivered):
            on_result(pool.results[index])
    if faults := [error for error in pool.errors if not isinstance(error, Interrupted)]:
        raise faults[0]
    if len(pool.results) < len(tasks):
        raise Interrupted
    return [pool.results[index] for index in range(len(tasks))]


class _Pool:
    """Workers, the queue of waiting tasks, and the results of the finished ones."""

    def __init__(self, tasks, workers, on_death):
        self.results, self.errors = {}, []  # {index of the task: result}
        self._tasks, self._on_death = tasks, on_death
        self._waiting = collections.deque(range(len(tasks)))
        self._workers, self._idle = workers, list(workers)
        self._running = {}  # {worker: index of its task}
        self._died = set()  # indices of tasks whose process died once
        self._stopping = self._at_once = False
        self._progress = 0  # since the last call of progress()
        self._notes = []  # since the last call of notes()

    def start_tasks(self):
        """Give waiting tasks to idle workers. Returns whether any task is running."""
        started = {}
        while self._waiting and self._idle and not self._stopping:
            started[self._idle.pop()] = self._waiting.popleft()
        busy = [worker for worker in self._workers if worker in self._running | started]
        divide_cores(busy, len(busy))
        for worker, index in started.items():
            worker.start(self._tasks[index])
            self._running[worker] = index
        return bool(self._running)

    def wait(self):
        """Wait until a task ends, 0.1 s at most; collect progress and results."""
        connections = {worker.connection: worker for worker in self._running}
        ready = multiprocessing.connection.wait(list(connections), _POLL_SECONDS)
        for worker in self._running:
            self._progress += worker.progress()
        for connection in ready:
            self._receive(connections[connection])

    def progress(self):
        """Progress since the last call; negative if a process died and its work is lost."""
        progress, self._progress = self._progress, 0
        return progress

    def notes(self):
        """The notes of the tasks since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def stop(self, at_once=False):
        """Ask all workers to stop after their current step; with `at_once`, kill them."""
        self._stopping, self._at_once = True, self._at_once or at_once
        for worker in self._workers:
            worker.stop(at_once)

    def close(self):
        """Ask all workers to stop, wait for them, and end their processes."""
        self.stop()
        while self._running:
            self.wait()
        for worker in self._workers:
            worker.close()

    def _receive(self, worker):
        """Take a worker's message: a note of its task, or the task's end; or see that it died."""
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            message = None
        except Exception as error:  # something that this process cannot load
            message = None, error
        if isinstance(message, _Note):
            self._notes.append(message.content)
            return
        index = self._running.pop(worker)
        self._idle.append(worker)
        if message is None:
            self._clean_up(worker, index)
            return
        result, error = message
        if error is None:
            self.results[index] = result
        else:
            self._fail(error)

    def _clean_up(self, worker, index):
        """After a process died in a task: let it run again, unless that happened before."""
        try:
            self._progress -= worker.reap()
        except UnguardedScriptError as error:
            self._fail(error)
            return
        if self._at_once:
            return
        self._on_death(self._tasks[index])
        if index not in self._died and not self._stopping:
            self._died.add(index)
            self._waiting.appendleft(index)
            return
        again = ", and so did its replacement" if index in self._died else ""
        self._fail(
            WorkerDiedError(f"a worker process died{again}; if memory ran out, try fewer --workers")
        )

    def _fail(self, error):
        self.errors.append(error)
        self.stop()


def divide_cores(workers, tasks):
    """Offer all cores to the `workers` that run a task; `tasks`: how many run or are about to.

    If the cores cannot be divided equally, the last workers get more. The order of the workers must
    not change: one that gave a thread to another would still use it until its epoch ends.
    """
    for worker, threads in zip(workers, machine.shares(max(1, tasks)), strict=False):
        worker.offer(threads)


@dataclass(frozen=True)
class _Note:
    """A message of a running task."""

    content: object


class Worker:
    """A process that runs one task at a time.

    The process starts with its first task, and with `threads` threads. After its death the next
    task starts a new one.
    """

    def __init__(self, job, threads):
        expect_guard()
        self.connection = None
        self._job, self._threads = job, threads
        self._channel = shared_integers(3, _CONTEXT)
        self._channel[_THREADS] = threads
        self._reported = 0
        self._process = self._sender = None
        # A thread may clean up after the process at the moment when another one closes it.
        self._closing = threading.RLock()

    def start(self, task):
        """Start a task; its (result, error) arrives through `connection`."""
        self._channel[_PROGRESS] = self._reported = 0
        if self._process is None:
            self._start_process(task)
        else:
            with suppress(OSError):  # if the process died, recv() on the pipe will show it
                self.connection.send(task)

    def _start_process(self, task):
        self.connection, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(
            target=_worker_main, name=WORKER, args=(theirs, self._channel, self._threads)
        )
        # In a thread: a pipe buffers little, so sending a large job blocks until the process reads.
        self._sender = threading.Thread(target=self._send_job, args=(task,), daemon=True)
        try:
            with _signals_blocked(), main_script_as_file():
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
        """Progress of the current task, or of the last one if the worker is idle."""
        return self._channel[_PROGRESS]

    def progress(self):
        """Progress of the current task since the last call."""
        done = self.done
        more, self._reported = done - self._reported, done
        return more

    def offer(self, threads):
        """Let the process have so many threads from its next call of take_cores on."""
        self._channel[_THREADS] = threads

    def stop(self, at_once=False):
        """Ask the process to stop after its current step; with `at_once`, it exits immediately."""
        self._channel[_REQUEST] = max(self._channel[_REQUEST], _STOP_AT_ONCE if at_once else _STOP)

    def reap(self):
        """Clean up after a process that died. Returns the progress that its task had reported.

        Raises UnguardedScriptError if check_guard ended it.
        """
        with self._closing:
            process = self._process
            if process is not None:
                process.kill()  # its pipe is closed, but it may not have ended yet
            self.close()
        if process is not None and process.exitcode == UNGUARDED:
            raise UnguardedScriptError
        return self._reported

    def close(self):
        """End the process after its current task, and wait until it has ended."""
        with self._closing:
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
def _signals_blocked():
    """Block signals while a process starts: one could kill it before _worker_main handles them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # The first process of a program starts this one, too, which unblocks both signals afterwards.
    multiprocessing.resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ---- in a worker process -------------------------------------------------------------------------


# Of this process, if it is a worker.
_state = SimpleNamespace(
    busy=threading.Lock(), orphaned=threading.Event(), channel=None, connection=None
)


def _worker_main(connection, channel, threads):
    """The main function of a worker process: run the tasks from its pipe until None arrives."""
    # Ctrl-C, `timeout` and batch systems signal the whole process group. The worker ignores Ctrl-C
    # and leaves the group. The parent passes the request on through `channel`.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # discard one that arrived during the start
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    _use_cores(threads)
    _state.channel, _state.connection = channel, connection
    threading.Thread(target=_watch_parent, daemon=True).start()
    with suppress(EOFError, OSError):  # the parent died
        try:
            function, shared = pickle.loads(connection.recv_bytes())
        except MemoryError as error:
            connection.send((None, error))
            return
        except (AttributeError, ImportError) as error:  # such as a function of a notebook
            told = f"a worker process cannot import what it needs: {error}; try one worker"
            connection.send((None, ValueError(told)))
            return
        while (task := connection.recv()) is not None:
            with _state.busy:
                answer = _run_task(function, shared, task)
            connection.send(answer)


def _run_task(function, shared, task):
    """Run a task. Returns (result, None) or (None, error)."""
    try:
        return function(shared, task, report, should_stop), None
    except (Interrupted, ValueError, OSError, MemoryError) as error:
        return None, sendable(error)
    except Exception as error:  # a bug of this program: show where
        traceback.print_exc()
        return None, sendable(error)


def sendable(error):
    """The exception for another process: a RuntimeError with its text if that cannot load it."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # a class's own pickling may raise anything
        error = RuntimeError(f"{type(error).__name__}: {error}")
    # KeyboardInterrupt and SystemExit would end the other process.
    return error if isinstance(error, Exception) else RuntimeError(repr(error))


def _watch_parent():
    """End this process when the parent requests it, or when the parent has died.

    If the parent has died, should_stop() becomes true; the task saves its state, then the process
    ends.
    """
    parent = multiprocessing.parent_process().sentinel
    while not multiprocessing.connection.wait([parent], _POLL_SECONDS):
        if _state.channel[_REQUEST] == _STOP_AT_ONCE:
            os._exit(1)
    _state.orphaned.set()
    with _state.busy:
        os._exit(1)


def _use_cores(count):
    machine.use_cores(count)
    machine.use_threads(count)  # decided by the parent, whatever the environment says


def take_cores():
    """Use the cores that the parent offers this process now; the next session of a backend does.

    They are more when other processes have no task left, and fewer when they have one again. No
    effect outside a worker.
    """
    if _state.channel is not None:
        _use_cores(_state.channel[_THREADS])


def in_worker():
    """Whether this process is a worker."""
    return _state.channel is not None


def should_stop():
    """Whether this worker process was asked to stop. False outside a worker process."""
    return _state.channel is not None and (
        _state.channel[_REQUEST] != _CONTINUE or _state.orphaned.is_set()
    )


def report(count, note=None):
    """Report to the parent that the task advanced by `count`, with a note that can be pickled.

    Only tasks of run_jobs may send notes. No effect outside a worker.
    """
    if _state.channel is None:
        return
    _state.channel[_PROGRESS] += count
    if note is not None:
        with suppress(OSError):  # the parent died; should_stop() soon becomes true
            _state.connection.send(_Note(note))
