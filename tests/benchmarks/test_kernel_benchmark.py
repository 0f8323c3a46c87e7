"""benchmarks/kernels.py: the least work of operations, the limits, the command, its tables."""

import json
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import kernels, limits, readme, timing
from benchmarks.kernels import make_trainer
from benchmarks.operations import _steps, flops_of, operations_of
from minicnn import (
    BatchNormalization,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    MaxPooling2D,
    RandomAffine,
    Sequential,
    devices,
)
from minicnn.backends import native
from minicnn.network.layers import Activation

E, B, H, W = 2, 3, 7, 5
TINY = limits.Work(side=8, elements=1000, rounds=2, seconds=0)
STATE = "params", "moving", "moment_1", "moment_2", "step"


# ---- what an operation must do -------------------------------------------------------------------


class Recorder:
    """A backend that records the arrays which its operations get."""

    def __init__(self, ops):
        self._ops, self.calls = ops, []

    def __getattr__(self, name):
        found = getattr(self._ops, name)
        if not callable(found):
            return found

        def recorded(*arguments):
            self.calls.append((name, [a for a in arguments if isinstance(a, np.ndarray)]))
            return found(*arguments)

        return recorded


@pytest.fixture(scope="module")
def small():
    """The attributes of a Trainer, for a small network with odd shapes."""
    stack = [
        Conv2D(3, (3, 2), strides=(2, 1), padding="same", activation="relu"),
        BatchNormalization(),
        Conv2D(4, 2, activation="tanh"),  # no other layer computes its gradient
        Activation("sigmoid"),
        Dropout(0.4),
        MaxPooling2D(2),
        Flatten(),
        Dense(5, activation="softmax"),
    ]
    model = Sequential(stack, input_shape=(H, W, 1), nets=E, device="numpy")
    model.ops = Recorder(model.ops)
    return SimpleNamespace(
        model=model,
        plan=model.plan(B, training=True),
        ops=model.ops,
        images=np.zeros((11, H, W), np.uint8),
        labels=np.zeros(11, np.uint8),
        order=np.zeros((E, 2, B), np.int32),
        bounds=RandomAffine(10, 0.1, 0.1, 0.1).bounds(H, W),
        rates=np.array([1e-3, 1e-4]),
        sums=np.zeros((E, 3)),
    )


# What an operation both reads and writes, by its place among the arrays that it is given.
IN_PLACE = {"adam": [0, 2, 3], "accumulate": [3], "update_moving": [0]}


def bytes_given(trainer, operation):
    """Bytes of the arrays that an operation passes to the backend: each once, in place twice."""
    model, calls = trainer.model, trainer.ops.calls
    steering = model.net_numbers, model.step, trainer.rates, trainer.bounds
    left_out = [*steering, trainer.plan.passes[0][1].workspace]
    calls.clear()
    operation.run()
    arrays = {id(array): array for _, given in calls for array in given}
    total = sum(
        array.nbytes for array in arrays.values() if not any(array is other for other in left_out)
    )
    for name, given in calls:
        total += sum(given[place].nbytes for place in IN_PLACE.get(name, ()))
    if operation.part == "activation gradient":
        total += calls[0][1][1].nbytes
    return total


def test_bytes_are_those_of_the_arrays_that_the_backend_is_given(small):
    batch, *operations = operations_of(small)
    pixels = sum(1 for _ in product(range(E), range(B), range(H), range(W)))
    # An image's pixels, label and number; its pixels as float32 and its label as int64.
    assert batch.bytes == pixels * 1 + E * B * (1 + 4) + pixels * 4 + E * B * 8
    batch.run()
    for operation in operations:
        found = operation.layer, operation.part, operation.bytes
        assert found == (*found[:2], bytes_given(small, operation))


def test_bytes_by_hand(small):
    found = {(o.layer, o.part): o.bytes for o in operations_of(small)}
    y = 4 * E * B * 4 * 5 * 3  # of the first convolution
    weights = 4 * E * (3 * 2 * 1 * 3 + 3)
    assert found["conv2d", "forward"] == 4 * E * B * H * W + weights + y
    assert found["conv2d", "weight gradient"] == found["conv2d", "forward"]
    assert ("conv2d", "input gradient") not in found
    assert found["batch_normalization", "forward"] == 2 * y + 4 * 4 * E * 3
    assert found["batch_normalization", "backward"] == 3 * y + 5 * 4 * E * 3
    numbers = E * B * 3 * 4 * 4  # of the second one
    assert found["conv2d_1", "activation gradient"] == 3 * 4 * numbers
    assert found["activation", "forward"] == 2 * 4 * numbers
    assert found["activation", "backward"] == 3 * 4 * numbers
    assert found["dropout", "forward"] == found["dropout", "backward"] == (4 + 4 + 1) * numbers
    assert not any(layer == "flatten" for layer, _ in found)


