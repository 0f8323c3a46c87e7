"""Studies whose processes die: on a real Dask cluster, and on this machine.

Whatever is killed: nothing is missing or counted twice, and the results equal those of an
undisturbed study to the bit.
"""

import os
import signal
import sqlite3
import subprocess
import sys
import time

import psutil
import pytest
from runs import ROOT, command

from minicnn import load_data, train
from minicnn.studies.store import FILE
from minicnn.training import ensemble

SMALL = (
    "trials --quick --quiet --no-figures --trials=3 --nets=2 --epochs=3 --limit=192 "
    "--test-limit=64 --device=numpy"
).split()
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
DEADLINE = 120  # seconds


def start(*arguments, environment=ENVIRONMENT, **options):
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def until(condition):
    """Wait until condition() is true, and return it."""
    end = time.monotonic() + DEADLINE
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return value


def nets(folder):
    """The stored rows of a study's nets, which must be equal to the bit."""
    try:
        connection = sqlite3.connect(f"file:{folder / FILE}?mode=ro", uri=True)
    except sqlite3.OperationalError:  # the file does not exist yet
        return []
    try:
        return connection.execute(
            "SELECT study, cell, trial, seed, net, accuracy, diverged, probabilities FROM net "
            "ORDER BY net"
        ).fetchall()
    except sqlite3.OperationalError:
        return []
    finally:
        connection.close()


