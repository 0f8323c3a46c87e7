"""Independent jobs in several processes, with progress, and an orderly stop."""

import concurrent.futures
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import threading
from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace

from . import machine

_POLL_SECONDS = 0.1


class Interrupted(Exception):  # noqa: N818  it is no error
    """A job was asked to stop, and has."""


class WorkerDiedError(Exception):
    """A worker process ended without a word, as one does that the system runs out of memory for."""


def run_jobs(function, shared, tasks, workers, report, on_result, should_stop):
    """[function(shared, task, report, should_stop) for task in tasks], in `workers` processes.

    Each process has its share of the cores, at least one. function must be importable, and what it
    takes and gives picklable. report(n) adds up n over all of them; on_result(result) is called for
    each result in the order of the tasks. If a task raises, the others are asked to stop, and the
    exception is raised here: Interrupted only where nothing else went wrong.
    """
    if workers <= 1 or len(tasks) <= 1:
        results = []
        for task in tasks:
            results.append(function(shared, task, report, should_stop))
            on_result(results[-1])
        return results
    # "spawn", because a fork would copy whatever threads and GPU contexts the caller has.
    context = multiprocessing.get_context("spawn")
    progress, stop = context.Queue(), context.Event()
    workers = min(workers, len(tasks))
    with concurrent.futures.ProcessPoolExecutor(
        workers,
        mp_context=context,
        initializer=_start_worker,
        initargs=(function, shared, progress, stop, max(1, machine.cores() // workers)),
    ) as pool:
        with _signals_held():
            futures = [pool.submit(_run_task, task) for task in tasks]
        try:
            return _collect(futures, progress, stop, report, on_result, should_stop)
        except BrokenProcessPool:
            raise WorkerDiedError(
                "a worker process died; if it was for lack of memory, try fewer --workers"
            ) from None
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _collect(futures, progress, stop, report, on_result, should_stop):
    told = 0  # results handed to on_result so far
    while told < len(futures):
        with contextlib.suppress(queue.Empty):
            report(progress.get(timeout=_POLL_SECONDS))
        if should_stop():
            stop.set()
        if any(future.done() and future.exception() is not None for future in futures):
            stop.set()
            running = [future for future in futures if not future.cancel()]
            concurrent.futures.wait(running)
            errors = [f.exception() for f in running if f.exception() is not None]
            raise next((e for e in errors if not isinstance(e, Interrupted)), errors[0])
        while told < len(futures) and futures[told].done():
            on_result(futures[told].result())
            told += 1
    return [future.result() for future in futures]


@contextlib.contextmanager
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


def _start_worker(function, shared, progress, stop, cores):
    # A signal meant for all (Ctrl-C, `timeout`, a batch system) is answered by the parent, through
    # `stop`. The pool itself still ends a worker by SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # forget one that came during the start
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    machine.use_cores(cores)
    progress.cancel_join_thread()  # nobody need read the rest of it
    orphaned = threading.Event()
    _here.function, _here.shared, _here.report = function, shared, progress.put
    _here.should_stop = lambda: stop.is_set() or orphaned.is_set()
    threading.Thread(target=_end_with_parent, args=(orphaned,), daemon=True).start()


def _end_with_parent(orphaned):
    """A worker whose parent was killed has nobody to work for: let its task save, then leave."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    orphaned.set()
    with _here.busy:
        os._exit(1)


def _run_task(task):
    with _here.busy:
        return _here.function(_here.shared, task, _here.report, _here.should_stop)
