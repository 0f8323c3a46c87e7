"""Kernels as sources: found, put together, their parameters read from the text, arguments checked.

A launch of CUDA, or a call into C, takes pointers to anything and checks nothing. Here the
declaration in the .cu or .c file is what arguments are held against, whichever driver launches:
cuda.py, the emulator, or cpu.py.

Read ops_cuda.py for how kernels are used, and cuda.py for a driver.
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

SOURCES = Path(__file__).parent.parent / "kernels"  # of an installed package
if not SOURCES.is_dir():  # in a checkout they stand beside it
    SOURCES = Path(__file__).parent.parent.parent / "kernels"

_NUMBERS = {
    "float": np.float32,
    "double": np.float64,
    "int": np.int32,
    "unsigned": np.uint32,
    "long long": np.int64,
    "unsigned short": np.uint16,
    "unsigned char": np.uint8,
    "bool": np.bool_,
}
_PER_NET = np.dtype([("data", np.uint64), ("stride", np.int64)])  # common.cuh's PerNet
_GRID_LIMITS = 2**31 - 1, 65535, 65535
_BLOCK_LIMITS = 1024, 1024, 64
_MOST_THREADS = 1024
# Of an array's row: an int counts them, and the threads of the last block, which go beyond them.
_MOST_NUMBERS = 2**31 - 1 - 4 * _MOST_THREADS


_DECLARATION = r'(?:extern "C" __global__ void (?:__launch_bounds__\([^)]*\)\s+)?|\bKERNEL )(\w+)'


class Parameter(NamedTuple):
    """A kernel's parameter: `kind` is "per net", "array", "number" or "struct"."""

    name: str
    kind: str
    c_type: str  # of an array's elements or of the argument itself
    dtype: np.dtype  # of an array's elements, of a number, or of a struct
    written: bool = False
    may_be_null: bool = False


class Launch(NamedTuple):
    """A kernel and its checked arguments, frozen: what a driver needs, and a graph keeps."""

    program: "Program"
    code: object  # what the driver compiled the program to
    name: str
    grid: tuple
    block: tuple
    shared_bytes: int
    values: list  # a NumPy array of no dimensions for each argument
    arrays: list  # (parameter, array or None) of each array argument


@dataclass(frozen=True)
class Program:
    """One .cu or .c file with what it includes, as a single text, so that caches see every edit."""

    path: Path
    defines: tuple = ()  # ("NAME=VALUE", ...)

    @property
    def name(self):
        """The file's name without its suffix."""
        return self.path.stem

    @cached_property
    def text(self):
        """The whole text; #line directives name the files that its lines come from."""
        return "".join(f"#define {d.replace('=', ' ', 1)}\n" for d in self.defines) + _assemble(
            self.path, set()
        )

    @cached_property
    def kernels(self):
        """{name: [Parameter, ...]} of what is declared as extern "C" __global__, in C as KERNEL."""
        code = re.sub(r"//[^\n]*|/\*.*?\*/", " ", self.text, flags=re.DOTALL)
        structs = dict(re.findall(r"\bstruct (\w+) \{(.*?)\};", code, re.DOTALL))
        found = re.findall(_DECLARATION + r"\((.*?)\)\s*\{", code, re.DOTALL)
        return {
            name: [_parameter(self.path, p, structs) for p in parameters.split(",") if p.strip()]
            for name, parameters in found
        }

    @cached_property
    def twins(self):
        """{kernel: twin}, the function that computes the same in NumPy, as "ops_numpy.conv2d".

        It is in the line `// Twin: ops_numpy.conv2d` directly above the kernel.
        """
        found = re.findall(r"^// Twin: ([\w.]+)\n" + _DECLARATION, self.text, re.MULTILINE)
        return {name: twin for twin, name in found}


def _assemble(path, seen):
    """The text of a file, each #include "..." replaced by that file's text, once."""
    seen.add(path.resolve())
    lines = [f'#line 1 "{path.name}"\n']
    for number, line in enumerate(path.read_text().splitlines(), 1):
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


