"""The backend in C: recorded steps, and runs of the command that use them."""

import gc
import os
import signal
import tracemalloc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cases import assert_same_bits
from runs import TINY, state

from minicnn import rng, train
from minicnn.data.digits import draw_digits
from minicnn.network.geometry import Window
from minicnn.recipe import Recipe
from minicnn.training import checkpoint
from minicnn.training.dataset import Data
from minicnn.training.inference import CapturedStep
from minicnn.training.trainer import Job, Trainer

pytestmark = pytest.mark.usefixtures("kernels_in_c")


# ---------------------------------------------------------------------------------------------
# Recordings


class Step:
    """A step in which calls of kernels and of NumPy alternate, each on the last one's result."""

    def __init__(self, ops):
        self.ops, self.calls = ops, 0
        random = np.random.default_rng(0)
        self.window = Window.fit((2, 2), (2, 2), "valid", (8, 6))
        self.x = random.normal(size=(2, 3, 8, 6, 5)).astype(np.float32)
        self.winner = np.zeros((2, 3, 4, 3, 5), np.uint16)
        self.pooled, self.dropped = np.zeros((2, 2, 3, 4, 3, 5), np.float32)
        self.mask = np.zeros(self.dropped.shape, bool)
        self.params, self.m, self.v = np.ones((3, *self.dropped.shape), np.float32)
        self.nets, self.step, self.learning_rate = np.arange(2), np.array([0]), np.array([0.1])
        self.loss, self.correct = np.zeros(2, np.float32), np.zeros(2, np.int64)

    def __call__(self):
        self.calls += 1
        ops, step = self.ops, self.step
        ops.activate("relu", self.x)
        ops.activate("tanh", self.x)
        ops.max_pool(self.x, self.window, self.winner, self.pooled)
        drawn = 7, self.nets, rng.DROPOUT, step
        ops.dropout(self.pooled, 0.4, *drawn, self.mask, self.dropped)
        ops.copy(self.dropped, self.pooled)
        moments = self.m, self.v
        ops.adam(self.params, self.pooled, *moments, step, self.learning_rate, 0.9, 0.999, 1e-7)
        ops.accumulate(self.loss, self.correct, step, None)
        ops.max_pool_backward(self.dropped, self.window, self.winner, self.x)

    def arrays(self):
        """{name: copy of the array}."""
        return {name: a.copy() for name, a in vars(self).items() if isinstance(a, np.ndarray)}


def test_recording_runs_nothing_and_replaying_gives_the_same_bits(cpu_ops):
    recorded, eager = Step(cpu_ops), Step(cpu_ops)
    with cpu_ops.session():
        replay = cpu_ops.capture(recorded)
        assert_same_bits(recorded.arrays(), eager.arrays())
        for rate in (0.1, 0.02, 0.3):
            for step in (recorded, eager):
                step.learning_rate[...] = rate
            replay()
            eager()
            assert_same_bits(recorded.arrays(), eager.arrays())
    assert recorded.calls == 1 and recorded.step == 3


def test_a_recording_reads_step_and_learning_rate_when_it_is_replayed(cpu_ops):
    results = []
    for start, rate in ((0, 0.1), (0, 0.2), (5, 0.1)):
        step = Step(cpu_ops)
        with cpu_ops.session():
            replay = cpu_ops.capture(step)
            step.step[...], step.learning_rate[...] = start, rate
            replay()
        results.append(step)
    plain, faster, later = results
    np.testing.assert_array_equal(faster.mask, plain.mask)
    assert (faster.params != plain.params).any()
    assert (later.mask != plain.mask).any()


def test_a_recording_keeps_its_arrays_as_long_as_it_lives(cpu_ops):
    random = np.random.default_rng(0)
    shapes = {"x": (2, 64, 300), "kernel": (2, 300, 50), "bias": (2, 50)}
    given = {name: random.normal(size=s).astype(np.float32) for name, s in shapes.items()}
    given["workspace"] = np.zeros(cpu_ops.dense_workspace(2, 64, 300, 50), np.uint8)
    expected, found = np.zeros((2, 2, 64, 50), np.float32)
    with cpu_ops.session():
        cpu_ops.dense(activation="tanh", y=expected, **given)
        replay = cpu_ops.capture(lambda: cpu_ops.dense(activation="tanh", y=found, **given))
        arrays = [weakref.ref(array) for array in given.values()]
        given.clear()
        gc.collect()
        assert all(array() is not None for array in arrays)
        replay()
    np.testing.assert_array_equal(found, expected)
    del replay
    gc.collect()
    assert all(array() is None for array in arrays)


