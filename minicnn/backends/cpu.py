"""C kernels: compiled for this machine's CPU on first use, called with checked arguments.

The kernels in kernels/*.c are plain functions for one net; their loops are shared among threads by
OpenMP, if the compiler supports it. This module compiles them into one library (native.py), and
calls them for one net after the other. It can record the calls of a step and repeat them without
running Python between two kernels.

ops_cpu.py shows which kernels an operation calls.
"""

import contextlib
import ctypes
import itertools
import os
import threading
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .. import machine
from . import native, trace
from .kernel import SOURCES, Program, bind_arguments, in_order, pointers

_FLAGS = ["-std=gnu11", "-O3", "-fno-math-errno", "-fno-trapping-math"]
_OWN_CPU = ("-march=native",), ("-mcpu=native",), ()  # the first that the compiler accepts
# Apple's clang has no library for OpenMP; Homebrew keeps one in a folder of its own.
_HOMEBREW = [p for p in ("/opt/homebrew/opt/libomp", "/usr/local/opt/libomp") if os.path.isdir(p)]
_LIBOMP = "-Xpreprocessor", "-fopenmp", "-lomp"
_LIBOMP += *(f"-I{p}/include" for p in _HOMEBREW), *(f"-L{p}/lib" for p in _HOMEBREW)
_THREADS = ("-fopenmp",), _LIBOMP, ()
# A program for the compiler to try flags on. Some have OpenMP, but not its header or its library.
_PROBE = """\
#ifdef _OPENMP
#include <omp.h>
int most_threads(void) { return omp_get_max_threads(); }
#endif
int not_empty;
"""
# Iterations that a waiting thread spins before it sleeps, in GCC's OpenMP. The default takes
# milliseconds: if another process shares the cores, spinning threads then block working ones.
_SPIN = {"GOMP_SPINCOUNT": "1000"}


if hasattr(os, "register_at_fork"):  # a child has no threads, but OpenMP would wait for them
    os.register_at_fork(after_in_child=lambda: machine.use_cores(1))


class Cpu:
    """The compiled kernels. `flags`: more compiler flags, for tests.

    Raises native.CompileError without a working C compiler.
    """

    def __init__(self, flags=()):
        programs = [Program(path) for path in sorted(SOURCES.glob("*.c"))]
        sources = {program.path.name: program.text + _entries(program) for program in programs}
        own_cpu, threads = _known(_OWN_CPU), _known(_THREADS)
        compile_flags = [*_FLAGS, *own_cpu, *threads, *flags]
        link_flags = [*threads, *flags, "-lm"]
        self._library = library = _load(sources, compile_flags, link_flags)
        library.call_all.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
        library.call_all.restype = None
        library.use_threads.argtypes, library.use_threads.restype = [ctypes.c_int], None
        self._kernels = {
            name: _Kernel(
                where=f"{program.path.name}: {name}",
                parameters=parameters,
                entry=_address(library, f"entry_{name}"),
                twin=program.twins.get(name),
            )
            for program in programs
            for name, parameters in program.kernels.items()
        }
        self._recording = _Recording()

    def constant(self, name):
        """A constant of the kernels: the result of the C function of that name."""
        return getattr(self._library, name)()

    def use_threads(self):
        """Use as many threads as this process may have."""
        self._library.use_threads(machine.threads())

    def call(self, name, /, *arguments, **by_name):
        """Call a kernel for each net of its arrays, or record these calls.

        Its arguments are given in the order of the C declaration, by their names there, or both.
        Raises TypeError or ValueError with the kernel, the parameter, and what is wrong.
        """
        where, parameters, entry, twin = self._kernels[name]
        arguments = in_order(where, parameters, arguments, by_name)
        nets, values, arrays = bind_arguments(
            where, parameters, arguments, lambda array: array.ctypes.data
        )
        trace.kernel(where, f"nets {nets or 1}", twin)
        calls = [
            _Call(entry, _values_of_net(parameters, values, e), arrays) for e in range(nets or 1)
        ]
        if self._recording.calls is None:
            _Calls(self._library, calls)()
        else:
            self._recording.calls += calls

    def python(self, function, *arguments):
        """Call a Python function, or record the call."""
        if self._recording.calls is None:
            function(*arguments)
        else:
            self._recording.calls.append(lambda: function(*arguments))

    def record(self, function):
        """A function that repeats the calls which `function` makes here; none is made now."""
        calls, steps = self._calls_of(function), []
        for are_kernels, group in itertools.groupby(calls, lambda call: isinstance(call, _Call)):
            of_a_kind = list(group)
            steps += [_Calls(self._library, of_a_kind)] if are_kernels else of_a_kind

        def replay():
            for step in steps:
                step()

        return replay

    def arrays(self, function):
        """[(Parameter, array or None)] of the kernels that `function` calls; none is called now."""
        calls = (call for call in self._calls_of(function) if isinstance(call, _Call))
        return [pair for call in calls for pair in call.arrays]

    def _calls_of(self, function):
        self._recording.calls = calls = []
        try:
            function()
        finally:
            self._recording.calls = None
        return calls


