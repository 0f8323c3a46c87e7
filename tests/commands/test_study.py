"""Each study of minicnn.study with --quick: its tables and figures agree with its SQLite file."""

import csv
import re
import sqlite3

import levels
import numpy as np
import pytest
from matplotlib.image import imread
from runs import command
from scipy import stats
from study_oracle import Oracle, deviation, mean, student

from minicnn import load_data
from minicnn.studies import STUDIES
from minicnn.studies.store import FILE, Store

LIMIT = [] if levels.in_full else ["--limit=640"]  # training images


def quick(name, folder):
    """Run a study with --quick: (its process, the Oracle of its file)."""
    done = command("minicnn.study", name, "--quick", *LIMIT, "--out", folder, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    return done, Oracle(folder / FILE, name)


def table(folder, study, name):
    """The rows of a table: numbers as floats, empty fields as None."""
    with open(folder / study / f"{name}.csv") as file:
        return [
            {key: value_of(text) for key, value in row.items() for text in [value]}
            for row in csv.DictReader(file)
        ]


def value_of(text):
    if text == "":
        return None
    try:
        return float(text)
    except ValueError:
        return text


def pictures(folder, study):
    """The study's Figures, built from its file; asserts that each is also a PNG in the folder."""
    images = (load_data("digits")[1][0],) if study == "hardest" else ()
    with Store(folder / FILE, create=False) as store:
        found = STUDIES[study].findings(store.results(study, 0), *images)
        built = {name: picture.build() for name, picture in found.pictures.items()}
    for name, figure in built.items():
        pixels = imread(folder / study / f"{name}.png")
        assert pixels.shape[1] == round(figure.get_size_inches()[0] * figure.dpi)
        assert pixels[..., :3].std() > 0.05
    return built


def close(found, expected):
    assert found == pytest.approx(expected, rel=1e-8, abs=1e-12)


def test_trials(tmp_path):
    folder = tmp_path / "study"
    done, oracle = quick("trials", folder)
    images = f"{9 * 2 * (1920 if levels.in_full else 640):,}"
    assert f"9 nets to train, on {images} images" in done.stderr
    assert re.search(r"this takes about 0:\d\d:\d\d, in \d process", done.stderr)

    rows = table(folder, "trials", "summary")
    for row, values in zip(rows, (oracle.accuracy["seed"], oracle.whole("seed")), strict=False):
        close(row["n"], len(values))
        close([row["mean"], row["sd"]], [mean(values), deviation(values)])
        close([row["min"], row["max"]], [min(values), max(values)])
        for name, statistic in (("mean", np.mean), ("sd", lambda v, axis: np.std(v, axis, ddof=1))):
            found = row[f"{name}_low"], row[f"{name}_high"]
            low, high = stats.bootstrap(
                (values,), statistic, method="percentile", n_resamples=20_000, random_state=0
            ).confidence_interval
            assert found == pytest.approx((low, high), abs=0.15 * (high - low))
    assert [len(oracle.accuracy["seed"]), len(oracle.whole("seed"))] == [9, 3]
    assert f"9 single nets: mean {100 * mean(oracle.accuracy['seed']):.3f} %" in done.stdout
    theirs = [(row["mean"], row["sd"], row["max"]) for row in rows[2:]]
    assert theirs == [(0.99641, 0.00047, 0.9981), (0.99745, 0.0002, 0.9979)]

    by_size = table(folder, "trials", "by_size")
    for row, values in zip(by_size, np.transpose(oracle.ensembles["seed"]), strict=True):
        close([row["mean"], row["low"], row["high"]], [mean(values), *student(values)])
        close([row["n"], row["min"], row["max"]], [3, min(values), max(values)])

    figures = pictures(folder, "trials")
    (axes,) = figures["by_size"].axes
    means = [100 * mean(values) for values in np.transpose(oracle.ensembles["seed"])]
    close(list(axes.lines[0].get_ydata()), means)
    (axes,) = figures["histogram"].axes
    for bars, values in zip(
        axes.containers, (oracle.accuracy["seed"], oracle.whole("seed")), strict=True
    ):
        close(sum(bar.get_height() for bar in bars), 1)
        for bar in bars:
            left, right = bar.get_x(), bar.get_x() + bar.get_width()
            inside = sum(left - 1e-9 <= 100 * v < right - 1e-9 for v in values)
            close(bar.get_height(), inside / len(values))


@pytest.mark.full(beside="test_trials")
def test_grid(tmp_path):
    folder = tmp_path / "study"
    _, oracle = quick("grid", folder)
    assert len(oracle.recipes) == 4
    heat = pictures(folder, "grid")
    for name, of in (("ensembles", oracle.whole), ("single_nets", oracle.accuracy.get)):
        rows = table(folder, "grid", name)
        by_place = {(row["rotation"], row["shift"]): row for row in rows}
        assert len(by_place) == len(rows) == 4
        texts = [text.get_text() for text in heat[name].axes[0].texts]
        shown = [text.split("\n±") for text in texts if "±" in text]
        for cell, recipe in oracle.recipes.items():
            assert recipe["zoom"] == recipe["rotation"] / 100
            assert recipe["height_shift"] == recipe["width_shift"]
            row = by_place[recipe["rotation"], recipe["width_shift"]]
            values = of(cell)
            low, high = student(values)
            close([row["n"], row["mean"]], [len(values), mean(values)])
            close([row["low"], row["high"]], [low, high])
            assert any(
                abs(float(text[0]) - 100 * mean(values)) < 0.0051
                and abs(float(text[1]) - 50 * (high - low)) < 0.51
                for text in shown
            )
        # The notebook's values
        theirs = {"ensembles": (99.70, 99.75, 99.73), "single_nets": (99.57, 99.65, 99.62)}[name]
        places = (0, 0), (15, 0.1), (0, 0.1)
        close([by_place[place]["notebook"] for place in places], [v / 100 for v in theirs])


@pytest.mark.full(beside="test_each_network_can_be_trained")
def test_ablation(tmp_path):
    folder = tmp_path / "study"
    done, oracle = quick("ablation", folder)
    rows = table(folder, "ablation", "steps")
    samples = [oracle.accuracy[cell] for cell in oracle.recipes]
    assert [len(values) for values in samples] == [2] * 8 + [6]
    samples.append(oracle.whole("augmentation"))
    before = None
    for row, values in zip(rows, samples, strict=True):
        close([row["n"], row["mean"]], [len(values), mean(values)])
        if deviation(values):
            close([row["low"], row["high"]], student(values))
        if row is rows[-1]:  # the ensemble, compared with its nets
            nets = oracle.accuracy["augmentation"]
            gains = [v - mean(nets[3 * i : 3 * i + 3]) for i, v in enumerate(values)]
            expected = stats.t.interval(0.95, 1, mean(gains), stats.sem(gains))
            close([row["gain"], row["gain_low"], row["gain_high"]], [mean(gains), *expected])
        elif before is not None:
            close(row["gain"], mean(values) - mean(before))
            test = stats.ttest_ind(values, before, equal_var=False)
            low, high = test.confidence_interval(0.95)
            close([row["gain_low"], row["gain_high"]], [max(low, -1), min(high, 1)])
        before = values
    # LeNet-5's weights, counted by hand: 5x5 kernels of 6 and 16 maps, 120, 84 and 10 units
    lenet = 26 * 6 + (150 + 1) * 16 + (256 + 1) * 120 + 121 * 84 + 85 * 10
    assert [row["weights"] for row in rows[:1] + rows[7:]] == [lenet, 327_242, 327_242, 3 * 327_242]
    line = pictures(folder, "ablation")["steps"].axes[0].lines[0]
    close(list(line.get_xdata()), [100 * (1 - mean(values)) for values in samples])
    assert f"LeNet-5: sigmoid, max pooling: {100 * mean(samples[0]):.3f} %" in done.stdout


@pytest.mark.full(beside="test_trials")
def test_hardest(tmp_path):
    folder = tmp_path / "study"
    _, oracle = quick("hardest", folder)
    average = oracle.sums["seed"] / 3
    losses = [-np.log(max(row[y], 1e-37)) for row, y in zip(average, oracle.labels, strict=True)]
    order = sorted(range(len(losses)), key=lambda i: -losses[i])[:50]
    rows = table(folder, "hardest", "hardest")
    assert [row["image"] for row in rows] == [i + 1 for i in order]
    close([row["loss"] for row in rows], [losses[i] for i in order])
    assert [row["label"] for row in rows] == [oracle.labels[i] for i in order]
    assert [row["predicted"] for row in rows] == [average[i].argmax() for i in order]
    close([row["probability"] for row in rows], [average[i].max() for i in order])
    page = (folder / "hardest" / "quiz.html").read_text()
    quiz, answers = page.split("<details")
    assert quiz.count('<img class="digit"') == answers.count('<img class="digit"') == 50
    assert "http:" not in page
    assert "https:" not in page
    wrong = sum(average[i].argmax() != oracle.labels[i] for i in order)
    assert f"The ensemble has {50 - wrong} of these 50 right" in answers
    figure = pictures(folder, "hardest")["hardest"]
    images = load_data("digits")[1][0]
    for axes, i in zip(figure.axes, order, strict=True):
        assert axes.get_title() == f"{i + 1:,}"
        assert np.array_equal(axes.images[0].get_array(), images[i])


def test_recipes(tmp_path):
    """Two candidates, then a third: the nets that are there are not trained again."""
    folder = tmp_path / "study"
    options = "--trials=1", "--limit=128", "--epochs=1", "--hold-out=300", "--out", folder
    pair = "--candidate=a: learning_rate=0.002", "--candidate=b: dropout=0"
    done = command("minicnn.study", "recipes", "--quick", *pair, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "4 nets to train, on 512 images" in done.stderr
    third = (*pair, "--candidate=c: decay=0.5")
    done = command("minicnn.study", "recipes", "--quick", *third, *options, cwd=tmp_path)
    assert "2 nets to train, on 256 images in total; 4 nets are already" in done.stderr
    oracle = Oracle(folder / FILE, "recipes")
    assert np.array_equal(oracle.labels, load_data("digits")[0][1][-300:])
    base = oracle.accuracy["a"]
    rows = table(folder, "recipes", "single_nets")
    assert [row["candidate"] for row in rows] == ["a", "b", "c"]
    for row in rows[1:]:
        gains = np.subtract(oracle.accuracy[row["candidate"]], base)
        close([row["n"], row["images"], row["gain"]], [2, 128, mean(gains)])
        half = stats.t.ppf(0.975, 1) * np.std(gains, ddof=1) / np.sqrt(2)
        close([row["gain_low"], row["gain_high"]], [mean(gains) - half, mean(gains) + half])
    for name, figure in pictures(folder, "recipes").items():
        (axes,) = figure.axes
        shown = [text.get_text() for text in axes.get_yticklabels()]
        gains = [row["gain"] for row in table(folder, "recipes", name)]
        close(list(axes.lines[1].get_xdata()), [100 * gain for gain in gains[1:]])
        assert shown == ["b", "c"]


def test_variance(tmp_path):
    folder = tmp_path / "study"
    done = command("minicnn.study", "variance", "--quick", "--out", folder, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    connection = sqlite3.connect(folder / FILE)
    rows = connection.execute(
        "SELECT label, center_column, center_row, angle, slant, size FROM image ORDER BY image"
    ).fetchall()
    connection.close()
    x, y = load_data("digits")[0]
    assert len(rows) == len(x) == 6000
    for i in range(0, 6000, 397):
        close(rows[i], measured_by_hand(x[i], y[i]))

    found = {row["of"]: row for row in table(folder, "variance", "summary")}
    labels, column, row, angle, slant, size = np.transpose(rows)
    for name, values in (("centre, column", column), ("centre, row", row)):
        middle = mean(values)
        away = sorted(abs(v - middle) for v in values)
        close(found[name]["mean"], middle)
        close(found[name]["sd"], np.std(values))
        low, high = away[5690] - 1e-6, away[5710] + 1e-6  # the file has ten digits
        assert low <= found[name]["holds_95_%"] <= high
        close(found[name]["setting"], found[name]["holds_95_%"] / 28)
    for name, values in (("slant", slant), ("size", size)):
        away = np.empty(6000)
        for label in range(10):
            of = values[labels == label]
            away[labels == label] = of - mean(of) if name == "slant" else of / mean(of) - 1
        close(found[name]["sd"], np.sqrt(mean(away**2)))
        assert np.mean(abs(away) <= found[name]["holds_95_%"]) == pytest.approx(0.95, abs=1e-3)
    away = []
    for label in range(10):
        of = angle[labels == label]
        turns = 2 * np.pi * of / 180
        middle = np.degrees(np.arctan2(np.sin(turns).sum(), np.cos(turns).sum())) / 2
        away += [(v - middle + 90) % 180 - 90 for v in of]
    close(found["angle"]["sd"], np.sqrt(mean(np.square(away)) - mean(away) ** 2))
    assert np.mean(np.abs(away) <= found["angle"]["holds_95_%"]) == pytest.approx(0.95, abs=1e-3)
    for name, figure in pictures(folder, "variance").items():
        for axes in figure.axes:
            close(sum(bar.get_height() for bar in axes.patches), 1)
            assert "95 % within" in axes.get_title(loc="left"), name


def measured_by_hand(image, label):
    """(label, column, row, angle, slant, size) by nested loops."""
    pixels = [
        (c + 1, r + 1, float(image[r, c])) for r in range(28) for c in range(28) if image[r, c]
    ]
    columns, rows = [c for c, _, _ in pixels], [r for _, r, _ in pixels]
    mass = sum(w for _, _, w in pixels)
    x, y = sum(w * c for c, _, w in pixels) / mass, sum(w * r for _, r, w in pixels) / mass
    xx = sum(w * (c - x) ** 2 for c, _, w in pixels) / mass
    yy = sum(w * (r - y) ** 2 for _, r, w in pixels) / mass
    xy = sum(w * (c - x) * (r - y) for c, r, w in pixels) / mass
    # The axis is the first principal component.
    values, vectors = np.linalg.eigh([[xx, xy], [xy, yy]])
    along = vectors[:, 1]
    angle = np.degrees(np.arctan2(along[1], along[0]))
    angle = (angle + 90) % 180 - 90
    slant = np.degrees(np.arctan(xy / yy))
    center = (min(columns) + max(columns)) / 2, (min(rows) + max(rows)) / 2
    return label, *center, angle, slant, np.sqrt(xx + yy)


def test_a_bad_argument_is_named_in_a_short_line(tmp_path):
    done = command("minicnn.study", "trials", "--epochs=0", "--out", tmp_path / "study")
    assert done.returncode == 2 and done.stdout == ""
    told = "argument --epochs: got 0, expected a positive integer"
    assert done.stderr == f"minicnn.study trials: error: {told}\n"
