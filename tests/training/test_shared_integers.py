"""Progress and stop requests between processes, in memory that needs no folder."""

import multiprocessing
import os
import time

import pytest

from minicnn.training import workers
from minicnn.training.shared_integers import shared_integers

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(params=["as here", "without memfd", "memfd is forbidden"])
def system(request, monkeypatch):
    """Systems with and without files that exist in memory only."""

    def refuse(name):
        raise PermissionError(name)

    if request.param == "without memfd":
        monkeypatch.delattr(os, "memfd_create", raising=False)
    if request.param == "memfd is forbidden":
        monkeypatch.setattr(os, "memfd_create", refuse, raising=False)


def add(integers, pipe):
    integers[0] += 1
    integers[1] = -(2**63)
    pipe.send(integers[2])
    pipe.recv()
    pipe.send(integers[2])


def test_what_a_process_writes_the_others_read(system):
    integers, other = shared_integers(3, SPAWN), shared_integers(3, SPAWN)
    assert list(integers) == list(other) == [0, 0, 0]
    for count in (1, 2):  # a process that died is replaced by another one
        integers[2] = 2**63 - 1
        here, there = SPAWN.Pipe()
        process = SPAWN.Process(target=add, args=(integers, there))
        process.start()
        assert here.recv() == 2**63 - 1
        assert list(integers) == [count, -(2**63), 2**63 - 1]
        integers[2] = 5
        here.send(None)
        assert here.recv() == 5
        process.join()
    assert list(other) == [0, 0, 0]


def work(shared, task, report, should_stop):
    report(task)
    while task > 1 and not should_stop():
        time.sleep(0.01)
    if should_stop():
        raise workers.Interrupted
    return task


def test_progress_and_a_stop_request_pass(system):
    done = []
    results = workers.run_jobs(work, None, [1, 1], 2, done.append, print, lambda: False)
    assert results == [1, 1] and sum(done) == 2
    done.clear()
    with pytest.raises(workers.Interrupted):
        workers.run_jobs(work, None, [7, 8], 2, done.append, print, lambda: sum(done) == 15)
