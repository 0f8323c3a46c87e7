"""Compiles C and C++ sources with the machine's own compiler, and caches the libraries.

The name of a cached file contains a hash of its inputs: sources, flags, compiler and CPU. Processes
that need the same file at once each build it in a temporary folder and move it into the cache; the
last move wins.
"""

import contextlib
import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
import warnings
from functools import lru_cache
from pathlib import Path

from ..files import DataError, cache_folder

_COMPILERS = {"c++": ("CXX", ("c++", "g++", "clang++")), "c": ("CC", ("cc", "gcc", "clang"))}
_SHOWN_LINES = 30
_INHERITED = "MINICNN_NATIVE"  # tells child processes the folder of this run, if it has one


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
            done = subprocess.run(
                [*command, "--version"], capture_output=True, text=True, check=False
            )
            if done.returncode == 0:
                return tuple(command), done.stdout
    return None


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
        for file, text in sources.items():
            (folder / file).write_text(text)
        objects = []
        for file in sources:
            if not file.endswith(".h"):
                objects.append(f"{file}.o")
                _run([*command, "-fPIC", *compile_flags, "-c", file, "-o", objects[-1]], folder)
        _run([*command, "-shared", *objects, *link_flags, "-o", library.name], folder)

    made_from = command, version, _cpu(), sources, compile_flags, link_flags
    return keep(name, ".so", made_from, make)


def keep(name, suffix, made_from, make):
    """The path of a file in the cache. If it is missing, make(path) writes it, in an empty folder.

    made_from: all that its content depends on, with a repr.
    """
    digest = hashlib.sha256(repr(made_from).encode()).hexdigest()[:20]
    kept = _folder() / f"{name}-{digest}{suffix}"
    if not kept.exists():
        with tempfile.TemporaryDirectory(dir=kept.parent) as temporary:
            made = Path(temporary) / f"made{suffix}"
            make(made)
            os.replace(made, kept)
    return kept


def _run(command, folder):
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        message = "\n".join(done.stderr.splitlines()[:_SHOWN_LINES])
        raise CompileError(f"{shlex.join(command)} failed:\n{message}")


@lru_cache
def _folder():
    """The folder for libraries: the user's cache or, if that is not writable, one of this run."""
    if os.environ.get(_INHERITED):
        return Path(os.environ[_INHERITED])
    with contextlib.suppress(OSError, DataError):
        folder = cache_folder() / "native"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    folder = tempfile.TemporaryDirectory(prefix="minicnn-")
    _kept.append(folder)
    os.environ[_INHERITED] = folder.name
    warnings.warn(
        "the cache folder cannot be written: each run compiles its kernels anew", stacklevel=2
    )
    return Path(folder.name)


_kept = []  # temporary folders, which exist until the process ends


@lru_cache
def _cpu():
    """What -march=native depends on: the CPU's features."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return platform.machine() + platform.processor()
