"""The file of a study's results: each result counts once, and other files are refused."""

import sqlite3
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from runs import ROOT
from stored_nets import LABELS, SETTINGS, net

from minicnn.files import DataError
from minicnn.recipe import Recipe
from minicnn.studies import STUDIES, grid, trials
from minicnn.studies.networks import Variant
from minicnn.studies.store import FILE, Cell, Store
from minicnn.training import ensemble


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / FILE) as store:
        yield store


def trained(store, study, cell, nets, seed=0):
    store.claim(study, seed, SETTINGS, LABELS, [cell])
    for each in nets:
        store.add(study, seed, cell, [each], LABELS)
    return store.results(study, seed)


def test_a_net_counts_once(store):
    cell = Cell("seed", Recipe(nets=2), 2)
    results = trained(store, "trials", cell, [net(1, [0]), net(2, [0, 1]), net(1, [0]), net(3)])
    assert list(results.nets["net"]) == [1, 2, 3]
    assert list(results.nets["trial"]) == [1, 1, 2]
    assert results.trials("seed") == [1]
    assert results.accuracies("seed") == pytest.approx([1 / 6, 2 / 6])
    store.add("trials", 0, cell, [net(4, range(6))], LABELS)
    assert store.results("trials", 0).trials("seed") == [1, 2]
    assert store.trained("trials", 0) == {("seed", n) for n in range(1, 5)}
    assert store.trained("trials", 1) == set()


def test_two_studies_and_two_seeds_share_a_file(store):
    cell = Cell("seed", Recipe(nets=1), 2)
    for study, seed in (("trials", 0), ("hardest", 0), ("trials", 9)):
        trained(store, study, replace_seed(cell, seed), [net(1, [seed % 6])], seed)
    assert store.studies() == [("trials", 0), ("hardest", 0), ("trials", 9)]
    assert store.results("trials", 9).accuracies("seed") == pytest.approx([1 / 6])
    assert not store.results("hardest", 0).probabilities("seed", 2).size


def replace_seed(cell, seed):
    return Cell(cell.name, replace(cell.recipe, seed=seed), cell.trials)


