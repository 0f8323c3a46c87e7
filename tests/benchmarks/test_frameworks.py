"""benchmarks/frameworks.py and scaling.py: contenders, their processes, and the rates."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import contenders, crew, equality, frameworks, scaling, timing
from benchmarks.contenders import Contender
from benchmarks.crew import Crew, NotRunningError
from minicnn import load_data
from minicnn.data.digits import draw_digits
from minicnn.network import geometry
from minicnn.recipe import Recipe
from minicnn.training import ensemble
from minicnn.training.dataset import Data

NUMPY = Contender("minicnn numpy", "minicnn_net", "numpy")
INSTALLED = [c for c in contenders.on_cpu(2) if not c.missing and not c.compiled]


@pytest.fixture(scope="module")
def reference():
    return equality.reference(batch=16)


@pytest.fixture(scope="module")
def digits():
    (images, labels), _ = load_data("digits")
    return images[:200], labels[:200]


class Altered:
    """minicnn's Training with another recipe, or with a method replaced."""

    def __init__(self, digits, **wrong):
        recipe = replace(equality.RECIPE, batch_size=16)
        self._training = NUMPY.training(*digits, replace(recipe, **wrong))

    def __getattr__(self, name):
        return getattr(self._training, name)


# ---- the same function? --------------------------------------------------------------------------


def test_minicnn_is_the_same_function(digits, reference):
    found = equality.check(NUMPY, *digits, reference)
    assert set(found) == {"predictions", "losses", "predictions after training"}
    assert max(found.values()) < 1e-4


def test_the_reference_depends_on_images_and_weights(reference):
    predictions = reference.expected["predictions"]
    assert predictions.std(axis=0).min() > 0.01
    biases = [w for w in reference.weights if w.ndim == 1]
    assert all(w.std() > 0.01 for w in biases)
    losses = reference.expected["losses"]
    assert np.all(np.diff(losses) < -10 * equality.TOLERANCE["float32"])


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"momentum": 0.99}, "predictions after training"),
        ({"learning_rate": 1e-4}, "losses"),
        ({"dropout": 0.1}, "losses"),
    ],
)
def test_another_recipe_is_found(wrong, what, digits, reference):
    found = equality.differences(Altered(digits, **wrong), reference)
    assert found[what] > equality.TOLERANCE["float32"]
    assert found["predictions"] < 1e-4


def test_another_augmentation_is_found(digits, reference):
    altered = Altered(digits)
    altered.warp = lambda x, theta, tx, ty, zx, zy: reference.expected["augmentation"] + 0.01
    assert equality.differences(altered, reference)["augmentation"] == pytest.approx(0.01, rel=1e-3)


def test_nan_is_not_a_small_difference(digits, reference, monkeypatch):
    altered = Altered(digits)
    altered.predict = lambda x: np.full((1, len(x), 10), np.nan)
    monkeypatch.setattr(Contender, "training", lambda *_: altered)
    with pytest.raises(equality.DifferentError, match="predictions differ by nan, expected"):
        equality.check(NUMPY, *digits, reference)


@pytest.mark.parametrize("contender", INSTALLED, ids=lambda contender: contender.name)
def test_contenders_that_are_installed_pass(contender, monkeypatch):
    for name, value in contender.environment(2).items():
        monkeypatch.setenv(name, value)
    member = Crew(contender, 1, 1, jobs=(), reference=equality.reference())
    member.begin()
    try:
        differences = member.differences()
    finally:
        member.close()
    assert {"predictions", "losses", "predictions after training"} <= set(differences)


def test_wrong_padding_is_refused(digits, reference, monkeypatch):
    """2 before and 2 after, as in frameworks with one number for both, instead of 1 and 2."""

    def symmetric(size, stride, length, padding):
        both = size // 2 if padding == "same" else 0
        return both, both, (length + 2 * both - size) // stride + 1

    equality.check(NUMPY, *digits, reference)
    monkeypatch.setattr(geometry, "_fit_axis", symmetric)
    with pytest.raises(equality.DifferentError, match="predictions differ by "):
        equality.check(NUMPY, *digits, reference)


