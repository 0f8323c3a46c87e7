"""CUDA kernels on a CPU: the same sources and launches, compiled by any C++ compiler.

Slow, and good for seeing: every kernel runs in every test; a debugger stops in it (kernels are
compiled for that, so `break batch_norm.cu:40` works in gdb); and a checked emulator sees each
access to memory, finds what is wrong with it, and counts what is not.

shim.h has CUDA's words, runtime.cpp executes blocks of threads, checker.cpp looks on: races.cpp
says which accesses nothing orders, traffic.cpp counts. Arrays are NumPy's.
"""

import contextlib
import ctypes
import re
import shutil
import subprocess
import threading
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .. import checks, machine
from ..backends import native
from ..backends.kernel import SOURCES, Driver, pointers

_HERE = Path(__file__).parent
# The version of DWARF is one that addr2line and gdb have long read without mistakes.
_FLAGS = ["-std=c++17", "-march=native", "-gdwarf-4", "-pthread"]
# No fused operation where the source has none, as CUDA's __fmul_rn and __fadd_rn ask for.
_KERNEL_FLAGS = [*_FLAGS, "-w", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
_FAST = ["-O3"]
# The compiler calls a function for each access. It must leave accesses as the source has them.
_CHECKED = [
    "-O2",
    "-fsanitize=thread",
    "-fno-tree-vectorize",
    "-fno-tree-slp-vectorize",
    "-fno-builtin-memset",
    "-DEMULATED_CHECKED",
]
# Clang leaves out a read that a write to the same place follows, unless it is told not to.
_CHECKED_BY_CLANG = ["-mllvm", "-tsan-instrument-read-before-write"]
SECTOR_BYTES = 32  # of global memory, as Counts has them
_ALIGNMENT = 256  # bytes: CUDA's of an array
_POISON = 0xFF  # as floats, NaN
_one_launch_at_a_time = threading.Lock()  # the runtime has one set of threads
_ORDERS = "forward", "backward", "shuffled"
_COPIES = "early", "late"


class KernelFault(Exception):  # noqa: N818  the hardware's word
    """A kernel did what it must not do; the message says which thread, what, and where."""


class Counts(NamedTuple):
    """What a launch did. A request is what the lanes of a warp access at one place in the code.

    Sectors are stretches of 32 bytes of global memory, `ideal` the fewest that the same bytes could
    lie in; wavefronts are turns of the banks of shared memory, `ideal` those without conflicts.
    Bytes are distinct ones. An atomic operation counts as a store.
    """

    load_requests: int
    load_sectors: int
    ideal_load_sectors: int
    store_requests: int
    store_sectors: int
    ideal_store_sectors: int
    bytes_read: int
    bytes_written: int
    shared_requests: int
    shared_wavefronts: int
    ideal_shared_wavefronts: int
    barriers: int
    exchanges: int  # of a warp: shuffles, votes, __syncwarp()
    flops: int  # those of fmaf, two each
    tensor_steps: int
    tensor_flops: int


class Counted(NamedTuple):
    """A launch and its counts."""

    file: str
    kernel: str
    grid: tuple
    block: tuple
    counts: Counts


class _Buffer(ctypes.Structure):
    """checker.h has the same."""

    _fields_ = [
        ("base", ctypes.c_size_t),
        ("row_bytes", ctypes.c_size_t),
        ("stride_bytes", ctypes.c_size_t),
        ("rows", ctypes.c_size_t),
        ("item_bytes", ctypes.c_size_t),
        ("written", ctypes.c_int),
        ("name", ctypes.c_char_p),
    ]


class _Options(ctypes.Structure):
    """block.h has the same."""

    _fields_ = [
        ("order", ctypes.c_int),
        ("late_copies", ctypes.c_int),
        ("cores", ctypes.c_int),
        ("buffers", ctypes.c_int),
        ("buffer", ctypes.POINTER(_Buffer)),
        ("counters", ctypes.c_void_p),
        ("image_begin", ctypes.c_size_t),
        ("image_end", ctypes.c_size_t),
    ]


class _Code(NamedTuple):
    """A compiled program: where its kernels are entered, and where it lies in memory."""

    path: Path
    entries: dict  # {kernel: function}
    image: tuple


class Emulator(Driver):
    """A driver that runs kernels on `cores` of the CPU (default: all).

    order: of the threads of a block and of the blocks: "forward", "backward" or "shuffled"; copies:
    whether asynchronous copies land "early" or "late". Neither may change a result. checked: see
    each access, on one core; a wrong one raises KernelFault, and `counted` gets a Counted for each
    launch.
    """

    name = "emulated"
    has_tf32 = True

    def __init__(self, checked=False, order="forward", copies="early", cores=None):
        super().__init__()
        self.checked = checked
        self.counted = []
        cores = machine.cores() if cores is None else checks.integer("cores", cores, 1)
        self._options = _Options(
            order=_ORDERS.index(checks.choice("order", order, _ORDERS)),
            late_copies=_COPIES.index(checks.choice("copies", copies, _COPIES)),
            cores=1 if checked else cores,
            buffers=-1,
        )
        self._run = _runtime().emulator_launch
        self._capturing = None  # a list of what is to be repeated

    # ---- arrays ------------------------------------------------------------------------------

    def empty(self, shape, dtype):
        """An array that starts at a multiple of 256 bytes; of a checked emulator, full of NaN."""
        array = machine.aligned_empty(shape, dtype, _ALIGNMENT)
        if self.checked:
            array.reshape(-1).view(np.uint8).fill(_POISON)
        return array

    def zeros(self, shape, dtype):
        array = self.empty(shape, dtype)
        array.fill(0)
        return array

    def to_device(self, array):
        self._refuse_in_capture("an upload")
        array = np.asarray(array)
        copy = self.empty(array.shape, array.dtype)
        copy[...] = array
        return copy

    def to_host(self, array):
        self._refuse_in_capture("a download")
        return np.array(array)

    def copy(self, source, target):
        if self._capturing is not None:
            self._capturing.append(lambda: np.copyto(target, source))
        else:
            np.copyto(target, source)

    def address(self, array):
        return array.ctypes.data

    def free_memory(self):
        """Bytes that can be had; None where the system does not say."""
        return machine.free_memory()

    @contextlib.contextmanager
    def session(self):
        yield

    # ---- kernels -----------------------------------------------------------------------------

    def compile(self, program):
        text, entries = _as_cpp(program), [f"entry_{name}" for name in program.kernels]
        functions = "".join(
            f'extern "C" UNCHECKED void entry_{name}(void** a) {{ emulator::enter({name}, a); }}\n'
            for name in program.kernels
        )
        sources = {name: _source(name) for name in ("runtime.h", "shim.h")}
        unit = f'#include "shim.h"\n{text}\n#line 1 "entries"\n{functions}'
        sources[f"{program.name}.cpp"] = unit
        flags = [*_KERNEL_FLAGS, *(_checked_flags() if self.checked else _FAST)]
        kind = "-checked" if self.checked else ""
        path = native.build(f"{program.name}{kind}", sources, flags, ["-pthread"])
        library = ctypes.CDLL(str(path))
        image = (ctypes.c_size_t * 2)()
        if self.checked:
            library.emulator_image(image)
        found = [ctypes.cast(getattr(library, entry), ctypes.c_void_p) for entry in entries]
        return _Code(path, dict(zip(program.kernels, found, strict=True)), tuple(image))

    def run(self, launch):
        if self._capturing is not None:
            self._capturing.append(lambda: self._execute(launch))
        else:
            self._execute(launch)

    def capture(self, function):
        self._capturing = steps = []
        try:
            function()
        finally:
            self._capturing = None

        def replay():
            for step in steps:
                step()

        return replay

    def _refuse_in_capture(self, what):
        if self._capturing is not None:
            raise RuntimeError(f"a capture cannot hold {what}: its data would be frozen in it")

    def _execute(self, launch):
        options = _Options.from_buffer_copy(self._options)
        counters = (ctypes.c_longlong * len(Counts._fields))()
        if self.checked:
            buffers = [_buffer(p, array) for p, array in launch.arrays if array is not None]
            options.buffers = len(buffers)
            options.buffer = (_Buffer * len(buffers))(*buffers)
            options.counters = ctypes.addressof(counters)
            options.image_begin, options.image_end = launch.code.image
        message, fault = ctypes.create_string_buffer(1024), ctypes.c_size_t()
        with _one_launch_at_a_time:
            failed = self._run(
                launch.code.entries[launch.name],
                pointers(launch.values),
                (ctypes.c_uint * 3)(*launch.grid),
                (ctypes.c_uint * 3)(*launch.block),
                launch.shared_bytes,
                ctypes.byref(options),
                message,
                len(message),
                ctypes.byref(fault),
            )
        if failed:
            line = _source_line(launch.code.path, fault.value) if fault.value else ""
            where = f"{launch.program.path.name}: {launch.name}"
            raise KernelFault(f"{where}: {message.value.decode(errors='replace')}{line}")
        if self.checked:
            file, counts = launch.program.path.name, Counts(*counters)
            self.counted.append(Counted(file, launch.name, launch.grid, launch.block, counts))


def _buffer(parameter, array):
    per_net = parameter.kind == "per net"
    rows = len(array) if per_net else 1
    return _Buffer(
        base=array.ctypes.data,
        row_bytes=array.nbytes // max(rows, 1),
        stride_bytes=array.strides[0] if per_net and rows > 1 else array.nbytes,
        rows=rows,
        item_bytes=array.itemsize,
        written=parameter.written,
        name=parameter.name.encode(),
    )


def _as_cpp(program):
    """A program's text with what C++ cannot say replaced, line by line.

    `__shared__` declares memory of the block among the variables of a thread; and #line directives
    get whole paths, so that a debugger finds the files.
    """
    text = re.sub(
        r"\bextern\s+__shared__\s+(?:__align__\(\d+\)\s+)?([\w ]+?)\s+(\w+)\[\];",
        r"EMULATED_DYNAMIC_SHARED(\1, \2);",
        program.text,
    )
    text = re.sub(
        r"\b__shared__\s+(?:__align__\(\d+\)\s+)?([\w:<> ]+?)\s+(\w+)((?:\[[^\]]*\])*);",
        r"EMULATED_SHARED(\1, \2, \3);",
        text,
    )

    def whole_path(match):
        near = program.path.parent / match[2]
        return f'#line {match[1]} "{near if near.is_file() else SOURCES / match[2]}"'

    return re.sub(r'^#line (\d+) "(.+)"$', whole_path, text, flags=re.MULTILINE)


@lru_cache
def _checked_flags():
    with contextlib.suppress(native.CompileError):
        native.build("flags", {"empty.cpp": ""}, _CHECKED_BY_CLANG)
        return [*_CHECKED, *_CHECKED_BY_CLANG]
    return _CHECKED


def _source_line(library, address):
    """Where an address in a library's code is from: (file.cu:12); "" without binutils."""
    if not shutil.which("addr2line"):
        return ""
    # The address is that behind the call. What was inlined comes first, the shim's own functions.
    command = ["addr2line", "-i", "-e", str(library), hex(address - 1)]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    names = (Path(line.split(" (")[0]).name for line in found.splitlines())
    return next((f" ({n})" for n in names if not n.startswith(("shim.h:", "?"))), "")


@lru_cache
def _source(name):
    """One of the emulator's own sources, which says where it is, for compilers and debuggers."""
    return f'#line 1 "{_HERE / name}"\n{(_HERE / name).read_text()}'


@lru_cache
def _runtime():
    names = sorted(path.name for path in _HERE.iterdir() if path.suffix in (".h", ".cpp"))
    sources = {name: _source(name) for name in names if name != "shim.h"}
    path = native.build("emulator", sources, [*_FLAGS, "-O2"], ["-pthread"])
    # Kernels' libraries find its functions by name.
    return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
