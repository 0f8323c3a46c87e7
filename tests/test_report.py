"""minicnn.report: what its pages say is what the files hold, and what these hold cannot hurt it."""

import base64
import html.parser
import io
import json
import shutil
import sqlite3
from argparse import Namespace

import numpy as np
import pytest
from matplotlib.image import imread
from runs import TINY, command
from study_oracle import Oracle
from test_data import csv_bytes, csv_rows

from minicnn import drawing, files, load_data, predict, report, train
from minicnn.data.load import fingerprint
from minicnn.recipe import Recipe
from minicnn.reports import webpage
from minicnn.studies import STUDIES, hardest, variance
from minicnn.studies.store import FILE, Cell, Store
from minicnn.studies.tasks import TrainedNet
from minicnn.training.checkpoint import HISTORY_COLUMNS
from minicnn.training.workers import Interrupted

HOSTILE = """<script>alert("x")</script> & 'q' <img src=http://x.example/>"""
(TRAIN, TRAIN_LABELS), (TEST, TEST_LABELS) = load_data("digits")


class Page(html.parser.HTMLParser):
    """A page: its images, tables (rows of texts) and text, each outside and inside of a fold.

    Raises AssertionError where tags do not match, or anything is loaded from elsewhere.
    """

    VOID = "meta", "img", "input"

    def __init__(self, text):
        super().__init__()
        self.open, self.words, self.hidden = [], "", ""
        self.images, self.hidden_images, self.captions, self.tables = [], [], [], []
        self.policy = None
        self.feed(text)
        self.close()
        assert self.open == []
        assert self.policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        assert tag not in ("script", "link", "iframe", "object", "base", "form")
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("href", "#").startswith("#")
        assert attributes.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
        assert "url(" not in attributes.get("style", "")
        if attributes.get("http-equiv") == "Content-Security-Policy":
            self.policy = attributes["content"]
        if tag == "html":
            assert attributes["lang"] == "en"
        if tag == "img":
            assert attributes["alt"]
            data = base64.b64decode(attributes["src"].partition(",")[2], validate=True)
            (self.hidden_images if "details" in self.open else self.images).append(data)
        if tag == "table":
            self.tables.append([])
            self.captions.append("")
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("th", "td"):
            self.tables[-1][-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            assert "url(" not in data and "@import" not in data
        elif "details" in self.open:
            self.hidden += data
        else:
            self.words += data
        if "caption" in self.open:
            self.captions[-1] += data
        elif self.open and self.open[-1] in ("th", "td"):
            self.tables[-1][-1][-1] += data

    def table(self, caption):
        """The rows of the only table whose caption begins so, without its head."""
        (found,) = [
            table
            for words, table in zip(self.captions, self.tables, strict=True)
            if words.startswith(caption)
        ]
        return found[1:]

    def confusion(self):
        rows = self.table("What ")[1:]
        return np.array([[int(text.replace(",", "")) for text in row[1:11]] for row in rows])

    def quiz(self):
        """The pictures asked for, as arrays of ink."""
        return [ink(png) for png in self.images if len(png) < 1500]

    def answers(self):
        """(test image, label, predicted, percent, loss) of each answer."""
        return [
            (int(row[5].replace(",", "")), int(row[1]), int(row[2][0]), row[3], row[4])
            for row in self.table("The ensemble has ")
        ]


def ink(png):
    pixels = imread(io.BytesIO(png))
    return np.rint(255 - 255 * pixels).astype(np.uint8)


def made(capsys, folder, *arguments):
    """(the Page of a folder, what the command told on stderr)."""
    status = report.main([str(folder), "--quiet", "--device=numpy", *map(str, arguments)])
    told = capsys.readouterr()
    assert status == 0, told.err
    return Page((folder / "report.html").read_text()), told.err


def refused(capsys, folder, *arguments):
    """The line with which the command refuses; it has written nothing."""
    before = everything(folder)
    try:
        status = report.main([str(folder), "--quiet", *map(str, arguments)])
    except SystemExit as stopped:
        status = stopped.code
    told = capsys.readouterr()
    assert (status, told.out, told.err.count("\n")) == (2, "", 1), told
    assert everything(folder) == before
    return told.err


def everything(folder):
    root = folder if folder.is_dir() else folder.parent
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    """More of them would take longer to start than all these predictions."""
    monkeypatch.setattr(predict, "cores", lambda: 1)


@pytest.fixture
def folder(run, tmp_path):
    """A run folder of one's own."""
    return shutil.copytree(run[0], tmp_path / "mine")


def edit(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# ---- synthetic studies ---------------------------------------------------------------------------


def histories(net, epochs=2):
    return [
        dict(zip(HISTORY_COLUMNS, (net, e, 1e-3, 1 / e, 1 - 0.3 / e, None, None, 1.0), strict=True))
        for e in range(1, epochs + 1)
    ]


def trained(net, labels, diverged=None, device="numpy"):
    """A net that is right about most of the labels."""
    random = np.random.default_rng(net)
    scores = random.exponential(size=(len(labels), 10)) + 2.5 * np.eye(10)[labels]
    probabilities = (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32)
    made_by = {"device": device, "precision": "float32", "minicnn": "0.1.0"}
    return TrainedNet(net, histories(net), diverged, None if diverged else probabilities, made_by)


def put(folder, name, cells, count=120, seed=0, labelled=True, source="digits", nets=trained):
    """Put a study of the first test images into a folder, all of its nets trained."""
    folder.mkdir(exist_ok=True)
    labels = TEST_LABELS[:count] if labelled else None
    settings = {
        "source": source,
        "train_images": len(TRAIN),
        "test_images": count,
        "data": fingerprint(TRAIN, TRAIN_LABELS),
        "test_data": fingerprint(TEST[:count], labels),
    }
    with Store(folder / FILE) as store:
        store.claim(name, seed, settings, labels, cells)
        for cell in cells:
            numbers = range(1, cell.recipe.nets * cell.trials + 1)
            made = [nets(net, TEST_LABELS[:count]) for net in numbers]
            store.add(name, seed, cell, made, labels)
    return folder


def one_cell(name="seed", nets=3, trials=1):
    return [Cell(name, Recipe(nets=nets, epochs=2, validation_fraction=0.0), trials)]


# ---- runs ----------------------------------------------------------------------------------------


def test_a_run(capsys, folder, tmp_path):
    shutil.rmtree(folder / "figures", ignore_errors=True)
    page, told = made(capsys, folder)
    assert told == ""
    labels = TEST_LABELS[:40]
    lines = (folder / "submission.csv").read_text().split()[1:]
    guesses = np.array([int(line.split(",")[1]) for line in lines])
    right = sum(int(guess == label) for guess, label in zip(guesses, labels, strict=True))
    assert f"The ensemble of 2 has {100 * right / 40:.2f} % of 40 test images right" in page.words
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
    assert "training_images.png: not a PNG of a run, and left out" in told
    assert (folder / "figures/predictions.png").read_bytes() in page.images


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"source": "/nowhere"}, "/nowhere: No such file or directory; expected a folder with"),
        ({"test_data": "0" * 64}, "digits: has other test images or labels than"),
        ({"test_images": 41}, "digits: has other test images or labels than"),
        ({"data": "0" * 64}, "checkpoint.npz: of another run than config.json"),
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
    assert "no test accuracy is" in page.words and "taken for" not in page.words
    rows = page.table("What the ensemble takes them for")
    entropies = [float(row[3]) for row in rows]
    assert len(rows) == 50 and entropies == sorted(entropies, reverse=True)
    guesses = (folder / "submission.csv").read_text().split()[1:]
    for row, picture in zip(rows, page.quiz(), strict=True):
        assert guesses[int(row[4]) - 1] == f"{row[4]},{row[1]}"
        assert np.array_equal(picture, TEST[int(row[4]) - 1])


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


