"""CUDA kernels on a CPU: the same sources and launches, compiled by any C++ compiler.

It reproduces results, order and memory accesses, not speed. Tests run every kernel without a GPU. A
debugger can stop in a kernel: `break batch_norm.cu:40` works in gdb. A checked emulator inspects
each access to memory, reports wrong ones, and counts the others.

shim.h defines CUDA's keywords and functions, runtime.cpp executes thread blocks, and checker.cpp
inspects accesses: races.cpp finds those that are not ordered, traffic.cpp counts requests. Arrays
are NumPy's.
"""

import contextlib
import ctypes
import itertools
import re
import shutil
import threading
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .. import checks, machine
from ..backends import native
from ..backends.kernel import SOURCES, Driver, pointers

_HERE = Path(__file__).parent
# DWARF 4, because older versions of addr2line and gdb misread DWARF 5.
_FLAGS = ["-std=c++17", "-march=native", "-gdwarf-4", "-pthread"]
# -ffp-contract=off: products and sums are fused only where the source says so. CUDA's __fmul_rn and
# __fadd_rn guarantee that.
_KERNEL_FLAGS = [*_FLAGS, "-w", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
_FAST = ["-O3"]
# -fsanitize=thread calls a function for each access. The others keep accesses as in the source.
_CHECKED = [
    "-O2",
    "-fsanitize=thread",
    "-fno-tree-vectorize",
    "-fno-tree-slp-vectorize",
    "-fno-builtin-memset",
    "-DEMULATED_CHECKED",
]
# By default Clang does not report a read that is followed by a write to the same place.
_CHECKED_BY_CLANG = ["-mllvm", "-tsan-instrument-read-before-write"]
SECTOR_BYTES = 32  # of global memory; Counts counts sectors
_ALIGNMENT = 256  # bytes; CUDA aligns arrays so
_POISON = 0xFF  # four such bytes are a NaN
_one_launch_at_a_time = threading.Lock()  # the runtime has one set of threads
_ORDERS = "forward", "backward", "shuffled"
_COPIES = "early", "late"


class KernelFault(Exception):  # noqa: N818  as it is called on hardware
    """A kernel did something forbidden; the message says which thread, what, and where."""


class Counts(NamedTuple):
    """What a launch did.

    A request is the access of a warp's lanes at one place in the code. Sectors are aligned pieces
    of 32 bytes of global memory; ideal sectors are the fewest that can hold the same number of
    bytes. Wavefronts are the passes that a request to shared memory takes; ideal wavefronts are
    those without bank conflicts. Bytes are counted once, however often they are accessed; those
    that the launch has written are not counted as read after it. An atomic operation counts as a
    store.
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
    exchanges: int  # of warps: shuffles, votes, __syncwarp()
    flops: int  # two for each fmaf
    tensor_steps: int
    tensor_flops: int


class Counted(NamedTuple):
    """A launch and its Counts."""

    file: str
    kernel: str
    grid: tuple
    block: tuple
    counts: Counts


class _Buffer(ctypes.Structure):
    """The struct of the same name in checker.h."""

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
    """The struct of the same name in block.h."""

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
    """A compiled program: the entry points of its kernels, and its address range in memory."""

    path: Path
    entries: dict  # {kernel: function}
    image: tuple  # (begin, end)


class Emulator(Driver):
    """A driver that runs kernels on `cores` of the CPU (default: as many as threads are allowed).

    order: in which thread blocks, and the threads of each, run: "forward", "backward" or
    "shuffled"; unless it is "forward", the second function given to `together` runs first.
    copies: whether asynchronous copies happen at once ("early") or when they are waited
    for ("late"). Neither may change a result. checked: inspect each access, on one core; a wrong
    access raises KernelFault, and the list `counted` gets a Counted for each launch.
    """

    name = "emulated"
    has_tensor_cores = True
    multiprocessors = 132  # an H200's; grids are cut for them

    def __init__(self, checked=False, order="forward", copies="early", cores=None):
        super().__init__()
        self.checked = checked
        self.counted = []
        self._cores = cores if cores is None else checks.integer("cores", cores, 1)
        self._options = _Options(
            order=_ORDERS.index(checks.choice("order", order, _ORDERS)),
            late_copies=_COPIES.index(checks.choice("copies", copies, _COPIES)),
            buffers=-1,
        )
        self._run = _runtime().emulator_launch
        self._capturing = None  # during a capture, a list of the functions to repeat
        self._together = None  # in `together`, a list of the launches of a function

    # ---- arrays ------------------------------------------------------------------------------

    def empty(self, shape, dtype):
        """An array aligned to 256 bytes; a checked emulator fills it with NaN."""
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

    def to_host(self, array, out=None):
        self._refuse_in_capture("a download")
        if out is None:
            return np.array(array)
        np.copyto(out, array)
        return out

    def copy(self, source, target):
        if self._capturing is not None:
            self._capturing.append(lambda: np.copyto(target, source))
        else:
            np.copyto(target, source)

    def address(self, array):
        return array.ctypes.data

    def free_memory(self):
        """Bytes that can be allocated; None if the system does not say."""
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
        library, path = native.load(f"{program.name}{kind}", sources, flags, ["-pthread"])
        image = (ctypes.c_size_t * 2)()
        if self.checked:
            library.emulator_image(image)
        found = [ctypes.cast(getattr(library, entry), ctypes.c_void_p) for entry in entries]
        return _Code(path, dict(zip(program.kernels, found, strict=True)), tuple(image))

    def run(self, launch):
        if self._together is not None:
            self._together.append(launch)
        else:
            self._capture_or_execute(launch)

    def _capture_or_execute(self, launch):
        if self._capturing is not None:
            self._capturing.append(lambda: self._execute(launch))
        else:
            self._execute(launch)

    def together(self, first, second):
        """As Driver says. Raises KernelFault if one writes an array that the other one uses."""
        both = [self._launches_of(function) for function in (first, second)]
        for one, other in itertools.product(*both):
            if clash := _clash(one, other) or _clash(other, one):
                raise KernelFault(clash)
        for launch in itertools.chain(*both[:: 1 if self._options.order == 0 else -1]):
            self._capture_or_execute(launch)

    def _launches_of(self, function):
        """The launches of a function, which are not run."""
        self._together = found = []
        try:
            function()
        finally:
            self._together = None
        return found

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
            raise RuntimeError(f"a capture cannot hold {what}: each replay would repeat its data")

    def _execute(self, launch):
        options = _Options.from_buffer_copy(self._options)
        options.cores = 1 if self.checked else self._cores or machine.threads()
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


def _clash(writer, user):
    """What is wrong if a launch writes an array that another one uses at the same time; or None."""
    written = [(p, array) for p, array in writer.arrays if p.written and array is not None]
    used = [(p, array) for p, array in user.arrays if array is not None]
    for (mine, target), (theirs, array) in itertools.product(written, used):
        if np.shares_memory(target, array):
            return (
                f"{writer.program.path.name}: {writer.name} writes {mine.name} while "
                f"{user.program.path.name}: {user.name} uses it as {theirs.name}"
            )
    return None


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
    """A program's text as C++, with the same lines.

    C++ has no memory of a thread block, so declarations with `__shared__` become macros of shim.h.
    #line directives get whole paths, so that a debugger finds the files.
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
        return f"#line {match[1]} {_quoted(near if near.is_file() else SOURCES / match[2])}"

    return re.sub(r'^#line (\d+) "(.+)"$', whole_path, text, flags=re.MULTILINE)


@lru_cache
def _checked_flags():
    with contextlib.suppress(native.CompileError):
        native.build("flags", {"empty.cpp": ""}, _CHECKED_BY_CLANG)
        return [*_CHECKED, *_CHECKED_BY_CLANG]
    return _CHECKED


def _source_line(library, address):
    """The source line of an address in a library's code, " (file.cu:12)"; "" without binutils."""
    if not shutil.which("addr2line"):
        return ""
    # `address` is the return address, one past the call. addr2line lists inlined functions first;
    # those of the shim are skipped.
    command = ["addr2line", "-i", "-e", str(library), hex(address - 1)]
    found = native.call(command).stdout
    names = (Path(line.split(" (")[0]).name for line in found.splitlines())
    return next((f" ({n})" for n in names if not n.startswith(("shim.h:", "?"))), "")


@lru_cache
def _source(name):
    """One of the emulator's own sources, with its path for compilers and debuggers."""
    return f"#line 1 {_quoted(_HERE / name)}\n{(_HERE / name).read_text('utf-8')}"


def _quoted(path):
    """A path as a string in C++."""
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


@lru_cache
def _runtime():
    names = sorted(path.name for path in _HERE.iterdir() if path.suffix in (".h", ".cpp"))
    sources = {name: _source(name) for name in names if name != "shim.h"}
    # Global, because the kernels' libraries call its functions.
    return native.load(
        "emulator", sources, [*_FLAGS, "-O2"], ["-pthread"], mode=ctypes.RTLD_GLOBAL
    )[0]
