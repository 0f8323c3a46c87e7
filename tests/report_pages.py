"""Pages of minicnn.report: parse them, make them, and make the folders that they report."""

import base64
import html.parser
import io
import json

import numpy as np
from matplotlib.image import imread

from minicnn import load_data, report
from minicnn.data.load import fingerprint
from minicnn.recipe import Recipe
from minicnn.studies.store import FILE, Cell, Store
from minicnn.studies.tasks import TrainedNet
from minicnn.training.checkpoint import HISTORY_COLUMNS

HOSTILE = """<script>alert("x")</script> & 'q' <img src=http://x.example/>"""
(TRAIN, TRAIN_LABELS), (TEST, TEST_LABELS) = load_data("digits")


class Page(html.parser.HTMLParser):
    """A parsed page: images, tables (rows of texts) and text, outside and inside of a fold.

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
        href = attributes.get("href", "#")
        assert href.startswith("#") or href == "draw.html"  # minicnn.report --draw
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
        """The rows without the header of the only table whose caption begins so."""
        (found,) = [
            table
            for words, table in zip(self.captions, self.tables, strict=True)
            if words.startswith(caption)
        ]
        return found[1:]

    def confusion(self):
        rows = self.table("Predictions of the ")[1:]
        return np.array([[int(text.replace(",", "")) for text in row[1:11]] for row in rows])

    def quiz(self):
        """The chosen pictures, as arrays of ink."""
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
    """(the Page of a folder, the command's stderr)."""
    status = report.main([str(folder), "--quiet", "--device=numpy", *map(str, arguments)])
    told = capsys.readouterr()
    assert status == 0, told.err
    return Page((folder / "report.html").read_text()), told.err


def refused(capsys, folder, *arguments):
    """The line with which the command refuses; asserts that it wrote nothing."""
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


def edit(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# ---- synthetic studies ---------------------------------------------------------------------------


def histories(net, epochs=2):
    return [
        dict(zip(HISTORY_COLUMNS, (net, e, 1e-3, 1 / e, 1 - 0.3 / e, None, None, 1.0), strict=True))
        for e in range(1, epochs + 1)
    ]


def trained(net, labels, diverged=None, device="numpy"):
    """Probabilities of a net that predicts most labels."""
    random = np.random.default_rng(net)
    scores = random.exponential(size=(len(labels), 10)) + 2.5 * np.eye(10)[labels]
    probabilities = (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32)
    made_by = {"device": device, "precision": "float32", "minicnn": "0.1.0"}
    return TrainedNet(net, histories(net), diverged, None if diverged else probabilities, made_by)


def put(folder, name, cells, count=120, seed=0, labelled=True, source="digits", nets=trained):
    """Write a finished study of the first test images into a folder."""
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