def test_calls_of_another_thread_are_not_recorded(cpu_ops):
    y = np.full((1, 3), -1, np.float32)

    def elsewhere():
        with ThreadPoolExecutor(1) as pool:
            pool.submit(cpu_ops.activate, "relu", y).result()

    replay = cpu_ops.capture(elsewhere)
    assert (y == 0).all()
    y[...] = -1
    replay()
    assert (y == -1).all()


def test_after_an_error_in_a_recording_calls_are_done_at_once(cpu_ops):
    y = np.full((1, 3), -1, np.float32)

    def fail():
        cpu_ops.activate("relu", y)
        cpu_ops.activate("relu", y.astype(np.float64))

    with pytest.raises(TypeError, match="got an array of float64"):
        cpu_ops.capture(fail)
    assert (y == -1).all()
    cpu_ops.activate("relu", y)
    assert (y == 0).all()


def test_a_repeated_step_of_the_seed_network_makes_no_arrays(cpu_ops, tmp_path):
    recipe = Recipe(nets=2, epochs=1, batch_size=16)
    data = Data(*draw_digits(100))
    trainer = Trainer(Job(recipe, data, "cpu", "float32", tmp_path), range(1, 3))
    repeat = CapturedStep(trainer.ops, graph=True)
    trainer.begin_epoch(0)
    with trainer.ops.session():
        for _ in range(3):
            repeat(trainer.step)
        tracemalloc.start()
        try:
            repeat(trainer.step)
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            for _ in range(20):
                repeat(trainer.step)
            after, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert trainer.steps_done == 24
    assert most - before < 65_536  # one activation of the first layer is 1.4 MB
    assert after - before < 1_024


# ---------------------------------------------------------------------------------------------
# The command


def trained(folder, *options):
    """The state after a run of three small nets."""
    arguments = [*TINY, "--nets=3", "--device=cpu", *options, "--out", str(folder)]
    assert train.main(arguments) == 0
    return state(folder)


@pytest.fixture(scope="module")
def run(cpu_ops, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "out"
    return folder, trained(folder, "--workers=1")


@pytest.mark.full(but="options[02]")
@pytest.mark.parametrize("options", [["--workers=2"], ["--workers=3"], ["--no-graph"]])
def test_processes_and_recordings_change_no_bit(run, tmp_path, options):
    assert trained(tmp_path / "out", *options) == run[1]


def test_net_2_alone_is_net_2_of_three(run, tmp_path):
    trained(tmp_path / "out", "--nets=1", "--first-net=2")
    alone, three = (checkpoint.load(f / "checkpoint.npz")[0] for f in (tmp_path / "out", run[0]))
    for name in ("params", "moving", "moment_1", "moment_2"):
        np.testing.assert_array_equal(alone[name][0], three[name][1])
        assert (alone[name][0] != three[name][0]).any()


@pytest.mark.full(but="2")
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_stopped_run_resumes_to_the_bit(run, tmp_path, monkeypatch, capsys, steps):
    """Stopped after a step that was called, recorded, or replayed."""
    repeat, calls = CapturedStep.__call__, []

    def stopping(self, function):
        repeat(self, function)
        calls.append(function)
        if len(calls) == steps:
            os.kill(os.getpid(), signal.SIGINT)

    folder = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(CapturedStep, "__call__", stopping)
        arguments = [*TINY, "--nets=3", "--device=cpu", "--workers=1", "--out", str(folder)]
        assert train.main(arguments) == 130
    assert "--resume" in capsys.readouterr().err
    [path] = folder.glob("checkpoint*")
    assert path.name == "checkpoint-net-001.npz"
    assert checkpoint.load(path)[1]["step"] == steps
    assert trained(folder, "--workers=2", "--resume") == run[1]
