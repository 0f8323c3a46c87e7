"""minicnn.report: hostile texts do not harm a page; damaged files are refused in one line."""

import json
import sqlite3

import pytest
from report_pages import HOSTILE, edit, made, one_cell, put, refused, trained

from minicnn import drawing, files, report
from minicnn.studies.store import FILE
from minicnn.training.workers import Interrupted


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
    assert "has no summary.json, expected a finished run" in refused(capsys, folder)


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
    assert "is not a file" in refused(capsys, folder, "--out", tmp_path)
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
