"""Training groups of nets: splits, shuffles, lockstep, checkpoints, processes, memory."""

import os
import signal
import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace
from multiprocessing.connection import Connection

import numpy as np
import pytest
import runs

from minicnn.backends import ops_numpy
from minicnn.data.digits import draw_digits
from minicnn.files import DataError
from minicnn.recipe import RECIPES, Recipe
from minicnn.training import resources, workers
from minicnn.training.dataset import Data
from minicnn.training.trainer import Job, Trainer

TINY = Recipe(nets=2, epochs=2, batch_size=16, momentum=0.9, seed=5)


@pytest.fixture(scope="module")
def data():
    images, labels = draw_digits(120)
    test_images, test_labels = draw_digits(30, first=120)
    return Data(images, labels, test_images, test_labels, "digest")


@pytest.fixture
def job(data, device, tmp_path):
    return Job(TINY, data, device, "float32", tmp_path)


def nothing(images):
    pass


def never():
    return False


def test_an_epoch_takes_each_training_image_at_most_once_in_a_fresh_order(job):
    trainer = Trainer(job, range(1, 3))
    assert trainer.steps == (120 - 12) // 16
    orders = []
    for epoch in range(2):
        trainer.begin_epoch(epoch)
        orders.append(trainer.ops.to_host(trainer.order).reshape(2, -1))
    for net in range(2):
        trained_on = set(trainer.train_indices[net])
        held_out = set(trainer.validation_indices[net])
        assert len(held_out) == 12 and trained_on | held_out == set(range(120))
        for order in orders:
            assert len(set(order[net])) == len(order[net]) == trainer.steps * 16
            assert set(order[net]) <= trained_on
        assert (orders[0][net] != orders[1][net]).any()
    assert (orders[0][0] != orders[0][1]).any()


def test_nets_in_lockstep_equal_nets_alone_to_the_bit(job):
    together = Trainer(job, range(1, 3))
    alone = [Trainer(job, range(net, net + 1)) for net in (1, 2)]
    for trainer in (together, *alone):
        for _ in range(TINY.epochs):
            trainer.train_epoch(nothing, never)
    for i, trainer in enumerate(alone):
        for name in ("params", "moving", "moment_1", "moment_2"):
            ours, theirs = getattr(trainer.model, name), getattr(together.model, name)
            to_host = trainer.ops.to_host
            np.testing.assert_array_equal(to_host(ours)[0], to_host(theirs)[i])
        rows = [row for row in together.history if row["net"] == i + 1]
        for one, other in zip(trainer.history, rows, strict=True):
            assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_history_is_what_the_steps_gave(job):
    """The history equals loss and accuracy summed over the steps of train_on_batch."""
    trainer, twin = (Trainer(job, range(1, 3)) for _ in range(2))
    trainer.train_epoch(nothing, never)
    twin.begin_epoch(0)
    losses, accuracies = [], []
    for _ in range(twin.steps):
        with twin.ops.session():
            twin.ops.load_batch(
                *(twin.images, twin.labels, twin.order, twin.bounds, 5, twin.model.net_numbers),
                *(twin.model.step, twin.plan.x, twin.plan.labels),
            )
        x, y = twin.ops.to_host(twin.plan.x), twin.ops.to_host(twin.plan.labels)
        loss, accuracy = twin.model.train_on_batch(x, y, 1e-3)
        losses.append(loss)
        accuracies.append(accuracy)
    for i, row in enumerate(trainer.history):
        assert row["train_loss"] == pytest.approx(np.mean(losses, axis=0)[i], rel=1e-6)
        assert row["train_accuracy"] == pytest.approx(np.mean(accuracies, axis=0)[i], rel=1e-12)
        chosen = twin.validation_indices[i]
        x = (job.data.train_images[chosen, ..., None] / 255).astype(np.float32)
        predicted, labels = twin.model.predict(x)[i], job.data.train_labels[chosen]
        assert row["validation_accuracy"] == np.mean(predicted.argmax(axis=1) == labels)
        loss = -np.mean(np.log(predicted[np.arange(12), labels]))
        assert row["validation_loss"] == pytest.approx(loss, rel=1e-4)