def test_wrong_padding_is_refused_in_pytorch(digits, reference, monkeypatch):
    torch_net = pytest.importorskip("benchmarks.contenders.torch_net", exc_type=ImportError)
    contender = Contender("PyTorch", "torch_net")
    equality.check(contender, *digits, reference)
    monkeypatch.setattr(torch_net.Net, "padding", (2, 2))
    with pytest.raises(equality.DifferentError, match="predictions differ by "):
        equality.check(contender, *digits, reference)


# ---- crews ---------------------------------------------------------------------------------------


def test_a_crew_trains_and_predicts(reference):
    member = Crew(NUMPY, 1, 1, reference=reference)
    member.begin()
    try:
        assert member.differences(120)["predictions"] < 1e-4
        for job in crew.JOBS:
            member.warm_up(job, 0.05)
            assert 1 < member.images_per_second(job, 0.05) < 1e6
        [memory] = member.peak_memory()
        assert memory is None or 2**24 < memory < 2**33
    finally:
        member.close()


def test_processes_have_cores_and_variables_of_their_own():
    before = dict(os.environ)
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    with crew._started_with({"MINICNN_SOMETHING": "1"}, number=0, threads=1):
        assert os.environ["MINICNN_SOMETHING"] == "1"
        if usable:
            assert os.sched_getaffinity(0) == {min(usable)}
    assert dict(os.environ) == before
    if usable:
        assert os.sched_getaffinity(0) == usable


def test_a_contender_that_fails_says_why():
    broken = Contender("broken", "torch_net", device="nowhere")
    member = Crew(broken, 1, 1)
    member.begin()
    with pytest.raises(NotRunningError, match="Error: "):
        member.differences(120)
    member.close()
    with pytest.raises(NotRunningError, match="its process ended"):
        member.images_per_second("train", 0.1)


def test_a_contender_that_is_not_ready_in_time_is_left_out():
    member = Crew(NUMPY, 1, 1)
    with pytest.raises(NotRunningError, match="not ready after 0 s"):
        member.differences(0)
    member.close()


# ---- the comparison ------------------------------------------------------------------------------


class FakeCrew:
    """A crew with made-up rates; one named "wrong" computes another function."""

    calls = []  # noqa: RUF012  of all of them, in order

    def __init__(self, contender, processes, threads, jobs, reference):
        self.contender, self.rate = contender, 100 * processes * contender.nets

    def begin(self):
        FakeCrew.calls.append((self.contender.name, "begin"))

    def differences(self, seconds):
        if "wrong" in self.contender.name:
            raise equality.DifferentError("losses differ by 9.0e-01, expected 0.001")
        return {"losses": 0.0}

    def warm_up(self, job, seconds):
        if "weak" in self.contender.name:
            raise NotRunningError("its process ended")

    def images_per_second(self, job, seconds):
        FakeCrew.calls.append((self.contender.name, job))
        self.rate += 1
        return self.rate

    def close(self):
        FakeCrew.calls.append((self.contender.name, "close"))


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(frameworks, "Crew", FakeCrew)
    monkeypatch.setattr(equality, "reference", lambda: None)
    monkeypatch.setattr(FakeCrew, "calls", [])


def named(*names):
    return [replace(NUMPY, name=name) for name in names]


def test_contenders_take_turns_and_each_round_is_reported(fake):
    plan = [(named("minicnn cpu", "PyTorch"), 1, 2, ("train", "infer"))]
    rounds = [result["rates"][0]["rounds"] for result in frameworks.measure(plan, "cpu", 3, 0)]
    assert rounds == [1, 2, 3]
    turn = [(name, job) for job in ("train", "infer") for name in ("minicnn cpu", "PyTorch")]
    both = "minicnn cpu", "PyTorch"
    begun, closed = ([(name, what) for name in both] for what in ("begin", "close"))
    assert FakeCrew.calls == begun + 3 * turn + closed


