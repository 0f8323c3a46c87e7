"""The documents' tables are those of the result files; how times become rates and files."""

import json
import re

import pytest

from benchmarks import plots, readme, tilings, timing
from minicnn.backends import cuda_blocks, native
from minicnn.recipe import RECIPES

RECIPE = None  # the place of a result's only recipe
DOCUMENTS = [path for path in readme.DOCUMENTS if path.exists()]


@pytest.mark.parametrize(
    "path", DOCUMENTS, ids=lambda path: path.relative_to(readme.ROOT).as_posix()
)
def test_each_document_agrees_with_the_results(path):
    assert readme.render(path) == path.read_text(), "run python -m benchmarks.readme"


def test_each_table_is_in_a_document():
    text = "".join(path.read_text() for path in DOCUMENTS)
    assert [name for name in readme.TABLES if f"<!-- {name} -->" not in text] == []


@pytest.mark.parametrize(
    ("table", "kind", "places"),
    [
        ("summary", "frameworks-cpu", ["rates", 0]),
        ("summary", "full-trials", ["cells", RECIPE, "accuracies"]),
        ("summary", "full-trials", ["cells", RECIPE, "ensembles", 0]),
        ("studies", "full-trials", ["cells", RECIPE, "accuracies"]),
        ("speed", "frameworks-cpu", ["rates", 0]),
        ("speed", "workers-cpu", ["processes", "1"]),
        ("accuracy", "accuracy-numpy", ["runs", 0, "test_accuracy"]),
        ("accuracy", "accuracy-cpu", ["runs", 0, "test_accuracy"]),
        ("accuracy", "accuracy-cpu", ["runs", 0, "distorted_test_accuracy"]),
        ("studies", "study-variance", ["tables", "summary", "rows", 2]),
        ("studies", "study-trials", ["tables", "summary", "rows", 1]),
        ("studies", "study-grid", ["tables", "ensembles", "rows", 3]),
        ("studies", "study-grid", ["tables", "single_nets", "rows", 0]),
        ("studies", "study-ablation", ["tables", "steps", "rows", 1]),
        ("studies", "study-recipes", ["tables", "effects", "rows", 2]),
        ("faults", "faults", ["kills", 0]),
        ("operations", "kernels-cpu", ["operations", 0]),
        ("operations", "kernels-cpu", ["limits", "numpy"]),
        ("operations", "kernels-before", ["operations", 0]),
        ("rungs", "rungs-cpu", ["rungs", "direct"]),
        ("ladder", "ladder-emulated", ["versions_counted", "im2col", "forward"]),
        ("ladder", "ladder-emulated", ["versions_counted", "fused", "step"]),
        ("tile_choices", "tiles", ["launches", 3]),
        ("tile_choices", "tilings-cuda", ["tilings", 333]),  # the fastest of conv2d_2, forward
        ("compilers", "compilers", ["compilers", 0]),
        ("storage", "storage-cpu", ["settings", "fast"]),
        ("summary", "job-cpu", ["summary"]),
        ("summary", "job-cuda", ["summary"]),
        ("gpu", "job-cuda", ["summary"]),
        ("gpu", "frameworks-cuda", ["rates", 0]),
        ("gpu", "steps-cuda", ["steps", 0, "seconds"]),
    ],
)
def test_a_changed_result_changes_its_table(table, kind, places, tmp_path, monkeypatch):
    """Then each document that has the table is out of date."""
    for file in timing.RESULTS.glob("*.json"):
        result = json.loads(file.read_text())
        if file.name.startswith(kind):
            numbers = result
            for place in places:
                numbers = numbers[next(iter(numbers)) if place is RECIPE else place]
            for key in range(len(numbers)) if isinstance(numbers, list) else numbers:
                if isinstance(numbers[key], (int, float)):
                    numbers[key] *= 0.5
        (tmp_path / file.name).write_text(json.dumps(result, indent=2) + "\n")
    marker = f"<!-- {table} -->"
    having = [path for path in DOCUMENTS if marker in path.read_text()]
    assert having
    assert all(readme.render(path) == path.read_text() for path in having)
    monkeypatch.setattr(timing, "RESULTS", tmp_path)
    assert all(readme.render(path) != path.read_text() for path in having)


