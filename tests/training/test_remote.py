"""Training at a Place that is no cluster: threads of this process, which pretend to be workers."""

import itertools
import threading
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from digit_files import write_digits
from runs import small_layers

import minicnn.recipe
from minicnn import devices, model
from minicnn.backends import native
from minicnn.files import DataError
from minicnn.recipe import Recipe
from minicnn.training import checkpoint, ensemble, remote, resources
from minicnn.training.cluster import Calls, Place
from minicnn.training.dataset import Source
from minicnn.training.trainer import Job, Trainer
from minicnn.training.workers import Interrupted

RECIPE = Recipe(nets=3, epochs=3, batch_size=16, momentum=0.9, seed=3)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """(Data, Source) of a file of images."""
    path = tmp_path_factory.mktemp("data") / "small.npz"
    write_digits(path, 80, 30)
    return Source(str(path)).load()


@pytest.fixture
def recipe(monkeypatch):
    """Of a network that the emulator trains in under a second."""
    for module in (model, minicnn.recipe):
        monkeypatch.setattr(module, "mnist_layers", small_layers)
    return RECIPE


_here = threading.local()


@pytest.fixture(autouse=True)
def addresses(monkeypatch):
    """A call in one of the Threads knows the address of its worker."""
    monkeypatch.setattr(remote, "worker_address", lambda: getattr(_here, "address", None))


class Threads(Executor):
    """Threads that pretend to be the workers of a cluster.

    asked: near which worker, call by call. No call ends before `go` is set.
    """

    def __init__(self, workers):
        self.workers, self.asked, self._pool = list(workers), [], ThreadPoolExecutor(2)
        self.go = threading.Event()
        self.go.set()

    def submit(self, function, *arguments, workers=(None,), allow_other_workers=True):
        self.asked += workers
        return self._pool.submit(self._run, function, arguments, workers[0])

    def _run(self, function, arguments, near):
        _here.address = near if near in self.workers else next(iter(self.workers), None)
        result = function(*arguments)
        self.go.wait()
        return result

    @property
    def place(self):
        return Place(self, len(self.workers), workers=lambda: tuple(self.workers))


class Training:
    """An ensemble trained here and at a Place, each in a folder of its own."""

    def __init__(self, recipe, loaded, device, folder, group_size=1):
        self.data, self.source = loaded
        self.reports, self.groups, self.deaths = [], [], []
        about = recipe, self.data, device, "float32"
        self.here, self.there = (
            Job(*about, folder / name, group_size) for name in ("here", "there")
        )
        for job in (self.here, self.there):
            job.folder.mkdir()
        self.assignment = remote.Assignment(recipe, self.source, device)

    def train(self, threads, should_stop=lambda: False):
        def crew(*given):
            return remote.train_groups(threads.place, self.assignment, *given)

        callbacks = (
            lambda count, rows=(): self.reports.append((count, dict(rows))),
            self.groups.append,
            should_stop,
            self.deaths.append,
        )
        return ensemble.train_ensemble(self.there, 1, *callbacks, crew)

    def same(self, trained):
        """Whether what was trained there is what is trained here, to the bit."""
        expected = ensemble.train_ensemble(self.here)
        np.testing.assert_array_equal(trained.probabilities, expected.probabilities)
        assert trained.diverged == expected.diverged
        timeless = [[{**row, "seconds": 0} for row in t.history] for t in (trained, expected)]
        assert timeless[0] == timeless[1]
        ours, theirs = (
            checkpoint.load(job.folder / ensemble.FINAL) for job in (self.there, self.here)
        )
        for name, array in theirs[0].items():
            columns = slice(-1) if name == "history" else slice(None)
            np.testing.assert_array_equal(ours[0][name][:, columns], array[:, columns])
        assert {**ours[1], "seconds": 0} == {**theirs[1], "seconds": 0}
        assert [path.name for path in self.there.folder.iterdir()] == [ensemble.FINAL]


@pytest.mark.full(but="numpy")
@pytest.mark.every_device
def test_groups_of_nets_equal_those_trained_here(recipe, loaded, device, tmp_path):
    training = Training(recipe, loaded, device, tmp_path, group_size=2)
    threads = Threads(["a", "b"])
    training.same(training.train(threads))
    assert sorted(threads.asked) == ["a"] * 3 + ["b"] * 3
    counts, rows = zip(*training.reports, strict=True)
    assert sum(counts) == 3 * 3 * 4 * 16  # nets, epochs, steps, batch size
    last = {net: row["epoch"] for of_nets in rows for net, row in of_nets.items()}
    assert last == {1: 3, 2: 3, 3: 3}
    in_order = [{row["net"] for row in group.history} for group in training.groups]
    assert in_order == [{1, 2}, {3}]
    assert not training.deaths


