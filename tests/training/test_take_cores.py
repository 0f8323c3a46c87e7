"""Processes that work alone take the cores that others have left, and keep their bits."""

import dataclasses
import time

import acts
import pytest

from minicnn import devices, machine
from minicnn.backends import ops_numpy
from minicnn.backends.cpu import Cpu
from minicnn.data.digits import draw_digits
from minicnn.recipe import Recipe
from minicnn.training import checkpoint, ensemble, workers
from minicnn.training.dataset import Data
from minicnn.training.trainer import Job


@pytest.fixture(autouse=True)
def no_limit(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    yield
    machine.use_threads(None)


def play(folder, tasks, processes, should_stop=lambda: False, on_death=print):
    return workers.run_jobs(
        acts.play, folder, tasks, processes, lambda n: None, print, should_stop, on_death
    )


def cores(monkeypatch, count):
    monkeypatch.setattr(machine, "cores", lambda: count)


def test_the_last_task_takes_the_core_of_the_process_that_has_none(monkeypatch, tmp_path):
    cores(monkeypatch, 2)
    tasks = [1], [1, "await third"], [1, "third", 2]
    assert play(tmp_path, tasks, 2) == [[1], [1], [1, 2]]


def test_the_last_tasks_share_all_cores(monkeypatch, tmp_path):
    cores(monkeypatch, 4)
    tasks = [
        [1, "await b", "await c", "await d"],
        [1, "b", 2, "two", 4],
        [1, "c", 2, "await two"],
        [1, "d", "await two"],
    ]
    assert play(tmp_path, tasks, 4) == [[1], [1, 2, 4], [1, 2], [1]]


def test_a_process_keeps_its_share_while_all_have_tasks(monkeypatch, tmp_path):
    """Otherwise two would use the same core until the end of an epoch."""
    cores(monkeypatch, 3)
    tasks = [2], [1, "await third", 1], [2, "third", 3]
    assert play(tmp_path, tasks, 2) == [[2], [1], [2, 3]]


def test_a_task_that_runs_again_after_a_death_keeps_its_core(monkeypatch, tmp_path):
    cores(monkeypatch, 2)
    died = []
    tasks = [1, "die", 1, "again"], [1, "await again", 2]
    assert play(tmp_path, tasks, 2, on_death=died.append) == [[1], [1, 2]]
    assert died == [tasks[0]]


def test_a_process_that_took_cores_stops_on_request(monkeypatch, tmp_path):
    cores(monkeypatch, 2)
    tasks = [1, "await begun"], [1, "begun", 2, "alone", "stopped"]
    with pytest.raises(workers.Interrupted):
        play(tmp_path, tasks, 2, should_stop=(tmp_path / "alone").exists)


class Listener:
    """A worker that only hears what it is offered."""

    def offer(self, threads):
        self.threads = threads


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(None, [2, 3, 3]), (1, [1, 1, 1]), (2, [2, 2, 2]), (3, [2, 3, 3]), (100, [2, 3, 3])],
)
def test_limits_stay_limits(monkeypatch, limit, expected):
    cores(monkeypatch, 8)
    for setting in "option", "variable":
        machine.use_threads(limit if setting == "option" else None)
        if limit and setting == "variable":
            monkeypatch.setenv("OMP_NUM_THREADS", str(limit))
        three, alone = [Listener(), Listener(), Listener()], Listener()
        workers.divide_cores(three, 3)
        assert [listener.threads for listener in three] == expected
        workers.divide_cores([alone], 1)
        assert alone.threads == min(limit or 8, 8)
        workers.divide_cores([alone], 3)  # two more are about to start
        assert alone.threads == expected[0]


def test_outside_a_worker_nothing_changes():
    before = machine.cores(), machine.threads(), machine.asked_threads()
    workers.take_cores()
    assert (machine.cores(), machine.threads(), machine.asked_threads()) == before


# ---- training ------------------------------------------------------------------------------------


def train_in_turn(shared, nets, report, should_stop):
    """Train net 3 beside net 2 up to an epoch, and then alone. shared: (the job, that epoch).

    Returns (a Trained, the number of threads in each session of the kernels).
    """
    job, last_beside = shared
    _, ops, _ = devices.choose(job.device)
    used = []
    if ops is not ops_numpy:

        def use_threads():
            used.append(machine.threads())
            Cpu.use_threads(ops.cpu)

        ops.cpu.use_threads = use_threads

    def wait_for(name):
        deadline = time.monotonic() + 60
        while not (job.folder.parent / name).exists():
            assert time.monotonic() < deadline, name
            time.sleep(0.01)

    epochs = 0

    def reported(count, note=None):
        nonlocal epochs
        epochs += note is not None
        if note and nets[0] == 2 and epochs == job.recipe.epochs:
            wait_for("third")
        if note and nets[0] == 3 and epochs == last_beside:
            (job.folder.parent / "third").touch()
            wait_for("alone")
        report(count, note)

    return ensemble.train_group(job, nets, reported, should_stop), used


@pytest.fixture
def job(tmp_path):
    images, labels = draw_digits(120)
    data = Data(images, labels, images[:30], labels[:30], "digest")
    (tmp_path / "run").mkdir()
    recipe = Recipe(nets=3, epochs=3, batch_size=16, seed=5)
    return Job(recipe, data, "cpu", "float32", tmp_path / "run")


def state(folder):
    """{name: bytes} of the arrays of net 3, without the seconds of the history."""
    arrays, _ = checkpoint.load(ensemble.group_checkpoint(folder, range(3, 4)))
    arrays["history"] = arrays["history"][:, :-1]
    return {name: array.tobytes() for name, array in arrays.items()}


@pytest.mark.skipif(machine.cores() < 2, reason="needs two cores")
@pytest.mark.full(but="cpu")
@pytest.mark.parametrize(("name", "last_beside"), [("cpu", 1), ("cpu", 3), ("numpy", 2)])
def test_a_net_that_ends_alone_has_more_threads_and_the_same_bits(
    cpu_ops, monkeypatch, tmp_path, job, name, last_beside
):
    job = dataclasses.replace(job, device=name)
    trained = []

    def should_stop():  # called after the cores are divided
        if len(trained) == 2:
            (tmp_path / "alone").touch()
        return False

    with monkeypatch.context() as two_cores:
        cores(two_cores, 2)
        nets = [range(1, 2), range(2, 3), range(3, 4)]
        *_, (found, used) = workers.run_jobs(
            *(train_in_turn, (job, last_beside), nets, 2),
            *(lambda *n: None, trained.append, should_stop),
        )
    if name == "cpu" and cpu_ops.threaded:
        beside = 1 + 2 * last_beside  # to make the net; training and validation of each epoch
        assert used == [1] * beside + [2] * (8 - beside)  # the last one: for the test images

    machine.use_threads(1)
    alone = dataclasses.replace(job, folder=tmp_path / "alone here")
    alone.folder.mkdir()
    expected = ensemble.train_group(alone, range(3, 4), lambda *n: None, lambda: False)
    assert found.probabilities.tobytes() == expected.probabilities.tobytes()
    assert state(job.folder) == state(alone.folder)
