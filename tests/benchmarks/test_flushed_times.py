"""Times with a flushed cache: the flush runs before every timed launch, outside of its time.

A stand-in for a GPU has a clock of its own, which copies and launches move, and a cache: a launch
is slower after a copy that is as large as the cache.
"""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
from planted import TOY

from benchmarks import kernels, timing
from benchmarks.kernels import Sizes
from minicnn.backends import native
from minicnn.emulator import Emulator

CACHE_BYTES = 50 << 20
WARM, COLD, COPYING = 3.0, 4.0, 100.0  # seconds


class StandIn:
    """A driver and the part of CuPy that times it. `log` says what the GPU does, in order."""

    def __init__(self, cache_bytes=CACHE_BYTES):
        self.now, self.log, self.cold = 0.0, [], False
        runtime = SimpleNamespace(
            getDevice=lambda: 2,
            getDeviceProperties=lambda device: {2: {"l2CacheSize": cache_bytes}}[device],
        )
        self.cuda = SimpleNamespace(
            Event=lambda: Event(self),
            get_current_stream=lambda: None,
            get_elapsed_time=lambda first, last: 1e3 * (last.time - first.time),
            runtime=runtime,
        )

    def zeros(self, shape, dtype):
        return np.zeros(shape, dtype)

    def copy(self, source, target):
        assert source is not target
        self.log.append("copy")
        self.now += COPYING
        self.cold = self.cold or target.nbytes >= CACHE_BYTES

    def run(self, launch):
        self.log.append(launch)
        self.now += COLD if self.cold else WARM
        self.cold = False

    def capture(self, function):
        return function

    @contextlib.contextmanager
    def session(self):
        yield


class Event:
    """One of CuPy's events."""

    def __init__(self, gpu):
        self._gpu = gpu

    def record(self, stream):
        self.time = self._gpu.now
        self._gpu.log.append("event")

    def synchronize(self):
        pass


@pytest.fixture
def gpu(monkeypatch):
    """The stand-in, as CuPy of the benchmarks."""
    found = StandIn()
    monkeypatch.setattr(timing.importlib, "import_module", {"cupy": found}.__getitem__)
    return found


def test_each_timed_launch_follows_a_flush_that_is_not_timed(gpu):
    sizes, clock = Sizes(rounds=2, repeats=3, seconds=0), timing.clock_of("cuda")
    flush = timing.flusher("cuda", gpu)
    found = kernels.time_flushed(gpu, "launch", flush, sizes, clock)
    assert found == {"seconds": COLD, "lowest": COLD, "highest": COLD, "rounds": 2}
    untimed = 1  # to compile
    assert gpu.log == ["copy", "event", "launch", "event"] * (untimed + 2 * 3)
    gpu.log.clear()
    found = kernels.time_warm(gpu, "launch", sizes, clock)
    assert found == {"seconds": WARM, "lowest": WARM, "highest": WARM, "rounds": 2}
    assert set(gpu.log) == {"event", "launch"}


def test_a_rounds_figure_is_the_mean_of_its_calls(gpu):
    durations = iter([50, 1, 2, 3, 4])

    def step():
        gpu.now += next(durations)

    times = timing.measure_flushed(step, lambda: None, 2, 2, timing.clock_of("cuda"))
    assert times == [1.5, 3.5]


@pytest.mark.parametrize(
    ("name", "cache", "copied"),
    [
        ("cuda", 50 << 20, 100 << 20),
        ("cuda", 2 << 20, 64 << 20),  # a small copy would be over before a launch is queued
        ("emulated", None, 2 << 20),
    ],
)
def test_a_flush_writes_more_than_the_cache_holds(name, cache, copied, monkeypatch):
    gpu, arrays = StandIn(cache), []
    monkeypatch.setattr(timing.importlib, "import_module", {"cupy": gpu}.__getitem__)
    gpu.copy = lambda *given: arrays.extend(given)
    timing.flusher(name, gpu)()
    assert [array.nbytes for array in arrays] == [copied, copied]
    assert copied >= 2 * timing.cache_bytes(name)