def test_steps_of_blocks_in_c_move_the_arrays_that_they_share_with_others(cpu_ops):
    stack = [
        Conv2D(3, (3, 2), strides=(2, 1), padding="same", activation="relu"),
        BatchNormalization(),
        Dropout(0.4),
        Conv2D(4, 2),
        BatchNormalization(),
        Flatten(),
        Dense(5, activation="softmax"),
    ]
    model = Sequential(stack, input_shape=(H, W, 1), nets=E, device=cpu_ops)
    plan = model.plan(B, training=True)
    found = {(o.layer, o.part): o for o in _steps(SimpleNamespace(plan=plan, ops=cpu_ops))}
    x, y, y_1 = 4 * E * B * H * W, 4 * E * B * 4 * 5 * 3, 4 * E * B * 3 * 4 * 4
    mask, weights, weights_1 = y // 4, 4 * E * (3 * 2 * 1 * 3 + 3), 4 * E * (2 * 2 * 3 * 4 + 4)
    channels, logits = 4 * E * 3, 4 * E * B * 5
    by_hand = {
        ("conv2d", "forward"): x + weights + y,
        ("dropout", "forward"): mask,
        # gamma, beta; mean, variance, mean_error, scale, shift
        ("batch_normalization", "forward"): y + 7 * channels + mask + y,
        ("conv2d_1", "forward"): y + weights_1 + y_1,
        # dy becomes dz. gamma, mean, variance, mean_error; dgamma, dbeta and the four terms
        ("batch_normalization", "backward"): y + mask + 2 * y + 10 * channels,
        ("conv2d_1", "weight gradient"): y + y_1 + weights_1,
        ("conv2d_1", "input gradient"): y_1 + weights_1 - 4 * E * 4 + y,
        ("dense", "input gradient"): logits + 4 * E * 48 * 5 + y_1,
    }
    assert {key: found[key].bytes for key in by_hand} == by_hand
    multiplications = E * B * (3 * 4) * (2 * 2) * 3 * 4
    for part in ("forward", "weight gradient", "input gradient"):
        assert found["conv2d_1", part].flops == 2 * multiplications
        assert found["dense", part].flops == 2 * E * B * 48 * 5
    assert found["batch_normalization", "backward"].flops == 0
    assert ("conv2d", "input gradient") not in found


def test_flops_are_two_for_each_multiplication_within_the_image(small):
    frames = {id(layer): (layer, f) for layer, f in small.plan.passes}
    first, second, dense = (
        flops_of(layer, f) for layer, f in frames.values() if isinstance(layer, Conv2D | Dense)
    )
    inside = [
        (y, x, i, j)
        for y, x, i, j in product(range(4), range(5), range(3), range(2))
        if 0 <= 2 * y + i - 1 < H and 0 <= x + j < W  # a row of padding above, none to the left
    ]
    assert first == 2 * E * B * len(inside) * 1 * 3
    assert second == 2 * E * B * (3 * 4) * (2 * 2) * 3 * 4
    assert dense == 2 * E * B * (1 * 2 * 4) * 5
    of_part = {(o.layer, o.part): o.flops for o in operations_of(small)}
    assert of_part["conv2d_1", "input gradient"] == of_part["conv2d_1", "forward"] == second
    assert of_part["batch_normalization", "forward"] == 0


@pytest.mark.every_device
def test_the_operations_are_a_step(device):
    whole, parts = (make_trainer(device, "float32", 2, 1, 12) for _ in range(2))
    to_host = whole.ops.to_host
    with whole.ops.session():
        whole.step()
        parts.step()
        whole.step()
        for operation in operations_of(parts):
            (parts.ops.capture or (lambda function: function))(operation.run)()
        for name in STATE:
            same = (to_host(getattr(trainer.model, name)).tobytes() for trainer in (whole, parts))
            assert len(set(same)) == 1, name
        assert to_host(whole.sums).tobytes() == to_host(parts.sums).tobytes()


# ---- limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_copies_and_products_take_time(threads):
    for measure in (limits.copy_seconds, limits.gemm_seconds):
        times = measure(threads, TINY)
        assert len(times) == 2 and min(times) > 0


def test_limits_are_medians_of_rates(monkeypatch):
    monkeypatch.setattr(limits, "copy_seconds", lambda threads, work: [2.0, 1.0])
    monkeypatch.setattr(limits, "gemm_seconds", lambda threads, work: [4.0, 0.5])
    found = limits.measure("numpy", TINY)
    assert found == {
        "gemm_flops_per_second": [2 * 8**3 / 4, 2 * 8**3 / 0.5],
        "copy_bytes_per_second": [8000 / 2, 8000 / 1],
    }
    again = {"gemm_flops_per_second": [1.0], "copy_bytes_per_second": []}
    assert limits.medians(found, again) == {
        "gemm_flops_per_second": 256,
        "copy_bytes_per_second": 6000,
    }
    assert limits.medians(again)["copy_bytes_per_second"] is None