def test_refused_and_failed_contenders_are_named_and_not_measured(fake, capsys):
    missing = Contender("elsewhere", "keras_net", backend="no_such_backend")
    given = [*named("minicnn cpu", "wrong", "weak"), missing]
    plan = [(given, 1, 2, ("train",)), (given, 2, 1, ("train",))]
    *_, result = frameworks.measure(plan, "cpu", 2, 0)
    assert {row["contender"] for row in result["rates"]} == {"minicnn cpu"}
    assert [row["processes"] for row in result["rates"]] == [1, 2]
    assert result["rates"][1]["images_per_second"] == 201.5
    assert result["refused"] == {"wrong": "losses differ by 9.0e-01, expected 0.001"}
    assert result["left_out"]["weak"] == "its process ended (2 x 1)"
    assert "no_such_backend" in result["left_out"]["elsewhere"]
    assert FakeCrew.calls.count(("wrong", "close")) == 1  # and it is not started again
    assert "wrong: refused: losses differ" in capsys.readouterr().err


def test_on_a_gpu_contenders_start_one_by_one_the_slow_ones_last(fake, monkeypatch):
    monkeypatch.setattr(
        FakeCrew, "differences", lambda self, _: FakeCrew.calls.append((self.contender.name, "ok"))
    )
    slow, fast, soon = named("slow", "fast", "soon")
    given = [replace(slow, compiled=True, device="cuda"), replace(fast, device="cuda")]
    frameworks.Comparison([*given, soon], 1, 2, (), None, {"refused": {}, "differences": {}})
    assert FakeCrew.calls == [
        ("soon", "begin"),
        ("fast", "begin"),
        ("fast", "ok"),
        ("soon", "ok"),
        ("slow", "begin"),
        ("slow", "ok"),
    ]


def test_training_that_changes_no_weight_is_left_out(monkeypatch, digits):
    frozen = Altered(digits)
    frozen.stride, frozen.train = 1, lambda steps: None
    monkeypatch.setattr(Contender, "training", lambda *_: frozen)
    with pytest.raises(FloatingPointError, match="did not move"):
        crew._Member(NUMPY, *digits, ("train",), crew.RECIPE)


def test_splits_of_the_cores():
    plan = frameworks.plan_of("cpu", 15, 4)
    assert [(p, t, jobs) for _, p, t, jobs in plan] == [
        (1, 4, crew.JOBS),
        (2, 2, ("train",)),
        (4, 1, ("train",)),
    ]
    together = [{c.nets for c in given} for given, *_ in plan]
    assert together == [{1, 15}, {1}, {1}]
    [(given, processes, threads, jobs)] = frameworks.plan_of("cuda", 15, 16)
    assert (processes, threads, jobs) == (1, 16, crew.JOBS)
    assert {c.nets for c in given} == {1, 15}


@pytest.mark.parametrize("given", [contenders.on_cpu(15), contenders.on_cuda(15)])
def test_contenders_have_different_names(given):
    assert len({contender.name for contender in given}) == len(given)
    assert {c.framework for c in given} == {"minicnn_net", "torch_net", "keras_net", "jax_net"}


def row(contender, rate, job="train", **others):
    defaults = {"nets": 1, "processes": 1, "threads": 2, "precision": "float32"}
    return {"contender": contender, "job": job, "images_per_second": rate, **defaults, **others}


RATES = [
    row("minicnn cpu", 300),
    row("minicnn cpu", 400, processes=2, threads=1),
    row("minicnn cpu", 900, "infer"),
    row("PyTorch", 200),
    row("PyTorch", 180, processes=2, threads=1),
    row("PyTorch by vmap", 500, nets=15),
    row("JAX", 100),
]


def test_the_best_split_counts():
    best = frameworks.best(RATES, "train")
    assert {name: r["images_per_second"] for name, r in best.items()} == {
        "minicnn cpu": 400,
        "PyTorch": 200,
        "PyTorch by vmap": 500,
        "JAX": 100,
    }
    one = frameworks.best(RATES, "train", nets=1, processes=1)
    assert "PyTorch by vmap" not in one
    assert frameworks.ratio(one.values()) == 1.5
    assert frameworks.ratio(best.values()) == 0.8  # where minicnn loses, this says so
    assert frameworks.ratio([RATES[0]]) is None
    assert frameworks.ratios_in_words(RATES[:2]) == ""
    assert frameworks.ranking(RATES) == ["PyTorch by vmap", "minicnn cpu", "PyTorch", "JAX"]


