"""Reports of runs and studies with other classes, image sizes and channels than digits have."""

import base64
import io
import string

import numpy as np
import patterns
import pytest
from matplotlib.image import imread
from report_pages import HOSTILE, Page, histories, made, refused
from runs import small_layers

import minicnn.recipe
from minicnn import train
from minicnn.data.load import fingerprint
from minicnn.recipe import Recipe
from minicnn.reports import parts, webpage
from minicnn.studies import hardest
from minicnn.studies.store import FILE, Cell, Store
from minicnn.studies.tasks import TrainedNet

RECIPE = "--recipe=demo --nets=1 --epochs=2 --batch-size=16 --device=numpy --workers=1 --rotation=0"
LETTERS = patterns.LETTERS


@pytest.fixture
def run_of(tmp_path, monkeypatch):
    """run_of(classes, shape): the folder of a run of a small network on an .npz."""
    monkeypatch.setattr(minicnn.recipe, "mnist_layers", small_layers)

    def run_of(classes, shape):
        patterns.write_npz(tmp_path / "data.npz", classes, 5 * classes, 2 * classes, shape)
        folder = tmp_path / "run"
        paths = f"--data={tmp_path / 'data.npz'}", f"--out={folder}"
        assert train.main([*RECIPE.split(), *paths, "--quiet", "--no-figures"]) == 0
        return folder

    return run_of


def answers(folder):
    """The predicted classes of a run's test images, by their names."""
    return [line.split(",")[1] for line in (folder / "submission.csv").read_text().split()[1:]]


def test_the_matrix_of_26_classes(run_of, capsys):
    folder = run_of(26, (28, 28))
    capsys.readouterr()
    page, told = made(capsys, folder)
    assert told == ""
    rows = page.table("Predictions of the 52 test images")
    names = [str(i) for i in range(26)]
    assert [row[0] for row in rows[1:]] == names
    counts = np.zeros((26, 26), int)
    truth = patterns.draw_parts(26, 130, 52)[3]
    np.add.at(counts, (truth, [int(name) for name in answers(folder)]), 1)
    assert [[int(text) for text in row[1:27]] for row in rows[1:]] == counts.tolist()
    assert "digit" not in page.words
    assert "What do you see?" in page.words


def test_pictures_of_a_quiz_are_in_colour(run_of, capsys):
    page, _ = made(capsys, run_of(10, (32, 40, 3)))
    pictures = [imread(io.BytesIO(png)) for png in page.images]
    pictures = [np.rint(255 * p[..., :3]) for p in pictures if p.shape[:2] == (32, 40)]
    tested = patterns.draw_parts(10, 50, 20, (32, 40, 3))[2]
    assert len(pictures) == 20
    assert all(any(np.array_equal(p, image) for image in tested) for p in pictures)
    assert "input shape32, 40, 3" in page.words


def test_many_classes_have_tables_of_confusions_in_place_of_a_matrix():
    names = [f"class {i}" for i in range(100)]
    counts = np.diag(np.arange(100))
    counts[40, 3], counts[7, 90], counts[99, 98] = 10, 20, 1
    page = Page(webpage.document("x", parts.confusion("All images.", counts, names)))
    assert page.table("All images. The 3 most frequent confusions.") == [
        ["class 7", "class 90", "20", "74.07 %"],
        ["class 40", "class 3", "10", "20.00 %"],
        ["class 99", "class 98", "1", "1.00 %"],
    ]
    rows = page.table("The 30 classes with the lowest accuracy.")
    assert rows[:3] == [
        ["class 7", "7 of 27", "25.93 %"],
        ["class 40", "40 of 50", "80.00 %"],
        ["class 99", "99 of 100", "99.00 %"],
    ]
    assert len(rows) == 30 and "class 0" not in {row[0] for row in rows}  # it has no image
    most = [f"class {i}" for i in range(62)]
    page = Page(webpage.document("x", parts.confusion("All.", counts[:62, :62], most)))
    assert len(page.table("All.")) == 63


