"""benchmarks/gpu_report.py without a GPU: a failing part stops no other, and is reported."""

import json
import os
import re
import sys
import tarfile
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import equality, frameworks, gpu_report, operations, timing
from benchmarks.contenders import Contender
from benchmarks.gpu_report import Part
from minicnn import devices
from minicnn.backends import cuda, native
from minicnn.data.digits import draw_digits
from minicnn.emulator import Emulator
from minicnn.recipe import RECIPES

# Stand-ins for commands: what they print, and how they end.
MACHINE = "print('Product Name     : A GPU'); print('Driver Version   : 1.2')"
TESTS = "print('tests/test_a.py::test_b PASSED [ 50%]'); print('== 1 passed in 0.1s ==')"
PLOTS = "print('a.png'); print('b.png')"
FAILING = "print('the last words'); raise SystemExit(3)"
HANGING = "print('begun'); import time; time.sleep(60)"


def part(code, seconds=60, **about):
    return Part([sys.executable, "-c", code], seconds, **about)


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


def run_with(folder, parts, capsys):
    """(exit status, report, what was printed) of the command with other parts."""
    status = gpu_report.main(["--out", str(folder), "--device", "emulated"], parts)
    return status, report_of(folder), capsys.readouterr()


# ---- parts ---------------------------------------------------------------------------------------


def test_a_part_that_fails_is_named_and_the_others_go_on(tmp_path, capsys):
    no_matplotlib = part(PLOTS, left_out="matplotlib is not installed")
    parts = {"machine": part(MACHINE), "kernels": part(FAILING, result="kernels.json")}
    parts |= {"tests": part(TESTS, shows=gpu_report._OUTCOMES)}
    parts |= {"train": part(HANGING, 1), "plots": no_matplotlib}
    status, report, shown = run_with(tmp_path, parts, capsys)
    assert status == 1
    assert shown.err.splitlines()[-1] == "benchmarks.gpu_report: failed: kernels, train"
    assert report["failed"]["kernels"].startswith("ended with status 3; no results: ")
    assert report["failed"]["train"] == "stopped after 1 s"
    assert report["left_out"] == {"plots": "matplotlib is not installed"}
    assert report["parts"]["kernels"]["output"] == "the last words\n"
    assert (tmp_path / "train.txt").read_text() == "begun\n"
    assert report["parts"]["tests"]["status"] == "done"
    assert report["finished"]
    lines = shown.out.splitlines()
    assert [line.split()[0] for line in lines] == list(parts)
    assert lines[0].endswith(" s  Product Name     : A GPU, Driver Version   : 1.2")
    assert "FAILED: ended with status 3" in lines[1]
    assert lines[2].endswith(" s  1 passed in 0.1s")


def test_nothing_fails(tmp_path, capsys):
    parts = {"machine": part(MACHINE), "tests": part(TESTS), "plots": part(PLOTS)}
    status, report, shown = run_with(tmp_path, parts, capsys)
    assert (status, report["failed"], report["left_out"], shown.err) == (0, {}, {}, "")
    assert report["versions"]["numpy"] == np.__version__
    assert report["machine"]["cores"] >= 1
    assert shown.out.endswith(" s  a.png, b.png\n")


def test_the_report_is_written_after_each_part(tmp_path, capsys):
    """Each part prints the parts that are in the report while it runs."""
    code = (
        "import json, pathlib; report = pathlib.Path({!r}); "
        "print(*(json.loads(report.read_text())['parts'] if report.exists() else ['none']))"
    ).format(str(tmp_path / "report.json"))
    parts = {"machine": part(code), "tests": part(code), "plots": part(code)}
    assert run_with(tmp_path, parts, capsys)[0] == 0
    seen = [(tmp_path / f"{name}.txt").read_text().split() for name in parts]
    assert seen == [["none"], ["machine"], ["machine", "tests"]]


def test_what_was_found_before_a_part_was_stopped_is_kept(tmp_path):
    result = {"summary": 3}
    code = f"open('run.json', 'w').write({json.dumps(result)!r}); {HANGING}"
    stopped = part(f"import os; os.chdir({str(tmp_path)!r}); {code}", 2, result="run.json")
    entry = gpu_report.run_part("train", stopped, tmp_path, 60)
    assert (entry["status"], entry["why"]) == ("failed", "stopped after 2 s")
    assert entry["results"] == result