def test_each_operation_of_a_step_is_timed_warm_and_flushed(gpu, monkeypatch):
    """On a GPU. On the host there are no flushed times."""

    def operation(name):
        about = {"layer": name, "part": "forward", "flops": 0, "bytes": 8}
        return SimpleNamespace(run=lambda: gpu.run(name), **about)

    trainer = SimpleNamespace(ops=gpu, step=lambda: None)
    monkeypatch.setattr(kernels, "make_trainer", lambda *given: trainer)
    monkeypatch.setattr(kernels, "operations_of", lambda trainer: [operation("a"), operation("b")])
    steps = kernels.Steps("cuda", 1, 1, 12)
    gpu.log.clear()
    assert steps.seconds() == [WARM, WARM]
    timed = ["event", "a", "event"], ["event", "b", "event"]
    assert gpu.log == ["a", "b", *timed[0], *timed[1]]
    gpu.log.clear()
    assert steps.seconds(flushed=True) == [COLD, COLD]
    assert gpu.log == ["a", "b", "copy", *timed[0], "copy", *timed[1]]
    rows = kernels.time_operations({"cuda": steps, "numpy": steps}, rounds=2)
    assert [(row["device"], "flushed" in row) for row in rows] == [
        *[("cuda", True)] * 2,
        *[("numpy", False)] * 2,
    ]
    kernels.add_share(rows[0], {"copy_bytes_per_second": 10})
    assert rows[0]["of_limit"] == pytest.approx(8 / WARM / 10)
    assert rows[0]["flushed"]["of_limit"] == pytest.approx(8 / COLD / 10)


def test_the_emulator_flushes_before_each_timed_launch():
    if native.problem():
        pytest.skip(native.problem())
    log = []

    class Watched(Emulator):
        def copy(self, source, target):
            log.append(("copy", target.nbytes))
            super().copy(source, target)

        def _execute(self, launch):
            log.append(launch.name)
            super()._execute(launch)

    driver = Watched()
    x, y = (driver.zeros((2, 3, 4), np.float32) for _ in range(2))
    values = x, None, driver.zeros(1, np.float64), {"rows": 3, "columns": 4}, 7, True, y
    launch, sizes = driver.bind(TOY, "scale", (5,), (64,), values), Sizes(rounds=2, repeats=4)
    flush, clock = timing.flusher("emulated", driver), timing.clock_of("emulated")
    found = kernels.time_flushed(driver, launch, flush, sizes, clock)
    assert log == [("copy", 2 * timing.cache_bytes("emulated")), "scale"] * (1 + 2 * 4)
    assert 0 < found["lowest"] <= found["highest"]


# ---- the tables ----------------------------------------------------------------------------------


def test_both_times_of_an_operation_are_in_its_cell_and_in_the_sums():
    flushed = {"seconds": 4e-3}
    about = {"layer": "dropout", "pass": "forward", "flops": 0, "bytes": 3_000_000, "of_limit": 0.5}
    rows = [
        {**about, "device": "cuda", "seconds": 1e-3, "flushed": flushed},
        {**about, "device": "cuda", "layer": "dropout_1", "seconds": 2e-3, "flushed": flushed},
        {**about, "device": "numpy", "seconds": 6e-3},
    ]
    each, sums = kernels.tables({"limits": {"numpy": {}, "cuda": {}}, "operations": rows})
    assert "| 0.5 GB/s, 50%, 6 ms | 3 GB/s, 50%, 1 ms, flushed 4 ms |" in each
    assert sums.splitlines() == [
        "| all of a kind, ms | numpy | cuda | cuda, flushed |",
        "| --- | --- | --- | --- |",
        "| dropout, forward | 6.00 | 3.00 | 8.00 |",
        "| all | 6.00 | 3.00 | 8.00 |",
    ]


def test_both_times_of_a_launch_are_in_its_row():
    about = {"kernel": "adam", "layer": "", "precision": "bfloat16"}
    warm = {"seconds": 1e-5, "of_bandwidth": 1.2}
    flushed = {"seconds": 2e-5, "of_bandwidth": 0.6, "of_matrix_peak": 0.1}
    shown = kernels.launch_table([{**about, **warm, "flushed": flushed}]).splitlines()
    assert shown[0] == (
        "| launch | layer | precision | warm, us | copy | product | flushed, us | copy | product |"
    )
    assert shown[2] == "| adam |  | bfloat16 | 10.0 | 120% |  | 20.0 | 60% | 10% |"
