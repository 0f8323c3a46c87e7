"""Studies whose processes die: on a real Dask cluster, and on this machine.

Whatever is killed: nothing is missing or counted twice, and the results equal those of an
undisturbed study to the bit.
"""

import signal
import sqlite3

import psutil
import pytest
from dask_cluster import DEADLINE, Cluster, line_with, other_version, refusal, start, until
from runs import command

from minicnn import load_data, train
from minicnn.studies.store import FILE
from minicnn.training import ensemble

SMALL = (
    "trials --quick --quiet --no-figures --trials=3 --nets=2 --epochs=3 --limit=192 "
    "--test-limit=64 --device=numpy"
).split()


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
    victim = until(lambda: cluster.busy("train_nets"))
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
    line = line_with("warning", study)
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

    # In the working folder of each process: only the study's has the data.
    hardest = "hardest --quick --quiet --no-figures --nets=1 --epochs=1 --limit=64 --device=numpy"
    arguments = *hardest.split(), "--data=/proc/self/cwd/data", "--dask", cluster.address
    cluster.replace_workers()
    line = refusal(command("minicnn.study", *arguments, "--out=one", cwd=tmp_path))
    assert "worker on " in line
    assert "/proc/self/cwd/data: No such file or directory" in line

    cluster.replace_workers(environment=other_version(tmp_path / "other"))
    line = refusal(command("minicnn.study", *arguments, "--out=two", cwd=tmp_path))
    assert "has minicnn 99." in line
    assert "expected 0." in line
