"""Where a command is started: scripts without a guard, one second, no home, locales, file names."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
from digit_files import TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS, idx_bytes
from runs import ROOT, TINY, python, state

from minicnn import command as commands
from minicnn import study, train
from minicnn.data.digits import draw_digits
from minicnn.training.interruption import StopOnSignal

# ---- scripts without `if __name__ == "__main__":` ------------------------------------------------

TRAINED = [*TINY, "--workers=2"]
CALLS = {
    "train": f"train.main({TRAINED!r})",
    "train in a folder": f"train.main({[*TRAINED, '--out=given']!r})",
    "predict": "predict.main(['--checkpoint', sys.argv[1], '--data=digits', '--workers=2'])",
    "study": "study.main('trials --quick --trials=1 --nets=1 --epochs=1 --limit=64'.split())",
    "report": "report.main([sys.argv[1].replace('checkpoint.npz', ''), '--out=page.html'])",
    "the library": "workers.run_jobs(print, None, [1, 2], 2, print, print, lambda: False)",
}
IMPORTS = "import sys\nfrom minicnn import predict, report, study, train\n"
IMPORTS += "from minicnn.training import prediction, workers\nprediction.cores = lambda: 2\n"


def run_script(folder, text, *arguments):
    """Write a script into a folder, and run it there."""
    (folder / "script.py").write_text(IMPORTS + text)
    return subprocess.run(
        [sys.executable, "script.py", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def assert_refused(done, folder, script="script.py"):
    """One line with the cause and the cure, and nothing begun."""
    assert done.returncode in (1, 2) and done.stdout == ""
    [line] = done.stderr.splitlines()
    assert f"{script}: each worker process imports this script" in line
    assert 'call it under `if __name__ == "__main__":`, or with one worker' in line
    assert not [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".py"]


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_script_without_the_guard_is_refused(run, tmp_path, call):
    done = run_script(tmp_path, f"{call}\nprint('more')\n", run[0] / "checkpoint.npz")
    assert_refused(done, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]


# What the top level of the script does not show: each worker process finds it out.
THREAD = "import threading\nthread = threading.Thread(target=lambda: {call})\nthread.start()\n"
HIDDEN = {
    "a comment": "# no __name__ here\n{call}",
    "a thread": f"{THREAD}thread.join()",
    "a thread that goes on": f"{THREAD}from multiprocessing import current_process as process\n"
    "if process().name == 'MainProcess':\n    thread.join()",
    "an exception caught": "# not __name__\ntry:\n    {call}\nexcept BaseException:\n    raise",
}


@pytest.mark.full(but="caught|comment")
@pytest.mark.parametrize("text", HIDDEN.values(), ids=HIDDEN)
def test_worker_processes_notice_that_the_guard_is_missing(tmp_path, text):
    done = run_script(tmp_path, text.format(call=CALLS["train in a folder"]))
    header, done.stderr = done.stderr.splitlines()
    assert header.startswith("Training images: 150.")
    if "thread" in text:  # a thread's status is not that of the script
        done.returncode = 2
    assert_refused(done, tmp_path)
    assert not (tmp_path / "given").exists()


def test_the_processes_of_a_study_notice_it_too(tmp_path):
    done = run_script(tmp_path, f"# no __name__\n{CALLS['study']}\n")
    *_, done.stderr = done.stderr.splitlines()
    assert_refused(done, tmp_path)


def test_processes_that_the_script_starts_itself_are_refused(tmp_path):
    """Such a process would train as the script does."""
    text = (
        "import multiprocessing\n"
        "process = multiprocessing.get_context('spawn').Process()\n"
        "if multiprocessing.current_process().name == 'MainProcess':\n"
        "    process.start()\n"
        "    process.join()\n"
        "else:\n"
        f"    {CALLS['train']}\n"
        "sys.exit(process.exitcode)\n"
    )
    assert_refused(run_script(tmp_path, text), tmp_path, "the main script")


def training(folder):
    return f"train.main({[*TRAINED, '--out', str(folder)]!r})"


GUARDED = "if __name__ == '__main__':\n    sys.exit({call})\n"
BY_A_FUNCTION = "def go():\n    if __name__ == '__main__':\n        sys.exit({call})\ngo()\n"


@pytest.mark.full(but="script|stdin")
@pytest.mark.parametrize(
    "how", ["script", "function", "-m", "package", "-c", "stdin", "pipe", "-i"]
)
def test_what_works_without_a_refusal(run, tmp_path, how):
    """Guarded scripts; and all that new processes do not import, guarded or not."""
    if how == "pipe" and not Path("/dev/stdin").exists():
        pytest.skip("this system has no /dev/stdin")
    call = training(tmp_path / "out")
    bare, guarded = f"{IMPORTS}sys.exit({call})\n", IMPORTS + GUARDED.format(call=call)
    (tmp_path / "own.py").write_text(guarded)
    (tmp_path / "function.py").write_text(IMPORTS + BY_A_FUNCTION.format(call=call))
    (tmp_path / "package").mkdir()
    (tmp_path / "package/__main__.py").write_text(bare)
    arguments = {
        "script": ["own.py"],
        "function": ["function.py"],
        "-m": ["-m", "own"],
        "package": ["-m", "package"],
        "-c": ["-c", bare],
        "stdin": [],
        "pipe": ["/dev/stdin"],
        "-i": ["-i", "-q"],
    }[how]
    done = subprocess.run(
        [sys.executable, *arguments],
        input=bare,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert state(tmp_path / "out") == state(run[0])


def test_one_worker_needs_no_guard(run, tmp_path):
    call = training(tmp_path / "out").replace("--workers=2", "--workers=1")
    done = run_script(tmp_path, f"sys.exit({call})\n")
    assert done.returncode == 0, done.stderr
    assert state(tmp_path / "out") == state(run[0])


# ---- folders -------------------------------------------------------------------------------------


def test_runs_that_start_in_one_second_have_folders_of_their_own(run, tmp_path):
    arguments = [sys.executable, "-m", "minicnn.train", *TINY, "--workers=1"]
    processes = [
        subprocess.Popen(
            arguments,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    told = set()
    for process in processes:
        stdout, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr
        told.add(stdout.splitlines()[-1].removeprefix("Run folder: "))
    assert {f"{path.relative_to(tmp_path)}{os.sep}" for path in tmp_path.glob("runs/*")} == told
    assert len(told) == 3
    for name in told:
        assert state(tmp_path / name) == state(run[0])


def make_folders(parent, count, results):
    found = []
    for _ in range(count):
        with commands.out_folder(None, parent) as folder:
            (folder / "mine").mkdir()  # fails if it is another's
            found.append(str(folder))
    results.put(found)


def test_processes_never_get_the_same_folder(tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    processes = [
        context.Process(target=make_folders, args=(tmp_path / "runs", 100, results))
        for _ in range(3)
    ]
    for process in processes:
        process.start()
    found = [name for _ in processes for name in results.get()]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(set(found)) == len(list((tmp_path / "runs").iterdir())) == 300


@pytest.fixture
def one_second(tmp_path, monkeypatch):
    """Clocks stand still, and the working folder is empty."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 11, 29, 19, 5, 1)

    monkeypatch.setattr(commands, "datetime", Clock)
    monkeypatch.chdir(tmp_path)


