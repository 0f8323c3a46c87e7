"""Cache folders as they are elsewhere: not executable, full, read-only, another user's, none."""

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from runs import ROOT, in_own_mounts

from minicnn.backends import native

pytestmark = pytest.mark.skipif(native.problem() is not None, reason=str(native.problem()))

# Loads two libraries. Prints the warnings, then the folder of each library.
LOAD = """
import sys, warnings
from minicnn.backends import native
warnings.showwarning = lambda message, *_: print(message)
for number in (7, 8):
    source = 'extern "C" int number() { return %d; }' % number
    try:
        library, path = native.load("number", {"number.cpp": source}, ["-O1"])
    except native.CompileError as error:
        sys.exit(f"error: {error}")
    assert library.number() == number
    print(path.parent)
"""
ANEW = ": each run compiles its kernels anew"
OTHER = 12345  # a user without an entry in the list of users
needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may become another user"
)


def load(mounts, **environment):
    """The process that runs LOAD after these mounts."""
    return in_own_mounts(
        mounts, sys.executable, "-c", LOAD, **{native._INHERITED: None, **environment}
    )


def tmpfs(folder, options):
    folder.mkdir()
    return f"mount -t tmpfs -o {options} x {shlex.quote(str(folder))}"


def assert_replaced(done, reason):
    """A temporary folder was used, and one line says why."""
    assert done.returncode == 0, done.stderr
    warning, *folders = done.stdout.splitlines()
    assert warning == f"the cache folder {reason}{ANEW}"
    assert len(folders) == 2 and len(set(folders)) == 1
    assert Path(folders[0]).name.startswith("minicnn-")
    assert not Path(folders[0]).exists()  # removed at the end


def test_a_noexec_cache_folder_is_replaced(tmp_path):
    done = load(tmpfs(tmp_path / "cache", "noexec"), MINICNN_CACHE=tmp_path / "cache")
    assert_replaced(done, "is mounted noexec")


@pytest.mark.parametrize(
    ("cache", "reason"), [("disk", "is mounted noexec"), ("file", "cannot be written")]
)
def test_where_the_temporary_folder_is_noexec_too_nothing_is_compiled(tmp_path, cache, reason):
    (tmp_path / "file").touch()
    (tmp_path / "no compiler").write_text('#!/bin/sh\n[ "$1" = --version ] || touch "$0 ran"\n')
    (tmp_path / "no compiler").chmod(0o755)
    done = load(
        tmpfs(tmp_path / "disk", "noexec"),
        MINICNN_CACHE=tmp_path / cache,
        TMPDIR=tmp_path / "disk",
        CXX=shlex.quote(str(tmp_path / "no compiler")),
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == (
        f"error: the cache folder {reason}, and {tmp_path / 'disk'} is mounted noexec; "
        "set MINICNN_CACHE to a folder that allows execution\n"
    )
    assert not (tmp_path / "no compiler ran").exists()


def test_files_that_are_not_executed_may_lie_on_a_noexec_disk(tmp_path):
    """As `docker run --read-only --tmpfs /tmp` has it. A GPU's kernels are such files."""
    (tmp_path / "file").touch()
    code = "from minicnn.backends import native\n"
    code += "for n in 1, 2: print(native.keep('a', '.b', n, lambda path: path.write_text('c')))"
    done = in_own_mounts(
        tmpfs(tmp_path / "disk", "noexec"),
        *(sys.executable, "-W", "ignore", "-c", code),
        **{
            "MINICNN_CACHE": tmp_path / "file",
            "TMPDIR": tmp_path / "disk",
            native._INHERITED: None,
        },
    )
    assert done.returncode == 0, done.stderr
    assert all(line.startswith(f"{tmp_path / 'disk'}/minicnn-") for line in done.stdout.split())


@pytest.mark.parametrize("size", ["64k", "4m"])
def test_a_full_cache_folder_is_replaced(tmp_path, size):
    done = load(tmpfs(tmp_path / "cache", f"size={size}"), MINICNN_CACHE=tmp_path / "cache")
    assert_replaced(done, "is full")


def test_a_library_is_found_on_a_disk_that_has_become_full(tmp_path):
    folder = shlex.quote(str(tmp_path / "cache"))
    mounts = tmpfs(tmp_path / "cache", "size=64m")
    first = f"{shlex.quote(sys.executable)} -c {shlex.quote(LOAD)} > /dev/null"
    fill = f"! head -c 64M /dev/zero > {folder}/fill"
    done = load(f"{mounts} && {first} && {fill}", MINICNN_CACHE=tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(tmp_path / "cache" / "native")] * 2


@pytest.mark.parametrize("variable", ["HOME", "XDG_CACHE_HOME", "MINICNN_CACHE"])
def test_a_read_only_home_is_replaced(tmp_path, variable):
    mounts = tmpfs(tmp_path / "home", "ro")
    unset = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "MINICNN_CACHE"))
    assert_replaced(load(mounts, **unset | {variable: tmp_path / "home"}), "cannot be written")


