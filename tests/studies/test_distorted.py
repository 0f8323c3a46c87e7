"""study trials --distorted: each net's accuracy on distorted test images, too."""

import csv
import sqlite3
from dataclasses import replace

import numpy as np
import pytest
from runs import command, small_layers
from stored_nets import LABELS, SETTINGS, net

import minicnn.recipe
from minicnn import model
from minicnn.augment import RandomAffine
from minicnn.files import DataError
from minicnn.nets import Nets
from minicnn.recipe import Recipe
from minicnn.studies import trials
from minicnn.studies.store import FILE, Cell, Store
from minicnn.studies.tasks import Task, train_nets
from minicnn.training.dataset import Source

CELL = Cell("seed", Recipe(nets=2), 2)


def tables(path):
    with sqlite3.connect(path) as connection:
        return {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}


def net_with(number, accuracy):
    """A net with its accuracy on distorted images."""
    trained = net(number, [0])
    return type(trained)(**{**vars(trained), "distorted_accuracy": accuracy})


# ---- the file ------------------------------------------------------------------------------------


def test_other_studies_are_stored_as_without_it(tmp_path):
    with Store(tmp_path / FILE) as store:
        store.claim("trials", 0, SETTINGS, LABELS, [CELL])
        store.add("trials", 0, CELL, [net(1), net(2)], LABELS)
        assert not len(store.results("trials", 0).distorted_accuracies("seed"))
        assert len(trials.findings(store.results("trials", 0)).tables["summary"].data) == 4
    assert "distorted" not in tables(tmp_path / FILE)


def test_what_is_found_of_complete_trials_is_shown(tmp_path):
    with Store(tmp_path / FILE) as store:
        store.claim("trials", 0, {**SETTINGS, "distorted": True}, LABELS, [CELL])
        nets = [net_with(1, 0.25), net_with(2, 0.5), net_with(3, 0.75), net_with(1, 0.9)]
        store.add("trials", 0, CELL, nets, LABELS)
    with Store(tmp_path / FILE, create=False) as store:
        results = store.results("trials", 0)
        assert results.distorted_accuracies("seed").tolist() == [0.25, 0.5]
        found = trials.findings(results)
    row = found.tables["summary"].data.iloc[2]
    assert (row["of"], row["n"], row["mean"]) == ("single nets on distorted test images", 2, 0.375)
    assert "2 single nets on distorted test images: mean 37.500 %" in found.lines[2]


@pytest.mark.parametrize("before", [True, False])
def test_a_folder_with_and_without_it_cannot_be_mixed(tmp_path, before):
    settings = [SETTINGS, {**SETTINGS, "distorted": True}]
    with Store(tmp_path / FILE) as store:
        store.claim("trials", 0, settings[before], LABELS, [CELL])
        store.claim("trials", 0, settings[before], LABELS, [CELL])
        with pytest.raises(ValueError, match=r"has the study trials with distorted \w+, got "):
            store.claim("trials", 0, settings[not before], LABELS, [CELL])


def test_a_table_of_another_make_is_refused(tmp_path):
    with Store(tmp_path / FILE):
        pass
    with sqlite3.connect(tmp_path / FILE) as connection:
        connection.execute("CREATE TABLE distorted (net INTEGER)")
    with pytest.raises(DataError, match="has other tables"):
        Store(tmp_path / FILE, create=False)


def test_a_damaged_accuracy_is_reported(tmp_path):
    with Store(tmp_path / FILE) as store:
        store.claim("trials", 0, SETTINGS, LABELS, [CELL])
        store.add("trials", 0, CELL, [net_with(1, 0.5), net_with(2, 0.5)], LABELS)
        store._connection.execute("UPDATE distorted SET accuracy = 'half'")
        with pytest.raises(DataError, match="is damaged"):
            store.results("trials", 0).distorted_accuracies("seed")


# ---- the tasks -----------------------------------------------------------------------------------


