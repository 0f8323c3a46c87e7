"""Commands without stdout or stderr, with a log file in place of a terminal, and in threads."""

import csv
import json
import os
import re
import signal
import sqlite3
import struct
import subprocess
import sys
import threading
import time

import pytest
from digit_files import csv_bytes, csv_rows
from matplotlib.image import imread
from runs import ROOT, TINY, start_slowly, state

from minicnn import command as commands
from minicnn import predict, progress, report, study, train
from minicnn.data.digits import draw_digits
from minicnn.training import checkpoint

STUDY = (
    "trials --quick --trials=2 --nets=1 --epochs=1 --limit=64 --test-limit=40 --device=numpy "
    "--workers=2 --no-figures"
).split()
TRAIN = [option for option in TINY if option not in ("--quiet", "--no-figures")]
NOT_QUIET = [option for option in TINY if option != "--quiet"]

posix = pytest.mark.skipif(os.name != "posix", reason="closes descriptors as POSIX does")


def without(closed, *arguments, **options):
    """Run Python with these descriptors closed; returns its status."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: [os.close(number) for number in closed],
        timeout=120,
        check=False,
        **options,
    ).returncode


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A folder with Kaggle's test.csv of 40 images."""
    folder = tmp_path_factory.mktemp("few")
    (folder / "test.csv").write_bytes(csv_bytes(csv_rows(draw_digits(40)[0])))
    return folder


def predicting(run, few):
    """Arguments of minicnn.predict."""
    given = "--checkpoint", run[0] / "checkpoint.npz", "--data", few, "--device=numpy"
    return list(map(str, given))


def assert_clean(folder):
    """Each file of a run is what its name says, and none holds output."""
    for path in folder.rglob("*"):
        if path.is_file():
            assert b"stray" not in path.read_bytes(), path
        if path.suffix == ".json":
            json.loads(path.read_text())
        if path.suffix == ".png":
            assert imread(path).std() > 0.01
    assert not list(folder.rglob("*.tmp"))


# minicnn.train whose steps print to both streams in every way, in worker processes too.
TALKATIVE = """
import os, subprocess, sys, warnings
from minicnn import train
from minicnn.training.trainer import Trainer
quiet = Trainer.step
def step(self):
    quiet(self)
    warnings.warn("stray warning", stacklevel=1)
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        print("stray line", file=stream)
        try:
            os.write(number, b"stray bytes")
        except OSError:
            pass
    if self.steps_done == 1:
        subprocess.run("echo stray words; echo stray words >&2", shell=True)
Trainer.step = step
if __name__ == "__main__":
    sys.exit(train.main())
"""


# ---- no streams ----------------------------------------------------------------------------------


@posix
@pytest.mark.full(but="closed0-2|closed3-1")
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("closed", [[0, 1, 2], [1], [2], [1, 2]])
def test_a_run_without_streams_is_complete(run, tmp_path, closed, workers):
    (tmp_path / "talkative.py").write_text(TALKATIVE)
    arguments = [*TRAIN, f"--workers={workers}", "--out", tmp_path / "out"]
    rest = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    assert without(closed, tmp_path / "talkative.py", *arguments, **rest) == 0
    assert state(tmp_path / "out") == state(run[0])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *(path.name for path in run[0].iterdir()),
        "figures",
    }
    assert_clean(tmp_path / "out")


@posix
def test_the_other_stream_has_its_own_lines_only(tmp_path):
    """print() to a stderr that is None would write to stdout."""
    for closed, kept in ((2, "stdout"), (1, "stderr")):
        given = "-m", "minicnn.train", *NOT_QUIET, "--epochs=1", "--workers=2"
        with open(tmp_path / kept, "wb") as file:
            status = without([closed], *given, "--out", tmp_path / f"{kept}-out", **{kept: file})
        assert status == 0
    first_words = [line.split()[0] for line in (tmp_path / "stdout").read_text().splitlines()]
    assert first_words[:3] == ["CNN", "CNN", "Ensemble"] and first_words[4:] == ["Run"]
    [line] = (tmp_path / "stderr").read_text().splitlines()
    assert line.startswith("Training images: 150. Nets: 2.")


NULL = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


