"""The tasks of a study, and the processes that do them."""

import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from argparse import Namespace
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace

import pytest
from acts import play
from runs import ROOT, small_layers

import minicnn.recipe
from minicnn import __version__, machine, model
from minicnn.files import DataError
from minicnn.recipe import Recipe
from minicnn.studies import ablation, executors
from minicnn.studies.executors import Processes
from minicnn.studies.networks import STEPS
from minicnn.studies.store import Cell
from minicnn.studies.tasks import Measured, Task, measure, train_nets
from minicnn.studies.work import Work, in_words
from minicnn.training import cluster
from minicnn.training.cluster import Place, connect
from minicnn.training.dataset import Source
from minicnn.training.workers import WorkerDiedError

# ---- tasks ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source():
    return Source("digits", 80, 30).load()[1]


@pytest.fixture
def small(monkeypatch):
    """A network that the emulator trains in under a second, and recipes of it."""
    for module in (model, minicnn.recipe):
        monkeypatch.setattr(module, "mnist_layers", small_layers)
    return Recipe(nets=2, epochs=2, batch_size=16, momentum=0.9, validation_fraction=0.0, seed=3)


def same(found, expected):
    assert [net.net for net in found] == [net.net for net in expected]
    for a, b in zip(found, expected, strict=True):
        assert a.probabilities.tobytes() == b.probabilities.tobytes()
        assert [{**row, "seconds": 0} for row in a.history] == [
            {**row, "seconds": 0} for row in b.history
        ]


@pytest.mark.every_device
def test_nets_of_several_trials_in_one_task(small, source, device):
    """Each net equals the net alone, also on a device that trains nets together."""
    together = train_nets(Task("seed", small, range(2, 5), source, device))
    alone = [
        train_nets(Task("seed", small, range(net, net + 1), source, device))[0]
        for net in range(2, 5)
    ]
    same(together, alone)
    assert together[0].made_by["device"] == device
    assert together[0].made_by["minicnn"] == __version__


def test_a_task_that_does_not_fit_is_done_in_parts(small, source):
    task = Task("seed", small, range(1, 4), source, "emulated")
    whole = measure(task)
    assert whole.group == 3
    assert whole.images_per_second > 0
    _, ops, _ = minicnn.devices.choose("emulated")
    data, _ = source.load()
    memory = minicnn.training.resources.arrays_bytes(
        small, ops, 2, data.train_images, data.test_images
    )
    parts = replace(task, memory=memory)
    assert measure(parts).group == 2
    same(train_nets(parts), train_nets(task))


def test_a_task_refuses_other_data_and_versions(small, source):
    task = Task("seed", small, range(1, 2), source, "numpy")
    with pytest.raises(DataError, match=r"worker on .*process \d+: has minicnn .* expected 0.0.9"):
        train_nets(replace(task, version="0.0.9"))
    other = replace(source, train="another")
    with pytest.raises(DataError, match="digits: has other images or labels"):
        train_nets(replace(task, source=other))
    with pytest.raises(DataError, match=r"worker on .*nowhere: No such file"):
        measure(replace(task, source=replace(source, name="nowhere")))


def test_a_task_knows_its_images(small, source):
    assert Task("seed", small, range(1, 4), source).images == 3 * 2 * 80
    assert Task("seed", small, range(1, 4), replace(source, images=95)).images == 3 * 2 * 80