@pytest.fixture
def source(monkeypatch):
    """A small network instead of the seed's, and drawn digits."""
    for module in (model, minicnn.recipe):
        monkeypatch.setattr(module, "mnist_layers", small_layers)
    return Source("digits", 80, 30).load()[1]


def task(source, nets=range(1, 3), device="numpy", **about):
    recipe = Recipe(nets=2, epochs=1, batch_size=16, momentum=0.9, validation_fraction=0.0)
    return Task("seed", recipe, nets, source, device, **about)


@pytest.mark.every_device
def test_each_net_is_tested_alone_as_among_others(source, device):
    together = train_nets(task(source, range(1, 4), device, distorted=True))
    alone = [
        train_nets(task(source, range(n, n + 1), device, distorted=True))[0] for n in (1, 2, 3)
    ]
    found = [trained.distorted_accuracy for trained in together]
    assert found == [trained.distorted_accuracy for trained in alone]
    assert all(0 <= accuracy <= 1 for accuracy in found)
    plain = train_nets(task(source, range(1, 4), device))
    assert [trained.distorted_accuracy for trained in plain] == [None] * 3
    for one, other in zip(plain, together, strict=True):  # and nothing else differs
        assert one.probabilities.tobytes() == other.probabilities.tobytes()


def test_the_images_are_those_that_the_recipe_distorts(source, monkeypatch):
    """Unchanged images give the plain accuracy; the random numbers are the same for every net."""
    seen = []

    def unchanged(self, images, seed, net, step):
        seen.append((self, images.shape, images.dtype, seed, net, step))
        return images

    monkeypatch.setattr(RandomAffine, "__call__", unchanged)
    labels = source.load()[0].test_labels
    asked = task(source, distorted=True)
    for trained in train_nets(asked):
        right = trained.probabilities.argmax(axis=1) == labels
        assert trained.distorted_accuracy == np.mean(right)
    assert seen == [(asked.recipe.augment, (30, 28, 28, 1), np.float32, 99, 0, 0)] * 2
    monkeypatch.setattr(RandomAffine, "__call__", lambda self, images, *_: np.zeros_like(images))
    for trained in train_nets(asked):  # every image is predicted alike
        assert trained.distorted_accuracy in {np.mean(labels == digit) for digit in range(10)}


def test_distorted_images_are_seen_in_the_recipes_views(source, monkeypatch):
    seen, predict = [], Nets.predict

    def watched(self, x, views=1):
        seen.append(views)
        return predict(self, x, views)

    monkeypatch.setattr(Nets, "predict", watched)
    one, three = (
        train_nets(replace(asked, recipe=replace(asked.recipe, views=views)))
        for asked in [task(source, distorted=True)]
        for views in (1, 3)
    )
    assert seen == [1, 1, 3, 3]
    for before, after in zip(one, three, strict=True):
        assert (before.probabilities != after.probabilities).any()


# ---- the command ---------------------------------------------------------------------------------


def test_the_command_tests_and_writes_it(tmp_path):
    sizes = "--limit=64 --test-limit=50 --trials=2 --nets=1 --epochs=1 --device=numpy".split()
    given = ["trials", "--quick", "--quiet", "--no-figures", *sizes, "--out", tmp_path / "study"]
    done = command("minicnn.study", *given, "--distorted")
    assert done.returncode == 0, done.stderr
    assert "2 single nets on distorted test images: mean " in done.stdout
    with (tmp_path / "study" / "trials" / "summary.csv").open() as file:
        [row] = [r for r in csv.DictReader(file) if "distorted" in r["of"]]
    with sqlite3.connect(tmp_path / "study" / FILE) as connection:
        accuracies = [a for (a,) in connection.execute("SELECT accuracy FROM distorted")]
    assert float(row["mean"]) == pytest.approx(sum(accuracies) / 2)
    again = command("minicnn.study", *given)
    assert again.returncode == 2
    assert "has the study trials with distorted True" in again.stderr