def test_names_are_text_whatever_they_hold():
    names = [HOSTILE, "b", "\u202ereversed"]
    counts = np.array([[1, 2, 0], [0, 3, 1], [5, 0, 0]])
    probabilities = np.random.default_rng(0).dirichlet([1, 1, 1], (2, 9))
    images, labels = patterns.draw(3, 9)
    table = hardest.rank(probabilities, labels, names)
    html = parts.confusion("A caption.", counts, names) + webpage.quiz(images, table, names)
    page = Page(webpage.document("x", html))  # it refuses scripts and images from elsewhere
    assert page.table("A caption.")[1][0] == HOSTILE
    assert HOSTILE in {row[1] for row in page.table("The ensemble has ")}
    assert "\u202e" not in html


# ---- studies -------------------------------------------------------------------------------------


def study(folder, names, source, seed=0, shape=(28, 28)):
    """A finished study "hardest" of two nets, with made-up probabilities of 40 test images."""
    folder.mkdir()
    x, y, x_test, y_test = patterns.draw_parts(len(names), 80, 40, shape)
    np.savez(source, x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    about = {"input_shape": [*shape, 1][:3], "classes": list(names)}
    settings = {
        **{"source": str(source), "train_images": 80, "test_images": 40, **about},
        **{"data": fingerprint(x, y), "test_data": fingerprint(x_test, y_test)},
    }
    cell = Cell("seed", Recipe(nets=2, epochs=2, validation_fraction=0.0, **about), 1)
    dice, made_by = np.random.default_rng(3), {"device": "numpy"}
    probabilities = dice.dirichlet(np.ones(len(names)), (2, 40)).astype(np.float32)
    nets = [
        TrainedNet(net, histories(net), None, p, made_by)
        for net, p in zip((1, 2), probabilities, strict=True)
    ]
    with Store(folder / FILE) as store:
        store.claim("hardest", seed, settings, y_test, [cell])
        store.add("hardest", seed, cell, nets, y_test)
    return probabilities, y_test


@pytest.mark.parametrize("count", [12, 300])
def test_a_study_of_other_classes(tmp_path, capsys, count):
    """Of more than 256 classes, labels take two bytes."""
    names = [str(i) for i in range(count)]
    source = tmp_path / "data.npz"
    probabilities, labels = study(tmp_path / "study", names, source)
    with Store(tmp_path / "study" / FILE, create=False) as store:
        results = store.results("hardest", 0)
        assert np.array_equal(results.labels, labels)
        assert np.array_equal(results.probabilities("seed", 1), probabilities)
        assert results.classes == tuple(names)
        table = hardest.findings(results).tables["hardest"].data
    vote = probabilities.astype(np.float64).sum(axis=0).argmax(axis=1)
    for row in table.itertuples():
        assert row.label == names[labels[row.image - 1]]
        assert row.predicted == names[vote[row.image - 1]]


def test_the_report_of_a_study_shows_names(tmp_path, capsys):
    study(tmp_path / "study", [*string.digits, "10", "11"], tmp_path / "data.npz")
    page, told = made(capsys, tmp_path / "study")
    assert told == ""
    assert len(page.table("Predictions of the 40 test images by the ensemble")) == 13
    assert len(page.quiz()) == 40


def test_a_study_whose_labels_are_none_of_its_classes_is_refused(tmp_path, capsys):
    study(tmp_path / "study", list(string.ascii_lowercase[:12]), tmp_path / "data.npz")
    with Store(tmp_path / "study" / FILE) as store:
        store._connection.execute("UPDATE study SET labels = ?", (bytes([12]) * 40,))
    assert "labels above 11, expected 0 to 11" in refused(capsys, tmp_path / "study")


def test_quiz_pictures_are_png_of_the_same_pixels():
    for shape in ((5, 7), (5, 7, 3), (5, 7, 2)):
        image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        found = np.rint(255 * imread(io.BytesIO(webpage._png(image))))
        if shape[2:] == (3,):
            assert np.array_equal(found[..., :3], image)
            continue
        grey = image if len(shape) == 2 else image.mean(axis=2).astype(np.uint8)
        assert np.array_equal(found if found.ndim == 2 else found[..., 0], 255 - grey)
    assert base64.b64encode(webpage._png(image)).startswith(b"iVBOR")