def goes_on(again, folder, undisturbed):
    """Continue a stopped study; asserts that nothing is missing or computed twice."""
    before = len(nets(folder))
    assert 0 < before < 6
    done = command(*again)
    assert done.returncode == 0, done.stderr
    assert f"{before} nets are already trained" in done.stderr
    assert nets(folder) == undisturbed
    return done


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The nets of an undisturbed study in processes of this machine."""
    folder = tmp_path_factory.mktemp("undisturbed") / "study"
    done = command("minicnn.study", *SMALL, "--workers=2", "--out", folder)
    assert done.returncode == 0, done.stderr
    found = nets(folder)
    assert len(found) == 6
    return found


class Cluster:
    """A scheduler and two workers, processes of their own."""

    def __init__(self, folder):
        self.folder, self.workers = folder, {}
        file = folder / "scheduler.json"
        self.scheduler = start(
            *("distributed.cli.dask_scheduler", "--host=127.0.0.1", "--port=0"),
            *("--no-dashboard", "--scheduler-file", file),
            cwd=folder,
        )
        until(file.exists)
        from distributed import Client  # noqa: PLC0415

        self.client = Client(scheduler_file=file, set_as_default=False)
        self.address = self.client.scheduler.address
        for _ in range(2):
            self.add_worker()
        self.client.wait_for_workers(2, timeout=DEADLINE)

    def add_worker(self, environment=ENVIRONMENT, **options):
        name = f"worker-{len(self.workers)}"
        self.workers[name] = start(
            *("distributed.cli.dask_worker", self.address, "--no-nanny", "--nthreads=1"),
            *("--no-dashboard", "--name", name, "--local-directory", self.folder),
            environment=environment,
            **{"cwd": self.folder, **options},
        )

    def busy(self):
        """The name of a worker that trains a net, or None."""
        at_work = self.client.processing()
        known = self.client.scheduler_info(n_workers=-1)["workers"]
        for address, tasks in at_work.items():
            if any("train_nets" in str(task) for task in tasks):
                return known[address]["id"]
        return None

    def close(self):
        self.client.close()
        for process in (*self.workers.values(), self.scheduler):
            process.kill()
            process.wait()


@pytest.fixture
def cluster(tmp_path_factory):
    """A cluster that the test may damage."""
    yield from _cluster(tmp_path_factory)


@pytest.fixture(scope="module")
def sound_cluster(tmp_path_factory):
    """A cluster for tests that do not damage it."""
    yield from _cluster(tmp_path_factory)


def _cluster(tmp_path_factory):
    pytest.importorskip("distributed")
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.close()


@pytest.mark.full(beside="test_a_killed_worker_of_a_cluster_loses_nothing")
def test_a_cluster_gives_the_bits_of_this_machine(sound_cluster, undisturbed, tmp_path):
    done = command(
        "minicnn.study", *SMALL, "--dask", sound_cluster.address, "--out", tmp_path / "study"
    )
    assert done.returncode == 0, done.stderr
    assert ", in 2 processes" in done.stderr
    assert nets(tmp_path / "study") == undisturbed


@pytest.mark.full(beside="test_a_killed_worker_of_a_cluster_loses_nothing")
def test_a_killed_study_on_a_cluster_goes_on(sound_cluster, undisturbed, tmp_path):
    again = "minicnn.study", *SMALL, "--dask", sound_cluster.address, "--out", tmp_path / "study"
    study = start(*again)
    until(lambda: nets(tmp_path / "study"))
    study.kill()
    study.wait()
    done = goes_on(again, tmp_path / "study", undisturbed)
    once_more = command(*again)
    assert "0 nets to train" in once_more.stderr
    assert once_more.stdout == done.stdout


def test_a_killed_worker_of_a_cluster_loses_nothing(cluster, undisturbed, tmp_path):
    study = start("minicnn.study", *SMALL, "--dask", cluster.address, "--out", tmp_path / "study")
    until(lambda: nets(tmp_path / "study"))
    victim = until(cluster.busy)
    cluster.workers[victim].send_signal(signal.SIGKILL)
    assert len(nets(tmp_path / "study")) < 6
    _, errors = study.communicate(timeout=DEADLINE)
    assert study.returncode == 0, errors
    assert nets(tmp_path / "study") == undisturbed


@pytest.mark.full(beside="test_a_killed_worker_of_a_cluster_loses_nothing")
def test_a_cluster_without_workers_is_waited_for(cluster, undisturbed, tmp_path):
    study = start("minicnn.study", *SMALL, "--dask", cluster.address, "--out", tmp_path / "study")
    until(lambda: nets(tmp_path / "study"))
    for worker in cluster.workers.values():
        worker.kill()
    line = study.stderr.readline()
    while "warning" not in line:
        line = study.stderr.readline()
    told = f"warning: the cluster at {cluster.address} has no workers left; waiting for new ones"
    assert line == f"minicnn.study: {told}\n"
    cluster.add_worker()
    _, errors = study.communicate(timeout=DEADLINE)
    assert study.returncode == 0, errors
    assert nets(tmp_path / "study") == undisturbed


@pytest.mark.full(beside="test_a_process_that_dies_takes_only_its_task")
def test_a_killed_process_of_this_machine_loses_nothing(undisturbed, tmp_path):
    study = start("minicnn.study", *SMALL, "--workers=2", "--out", tmp_path / "study")
    until(lambda: nets(tmp_path / "study"))
    workers = [
        process
        for process in psutil.Process(study.pid).children()
        if "spawn_main" in " ".join(process.cmdline())
    ]
    assert len(workers) == 2
    workers[0].kill()
    assert len(nets(tmp_path / "study")) < 6
    _, errors = study.communicate(timeout=DEADLINE)
    assert study.returncode == 0, errors
    assert errors.count("a worker process died; another one repeats its task") == 1
    assert nets(tmp_path / "study") == undisturbed


def test_a_study_that_is_at_work_is_left_alone(tmp_path):
    again = "minicnn.study", *SMALL, "--workers=1", "--out", tmp_path / "study"
    study = start(*again)
    until(lambda: nets(tmp_path / "study"))
    done = command(*again)
    assert done.returncode == 2
    assert "study/trials: in use by another process" in done.stderr
    study.kill()
    study.wait()


@pytest.mark.full(beside="test_a_second_signal_stops_at_once")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_study_that_was_stopped_goes_on(number, undisturbed, tmp_path):
    again = "minicnn.study", *SMALL, "--workers=2", "--out", tmp_path / "study"
    study = start(*again)
    until(lambda: nets(tmp_path / "study"))
    workers = psutil.Process(study.pid).children()
    study.send_signal(number)
    _, errors = study.communicate(timeout=DEADLINE)
    assert study.returncode == (130 if number == signal.SIGINT else -number)
    if number != signal.SIGKILL:
        assert f"continue with: python -m minicnn.study {' '.join(SMALL)}" in errors
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive
    goes_on(again, tmp_path / "study", undisturbed)


def test_a_trial_equals_a_run_of_train(undisturbed, tmp_path):
    """The second trial's nets are nets 3 and 4 of minicnn.train, to the bit."""
    arguments = train._parser().parse_args(
        "--nets=2 --first-net=3 --epochs=3 --limit=192 --test-limit=64 --device=numpy "
        "--validation-fraction=0 --recipe=demo --quiet --no-figures".split()
    )
    seen = []
    keep = ensemble.train_ensemble

    def watched(*given):
        seen.append(keep(*given))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ensemble, "train_ensemble", watched)
        train.train(arguments, tmp_path / "run")
    expected = [row[7] for row in undisturbed if row[2] == 2]
    assert [array.tobytes() for array in seen[0].probabilities] == expected