def test_results_of_an_earlier_report_do_not_count(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    entry = gpu_report.run_part("train", part("pass", result="run.json"), tmp_path, 60)
    assert entry["status"] == "failed"
    assert entry["why"].startswith("no results: ")
    assert entry["why"].endswith("run.json: No such file or directory")


def test_parts_without_enough_time_are_left_out(tmp_path, monkeypatch, capsys):
    times = []

    def run_command(command, seconds, log):
        times.append(seconds)
        log.write_text("")
        return 0

    monkeypatch.setattr(gpu_report, "run_command", run_command)
    parts = {"machine": Part([], 60), "kernels": Part([], 60), "plots": Part([], 25)}
    took = iter([0, 0, 30, 30, 30, 30, 30, 30, 30, 30])
    monkeypatch.setattr(gpu_report.time, "monotonic", lambda: next(took))
    report = gpu_report.make_report(tmp_path, "emulated", parts, 60)
    assert report["left_out"] == {"kernels": "no time: 5 s left"}  # the rest is for the plots
    assert times == [60 - gpu_report.PLOT_SECONDS, 25]
    assert re.search(r"^kernels +0\.0 s  LEFT OUT: no time", capsys.readouterr().out, re.M)


def test_the_time_that_is_left_is_in_the_command(tmp_path):
    compare = Part([sys.executable, "-c", "import sys; print(sys.argv[1])", "SECONDS"], 150)
    entry = gpu_report.run_part("plots", compare, tmp_path, 40)
    assert entry["shown"] == ["40"]
    found = gpu_report.parts_of(tmp_path, "cuda")["frameworks"].command
    assert found[found.index("--within") + 1] == "SECONDS"


def test_the_first_hour_is_in_this_order(tmp_path):
    names = list(gpu_report.parts_of(tmp_path, "cuda", precisions=("float32", "tf32")))
    files = [path.stem for path in gpu_report.test_files()]
    before = ["machine", "memcheck_float32", "memcheck_tf32", "check", "kernels", "step"]
    assert names == [*before, *files, "train", "frameworks", "plots"]


def test_all_parts_fit_into_nine_minutes(tmp_path):
    parts = gpu_report.parts_of(tmp_path, "cuda")
    assert gpu_report.LEAST_SECONDS * len(parts) < gpu_report.SECONDS < 9 * 60
    assert parts["plots"].seconds == gpu_report.PLOT_SECONDS
    assert all(part.seconds > gpu_report.LEAST_SECONDS for part in parts.values())


def test_without_a_gpu_the_parts_that_need_one_are_left_out(tmp_path):
    parts = gpu_report.parts_of(tmp_path, "emulated")
    left_out = {name: part.left_out for name, part in parts.items() if part.left_out}
    left_out.pop("plots", None)  # without matplotlib
    files = [path.stem for path in gpu_report.test_files()]
    memcheck = [f"memcheck_{precision}" for precision in devices.PRECISIONS]
    need_one = "machine", *memcheck, *files, "frameworks"
    assert left_out == dict.fromkeys(need_one, "needs a GPU")
    entry = gpu_report.run_part("test_step", parts["test_step"], tmp_path, 530)
    assert entry == {"status": "left out", "why": "needs a GPU"}


def test_each_file_of_tests_has_a_process_and_a_second_one_to_name_the_kernel(tmp_path, capsys):
    """In the second, launches are synchronous; its first error is in the report."""
    parts = gpu_report.parts_of(tmp_path, "cuda")
    for path in gpu_report.test_files():
        tests = parts[path.stem]
        assert tests.command[-1] == str(path)
        assert tests.again.command[:2] == ["env", "CUDA_LAUNCH_BLOCKING=1"]
        assert tests.again.command[2:] == [*tests.command[:-1], "-x", str(path)]
    code = "import os; print('E  kernel', os.environ.get('CUDA_LAUNCH_BLOCKING')); exit(1)"
    run = [sys.executable, "-c", code]
    again = Part(["env", "CUDA_LAUNCH_BLOCKING=1", *run], 60, "E  .*")
    failing, passing = Part(run, 60, "E  .*", again=again), part(TESTS, again=again)
    status, report, shown = run_with(tmp_path, {"a": failing, "b": passing}, capsys)
    assert (status, list(report["failed"])) == (1, ["a"])
    assert report["parts"]["a"]["shown"] == ["E  kernel None", "E  kernel 1"]
    assert report["parts"]["a"]["again"]["output"] == "E  kernel 1\n"
    assert "FAILED: ended with status 1 (E  kernel None, E  kernel 1)" in shown.out
    assert (tmp_path / "a-again.txt").read_text() == "E  kernel 1\n"
    assert "again" not in report["parts"]["b"]


def test_a_report_travels_as_one_file(tmp_path, capsys):
    out = tmp_path / "report"
    (out / "run").mkdir(parents=True)
    for name in ("run/summary.json", "run/checkpoint.npz", "a.png"):
        (out / name).write_text(name)
    for _ in range(2):  # a second one does not hold the first
        run_with(out, {"machine": part(MACHINE)}, capsys)
    with tarfile.open(out / "report.tgz") as tar:
        tar.extractall(tmp_path / "there", filter="data")
    found = {str(path.relative_to(tmp_path / "there")) for path in tmp_path.glob("there/**/*.*")}
    names = "a.png", "machine.txt", "report.json", "run/summary.json"
    assert found == {f"report/{name}" for name in names}
    assert report_of(tmp_path / "there" / "report")["finished"]


@pytest.mark.skipif(not cuda.problem(), reason="there is a GPU")
def test_without_a_gpu_the_command_says_what_is_missing(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        gpu_report.main(["--out", str(tmp_path / "none")])
    assert stopped.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line == f"benchmarks.gpu_report: error: argument --device: {cuda.problem()}"
    assert not (tmp_path / "none").exists()


def test_a_program_that_is_missing_fails_its_part_alone(tmp_path):
    entry = gpu_report.run_part("machine", Part(["no-such-program"], 60), tmp_path, 60)
    assert entry["why"].startswith("ended with status 127")
    assert "no-such-program" in entry["output"]


def test_a_command_is_stopped_in_time_with_what_it_started(tmp_path):
    log, child = tmp_path / "log", tmp_path / "child"
    code = (
        "import subprocess, sys, time, pathlib\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"pathlib.Path({str(child)!r}).write_text(str(child.pid))\n"
        "print('begun'); time.sleep(60)"
    )
    assert gpu_report.run_command([sys.executable, "-c", code], 2, log) is None
    assert log.read_text() == "begun\n"
    for _ in range(100):  # a killed process is not gone at once
        if not is_running(int(child.read_text())):
            break
        time.sleep(0.1)
    assert not is_running(int(child.read_text()))
    assert gpu_report.run_command([sys.executable, "-c", "exit(3)"], 60, log) == 3


def is_running(process):
    """Whether a process still works; a zombie does not."""
    try:
        os.kill(process, 0)
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


# ---- what is measured ----------------------------------------------------------------------------


class FakeGpu:
    """CuPy's events, on a stream whose time is `now`."""

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


def test_the_outcomes_of_pytest_are_shown(tmp_path):
    """Those of failed tests also where pytest is stopped before its last line."""
    output = """\
tests/test_step.py::test_a[cuda] PASSED                  [ 10%]
tests/backends/test_step.py::test_b[cuda-a b] FAILED              [ 20%]
tests/test_step.py::test_c SKIPPED (why)                 [ 30%]
========= 1 failed, 1 passed, 1 skipped in 4.01s =========
"""
    shown = gpu_report.run_part(
        "tests", part(f"print({output!r})", shows=gpu_report._OUTCOMES), tmp_path, 60
    )["shown"]
    assert shown == [
        "tests/backends/test_step.py::test_b[cuda-a b] FAILED",
        "1 failed, 1 passed, 1 skipped in 4.01s",
    ]


def test_the_tests_of_kernels_are_found():
    names = {path.stem for path in gpu_report.test_files()}
    assert names >= {f"test_{name}" for name in gpu_report._TESTS}


@pytest.fixture(scope="module")
def recorded():
    """(launches, marks) of a fused step, recorded but not run: two nets, three images each."""
    if native.problem():
        pytest.skip(native.problem())

    class Idle(Emulator):
        def run(self, launch):
            pass

    return operations.record_step(Idle(), 2, 3)


def test_each_launch_has_its_layer_bytes_and_flop(recorded):
    rows = operations.describe(*recorded, nets=2, batch=3)
    assert len(rows) == 26
    found = {(row["kernel"], row["layer"]): row for row in rows}
    second = found["block_forward", "conv2d_1"]
    assert second["flops"] == 2 * 2 * 3 * 24 * 24 * 32 * 3 * 3 * 32
    of_first, y = 4 * 2 * 3 * 26 * 26 * 32, 4 * 2 * 3 * 24 * 24 * 32
    assert second["bytes_read"] < of_first / 4  # what is below is rebuilt from the image
    assert y < second["bytes_written"] < of_first
    weights = 4 * 2 * 5 * 5 * 32 * 32
    assert y + weights < found["block_forward", "conv2d_2"]["bytes_read"] < 1.1 * (y + weights)
    assert second["peak"] == found["rebuilt_moments", "conv2d"]["peak"] == "tf32"
    assert not found["rebuilt_weight_gradient", "conv2d"]["flops"]
    batch = found["load_batch", ""]
    assert batch["bytes_written"] == 2 * 3 * (28 * 28 * 4 + 8)
    assert batch["bytes_read"] < 2 * 3 * (28 * 28 + 1 + 4) + 1000
    adam = found["adam_from_parts", ""]
    model = RECIPES["seed"].model(range(1, 3), "numpy")
    state = 3 * model.params.nbytes + model.moving.nbytes
    assert adam["bytes_written"] == state
    [arrays] = [launch.arrays for launch in recorded[0] if launch.name == "adam_from_parts"]
    parts = {parameter.name: array for parameter, array in arrays}["parts"].nbytes
    others = model.gradients.nbytes + model.moving.nbytes + parts  # and a table
    assert state + others < adam["bytes_read"] < state + others + 10_000
    convolutions = [row for row in rows if row["flops"]]
    assert len(convolutions) == 7 + 6 + 6


def test_use_of_limits():
    row = {"seconds": 2e-6, "bytes_read": 3e6, "bytes_written": 1e6, "flops": 2e8, "peak": "tf32"}
    found = operations.use_of_limits(row, 4e12, {"tf32": 4e14, "float32": 5e13})
    assert found == pytest.approx(
        {
            "memory_seconds": 1e-6,
            "of_bandwidth": 0.5,
            "matrix_seconds": 5e-7,
            "of_matrix_peak": 0.25,
        }
    )
    assert operations.use_of_limits(row, None, {"tf32": None}) == {}


ROW = {"job": "train", "nets": 1, "precision": "tf32", "processes": 1, "threads": 2}


def rates(*named):
    """Rows of frameworks.py."""
    rows = []
    for name, rate in named:
        spread = {"images_per_second": rate, "lowest": rate - 1, "highest": rate + 1}
        rows.append({**ROW, "contender": name, **spread})
    return rows


BOTH = rates(("minicnn tf32", 3000.0), ("PyTorch TF32", 2000.0))


def test_the_comparison_is_in_the_report(tmp_path, capsys):
    result = {"rates": BOTH, "refused": {"Keras": "losses differ by 9.0e-01"}, "left_out": {}}
    frameworks.show(result)
    comparison = part(f"print({capsys.readouterr().out!r})")
    comparison = comparison._replace(
        shows=gpu_report.parts_of(tmp_path, "cuda")["frameworks"].shows
    )
    assert gpu_report.run_part("frameworks", comparison, tmp_path, 60)["shown"] == [
        "refused: Keras: losses differ by 9.0e-01",
        "The fastest minicnn's rate divided by that of the fastest framework in any precision: "
        "1.50 in training one net, 1.50 in training an ensemble.",
    ]


@pytest.mark.parametrize("limit", [45, 150, 500])
def test_the_comparison_has_time_to_start_and_to_measure(limit):
    plan = frameworks.plan_of("cuda", 15, 16)
    [(given, _, _, jobs)] = plan
    seconds, to_start = frameworks.fitted(plan, 9, 0.1, limit)
    assert 0 < seconds <= 0.1
    assert limit / 3 < to_start < limit - len(given) * len(jobs) * 9 * seconds


def test_plots_are_drawn_of_what_was_found(tmp_path, capsys):
    plots = pytest.importorskip("benchmarks.plots", exc_type=ImportError)
    row = {"lowest": 1.0, "highest": 3.0, "seconds": 2.0}
    launch = {**row, "kernel": "adam", "layer": "", "precision": "tf32", "memory_seconds": 5e-6}
    launches = {"cuda": [{**launch, "flushed": row}]}
    (tmp_path / "kernels.json").write_text(json.dumps({"launches": launches, "steps": []}))
    step = {**row, "precision": "tf32", "nets": 1, "captured": True}
    (tmp_path / "step.json").write_text(json.dumps({"launches": {}, "steps": [step]}))
    compared = {"rates": BOTH + [{**row, "job": "infer"} for row in BOTH]}
    (tmp_path / "frameworks.json").write_text(json.dumps(compared))
    plots.main([str(tmp_path)])
    assert capsys.readouterr().out.split() == ["launches.png", "steps.png", "rates.png"]
    drawn = sorted(tmp_path.glob("*.png"))
    assert len(drawn) == 3
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in drawn)


def test_a_missing_mnist_leaves_training_out(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_report, "ROOT", tmp_path)
    monkeypatch.delenv("MINICNN_TEST_MNIST", raising=False)

    def train(**given):
        return gpu_report.parts_of(tmp_path, "cuda", **given)["train"]

    assert "--data says where" in train().left_out
    (tmp_path / ".mnist").mkdir()
    assert train().left_out is None
    assert str(tmp_path / ".mnist") in train().command
    monkeypatch.setenv("MINICNN_TEST_MNIST", str(tmp_path))
    assert train().command[train().command.index("--data") + 1] == str(tmp_path)
    assert "elsewhere is not a folder" in train(data=str(tmp_path / "elsewhere")).left_out


@pytest.mark.full(beside="test_what_runs_on_a_gpu_runs_on_the_emulator")
def test_kernels_and_training_run_on_the_emulator(tmp_path):
    if native.problem():
        pytest.skip(native.problem())
    assert gpu_report.main(["--out", str(tmp_path), "--device", "emulated"]) == 0
    report = report_of(tmp_path)
    kernels, step, train = (
        report["parts"][name]["results"] for name in ("kernels", "step", "train")
    )
    assert kernels["operations"] and kernels["launches"]["emulated"] and not kernels["steps"]
    assert {(row["nets"], row["captured"]) for row in step["steps"]} == {
        (1, True),
        (1, False),
        (2, True),
    }
    assert all(row["lowest"] <= row["seconds"] <= row["highest"] for row in step["steps"])
    assert (tmp_path / "run" / "summary.json").exists()
    assert 0 <= train["ensemble_test_accuracy"] <= 1
    shown = {name: part.get("shown") for name, part in report["parts"].items()}
    assert [line.split(":")[0] for line in shown["check"]] == [
        f"emulated in {precision}" for precision in devices.PRECISIONS
    ]
    assert shown["kernels"][0].startswith("Limits: `emulated` (")
    assert shown["step"][0].startswith("Whole steps of 1 nets, float32, one")
    assert shown["train"][0].startswith("Ensemble of 1: Test accuracy=")
    assert " images a second" in shown["train"][1]
    if "plots" not in report["left_out"]:
        assert report["parts"]["plots"]["shown"] == ["launches.png", "steps.png"]


# ---- PyTorch -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("nets", "precision"), [(2, "float32"), (1, "bfloat16"), (2, "bfloat16")])
def test_pytorchs_contenders_of_a_gpu_compute_the_same_function(nets, precision):
    pytest.importorskip("torch")
    contender = Contender("PyTorch", "torch_net", nets=nets, precision=precision)
    images, labels = draw_digits(64)
    found = equality.check(contender, images, labels, equality.reference(batch=16))
    assert found["losses"] < equality.TOLERANCE["float32"]
    assert ("losses, bfloat16" in found) == (precision == "bfloat16")
    training = contender.training(images, labels, replace(equality.RECIPE, batch_size=8))
    training.train(2)
    training.infer(2)
    assert np.isfinite(training.predict(images[:4, ..., None].astype(np.float32) / 255)).all()
