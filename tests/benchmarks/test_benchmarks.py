"""The benchmarks: README's tables are those of the result files, and how times become rates."""

import json

import pytest
from stored_nets import LABELS, MADE_BY, SETTINGS, net

from benchmarks import plots, readme, studies, timing
from minicnn.backends import cuda_blocks
from minicnn.recipe import RECIPES, Recipe
from minicnn.studies.store import FILE, Cell, Store


@pytest.mark.parametrize("path", readme.TABLES, ids=lambda path: path.parent.name)
def test_readme_agrees_with_the_results(path):
    assert readme.render(path) == path.read_text(), "run python -m benchmarks.readme"


@pytest.mark.parametrize(
    ("path", "kind", "places"),
    [
        (readme.README, "frameworks-cpu", ["rates", 0]),
        (readme.README, "workers-cpu", ["processes", "1"]),
        (readme.README, "accuracy-numpy", ["runs", 0, "test_accuracy"]),
        (readme.README, "accuracy-cpu", ["runs", 0, "test_accuracy"]),
        (readme.README, "study-variance", ["tables", "summary", "rows", 2]),
        (readme.README, "study-trials", ["tables", "summary", "rows", 1]),
        (readme.README, "study-grid", ["tables", "ensembles", "rows", 3]),
        (readme.README, "study-grid", ["tables", "single_nets", "rows", 0]),
        (readme.README, "study-ablation", ["tables", "steps", "rows", 1]),
        (readme.KERNELS_README, "kernels-cpu", ["operations", 0]),
        (readme.KERNELS_README, "kernels-cpu", ["limits", "numpy"]),
        (readme.KERNELS_README, "ladder-emulated", ["versions_counted", "im2col", "forward"]),
        (readme.KERNELS_README, "ladder-emulated", ["versions_counted", "fused", "step"]),
        (readme.KERNELS_README, "tiles", ["launches", 3]),
    ],
)
def test_a_changed_result_changes_the_readme(path, kind, places, tmp_path, monkeypatch):
    for file in timing.RESULTS.glob("*.json"):
        result = json.loads(file.read_text())
        if file.name.startswith(kind):
            numbers = result
            for place in places:
                numbers = numbers[place]
            for key in range(len(numbers)) if isinstance(numbers, list) else numbers:
                if isinstance(numbers[key], (int, float)):
                    numbers[key] *= 0.5
        (tmp_path / file.name).write_text(json.dumps(result))
    assert readme.render(path) == path.read_text()
    monkeypatch.setattr(timing, "RESULTS", tmp_path)
    assert readme.render(path) != path.read_text()


