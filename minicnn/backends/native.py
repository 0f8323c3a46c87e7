"""Compiles C and C++ sources with the machine's own compiler, caches the libraries, and loads them.

The name of a cached file contains a hash of its inputs: sources, flags, compiler and CPU. Processes
that need the same file at once each build it in a temporary folder and move it into the cache; the
last move wins. Where the cache folder cannot be used, a temporary folder of this run replaces it.
"""

import contextlib
import ctypes
import hashlib
import mmap
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path

from .. import machine
from ..files import DataError, cache_folder

_COMPILERS = {"c++": ("CXX", ("c++", "g++", "clang++")), "c": ("CC", ("cc", "gcc", "clang"))}
_SHOWN_LINES = 30
_INHERITED = "MINICNN_NATIVE"  # tells child processes the folder of this run, if it has one
_ROOM = 16 << 20  # bytes that must be free: more than a library and its object files take


class CompileError(ValueError):
    """A source does not compile; the message contains the compiler's."""


def problem(language="c++"):
    """Why no compiler can be used, in one line; None if one can."""
    if _compiler(language):
        return None
    variable, names = _COMPILERS[language]
    asked = os.environ.get(variable)
    if asked:
        return f"${variable} names no compiler that runs: {asked!r}"
    return f"no compiler is found: install one of {', '.join(names)}, or name it in ${variable}"


@lru_cache
def _compiler(language):
    """(command, version) of the compiler: a tuple of words, and what --version prints; or None."""
    variable, names = _COMPILERS[language]
    try:
        asked = shlex.split(os.environ.get(variable, ""))
    except ValueError:  # an unclosed quotation mark
        return None
    for command in [asked] if asked else [[name] for name in names]:
        with contextlib.suppress(OSError):  # it does not exist, or is no program
            done = call([*command, "--version"])
            if done.returncode == 0:
                return tuple(command), done.stdout
    return None


def call(command, folder=None):
    """The CompletedProcess of a command. Bytes of its output that are not UTF-8 are escaped."""
    return subprocess.run(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="backslashreplace",
        check=False,
    )


def load(name, sources, compile_flags, link_flags=(), language="c++", mode=ctypes.DEFAULT_MODE):
    """(the library that build() makes of these arguments, its path), loaded. Raises CompileError.

    A damaged file in the cache is built once more. A new file that cannot be loaded is built once
    more in a temporary folder.
    """
    make = partial(build, name, sources, compile_flags, link_flags, language)
    path = make()
    with contextlib.suppress(OSError):
        return ctypes.CDLL(str(path), mode=mode), path
    if path not in _made:
        with contextlib.suppress(OSError):
            path.unlink()
    left = path.exists()  # it is new, or another user's
    if left:
        _leave_cache("holds files that cannot be loaded")
        reasons, _reasons[:] = list(_reasons), []  # to be reported if that helps
    path = make()
    try:
        library = ctypes.CDLL(str(path), mode=mode)
    except OSError as error:
        raise CompileError(f"the kernels cannot be loaded: {error}") from None
    if left:
        _reasons[:] = reasons
        _report()
    return library, path


def build(name, sources, compile_flags, link_flags=(), language="c++"):
    """The path of a shared library built from `sources`, {file name: text}; .h files are headers.

    Compiling and linking are two steps, each with its own flags. Raises CompileError.
    """
    missing = problem(language)
    if missing:
        raise CompileError(missing)
    command, version = _compiler(language)

    def make(library):
        folder = library.parent
        for file, text in sources.items():  # it may name folders whose names are not UTF-8
            (folder / file).write_bytes(text.encode("utf-8", "surrogateescape"))
        files = [file for file in sources if not file.endswith(".h")]
        compile_ = [*command, "-fPIC", *compile_flags, "-c"]
        with ThreadPoolExecutor(machine.cores()) as pool:
            calls = [pool.submit(_run, [*compile_, f, "-o", f"{f}.o"], folder) for f in files]
        for done in calls:
            done.result()
        objects = [f"{file}.o" for file in files]
        _run([*command, "-shared", *objects, *link_flags, "-o", library.name], folder)

    made_from = command, version, _cpu(), sources, compile_flags, link_flags
    try:
        _require_execution()
        return keep(name, ".so", made_from, make)
    except OSError as error:
        raise CompileError(f"{name} cannot be compiled: {error}") from None


