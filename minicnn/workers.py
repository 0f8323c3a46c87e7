"""Independent jobs in several processes, with progress, and an orderly stop."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import queue
import signal
from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace

_POLL_SECONDS = 0.1


class WorkerDiedError(Exception):
    """A worker process ended without a word, as one does that the system runs out of memory for."""


def run_jobs(function, shared, tasks, workers, report, on_result, should_stop):
    """[function(shared, task, report, should_stop) for task in tasks], in `workers` processes.

    function must be importable, and what it takes and gives picklable. report(n) adds up n over all
    of them; on_result(result) is called for each result in the order of the tasks. If a task
    raises, the others are asked to stop, and the exception is raised here.
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
    with concurrent.futures.ProcessPoolExecutor(
        min(workers, len(tasks)),
        mp_context=context,
        initializer=_start_worker,
        initargs=(function, shared, progress, stop, os.getpid()),
    ) as pool:
        with _interrupts_held():
            futures = [pool.submit(_run_task, task) for task in tasks]
        try:
            return _collect(futures, progress, stop, report, on_result, should_stop)
        except BrokenProcessPool:
            raise WorkerDiedError(
                "a worker process died, perhaps for lack of memory; try fewer --workers"
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
        failed = next((f for f in futures if f.done() and f.exception() is not None), None)
        if failed is not None:
            stop.set()
            running = [future for future in futures if not future.cancel()]
            concurrent.futures.wait(running)
            raise failed.exception()
        while told < len(futures) and futures[told].done():
            on_result(futures[told].result())
            told += 1
    return [future.result() for future in futures]


@contextlib.contextmanager
def _interrupts_held():
    """Start processes with Ctrl-C blocked, lest it kill one before _start_worker ignores it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_here = SimpleNamespace()  # in a worker process: what its tasks share


def _start_worker(function, shared, progress, stop, parent):
    # Ctrl-C reaches every process of a terminal; only the parent answers it, through `stop`.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _here.function, _here.shared, _here.report = function, shared, progress.put
    # A worker whose parent was killed has nobody to work for.
    _here.should_stop = lambda: stop.is_set() or os.getppid() != parent


def _run_task(task):
    return _here.function(_here.shared, task, _here.report, _here.should_stop)