def test_limits_of_a_gpu(monkeypatch):
    monkeypatch.setattr(limits, "gpu_copy_seconds", lambda work: (100, [5.0, 4.0]))
    monkeypatch.setattr(limits, "gpu_gemm", lambda precision, work: [1.0] * (precision == "tf32"))
    found = limits.measure("cuda", TINY)
    assert found == {
        "copy_bytes_per_second": [20, 25],
        "gemm_flops_per_second": [],
        "tf32_gemm_flops_per_second": [1.0],
    }
    assert limits.cores_of("cuda") is None
    assert limits.cores_of("numpy") == 1


@pytest.mark.parametrize(
    ("status", "output", "found", "message"),
    [(0, "a word\n[1.0]\n", [1.0], ""), (1, "", [], "products in tf32: Traceback no cuBLAS\n")],
)
def test_cublas_multiplies_in_its_own_process(monkeypatch, capsys, status, output, found, message):
    def run(command, env, timeout, **options):
        assert env["CUPY_TF32"] == "1"
        assert "limits.gpu_gemm_here('tf32', 3, 0.5)" in command[-1]
        assert timeout == limits._GEMM_SECONDS
        return SimpleNamespace(returncode=status, stdout=output, stderr="Traceback\nno cuBLAS\n")

    monkeypatch.setattr(limits.subprocess, "run", run)
    assert limits.gpu_gemm("tf32", TINY._replace(rounds=3, seconds=0.5)) == found
    assert capsys.readouterr().err == message


def test_products_are_timed_by_pytorch_where_cupy_has_no_cublas(monkeypatch, capsys):
    calls = []
    stand_in = SimpleNamespace(synchronous_product=lambda n, tf32: lambda: calls.append((n, tf32)))
    monkeypatch.setattr(limits.importlib, "import_module", lambda name: stand_in)
    monkeypatch.setattr(timing, "EventClock", lambda: None)
    rates = limits.gpu_gemm_here("tf32", 2, 0)
    assert len(rates) == 2 and min(rates) > 0
    assert set(calls) == {(8192, True)}
    assert "CuPy cannot multiply matrices here" in capsys.readouterr().err


# ---- the command ---------------------------------------------------------------------------------