def test_each_network_has_a_group_of_its_own():
    """Where nets are trained together, a cell of few nets does not reduce the groups of others."""
    recipe = Recipe(nets=15, epochs=1, validation_fraction=0.0)
    cells = ablation.cells(recipe, Namespace(trials=2))
    work = Work(cells, set(), source=Source("digits", images=640))
    asked = []

    class Inline(Executor):
        def submit(self, function, task):
            future = Future()
            asked.append((function.function, task))
            measured = Measured({}, min(len(task.nets), 20), 100.0)
            result = measured if function.function is measure else []
            future.set_result(pickle.dumps((result, None)))
            return future

    place = Place(Inline(), 1)
    seconds, groups = work.measure(place, 100, lambda: False)
    assert len(asked) == len(groups) == 8  # two cells have the seed network
    assert seconds == pytest.approx((8 * 2 + 30) * (640 + 100 / 3) / 100)
    viewed = [replace(cell, recipe=replace(cell.recipe, views=9)) for cell in cells]
    viewed = Work(viewed, set(), source=Source("digits", images=640))
    seconds, _ = viewed.measure(place, 100, lambda: False)
    assert seconds == pytest.approx((8 * 2 + 30) * (640 + 9 * 100 / 3) / 100)
    del asked[:]
    work.do(place, groups, None, lambda found: None, lambda images: None, lambda: False)
    sizes = {}
    for _, task in asked:
        sizes.setdefault(task.cell, []).append(len(task.nets))
    assert sizes == {**{name: [2] for name in STEPS[:-1]}, "augmentation": [15, 15]}
    del asked[:]
    work.do(place, groups, 4, lambda found: None, lambda images: None, lambda: False)
    assert max(len(task.nets) for _, task in asked) == 4
    assert sum(len(task.nets) for _, task in asked) == work.nets == 46


def test_cells_that_differ_in_views_have_their_nets_in_common(small, source):
    """They are trained once, also if some cells have theirs, and predict as if trained alone."""
    recipes = {"one": small, "nine": replace(small, views=9), "two": replace(small, views=2)}
    recipes["other"] = replace(small, dropout=0.1)
    cells = [Cell(name, recipe, 1) for name, recipe in recipes.items()]
    work = Work(cells, {("one", 1), ("nine", 2)}, source=source, device="numpy")
    assert (work.nets, work.trained_nets, work.images) == (4, 0, 4 * 2 * 80)
    trained = []

    class Inline(Executor):
        def submit(self, function, task):
            future = Future()
            future.set_result(function(task))
            if function.function is train_nets:
                trained.extend((task.recipe.dropout, net) for net in task.nets)
            return future

    place, found = Place(Inline(), 1), {name: [] for name in recipes}

    def keep(results):
        for cell, nets in results:
            found[cell.name] += nets

    seconds, groups = work.measure(place, 30, lambda: False)
    assert seconds > 0
    work.do(place, groups, None, keep, lambda images: None, lambda: False)
    assert sorted(trained) == [(0.1, 1), (0.1, 2), (0.4, 1), (0.4, 2)]
    for name, recipe in recipes.items():
        nets = sorted(found[name], key=lambda net: net.net)
        same(nets, train_nets(Task(name, recipe, range(1, 3), source, "numpy")))
    rest = Work(cells, {(name, net) for name in recipes for net in (1, 2)}, source=source)
    assert (rest.nets, rest.trained_nets) == (0, 4)


def test_an_estimate_may_be_longer_than_any_date():
    assert in_words(59.6, Place(None, 1)) == "about 0:01:00, in 1 process"
    assert in_words(1e30, Place(None, 2)).startswith("about 115740740 days")


# ---- processes -----------------------------------------------------------------------------------


def die_once(path):
    """End the process, the first time only."""
    if not path.exists():
        path.touch()
        os._exit(7)
    return "done"


def die():
    os._exit(7)


def test_processes_are_an_executor():
    with Processes(2) as executor:
        assert list(executor.map(divmod, [7, 9], [2, 4])) == [(3, 1), (2, 1)]
        with pytest.raises(ValueError, match="math domain error"):
            executor.submit(__import__("math").sqrt, -1).result()
        assert executor.submit(pow, 2, exp=5).result() == 32


def test_a_process_that_dies_takes_only_its_task(tmp_path):
    deaths = []
    with Processes(2, lambda: deaths.append(1)) as executor:
        futures = [executor.submit(die_once, tmp_path / "dead"), executor.submit(abs, -4)]
        assert [future.result() for future in futures] == ["done", 4]
        assert deaths == [1]
        with pytest.raises(WorkerDiedError, match="and so did its replacement"):
            executor.submit(die).result()
        assert executor.submit(abs, -5).result() == 5
    assert len(deaths) == 3


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(machine, "cores", lambda: 2)
    yield
    machine.use_threads(None)


def test_a_task_alone_takes_all_cores_and_gives_them_back(two_cores, tmp_path):
    with Processes(2) as executor:
        first = executor.submit(play, tmp_path, [2, "alone", 1, "shared", 2])
        while not (tmp_path / "alone").exists():
            assert not first.done(), first.result()
            time.sleep(0.01)
        # Its process dies once, and another one runs it again.
        second = executor.submit(play, tmp_path, [1, "die", 1, "await shared"])
        assert first.result() == [2, 1, 2]
        assert second.result() == [1]


