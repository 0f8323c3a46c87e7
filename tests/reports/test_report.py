"""The pages of minicnn.report agree with the files."""

import json
import shutil
import sqlite3
from argparse import Namespace

import numpy as np
import pandas as pd
import pytest
from digit_files import csv_bytes, csv_rows
from report_pages import (
    HOSTILE,
    TEST,
    TEST_LABELS,
    TRAIN,
    TRAIN_LABELS,
    Page,
    edit,
    histories,
    ink,
    made,
    one_cell,
    put,
    trained,
)
from runs import TINY, command
from study_oracle import Oracle

from minicnn import drawing, load_model, report, train
from minicnn.drawpage import document
from minicnn.recipe import Recipe
from minicnn.reports import parts, study, webpage
from minicnn.studies import STUDIES, hardest, variance
from minicnn.studies.store import FILE, Cell, Store

# ---- runs ----------------------------------------------------------------------------------------


def test_a_run(capsys, folder, tmp_path):
    shutil.rmtree(folder / "figures", ignore_errors=True)
    page, told = made(capsys, folder)
    assert told == ""
    labels = TEST_LABELS[:40]
    lines = (folder / "submission.csv").read_text().split()[1:]
    guesses = np.array([int(line.split(",")[1]) for line in lines])
    right = sum(int(guess == label) for guess, label in zip(guesses, labels, strict=True))
    assert (
        f"The ensemble of 2 predicts {100 * right / 40:.2f} % of 40 test images correctly"
        in page.words
    )
    rows = page.table("Accuracies.")
    summary = json.loads((folder / "summary.json").read_text())
    assert [row[3] for row in rows] == [
        *(f"{100 * net['test_accuracy']:.2f} %" for net in summary["nets"]),
        f"{100 * right / 40:.2f} %",
    ]

    counts = np.zeros((10, 10), int)
    np.add.at(counts, (labels, guesses), 1)
    assert np.array_equal(page.confusion(), counts)

    answers = page.answers()
    assert sorted(answer[0] for answer in answers) == list(range(1, 41))
    for (number, label, guess, _, _), picture in zip(answers, page.quiz(), strict=True):
        assert (label, guess) == (labels[number - 1], guesses[number - 1])
        assert np.array_equal(picture, TEST[number - 1])
    losses = [float(answer[4]) for answer in answers]
    assert losses == sorted(losses, reverse=True)
    for words in ("digits", "batch size", "learning rate", "float32", "numpy 2", "seed"):
        assert words in page.words


def test_the_figures_of_a_run(capsys, folder):
    (folder / "figures").mkdir(exist_ok=True)
    drawing.save(folder / "figures/predictions.png", lambda: drawing.page(300, "x", "y"))
    (folder / "figures/training_images.png").write_bytes(b"<script>")
    page, told = made(capsys, folder)
    assert "training_images.png: not a PNG of a run; left out" in told
    assert (folder / "figures/predictions.png").read_bytes() in page.images


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"source": "/nowhere"}, "/nowhere: No such file or directory; expected a folder with"),
        ({"test_data": "0" * 64}, "digits: has other test images or labels than"),
        ({"test_images": 41}, "digits: has other test images or labels than"),
        ({"data": "0" * 64}, "checkpoint.npz: belongs to another run than config.json"),
    ],
)
def test_without_its_data_a_run_still_has_a_page(capsys, folder, change, named):
    edit(folder / "config.json", **change)
    page, told = made(capsys, folder)
    assert told.startswith("minicnn.report: warning: no confusion matrix and no quiz: ")
    assert named in told and told.count("\n") == 1
    assert "No confusion matrix and no quiz: " in page.words and named in page.words
    assert page.quiz() == [] and len(page.tables) == 1 and len(page.images) == 2


def test_data_are_where_the_argument_says(capsys, folder):
    edit(folder / "config.json", source="/nowhere")
    page, told = made(capsys, folder, "--data=digits")
    assert told == "" and len(page.quiz()) == 40


def test_without_a_checkpoint(capsys, folder):
    (folder / "checkpoint.npz").unlink()
    page, told = made(capsys, folder)
    assert "checkpoint.npz: no such file" in told and page.quiz() == []


