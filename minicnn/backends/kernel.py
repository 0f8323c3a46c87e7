"""Kernels: their sources, their declared parameters, and the checks of a launch's arguments.

A CUDA launch, or a call into C, takes any pointers and checks nothing. This module reads the
declarations in the .cu and .c files and checks arguments against them, for every driver: cuda.py,
the emulator, and cpu.py.

ops_cuda.py shows how kernels are used; cuda.py is a driver.
"""

import ctypes
import re
from dataclasses import dataclass
from functools import cached_property
from math import isfinite, prod
from numbers import Integral, Real
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .. import checks
from . import trace

SOURCES = Path(__file__).parent.parent / "kernels"  # in an installed package
if not SOURCES.is_dir():  # in a checkout
    SOURCES = Path(__file__).parent.parent.parent / "kernels"

_NUMBERS = {
    "float": np.float32,
    "double": np.float64,
    "int": np.int32,
    "unsigned": np.uint32,
    "long long": np.int64,
    "unsigned short": np.uint16,
    "bfloat16": np.uint16,  # stored.cuh
    "unsigned char": np.uint8,
    "bool": np.bool_,
}
_PER_NET = np.dtype([("data", np.uint64), ("stride", np.int64)])  # common.cuh's PerNet
_GRID_LIMITS = 2**31 - 1, 65535, 65535
_BLOCK_LIMITS = 1024, 1024, 64
_MOST_THREADS = 1024
# Limit on a row of an array, unless it is MAY_BE_LARGE: kernel indices are 32-bit, and the last
# block overshoots.
_MOST_ELEMENTS = 2**31 - 1 - 4 * _MOST_THREADS
# The beginning of a kernel, up to its name
_DECLARATION = r'(?:extern "C" __global__ void (?:__launch_bounds__\([^)]*\)\s+)?|\bKERNEL )(\w+)'


class Parameter(NamedTuple):
    """A kernel's parameter: `kind` is "per net", "array", "number" or "struct"."""

    name: str
    kind: str
    c_type: str  # of an array's elements or of the argument itself
    dtype: np.dtype  # of an array's elements, of a number, or of a struct
    written: bool = False
    may_be_null: bool = False
    may_be_large: bool = False


class Launch(NamedTuple):
    """A kernel and its checked arguments: all that a driver needs to run it, once or repeatedly."""

    program: "Program"
    code: object  # the program as the driver compiled it
    name: str
    grid: tuple
    block: tuple
    shared_bytes: int
    values: list  # a zero-dimensional NumPy array for each argument
    arrays: list  # (parameter, array or None) of each array argument


@dataclass(frozen=True)
class Program:
    """One .cu or .c file and its #include files as a single text, so that caches see every edit."""

    path: Path
    defines: tuple = ()  # ("NAME=VALUE", ...)

    @property
    def name(self):
        """The file's name without its suffix."""
        return self.path.stem

    @cached_property
    def text(self):
        """The whole text; #line directives give the file and line of each part."""
        return "".join(f"#define {d.replace('=', ' ', 1)}\n" for d in self.defines) + _assemble(
            self.path, set()
        )

    @cached_property
    def kernels(self):
        """{name: [Parameter, ...]} of the kernels: extern "C" __global__ in CUDA, KERNEL in C."""
        code = re.sub(r"//[^\n]*|/\*.*?\*/", " ", self.text, flags=re.DOTALL)
        structs = dict(re.findall(r"\bstruct (\w+) \{(.*?)\};", code, re.DOTALL))
        # The first definition counts: that of `defines`, before what a file defines by default.
        macros = dict(reversed(re.findall(r"^#define (\w+) (\w+)$", code, re.MULTILINE)))
        found = re.findall(_DECLARATION + r"\((.*?)\)\s*\{", code, re.DOTALL)
        return {
            name: [
                _parameter(self.path, p, structs, macros)
                for p in parameters.split(",")
                if p.strip()
            ]
            for name, parameters in found
        }

    @cached_property
    def twins(self):
        """{kernel: twin}, the NumPy function of the operation that the kernel belongs to.

        The line `// Twin: ops_numpy.conv2d` directly above a kernel names it. A module whose name
        ends in _oracles is in tests/.
        """
        found = re.findall(r"^// Twin: ([\w.]+)\n" + _DECLARATION, self.text, re.MULTILINE)
        return {name: twin for twin, name in found}


def _assemble(path, seen):
    """The text of a file; each #include "..." is replaced by the text of that file, once."""
    seen.add(path.resolve())
    lines = [f'#line 1 "{path.name}"\n']
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        include = re.match(r'\s*#include "(.+)"', line)
        if include is None:
            if line.strip() != "#pragma once":
                lines.append(line + "\n")
                continue
        else:
            near, shared = path.parent / include[1], SOURCES / include[1]
            other = near if near.is_file() else shared
            if other.resolve() not in seen:
                lines.append(_assemble(other, seen))
        lines.append(f'#line {number + 1} "{path.name}"\n')
    return "".join(lines)