@pytest.fixture
def quickly(monkeypatch, tmp_path):
    """Measure little, and write no result into the repository."""
    monkeypatch.setattr(limits, "QUICK", TINY)
    monkeypatch.setattr(timing, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def rows_of(result, device):
    return [row for row in result["operations"] if row["device"] == device]


def check(result, device, nets):
    rows, found = rows_of(result, device), result["limits"][device]
    # On a CPU the kernels of the network of blocks do dropout's backward pass in other operations.
    drops = 0 if device == "cpu" else 3
    assert len(rows) == 7 + 7 + 3 + 1 + (13 + 7 + drops + 2) + 5
    assert result["nets"][device] == nets
    for row in rows:
        assert 0 < row["lowest"] <= row["seconds"] <= row["highest"]
        limit = found["gemm_flops_per_second" if row["flops"] else "copy_bytes_per_second"]
        done = row["flops"] or row["bytes"]
        assert row["of_limit"] == pytest.approx(done / row["seconds"] / limit)


def test_numpy_and_c_side_by_side(quickly, tmp_path, capsys):
    given = ["numpy"] if devices.cpu_problem() else ["numpy", "cpu"]
    out = tmp_path / "result.json"
    kernels.main(["--device", *given, "--batch=2", "--quick", "--out", str(out)])
    result = json.loads(out.read_text())
    for device in given:
        check(result, device, nets=1)
        assert rows_of(result, device)[1]["flops"] == 2 * 2 * 26 * 26 * 9 * 32
    assert result["rounds"] == kernels.FEW_ROUNDS
    assert set(result) >= {"what", "batch", "machine", "versions"}
    lines = capsys.readouterr().out.splitlines()
    [line] = [line for line in lines if line.startswith("conv2d_3 ") and " forward " in line]
    assert line.count("GFLOP/s") == len(given)
    assert not quickly.exists()


def test_what_runs_on_a_gpu_runs_on_the_emulator(quickly, monkeypatch, capsys):
    if native.problem():
        pytest.skip(native.problem())
    found = []
    monkeypatch.setattr(kernels, "EMULATED", kernels.EMULATED._replace(rounds=1))
    monkeypatch.setattr(kernels, "show", found.append)
    kernels.main(["--device", "emulated", "--quick", "--rounds=1"])
    [result] = found
    check(result, "emulated", nets=1)
    fused = result["launches"]["emulated"]
    assert [row["precision"] for row in fused] == [*["tf32"] * 26, *["bfloat16"] * 26]
    for row in (*fused, *rows_of(result, "emulated")):
        assert 0 < row["flushed"]["lowest"] <= row["flushed"]["seconds"]
    steps = [(row["nets"], row["captured"]) for row in result["steps"]]
    assert steps == [(1, True), (1, False), (2, True)]
    for times in (fused, [{**row, **row["flushed"]} for row in fused]):
        assert all(row["of_bandwidth"] > 0 for row in times)
        assert not any("of_matrix_peak" in row for row in times)  # of tensor cores it is not known
    products = [row for row in fused if row["flops"]]
    assert len(products) == 2 * 19 and all(row["peak"] == row["precision"] for row in products)
    assert not quickly.exists()
    monkeypatch.undo()
    kernels.show(result)
    shown = capsys.readouterr().out
    assert "block_forward " in shown and " ms, flushed " in shown
    assert "Whole steps of 2 nets, float32, one graph: " in shown


def test_a_device_that_cannot_be_used_is_named(monkeypatch, capsys):
    monkeypatch.setattr("minicnn.backends.cuda.problem", lambda: "there is no GPU")
    with pytest.raises(SystemExit) as stopped:
        kernels.main(["--device", "numpy", "cuda"])
    assert stopped.value.code == 2
    message = "argument --device: 'cuda' cannot be used: there is no GPU"
    assert capsys.readouterr().err == f"benchmarks.kernels: error: {message}\n"


# ---- the tables ----------------------------------------------------------------------------------


def made_up_row(device, layer, part, seconds, flops, of_limit):
    found = {"device": device, "layer": layer, "pass": part, "seconds": seconds, "flops": flops}
    return {**found, "lowest": 0, "highest": 1, "bytes": 3_000_000, "of_limit": of_limit}


def test_the_tables_are_of_the_newest_result(monkeypatch, tmp_path):
    monkeypatch.setattr(timing, "RESULTS", tmp_path)
    rows = [
        made_up_row("numpy", "conv2d", "forward", 2e-3, 10**8, 0.5),
        made_up_row("numpy", "conv2d_1", "forward", 4e-3, 10**9, 2.5),
        made_up_row("numpy", "dropout", "forward", 1e-3, 0, 0.25),
        made_up_row("cpu", "conv2d", "forward", 1e-4, 10**8, 0.51),
        made_up_row("cpu", "conv2d_1", "forward", 1e-4, 10**9, None),
        made_up_row("cpu", "dropout", "forward", 3e-3, 0, 0.1),
    ]
    result = {
        "batch": 64,
        "nets": {"numpy": 1, "cpu": 1},
        "rounds": 40,
        "limits": {
            "numpy": {"cores": 1, "gemm_flops_per_second": 1e11, "copy_bytes_per_second": 12e9},
            "cpu": {"cores": 2, "gemm_flops_per_second": None, "copy_bytes_per_second": 1e10},
        },
        "operations": rows,
        "machine": {
            "processor": "a processor",
            "cores": 2,
            "system": "Linux",
            "python": "3.11",
            "date": "2026-11-25",
        },
        "versions": {"minicnn": "0.1.0", "numpy": "2.4"},
    }
    timing.write("kernels-cpu", result)
    lines = readme.operations().splitlines()
    assert lines[:5] == [
        "| layer | pass | numpy | cpu |",
        "| --- | --- | --- | --- |",
        "| conv2d | forward | 50 GFLOP/s, 50%, 2 ms | 1000 GFLOP/s, 51%, 0.1 ms |",
        "| conv2d_1 | forward | 250 GFLOP/s, 250%, 4 ms | 10000 GFLOP/s, 0.1 ms |",
        "| dropout | forward | 3 GB/s, 25%, 1 ms | 1 GB/s, 10%, 3 ms |",
    ]
    assert lines[6:11] == [
        "| all of a kind, ms | numpy | cpu |",
        "| --- | --- | --- |",
        "| dropout, forward | 1.00 | 3.00 |",
        "| conv2d, forward | 6.00 | 0.20 |",
        "| all | 7.00 | 3.20 |",
    ]
    assert lines[-1].startswith("Median of 40 training steps, batch 64, the devices in turn.")
    assert "`numpy` (1 core, 1 net): 100 GFLOP/s and 12 GB/s; `cpu` (2 cores, " in lines[-1]
    assert lines[-1].endswith("on a processor, Linux, Python 3.11, minicnn 0.1.0, numpy 2.4.")