def test_the_files_in_reading_order_have_their_lines():
    shown = readme.files()
    found = re.findall(r"\[`([^`]+)`\]\(([^)]+)\) (\d+)", shown)
    assert len(set(found)) == len(found) == 38
    for name, path, lines in found:
        assert path.endswith(name)
        with open(readme.ROOT / path) as file:
            assert sum(1 for _ in file) == int(lines)
    assert [len(line.split("|")) for line in shown.splitlines()] == [5] * 12


def test_a_table_may_stand_in_any_document(tmp_path, monkeypatch):
    monkeypatch.setattr(readme, "TABLES", {"one": lambda: "![a](b/c.png) [d](http://e/f) [g](#h)"})
    path = readme.ROOT / "minicnn" / "studies" / "DOCUMENT.md"
    monkeypatch.setattr(type(path), "read_text", lambda self: document)
    document = "Before\n\n<!-- one -->\nold\n<!-- end of one -->\n\nbehind\n"
    table = "![a](../../b/c.png) [d](http://e/f) [g](#h)"
    expected = f"Before\n\n<!-- one -->\n\n{table}\n\n<!-- end of one -->\n\nbehind\n"
    assert readme.render(path) == expected
    document = "No table.\n"
    assert readme.render(path) == document
    document = "<!-- one -->\n"
    with pytest.raises(ValueError, match="expected one <!-- one --> and one <!-- end of one -->"):
        readme.render(path)
    document = "<!-- another -->\n<!-- end of another -->\n"
    with pytest.raises(ValueError, match="<!-- another -->, expected one of one"):
        readme.render(path)


def test_the_tiles_shown_are_the_current_choices():
    result, shown = timing.newest("tiles"), []
    for block in cuda_blocks.fusion(RECIPES["seed"].nodes, result["batch"]).blocks:
        for launch in (block.forward, block.input_gradient, block.weight_gradient):
            if launch:
                shown.append((list(launch.grid), launch.threads // 32, launch.shared_bytes))
    found = [(row["grid"], row["warps"], row["shared_bytes"]) for row in result["launches"]]
    assert found == shown, "run python -m benchmarks.tiles and python -m benchmarks.readme"


@pytest.mark.parametrize("name", plots.FIGURES)
def test_figures_show_the_newest_results(name, tmp_path):
    build, result = plots.FIGURES[name]
    again, shown = tmp_path / "figure.png", result()
    plots.draw(again, build, shown)
    for figure in (again, timing.RESULTS / f"{name}.png"):
        assert plots.digest(shown).encode() in figure.read_bytes(), (
            "run python -m benchmarks.readme"
        )


def test_every_result_names_its_machine_and_versions():
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


def test_rounds_follow_a_warm_up():
    calls, now = [], iter(range(100))

    class Clock:
        def mark(self):
            calls.append("|")
            return next(now)

        def seconds(self, first, last):
            assert last == first + 1
            return 1.0

    times = timing.measure(lambda: calls.append("a"), rounds=3, seconds=2, clock=Clock())
    assert "".join(calls) == "|aa||a|" + 3 * "|aa|"
    assert times == [0.5] * 3


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


def test_the_newest_result_counts_from_any_machine(tmp_path, monkeypatch):
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


@pytest.mark.skipif(native.problem() is not None, reason="the emulator needs a compiler")
def test_tilings_are_timed_and_the_models_choice_is_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tilings, "WITHIN", 1.0)  # only the choice, or what is as good
    monkeypatch.setattr(tilings, "REPEATS", 1)
    out = tmp_path / "tilings.json"
    tilings.main(["--device", "emulated", "--nets", "1", "--batch", "1", "--out", str(out)])
    rows = json.loads(out.read_text())["tilings"]
    assert {(row["layer"], row["pass"]) for row in rows} == {
        (f"conv2d_{i}", name)
        for i in range(1, 7)
        for name in ("forward", "input gradient", "weight gradient")
    }
    assert all(row["seconds"] > 0 and row["model_seconds"] > 0 for row in rows)
    assert re.search(r"^all: \d+ us chosen, \d+ us fastest$", capsys.readouterr().out, re.M)
    shown = tilings.compared([{**rows[0], "seconds": 3e-6}, {**rows[0], "seconds": 1e-6}])
    assert list(shown.iloc[0])[2:] == [2, 1.0, 3.0]  # of equal choices the first is the model's
