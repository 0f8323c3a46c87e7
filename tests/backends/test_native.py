"""Compiling with the machine's own compiler, and the cache of compiled libraries."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
from runs import ROOT

from minicnn.backends import native

pytestmark = pytest.mark.skipif(native.problem() is not None, reason=str(native.problem()))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A new cache folder, with a space in its name; nothing else is cached."""
    folder = tmp_path / "a cache"
    monkeypatch.setenv("MINICNN_CACHE", str(folder))
    monkeypatch.setenv(native._INHERITED, "")  # its value is restored after the test
    for function in (native._folder, native._compiler):
        function.cache_clear()
    yield folder / "native"
    for function in (native._folder, native._compiler):
        function.cache_clear()


def compiler(folder, script):
    """A program for $CC or $CXX, in sh."""
    path = folder / "compiler"
    path.write_bytes(b"#!/bin/sh\n" + script)
    path.chmod(0o755)
    return str(path)


def build(number=7, flags=("-O1",), header=""):
    """A library with a function that returns a number."""
    text = f'#include "own.h"\nextern "C" int number() {{ return {number}; }}\n'
    return native.build("number", {"own.h": header, "number.cpp": text}, list(flags))


def number_of(path):
    return ctypes.CDLL(str(path)).number()


def test_a_library_is_made_once_and_found_again(cache, monkeypatch):
    path = build()
    assert path.parent == cache and number_of(path) == 7
    monkeypatch.setattr(native, "_run", None)  # from here on nothing is compiled
    assert build() == path
    assert list(cache.iterdir()) == [path]


def test_any_change_of_source_flags_or_compiler_makes_another_library(cache, monkeypatch):
    paths = [build(), build(8), build(flags=["-O2"]), build(header="// another\n")]
    monkeypatch.setattr(native, "_cpu", lambda: "another CPU")
    paths.append(build())
    assert len(set(paths)) == 5
    assert [number_of(path) for path in paths] == [7, 8, 7, 7, 7]


def test_a_mistake_is_shown_and_leaves_nothing(cache):
    with pytest.raises(native.CompileError, match=r"number\.cpp:2:.*'?nothing'?"):
        build("nothing")
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    ("compiler", "message"),
    [
        ("/nonexistent", r"\$CXX names no compiler that runs: '/nonexistent'"),
        ("false", r"\$CXX names no compiler that runs: 'false'"),
        ("'", r"\$CXX names no compiler that runs: \"'\""),
    ],
)
def test_a_compiler_that_does_not_run_is_named(monkeypatch, compiler, message):
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(native.CompileError, match=message):
        build()


def test_a_machine_without_a_compiler_is_reported(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    assert native.problem() == (
        "no compiler is found: install one of c++, g++, clang++, or name it in $CXX"
    )


def test_a_compiler_may_be_a_command_with_arguments(monkeypatch):
    monkeypatch.setenv("CXX", "c++ -DNUMBER=9")
    assert number_of(build("NUMBER")) == 9


# A compiler may speak Latin-1: \\351 is an e with an accent there, and no UTF-8.
IN_LATIN_1 = {
    "a warning": b"printf 'd\\351conseill\\351\\n' >&2; exec %s \"$@\"",
    "the output": b"printf 'compil\\351\\n'; exec %s \"$@\"",
    "the version": b'[ "$1" = --version ] && printf \'cc \\351\\n\' && exit; exec %s "$@"',
}


@pytest.mark.parametrize("script", IN_LATIN_1.values(), ids=IN_LATIN_1)
@pytest.mark.parametrize(("variable", "language"), [("CC", "c"), ("CXX", "c++")])
def test_a_compiler_may_speak_another_encoding(monkeypatch, tmp_path, script, variable, language):
    [real, *_], _ = native._compiler(language)
    native._compiler.cache_clear()
    monkeypatch.setenv(variable, compiler(tmp_path, script % real.encode()))
    source = {"c": "int number() { return 7; }", "c++": 'extern "C" int number() { return 7; }'}
    path = native.build("number", {f"n.{language}": source[language]}, ["-O1"], (), language)
    assert number_of(path) == 7


@pytest.mark.parametrize(("variable", "language"), [("CC", "c"), ("CXX", "c++")])
def test_a_compiler_that_fails_in_another_encoding_is_quoted(
    monkeypatch, tmp_path, variable, language
):
    script = b"[ \"$1\" = --version ] && exit; printf '\\351chec\\n' >&2; exit 1"
    monkeypatch.setenv(variable, compiler(tmp_path, script))
    with pytest.raises(native.CompileError, match=r"failed:\n\\xe9chec$"):
        native.build("number", {"n.c": ""}, [], (), language)


def test_versions_that_differ_in_a_byte_that_is_not_utf8_make_different_libraries(
    monkeypatch, tmp_path
):
    [real, *_], _ = native._compiler("c++")
    paths = set()
    for octal in (b"351", b"352"):
        native._compiler.cache_clear()
        script = IN_LATIN_1["the version"].replace(b"351", octal) % real.encode()
        monkeypatch.setenv("CXX", compiler(tmp_path, script))
        paths.add(build())
    assert len(paths) == 2


def test_a_compiler_that_reads_from_the_terminal_does_not_wait():
    code = "from minicnn.backends import native; print(native.call(['cat']).returncode)"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,  # stays open
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "0\n"
    process.communicate(timeout=100)


def test_a_source_may_name_a_folder_whose_name_is_not_utf8(monkeypatch):
    assert number_of(build(header='#line 1 "/d\udce9p\xf4t/own.h"\n')) == 7


def test_a_compiler_that_is_named_relative_to_another_folder_is_a_compile_error(
    monkeypatch, tmp_path
):
    compiler(tmp_path, b"exit 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CXX", "./compiler")
    with pytest.raises(native.CompileError, match="number cannot be compiled: "):
        build()


def test_without_a_cache_folder_libraries_are_compiled_for_this_run(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MINICNN_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="the cache folder cannot be written"):
        path = build()
    assert number_of(path) == 7 and path.is_relative_to(native._kept[-1].name)


def test_several_processes_may_make_the_same_library_at_once(cache):
    code = "import test_native as t; print(t.number_of(t.build()))"
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests", Path(__file__).parent)))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    assert [process.communicate(timeout=100)[0] for process in processes] == ["7\n"] * 3
    assert len(list(cache.iterdir())) == 1