# ---- the commands --------------------------------------------------------------------------------


def test_the_quick_comparison_runs(tmp_path, capsys):
    out = tmp_path / "result.json"
    assert frameworks.main(["--quick", "--seconds", "0.1", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert {r["contender"] for r in result["rates"]} >= {"minicnn cpu", "minicnn numpy"}
    assert {r["job"] for r in result["rates"]} == set(crew.JOBS)
    assert all(r["rounds"] == 2 for r in result["rates"])
    assert result["refused"] == {}
    assert set(result["differences"]) == {r["contender"] for r in result["rates"]}
    shown = capsys.readouterr().out
    for name in result["left_out"]:
        assert f"left out: {name}: not installed" in shown
    assert "minicnn cpu" in shown


def test_a_planted_contender_is_refused_by_the_command(fake, capsys):
    plan = [(named("minicnn cpu", "wrong"), 1, 2, ("train",))]
    assert frameworks.main(["--quick"], plan) == 1
    assert "refused: wrong: losses differ by 9.0e-01" in capsys.readouterr().out


def test_no_contender_to_measure_is_an_error(capsys):
    with pytest.raises(SystemExit) as stopped:
        frameworks.main(["--only", "caffe"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        "benchmarks.frameworks: error: argument --only: no contender's name contains caffe\n"
    )


@pytest.mark.parametrize("command", [frameworks, scaling])
@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon"])
def test_the_seconds_of_a_round_must_be_positive(command, seconds, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(["--seconds", seconds])
    assert stopped.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "argument --seconds: got " in line
    assert line.endswith(", expected a positive number")


@pytest.mark.full(beside="test_the_quick_comparison_runs")
def test_the_quick_scaling_runs(tmp_path, capsys):
    out = tmp_path / "result.json"
    scaling.main(["--quick", "--device", "numpy", "--out", str(out)])
    rows = json.loads(out.read_text())["rates"]
    sizes = [(r["cores"], r["batch"], r["nets"]) for r in rows]
    assert sizes == scaling.sizes("numpy", quick=True)
    assert all(0 < r["lowest"] <= r["images_per_second"] <= r["highest"] for r in rows)
    memory = {(r["batch"], r["nets"]): r["memory_bytes"] for r in rows}
    if memory[1, 1] is not None:
        assert memory[1, 1] < memory[64, 1] < memory[64, 2] < memory[256, 1]
    assert capsys.readouterr().out.count("images a second") == len(rows)


@pytest.mark.full(beside="test_the_quick_comparison_runs")
def test_whole_trainings_by_the_number_of_processes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scaling.machine, "cores", lambda: 2)
    out = tmp_path / "result.json"
    scaling.main(["--workers", "--quick", "--device", "numpy", "--out", str(out)])
    result = json.loads(out.read_text())
    assert result["what"] == "training 2 nets for 1 epochs of 640 images"
    assert list(result["processes"]) == ["1", "2"]
    assert all(rate["images_per_second"] > 0 for rate in result["processes"].values())
    assert "1.00 times one" in (shown := capsys.readouterr().out) and "2 process(es)" in shown


def test_processes_that_change_the_result_are_found(monkeypatch):
    def other_weights(job, workers):
        path = job.folder / ensemble.FINAL
        path.touch()
        weights[path] = {"params": np.full(3, workers)}

    weights = {}
    monkeypatch.setattr(ensemble, "train_ensemble", other_weights)
    monkeypatch.setattr(scaling.checkpoint, "load", lambda path: (weights[path], None))
    images, labels = draw_digits(100)
    with pytest.raises(AssertionError, match="processes changed the result"):
        scaling.measure_workers(Recipe(nets=2, epochs=1), Data(images, labels), "numpy", 1)


def test_a_comparison_that_is_stopped_leaves_its_rounds(fake, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(
        timing, "save", lambda path, result: saved.append(result["rates"][0]["rounds"])
    )
    plan = [(named("minicnn cpu"), 1, 2, ("train",))]
    out = str(tmp_path / "result.json")
    assert frameworks.main(["--quick", "--rounds=3", "--within=60", "--out", out], plan) == 0
    assert saved[:3] == [1, 2, 3]
