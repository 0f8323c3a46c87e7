"""Commands on machines as people have them: containers, limits, compilers, file systems."""

import os
import re
import shlex
import signal
import sys
from pathlib import Path

import pytest
from cases import with_kernels
from runs import TINY, command, in_own_mounts, python, start_slowly, state

from minicnn import machine, predict, study, train
from minicnn.backends import native

COMPILED = [*(a for a in TINY if a != "--device=numpy"), "--device=cpu"]
ANEW = "minicnn.train: warning: the cache folder {}: each run compiles its kernels anew"
several_cores = pytest.mark.skipif(machine.cores() < 2, reason="needs two cores")


def minicnn(mounts, module, *arguments, **environment):
    """The process of a command after these mounts."""
    return in_own_mounts(mounts, sys.executable, "-m", module, *arguments, **environment)


# ---- shared memory -------------------------------------------------------------------------------


def without_shared_memory(folder):
    """A /dev without shm."""
    new = shlex.quote(str(folder / "dev"))
    (folder / "dev").mkdir()
    names = "null zero full random urandom"
    files = f"for n in {names}; do touch {new}/$n && mount --bind /dev/$n {new}/$n || exit; done"
    return f"mount -t tmpfs x {new} && {files} && mount --rbind {new} /dev && ! test -e /dev/shm"


def read_only_shared_memory(folder):
    return "mount -t tmpfs -o ro x /dev/shm"


@pytest.mark.full(but="without_shared_memory")
@pytest.mark.parametrize("mounts", [without_shared_memory, read_only_shared_memory])
def test_training_needs_no_shared_memory(run, tmp_path, mounts):
    folder = tmp_path / "out"
    process = start_slowly(tmp_path, *TINY, "--workers=2", "--out", str(folder))
    os.kill(process.pid, signal.SIGINT)
    process.communicate()
    shell = mounts(tmp_path)
    resumed = ["--out", folder, "--resume"], ["--out", tmp_path / "new"]
    for more in resumed:
        done = minicnn(shell, "minicnn.train", *TINY, "--workers=2", *more)
        assert done.returncode == 0, done.stderr
        assert "Processes: 2." in done.stderr and "warning" not in done.stderr
        assert state(Path(more[1])) == state(run[0])


@pytest.mark.full(beside="test_training_needs_no_shared_memory")
def test_a_study_needs_no_shared_memory(tmp_path):
    small = "--quick --quiet --no-figures --trials=1 --nets=2 --epochs=1 --limit=64 --device=numpy"
    arguments = *small.split(), "--workers=2", "--out", tmp_path / "study"
    done = minicnn(without_shared_memory(tmp_path), "minicnn.study", "trials", *arguments)
    assert done.returncode == 0, done.stderr
    assert "in 2 processes" in done.stderr


# ---- limits --------------------------------------------------------------------------------------


