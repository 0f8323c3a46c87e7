"""What is kept of studies and runs, and the tables that show it."""

import inspect
import json
import re

import numpy as np
import pytest
from stored_nets import LABELS, MADE_BY, SETTINGS, net

from benchmarks import keep, readme, studies, timing
from minicnn import recipe
from minicnn.files import DataError
from minicnn.recipe import RECIPES, Recipe
from minicnn.studies import statistics
from minicnn.studies.store import FILE, Cell, Store
from minicnn.studies.tasks import TrainedNet


def test_what_is_kept_of_a_study(tmp_path, monkeypatch):
    """The result file has each accuracy, and the tables are made from it."""
    cell = Cell("seed", Recipe(nets=2, epochs=3), 2)
    with Store(tmp_path / FILE) as store:
        store.claim("trials", 0, SETTINGS, LABELS, [cell])
        nets = [net(1, [0]), net(2, range(6)), net(3, [1, 2]), net(4, [5])]
        store.add("trials", 0, cell, nets, LABELS)
    monkeypatch.setattr(timing, "RESULTS", tmp_path)
    keep.keep(tmp_path)
    result = timing.newest("study-trials")
    assert result["made_by"] == [MADE_BY]
    assert result["cells"]["seed"]["accuracies"] == pytest.approx([1 / 6, 1, 2 / 6, 1 / 6])
    with Store(tmp_path / FILE, create=False) as store:
        expected = store.results("trials", 0).ensembles("seed").tolist()
    assert result["cells"]["seed"]["ensembles"] == expected
    shown = studies._trials(result["tables"])
    assert "| single nets | 4 | 41.667 % (" in shown
    assert "| 39.675 % | 16.67 % | 100.00 % |" in shown
    assert "| ensembles of 15, the notebook | 100 | 99.745 % | 0.020 % |  | 99.79 % |" in shown
    sized = studies._size(result)
    assert "9 training images, 3 epochs" in sized
    assert sized.endswith("2 trials, ensembles of 2, `numpy`")


