"""benchmarks/gpu_report.py without a GPU: its parts fail alone, and the report is always there."""

import json
import sys
from argparse import Namespace
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import equality, gpu_frameworks, gpu_parts, gpu_report, launches, timing
from benchmarks.contenders import Contender
from benchmarks.gpu_parts import Failed, LeftOut
from benchmarks.gpu_report import Part
from minicnn.backends import cuda, native
from minicnn.emulator import Emulator

NAMES = "machine", "check", "step", "plots"


def options(folder, **given):
    defaults = {"device": "emulated", "parts": list(NAMES), "seconds": 530, "quick": True}
    rest = {"limit": 10, "data": None, "epochs": None}
    return Namespace(out=str(folder), **{**defaults, **rest, **given})


def good(run):
    yield {"headline": "well"}


def broken(run):
    yield {"so far": 3}
    raise ZeroDivisionError("by zero")


def wrong(run):
    yield {"error": 0.5}
    raise Failed("an error of 0.5")


def absent(run):
    yield {}
    raise LeftOut("nothing to read")


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


def run_here(folder, functions, capsys, arguments=()):
    """(exit status, report, what was printed) of the command with other parts."""
    parts = {name: Part(function, 60, 1) for name, function in functions.items()}
    command = ["--out", str(folder), "--device", "emulated", "--parts", ",".join(parts)]
    start = gpu_report.in_this_process
    status = gpu_report.main([*command, *arguments], parts, start)
    return status, report_of(folder), capsys.readouterr()


def test_a_part_that_fails_is_named_and_the_others_go_on(tmp_path, capsys):
    functions = dict(zip(NAMES, (broken, good, wrong, absent), strict=True))
    status, report, shown = run_here(tmp_path, functions, capsys)
    assert status == 1
    assert shown.err.splitlines()[-1] == "benchmarks.gpu_report: failed: machine, step"
    assert report["failed"] == {
        "machine": "ZeroDivisionError: by zero",
        "step": "Failed: an error of 0.5",
    }
    assert report["left_out"] == {"plots": "nothing to read"}
    assert report["parts"]["machine"]["results"] == {"so far": 3}
    assert "in broken" in report["parts"]["machine"]["traceback"]
    assert report["parts"]["check"]["status"] == "done"
    assert report["finished"]
    lines = shown.out.splitlines()
    assert [line.split()[0] for line in lines] == list(NAMES)
    assert lines[1].endswith(" s  well")


def test_nothing_fails(tmp_path, capsys):
    status, report, shown = run_here(tmp_path, dict.fromkeys(NAMES, good), capsys)
    assert (status, report["failed"], report["left_out"], shown.err) == (0, {}, {}, "")


def test_the_report_is_written_after_each_part(tmp_path):
    seen = []

    def start(name, part, given, seconds):
        path = tmp_path / "report.json"
        seen.append(list(report_of(tmp_path)["parts"]) if path.exists() else None)
        return gpu_report.in_this_process(name, part, given, seconds)

    parts = {name: Part(good, 60, 1) for name in NAMES}
    gpu_report.make_report(options(tmp_path), parts, start)
    assert seen == [None, ["machine"], ["machine", "check"], ["machine", "check", "step"]]


def test_what_a_part_yields_is_in_its_file_at_once(tmp_path):
    path = tmp_path / "parts" / "step.json"
    seen = []

    def part(run):
        yield {"first": 1}
        seen.append(json.loads(path.read_text()))
        yield {"second": 2}

    entry = gpu_report.in_this_process("step", Part(part, 60, 1), options(tmp_path), 60)
    assert seen[0]["status"] == "running"
    assert seen[0]["results"] == {"first": 1}
    assert json.loads(path.read_text()) == entry
    assert entry["results"] == {"first": 1, "second": 2}


def test_parts_that_do_not_fit_any_more_are_left_out(tmp_path, capsys):
    times = []

    def start(name, part, given, seconds):
        times.append(seconds)
        return gpu_report.in_this_process(name, part, given, seconds)

    parts = {"machine": Part(good, 60, 1), "check": Part(good, 60, 50), "plots": Part(good, 25, 1)}
    given = options(tmp_path, parts=list(parts), seconds=60)
    report = gpu_report.make_report(given, parts, start)
    assert list(report["left_out"]) == ["check"]  # since the plots are kept their time
    assert report["left_out"]["check"].startswith("no time: 3")
    assert times == [pytest.approx(60 - gpu_report.PLOT_SECONDS, abs=1), 25]
    assert "check         0.0 s  LEFT OUT: no time" in capsys.readouterr().out


def test_without_a_gpu_the_parts_that_need_one_are_left_out(tmp_path):
    parts = {"limits": gpu_report.PARTS["limits"]}
    report = gpu_report.make_report(options(tmp_path, parts=["limits"]), parts, None)
    assert report["left_out"] == {"limits": "needs a GPU"}