def test_a_run_whose_test_images_have_no_labels(capsys, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.csv").write_bytes(csv_bytes(csv_rows(TRAIN[:40], TRAIN_LABELS[:40])))
    (data / "test.csv").write_bytes(csv_bytes(csv_rows(TEST[:60])))
    folder = tmp_path / "run"
    arguments = [f"--data={data}", "--recipe=demo", "--nets=1", "--epochs=1", f"--out={folder}"]
    assert train.main([*TINY, "--batch-size=16", "--test-limit=60", *arguments]) == 0
    capsys.readouterr()
    page, told = made(capsys, folder)
    assert told == ""
    assert "there is no test accuracy" in page.words and "predicted as" not in page.words
    rows = page.table("The ensemble's guesses")
    entropies = [float(row[3]) for row in rows]
    assert len(rows) == 50 and entropies == sorted(entropies, reverse=True)
    guesses = (folder / "submission.csv").read_text().split()[1:]
    for row, picture in zip(rows, page.quiz(), strict=True):
        assert guesses[int(row[4]) - 1] == f"{row[4]},{row[1]}"
        assert np.array_equal(picture, TEST[int(row[4]) - 1])


def test_a_page_to_draw_on(capsys, folder):
    made(capsys, folder, "--draw")
    assert (
        '<p><a href="draw.html">A page to draw on</a></p>' in (folder / "report.html").read_text()
    )
    model = load_model(folder / "checkpoint.npz", device="numpy")
    assert (folder / "draw.html").read_text() == document(model)


def test_a_page_to_draw_on_that_cannot_be_written(capsys, folder, tmp_path):
    for arguments, named in (
        ([folder, f"--out={tmp_path / 'draw.html'}"], "argument --out: got"),
        ([put(tmp_path / "study", "hardest", one_cell())], "argument --draw: "),
    ):
        assert report.main([*map(str, arguments), "--draw"]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"minicnn.report: error: {named}") and error.count("\n") == 1
        assert not (tmp_path / "draw.html").exists()


# ---- studies -------------------------------------------------------------------------------------


def test_the_hardest_images(capsys, tmp_path):
    folder = put(tmp_path / "study", "hardest", one_cell())
    page, told = made(capsys, folder)
    assert told == ""
    oracle = Oracle(folder / FILE, "hardest")
    mean = oracle.sums["seed"] / 3
    losses = [-np.log(row[label]) for row, label in zip(mean, oracle.labels, strict=True)]
    order = sorted(range(120), key=lambda i: -losses[i])[:50]
    assert page.answers() == [
        (
            i + 1,
            oracle.labels[i],
            mean[i].argmax(),
            f"{100 * mean[i].max():.1f} %",
            f"{losses[i]:.3f}",
        )
        for i in order
    ]
    for asked in (page.quiz(), [ink(png) for png in page.hidden_images]):
        assert np.array_equal(asked, TEST[order])
    right = sum(mean[i].argmax() == oracle.labels[i] for i in order)
    assert f"The ensemble has {right} of these 50 right" in page.hidden
    assert "wrong" not in page.words.rpartition("Quiz")[2]


def test_as_a_process_with_the_page_elsewhere(tmp_path):
    folder, out = put(tmp_path / "study", "trials", one_cell()), tmp_path / "page.html"
    done = command("minicnn.report", folder, "--out", out, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"Report: {out}\n", "")
    assert "Trials" in Page(out.read_text()).words
    assert [path.name for path in folder.iterdir()] == [FILE]


def test_trials(capsys, tmp_path):
    folder = put(tmp_path / "study", "trials", one_cell(trials=4))
    page, _ = made(capsys, folder)
    oracle = Oracle(folder / FILE, "trials")
    rows = page.table("Test accuracies of single nets and of ensembles.")
    shown = [f"{100 * accuracy:.2f} %" for accuracy in oracle.accuracy["seed"]]
    assert [text for row in rows for text in row[1:4]] == shown
    assert [row[4] for row in rows] == [f"{100 * a:.2f} %" for a in oracle.whole("seed")]
    counts = np.zeros((10, 10), int)
    with sqlite3.connect(folder / FILE) as connection:
        blobs = connection.execute("SELECT trial, probabilities FROM net").fetchall()
    for trial in range(1, 5):
        votes = sum(np.frombuffer(b, "<f4").astype(float) for t, b in blobs if t == trial)
        np.add.at(counts, (oracle.labels, votes.reshape(-1, 10).argmax(axis=1)), 1)
    assert counts.sum() == 480 and np.array_equal(page.confusion(), counts)
    assert "4 of 4" in page.words


def test_learning_curves_tell_what_the_last_validation_is_of():
    rows = histories(1) + histories(2)
    told = "The last validation is that of the averaged weights."
    for validation, averages in ((0.5, True), (0.5, False), (np.nan, True)):
        measured = dict.fromkeys(("validation_loss", "validation_accuracy"), validation)
        html = parts.curves(pd.DataFrame(rows).assign(**measured), averages=averages)
        assert (told in html) == (averages and validation == 0.5)


def test_the_curves_of_a_run_know_its_recipe(capsys, folder):
    fields = json.loads((folder / "config.json").read_text())["recipe"]
    for count in (0, 1):
        edit(folder / "config.json", recipe={**fields, "average_epochs": count})
        page, _ = made(capsys, folder)
        assert ("the averaged weights" in page.words) == (count == 1)


def test_the_curves_of_a_study_know_its_recipe(monkeypatch, capsys, tmp_path):
    asked, plain = [], study.curves
    monkeypatch.setattr(
        study, "curves", lambda *args, averages: asked.append(averages) or plain(*args, averages)
    )
    for count in (0, 1):
        cell = Cell("seed", Recipe(nets=1, epochs=2, average_epochs=count), 1)
        made(capsys, put(tmp_path / str(count), "trials", [cell]))
    assert asked == [False, True]


def test_every_study_at_once(capsys, tmp_path):
    folder = tmp_path / "study"
    recipe = Recipe(nets=2, epochs=2, validation_fraction=0.0)
    asked = Namespace(
        trials=2, rotation=[0, 10], shift=[0], recipe="seed", candidate=["a: decay=1", "b:"]
    )
    for name, module in STUDIES.items():
        if module is variance:
            put(folder, name, [])
            with Store(folder / FILE) as store:
                measures = variance.measure(TRAIN[:200], TRAIN_LABELS[:200])
                store.add_images(name, 0, measures)
        else:
            put(folder, name, module.cells(recipe, asked), seed=7 if module is hardest else 0)
    page, told = made(capsys, folder)
    assert told == ""
    for module in STUDIES.values():
        with Store(folder / FILE, create=False) as store:
            seed = 7 if module is hardest else 0
            found = module.findings(store.results(module.NAME, seed))
        assert found.title in page.words
        for line in found.lines:
            assert line in page.words
        for picture in found.pictures.values():
            assert picture.caption in page.words
        if module is not hardest:
            for table in found.tables.values():
                assert len(page.table(table.caption)) == len(table.data)
    assert "The hardest images, seed 7" in page.words
    assert len(page.quiz()) == 50


def test_mixed_devices_and_nets_that_diverged(capsys, tmp_path):
    def nets(net, labels):
        return trained(net, labels, (1, 7) if net == 2 else None, "cpu" if net < 3 else "cuda")

    folder = put(tmp_path / "study", "trials", one_cell(trials=2), nets=nets)
    page, _ = made(capsys, folder)
    assert "cuda (4 nets), cpu (2 nets)" in page.words
    assert "rounding may differ" in page.words
    assert page.table("Diverged nets") == [["seed", "1", "2", "1", "7"]]
    rows = page.table("Test accuracies of single nets and of ensembles.")
    assert rows[0][2] == "diverged" and page.confusion().sum() == 240


def test_a_quiz_without_labels(capsys, tmp_path):
    (tmp_path / "test.csv").write_bytes(csv_bytes(csv_rows(TEST[:60])))
    arguments = {"count": 60, "labelled": False, "source": str(tmp_path)}
    folder = put(tmp_path / "study", "hardest", one_cell(), **arguments)
    page, told = made(capsys, folder)
    assert told == "" and "predicted as" not in page.words
    assert len(page.table("The ensemble's guesses")) == len(page.quiz()) == 50


def test_a_study_whose_images_are_gone(capsys, tmp_path):
    folder = put(tmp_path / "study", "hardest", one_cell(), source="/nowhere")
    page, told = made(capsys, folder)
    assert told.startswith("minicnn.report: warning: hardest: no quiz: /nowhere: No such file")
    assert "No quiz: /nowhere" in page.words and page.quiz() == []
    assert len(page.table("The hardest images")) == 50


def test_a_study_of_another_version(capsys, tmp_path):
    folder = put(tmp_path / "study", "trials", one_cell())
    with sqlite3.connect(folder / FILE) as connection:
        connection.execute("INSERT INTO study VALUES (?, 0, '{}', NULL)", (HOSTILE,))
    page, told = made(capsys, folder)
    assert "which minicnn" in told and "Trials" in page.words


def test_a_quiz_page_of_its_own():
    probabilities = np.stack([trained(n, TEST_LABELS[:80]).probabilities for n in (1, 2)])
    table = hardest.rank(probabilities, TEST_LABELS[:80])
    page = Page(webpage.quiz_page(TEST[:80], table))
    assert [answer[0] for answer in page.answers()] == list(table["image"])
    assert np.array_equal(page.quiz(), TEST[table["image"] - 1])