def test_the_recipes_and_what_they_reach(tmp_path, monkeypatch):
    """Trials of several seeds add up, the newest of each; small ones are not shown."""
    job = {"summary": {"images_per_second": 1000.0}}
    monkeypatch.setattr(timing, "RESULTS", tmp_path)
    labels = np.arange(100) % 10
    right = np.eye(10, dtype=np.float32)[labels]

    def train(seed, wrong, images=60_000, date="2026-01-02"):
        """Keep trials with ensembles of which so many predictions are wrong."""
        folder = tmp_path / f"{seed}{date}{images}"
        folder.mkdir()
        recipe = Recipe(nets=15, epochs=30, seed=seed)
        cell = Cell("seed", recipe, len(wrong))
        with Store(folder / FILE) as store:
            settings = SETTINGS | {"train_images": images, "test_images": 100}
            store.claim("trials", seed, settings, labels, [cell])
            for trial, count in enumerate(wrong):
                guesses = np.roll(right, 1, axis=1) * (np.arange(100) < count)[:, None]
                guesses += right * (np.arange(100) >= count)[:, None]
                numbers = range(15 * trial + 1, 15 * trial + 16)
                nets = [TrainedNet(net, [], None, guesses, MADE_BY) for net in numbers]
                store.add("trials", seed, cell, nets, labels)
        monkeypatch.setattr(timing, "machine", lambda device="cpu": where | {"date": date})
        keep.keep(folder)

    where = timing.machine()
    timing.write("job-cpu", job | {"machine": where | {"date": "2026-01-01"}})
    train(0, [9, 9], date="2026-01-01")
    train(0, [1, 3])
    train(7, [4], images=600)
    ((what, result, how),) = studies.accuracies()
    images = 15 * 30 * (60_000 // 64) * 64
    assert what == "`seed`: 15 nets, 30 epochs of MNIST, 27.0 million images"
    assert result == "**98.000 %** right (97.000 and 99.000); single nets 98.000 %"
    assert how.startswith(f"`numpy`, 2 ensembles; {images / 1000 / 60:.0f} minutes at the whole")
    assert how.endswith("; the notebook: 99.745 % and 99.641 %")
    train(5, [2])
    ((what, result, how),) = studies.accuracies()
    low, high = (100 * end for end in statistics.mean_interval([0.97, 0.98, 0.99]))
    assert result == f"**98.000 %** right ({low:.3f} to {high:.3f}); single nets 98.000 %"
    assert "3 ensembles" in how

    found = studies.curve()["seed"]
    assert (found["epochs"], found["trials"]) == (30, 3)
    assert found["images"] == [images * nets // 15 for nets in range(1, 16)]
    assert found["minutes"][14] == pytest.approx(images / 1000 / 60, abs=1e-3)
    assert found["mean"] == pytest.approx([0.98] * 15)
    assert (found["low"][1], found["high"][14]) == pytest.approx((low / 100, high / 100), abs=1e-6)
    head, _, seed, notebook = studies._whole().splitlines()
    assert head.count("|") == seed.count("|") == notebook.count("|")
    single = statistics.mean_interval(np.repeat([0.97, 0.98, 0.99], 15))
    assert (found["low"][0], found["high"][0]) == pytest.approx(single, abs=1e-6)
    low_single, high_single = (f"{100 * end:.3f}" for end in single)
    assert f"| 45 | 98.000 % ({low_single} to {high_single}) | 0.826 % | 3 | 98.000 %" in seed
    assert seed.endswith("| 1.000 % |")
    assert "| 1,500 | 99.641 % | 0.047 % | 100 | 99.745 % |" in notebook
    costs = studies._costs().splitlines()[2:]
    assert [row.split(" | ")[2] for row in costs] == ["1", "3", "7", "15"]
    assert costs[0].startswith(f"| {images / 15e6:.1f} million | {images / 15e3 / 60:.1f} | 1 |")
    assert costs[-1].endswith(f"| `seed` | 98.000 % ({low:.3f} to {high:.3f}) | 3 |")


@pytest.mark.parametrize("field", ["nets", "epochs", "batch_size", "rotation"])
def test_trials_of_different_recipes_are_not_mixed(field, monkeypatch):
    found = timing.every("full-trials-seed-1")
    [first] = [result for result in timing.every("full-trials-amd") if result["seed"] == 0]
    found[0]["cells"]["seed"]["recipe"][field] += 1
    monkeypatch.setattr(timing, "every", lambda kind: [first, *found])
    with pytest.raises(ValueError, match=f"seed: got trials with another {field}"):
        studies.all_reached()


def test_the_recipes_say_what_they_reach():
    """The comments in recipe.py are those of the newest results."""
    said = re.sub(r"\n# ?|\s+", " ", inspect.getsource(recipe))
    rows = studies.accuracies()
    assert len(rows) == 3
    for _, result, how in rows:
        mean, interval = re.match(r"\*\*([\d.]+ %)\*\* right (\([^)]+\))", result).groups()
        n = re.search(r"\d+ (nets|ensembles)", how)[0]
        assert f"{mean} {interval}, {n}" in said
        assert result.split(" ")[-2] in said  # of single nets, or of ensembles


def test_a_comparison_of_recipes_shows_its_gains():
    row = {"candidate": "b", "changes": "warm_up 0.1", "n": 4, "mean": 0.5, "low": 0.4}
    row |= {"high": 0.6, "gain": 0.001, "gain_low": -0.002, "gain_high": 0.004}
    base = row | dict.fromkeys(("gain", "gain_low", "gain_high")) | {"candidate": "a"}
    found = {"single_nets": {"rows": [base, row]}, "ensembles": {"rows": [base, row]}}
    *_, first, second = studies._recipes(found).splitlines()
    assert first.startswith("| a | warm up 0.1 | 4 | 50.000 % (40.000 to 60.000) |  | 50.000")
    assert second.endswith("(40.000 to 60.000) | +0.100 % (-0.200 to +0.400) |")


def test_what_is_kept_of_a_run(tmp_path, monkeypatch, capsys):
    """The times of the demo and of the whole job are in the table `summary`."""
    mnist = timing.newest("full-trials")["settings"]["test_data"]
    monkeypatch.setattr(timing, "RESULTS", tmp_path / "results")
    found = {"device": "cpu", "seconds": 31.4, "images_per_second": 2087.6}
    (tmp_path / "summary.json").write_text(json.dumps({**found, "ensemble_test_accuracy": 0.999}))
    config = {"recipe": RECIPES["seed"].as_dict(), "source": "digits"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit) as stopped:
        readme.main([str(tmp_path)])
    assert stopped.value.code == 2
    assert "another recipe or data, expected a run of the demo" in capsys.readouterr().err
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"recipe": RECIPES["demo"].as_dict()})
    )
    keep.keep(tmp_path)
    assert timing.newest("demo-cpu")["summary"]["seconds"] == 31.4
    job = config | {"train_images": 42_000, "test_data": "that of other images"}
    (tmp_path / "config.json").write_text(json.dumps(job))
    with pytest.raises(DataError, match="another recipe or data"):
        keep.keep(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(job | {"test_data": mnist}))
    found |= {"seconds": 2980.0, "images_per_second": 8555.2, "ensemble_test_accuracy": 0.9975}
    (tmp_path / "summary.json").write_text(json.dumps(found))
    keep.keep(tmp_path)
    for file in (readme.ROOT / "benchmarks" / "results").glob("*.json"):
        if not file.name.startswith("job-cpu"):
            (tmp_path / "results" / file.name).write_bytes(file.read_bytes())
    shown = readme.summary()
    assert "| **31 s**, 2,088 images a second, 99.90 % right |" in shown
    assert "| **50 minutes**, 8,555 images a second; 99.75 % right | `cpu`, float32, " in shown