@pytest.mark.full(but="version 2")
@pytest.mark.parametrize(
    "files",
    [
        {"cpu.max": "100000 100000\n"},
        {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"},
    ],
    ids=["version 2", "version 1"],
)
def test_a_training_under_a_quota_of_one_cpu_is_one_process(run, tmp_path, files):
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(text)
    mounts = f"mount --bind {shlex.quote(str(tmp_path / 'groups'))} /sys/fs/cgroup"
    done = minicnn(mounts, "minicnn.train", *TINY, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "Processes: 1." in done.stderr
    assert state(tmp_path / "out") == state(run[0])


@pytest.mark.full(beside="test_a_training_under_a_quota_of_one_cpu_is_one_process")
def test_a_training_fits_into_the_memory_of_its_group(tmp_path):
    limit = 300 << 20  # more than one process needs, less than two need
    (tmp_path / "groups").mkdir()
    (tmp_path / "groups" / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "groups" / "memory.current").write_text(f"{limit // 2}\n")
    (tmp_path / "groups" / "memory.stat").write_text(f"active_file {limit // 2}\n")
    mounts = f"mount --bind {shlex.quote(str(tmp_path / 'groups'))} /sys/fs/cgroup"
    arguments = [*TINY, "--epochs=1", "--out", tmp_path / "out"]
    done = minicnn(mounts, "minicnn.train", *arguments)
    assert done.returncode == 0, done.stderr
    assert "Processes: 1." in done.stderr
    refused = minicnn(mounts, "minicnn.train", *arguments, "--workers=2", "--resume")
    assert refused.returncode == 2
    assert f"expected at most the {limit:,} that are free" in refused.stderr


# ---- cache folders and compilers -----------------------------------------------------------------


def counting_compiler(folder):
    """(a value for $CC, a function that counts the compilations of a file)."""
    log, path = folder / "log", folder / "cc"
    [*real], _ = native._compiler("c")
    path.write_text(
        f'#!/bin/sh\necho "$@" >> {shlex.quote(str(log))}\nexec {shlex.join(real)} "$@" -O0\n'
    )
    path.chmod(0o755)
    return shlex.quote(str(path)), lambda file: len(re.findall(rf"-c {file}", log.read_text()))


@with_kernels
def test_training_with_a_noexec_cache_folder_compiles_once(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    compiler, count = counting_compiler(tmp_path)
    done = minicnn(
        f"mount -t tmpfs -o noexec x {shlex.quote(str(disk))}",
        *("minicnn.train", *COMPILED, "--epochs=1", "--workers=2", "--out", tmp_path / "out"),
        **{"MINICNN_CACHE": disk, native._INHERITED: None, "CC": compiler},
    )
    assert done.returncode == 0, done.stderr
    warning, about = done.stderr.splitlines()
    assert warning == ANEW.format("is mounted noexec")
    assert "Device: cpu (as asked). Processes: 2." in about
    assert count("activation.c") == 1


@pytest.mark.full(beside="test_training_with_a_noexec_cache_folder_compiles_once")
@with_kernels
def test_training_where_nothing_may_be_executed_is_numpys(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    compiler, count = counting_compiler(tmp_path)
    done = minicnn(
        f"mount -t tmpfs -o noexec x {shlex.quote(str(disk))}",
        *("minicnn.train", *COMPILED, "--epochs=1", "--workers=2", "--out", tmp_path / "out"),
        **{"MINICNN_CACHE": disk, "TMPDIR": disk, native._INHERITED: None, "CC": compiler},
    )
    assert done.returncode == 0, done.stderr
    warning, about = done.stderr.splitlines()
    assert warning == (
        "minicnn.train: warning: device 'cpu' cannot be used, 'numpy' replaces it: the cache "
        f"folder is mounted noexec, and {disk} is mounted noexec; set MINICNN_CACHE to a folder "
        "that allows execution"
    )
    assert "Device: numpy (in place of cpu). Processes: 2." in about
    assert count("activation.c") == 0


@pytest.mark.full(beside="test_without_openmp_one_line_says_so")
@several_cores
@with_kernels
def test_training_without_openmp_uses_a_process_for_each_core(tmp_path):
    script = tmp_path / "cc"
    [*real], _ = native._compiler("c")
    refuse = 'for a; do [ "$a" = -fopenmp ] && echo "no option -fopenmp" >&2 && exit 1; done'
    script.write_text(f'#!/bin/sh\n{refuse}\nexec {shlex.join(real)} "$@" -O0\n')
    script.chmod(0o755)
    arguments = [*COMPILED, "--epochs=1", "--threads=2", "--out", tmp_path / "out"]
    done = python("-m", "minicnn.train", *arguments, CC=shlex.quote(str(script)))
    assert done.returncode == 0, done.stderr
    warning, about = done.stderr.splitlines()
    assert warning == (
        "minicnn.train: warning: the C compiler has no OpenMP: one core works in each process"
    )
    assert "Device: cpu (as asked). Processes: 2." in about


@pytest.mark.full(beside="test_names_of_cache_folders")
@with_kernels
def test_training_in_the_c_locale_with_umlauts_in_paths(compiled_run, tmp_path):
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TERM": None}
    cache = {"MINICNN_CACHE": str(tmp_path / "Küche 1"), native._INHERITED: None}
    arguments = [*COMPILED, "--epochs=1", "--workers=2", "--out", tmp_path / "Übung 1"]
    done = python("-m", "minicnn.train", *arguments, **locale, **cache)
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 1 and "Device: cpu (as asked)" in done.stderr
    assert list((tmp_path / "Küche 1" / "native").glob("cpu-*.so"))
    assert state(tmp_path / "Übung 1") == state(compiled_run)


# ---- threads -------------------------------------------------------------------------------------

# A command that leaves a file for each process that trains or predicts: its threads that compute.
# None ends before all have counted, because the others would take its cores.
COUNT = """
import importlib, os, sys, threading, time
from pathlib import Path
from minicnn.training import ensemble, prediction
from minicnn.training.trainer import Trainer
def counted(function):
    def then_count(*arguments, **options):
        result = function(*arguments, **options)
        threads = len(os.listdir("/proc/self/task")) - threading.active_count() + 1
        here, deadline = Path(__file__).parent, time.monotonic() + 60
        (here / f"threads-{os.getpid()}").write_text(str(threads))
        while len(list(here.glob("threads-*"))) < int(os.environ["PROCESSES"]):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return result
    return then_count
Trainer.predict = counted(Trainer.predict)
prediction.predict = counted(prediction.predict)
if __name__ == "__main__":
    sys.exit(importlib.import_module(sys.argv[1]).main(sys.argv[2:]))
"""


def count_threads(folder, processes, *arguments, **environment):
    """(the process of a command, how many threads computed in each of its processes)."""
    (folder / "count.py").write_text(COUNT)
    for file in folder.glob("threads-*"):
        file.unlink()
    # Threads of BLAS exist, but do not compute.
    settings = {"OMP_NUM_THREADS": None, "OPENBLAS_NUM_THREADS": "1", "PROCESSES": str(processes)}
    environment = {**settings, **environment}
    done = python(folder / "count.py", *arguments, **environment)
    assert done.returncode == 0, done.stderr
    return done, sorted(int(file.read_text()) for file in folder.glob("threads-*"))


CORES = machine.cores()
counts_threads = pytest.mark.skipif(
    not Path("/proc/self/task").exists() or CORES < 2, reason="needs Linux and two cores"
)
IN_ONE = "--workers=1"  # process
CASES = {
    "all cores": ([IN_ONE], None, [CORES]),
    "the variable": ([IN_ONE], "1", [1]),
    "the variable's first number": ([IN_ONE], "2,1", [2]),
    "the option": ([IN_ONE, "--threads=1"], None, [1]),
    "the option wins": ([IN_ONE, "--threads=2"], "1", [2]),
    "one process is enough": ([f"--threads={CORES}"], None, [CORES]),
    "two processes": (["--workers=2"], None, [CORES // 2, -(-CORES // 2)]),
    "all fit the cores": (
        ["--workers=2", f"--threads={CORES}"],
        "1",
        [CORES // 2, -(-CORES // 2)],
    ),
}


@pytest.fixture(scope="module")
def compiled_run(tmp_path_factory):
    """The folder of an undisturbed run of the kernels in C."""
    folder = tmp_path_factory.mktemp("compiled") / "out"
    done = command("minicnn.train", *COMPILED, "--epochs=1", "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.full(but="the variable$|the option wins")
@pytest.mark.parametrize(("more", "variable", "expected"), CASES.values(), ids=CASES)
@counts_threads
def test_training_has_the_threads_that_are_asked_for_and_the_same_bits(
    cpu_ops, compiled_run, tmp_path, more, variable, expected
):
    if not cpu_ops.threaded:
        pytest.skip("the compiler has no OpenMP")
    arguments = [*COMPILED, "--epochs=1", "--out", tmp_path / "out", *more]
    given = len(expected), "minicnn.train", *arguments
    done, found = count_threads(tmp_path, *given, OMP_NUM_THREADS=variable)
    assert found == expected
    assert f"Processes: {len(expected)}." in done.stderr and "warning" not in done.stderr.lower()
    assert state(tmp_path / "out") == state(compiled_run)


@pytest.mark.full(but="the variable$")
@pytest.mark.parametrize(("more", "variable", "expected"), CASES.values(), ids=CASES)
@counts_threads
def test_predicting_has_the_threads_that_are_asked_for(
    cpu_ops, compiled_run, tmp_path, more, variable, expected
):
    if not cpu_ops.threaded:
        pytest.skip("the compiler has no OpenMP")
    arguments = "--checkpoint", compiled_run / "checkpoint.npz", "--data=digits", "--device=cpu"
    arguments = *arguments, "--quiet", "--out", tmp_path / "submission.csv", *more
    given = len(expected), "minicnn.predict", *arguments
    _, found = count_threads(tmp_path, *given, OMP_NUM_THREADS=variable)
    assert found == expected
    submission = (tmp_path / "submission.csv").read_text().splitlines()
    assert submission[:41] == (compiled_run / "submission.csv").read_text().splitlines()


@with_kernels
def test_a_bad_number_of_threads_in_the_environment_is_one_line(tmp_path):
    arguments = [*COMPILED, "--epochs=1", "--workers=2", "--out", tmp_path / "out"]
    done = python("-m", "minicnn.train", *arguments, OMP_NUM_THREADS="x")
    assert done.returncode == 0, done.stderr
    warning, about = done.stderr.splitlines()
    assert warning == (
        "minicnn.train: warning: OMP_NUM_THREADS: got 'x', expected a positive integer; it is "
        "ignored"
    )
    assert "Processes: 2." in about


@pytest.mark.parametrize("value", ["0", "-1", "x", "1.5", ""])
@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        (train, []),
        (predict, ["--checkpoint=none", "--data=none"]),
        (study, ["trials", "--quick"]),
    ],
)
def test_a_bad_number_of_threads_is_refused(capsys, module, arguments, value):
    with pytest.raises(SystemExit, match="2"):
        module.main([*arguments, f"--threads={value}"])
    expected = r".*: error: argument --threads: got .*, expected a positive integer\n"
    assert re.fullmatch(expected, capsys.readouterr().err)