def test_a_worker_that_goes_on_keeps_its_trainer(recipe, loaded, tmp_path, monkeypatch):
    made = []

    class Counted(Trainer):
        def __init__(self, job, nets):
            super().__init__(job, nets)
            made.append(nets)

    monkeypatch.setattr(remote, "Trainer", Counted)
    training = Training(recipe, loaded, "numpy", tmp_path)
    training.same(training.train(Threads(["a"])))  # one net after the other
    assert made == [range(1, 2), range(2, 3), range(3, 4)]
    assert not remote._kept


class Forgetful(dict):
    """Of a worker: each epoch begins from the state that came back, as if by another worker."""

    def __setitem__(self, token, trainer):
        pass


def test_another_worker_goes_on_with_the_same_bits(recipe, loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_kept", Forgetful())
    training = Training(recipe, loaded, "numpy", tmp_path)
    training.same(training.train(Threads(["a", "b"])))


def test_a_kept_trainer_is_only_used_for_the_state_that_it_gave(recipe, loaded, tmp_path):
    """A command that was killed, and resumed from an earlier epoch than its worker has reached."""
    training = Training(recipe, loaded, "numpy", tmp_path)
    assignment, nets = training.assignment, range(1, 2)
    first = remote.train_epoch(assignment, nets, None, "", None)
    second = remote.train_epoch(assignment, nets, first.state, "", first.token)
    again = remote.train_epoch(assignment, nets, first.state, "", first.token)
    assert again.token != second.token and len(remote._kept) == 1
    for name in ("params", "moment_1", "moment_2", "moving"):
        np.testing.assert_array_equal(second.state[0][name], again.state[0][name])
    assert (second.state[0]["params"] != first.state[0]["params"]).any()


def test_a_stopped_training_continues_here_and_there(recipe, loaded, tmp_path):
    training = Training(recipe, loaded, "numpy", tmp_path)
    with pytest.raises(Interrupted):
        training.train(Threads(["a", "b"]), lambda: len(training.reports) > 2)
    states = [checkpoint.load(path)[1] for path in training.there.folder.iterdir()]
    assert states and 0 < max(state["step"] for state in states) < 12
    training.same(training.train(Threads(["a", "b"])))


def test_the_middle_of_an_epoch_is_no_obstacle(recipe, loaded, tmp_path):
    """A run on this machine is stopped in the middle of an epoch."""
    training = Training(recipe, loaded, "numpy", tmp_path)
    stops = iter([False] * 6 + [True])
    with pytest.raises(Interrupted):
        ensemble.train_ensemble(training.there, should_stop=lambda: next(stops))
    (path,) = training.there.folder.iterdir()
    assert checkpoint.load(path)[1]["step"] == 5  # the validation asks, too
    training.same(training.train(Threads(["a"])))
    assert sum(count for count, _ in training.reports) == (3 * 3 * 4 - 5) * 16


@pytest.mark.parametrize("stop", [2, 7, None])
def test_averages_of_weights_come_back(recipe, loaded, tmp_path, monkeypatch, stop):
    """Stopped here in the middle of an epoch, or while another worker takes each epoch."""
    monkeypatch.setattr(remote, "_kept", Forgetful())
    averaging = replace(recipe, nets=2, average_decay=0.9)
    training = Training(averaging, loaded, "numpy", tmp_path, group_size=2)
    if stop is not None:
        stops = iter([False] * stop + [True])
        with pytest.raises(Interrupted):
            ensemble.train_ensemble(training.there, should_stop=lambda: next(stops))
    training.same(training.train(Threads(["a"])))


def test_groups_follow_the_workers_that_come_and_go(recipe, loaded, tmp_path):
    """Without any worker one group waits; a new worker gets the next one; a death is reported."""
    training = Training(recipe, loaded, "numpy", tmp_path)
    threads = Threads([])

    def changes():
        threads.workers[:] = [["a"], ["b"], ["b", "c"]][min(len(training.reports), 2)]
        return False

    training.same(training.train(threads, changes))
    assert threads.asked[0] is None
    assert {"b", "c"} <= set(threads.asked)


def test_the_death_of_a_worker_is_reported_once(recipe, loaded, tmp_path):
    training = Training(recipe, loaded, "numpy", tmp_path)
    threads = Threads(["a", "b"])
    threads.go.clear()
    looks = itertools.count()

    def look():
        number = next(looks)
        if number == 1:
            threads.workers.remove("b")
        if number == 3:
            threads.go.set()
        return False

    training.same(training.train(threads, look))
    assert training.deaths == [range(2, 3)]


def test_nets_that_diverge_are_told_as_here(recipe, loaded, tmp_path):
    diverging = replace(recipe, learning_rate=1e30)
    training = Training(diverging, loaded, "numpy", tmp_path)
    with np.errstate(all="ignore"):
        trained = training.train(Threads(["a"]))
        training.same(trained)
    assert trained.diverged.keys() == {1, 2, 3}
    assert training.reports[1] == (0, {1: None})


class Stuck(Executor):
    """A call that should run near a worker never runs, as when no worker is left in Dask."""

    def submit(self, function, *arguments, workers=None, allow_other_workers=None):
        future = Future()
        if workers is None:
            future.set_result(function(*arguments))
        return future


def test_calls_near_a_worker_that_is_gone_are_submitted_again():
    looks = iter([False, False, True])
    with Calls(Place(Stuck(), 1, look=lambda: next(looks, False))) as calls:
        calls.submit(7, abs, -3, near="gone")
        calls.submit(8, abs, -4)
        ended = [found for some in calls.ended(lambda: False) for found in some]
    assert ended == [(8, 4), (7, 3)]


# ---- what workers offer --------------------------------------------------------------------------


def test_a_worker_offers_its_device_and_what_fits(recipe, loaded):
    if problem := native.problem():
        pytest.skip(problem)
    data, source = loaded
    assignment = remote.Assignment(recipe, source, "emulated")
    asked = remote.ask(Threads(["a", "b"]).place, assignment, lambda: False)
    assert asked == remote.Offer("emulated", "float32", True, 3)
    memory = resources.arrays_bytes(
        recipe, devices.choose("emulated")[1], 2, data.train_images, data.test_images
    )
    assert remote.offer(replace(assignment, memory=memory)).group == 2
    assert remote.offer(replace(assignment, device="numpy")).group == 1


def test_different_devices_are_reported(recipe, loaded, monkeypatch):
    """The groups are as large as on the smallest GPU."""
    offers = iter([remote.Offer("cuda", "tf32", True, 8), remote.Offer("cpu", "float32", False, 1)])
    monkeypatch.setattr(remote, "offer", lambda assignment: next(offers))
    assignment = remote.Assignment(recipe, loaded[1])
    told = "the workers compute on cpu in float32 and cuda in tf32: rounding may differ"
    with pytest.warns(UserWarning, match=told):
        asked = remote.ask(Threads(["a", "b"]).place, assignment, lambda: False)
    assert asked == remote.Offer("cpu, cuda", "float32, tf32", True, 8)


def test_another_version_or_other_data_are_refused(recipe, loaded):
    assignment = remote.Assignment(recipe, loaded[1], "numpy")
    with pytest.raises(
        DataError, match=r"worker on .*, process \d+: has minicnn .* expected 0.0.9"
    ):
        remote.offer(replace(assignment, version="0.0.9"))
    other = replace(loaded[1], test="another")
    with pytest.raises(DataError, match=r"worker on .*small.npz: has other images or labels"):
        remote.train_epoch(replace(assignment, source=other), range(1, 2), None, "", None)


class OddError(ValueError):
    """It cannot be unpickled."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def fail(kind):
    """A call that fails as calls on a cluster may."""
    if kind == "cannot be pickled":
        return lambda: None
    raise {
        "cannot be unpickled": OddError("this", "that"),
        "is no text": ValueError("\ud800"),
        "would end a process": SystemExit(3),
        "is a signal": KeyboardInterrupt(),
        "is plain": DataError("file: bad"),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "error", "told"),
    [
        ("cannot be pickled", Exception, "pickle"),
        # With Dask comes tblib, which can unpickle it after all.
        ("cannot be unpickled", (RuntimeError, OddError), "this and that"),
        ("is no text", ValueError, "\ud800"),
        ("would end a process", RuntimeError, r"SystemExit\(3\)"),
        ("is a signal", RuntimeError, r"KeyboardInterrupt\(\)"),
        ("is plain", DataError, "file: bad"),
    ],
)
def test_every_failure_comes_back(kind, error, told):
    with Calls(Threads(["a"]).place) as calls:
        calls.submit(0, fail, kind)
        with pytest.raises(error, match=told):
            list(calls.ended(lambda: False))


def test_a_worker_that_joins_with_another_device_is_reported(recipe, loaded, tmp_path):
    training = Training(recipe, loaded, "numpy", tmp_path)
    training.there = replace(training.there, device="cuda", precision="tf32")
    told = "a worker that has joined computes on numpy in float32, the run began on cuda in tf32"
    with pytest.warns(UserWarning, match=told) as found:
        training.train(Threads(["a"]))
    assert len(found) == 1


def test_a_worker_reads_a_file_again_that_has_changed(tmp_path):
    path = tmp_path / "data.npz"
    versions = []
    for count in (80, 90):
        write_digits(path, count, 30)
        versions.append(Source(str(path)).load()[1])
        assert len(versions[-1].load_in_worker(minicnn.__version__).train_images) == count
    with pytest.raises(DataError, match="has other images or labels"):
        versions[0].load_in_worker(minicnn.__version__)


def test_a_trainer_is_not_kept_for_ever(recipe, loaded, tmp_path):
    remote.train_epoch(remote.Assignment(recipe, loaded[1], "numpy"), range(1, 2), None, "", None)
    assert remote._kept
    remote.forget()
    assert not remote._kept
