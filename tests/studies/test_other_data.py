"""Studies of data with other classes, image sizes and channels than digits have."""

import csv
import json
import re
import sqlite3

import numpy as np
import patterns
import pytest
from runs import small_layers

import minicnn.recipe
from minicnn import study
from minicnn.network.layers import Dense
from minicnn.recipe import Recipe
from minicnn.studies import variance
from minicnn.studies.networks import STEPS, Variant
from minicnn.studies.store import FILE, Store
from minicnn.studies.tasks import Task, train_nets
from minicnn.training.dataset import Source

COLOUR = (32, 32, 3)
RECIPE = Recipe(nets=1, epochs=4, batch_size=16, learning_rate=0.005, momentum=0.9, rotation=0.0)


@pytest.fixture
def colours(tmp_path):
    """A source of twelve classes of 32x32x3 images."""
    patterns.write_npz(tmp_path / "colours.npz", 12, 480, 96, COLOUR)
    return tmp_path / "colours.npz"


def test_each_network_of_the_ablation_ends_in_the_classes_of_the_data():
    for changes in range(len(STEPS)):
        recipe = Variant(changes=changes, classes=tuple("abcde"), input_shape=COLOUR)
        assert isinstance(recipe.layers[-1], Dense) and recipe.layers[-1].units == 5
        assert recipe.nodes[0].input_shape == COLOUR
        assert Variant(**recipe.as_dict()) == recipe


@pytest.mark.full(but="numpy|cpu")
@pytest.mark.every_device
def test_a_task_learns_colours(colours, device, monkeypatch):
    monkeypatch.setattr(minicnn.recipe, "mnist_layers", small_layers)
    data, source = Source(str(colours)).load()
    task = Task("seed", RECIPE.of(data), range(1, 2), source, device, distorted=True)
    (net,) = train_nets(task)
    right = np.mean(net.probabilities.argmax(axis=1) == data.test_labels)
    assert net.probabilities.shape == (96, 12)
    assert right > 0.8 and net.distorted_accuracy > 0.5  # guessing: 0.08


def test_the_command_trains_on_colours(colours, tmp_path, capsys):
    """The notebook's network, trained for too short a time to learn much."""
    folder = tmp_path / "study"
    arguments = f"hardest --quick --nets=1 --epochs=1 --limit=128 --data={colours} --out={folder}"
    arguments = [*arguments.split(), "--quiet", "--no-figures", "--device=numpy", "--workers=1"]
    assert study.main(arguments) == 0
    told = capsys.readouterr()
    assert "The 50 hardest test images for 1 nets together" in told.out
    assert re.search(r"^Data: \d+ images 32x32x3, 12 classes 0\.\.11$", told.err, re.MULTILINE)
    names = {str(i) for i in range(12)}
    rows = list(csv.DictReader((folder / "hardest" / "hardest.csv").open()))
    assert {row["label"] for row in rows} | {row["predicted"] for row in rows} <= names
    with Store(folder / FILE, create=False) as store:
        settings = store.results("hardest", 0).settings
    assert (settings["input_shape"], len(settings["classes"])) == ([32, 32, 3], 12)
    quiz = (folder / "hardest" / "quiz.html").read_text()
    assert "Quiz: the 50 hardest images" in quiz and "digit:" not in quiz
    assert study.main(arguments) == 0  # all is trained already
    assert "0 nets to train" in capsys.readouterr().err


def test_settings_of_digits_are_as_they_were(tmp_path, capsys):
    arguments = f"variance --data=digits --limit=100 --out={tmp_path} --quiet --no-figures"
    assert study.main(arguments.split()) == 0
    connection = sqlite3.connect(tmp_path / FILE)
    (text,) = connection.execute("SELECT settings FROM study").fetchone()
    connection.close()
    assert list(json.loads(text)) == ["source", "train_images", "test_images", "data", "test_data"]


def test_lenet_needs_28_pixels(tmp_path, capsys):
    patterns.write_npz(tmp_path / "small.npz", 3, 90, 9, (30, 27))
    arguments = f"ablation --quick --data={tmp_path / 'small.npz'} --out={tmp_path / 'study'}"
    assert study.main([*arguments.split(), "--quiet", "--device=numpy"]) == 2
    told = capsys.readouterr().err
    assert re.search(
        r"error: images of 30x27 pixels are too small for the network, which needs at least "
        r"28x28: conv2d_2: kernel_size is \(4, 4\)",
        told,
    )
    assert told.count("\n") == 1 and not (tmp_path / "study").exists()


def test_the_variance_of_colours_is_that_of_their_mean():
    images, labels = patterns.draw(4, 12, COLOUR)
    images[:, :4] = 0
    grey = images.mean(axis=3)
    found = variance.measure(images, labels)
    np.testing.assert_allclose(found, variance.measure(grey, labels))
    assert (found["center_row"] > 18).all()


def test_variance_counts_by_names(tmp_path, capsys):
    """Shifts are fractions of the height and of the width."""
    patterns.write_npz(tmp_path / "wide.npz", 12, 60, 12, (28, 56))
    arguments = f"variance --data={tmp_path / 'wide.npz'} --out={tmp_path / 'study'} --no-figures"
    assert study.main([*arguments.split(), "--quiet"]) == 0
    rows = list(csv.DictReader((tmp_path / "study/variance/by_class.csv").open()))
    assert [row["label"] for row in rows] == [str(i) for i in range(12)]
    for row in csv.DictReader((tmp_path / "study/variance/summary.csv").open()):
        side = {"centre, column": 56, "centre, row": 28}.get(row["of"], 1)
        assert float(row["setting"]) == pytest.approx(float(row["holds_95_%"]) / side)