class _Kernel(NamedTuple):
    """A kernel of the library: its file and name, its Parameters, its entry, its twin's name."""

    where: str
    parameters: list
    entry: int
    twin: str | None


class _Recording(threading.local):
    """The calls that a thread records, a list; None while it does not record."""

    calls = None


class _Call:
    """A kernel and its arguments for one net; it can be called repeatedly."""

    def __init__(self, entry, values, arrays):
        self.entry, self.pointers = entry, pointers(values)
        self._values, self.arrays = values, arrays  # keeps alive what the pointers refer to


class _Calls:
    """Consecutive calls, made by one call into C."""

    def __init__(self, library, calls):
        self._call_all, self._kept, self._count = library.call_all, calls, len(calls)
        self._entries = (ctypes.c_void_p * len(calls))(*(call.entry for call in calls))
        addresses = (ctypes.addressof(call.pointers) for call in calls)
        self._arguments = (ctypes.c_void_p * len(calls))(*addresses)

    def __call__(self):
        self._call_all(self._count, self._entries, self._arguments)


def _values_of_net(parameters, values, e):
    """The values of a call for net e: for a "per net" array, the address of row e."""
    return [
        np.array(value["data"] + np.uint64(e * value["stride"] * p.dtype.itemsize))
        if p.kind == "per net"
        else value
        for p, value in zip(parameters, values, strict=True)
    ]


def _entries(program):
    """The C text of the kernels' entry functions, which all have the same type: see calls.c."""
    functions = []
    for name, parameters in program.kernels.items():
        arguments = ", ".join(
            f"*(void**)a[{i}]" if p.kind in ("per net", "array") else f"*({p.c_type}*)a[{i}]"
            for i, p in enumerate(parameters)
        )
        functions.append(f"void entry_{name}(void** a) {{ {name}({arguments}); }}\n")
    return "".join(functions)


def _load(sources, compile_flags, link_flags):
    """The library built from the sources.

    OpenMP's library, which is loaded with it, reads the environment at that moment: _SPIN, and the
    number of threads. Of a number that is none, it would complain in words of its own.
    """
    added = {name: value for name, value in _SPIN.items() if name not in os.environ}
    number = os.environ.get("OMP_NUM_THREADS")
    wrong = number is not None and machine.openmp_threads(number) is None
    os.environ.update(added)
    if wrong:
        del os.environ["OMP_NUM_THREADS"]
    try:
        return native.load("cpu", sources, compile_flags, link_flags, "c")[0]
    finally:
        for name in added:
            del os.environ[name]
        if wrong:
            os.environ["OMP_NUM_THREADS"] = number


def _address(library, name):
    return ctypes.cast(getattr(library, name), ctypes.c_void_p).value


@lru_cache
def _known(choices):
    """The first of some flags that the compiler accepts."""
    for flags in choices[:-1]:
        with contextlib.suppress(native.CompileError):
            native.build("flags", {"probe.c": _PROBE}, flags, flags, "c")
            return flags
    return choices[-1]