def test_a_checkpoint_in_mid_epoch_goes_on_to_the_bit(job, tmp_path):
    whole, first, second = (Trainer(job, range(1, 3)) for _ in range(3))
    whole.train_epoch(nothing, never)
    stops = iter([False, False, False, True])
    with pytest.raises(workers.Interrupted):
        first.train_epoch(nothing, lambda: next(stops))
    assert first.steps_done == 3
    first.save(tmp_path / "state.npz")
    second.load(tmp_path / "state.npz")
    second.train_epoch(nothing, never)
    np.testing.assert_array_equal(*(t.ops.to_host(t.model.params) for t in (second, whole)))
    for one, other in zip(second.history, whole.history, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_an_interrupted_validation_is_made_up_for(job, tmp_path):
    whole, first, second = (Trainer(job, range(1, 3)) for _ in range(3))
    whole.train_epoch(nothing, never)
    stops = iter([False] * whole.steps + [True])
    with pytest.raises(workers.Interrupted):
        first.train_epoch(nothing, lambda: next(stops))
    assert first.steps_done == whole.steps and first.epochs_done == 0
    first.save(tmp_path / "state.npz")
    second.load(tmp_path / "state.npz")
    for trainer in (whole, second):
        while trainer.epochs_done < 2:
            trainer.train_epoch(nothing, never)
    np.testing.assert_array_equal(*(t.ops.to_host(t.model.params) for t in (second, whole)))
    for one, other in zip(second.history, whole.history, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_a_step_allocates_nothing(job):
    """NumPy's own buffers for casting take 80 to 160 KB; the smallest activation takes more."""
    trainer = Trainer(replace_recipe(job, batch_size=100), range(1, 2))
    trainer.begin_epoch(0)
    with trainer.ops.session():
        trainer.step()
        trainer.step()
        tracemalloc.start()
        try:
            trainer.step()
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            trainer.step()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    smallest = 100 * 28 * 28 * 4  # bytes of the batch of images
    assert peak - before < smallest / 1.5


def replace_recipe(job, **changes):
    return replace(job, recipe=replace(job.recipe, **changes))


def test_fewer_images_than_a_batch_are_refused(job):
    with pytest.raises(DataError, match=r"batch_size: got 109, expected at most the 108"):
        Trainer(replace_recipe(job, batch_size=109), range(1, 2))
    assert Trainer(replace_recipe(job, batch_size=108), range(1, 2)).steps == 1


def test_a_checkpoint_of_another_training_is_refused(job, tmp_path):
    path = tmp_path / "state.npz"
    Trainer(job, range(1, 2)).save(path)
    with pytest.raises(DataError, match="data: got 'digest', expected 'other'"):
        other = replace(job, data=replace(job.data, fingerprint="other"))
        Trainer(other, range(1, 2)).load(path)
    with pytest.raises(DataError, match=r"recipe: got decay 0\.95, expected 0\.9"):
        Trainer(replace_recipe(job, decay=0.9), range(1, 2)).load(path)
    with pytest.raises(DataError, match="does not hold net 2"):
        Trainer(job, range(2, 3)).load(path)


def fail_late(shared, task, report, should_stop):
    if task == 1:
        raise workers.Interrupted
    raise OSError("disk full")


def test_a_fault_is_reported_before_an_interruption():
    with pytest.raises(OSError, match="disk full"):
        workers.run_jobs(fail_late, None, [1, 2], 2, nothing, nothing, never)


def square(shared, task, report, should_stop):
    report(1)
    return shared * task**2


def fail_on_2(shared, task, report, should_stop):
    if task == 2:
        raise DataError("task 2 is bad")
    for _ in range(600):
        if should_stop():
            return None
        time.sleep(0.1)
    raise AssertionError("nobody said stop")


@pytest.mark.parametrize("processes", [1, 2])
def test_jobs_give_results_in_order(processes):
    told = []
    results = workers.run_jobs(square, 10, [1, 2, 3], processes, nothing, told.append, never)
    assert results == told == [10, 40, 90]


def test_a_failing_job_stops_the_others():
    started = time.monotonic()
    with pytest.raises(DataError, match="task 2 is bad"):
        workers.run_jobs(fail_on_2, None, [1, 2, 3], 2, nothing, nothing, never)
    assert time.monotonic() - started < 48  # a task ends by itself after 60


def die(shared, task, report, should_stop):
    os._exit(1)


def die_in_sending(shared, task, report, should_stop):
    """Send half of a large result, the first time only."""
    if task == 1 and not shared.exists():
        shared.touch()
        send = Connection._send

        def half(connection, content):
            send(connection, content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)

        Connection._send = half
    return bytes(10_000_000) + bytes([task])


@pytest.mark.skipif(not hasattr(os, "setpgid"), reason="needs POSIX processes")
def test_a_worker_that_dies_in_sending_its_result_is_replaced(tmp_path):
    died = []
    results = workers.run_jobs(
        *(die_in_sending, tmp_path / "died", [1, 2], 2, nothing, nothing, never, died.append)
    )
    assert [result[-1] for result in results] == [1, 2] and died == [1]


# A worker process ends before it reads its job.
STILLBORN = """
import os, signal, sys
from minicnn import train
if __name__ == "__mp_main__":
    os.kill(os.getpid(), signal.SIGKILL)
if __name__ == "__main__":
    sys.exit(train.main())
"""


@pytest.mark.skipif(not hasattr(os, "setpgid"), reason="needs POSIX processes")
def test_workers_that_die_as_they_begin_are_reported(tmp_path):
    (tmp_path / "stillborn.py").write_text(STILLBORN)
    given = *runs.TINY, "--workers=2", "--out", tmp_path / "out"
    done = subprocess.run(
        [sys.executable, tmp_path / "stillborn.py", *given],
        env={**os.environ, "PYTHONPATH": str(runs.ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "error: a worker process died, and so did its replacement" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_worker_that_dies_is_reported():
    with pytest.raises(workers.WorkerDiedError, match="died"):
        workers.run_jobs(die, None, [1, 2], 2, nothing, nothing, never)


def test_workers_are_as_many_as_cores_nets_and_memory_allow(data, monkeypatch):
    needed = resources.process_bytes(TINY, data, ops_numpy)
    assert needed > resources._PROCESS_BYTES
    monkeypatch.setattr(resources, "cores", lambda: 8)

    def workers(recipe, memory=None, asked=None):
        return resources.share(recipe, data, ops_numpy, memory, asked)

    many = replace(TINY, nets=6)
    assert workers(many, 100 * needed) == (1, 6)
    assert workers(many, 3 * needed) == (1, 3)
    assert workers(replace(TINY, nets=20), 100 * needed) == (1, 8)
    assert workers(many, 3 * needed, 2) == (1, 2)
    assert workers(replace(TINY, nets=1), needed, 500) == (1, 1)
    with pytest.raises(ValueError, match="memory"):
        workers(many, needed - 1)
    with pytest.raises(ValueError, match="memory: 4 process"):
        workers(many, 3 * needed, 4)
    monkeypatch.setattr(ops_numpy, "free_memory", lambda: None)
    assert workers(many) == (1, 6)


def test_nets_must_fit_together_in_the_end(data, monkeypatch):
    thousand = replace(TINY, nets=1000)
    needed = resources.collected_bytes(thousand, data)
    assert 9 * 1000 * 327_242 * 4 < needed < 13 * 1000 * 327_242 * 4
    monkeypatch.setattr(resources, "free_memory", lambda: needed - 1)
    with pytest.raises(ValueError, match=r"nets: merging 1000 nets takes [\d,]+ bytes"):
        resources.share(thousand, data, ops_numpy)
    monkeypatch.setattr(resources, "free_memory", lambda: needed)
    resources.share(thousand, data, ops_numpy, memory=1 << 40)


@pytest.mark.parametrize(
    ("nets", "memory", "expected"),
    [(15, None, 15), (15, 150, 15), (15, 149, 8), (15, 70, 5), (4, 30, 2), (4, 10, 1), (1, 10, 1)],
)
def test_groups_are_as_large_as_memory_allows_and_as_equal_as_can_be(nets, memory, expected):
    assert resources.group_size(nets, memory, lambda count: 10 * count) == expected


def test_a_group_of_one_net_must_fit():
    with pytest.raises(ValueError, match="memory: one net takes 10 bytes, expected at most 9"):
        resources.group_size(3, 9, lambda count: 10 * count)


def test_nets_are_split_into_consecutive_ranges():
    assert resources.split_nets(range(3, 10), 3) == [range(3, 6), range(6, 9), range(9, 10)]
    assert resources.split_nets([1, 2, 3, 4], 3) == [range(1, 3), range(3, 5)]
    assert resources.split_nets([1, 2, 7, 8, 9], 2) == [range(1, 3), range(7, 9), range(9, 10)]


def test_the_recipes_are_the_notebooks_and_the_demo():
    seed, demo = RECIPES["seed"], RECIPES["demo"]
    assert (seed.nets, seed.epochs, seed.batch_size, seed.momentum) == (15, 45, 64, 0.99)
    assert [[*seed.learning_rates(epoch, 2)] for epoch in (1, 3)] == [
        [1e-3] * 2,
        [1e-3 * 0.95**2] * 2,
    ]
    augment = seed.augment
    ranges = augment.rotation_range, augment.zoom_range
    shifts = augment.width_shift_range, augment.height_shift_range
    assert (*ranges, *shifts, augment.elastic_range) == (10, 0.1, 0.1, 0.1, 0)
    assert demo.momentum == 0.9
    assert replace(demo, nets=15, epochs=45, momentum=0.99) == seed


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("nets", 0),
        ("nets", 1.0),
        ("epochs", True),
        ("first_net", 2**32),
        ("validation_fraction", 1),
        ("validation_fraction", float("nan")),
        ("zoom", -0.1),
        ("rotation", "10"),
        ("width_shift", 1.1),
        ("elastic", 1.1),
        ("learning_rate", 0),
        ("decay", float("inf")),
        ("label_smoothing", 1),
        ("label_smoothing", -0.1),
        ("schedule", "step"),
        ("schedule", ["linear"]),
        ("warm_up", 1),
        ("average_epochs", 46),
        ("average_epochs", 1.0),
        ("average_decay", 1),
        ("dropout", 1),
        ("momentum", -1),
        ("views", 0),
        ("views", 28),
        ("seed", 2**32),
    ],
)
def test_an_impossible_recipe_names_its_field(field, value):
    with pytest.raises(ValueError, match=field):
        Recipe(**{field: value})