@posix
def test_predict_and_report_without_streams(run, few, tmp_path):
    written = []
    for closed in [], [0, 1, 2]:
        out = tmp_path / f"out-{len(closed)}"
        given = [*predicting(run, few), "--workers=2"]
        assert without(closed, "-m", "minicnn.predict", *given, "--out", out, **NULL) == 0
        written.append(out.read_bytes())
        arguments = "-m", "minicnn.report", run[0], "--device=numpy", "--out", out
        assert without(closed, *arguments, **NULL) == 0
        written.append(out.read_bytes())
    assert written[:2] == written[2:]


def found_by(folder):
    """The rows of a study's nets, without what depends on time, and its tables."""
    connection = sqlite3.connect(folder / "results.sqlite")
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    rows = connection.execute(
        "SELECT cell, trial, net, accuracy, probabilities FROM net"
    ).fetchall()
    connection.close()
    tables = {path.name: path.read_bytes() for path in (folder / "trials").glob("*.csv")}
    return sorted(rows), tables


@posix
def test_a_study_without_streams_and_one_in_a_thread(tmp_path):
    folders = [tmp_path / "without", tmp_path / "thread"]
    arguments = "-m", "minicnn.study", *STUDY, "--out", folders[0]
    assert without([0, 1, 2], *arguments, **NULL) == 0
    assert in_threads(lambda: study.main([*STUDY, "--out", str(folders[1])])) == [0]
    assert found_by(folders[0]) == found_by(folders[1])
    assert len(found_by(folders[0])[0]) == 2


@posix
@pytest.mark.parametrize(("arguments", "status"), [(["--help"], 0), (["--nets=0"], 2)])
def test_help_and_a_refusal_without_streams(tmp_path, arguments, status):
    assert without([0, 1, 2], "-m", "minicnn.train", *arguments, cwd=tmp_path) == status
    assert not list(tmp_path.iterdir())


@posix
def test_a_signal_without_streams_saves(run, tmp_path):
    process = start_slowly(
        tmp_path,
        *[*NOT_QUIET, "--workers=1", "--out", str(tmp_path / "out")],
        preexec_fn=lambda: [os.close(number) for number in (0, 1, 2)],
    )
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(30) == 130
    assert_clean(tmp_path / "out")
    assert train.main([*TINY, "--workers=1", "--out", str(tmp_path / "out"), "--resume"]) == 0
    assert state(tmp_path / "out") == state(run[0])


@posix
def test_closed_descriptors_are_opened_for_child_processes(tmp_path):
    script = (
        "import os, subprocess, sys\n"
        "from minicnn import command\n"
        "def main():\n"
        "    with open(sys.argv[1], 'w') as file:\n"
        "        subprocess.run('echo out; echo err >&2', shell=True, check=True)\n"
        "        print('out'); print('err', file=sys.stderr)\n"
        "        file.write(str(file.fileno()))\n"
        "    return 7\n"
        "sys.exit(command.run('a command', main))\n"
    )
    assert without([0, 1, 2], "-c", script, tmp_path / "file") == 7
    assert int((tmp_path / "file").read_text()) > 2


