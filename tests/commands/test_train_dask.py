"""minicnn.train on a real Dask cluster: the run folder equals that of a run on this machine.

Whatever is killed: a worker, the command, or both workers. The workers of these clusters can be
held in an epoch, and tell which epochs they begin.
"""

import signal

import pytest
from dask_cluster import DEADLINE, Cluster, line_with, other_version, refusal, start, until
from digit_files import write_digits
from runs import TINY, command, state

from minicnn import train
from minicnn.training import checkpoint, cluster

# Begun epochs go to the file "begun". While a file "hold-EPOCH" exists, no step of this epoch ends.
# Dask runs a preload script several times.
PRELOAD = """
import time
from pathlib import Path
from minicnn.training.trainer import Trainer
if Trainer.step.__module__ == Trainer.__module__:
    quick, begin = Trainer.step, Trainer.begin_epoch
    def begin_epoch(self, epoch):
        begin(self, epoch)
        with open("begun", "a") as file:
            file.write(f"{self.nets[0]} {epoch + 1}\\n")
    def step(self):
        quick(self)
        while Path(f"hold-{self.epochs_done + 1}").exists():
            time.sleep(0.01)
    Trainer.begin_epoch, Trainer.step = begin_epoch, step
"""


# TINY, with its images in a file: drawing all of the embedded digits takes longer than training.
SMALL = [option for option in TINY if "limit" not in option]
SMALL += ["--data=small.npz", "--recipe=demo"]


@pytest.fixture
def dask(tmp_path):
    """A cluster that the test may damage, and SMALL's images in its folder."""
    pytest.importorskip("distributed")
    write_digits(tmp_path / "small.npz", 150, 40)
    (tmp_path / "hold.py").write_text(PRELOAD)
    found = Cluster(tmp_path, preload=tmp_path / "hold.py")
    yield found
    found.close()


def begun(folder):
    """The (net, epoch) that workers have begun, in order."""
    path = folder / "begun"
    lines = path.read_text().splitlines() if path.exists() else []
    return [tuple(map(int, line.split())) for line in lines]


def hold_in_second_epoch(dask):
    """Start a training; returns its process while both nets are in their second epochs."""
    (dask.folder / "hold-2").touch()
    given = *SMALL, "--dask", dask.address, "--out", "out"
    training = start("minicnn.train", *given, cwd=dask.folder)
    until(lambda: {(1, 2), (2, 2)} <= set(begun(dask.folder)))
    partial = [dask.folder / "out" / f"checkpoint-net-00{net}.npz" for net in (1, 2)]
    until(lambda: all(path.exists() for path in partial))
    assert [len(checkpoint.load(path)[0]["history"]) for path in partial] == [1, 1]
    return training


def test_a_killed_worker_costs_the_epoch_in_progress(dask, run):
    """The other worker repeats it; the folder is that of a run on this machine, to the bit."""
    training = hold_in_second_epoch(dask)
    dask.workers["worker-0"].kill()
    line = line_with("warning", training)
    assert line.startswith("minicnn.train: warning: the process that trained net ")
    assert line.endswith(" died; another one continues from the checkpoint\n")
    (dask.folder / "hold-2").unlink()
    _, errors = training.communicate(timeout=DEADLINE)
    assert training.returncode == 0, errors
    out = dask.folder / "out"
    assert state(out) == state(run[0])
    assert {path.name for path in out.iterdir()} == {path.name for path in run[0].iterdir()}
    again = int(line.split("net ")[1].split()[0]), 2
    assert sorted(begun(dask.folder)) == sorted([(1, 1), (2, 1), (1, 2), (2, 2), again])


@pytest.mark.full(beside="test_a_killed_worker_costs_the_epoch_in_progress")
@pytest.mark.parametrize("where", ["cluster", "here"])
def test_a_killed_command_continues(dask, run, where):
    training = hold_in_second_epoch(dask)
    training.kill()
    training.wait()
    (dask.folder / "hold-2").unlink()
    address = ("--dask", dask.address) if where == "cluster" else ()
    done = command("minicnn.train", *SMALL, *address, "--out=out", "--resume", cwd=dask.folder)
    assert done.returncode == 0, done.stderr
    assert state(dask.folder / "out") == state(run[0])
    again = [(1, 2), (2, 2)] * (where == "cluster")
    assert sorted(begun(dask.folder)) == sorted([(1, 1), (2, 1), (1, 2), (2, 2), *again])