def keep(name, suffix, made_from, make):
    """The path of a file in the cache. If it is missing, make(path) writes it, in an empty folder.

    made_from: all that its content depends on, with a repr.
    """
    digest = hashlib.sha256(repr(made_from).encode()).hexdigest()[:20]
    file = f"{name}-{digest}{suffix}"
    if (_folder() / file).exists():
        return _folder() / file
    if not _has_room(_folder()) and not os.environ.get(_INHERITED):
        _leave_cache("is full")
    kept = _folder() / file
    with tempfile.TemporaryDirectory(dir=kept.parent) as temporary:
        made = Path(temporary) / f"made{suffix}"
        make(made)
        os.replace(made, kept)
    _made.add(kept)
    _report()
    return kept


_made = set()  # paths of the files that this process has written


def _run(command, folder):
    done = call(command, folder)
    if done.returncode:
        message = "\n".join(done.stderr.splitlines()[:_SHOWN_LINES])
        raise CompileError(f"{shlex.join(command)} failed:\n{message}")


# ---- the folder ----------------------------------------------------------------------------------


def usable_folder():
    """A folder that can be written, a Path: the cache, or one of this run if that cannot be used.

    Raises OSError if there is neither.
    """
    return _folder()


@lru_cache
def _folder():
    """The folder for libraries: the user's cache or, if that is not writable, one of this run."""
    inherited = os.environ.get(_INHERITED)
    if inherited and Path(inherited).is_dir():
        return Path(inherited)
    with contextlib.suppress(OSError, DataError):
        folder = cache_folder() / "native"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    return _leave_cache("cannot be written")


def _leave_cache(reason):
    """Keep files in a temporary folder from now on, also in child processes. Returns it.

    reason: why the cache folder cannot be used; `keep` reports it.
    """
    folder = tempfile.TemporaryDirectory(prefix="minicnn-")
    _kept.append(folder)
    _reasons[:] = [reason]
    os.environ[_INHERITED] = folder.name
    _folder.cache_clear()
    return Path(folder.name)


_kept = []  # temporary folders, which exist until the process ends
_reasons = []  # why the cache folder was left, until that is reported


def _report():
    """Warn that the cache folder was left, once."""
    while _reasons:
        message = f"the cache folder {_reasons.pop()}: each run compiles its kernels anew"
        warnings.warn(message, stacklevel=2)


def _require_execution():
    """Leave a cache folder that is mounted noexec. Raises CompileError if the other one is, too."""
    if _executes(_folder()):
        return
    if not os.environ.get(_INHERITED):
        _leave_cache("is mounted noexec")
    if not _executes(_folder()):
        reason = _reasons[0] if _reasons else "cannot be used"
        raise CompileError(
            f"the cache folder {reason}, and {_folder().parent} is mounted noexec; set "
            "MINICNN_CACHE to a folder that allows execution"
        )


def _executes(folder):
    """Whether code in a folder can be executed: a file system may be mounted noexec.

    True on systems where only loading a library shows it.
    """
    if sys.platform != "linux":
        return True
    with tempfile.TemporaryFile(dir=folder) as file:
        file.truncate(1)
        try:
            mmap.mmap(file.fileno(), 1, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC).close()
        except PermissionError:
            return False
    return True


def _has_room(folder):
    """Whether a library can be written into a folder: a disk may be full, or a quota used up."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_ROOM))
    except OSError:
        return False
    return True


@lru_cache
def _cpu():
    """What -march=native depends on: the CPU's features."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return platform.machine() + platform.processor()
