"""The parts of a study: networks, tasks, processes, statistics; and bad command lines."""

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

import numpy as np
import pandas as pd
import pytest
from acts import play
from runs import ROOT, command, small_layers
from scipy import stats
from stored_nets import SETTINGS

import minicnn.recipe
from minicnn import RandomAffine, __version__, machine, model, study
from minicnn.files import DataError
from minicnn.recipe import Recipe
from minicnn.studies import ablation, executors, grid, hardest, statistics, variance
from minicnn.studies.executors import Processes
from minicnn.studies.networks import STEPS, Variant
from minicnn.studies.store import FILE, Store
from minicnn.studies.tasks import Measured, Task, measure, train_nets
from minicnn.studies.work import Work, in_words
from minicnn.training import cluster
from minicnn.training.cluster import Place, connect
from minicnn.training.dataset import Source
from minicnn.training.workers import WorkerDiedError

# ---- networks ------------------------------------------------------------------------------------


def described(layers):
    return [(type(layer).__name__, vars(layer)) for layer in layers]


def test_the_last_steps_are_the_seed_network():
    for changes in (STEPS.index("more maps: the seed network"), len(STEPS) - 1):
        found = Variant(changes=changes, dropout=0.3, momentum=0.8).layers
        assert described(found) == described(model.mnist_layers(0.3, 0.8))


def test_each_step_changes_one_thing():
    """Consecutive networks differ only in what the step is named for."""

    def without(layers, *kinds, **same):
        kept = [(kind, dict(about)) for kind, about in layers if kind not in kinds]
        for _, about in kept:
            about.update({name: value for name, value in same.items() if name in about})
        return kept

    steps = [described(Variant(changes=changes).layers) for changes in range(len(STEPS))]
    assert without(steps[0], activation="relu") == without(steps[1], activation="relu")
    sizes = [[about["kernel_size"] for kind, about in s if kind == "Conv2D"] for s in steps]
    assert sizes[1] == [(5, 5), (5, 5), (4, 4)]
    assert sizes[2] == [(3, 3), (3, 3), (3, 3), (3, 3), (4, 4)]
    assert sizes[3] == [(3, 3), (3, 3), (5, 5)] * 2 + [(4, 4)]
    assert [about["strides"] for kind, about in steps[3] if kind == "Conv2D"][2] == (2, 2)
    assert without(steps[2], "Conv2D", "MaxPooling2D") == without(steps[3], "Conv2D")
    assert without(steps[4], "BatchNormalization") == steps[3]
    assert without(steps[5], "Dropout") == steps[4]
    hidden = [pair for pair in steps[5] if pair not in steps[6]]
    assert [kind for kind, _ in hidden] == ["Dense"]
    assert without(steps[6], filters=0) == without(steps[7], filters=0)
    assert steps[7] == steps[8]


@pytest.mark.parametrize("changes", range(len(STEPS)))
def test_each_network_can_be_trained(changes):
    images = np.random.default_rng(0).random((1, 8, 28, 28, 1), np.float32)
    variant = Variant(changes=changes, nets=1)
    net = variant.model(range(1, 2), device="numpy")
    loss, _ = net.train_on_batch(images, np.arange(8)[None] % 3)
    assert np.isfinite(loss).all()
    assert net.count_params() == ablation._weights(variant)


def test_the_ablation_augments_in_its_last_step_alone():
    recipe = Recipe(elastic=0.1)
    *before, last = ablation.cells(recipe, Namespace(trials=1))
    assert {cell.recipe.augment for cell in before} == {RandomAffine()}
    assert last.recipe.augment == recipe.augment


def test_the_grid_has_the_notebooks_cells():
    asked = Namespace(rotation=None, shift=None, trials=6)
    cells = grid.cells(Recipe(), asked)
    places = {(cell.recipe.rotation, cell.recipe.height_shift) for cell in cells}
    assert len(cells) == len(places) == 16
    assert {r for r, s in places if s == 0.2} == {10, 15}
    assert {r for r, s in places if s == 0.1} == set(range(0, 31, 5))
    assert all(cell.recipe.zoom == cell.recipe.rotation / 100 for cell in cells)
    asked.rotation, asked.shift = [5.0, 7.5, 5.0, -0.0, 0.0, 5.0000001], [0.3]
    assert [c.recipe.rotation for c in grid.cells(Recipe(), asked)] == [5, 7.5, 0, 5.0000001]


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
    work.do(place, groups, None, lambda cell, nets: None, lambda images: None, lambda: False)
    sizes = {}
    for _, task in asked:
        sizes.setdefault(task.cell, []).append(len(task.nets))
    assert sizes == {**{name: [2] for name in STEPS[:-1]}, "augmentation": [15, 15]}
    del asked[:]
    work.do(place, groups, 4, lambda cell, nets: None, lambda images: None, lambda: False)
    assert max(len(task.nets) for _, task in asked) == 4
    assert sum(len(task.nets) for _, task in asked) == work.nets == 46


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


# ---- statistics ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 17])
def test_intervals_are_scipys(n):
    random = np.random.default_rng(n)
    a, b = random.normal(0.99, 0.01, n), random.normal(0.97, 0.03, n + 2)
    low, high = stats.t.interval(0.95, n - 1, a.mean(), stats.sem(a))
    assert statistics.mean_interval(a) == pytest.approx((low, min(high, 1)), rel=1e-12)
    low, high = stats.ttest_ind(b, a, equal_var=False).confidence_interval(0.95)
    assert statistics.difference_interval(a, b) == pytest.approx((low, high), rel=1e-9)
    assert statistics.mean_interval([0.1, 0.9]) == (0, 1)
    assert statistics.difference_interval([0, 1], [1, 0.5]) == (-1, 1)