@pytest.mark.full(beside="test_runs_that_start_in_one_second_have_folders_of_their_own")
def test_the_names_of_folders_of_one_second(tmp_path, one_second, capsys):
    small = "--quick", "--limit=70", "--no-figures"
    for _ in range(3):
        assert train.main([*TINY, "--nets=1", "--epochs=1", "--workers=1"]) == 0
        assert study.main(["variance", *small]) == 0
    for parent in ("runs", "studies"):
        names = {path.name for path in (tmp_path / parent).iterdir()}
        assert names == {"20261129-190501", "20261129-190501-2", "20261129-190501-3"}
    assert capsys.readouterr().out.count("Run folder: runs/20261129-190501-3") == 1


def test_a_refused_command_leaves_no_folder(tmp_path, one_second):
    assert train.main(["--batch-size=1000000"]) == 2
    assert study.main(["trials", "--quick", "--workers=2", "--dask=tcp://127.0.0.1:1"]) == 2
    assert not list(tmp_path.iterdir())


def test_a_stopped_run_names_its_own_folder(tmp_path, one_second, capsys, monkeypatch):
    (tmp_path / "runs/20261129-190501").mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(StopOnSignal, "__call__", lambda self: True)
        assert train.main([*TINY, "--workers=1"]) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith("--out runs/20261129-190501-2 --resume")


def test_a_file_in_place_of_the_folder_of_runs(tmp_path, one_second, capsys):
    (tmp_path / "runs").touch()
    assert train.main([*TINY, "--workers=1"]) == 2
    assert capsys.readouterr().err == "minicnn.train: error: runs: File exists\n"


# ---- home, terminal, locale ----------------------------------------------------------------------

WIDTHS = {"unset": None, "0": "0", "1": "1", "no number": "wide"}