def _parameter(path, declaration, structs, macros):
    words = " ".join(declaration.split())
    match = re.fullmatch(
        r"(?P<null>MAY_BE_NULL )?(?P<large>MAY_BE_LARGE )?"
        r"(?:PerNet<(?P<row>[\w ]+)>|(?P<c_row>[\w ]+) PER_NET|"
        r"(?P<array>[\w ]+?) ?\*|(?:struct )?(?P<value>[\w ]+?))"
        r"(?: ?__restrict__)? ?(?P<name>\w+)",
        words,
    )
    kind = next((k for k in ("row", "c_row", "array", "value") if match and match[k]), None)
    type_name = match[kind].removeprefix("const ") if kind else None
    type_name = macros.get(type_name, type_name)
    if kind == "value" and type_name in structs:
        fields = [" ".join(field.split()) for field in structs[type_name].split(";")]
        if not all(re.fullmatch(r"int \w+(, ?\w+)*|", field) for field in fields):
            raise ValueError(f"{path.name}: struct {type_name}: a kernel's struct has only ints")
        names = re.findall(r"\w+", " ".join(field.removeprefix("int ") for field in fields))
        fields = np.dtype([(n, np.int32) for n in names])
        return Parameter(match["name"], "struct", f"struct {type_name}", fields)
    if type_name not in _NUMBERS:
        raise ValueError(f"{path.name}: a kernel's parameter cannot be {words!r}")
    return Parameter(
        match["name"],
        {"row": "per net", "c_row": "per net", "array": "array", "value": "number"}[kind],
        type_name,
        np.dtype(_NUMBERS[type_name]),
        written=kind != "value" and not match[kind].startswith("const "),
        may_be_null=bool(match["null"]),
        may_be_large=bool(match["large"]),
    )


class Driver:
    """Makes arrays and launches kernels: cuda.Cuda on a GPU, emulator.Emulator on a CPU.

    A driver has `name`; `has_tensor_cores`, a bool; `multiprocessors`, their number; `empty`,
    `zeros`, `to_device`, `to_host`, `copy`, `free_memory`, `session` and `capture` of backend.py;
    `address(array)`; `compile(program)`, whose result is the `code` of a Launch; `run(launch)`; and
    `together(first, second)`, which calls two functions whose launches may overlap in time, because
    neither writes what the other reads or writes. What follows waits for both. They only launch.
    """

    def __init__(self):
        self._programs = {}

    def launch(self, file, name, grid, block, /, *arguments, shared_bytes=0, defines=(), **by_name):
        """Run a kernel of kernels/`file`; an absolute path may name another file.

        Its arguments are given in the order of the declaration, by their names there, or both.
        """
        launch = self.bind(file, name, grid, block, arguments, by_name, shared_bytes, defines)
        program, size = launch.program, f"grid {launch.grid} block {launch.block}"
        trace.kernel(f"{program.path.name}: {name}", size, program.twins.get(name))
        self.run(launch)

    def program(self, file, defines=()):
        """(Program, code) of a file, compiled on first use."""
        key = file, defines
        if key not in self._programs:
            program = Program(SOURCES / file, defines)
            self._programs[key] = program, self.compile(program)
        return self._programs[key]

    def bind(self, file, name, grid, block, arguments=(), by_name=None, shared_bytes=0, defines=()):
        """Check the arguments of a launch; returns it as a Launch.

        grid: one or two numbers of blocks; the third axis is the nets'. block: one to three numbers
        of threads. Raises TypeError or ValueError with the kernel, the parameter, and what is
        wrong. The alignment of arrays that a kernel reads as vectors is not checked.
        """
        program, code = self.program(file, defines)
        where = f"{program.path.name}: {name}"
        if name not in program.kernels:
            raise ValueError(f"{where}: no such kernel")
        parameters = program.kernels[name]
        arguments = in_order(where, parameters, arguments, by_name or {})
        nets, values, arrays = bind_arguments(where, parameters, arguments, self.address)
        grid = (*_check_axes(where, "grid", grid, 2), nets or 1)
        grid = _check_sizes(where, "grid", grid, _GRID_LIMITS)
        block = _check_axes(where, "block", block, 3)
        block = _check_sizes(where, "block", block, _BLOCK_LIMITS)
        if prod(block) > _MOST_THREADS:
            raise ValueError(f"{where}: got block {block}, expected 1 to {_MOST_THREADS} threads")
        shared_bytes = checks.integer(f"{where}: shared_bytes", shared_bytes)
        return Launch(program, code, name, grid, block, shared_bytes, values, arrays)


