"""Commands without stdout or stderr, and commands in threads."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from matplotlib.image import imread
from runs import TINY, start_slowly, state
from small_commands import NOT_QUIET, STUDY, found_by, posix, predicting, without

from minicnn import command as commands
from minicnn import predict, report, study, train
from minicnn.training.interruption import StopOnSignal

TRAIN = [option for option in TINY if option not in ("--quiet", "--no-figures")]


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
@pytest.mark.full(but="closed0-2")
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
@pytest.mark.full(beside="test_a_run_without_streams_is_complete")
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


@posix
@pytest.mark.full(beside="test_predict_and_report_without_streams")
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
@pytest.mark.full(beside="test_a_run_without_streams_is_complete")
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
        assert (
            streams[1]
            .text.splitlines()[-1]
            .startswith("minicnn.train: error: argument --batch-size: got")
        )


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
        stop = StopOnSignal("stopping")
        stop.__enter__()
    stop.__exit__()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    signal.signal(signal.SIGTERM, before)
    signal.signal(signal.SIGINT, signal.default_int_handler)
