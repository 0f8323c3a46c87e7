"""CUDA kernels run on a CPU (fallback draft)."""

import contextlib
import ctypes
import re
from pathlib import Path

import numpy as np

from .. import native
from ..kernel import Driver, pointers
from ..machine import cores as machine_cores
from ..machine import free_memory as machine_free_memory

_HERE = Path(__file__).parent
_FLAGS = [
    "-std=c++17",
    "-O3",
    "-march=native",
    "-g",
    "-w",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-pthread",
]


class KernelFault(Exception):  # noqa: N818
    """x"""


class Emulator(Driver):
    name = "emulated"

    def __init__(self, checked=False, order="forward", copies="early", cores=None):
        super().__init__()
        self.cores = cores or machine_cores()
        self.order = order
        self.checked = checked
        self.counters = []
        self.capturing = None
        self._message = ctypes.create_string_buffer(4096)
        src = {n: (_HERE / n).read_text() for n in ("runtime.h", "runtime.cpp")}
        lib = native.build("emulator", src, _FLAGS, ["-pthread"])
        self._runtime = ctypes.CDLL(str(lib), mode=ctypes.RTLD_GLOBAL)

    def compile(self, program):
        count = [0]

        def shared(m):
            count[0] += 1
            return f"EMULATED_SHARED({count[0] - 1}, {m[1]}, {m[2]}, {m[3]});"

        text = re.sub(
            r"extern\s+__shared__\s+([\w ]+?)\s+(\w+)\[\];",
            r"EMULATED_DYNAMIC_SHARED(\1, \2);",
            program.text,
        )
        text = re.sub(r"__shared__\s+([\w:<> ]+?)\s+(\w+)((?:\[[^\]]*\])*);", shared, text)
        entries = "".join(
            f'extern "C" void entry_{n}(void** a) {{ emulator::enter({n}, a); }}\n'
            for n in program.kernels
        )
        sources = {n: (_HERE / n).read_text() for n in ("runtime.h", "shim.h")}
        sources["kernels.cpp"] = '#include "shim.h"\n' + text + "\n" + entries
        path = native.build(program.name, sources, _FLAGS)
        lib = ctypes.CDLL(str(path))
        return {
            n: ctypes.cast(getattr(lib, f"entry_{n}"), ctypes.c_void_p) for n in program.kernels
        }

    def run(self, launch):
        if self.capturing is not None:
            self.capturing.append(lambda: self._run(launch))
            return
        self._run(launch)

    def _run(self, launch):
        u3 = ctypes.c_uint * 3
        if self._runtime.emulator_launch(
            launch.code[launch.name],
            pointers(launch.values),
            u3(*launch.grid),
            u3(*launch.block),
            launch.shared_bytes,
            self.order != "forward",
            self.cores,
            self._message,
            ctypes.c_size_t(4096),
        ):
            raise KernelFault(
                f"{launch.program.path.name}: {launch.name}: {self._message.value.decode()}"
            )

    def capture(self, function):
        self.capturing = steps = []
        try:
            function()
        finally:
            self.capturing = None

        def replay():
            for s in steps:
                s()

        return replay

    def empty(self, shape, dtype):
        dtype = np.dtype(dtype)
        n = int(np.prod(shape)) * dtype.itemsize
        raw = np.empty(n + 256, np.uint8)
        at = -raw.ctypes.data % 256
        return raw[at : at + n].view(dtype).reshape(shape)

    def zeros(self, shape, dtype):
        a = self.empty(shape, dtype)
        a[...] = 0
        return a

    def to_device(self, array):
        a = self.empty(np.shape(array), np.asarray(array).dtype)
        a[...] = array
        return a

    def to_host(self, array):
        return np.array(array)

    def copy(self, source, target):
        if self.capturing is not None:
            self.capturing.append(lambda: np.copyto(target, source))
            return
        np.copyto(target, source)

    def address(self, array):
        return array.ctypes.data

    def free_memory(self):
        return machine_free_memory()

    @contextlib.contextmanager
    def session(self):
        yield