def test_every_study_at_once(capsys, tmp_path):
    folder = tmp_path / "study"
    recipe = Recipe(nets=2, epochs=2, validation_fraction=0.0)
    asked = Namespace(trials=2, rotation=[0, 10], shift=[0])
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
    assert "their last bits may differ" in page.words
    assert page.table("Nets that diverged") == [["seed", "1", "2", "1", "7"]]
    rows = page.table("Test accuracies of single nets and of ensembles.")
    assert rows[0][2] == "diverged" and page.confusion().sum() == 240


def test_a_quiz_without_labels(capsys, tmp_path):
    (tmp_path / "test.csv").write_bytes(csv_bytes(csv_rows(TEST[:60])))
    arguments = {"count": 60, "labelled": False, "source": str(tmp_path)}
    folder = put(tmp_path / "study", "hardest", one_cell(), **arguments)
    page, told = made(capsys, folder)
    assert told == "" and "taken for" not in page.words
    assert len(page.table("What the ensemble takes them for")) == len(page.quiz()) == 50


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


# ---- what comes from files -----------------------------------------------------------------------


def test_hostile_texts_of_a_run(capsys, folder):
    folder = folder.rename(folder.with_name("<b>&'\"\u202e\n"))
    config = json.loads((folder / "config.json").read_text())
    config["versions"][HOSTILE] = HOSTILE + "\ud800\0"
    edit(folder / "config.json", source=HOSTILE, device=HOSTILE, versions=config["versions"])
    page, _ = made(capsys, folder)
    assert page.words.count(HOSTILE) >= 4
    assert "<b>&'\"\\u202e\\n" in page.words and "\\ud800\\x00" in page.words


def test_hostile_texts_of_a_study(capsys, tmp_path):
    cells = [*one_cell("plain"), *one_cell(HOSTILE)]
    cells[1].recipe.__dict__["rotation"] = 20.0  # so that they differ

    def nets(net, labels):
        return trained(net, labels, device=HOSTILE)

    folder = put(tmp_path / "study", "ablation", cells, source=HOSTILE, nets=nets)
    page, _ = made(capsys, folder)
    assert page.words.count(HOSTILE) >= 4 and HOSTILE in page.hidden


RUN_FAULTS = {
    "config.json": [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b" " * (1 << 24) + b"{}"],
    "summary.json": [None, b"", b"{}", b'{"nets": 5}'],
    "history.csv": [None, b"", b"net\n1\n", b"\xff" * 100],
}