def test_a_task_shares_the_cores_with_tasks_that_are_not_cancelled(two_cores, tmp_path):
    with Processes(2) as executor:
        tasks = [1, "a", "await go", 1], [1, "b", "await go", "await done", 2], []
        futures = [executor.submit(play, tmp_path, acts) for acts in tasks]
        while not all((tmp_path / name).exists() for name in "ab"):
            assert not any(future.done() for future in futures)
            time.sleep(0.01)
        assert futures[2].cancel()
        (tmp_path / "go").touch()
        assert futures[0].result() == [1]
        (tmp_path / "done").touch()
        assert futures[1].result() == [1, 2]


def test_while_tasks_wait_no_process_gets_more_cores(two_cores, monkeypatch, tmp_path):
    """Not even for the moment between two tasks of the other process."""
    counts = []

    def divide(workers, tasks):
        counts.append(tasks)

    monkeypatch.setattr(executors, "divide_cores", divide)
    with Processes(2) as executor:
        futures = [executor.submit(play, tmp_path, ["await go"]) for _ in range(4)]
        (tmp_path / "go").touch()
        for future in futures:
            future.result()
    from_two = counts[counts.index(2) :]
    while_two = from_two[: len(from_two) - from_two[::-1].index(2)]
    assert while_two == [2] * len(while_two)
    assert counts[0] == 1 and counts[-2:] == [1, 0]  # at first and at last


def train_and_count(task):
    """(the trained nets of a task, the number of threads at its end)."""
    return train_nets(task), machine.threads()


@pytest.mark.skipif(machine.cores() < 2, reason="needs two cores")
def test_the_threads_of_a_task_do_not_change_its_nets(cpu_ops, two_cores, source):
    recipe = Recipe(nets=2, epochs=2, batch_size=16, validation_fraction=0.0, seed=3)
    task = Task("seed", recipe, range(2, 3), source, "cpu")
    with Processes(2) as executor:
        trained, threads = executor.submit(train_and_count, task).result()
    assert threads == 2
    machine.use_threads(1)
    same(trained, train_nets(task))


# A study gets two signals while its task does not react to the first.
_STUBBORN = """
import signal, sys, time
from minicnn.training.interruption import StopOnSignal
from minicnn.studies.executors import local
from minicnn.training.workers import Interrupted
if __name__ == "__main__":
    stop = StopOnSignal("stopping")
    try:
        with stop, local(1, lambda: None) as place:
            future = place.executor.submit(time.sleep, 60)
            print("begun", flush=True)
            while not stop():
                time.sleep(0.01)
            raise Interrupted
    except KeyboardInterrupt:
        sys.exit(7)
"""


def test_a_second_signal_stops_at_once(tmp_path):
    (tmp_path / "stubborn.py").write_text(_STUBBORN)
    process = subprocess.Popen(
        [sys.executable, tmp_path / "stubborn.py"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "begun\n"
    time.sleep(2)  # the worker is asleep
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 7


def test_an_address_without_a_scheduler_is_reported(monkeypatch):
    """One that sends nothing, and one that closes the connection."""
    pytest.importorskip("distributed")
    monkeypatch.setattr(cluster, "_PATIENCE", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"tcp://127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(ValueError, match=f"no scheduler answers at '{address}': timed out"):
            connect(address)
    monkeypatch.setattr(cluster, "_PATIENCE", 10)
    with socket.create_server(("127.0.0.1", 0)) as rude:
        address = f"tcp://127.0.0.1:{rude.getsockname()[1]}"

        def close_the_door():
            rude.accept()[0].close()

        thread = threading.Thread(target=close_the_door)
        thread.start()
        with pytest.raises(ValueError, match="the connection was closed"):
            connect(address)
        thread.join()


def test_any_executor_does_a_task(small, source):
    task = Task("seed", small, range(1, 3), source, "numpy")
    with ThreadPoolExecutor(2) as executor:
        first, second = (executor.submit(train_nets, task) for _ in range(2))
        same(first.result(), second.result())