def refusal(done):
    """The only error line of a command that refuses to continue."""
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if "error" in line]
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.mark.full(but="somewhere")
@pytest.mark.parametrize(
    ("address", "named"),
    [
        ("tcp://127.0.0.1:1", "Connection refused"),
        ("somewhere", "not of the form tcp://HOST:PORT"),
        ("", "not of the form tcp://HOST:PORT"),
    ],
)
def test_a_cluster_that_cannot_be_reached(address, named, tmp_path):
    done = command("minicnn.study", *SMALL, "--dask", address, "--out", tmp_path / "study")
    line = refusal(done)
    assert named in line
    assert "expected the address that `dask scheduler` prints" in line


@pytest.mark.full(beside="test_a_killed_worker_of_a_cluster_loses_nothing")
def test_a_cluster_that_goes_away(cluster, tmp_path):
    study = start("minicnn.study", *SMALL, "--dask", cluster.address, "--out", tmp_path / "study")
    until(lambda: nets(tmp_path / "study"))
    cluster.scheduler.kill()
    _, errors = study.communicate(timeout=DEADLINE)
    assert study.returncode == 2
    told = f"error: the cluster at {cluster.address} is gone; the nets trained so far are saved"
    assert errors.splitlines()[-1] == f"minicnn.study: {told}"
    assert "Traceback" not in errors


@pytest.mark.full(beside="test_a_cluster_that_cannot_be_reached")
def test_workers_of_another_version_or_without_the_data(cluster, tmp_path):
    """The cluster's only worker lacks the data; then it has another version."""
    images, labels = load_data("digits")[0]
    data = tmp_path / "data"
    data.mkdir()
    for name, count in (("train", 64), ("test", 32)):
        rows = ["label," + ",".join(f"pixel{i}" for i in range(784))] if name == "train" else []
        rows = rows or [",".join(f"pixel{i}" for i in range(784))]
        for image, label in zip(images[:count], labels, strict=False):
            pixels = ",".join(map(str, image.ravel()))
            rows.append(f"{label},{pixels}" if name == "train" else pixels)
        (data / f"{name}.csv").write_text("\n".join(rows) + "\n")

    def only(**options):
        for process in cluster.workers.values():
            process.kill()
            process.wait()
        cluster.add_worker(**options)
        until(
            lambda: (
                [
                    worker["id"]
                    for worker in cluster.client.scheduler_info(n_workers=-1)["workers"].values()
                ]
                == [list(cluster.workers)[-1]]
            )
        )

    # In the working folder of each process: only the study's has the data.
    hardest = "hardest --quick --quiet --no-figures --nets=1 --epochs=1 --limit=64 --device=numpy"
    arguments = *hardest.split(), "--data=/proc/self/cwd/data", "--dask", cluster.address
    only()
    line = refusal(command("minicnn.study", *arguments, "--out=one", cwd=tmp_path))
    assert "worker on " in line
    assert "/proc/self/cwd/data: No such file or directory" in line

    other = tmp_path / "other"
    other.mkdir()
    subprocess.run(["cp", "-r", ROOT / "minicnn", ROOT / "kernels", other], check=True)
    init = other / "minicnn" / "__init__.py"
    init.write_text(init.read_text().replace('__version__ = "', '__version__ = "99.'))
    only(environment={**os.environ, "PYTHONPATH": str(other)})
    line = refusal(command("minicnn.study", *arguments, "--out=two", cwd=tmp_path))
    assert "has minicnn 99." in line
    assert "expected 0." in line