@pytest.mark.full(beside="test_a_killed_worker_costs_the_epoch_in_progress")
def test_ctrl_c_names_the_line_that_continues(dask, run):
    training = hold_in_second_epoch(dask)
    training.send_signal(signal.SIGINT)
    _, errors = training.communicate(timeout=DEADLINE)
    assert training.returncode == 130
    assert "stopping without the epochs in progress" in errors
    assert errors.splitlines()[-1].startswith("stopped and saved; continue with: python -m minicnn")
    assert errors.splitlines()[-1].endswith(f"--dask {dask.address} --out out --resume")
    (dask.folder / "hold-2").unlink()
    done = command(
        "minicnn.train", *SMALL, "--dask", dask.address, "--out=out", "--resume", cwd=dask.folder
    )
    assert done.returncode == 0, done.stderr
    assert state(dask.folder / "out") == state(run[0])


@pytest.mark.full(beside="test_a_killed_worker_costs_the_epoch_in_progress")
def test_a_cluster_without_workers_is_waited_for(dask, run):
    training = hold_in_second_epoch(dask)
    for worker in dask.workers.values():
        worker.kill()
    told = f"the cluster at {dask.address} has no workers left; waiting for new ones"
    line = line_with("waiting", training)
    assert line == f"minicnn.train: warning: {told}\n"
    (dask.folder / "hold-2").unlink()
    dask.add_worker()
    _, errors = training.communicate(timeout=DEADLINE)
    assert training.returncode == 0, errors
    assert state(dask.folder / "out") == state(run[0])


@pytest.mark.full(beside="test_a_killed_worker_costs_the_epoch_in_progress")
def test_a_cluster_that_goes_away(dask, run):
    training = hold_in_second_epoch(dask)
    dask.scheduler.kill()
    _, errors = training.communicate(timeout=DEADLINE)
    assert training.returncode == 2
    assert errors.splitlines()[-1] == (
        f"minicnn.train: error: the cluster at {dask.address} is gone; the last checkpoints are "
        "intact; --resume continues from them"
    )
    assert "Traceback" not in errors
    done = command("minicnn.train", *SMALL, "--out=out", "--resume", cwd=dask.folder)
    assert done.returncode == 0, done.stderr
    assert state(dask.folder / "out") == state(run[0])


@pytest.mark.full(beside="test_a_scheduler_that_cannot_be_reached")
def test_workers_of_another_version_or_without_the_data(dask):
    given = *SMALL, "--dask", dask.address, "--out=out"
    dask.replace_workers(environment=other_version(dask.folder / "other"))
    line = refusal(command("minicnn.train", *given, cwd=dask.folder))
    assert "worker on " in line
    assert "has minicnn 99." in line and "expected 0." in line
    assert not (dask.folder / "out").exists()


def test_a_scheduler_that_cannot_be_reached(tmp_path, capsys):
    pytest.importorskip("distributed")
    out = f"--out={tmp_path / 'out'}"
    for address, named in (
        ("tcp://127.0.0.1:1", "Connection refused"),
        ("somewhere", "not of the form tcp://HOST:PORT"),
    ):
        assert train.main([*TINY, out, f"--dask={address}"]) == 2
        line = capsys.readouterr().err
        assert named in line and line.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--workers=2", "--threads=1"])
def test_processes_of_this_machine_are_refused(option, capsys):
    assert train.main([*TINY, "--dask=tcp://127.0.0.1:1", option]) == 2
    told = f"argument {option[:-2]}: not allowed with --dask: it sets this machine's processes"
    assert capsys.readouterr().err == f"minicnn.train: error: {told}\n"


@pytest.mark.full(beside="test_a_scheduler_that_cannot_be_reached")
def test_a_cluster_that_never_had_workers(tmp_path, capsys, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr(cluster, "_PATIENCE", 2)
    empty = Cluster(tmp_path, workers=0)
    try:
        out = f"--out={tmp_path / 'out'}"
        assert train.main([*TINY, out, f"--dask={empty.address}"]) == 2
    finally:
        empty.close()
    assert f"the scheduler at {empty.address} has no workers; start" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