@pytest.mark.parametrize(
    ("name", "content"),
    [(name, content) for name, contents in RUN_FAULTS.items() for content in contents],
    ids=lambda value: repr(value)[:20],
)
def test_a_damaged_run_is_refused_in_one_line(capsys, folder, name, content):
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    assert name in refused(capsys, folder)


@pytest.mark.parametrize(
    ("name", "values", "named"),
    [
        ("config.json", {"recipe": {"nets": 0}}, "config.json: recipe: nets: got 0, expected"),
        ("config.json", {"recipe": {"x": 0}}, "config.json: recipe: "),
        ("config.json", {"source": ["x"]}, "config.json: source: got ['x'], expected a text"),
        ("config.json", {"train_images": -1}, "config.json: train_images: got -1, expected a"),
        ("config.json", {"test_data": 1}, "config.json: test_data: got 1, expected a text"),
        ("summary.json", {"nets": [1]}, "summary.json: the file: got 1, expected an object"),
        ("summary.json", {"seconds": float("nan")}, "summary.json: seconds: got nan, expected"),
        ("summary.json", {"nets": [{"net": True}]}, "summary.json: net: got True, expected"),
        ("summary.json", {"diverged": [{}]}, "summary.json: net: got nothing, expected"),
    ],
)
def test_a_wrong_value_is_named(capsys, folder, name, values, named):
    edit(folder / name, **values)
    line = refused(capsys, folder)
    assert named in line


def test_a_history_that_says_it_twice(capsys, folder):
    text = (folder / "history.csv").read_text()
    (folder / "history.csv").write_text(text + text.splitlines()[-1] + "\n")
    assert "history.csv: history: expected one row" in refused(capsys, folder)


def test_a_run_that_is_not_finished(capsys, folder):
    (folder / "summary.json").unlink()
    assert "has no summary.json, expected a run that is finished" in refused(capsys, folder)


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("UPDATE study SET settings = '[1]'", "is damaged"),
        ("UPDATE study SET labels = x'0a'", "labels above 9"),
        ("UPDATE study SET labels = x'01'", "is damaged"),
        ("UPDATE cell SET recipe = '{}', cell = 'x'", "is damaged"),
        ("UPDATE cell SET recipe = '{\"epochs\": 0}'", "is damaged"),
        ("UPDATE net SET history = '[[1]]'", "is damaged"),
        ("UPDATE net SET history = '[[1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1]]'", "one"),
        ("UPDATE net SET history = '[[1, 1, 1, NaN, 1, 1, 1, 1]]'", "expected one row of numbers"),
        ("UPDATE net SET probabilities = x'00'", "is damaged"),
        ("UPDATE net SET made_by = '3'", "is damaged"),
        ("UPDATE net SET diverged = '3'", "is damaged"),
        ("DELETE FROM study", "has no study, expected one of trials, grid"),
        ("DELETE FROM cell", "is damaged"),
        ("CREATE TABLE more (x)", "has other tables"),
    ],
)
def test_a_damaged_study_is_refused_in_one_line(capsys, tmp_path, statement, named):
    folder = put(tmp_path / "study", "trials", one_cell())
    connection = sqlite3.connect(folder / FILE)
    connection.execute(statement)
    connection.commit()
    connection.close()
    line = refused(capsys, folder)
    assert FILE in line and named in line


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0 and no more", b"x" * 5000])
def test_a_file_that_is_no_study(capsys, tmp_path, content):
    (tmp_path / FILE).write_bytes(content)
    assert FILE in refused(capsys, tmp_path)


def test_what_is_no_folder(capsys, folder, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "has neither config.json nor results.sqlite" in refused(capsys, tmp_path / "empty")
    assert "no such folder" in refused(capsys, tmp_path / "missing")
    assert "no such folder" in refused(capsys, folder / "config.json")
    assert "argument --out: got" in refused(capsys, folder, "--out", tmp_path / "no/x.html")
    assert "is no file" in refused(capsys, folder, "--out", tmp_path)
    assert "argument --device" in refused(capsys, folder, "--device=abacus")


def test_without_matplotlib(capsys, folder, monkeypatch):
    monkeypatch.setattr(drawing, "available", lambda: False)
    assert 'needs matplotlib: pip install "minicnn[figures]"' in refused(capsys, folder)


def test_a_write_that_fails_leaves_what_was_there(capsys, tmp_path, monkeypatch):
    folder = put(tmp_path / "study", "trials", one_cell())
    (folder / "report.html").write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    assert "report.html: No space left on device" in refused(capsys, folder)


@pytest.mark.parametrize("calls", range(4))
def test_a_report_that_is_stopped_leaves_nothing(tmp_path, calls):
    folder = put(tmp_path / "study", "trials", one_cell())
    answers = iter([False] * calls + [True] * 9)
    arguments = report._parser().parse_args([str(folder)])
    with pytest.raises(Interrupted):
        report.report(arguments, lambda: next(answers))
    assert [path.name for path in folder.iterdir()] == [FILE]