class Unwilling:
    """A stream that a program put in place of stdout: it has only write()."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text


def closed_file():
    file = open(os.devnull, "w")  # noqa: SIM115
    file.close()
    return file


def test_every_command_where_stdout_and_stderr_are_none(run, few, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    out = [f"--out={tmp_path / name}" for name in ("run", "p.csv", "study", "r.html")]
    statuses = [
        train.main([*NOT_QUIET, "--nets=1", "--epochs=1", "--workers=1", out[0]]),
        predict.main([*predicting(run, few), out[1]]),
        study.main(["variance", "--quick", "--limit=70", "--no-figures", out[2]]),
        report.main([str(run[0]), "--device=numpy", out[3]]),
        train.main(["--batch-size=1000000"]),
    ]
    assert statuses == [0, 0, 0, 0, 2]
    assert (sys.stdout, sys.stderr) == (None, None)
    assert (tmp_path / "run/summary.json").exists() and (tmp_path / "study/results.sqlite").exists()
    assert (tmp_path / "p.csv").exists() and (tmp_path / "r.html").exists()


@pytest.mark.parametrize("make", [closed_file, Unwilling])
def test_odd_streams(tmp_path, monkeypatch, make):
    streams = make(), make()
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    out = f"--out={tmp_path / 'run'}"
    assert train.main([*NOT_QUIET, "--nets=1", "--epochs=1", "--workers=1", out]) == 0
    assert train.main(["--batch-size=1000000"]) == 2
    assert (sys.stdout, sys.stderr) == streams
    assert (tmp_path / "run/summary.json").exists()
    if make is Unwilling:
        assert "Run folder: " in streams[0].text and "Training images: 150" in streams[1].text
        assert streams[1].text.splitlines()[-1].startswith("minicnn.train: error: batch size: got")


def test_a_stream_that_is_closed_during_a_command():
    def main():
        print("first")
        sys.stdout.close()
        print("second")
        return 0

    before = sys.stdout
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        assert commands.run("a command", main) == 2  # as where it cannot be written
    finally:
        sys.stdout = before


# ---- progress ------------------------------------------------------------------------------------


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
    assert capsys.readouterr().err == ""


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
        patch.setattr(commands.StopOnSignal, "__call__", lambda self: next(calls) > 5)
        patch.setattr(commands.StopOnSignal, "status", 130)
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
    recipe = train.Recipe(epochs=2)
    assert train._standing(rows, recipe) == expected


def test_nets_at_different_epochs():
    rows = {1: row(4, 0.5, 0.5), 2: row(7, 0.7, 0.7)}
    told = train._standing(rows, train.Recipe(epochs=9))
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


# ---- threads -------------------------------------------------------------------------------------


def in_threads(*calls):
    """The results of functions that are called in one thread each, at the same time."""
    results = {}

    def keep(number, call):
        results[number] = call()

    threads = [threading.Thread(target=keep, args=pair) for pair in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return [results.get(number) for number in range(len(calls))]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_in_a_thread(run, tmp_path, workers):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    streams = sys.stdout, sys.stderr
    arguments = [*NOT_QUIET, f"--workers={workers}", "--out", str(tmp_path / "out")]
    assert in_threads(lambda: train.main(arguments)) == [0]
    assert state(tmp_path / "out") == state(run[0])
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert (sys.stdout, sys.stderr) == streams


def test_runs_in_two_threads_at_once(run, tmp_path):
    """NumPy's matrix products are rounded differently on several threads; each run uses one."""
    calls = [
        lambda name=name: train.main([*TINY, "--workers=1", "--out", str(tmp_path / name)])
        for name in ("first", "second")
    ]
    assert in_threads(*calls) == [0, 0]
    assert state(tmp_path / "first") == state(tmp_path / "second") == state(run[0])


def test_predict_and_report_in_a_thread(run, few, tmp_path):
    given = [*predicting(run, few), "--workers=2", "--out", str(tmp_path / "p.csv")]
    page = [str(run[0]), "--device=numpy", "--out", str(tmp_path / "r.html")]
    assert in_threads(lambda: predict.main(given), lambda: report.main(page)) == [0, 0]
    assert (tmp_path / "p.csv").exists() and (tmp_path / "r.html").exists()


def test_commands_in_two_threads_leave_the_streams_as_they_were(tmp_path, capsys, monkeypatch):
    """Of two commands that overlap, the first to begin ends first."""
    streams, show = (sys.stdout, sys.stderr), commands.warnings.showwarning
    second_began, first_ended = threading.Event(), threading.Event()

    def first():
        assert second_began.wait(20)
        print("first")
        return 3

    def second():
        second_began.set()
        assert first_ended.wait(20)
        assert isinstance(sys.stdout, commands._Output)  # still safe
        commands.warnings.warn("careful", stacklevel=1)
        return 4

    def call_first():
        try:
            return commands.run("a", first)
        finally:
            first_ended.set()

    def call_second():
        time.sleep(0.2)
        return commands.run("b", second)

    assert in_threads(call_first, call_second) == [3, 4]
    assert (sys.stdout, sys.stderr) == streams
    assert commands.warnings.showwarning is show
    shown = capsys.readouterr()
    assert shown.out == "first\n" and shown.err.endswith(": warning: careful\n")


def test_a_handler_that_python_did_not_set(monkeypatch):
    """As in a program that embeds Python: signal.signal returns None, and does not accept it."""
    before = signal.getsignal(signal.SIGTERM)
    set_handler = signal.signal
    with monkeypatch.context() as patch:
        patch.setattr(signal, "signal", lambda *given: set_handler(*given) and None)
        stop = commands.StopOnSignal("stopping")
        stop.__enter__()
    stop.__exit__()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    signal.signal(signal.SIGTERM, before)
    signal.signal(signal.SIGINT, signal.default_int_handler)