def test_the_tiles_shown_are_those_that_are_chosen():
    result, shown = timing.newest("tiles"), []
    for block in cuda_blocks.fusion(RECIPES["seed"].nodes, result["batch"]).blocks:
        for launch in (block.forward, block.input_gradient, block.weight_gradient):
            if launch:
                shown.append((list(launch.grid), launch.threads // 32, launch.shared_bytes))
    found = [(row["grid"], row["warps"], row["shared_bytes"]) for row in result["launches"]]
    assert found == shown, "run python -m benchmarks.tiles and python -m benchmarks.readme"


@pytest.mark.parametrize("draw", plots.FIGURES, ids=lambda draw: draw.__name__)
def test_figures_show_the_newest_results(draw, tmp_path):
    again = draw(tmp_path)
    shown = timing.newest(again.stem)
    committed = timing.RESULTS / again.name
    for figure in (again, committed):
        assert plots.digest(shown).encode() in figure.read_bytes(), (
            "run python -m benchmarks.readme"
        )


def test_every_result_says_on_what_it_was_measured():
    files = sorted(timing.RESULTS.glob("*.json"))
    assert files
    for file in files:
        result = json.loads(file.read_text())
        where = result["machine"]
        name = where.get("gpu") or where["processor"]
        assert where["date"] in file.name
        assert name.split()[0].lower().removesuffix("(r)") in file.name
        assert timing.in_words(result).count(result["versions"]["minicnn"])


# ---- method --------------------------------------------------------------------------------------


def test_rates_are_medians():
    rate = timing.rates([0.5, 0.1, 0.2], images=10)
    assert rate == {"images_per_second": 50, "lowest": 20, "highest": 100, "rounds": 3}


def test_contenders_take_turns_after_a_warm_up():
    calls, now = [], iter(range(100))

    class Clock:
        def mark(self):
            calls.append("|")
            return next(now)

        def seconds(self, first, last):
            assert last == first + 1
            return 1.0

    contenders = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = timing.alternate(contenders, rounds=3, seconds=2, clock=Clock())
    assert "".join(calls) == "|aa||a||bb||b|" + 3 * "|aa||bb|"
    assert times == {"a": [0.5] * 3, "b": [0.5] * 3}


def test_results_are_files_named_by_machine_and_date(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "RESULTS", tmp_path / "results")
    where = {"processor": "Intel(R) Xeon(R) 8x", "cores": 4, "date": "2020-02-03"}
    result = {"machine": where, "a": 1}
    path = timing.write("kind-cpu", result)
    assert path.name == "kind-cpu-intel-xeon-8x-4-cores-2020-02-03.json"
    assert json.loads(path.read_text()) == result
    on_gpu = {"machine": {**where, "gpu": "NVIDIA H100 80GB", "date": "2020-02-04"}, "a": 2}
    assert timing.write("kind-cuda", on_gpu).name == "kind-cuda-nvidia-h100-80gb-2020-02-04.json"
    given = timing.write("kind-cpu", {"machine": where}, tmp_path / "else" / "where.json")
    assert given == tmp_path / "else" / "where.json"
    assert given.exists()


def test_the_newest_result_counts_on_whatever_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "RESULTS", tmp_path)
    for name in (
        "kind-z-2019-01-01",
        "kind-a-2020-01-01",
        "kind-m-2019-12-31",
        "kinds-a-2021-01-01",
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(name))
    assert timing.newest("kind") == "kind-a-2020-01-01"
    with pytest.raises(ValueError, match="no result of the kind 'other'"):
        timing.newest("other")


def test_the_machine_and_the_versions_are_named():
    where = timing.machine()
    assert where["cores"] >= 1
    assert where["processor"]
    found = timing.versions("pytest", "no-such-package")
    assert list(found) == ["minicnn", "numpy", "pytest"]
    assert timing.in_words({"machine": where, "versions": found}).endswith(
        f"numpy {found['numpy']}, pytest {pytest.__version__}."
    )


def test_what_is_kept_of_a_study(tmp_path, monkeypatch):
    """Each accuracy is in the result file, and README's tables are made of it."""
    cell = Cell("seed", Recipe(nets=2, epochs=3), 2)
    with Store(tmp_path / FILE) as store:
        store.claim("trials", 0, SETTINGS, LABELS, [cell])
        nets = [net(1, [0]), net(2, range(6)), net(3, [1, 2]), net(4, [5])]
        store.add("trials", 0, cell, nets, LABELS)
    monkeypatch.setattr(timing, "RESULTS", tmp_path)
    studies.main([str(tmp_path)])
    result = timing.newest("study-trials")
    assert result["made_by"] == [MADE_BY]
    assert result["cells"]["seed"]["accuracies"] == pytest.approx([1 / 6, 1, 2 / 6, 1 / 6])
    with Store(tmp_path / FILE, create=False) as store:
        expected = store.results("trials", 0).ensembles("seed").tolist()
    assert result["cells"]["seed"]["ensembles"] == expected
    shown = "\n".join(readme._trials(result["tables"]))
    assert "| single nets | 4 | 41.667 % (" in shown
    assert "| 39.675 % | 16.67 % | 100.00 % |" in shown
    assert "| ensembles of 15, the notebook | 100 | 99.745 % | 0.020 % |  | 99.79 % |" in shown
    sized = readme._size(result)
    assert "9 training images, 3 epochs" in sized
    assert sized.endswith("2 trials, ensembles of 2, `numpy`")