@pytest.mark.full(but="^(0|unset)$")
@pytest.mark.parametrize("columns", WIDTHS.values(), ids=WIDTHS)
def test_any_width_of_the_terminal(tmp_path, columns):
    done = python("-m", "minicnn.train", "--help", COLUMNS=columns, LINES=columns)
    assert done.returncode == 0 and "--validation-fraction" in done.stdout.replace("\n", "")
    given = [*TINY, "--nets=1", "--epochs=1", "--workers=1", "--out", tmp_path / "out"]
    done = python("-m", "minicnn.train", *given, COLUMNS=columns, LINES=columns)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def nobody(monkeypatch):
    """The start of a command line that runs as a user without an entry in /etc/passwd."""
    start = ["unshare", "--user", "--map-user=12345"]
    test = "import pwd, os; pwd.getpwuid(os.getuid())"
    if not shutil.which("unshare"):
        pytest.skip("this system has no unshare")
    if subprocess.run([*start, "true"], capture_output=True, check=False).returncode:
        pytest.skip("may not make a user namespace")
    done = subprocess.run([*start, sys.executable, "-c", test], capture_output=True, check=False)
    assert b"KeyError" in done.stderr
    for name in ("HOME", "USER", "LOGNAME", "XDG_CACHE_HOME", "MINICNN_CACHE", "MPLCONFIGDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return start


@pytest.mark.full(beside="test_spaces_and_umlauts_in_paths_in_the_c_locale")
def test_a_user_without_home_and_passwd_entry(tmp_path, nobody):
    small = "--nets=2 --epochs=1 --limit=150 --test-limit=40 --batch-size=32 --workers=2".split()
    commands = [
        ["minicnn.train", *small, "--out=out"],
        ["minicnn.predict", "--checkpoint=out/checkpoint.npz", "--data=digits", "--device=numpy"],
        ["minicnn.report", "out", "--device=numpy"],
        ["minicnn.study", "variance", "--quick", "--limit=70", "--no-figures"],
    ]
    for arguments in commands:
        done = subprocess.run(
            [*nobody, sys.executable, "-m", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    assert {"report.html", "summary.json", "figures"} <= {
        p.name for p in (tmp_path / "out").iterdir()
    }
    assert (tmp_path / "submission.csv").exists() and list(tmp_path.glob("studies/*/*.sqlite"))


LOCALES = {
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "C in UTF-8 mode": {"LC_ALL": "C", "PYTHONUTF8": None, "PYTHONCOERCECLOCALE": None},
}


@pytest.mark.skipif(sys.platform != "linux", reason="has file names in bytes, as Linux does")
@pytest.mark.full(but="^C$")
@pytest.mark.parametrize("locale", LOCALES.values(), ids=LOCALES)
def test_spaces_and_umlauts_in_paths_in_the_c_locale(tmp_path, monkeypatch, locale):
    """In the C locale Python has no umlauts: names hold bytes, as lone surrogates."""
    images, labels = draw_digits(120)
    folder = tmp_path / "M\xfcnchen und K\xf6ln"
    folder.mkdir()
    for name, array in {
        TRAIN_IMAGES: images[:80],
        TRAIN_LABELS: labels[:80],
        TEST_IMAGES: images[80:],
        TEST_LABELS: labels[80:],
    }.items():
        (folder / name).write_bytes(idx_bytes(array))
    monkeypatch.setenv("MINICNN_CACHE", str(folder / "ein Zwischenl\xe4ger"))
    out, page, table = (folder / name for name in ("L\xe4ufe 1", "S\xe4tze.html", "\xdcbung 1.csv"))
    given = "--nets=2 --epochs=1 --batch-size=32 --recipe=demo --workers=2 --data".split()
    found = folder / "\xc4lteste"
    small = "trials --quick --trials=1 --nets=1 --epochs=1 --device=numpy --no-figures".split()
    for arguments in (
        ["minicnn.train", *given, folder, "--out", out],
        ["minicnn.predict", f"--checkpoint={out}/checkpoint.npz", "--data", folder, "--out", table],
        ["minicnn.report", out, "--out", page],
        ["minicnn.study", *small, "--data", folder, "--out", found],
        ["minicnn.report", found],
    ):
        done = python("-m", *arguments, **locale)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    config = json.loads((out / "config.json").read_text())
    assert os.fsencode(config["source"]) == os.fsencode(folder)
    assert table.read_text() == (out / "submission.csv").read_text()
    for path in (page, found / "report.html"):
        path.read_bytes().decode()  # valid UTF-8
    assert {path.name for path in (out / "figures").iterdir()} >= {"predictions.png"}