@pytest.mark.skipif(not cuda.problem(), reason="there is a GPU")
def test_without_a_gpu_the_command_says_what_is_missing(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        gpu_report.main(["--out", str(tmp_path / "none")])
    assert stopped.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line == f"benchmarks.gpu_report: error: argument --device: {cuda.problem()}"
    assert not (tmp_path / "none").exists()


def test_an_unknown_part_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        gpu_report.main(["--out", str(tmp_path), "--parts", "step,nothing"])
    assert "--parts: got 'nothing', expected some of machine," in capsys.readouterr().err


def test_a_part_runs_in_a_process_of_its_own(tmp_path, capsys):
    command = ["--out", str(tmp_path), "--device", "emulated", "--parts", "machine,plots"]
    assert gpu_report.main(command) == 0
    report = report_of(tmp_path)
    assert report["parts"]["machine"]["results"]["versions"]["numpy"] == np.__version__
    assert report["parts"]["plots"]["results"]["headline"] == "nothing to draw"


@pytest.mark.parametrize(
    ("status", "why"), [(None, "stopped after 7 s"), (-11, "its process ended with status -11")]
)
def test_a_process_that_dies_or_hangs_leaves_what_it_found(tmp_path, monkeypatch, status, why):
    def killed(command, seconds, log, group):
        log.write_text("the last words")
        part = {"status": "running", "why": None, "results": {"so far": 3}}
        (tmp_path / "parts" / "step.json").write_text(json.dumps(part))
        return status

    monkeypatch.setattr(gpu_report, "run_command", killed)
    entry = gpu_report.in_a_process("step", None, options(tmp_path), 7)
    assert (entry["status"], entry["why"]) == ("failed", why)
    assert entry["output"] == "the last words"
    assert entry["results"] == {"so far": 3}


def test_a_command_is_stopped_in_time(tmp_path):
    log = tmp_path / "log"
    code = "import time; print('begun'); time.sleep(60)"
    assert gpu_report.run_command([sys.executable, "-c", code], 1, log, group=True) is None
    assert log.read_text() == "begun\n"
    assert gpu_report.run_command([sys.executable, "-c", "exit(3)"], 60, log) == 3


# ---- what is measured ----------------------------------------------------------------------------


class FakeGpu:
    """CuPy's events on a stream whose work takes as long as `run` says."""

    def __init__(self):
        self.now, self.waited = 0.0, []
        self.cuda = SimpleNamespace(
            Event=lambda: SimpleNamespace(
                record=self.record, synchronize=lambda: self.waited.append(self.now)
            ),
            get_current_stream=lambda: "stream",
            get_elapsed_time=self.elapsed,
        )
        self.recorded = []

    def record(self, stream):
        assert stream == "stream"
        self.recorded.append(self.now)

    def elapsed(self, first, last):
        assert self.waited, "the later event was not waited for"
        return 1e3 * (self.recorded[-1] - self.recorded[-2])  # milliseconds


def test_times_are_those_between_events():
    gpu, calls = FakeGpu(), []
    durations = iter([9, 9, 0.1, *[0.1] * 5, *[0.3] * 5, *[0.2] * 5])

    def function():
        calls.append(1)
        gpu.now += next(durations)

    times = timing.measure(function, 3, 0.5, timing.EventClock(gpu))
    assert times == pytest.approx([0.1, 0.3, 0.2])
    assert len(calls) == 2 + 1 + 3 * 5
    found = timing.spread("seconds", times)
    assert found == pytest.approx({"seconds": 0.2, "lowest": 0.1, "highest": 0.3, "rounds": 3})


def test_outcomes_are_counted_from_what_pytest_wrote():
    output = """\
tests/test_step.py::test_a[cuda] PASSED                  [ 10%]
tests/test_step.py::test_b[cuda-a b] FAILED              [ 20%]
tests/test_step.py::test_c SKIPPED (why)                 [ 30%]
tests/test_step.py::test_d PASSED                        [ 40%]
FAILED tests/test_step.py::test_b[cuda-a b] - assert
"""
    assert gpu_parts.count_outcomes(output) == {"passed": 2, "failed": 1, "skipped": 1}
    assert gpu_parts.count_outcomes("") == {}


def test_a_step_that_differs_from_numpys_fails(tmp_path, monkeypatch):
    same = [np.arange(6.0).reshape(3, 2)]
    monkeypatch.setattr(
        gpu_parts, "errors_against_numpy", lambda *_: {"loss": 1e-9, "gradients": np.nan}
    )
    monkeypatch.setattr(
        gpu_parts,
        "state_after_steps",
        lambda *given, graph=True: [same[0][: given[-1]] + (not graph)],
    )
    monkeypatch.setattr(gpu_parts.Run, "precisions", lambda run: ["float32"])
    part = Part(gpu_parts.check, 60, 1)
    entry = gpu_report.in_this_process("check", part, options(tmp_path), 60)
    assert entry["why"] == (
        "Failed: float32: gradients differs from NumPy's by nan; "
        "float32: not captured as launch by launch"
    )
    assert entry["results"]["float32 to the bit"]["net 1 alone as among 2"]


def test_bits_are_compared_in_the_nets_that_are_there():
    many = [np.arange(6.0).reshape(3, 2), np.array([4])]
    assert gpu_parts.same_bits([many[0][:1], many[1]], many)
    assert not gpu_parts.same_bits([many[0][1:2], many[1]], many)
    assert not gpu_parts.same_bits([many[0][:1], many[1] + 1], many)
    assert not gpu_parts.same_bits([-many[0][:1] + 0.0, many[1]], many)


@pytest.fixture(scope="module")
def recorded():
    """(launches, marks) of a fused step that is not run, with two nets of three images."""
    if native.problem():
        pytest.skip(native.problem())

    class Idle(Emulator):
        def run(self, launch):
            pass

    return launches.record_step(Idle(), 2, 3)


def test_each_launch_has_its_layer_bytes_and_flop(recorded):
    rows = launches.describe(*recorded, nets=2, batch=3)
    assert len(rows) == launches.STEP_LAUNCHES
    found = {(row["kernel"], row["layer"]): row for row in rows}
    second = found["block_forward", "conv2d_1"]
    assert second["flops"] == 2 * 2 * 3 * 24 * 24 * 32 * 3 * 3 * 32
    y = 4 * 2 * 3 * 26 * 26 * 32
    assert y < second["bytes_read"] < 1.2 * y  # with weights and sums
    assert 4 * 2 * 3 * 24 * 24 * 32 < second["bytes_written"] < y
    assert second["peak"] == "tf32"
    assert found["block_first_forward", "conv2d"]["peak"] == "float32"
    batch = found["load_batch", ""]
    assert batch["bytes_written"] == 2 * 3 * (28 * 28 * 4 + 8)
    assert batch["bytes_read"] < 2 * 3 * (28 * 28 + 1 + 4) + 1000
    adam = found["adam", ""]
    assert 3 * adam["bytes_read"] == pytest.approx(4 * adam["bytes_written"], rel=1e-3)
    convolutions = [row for row in rows if row["flops"]]
    assert len(convolutions) == 7 + 7 + 6


def test_use_of_limits():
    row = {"seconds": 2e-6, "bytes_read": 3e6, "bytes_written": 1e6, "flops": 2e8, "peak": "tf32"}
    found = launches.use_of_limits(row, 4e12, {"tf32": 4e14, "float32": 5e13})
    assert found == pytest.approx(
        {
            "memory_seconds": 1e-6,
            "of_bandwidth": 0.5,
            "matrix_seconds": 5e-7,
            "of_matrix_peak": 0.25,
        }
    )
    assert launches.use_of_limits(row, None, {"tf32": None}) == {}


def rates(*refused):
    """What frameworks.measure yields after a first and a second round."""
    row = {"job": "train", "nets": 1, "precision": "tf32", "processes": 1, "threads": 2}
    found = {"rates": [], "refused": {}, "left_out": {"JAX": "not installed: jax"}}
    for number, (name, rate) in enumerate((("minicnn tf32", 3000.0), ("PyTorch TF32", 2000.0))):
        spread = {"images_per_second": rate, "lowest": rate - 1, "highest": rate + 1}
        found["rates"].append({**row, "contender": name, **spread})
        found["refused"] = dict.fromkeys(refused, "losses differ by 9.0e-01") if number else {}
        yield json.loads(json.dumps(found))


@pytest.mark.parametrize("refused", [(), ("Keras",)])
def test_the_comparison_is_in_the_report(refused, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(
        gpu_frameworks.comparison, "measure", lambda *a: given.append(a) or rates(*refused)
    )
    part = Part(gpu_report.frameworks, 150, 45)
    entry = gpu_report.in_this_process("frameworks", part, options(tmp_path), 150)
    results = entry["results"]
    assert results["headline"] == (
        "images a second: minicnn tf32 3,000, PyTorch TF32 2,000: 1.50 times"
    )
    assert results["left_out"] == {"JAX": "not installed: jax"}
    assert entry["status"] == ("failed" if refused else "done")
    assert entry["why"] == ("Failed: Keras: losses differ by 9.0e-01" if refused else None)
    [(plan, device, rounds, seconds, to_start)] = given
    contenders = plan[0][0]
    assert device == "cuda"
    assert {c.device for c in contenders} == {"cuda"}
    assert 0 < to_start < 150 - len(contenders) * 2 * rounds * seconds


def test_a_comparison_without_minicnn_fails(tmp_path, monkeypatch):
    left_out = {"minicnn tf32": "not ready after 9 s"}
    nothing = {"rates": [], "refused": {}, "left_out": left_out}
    monkeypatch.setattr(gpu_frameworks.comparison, "measure", lambda *_: iter([nothing]))
    part = Part(gpu_report.frameworks, 150, 45)
    entry = gpu_report.in_this_process("frameworks", part, options(tmp_path), 150)
    assert entry["why"] == "Failed: no contender of minicnn's was measured"
    assert entry["results"]["left_out"] == left_out


@pytest.mark.parametrize("seconds", [45, 150, 500])
def test_the_comparison_has_time_to_start_and_to_measure(seconds, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(gpu_frameworks.comparison, "measure", lambda *a: given.append(a) or rates())
    list(gpu_report.frameworks(gpu_parts.Run(options(tmp_path, device="cuda"), seconds)))
    [([(contenders, _, _, jobs)], _, rounds, of_a_round, to_start)] = given
    assert 0 < of_a_round <= gpu_parts.QUICK.seconds
    assert seconds / 3 < to_start < seconds - len(contenders) * len(jobs) * rounds * of_a_round


def test_the_comparison_in_words_without_a_framework():
    [first, _] = rates()
    assert gpu_frameworks.in_words(first["rates"]) == "images a second: minicnn tf32 3,000"


def test_plots_are_drawn_of_what_was_found(tmp_path):
    pytest.importorskip("matplotlib")
    spread = {"lowest": 1.0, "highest": 3.0}
    measured = list(rates())[-1]["rates"]
    rows = {
        "kernels": ("launches", [{"kernel": "adam", "layer": "", "seconds": 1e-5}]),
        "step": ("steps", [{"precision": "tf32", "nets": 1, "captured": True, "seconds": 2.0}]),
        "frameworks": ("rates", measured + [{**row, "job": "infer"} for row in measured]),
    }
    (tmp_path / "parts").mkdir()
    for part, (key, found) in rows.items():
        entry = {"results": {key: [{**spread, "memory_seconds": 5e-6, **row} for row in found]}}
        (tmp_path / "parts" / f"{part}.json").write_text(json.dumps(entry))
    part = Part(gpu_report.plots, 60, 1)
    entry = gpu_report.in_this_process("plots", part, options(tmp_path), 60)
    assert entry["results"]["files"] == ["kernels.png", "step.png", "frameworks.png"]
    assert all(
        (tmp_path / name).read_bytes()[:4] == b"\x89PNG" for name in entry["results"]["files"]
    )


def test_a_missing_mnist_leaves_training_out(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_parts, "ROOT", tmp_path)
    monkeypatch.delenv("MINICNN_TEST_MNIST", raising=False)
    with pytest.raises(LeftOut, match="--data says where"):
        gpu_parts.mnist_folder(None)
    (tmp_path / ".mnist").mkdir()
    assert gpu_parts.mnist_folder(None) == tmp_path / ".mnist"
    monkeypatch.setenv("MINICNN_TEST_MNIST", str(tmp_path))
    assert gpu_parts.mnist_folder(None) == tmp_path


def test_the_step_is_timed_and_trained_on_the_emulator(tmp_path):
    if native.problem():
        pytest.skip(native.problem())
    command = ["--out", str(tmp_path), "--device", "emulated", "--parts", "check,step,train"]
    assert gpu_report.main(command, start=gpu_report.in_this_process) == 0
    report = report_of(tmp_path)
    check, step, train = (report["parts"][name]["results"] for name in ("check", "step", "train"))
    assert all(check["float32 to the bit"].values())
    assert {(row["nets"], row["captured"]) for row in step["steps"]} == {
        (1, True),
        (1, False),
        (2, True),
    }
    assert all(row["lowest"] <= row["seconds"] <= row["highest"] for row in step["steps"])
    assert (tmp_path / "run" / "summary.json").exists()
    assert 0 <= train["ensemble_test_accuracy"] <= 1


# ---- PyTorch -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("nets", "precision"), [(2, "float32"), (1, "bfloat16"), (2, "bfloat16")])
def test_pytorchs_contenders_of_a_gpu_compute_the_same_function(nets, precision):
    pytest.importorskip("torch")
    contender = Contender("PyTorch", "torch_net", nets=nets, precision=precision)
    images, labels = gpu_parts.some_digits(64)
    found = equality.check(contender, images, labels, equality.reference(batch=16))
    assert found["losses"] < equality.TOLERANCE["float32"]
    assert ("losses, bfloat16" in found) == (precision == "bfloat16")
    training = contender.training(images, labels, replace(equality.RECIPE, batch_size=8))
    training.train(2)
    training.infer(2)
    assert np.isfinite(training.predict(images[:4, ..., None].astype(np.float32) / 255)).all()