def as_another_user(folder=None):
    """The process that runs LOAD as a user without an entry, with this cache folder or none."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "TMPDIR": "/tmp"}
    environment |= {"MINICNN_CACHE": str(folder)} if folder else {}
    # It may not read Python's own files, if they are in the home of root.
    become = "import os, pwd; from minicnn.backends import native\n"
    become += f"os.setgroups([]); os.setgid({OTHER}); os.setuid({OTHER})\n"
    return subprocess.run(
        [sys.executable, "-c", become + LOAD],
        env=environment,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )


@needs_root
def test_a_user_without_an_entry_and_without_a_home():
    assert_replaced(as_another_user(), "cannot be written")


@needs_root
def test_a_cache_folder_of_another_user_is_replaced():
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        assert_replaced(as_another_user(folder), "cannot be written")
        assert not list(Path(folder).iterdir())


@needs_root
def test_a_file_of_another_user_that_cannot_be_read_is_replaced():
    """In a folder for all users, as /tmp is."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        (Path(folder) / "native").mkdir()
        for path in (folder, Path(folder) / "native"):
            os.chmod(path, 0o1777)
        assert as_another_user(folder).returncode == 0
        for file in (Path(folder) / "native").iterdir():
            os.chown(file, 0, 0)
            os.chmod(file, 0o600)
        assert_replaced(as_another_user(folder), "holds files that cannot be loaded")


def test_a_cpu_whose_name_is_not_utf8(tmp_path):
    (tmp_path / "cpuinfo").write_bytes(b"model name : Prozess\xf6r\nflags : avx \xe9\n")
    mounts = f"mount --bind {shlex.quote(str(tmp_path / 'cpuinfo'))} /proc/cpuinfo"
    done = load(mounts, MINICNN_CACHE=tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(tmp_path / "cache" / "native")] * 2


@pytest.mark.parametrize("utf8", ["0", "1"])
@pytest.mark.parametrize("name", ["two  spaces", "Küche", "日本", "a'b\"c", "-O9", b"Stra\xdfe"])
def test_names_of_cache_folders(tmp_path, name, utf8):
    folder = tmp_path / os.fsdecode(name)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MINICNN_CACHE": str(folder)}
    environment |= {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": utf8}
    environment.pop(native._INHERITED, None)
    code = LOAD.replace("print(path.parent)", "import os; print(os.fsencode(path.parent))")
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [repr(os.fsencode(folder / "native"))] * 2


# ---- CuPy's own folder ---------------------------------------------------------------------------

# A package in CuPy's place, which makes the folder that CuPy makes while it is imported.
CUPY = """
import os
folder = os.environ.get("CUPY_CACHE_DIR", os.path.expanduser("~/.cupy/kernel_cache"))
os.makedirs(folder, exist_ok=True)
raise ImportError(f"made {folder}")
"""
PROBLEM = "from minicnn.backends import cuda; print(cuda.problem())"


def cupy_folder(tmp_path, code=PROBLEM, **environment):
    """The folder that CuPy makes, in a process that runs `code`."""
    (tmp_path / "packages" / "cupy").mkdir(parents=True)
    (tmp_path / "packages" / "cupy" / "__init__.py").write_text(CUPY)
    environment |= {"PYTHONPATH": f"{tmp_path / 'packages'}{os.pathsep}{ROOT}"}
    environment |= {"MINICNN_CACHE": str(tmp_path / "cache"), native._INHERITED: ""}
    before = {name: value for name, value in os.environ.items() if name != "CUPY_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=before | environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and done.stderr == ""
    said, folder = done.stdout.strip().split(": made ")
    assert said == "CuPy cannot be imported"
    return Path(folder)


def test_cupy_keeps_its_own_folder(tmp_path):
    assert cupy_folder(tmp_path, HOME=str(tmp_path)) == tmp_path / ".cupy" / "kernel_cache"


@pytest.mark.parametrize("variable", ["HOME", "CUPY_CACHE_DIR"])
def test_cupy_has_another_folder_where_its_own_cannot_be_written(tmp_path, variable):
    (tmp_path / "file").touch()
    environment = {variable: str(tmp_path / "file" / "folder")}
    assert cupy_folder(tmp_path, **environment) == tmp_path / "cache" / "native"


def test_without_a_home_cupy_leaves_nothing_in_the_working_folder(tmp_path):
    no_home = "import os.path; os.path.expanduser = lambda path: path; " + PROBLEM
    assert cupy_folder(tmp_path, no_home) == tmp_path / "cache" / "native"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "packages"]
