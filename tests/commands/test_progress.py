"""Progress: a bar on a terminal, lines with epoch, accuracies and time left in a log file."""

import csv
import os
import re
import struct
import subprocess
import sys

import pytest
from runs import TINY
from small_commands import NOT_QUIET, STUDY, found_by, posix, predicting, without

from minicnn import predict, progress, report, study, train
from minicnn.training import checkpoint, messages
from minicnn.training.interruption import StopOnSignal


@pytest.fixture
def every_line(monkeypatch):
    """A line for each update, in place of one a minute."""
    monkeypatch.setattr(progress, "SECONDS", 0)


COUNT = r"([\d,]+) of 512 images \((\d+) %\), 0:\d\d:\d\d so far(?:, 0:\d\d:\d\d left)?"
EPOCH = (
    r"epochs? ([12 to]+) of 2: train accuracy (0\.\d{5}), validation accuracy (0\.\d{5})"
    r"( \(mean of \d nets\))?"
)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_log_has_lines_with_epoch_accuracies_and_time_left(tmp_path, capsys, every_line, workers):
    assert train.main([*NOT_QUIET, f"--workers={workers}", "--out", str(tmp_path / "out")]) == 0
    stderr = capsys.readouterr().err
    assert "\r" not in stderr and stderr.endswith("\n")
    header, *lines = stderr.splitlines()
    assert header.startswith("Training images: 150.")
    found = [
        re.fullmatch(rf"{COUNT}(?:; {EPOCH})?(?:; (\d) of 2 nets trained)?", line) for line in lines
    ]
    assert all(found), lines
    counts = [int(match[1].replace(",", "")) for match in found]
    assert counts == sorted(counts) and counts[-1] == 512
    assert [match[2] for match in found] == [str(100 * count // 512) for count in counts]
    # After the first epoch of a net its accuracies are those of the history.
    rows = list(csv.DictReader((tmp_path / "out/history.csv").open()))
    expected = {
        (f"{float(row['train_accuracy']):.5f}", f"{float(row['validation_accuracy']):.5f}")
        for row in rows
        if row["epoch"] == "1"
    }
    told = {(match[4], match[5]) for match in found if match[3] and not match[6]}
    assert told and told <= expected
    if workers == 1:
        assert told == expected
    assert found[-1][7] == "2"


@pytest.mark.parametrize("option", ["--quiet", "--no-graph"])
def test_a_short_run_prints_no_progress_into_a_log(tmp_path, capsys, option):
    assert train.main([*NOT_QUIET, option, "--workers=1", "--out", str(tmp_path / "out")]) == 0
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("Training images: 150.")


def test_quiet_prints_no_line(run, few, tmp_path, capsys, every_line):
    assert train.main([*TINY, "--workers=1", "--out", str(tmp_path / "out")]) == 0
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("Training images: 150.")
    assert predict.main([*predicting(run, few), "--out", str(tmp_path / "p.csv"), "--quiet"]) == 0
    assert report.main([str(run[0]), "--device=numpy", f"--out={tmp_path / 'r'}", "--quiet"]) == 0
    assert capsys.readouterr().err == "Data: 40 images 28x28, 10 classes 0..9\n"  # predict's


def test_the_other_commands_print_lines_too(run, few, tmp_path, capsys, every_line):
    given = [*predicting(run, few), "--workers=1", "--out", str(tmp_path / "p.csv")]
    assert predict.main(given) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("80 of 80 images (100 %), 0:00:0")
    assert report.main([str(run[0]), "--device=numpy", f"--out={tmp_path / 'r.html'}"]) == 0
    assert re.search(r"(?m)^80 of 80 images \(100 %\), 0:00:0", capsys.readouterr().err)
    assert study.main([*STUDY, "--out", str(tmp_path / "study")]) == 0
    shown = capsys.readouterr()
    assert "\r" not in shown.err
    last = shown.err.splitlines()[-1]
    mean = sum(row[3] for row in found_by(tmp_path / "study")[0]) / 2
    assert last.startswith("128 of 128 images (100 %), 0:00:")
    assert last.endswith(f"; 2 of 2 nets trained, test accuracy {mean:.5f} (mean)")


def test_a_resumed_run_counts_from_where_it_is(tmp_path, capsys, every_line, monkeypatch):
    folder = str(tmp_path / "out")
    calls = iter(range(1000))
    with monkeypatch.context() as patch:
        patch.setattr(StopOnSignal, "__call__", lambda self: next(calls) > 5)
        patch.setattr(StopOnSignal, "status", 130)
        assert train.main([*NOT_QUIET, "--workers=1", "--out", folder]) == 130
    capsys.readouterr()
    [saved] = (tmp_path / "out").glob("checkpoint-net-*.npz")
    step = checkpoint.load(saved)[1]["step"]
    assert train.main([*NOT_QUIET, "--workers=1", "--out", folder, "--resume"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert step > 4 and lines[1].startswith(f"{32 * step + 32} of 512 images")


def row(epoch, train_accuracy, validation_accuracy=None):
    return {
        "epoch": epoch,
        "train_accuracy": train_accuracy,
        "validation_accuracy": validation_accuracy,
    }


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ({}, ""),
        ({1: row(1, 0.5)}, "epoch 1 of 2: train accuracy 0.50000"),
        ({1: row(2, 0.5, 0.5)}, "1 of 15 nets trained"),
        ({1: None}, ""),
        (
            {1: row(2, 0.9, 0.9), 2: None, 3: row(1, 0.5, 0.7), 4: row(1, 0.7, 0.8)},
            "epoch 1 of 2: train accuracy 0.60000, validation accuracy 0.75000 (mean of 2 nets); "
            "1 of 15 nets trained",
        ),
    ],
)
def test_where_training_is(rows, expected):
    assert messages.standing(rows, epochs=2, nets=15) == expected


def test_nets_at_different_epochs():
    rows = {1: row(4, 0.5, 0.5), 2: row(7, 0.7, 0.7)}
    told = messages.standing(rows, epochs=9, nets=15)
    assert told.startswith("epochs 4 to 7 of 9: train accuracy 0.60000, validation accuracy 0.6")


def test_a_line_a_minute(monkeypatch, capsys):
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.counter(10_000, "images", quiet=False, initial=1000, about=lambda: "well") as bar:
        for second in range(1, 181):
            now[0] = 1000.0 + second
            bar.update(10)
    assert capsys.readouterr().err.splitlines() == [
        "1,600 of 10,000 images (16 %), 0:01:00 so far, 0:14:00 left; well",
        "2,200 of 10,000 images (22 %), 0:02:00 so far, 0:13:00 left; well",
        "2,800 of 10,000 images (28 %), 0:03:00 so far, 0:12:00 left; well",
    ]


def test_progress_of_unknown_length_and_without_any(monkeypatch, capsys, every_line):
    with progress.counter(None, "B", quiet=False, name="a file") as bar:
        bar.update(5000)
    with progress.counter(7, "images", quiet=False) as bar:
        bar.update(0)
        bar.update(-1)  # a process died
    assert capsys.readouterr().err.splitlines() == [
        "a file: 5,000 bytes, 0:00:00 so far",
        "a file: 5,000 bytes, 0:00:00 so far",
        "0 of 7 images (0 %), 0:00:00 so far",
        "-1 of 7 images (-15 %), 0:00:00 so far",
    ]
    monkeypatch.setattr(sys, "stderr", None)
    with progress.counter(7, "images", quiet=False, name="nothing") as bar:
        bar.update(7)
    assert capsys.readouterr().out == ""


@posix
def test_a_terminal_has_a_bar(tmp_path):
    fcntl, pty, termios = map(pytest.importorskip, ("fcntl", "pty", "termios"))
    terminal, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    arguments = "-m", "minicnn.train", *NOT_QUIET, "--workers=1", "--out", tmp_path / "out"
    assert without([], *arguments, stdout=subprocess.DEVNULL, stderr=theirs) == 0
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(terminal, 4096):
            shown += piece
    except OSError:  # the end, on Linux
        pass
    os.close(terminal)
    assert b"\r100%|" in shown and b"512/512 [" in shown and b"so far" not in shown