def test_a_bootstrap_interval_holds_what_it_should():
    """In about 95 of 100 samples the interval of the mean holds the true mean."""
    random = np.random.default_rng(5)
    held = 0
    for _ in range(300):
        low, high = statistics.bootstrap_interval(random.normal(2, 1, 40), np.mean)
        held += low <= 2 <= high
    assert 0.90 <= held / 300 <= 0.98
    values = random.random(9)
    again = statistics.bootstrap_interval(values, np.mean)
    assert statistics.bootstrap_interval(values, np.mean) == again


def test_one_value_has_no_interval():
    for found in (
        statistics.mean_interval([0.5]),
        statistics.difference_interval([0.5], [0.1, 0.2]),
        statistics.bootstrap_interval([0.5], np.mean),
    ):
        assert np.isnan(found).all()
    assert statistics.difference_interval([0.5, 0.5], [0.75, 0.75]) == (0.25, 0.25)
    assert statistics.spread([]) == {"n": 0}


# ---- measures and ranks --------------------------------------------------------------------------


def test_an_image_without_any_pixel_is_left_out():
    images = np.zeros((4, 28, 28), np.uint8)
    images[1, 3:9, 5] = images[2, 4, 5:20] = images[3, 9:12, 9:20] = 200
    measures = variance.measure(images, np.array([1, 1, 1, 1]))
    assert measures.iloc[0, 2:].isna().all()
    assert measures.loc[1, ["center_column", "center_row"]].to_list() == [6, 6.5]
    assert abs(measures.loc[1, "angle"]) == pytest.approx(90)
    assert measures.loc[2, "angle"] == 0
    assert len(variance.deviations(measures)) == 3


@pytest.mark.parametrize("lit", [0, 1])
def test_images_of_no_extent(tmp_path, lit):
    images = np.zeros((70, 28, 28), np.uint8)
    images[:, 5, 7] = lit
    with Store(tmp_path / FILE) as store:
        store.claim("variance", 0, SETTINGS, None, [])
        measures = variance.measure(images, np.arange(70) % 10)
        store.add_images("variance", 0, measures)
        found = variance.findings(store.results("variance", 0))
    if not lit:
        assert found.lines == ["all pixels of all images are zero"]
        return
    assert found.lines[0].startswith("centre of the bounding box: mean (8.00, 6.00)")
    assert all(picture.build().axes for picture in found.pictures.values())


def test_the_hardest_by_entropy():
    probabilities = np.random.default_rng(3).dirichlet(np.ones(10), (4, 70)).astype(np.float32)
    table = hardest.rank(probabilities)
    entropies = [
        -sum(p * np.log(p) for p in probabilities[:, i].mean(axis=0, dtype=float))
        for i in range(70)
    ]
    order = sorted(range(70), key=lambda i: -entropies[i])[:50]
    assert table["image"].to_list() == [i + 1 for i in order]
    assert table["entropy"].to_list() == pytest.approx([entropies[i] for i in order])
    assert "label" not in table
    assert isinstance(table, pd.DataFrame)


# ---- the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("", "the following arguments are required: NAME"),
        ("nothing", "invalid choice: 'nothing'"),
        ("trials --trials 0", "argument --trials: got 0, expected a positive integer"),
        ("trials --quick --momentum 1.5", "argument --momentum: got 1.5"),
        ("trials --quick --seed -1", "argument --seed: got -1"),
        ("trials --quick --trials 400 --nets 9000", "argument --trials: 400 trials need 3,600,000"),
        ("trials --quick --nets 20000", "argument --nets: got 20000"),
        ("trials --quick --limit 20", "got 20 training images, expected at least one batch of 64"),
        ("grid --quick --shift 5", "argument --shift: got 5.0, expected a number in [0, 1]"),
        (
            "trials --quick --dask tcp://x:1 --workers 2",
            "argument --workers: not allowed with --dask",
        ),
        (
            "trials --quick --dask tcp://x:1 --threads 2",
            "argument --threads: not allowed with --dask",
        ),
        ("trials --quick --device cuda", "device: 'cuda' cannot be used"),
        ("trials --quick --workers 3 --device emulated", "workers: got 3, expected 1"),
        ("grid --quick --rotation 500", "argument --rotation: got 500"),
        ("grid --quick --rotation x", "argument --rotation: got 'x', expected a number"),
        ("variance --trials 3", "unrecognized arguments: --trials 3"),
        ("variance --data nowhere", "nowhere: No such file or directory"),
        ("variance --quick --out FILE", "FILE is a file, expected a folder"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(arguments, named, tmp_path, monkeypatch, capsys):
    (tmp_path / "FILE").touch()
    monkeypatch.chdir(tmp_path)
    try:
        status = study.main(arguments.split())
    except SystemExit as error:  # argparse's
        status = error.code
    assert status == 2
    stderr = capsys.readouterr().err
    assert "Traceback" not in stderr
    line = stderr.splitlines()[-1]
    assert "error: " in line
    assert named in line


def test_help_tells_both_sizes(tmp_path):
    done = command("minicnn.study", "trials", "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "(default: 100; --quick: 3)" in " ".join(done.stdout.split())