def in_order(where, parameters, arguments, by_name):
    """A kernel's arguments in the order of its parameters: positional ones, then those by name.

    Raises TypeError that names the argument which is missing, unknown, or given twice.
    """
    count = len(arguments)
    if count > len(parameters) or (count < len(parameters) and not by_name):
        raise TypeError(f"{where}: got {count} arguments, takes {len(parameters)}")
    names = [parameter.name for parameter in parameters]
    if unknown := [name for name in by_name if name not in names]:
        raise TypeError(f"{where}: got {unknown[0]!r}, takes {', '.join(names)}")
    if twice := [name for name in names[:count] if name in by_name]:
        raise TypeError(f"{where}: got {twice[0]!r} by its place and by its name, expected one")
    if missing := [name for name in names[count:] if name not in by_name]:
        raise TypeError(f"{where}: {', '.join(missing)}: got nothing, expected a value")
    return *arguments, *(by_name[name] for name in names[count:])


def bind_arguments(where, parameters, arguments, address):
    """Check one argument for each parameter; returns (nets or None, values, arrays), as in Launch.

    address(array) returns the address of its first element. Errors, TypeError or ValueError, have
    messages that begin with `where`.
    """
    nets, values, arrays = None, [], []
    for parameter, argument in zip(parameters, arguments, strict=True):
        at = f"{where}: {parameter.name}"
        if parameter.kind == "struct":
            values.append(_struct(at, parameter, argument))
        elif parameter.kind == "number":
            values.append(_number(at, parameter, argument))
        else:
            _check_array(at, parameter, argument)
            arrays.append((parameter, argument))
            data = 0 if argument is None else _address(at, argument, address)
            if parameter.kind == "array":
                values.append(np.array(data, np.uint64))
                continue
            stride = 0 if argument is None else argument.strides[0] // argument.itemsize
            values.append(np.array((data, stride), _PER_NET))
            if argument is not None and nets not in (None, len(argument)):
                raise ValueError(f"{at}: got {len(argument)} nets, expected {nets} as before")
            nets = nets if argument is None else len(argument)
    return nets, values, arrays


def _address(at, array, address):
    try:
        return address(array)
    except AttributeError:
        kind = f"{type(array).__module__}.{type(array).__name__}"
        raise TypeError(f"{at}: got a {kind}, which is not this device's array") from None


def pointers(values):
    """A C array of pointers to a launch's arguments, as CUDA takes them."""
    return (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))


def _check_array(at, parameter, array):
    if array is None:
        if not parameter.may_be_null:
            raise TypeError(f"{at}: got None, expected an array of {parameter.dtype}")
        return
    if not hasattr(array, "strides"):
        raise TypeError(f"{at}: got {array!r}, expected an array of {parameter.dtype}")
    if array.dtype != parameter.dtype:
        raise TypeError(f"{at}: got an array of {array.dtype}, expected {parameter.dtype}")
    # CuPy's arrays have no such flag: they are always writeable
    if parameter.written and not getattr(array.flags, "writeable", True):
        raise ValueError(f"{at}: got a read-only array, which the kernel writes to")
    axes = list(zip(array.shape, array.strides, strict=True))
    if parameter.kind == "per net":
        if not axes:
            raise ValueError(f"{at}: got a number, expected an array with an axis of nets")
        del axes[0]
    step = array.itemsize
    for length, stride in reversed(axes):
        if length > 1 and stride != step:
            raise ValueError(f"{at}: got strides {array.strides}, expected contiguous elements")
        step *= length
    count = step // array.itemsize
    if count > _MOST_ELEMENTS and not parameter.may_be_large:
        row = "elements per net" if parameter.kind == "per net" else "elements"
        raise ValueError(f"{at}: got {count:,} {row}, expected at most {_MOST_ELEMENTS:,}")


def _number(at, parameter, value):
    dtype = parameter.dtype
    message = f"{at}: got {value!r}, expected a number of {dtype}"
    is_bool = isinstance(value, (bool, np.bool_))
    if is_bool != (dtype.kind == "b") or not (is_bool or isinstance(value, Real)):
        raise TypeError(message)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if not limits.min <= value <= limits.max or value != int(value):
            raise ValueError(message)
    elif dtype.kind == "f" and isfinite(value) and abs(value) > float(np.finfo(dtype).max):
        raise ValueError(message)
    return np.array(value, dtype)


def _struct(at, parameter, fields):
    if set(fields) != set(parameter.dtype.names):
        raise TypeError(f"{at}: got {sorted(fields)}, expected {sorted(parameter.dtype.names)}")
    try:
        return np.array(tuple(fields[name] for name in parameter.dtype.names), parameter.dtype)
    except (OverflowError, TypeError):
        raise ValueError(f"{at}: got {fields}, expected integers of 32 bits") from None


def _check_axes(where, what, sizes, axes):
    """The sizes, with 1 for each axis that is not given."""
    if not isinstance(sizes, tuple) or not 1 <= len(sizes) <= axes:
        raise ValueError(f"{where}: got {what} {sizes!r}, expected a tuple of up to {axes} numbers")
    return sizes + (1,) * (axes - len(sizes))


def _check_sizes(where, what, sizes, limits):
    whole = all(isinstance(size, Integral) for size in sizes)
    if not whole or not all(1 <= s <= most for s, most in zip(sizes, limits, strict=True)):
        raise ValueError(f"{where}: got {what} {sizes}, expected 1 to {limits}")
    return tuple(int(size) for size in sizes)
