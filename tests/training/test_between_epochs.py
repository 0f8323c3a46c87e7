"""What the host does between epochs: it saves and shuffles while the device works."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from minicnn.backends import ops_numpy
from minicnn.data.digits import draw_digits
from minicnn.recipe import Recipe
from minicnn.training import checkpoint
from minicnn.training.dataset import Data
from minicnn.training.ensemble import group_checkpoint, train_group
from minicnn.training.trainer import Job, Trainer

TINY = Recipe(nets=2, epochs=3, batch_size=16, momentum=0.9, seed=5)
NETS = range(1, 3)


@pytest.fixture
def job(tmp_path):
    images, labels = draw_digits(60)
    return Job(TINY, Data(images, labels, None, None, "digest"), "numpy", "float32", tmp_path)


def never():
    return False


def test_an_epoch_trains_while_the_state_of_the_last_one_is_written(job, monkeypatch):
    """The first write goes on when the second epoch has begun."""
    second_epoch, in_time, write = threading.Event(), [], checkpoint.save

    def save(*state):
        in_time.append(second_epoch.wait(60))
        write(*state)

    images, of_epoch = 0, 2 * 48

    def report(n, rows=None):
        nonlocal images
        images += n
        if images > of_epoch:
            second_epoch.set()

    monkeypatch.setattr(checkpoint, "save", save)
    trained = train_group(job, NETS, report, never)
    assert in_time == [True] * 3
    arrays, about = checkpoint.load(group_checkpoint(job.folder, NETS))
    assert about["step"] == 9
    assert np.array_equal(arrays["history"], checkpoint.history_table(trained.history))


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_write_that_fails_ends_the_training(job, monkeypatch, failing):
    """No later state is written, and at most one more epoch trained."""
    writes, epochs = [], []

    def save(path, arrays, about):
        writes.append(about["step"])
        if len(writes) > failing:
            raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(checkpoint, "save", save)
    with pytest.raises(OSError, match="No space left"):
        train_group(job, NETS, lambda n, rows=None: epochs.append(rows) if rows else None, never)
    assert writes == [3, 6, 9][: failing + 1]
    assert len(epochs) == failing + 1


def test_an_error_in_an_epoch_leaves_the_last_state_whole(job, monkeypatch):
    """The write that is going on is waited for."""
    write = checkpoint.save

    def save(*state):
        time.sleep(0.3)
        write(*state)

    def fail(n, rows=None):
        if rows:
            raise RuntimeError("no more")

    monkeypatch.setattr(checkpoint, "save", save)
    with pytest.raises(RuntimeError, match="no more"):
        train_group(job, NETS, fail, never)
    assert checkpoint.load(group_checkpoint(job.folder, NETS))[1]["step"] == 3


def test_a_state_does_not_change_while_it_is_written(job):
    trainer = Trainer(job, NETS)
    trainer.train_epoch(lambda n: None, never)
    arrays, _ = trainer.state()
    before = {name: array.copy() for name, array in arrays.items()}
    trainer.train_epoch(lambda n: None, never)
    for name, array in arrays.items():
        assert np.array_equal(array, before[name], equal_nan=True)


def test_a_state_takes_the_arrays_of_the_one_before(job):
    """Its values are those of a state in new arrays, also where a net has stopped or diverged."""
    trainer = Trainer(replace(job, recipe=replace(TINY, average_epochs=2)), NETS)
    trainer.train_epoch(lambda n: None, never)
    first, _ = trainer.state()
    trainer.stop(1)
    trainer.diverged[2] = 1, 1
    assert np.isnan(trainer.state(first)[0]["params"][1]).all()
    del trainer.diverged[2]
    trainer.train_epoch(lambda n: None, never)
    (fresh, about), (again, about_again) = trainer.state(), trainer.state(first)
    assert about == about_again
    assert fresh.keys() == again.keys() == {*first, "averaged"}
    for name, array in fresh.items():
        assert np.array_equal(again[name], array), name
    for name in (*checkpoint.MODEL_ARRAYS, "averaged"):
        assert np.shares_memory(again[name], first[name]), name
        assert not np.shares_memory(again[name], fresh[name]), name


def test_the_next_state_is_taken_when_the_last_one_is_written(job, monkeypatch):
    """It takes the same memory. Here a write ends half a second after the next epoch."""
    second_epoch, changed, writes, write = threading.Event(), [], [], checkpoint.save

    def save(path, arrays, about):
        before = {name: array.copy() for name, array in arrays.items()}
        assert second_epoch.wait(60)
        time.sleep(0.5)
        writes.append(about["step"])
        changed.extend(name for name in arrays if not np.array_equal(arrays[name], before[name]))
        write(path, arrays, about)

    images, of_epoch = 0, 2 * 48

    def report(n, rows=None):
        nonlocal images
        images += n
        if images == 2 * of_epoch:
            second_epoch.set()

    monkeypatch.setattr(checkpoint, "save", save)
    train_group(job, NETS, report, never)
    assert (changed, writes) == ([], [3, 6, 9])


class Waiting:
    """NumPy's operations on a device that takes `seconds` for a captured step and computes nothing.

    Reading an array waits for the steps before.
    """

    def __init__(self, seconds):
        self.seconds, self.until = seconds, 0.0

    def __getattr__(self, name):
        return getattr(ops_numpy, name)

    def capture(self, function):
        trainer = function.__self__

        def replay():
            self.until = max(self.until, time.monotonic()) + self.seconds
            trainer.model.step += 1
            trainer.sums[:, 2] += 1  # steps with a finite loss

        return replay

    def to_host(self, array, out=None):
        time.sleep(max(self.until - time.monotonic(), 0))
        return ops_numpy.to_host(array, out)


@pytest.mark.full(beside="test_an_epoch_trains_while_the_state_of_the_last_one_is_written")
def test_most_of_the_hosts_work_is_done_while_the_device_computes(tmp_path):
    """15 nets with as many images as MNIST has; an epoch takes the device 0.5 seconds.

    Compared with the time that the same work takes with the device idle.
    """
    images = np.zeros((60_000, 28, 28), np.uint8)
    data = Data(images, np.arange(60_000) % 10, None, None, "digest")
    recipe = Recipe(epochs=8, validation_fraction=0.0)
    job = Job(recipe, data, Waiting(0.5 / 937), "float32", tmp_path, 15)
    ends = []
    train_group(
        job,
        recipe.all_nets,
        lambda n, rows=None: ends.append(time.monotonic()) if rows else None,
        never,
    )
    added = np.diff(ends)[1:] - 0.5  # the first ones capture
    idle = Trainer(replace(job, device="numpy"), recipe.all_nets)
    idle.load(group_checkpoint(tmp_path, recipe.all_nets))
    alone = []
    for epoch in range(5):
        began = time.monotonic()
        idle.save(tmp_path / "alone.npz")
        idle._prepare_order(epoch)
        alone.append(time.monotonic() - began)
    print(f"added {1e3 * added.min():.0f} ms an epoch; alone {1e3 * min(alone):.0f} ms")
    assert min(added) < min(alone) / 2


class Idle(Waiting):
    """Such a device that notes, before each epoch but the first, how long the host kept it idle.

    `idle` has the seconds that the host's thread computed from the end of the device's steps to the
    first step of the next epoch. Time in which other programs have the processor does not count.
    """

    def __init__(self, seconds):
        super().__init__(seconds)
        self.idle, self._finished = [], None

    def capture(self, function):
        replay = super().capture(function)

        def watched():
            if self._finished is not None:
                self.idle.append(time.thread_time() - self._finished)
                self._finished = None
            replay()

        return watched

    def to_host(self, array, out=None):
        time.sleep(max(self.until - time.monotonic(), 0))
        if self._finished is None and self.until:
            self._finished = time.thread_time()
        return super().to_host(array, out)


@pytest.mark.full(beside="test_an_epoch_trains_while_the_state_of_the_last_one_is_written")
@pytest.mark.parametrize("nets", [1, 5, 15])
def test_the_host_adds_less_than_a_twentieth_to_an_epoch(tmp_path, nets):
    """As many images as MNIST has; an epoch takes the device 0.3 seconds."""
    device = Idle(0.3 / 937)
    images = np.zeros((60_000, 28, 28), np.uint8)
    data = Data(images, np.arange(60_000) % 10, None, None, "digest")
    recipe = Recipe(nets=nets, epochs=8, validation_fraction=0.0)
    job = Job(recipe, data, device, "float32", tmp_path, nets)
    train_group(job, recipe.all_nets, lambda n, rows=None: None, never)
    assert len(device.idle) == 7
    print(f"{nets} nets: idle for {1e3 * np.median(device.idle):.1f} ms an epoch")
    assert 0 < np.median(device.idle) < 0.05 * 0.3
