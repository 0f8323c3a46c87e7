"""The benchmarks: README's tables are those of the result files, and how times become rates."""

import json

import pytest

from benchmarks import readme, timing
from minicnn import cuda_blocks
from minicnn.recipe import RECIPES


@pytest.mark.parametrize("path", readme.TABLES, ids=lambda path: path.parent.name)
def test_readme_agrees_with_the_results(path):
    assert readme.render(path) == path.read_text(), "run python -m benchmarks.readme"


@pytest.mark.parametrize(
    ("path", "kind", "places"),
    [
        (readme.README, "train-step-cpu", ["rates", 0]),
        (readme.README, "workers-cpu", ["processes", "1"]),
        (readme.README, "accuracy-numpy", ["runs", 0, "test_accuracy"]),
        (readme.README, "accuracy-cpu", ["runs", 0, "test_accuracy"]),
        (readme.KERNELS_README, "layers-cpu", ["passes", 0]),
        (readme.KERNELS_README, "ladder-emulated", ["versions_counted", "im2col", "forward"]),
        (readme.KERNELS_README, "ladder-emulated", ["versions_counted", "fused", "step"]),
        (readme.KERNELS_README, "tiles", ["launches", 3]),
    ],
)
def test_a_changed_result_changes_the_readme(path, kind, places, tmp_path, monkeypatch):
    for file in readme.RESULTS.glob("*.json"):
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
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    assert readme.render(path) != path.read_text()


def test_the_tiles_shown_are_those_that_are_chosen():
    result, shown = readme.newest("tiles"), []
    for block in cuda_blocks.fusion(RECIPES["seed"].nodes, result["batch"]).blocks:
        for launch in (block.forward, block.input_gradient, block.weight_gradient):
            if launch:
                shown.append((list(launch.grid), launch.threads // 32, launch.shared_bytes))
    found = [(row["grid"], row["warps"], row["shared_bytes"]) for row in result["launches"]]
    assert found == shown, "run python -m benchmarks.tiles and python -m benchmarks.readme"


def test_the_figure_shows_the_newest_result(tmp_path):
    figure = readme.RESULTS / readme.SCALING_FIGURE
    shown = readme.digest(readme.newest("scaling-cpu"))
    assert shown.encode() in figure.read_bytes(), "run python -m benchmarks.readme"
    readme.draw_scaling(tmp_path / "again.png")
    assert shown.encode() in (tmp_path / "again.png").read_bytes()


def test_rates_are_medians():
    rate = timing.summarize([0.5, 0.1, 0.2], images=10)
    assert rate == {"images_per_second": 50, "lowest": 20, "highest": 100, "rounds": 3}


def test_contenders_take_turns():
    calls = []
    contenders = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = timing.alternate(contenders, rounds=4, seconds=1e-9)
    assert calls[-8:] == list("abababab")
    assert [len(measured) for measured in times.values()] == [4, 4]
    assert all(seconds > 0 for measured in times.values() for seconds in measured)


def test_results_are_files_named_by_date(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "RESULTS", tmp_path / "results")
    path = timing.write("kind", {"a": 1})
    assert json.loads(path.read_text()) == {"a": 1}
    assert path.name == f"kind-{timing.machine()['date']}.json"
    monkeypatch.setattr(readme, "RESULTS", tmp_path / "results")
    (tmp_path / "results" / "kind-2000-01-01.json").write_text("{}")
    assert readme.newest("kind") == {"a": 1}
    with pytest.raises(ValueError, match="max"):
        readme.newest("other")
