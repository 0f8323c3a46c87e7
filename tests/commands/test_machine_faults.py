"""Faults of the machine during a run: nothing is lost, and one line says what to do.

Full and read-only disks, too little memory, worker processes that die, a folder that another run
uses; and nets that diverge.
"""

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from runs import ROOT, TINY, command, start_slowly, state

from minicnn import files, predict, train
from minicnn.training import checkpoint
from minicnn.training.trainer import Trainer

SAVED = "; the last checkpoints are intact; --resume continues from them\n"


def training_in(folder, *more):
    """Train in this process; returns the exit status."""
    return train.main([*TINY, "--workers=1", "--out", str(folder), *more])


def assert_nothing_half_written(folder):
    assert not list(folder.rglob("*.tmp"))
    for path in folder.glob("*.npz"):
        checkpoint.load(path)
    for path in folder.glob("*.json"):
        json.loads(path.read_text())


# ---- disks ---------------------------------------------------------------------------------------


class Faulty:
    """`open` for files.py: from the n-th file on, each write fails halfway."""

    def __init__(self, number, error):
        self.left, self.error = number, error

    def __call__(self, path, mode):
        file = open(path, mode)  # noqa: SIM115  the caller closes it
        if "x" in mode:
            self.left -= 1
            if self.left <= 0:
                write = file.write
                file = _Wrapped(file, lambda data: write(data[: len(data) // 2]) and self.fail())
        return file

    def fail(self):
        raise OSError(self.error, os.strerror(self.error))


class _Wrapped:
    def __init__(self, file, write):
        self._file, self.write = file, write

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()


WRITTEN = [
    "config.json",
    *["checkpoint-net-001.npz"] * 2,
    *["checkpoint-net-002.npz"] * 2,
    "checkpoint.npz",
    "history.csv",
    "submission.csv",
    "summary.json",
]


@pytest.mark.full(but="[1369]")
@pytest.mark.parametrize("number", range(1, len(WRITTEN) + 1))
def test_a_full_disk_is_one_line_and_loses_nothing(run, tmp_path, monkeypatch, capsys, number):
    folder = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(files, "open", Faulty(number, errno.ENOSPC), raising=False)
        assert training_in(folder) == 2
    name = WRITTEN[number - 1]
    told = f"minicnn.train: error: {folder / name}: No space left on device"
    assert capsys.readouterr().err.endswith(told + (SAVED if number > 1 else "\n"))
    assert_nothing_half_written(folder)
    kept = {path.name for path in folder.iterdir()}
    if number > 1:
        assert "config.json" in kept
    if 2 < number <= 6:
        assert "checkpoint-net-001.npz" in kept
    assert training_in(folder, "--resume") == 0
    assert state(folder) == state(run[0])


@contextmanager
def small_disk(folder, size):
    """A file system of `size` bytes."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:  # noqa: PLW1510
        pytest.skip("may not mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.full(but="2")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_is_really_full(run, tmp_path, workers):
    disk = tmp_path / "disk"
    arguments = [*TINY, f"--workers={workers}", "--out", disk / "out"]
    with small_disk(disk, 6 << 20):  # one checkpoint of a net takes 4 MB
        done = command("minicnn.train", *arguments)
        assert done.returncode == 2, done.stderr
        assert "No space left on device; the last checkpoints are intact" in done.stderr
        assert "Traceback" not in done.stderr
        assert_nothing_half_written(disk / "out")
        assert list((disk / "out").glob("checkpoint-net-00?.npz"))
        subprocess.run(["mount", "-o", f"remount,size={64 << 20}", disk], check=True)
        done = command("minicnn.train", *arguments, "--resume")
        assert done.returncode == 0, done.stderr
        assert state(disk / "out") == state(run[0])


def test_a_read_only_folder(tmp_path):
    disk = tmp_path / "disk"
    with small_disk(disk, 1 << 20):
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        done = command("minicnn.train", *TINY, "--out", disk / "out")
        assert done.returncode == 2
        assert done.stderr == f"minicnn.train: error: {disk / 'out'}: Read-only file system\n"


def test_a_read_only_file(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "out"
    folder.mkdir()
    monkeypatch.setattr(files, "open", Faulty(1, errno.EACCES), raising=False)
    assert training_in(folder) == 2
    told = f"minicnn.train: error: {folder / 'config.json'}: Permission denied\n"
    assert capsys.readouterr().err == told
    assert not list(folder.iterdir())


def test_temporary_files_of_a_killed_process_are_removed(run, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / ".checkpoint-net-001.npz.0123abcd.tmp").write_bytes(b"half")
    assert training_in(folder) == 0
    assert {path.name for path in folder.iterdir()} == {path.name for path in run[0].iterdir()}


@pytest.mark.parametrize("name", WRITTEN[-4:])
def test_other_files_are_not_overwritten(tmp_path, capsys, name):
    (tmp_path / name).write_text("precious")
    assert training_in(tmp_path) == 2
    assert (
        f"{tmp_path}: holds {name} without config.json; choose another folder"
        in capsys.readouterr().err
    )
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"recipe": 1}', b"{}" * 10**6]
)
def test_a_bad_config_is_refused(tmp_path, capsys, content):
    (tmp_path / "config.json").write_bytes(content)
    assert training_in(tmp_path, "--resume") == 2
    told = f"minicnn.train: error: {tmp_path / 'config.json'}: not the config of a run, expected "
    assert capsys.readouterr().err.startswith(told)
    assert (tmp_path / "config.json").read_bytes() == content


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_config_that_is_a_pipe_is_refused(tmp_path, capsys):
    os.mkfifo(tmp_path / "config.json")
    assert training_in(tmp_path, "--resume") == 2
    assert "config.json: not the config of a run, expected" in capsys.readouterr().err


def test_resuming_on_another_device_is_reported(run, tmp_path, capsys):
    folder = tmp_path / "out"
    shutil.copytree(run[0], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "device": "cuda"}))
    assert training_in(folder, "--resume") == 0
    assert "started with cuda in float32, minicnn" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
@pytest.mark.parametrize(("stdout", "stderr"), [(True, False), (False, True)])
def test_training_continues_where_stdout_or_stderr_cannot_be_written(run, tmp_path, stdout, stderr):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONUNBUFFERED", None)  # users do not set it
    arguments = [a for a in TINY if a != "--quiet"]  # with a progress bar
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "minicnn.train", *arguments, "--out", tmp_path / "out"],
            env=environment,
            stdout=full if stdout else subprocess.PIPE,
            stderr=full if stderr else subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
        )
    if stdout:
        assert done.returncode == 2
        last = done.stderr.splitlines()[-1]
        assert last == ("minicnn.train: error: output cannot be written: No space left on device")
    else:
        assert done.returncode == 0
        assert "Ensemble of 2: " in done.stdout
    assert state(tmp_path / "out") == state(run[0])


@pytest.mark.full(but="2")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_signal_saves_after_the_terminal_has_closed(run, tmp_path, workers):
    """As if `tee` printed the output, and Ctrl-C ended it too."""
    folder = tmp_path / "out"
    arguments = [a for a in TINY if a != "--quiet"]
    process = start_slowly(tmp_path, *arguments, f"--workers={workers}", "--out", str(folder))
    process.stdout.close()
    process.stderr.close()
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(30) == 130
    assert list(folder.glob("checkpoint-net-*.npz"))
    assert training_in(folder, "--resume") == 0
    assert state(folder) == state(run[0])


def test_a_folder_whose_name_stdout_cannot_write(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONIOENCODING", "ascii")
        done = command("minicnn.train", *TINY, "--epochs=1", "--nets=1", "--out", tmp_path / "\xe9")
    assert done.returncode == 0, done.stderr
    assert "\\xe9" in done.stdout


def test_resuming_an_empty_folder_is_reported(tmp_path, capsys):
    assert training_in(tmp_path / "out", "--resume", "--nets=1", "--epochs=1") == 0
    assert "out holds no run to resume; a new one starts" in capsys.readouterr().err


# ---- memory --------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="limits a process's memory as Linux does")
def test_too_little_memory_is_one_line(tmp_path):
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2);"
    limit += "import runpy; sys.argv[1:2] = []; runpy.run_module('minicnn.train', {}, '__main__')"
    large = "--batch-size=5000", "--limit=6000", "--workers=1"
    one_thread = {"OPENBLAS_NUM_THREADS": "1"}  # each thread uses memory
    done = subprocess.run(
        [sys.executable, "-c", limit, str(1500 << 20), *TINY, *large, "--out", tmp_path / "out"],
        env={**os.environ, "PYTHONPATH": str(ROOT), **one_thread},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "error: out of memory; try a smaller --memory or --batch-size" in done.stderr
    assert done.stderr.endswith(SAVED) and "Traceback" not in done.stderr
    assert_nothing_half_written(tmp_path / "out")


def test_memory_that_runs_out_in_training_loses_nothing(run, tmp_path, monkeypatch, capsys):
    step = Trainer.step

    def hungry(trainer):
        if trainer.steps_done == 6:
            raise MemoryError
        step(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", hungry)
        assert training_in(tmp_path) == 2
    assert capsys.readouterr().err.endswith(f"or fewer --workers{SAVED}")
    assert checkpoint.load(tmp_path / "checkpoint-net-001.npz")[1]["step"] == 4
    assert training_in(tmp_path, "--resume") == 0
    assert state(tmp_path) == state(run[0])


# ---- other processes -----------------------------------------------------------------------------


# minicnn.train whose net 2 kills its process in the middle of the second epoch.
DEADLY = """
import os, signal, sys
from pathlib import Path
from minicnn import train
from minicnn.training.trainer import Trainer
step, mark = Trainer.step, Path(__file__).with_name("died")
def deadly(self):
    step(self)
    if 2 in self.nets and self.steps_done == 6 and len(os.listdir(mark)) < {times}:
        (mark / str(os.getpid())).touch()
        os.kill(os.getpid(), signal.SIGKILL)
Trainer.step = deadly
if __name__ == "__main__":
    sys.exit(train.main())
"""


@pytest.mark.skipif(not hasattr(os, "setpgid"), reason="needs POSIX processes")
@pytest.mark.parametrize("times", [1, 2])
def test_a_worker_that_dies_is_reported_and_its_net_goes_on(run, tmp_path, times):
    (tmp_path / "deadly.py").write_text(DEADLY.format(times=times))
    (tmp_path / "died").mkdir()
    done = subprocess.run(
        [sys.executable, tmp_path / "deadly.py", *TINY, "--workers=2", "--out", tmp_path / "out"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    told = "warning: the process that trained net 2 died; another one continues from the checkpoint"
    assert f"minicnn.train: {told}\n" in done.stderr
    assert "Traceback" not in done.stderr
    if times == 1:
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode == 2, done.stderr
        assert "error: a worker process died, and so did its replacement;" in done.stderr
        assert done.stderr.endswith(SAVED)
        assert checkpoint.load(tmp_path / "out/checkpoint-net-002.npz")[1]["step"] == 4
        assert training_in(tmp_path / "out", "--resume") == 0
    assert state(tmp_path / "out") == state(run[0])


@pytest.mark.skipif(not files.fcntl, reason="this system has no locks of files")
def test_a_folder_in_use_is_refused_and_left_alone(run, tmp_path):
    folder = tmp_path / "out"
    (tmp_path / "hold").touch()
    process = start_slowly(tmp_path, *TINY, "--workers=1", "--out", str(folder), seconds=0)
    second = command("minicnn.train", *TINY, "--out", folder, "--resume")
    (tmp_path / "hold").unlink()
    assert second.returncode == 2
    assert second.stderr.startswith(f"minicnn.train: error: {folder}: in use by another process")
    assert second.stderr.count("\n") == 1
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert state(folder) == state(run[0])


@pytest.mark.skipif(not files.fcntl, reason="this system has no locks of files")
def test_a_worker_whose_parent_was_killed_keeps_the_folder(run, tmp_path):
    """A late checkpoint of that worker must not overwrite a newer one of another run."""
    folder = tmp_path / "out"
    process = start_slowly(tmp_path, *TINY, "--workers=2", "--out", str(folder))
    process.kill()
    process.communicate()
    statuses = set()
    while 0 not in statuses:
        done = command("minicnn.train", *TINY, "--out", folder, "--resume")
        statuses.add(done.returncode)
        assert done.returncode == 0 or "in use by another process" in done.stderr
    assert state(folder) == state(run[0])


def test_a_folder_is_free_again_after_its_process(tmp_path):
    with files.in_use(tmp_path, alone=True), files.in_use(tmp_path):
        if files.fcntl:
            with pytest.raises(files.DataError, match="in use"), files.in_use(tmp_path, alone=True):
                pass
    with files.in_use(tmp_path, alone=True):
        pass


def test_a_file_system_without_locks_is_reported(tmp_path, monkeypatch):
    if not files.fcntl:
        pytest.skip("this system has no locks of files")

    def refuse(handle, kind):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="cannot be locked"), files.in_use(tmp_path, alone=True):
        pass


@pytest.mark.full(but="2")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_second_signal_stops_at_once(run, tmp_path, workers):
    """In the middle of a step of 60 seconds; the last checkpoints stay intact."""
    folder = tmp_path / "out"
    process = start_slowly(
        tmp_path, *TINY, f"--workers={workers}", "--out", str(folder), seconds=60
    )
    os.kill(process.pid, signal.SIGINT)
    while "press Ctrl-C again to stop at once" not in process.stderr.readline():
        assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "stopped at once; the last checkpoints are intact" in stderr
    assert "Traceback" not in stderr
    assert_nothing_half_written(folder)
    assert training_in(folder, "--resume") == 0
    assert state(folder) == state(run[0])


# ---- nets that diverge ---------------------------------------------------------------------------


def poisoned(monkeypatch, net, step, value=np.nan):
    """Set a net's weights to `value` before a step, counted from 0."""
    healthy = Trainer.step

    def sick(trainer):
        if net in trainer.nets and trainer.steps_done == step:
            trainer.model.params[trainer.nets.index(net)] = value
        healthy(trainer)

    monkeypatch.setattr(Trainer, "step", sick)


@pytest.mark.full(but="5-2-2")
@pytest.mark.parametrize(("step", "epoch", "of_epoch"), [(0, 1, 1), (5, 2, 2), (7, 2, 4)])
def test_a_net_that_diverges_stops_and_the_others_go_on(
    run, tmp_path, monkeypatch, capsys, step, epoch, of_epoch
):
    folder = tmp_path / "out"
    poisoned(monkeypatch, 1, step)
    assert training_in(folder) == 0
    stdout, stderr = capsys.readouterr()
    told = f"net 1 stopped: its loss or weights were not finite in epoch {epoch}, "
    assert f"minicnn.train: warning: {told}step {of_epoch} of 4\n" in stderr
    assert "CNN 1" not in stdout and "CNN 2: Epochs=2" in stdout and "Ensemble of 1" in stdout
    rows = list(csv.DictReader((folder / "history.csv").open()))
    expected = list(csv.DictReader((run[0] / "history.csv").open()))
    expected = [row for row in expected if row["net"] == "2" or int(row["epoch"]) < epoch]
    for row in [*rows, *expected]:
        del row["seconds"]
    assert rows == expected
    ours, theirs = (checkpoint.load(f / "checkpoint.npz")[0] for f in (folder, run[0]))
    for name in set(ours) - {"history"}:
        np.testing.assert_array_equal(ours[name][1], theirs[name][1])
        assert np.isnan(ours[name][0]).all()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["diverged"] == [{"net": 1, "epoch": epoch, "step": of_epoch}]
    assert [net["net"] for net in summary["nets"]] == [2]
    # Resuming changes nothing, and net 2 alone predicts.
    before = state(folder)
    assert training_in(folder, "--resume") == 0
    assert state(folder) == before
    arguments = ["--checkpoint", str(folder / "checkpoint.npz"), "--data=digits", "--quiet"]
    assert predict.main([*arguments, "--device=numpy", "--out", str(tmp_path / "p.csv")]) == 0
    submission = (folder / "submission.csv").read_text().splitlines()
    assert (tmp_path / "p.csv").read_text().splitlines()[:41] == submission


def test_if_every_net_diverges_the_run_fails(tmp_path, capsys):
    assert training_in(tmp_path, "--learning-rate=1e30", "--epochs=1") == 2
    stderr = capsys.readouterr().err
    for net in (1, 2):
        assert f"warning: net {net} stopped: its loss or weights were not fin" in stderr
    last = stderr.splitlines()[-1]
    told = "minicnn.train: error: every net stopped because its loss or weights were not finite; "
    assert last.startswith(told) and "--learning-rate" in last
    assert not (tmp_path / "submission.csv").exists()


def test_a_net_that_diverges_in_its_last_update_has_no_vote(tmp_path, capsys, monkeypatch):
    """All its losses are finite and nothing is validated, but its predictions are not finite."""
    update = Trainer.step

    def step(trainer):
        update(trainer)
        if trainer.nets[0] == 1 and trainer.steps_done == 4:
            trainer.model.params[...] = 1e30

    monkeypatch.setattr(Trainer, "step", step)
    assert training_in(tmp_path, "--validation-fraction=0", "--epochs=1") == 0
    stdout, stderr = capsys.readouterr()
    assert "net 1 stopped" in stderr and "epoch 1, step 4 of 4" in stderr
    assert "Ensemble of 1" in stdout
    about = checkpoint.load(tmp_path / "checkpoint.npz")[1]
    assert about["diverged"] == [{"net": 1, "epoch": 1, "step": 4}]