def test_two_processes_write_to_one_file(tmp_path):
    code = """
import sys
from pathlib import Path
sys.path[:0] = ["tests", "tests/studies"]
from test_study_store import *
cell = Cell("seed", Recipe(nets=40), 1)
with Store(Path(sys.argv[1])) as store:
    trained(store, "trials", cell, [net(n, [n % 6]) for n in range(1, 41)])
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", code, tmp_path / FILE], cwd=ROOT) for _ in range(2)
    ]
    assert [process.wait() for process in processes] == [0, 0]
    with Store(tmp_path / FILE, create=False) as store:
        assert list(store.results("trials", 0).nets["net"]) == list(range(1, 41))


def test_diverged_nets_have_no_vote(store):
    cell = Cell("seed", Recipe(nets=3), 2)
    nets = [net(1, [0, 1]), net(2, diverged=(1, 4)), net(3, [0]), *map(net, (4, 5, 6))]
    results = trained(store, "trials", cell, nets)
    assert results.nets["diverged"].to_list() == [None, [1, 4], None, None, None, None]
    assert len(results.accuracies("seed")) == 5
    first, second = results.ensembles("seed")
    assert first[:2] == pytest.approx([2 / 6, 2 / 6])
    assert np.isnan(first[2])
    assert not second.any()
    votes = ensemble.vote(results.probabilities("seed", 1))
    assert np.mean(votes == LABELS) == first[1]
    found = trials.findings(results)
    assert found.tables["by_size"].data["n"].to_list() == [2, 2, 1]
    summary = found.tables["summary"].data
    assert summary["n"].to_list()[:2] == [5, 2]
    assert summary["max"][1] == first[1]
    noted = "1 of 6 nets diverged and are left out: 1 of the ensembles have fewer nets"
    assert noted in found.lines[2]


@pytest.mark.parametrize("name", [name for name in STUDIES if name != "variance"])
def test_a_study_without_any_result_yet(store, name):
    recipe = Variant(nets=3) if name == "ablation" else Recipe(nets=3)
    found = STUDIES[name].findings(trained(store, name, Cell("seed", recipe, 2), [net(1)]))
    assert not found.pictures
    for table in found.tables.values():
        table.readable()


def test_another_study_in_the_file_is_refused(store):
    cell = Cell("seed", Recipe(epochs=3), 1)
    store.claim("trials", 0, SETTINGS, LABELS, [cell])
    store.claim("trials", 0, {**SETTINGS, "source": "moved"}, LABELS, [cell])
    with pytest.raises(ValueError, match=r"results.sqlite has the study trials with data d, got e"):
        store.claim("trials", 0, {**SETTINGS, "data": "e"}, LABELS, [cell])
    new = Cell("rotation 5", Recipe(epochs=3, rotation=5.0), 1)
    store.claim("trials", 0, SETTINGS, LABELS, [new], grid.VARIED)
    for changed in ({"epochs": 4}, {"nets": 2}, {"momentum": 0.5}):
        unlike = Cell("rotation 7", Recipe(**{"epochs": 3, "rotation": 7.0} | changed), 1)
        with pytest.raises(ValueError, match=rf"the study trials \(.*with {next(iter(changed))}"):
            store.claim("trials", 0, SETTINGS, LABELS, [unlike], grid.VARIED)
    with pytest.raises(ValueError, match="the study trials of the recipe rotation 5, got seed"):
        store.claim("trials", 0, SETTINGS, LABELS, [cell])
    other = Cell("seed", Recipe(epochs=4), 5)
    with pytest.raises(ValueError, match="with epochs 3, got 4; choose another folder"):
        store.claim("trials", 0, SETTINGS, LABELS, [other])
    assert store.results("trials", 0).asked == {"seed": 1, "rotation 5": 1}
    store.claim("trials", 0, SETTINGS, LABELS, [replace(cell, trials=5)], grid.VARIED)
    store.claim("trials", 0, SETTINGS, LABELS, [replace(cell, trials=2)], grid.VARIED)
    assert store.results("trials", 0).asked == {"seed": 5, "rotation 5": 1}


@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE net SET probabilities = X'00'",
        "UPDATE net SET probabilities = zeroblob(4000)",
        "UPDATE net SET probabilities = 'text'",
        "UPDATE net SET history = '[[1, 2]]'",
        "UPDATE net SET history = 'nothing'",
        "UPDATE net SET made_by = '[1]'",
        "UPDATE net SET cell = 'unknown'",
        "UPDATE net SET accuracy = 'high'",
        "UPDATE cell SET recipe = '{}, '",
        "UPDATE cell SET recipe = '[]'",
        "UPDATE cell SET recipe = '{\"nets\": -1}'",
        "UPDATE cell SET recipe = '{\"nests\": 2}'",
        "UPDATE study SET settings = '3'",
        "UPDATE study SET labels = 'abc'",
        "UPDATE study SET settings = '" + "[" * 100_000 + "'",
    ],
)
def test_damaged_results_are_refused(tmp_path, harm):
    path = tmp_path / FILE
    with Store(path) as store:
        trained(store, "trials", Cell("seed", Recipe(nets=1), 1), [net(1, [0])])
    connection = sqlite3.connect(path)
    connection.execute(harm)
    connection.commit()
    connection.close()
    with (
        Store(path, create=False) as store,
        pytest.raises(DataError, match=r"results.sqlite: the study trials of seed 0 is damaged"),
    ):
        results = store.results("trials", 0)
        trials.findings(results)
        results.history()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", None),
        (b"no database, however long it may be" * 100, "file is not a database"),
        ("CREATE TABLE net (a)", "has other tables"),
        ("CREATE VIEW v AS SELECT 1", "has other tables"),
        (None, "no such file"),
    ],
)
def test_a_file_without_results_is_refused(tmp_path, content, named):
    path = tmp_path / FILE
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        connection = sqlite3.connect(path)
        connection.execute(content)
        connection.close()
    if named is None:  # an empty file is an empty database
        with Store(path) as store:
            assert store.studies() == []
        return
    with pytest.raises(DataError, match=named):
        Store(path, create=False)
    if content:
        with pytest.raises(DataError, match=named):
            Store(path)