def _parameter(path, declaration, structs):
    words = " ".join(declaration.split())
    match = re.fullmatch(
        r"(?P<null>MAY_BE_NULL )?"
        r"(?:PerNet<(?P<row>[\w ]+)>|(?P<c_row>[\w ]+) PER_NET|"
        r"(?P<array>[\w ]+?) ?\*|(?:struct )?(?P<value>[\w ]+?))"
        r"(?: ?__restrict__)? ?(?P<name>\w+)",
        words,
    )
    kind = next((k for k in ("row", "c_row", "array", "value") if match and match[k]), None)
    type_name = match[kind].removeprefix("const ") if kind else None
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
    )


class Driver:
    """What makes arrays and launches kernels: cuda.py's on a GPU, the emulator's on a CPU.

    Either has a `name`; `empty`, `zeros`, `to_device`, `to_host`, `copy`, `free_memory` and
    `session`, as ops_numpy.py describes them; `capture(function)`, which runs a function once and
    returns a function that repeats its launches; `address(array)`; `compile(program)`, which gives
    what a Launch holds as `code`; and `run(launch)`.
    """

    def __init__(self):
        self._programs = {}

    def launch(self, file, name, grid, block, /, *arguments, shared_bytes=0, defines=(), **by_name):
        """Run a kernel of kernels/`file`, or of a file anywhere where that is a path.

        Its arguments are given in the order of the declaration, by their names there, or both.
        """
        launch = self.bind(file, name, grid, block, arguments, by_name, shared_bytes, defines)
        program, size = launch.program, f"grid {launch.grid} block {launch.block}"
        trace.kernel(f"{program.path.name}: {name}", size, program.twins.get(name))
        self.run(launch)

    def program(self, file, defines=()):
        """The (Program, what `compile` made of it) of a file, compiled on first use."""
        key = file, defines
        if key not in self._programs:
            program = Program(SOURCES / file, defines)
            self._programs[key] = program, self.compile(program)
        return self._programs[key]

    def bind(self, file, name, grid, block, arguments=(), by_name=None, shared_bytes=0, defines=()):
        """Check a launch and freeze it, a Launch.

        grid: up to two numbers of blocks; the third axis is the nets'. block: up to three numbers
        of threads. Raises TypeError or ValueError that names kernel, parameter, and what is wrong.
        That what a kernel reads as a vector lies at a multiple of its size is up to the caller.
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
    """A kernel's arguments in the order of its parameters: the positional ones come first.

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
    """Check a kernel's arguments, one a parameter: (nets or None, values, arrays as in Launch).

    address(array) is where its numbers are. `where` begins the message of an error, TypeError or
    ValueError.
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
                raise ValueError(f"{at}: got {len(argument)} nets, beside {nets} in others")
            nets = nets if argument is None else len(argument)
    return nets, values, arrays


def _address(at, array, address):
    try:
        return address(array)
    except AttributeError:
        kind = f"{type(array).__module__}.{type(array).__name__}"
        raise TypeError(f"{at}: got a {kind}, which is not this device's array") from None


def pointers(values):
    """The addresses of a launch's arguments, as CUDA takes them: an array of pointers."""
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
    # CuPy's arrays can always be written, and have no such flag
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
            raise ValueError(f"{at}: got strides {array.strides}, expected contiguous numbers")
        step *= length
    if step // array.itemsize > _MOST_NUMBERS:
        count = step // array.itemsize
        row = "numbers a net" if parameter.kind == "per net" else "numbers"
        raise ValueError(f"{at}: got {count:,} {row}, expected at most {_MOST_NUMBERS:,}")


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
    """The sizes, with ones for the axes that are not given."""
    if not isinstance(sizes, tuple) or not 1 <= len(sizes) <= axes:
        raise ValueError(f"{where}: got {what} {sizes!r}, expected a tuple of up to {axes} numbers")
    return sizes + (1,) * (axes - len(sizes))


def _check_sizes(where, what, sizes, limits):
    whole = all(isinstance(size, Integral) for size in sizes)
    if not whole or not all(1 <= s <= most for s, most in zip(sizes, limits, strict=True)):
        raise ValueError(f"{where}: got {what} {sizes}, expected 1 to {limits}")
    return tuple(int(size) for size in sizes)
