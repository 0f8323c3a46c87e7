"""Kernels on a GPU, through CuPy: compiled by NVRTC, launched on one stream, captured as a graph.

CuPy is imported where it is first needed, so that everything else works without it. The emulator is
the other driver: the same launches, on a CPU.
"""

import contextlib
import ctypes
import importlib
import re
from functools import lru_cache

from . import native
from .kernel import Driver, pointers

_OPTIONS = ("-std=c++17",)  # and no fast-math: a kernel asks by name for what it wants
_OLDEST = 70  # compute capability 7.0, Volta: the oldest whose threads of a warp go their own ways
_STATIC_SHARED_BYTES = 48 << 10  # more of it must be asked for
# Numbers of attributes of a function, in CUDA's driver API
_MAX_DYNAMIC_SHARED_SIZE_BYTES, _PREFERRED_SHARED_MEMORY_CARVEOUT = 8, 9


class CompileError(ValueError):
    """A kernel's source is wrong; the message has the compiler's, with the line."""


@lru_cache
def problem():
    """Why there is no CUDA here, and what to do about it, in one line; None if there is."""
    found = _problem()
    return found and " ".join(found.split())


def _problem():
    try:
        cupy = _import_cupy()
    except ImportError as error:
        if getattr(error, "name", None) == "cupy":
            return "CuPy is not installed: pip install -e '.[cuda13]' (cuda12 for old drivers)"
        return f"CuPy cannot be imported: {error}"
    runtime = cupy.cuda.runtime
    if runtime.is_hip:
        return "this CuPy is made for AMD's GPUs"
    driver, needed = runtime.driverGetVersion(), runtime.runtimeGetVersion()
    if driver == 0:
        return "no NVIDIA driver is installed, or this process cannot see it"
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        if "InsufficientDriver" not in str(error):
            return f"the NVIDIA driver finds no GPU: {error}"
        return (
            f"the NVIDIA driver is too old: it has CUDA {_version(driver)}, CuPy was made for "
            f"{_version(needed)}; update the driver, or install CuPy for an older CUDA"
        )
    if count == 0:
        return "the NVIDIA driver finds no GPU"
    package = "nvidia-cuda-nvrtc" + ("-cu12" if needed < 13000 else "")
    try:
        nvrtc_version()
    except (ImportError, OSError, RuntimeError) as error:
        return f"NVRTC, the compiler, is missing: pip install {package} ({error})"
    try:
        capability = _capability()
        gpu = f"the GPU has compute capability {capability / 10}"
        compiler = f"NVRTC {'.'.join(map(str, nvrtc_version()))}"
        if capability < _OLDEST:
            return f"{gpu}, {_OLDEST / 10} is the least"
        if capability < min(architectures()):
            return f"{gpu}, which {compiler} no longer knows: pip install -e '.[cuda12]'"
        if _architecture(capability) is None:
            return f"{gpu}, which {compiler} does not know: pip install -U {package}"
        cupy.ones(1)  # makes a context, and has one of CuPy's own kernels compiled
    except (RuntimeError, OSError, cupy.cuda.compiler.CompileException) as error:
        return f"the GPU cannot be used: {error}"
    return None


def gpu_name():
    """What the GPU calls itself."""
    runtime = _import_cupy().cuda.runtime
    return runtime.getDeviceProperties(runtime.getDevice())["name"].decode()


def nvrtc_version():
    """(major, minor) of the compiler. Raises ImportError, OSError or RuntimeError without it."""
    return _nvrtc().getVersion()


def architectures():
    """The compute capabilities that the compiler makes code for, as 75 or 120."""
    return _nvrtc().getSupportedArchs()


class Cuda(Driver):
    """Arrays are CuPy's. All work is put on one stream, in order.

    The stream is of the kind that waits for what CuPy does elsewhere, and is waited for, so that
    plain CuPy code may be mixed with launches.
    """

    name = "cuda"

    def __init__(self):
        super().__init__()
        self._cupy = _import_cupy()
        self._stream = self._cupy.cuda.Stream()
        self._driver = importlib.import_module("cupy_backends.cuda.api.driver")
        self._architecture = _architecture(_capability())
        self.has_tf32 = _capability() >= 80  # tensor cores that multiply in it
        self._shared_bytes = {}  # {function: what it has asked for}
        self._captured = None  # what the capture under way must keep alive

    # ---- arrays ------------------------------------------------------------------------------

    def empty(self, shape, dtype):
        with self._stream:
            return self._cupy.empty(shape, dtype)

    def zeros(self, shape, dtype):
        with self._stream:
            return self._cupy.zeros(shape, dtype)

    def to_device(self, array):
        with self._stream:
            return self._cupy.array(array, order="C")

    def to_host(self, array):
        with self._stream:
            return self._cupy.asnumpy(array)

    def copy(self, source, target):
        if self._captured is not None:
            self._captured.append((source, target))
        with self._stream:
            target[...] = source

    def address(self, array):
        return array.data.ptr

    def free_memory(self):
        """Bytes that can be had, less a tenth, since kernels and graphs take some, too."""
        free, _ = self._cupy.cuda.runtime.memGetInfo()
        pooled = self._cupy.get_default_memory_pool().free_bytes()
        return (free + pooled) // 10 * 9

    # ---- kernels -----------------------------------------------------------------------------

    def compile(self, program):
        """(module, {name: address of the function}); what was compiled is kept on disk.

        CuPy would compile, too, but it needs CUDA's headers for it, and adds options of its own.
        """
        architecture = self._architecture
        made_from = program.text, _OPTIONS, architecture, nvrtc_version()

        def make(path):
            path.write_bytes(compile_program(program, architecture)[0])

        module = self._cupy.cuda.function.Module()
        module.load(native.keep(program.name, ".cubin", made_from, make).read_bytes())
        return module, {name: module.get_function(name).ptr for name in program.kernels}

    def run(self, launch):
        function = launch.code[1][launch.name]
        if launch.shared_bytes > self._shared_bytes.get(function, 0):
            set_attribute = self._driver.funcSetAttribute
            if launch.shared_bytes > _STATIC_SHARED_BYTES:
                set_attribute(function, _MAX_DYNAMIC_SHARED_SIZE_BYTES, launch.shared_bytes)
            # All that the cache can spare, so that as many blocks as fit share a multiprocessor.
            set_attribute(function, _PREFERRED_SHARED_MEMORY_CARVEOUT, 100)
            self._shared_bytes[function] = launch.shared_bytes
        if self._captured is not None:
            self._captured.append(launch)
        arguments = pointers(launch.values)
        self._driver.launchKernel(
            function,
            *launch.grid,
            *launch.block,
            launch.shared_bytes,
            self._stream.ptr,
            ctypes.addressof(arguments),
            0,
        )

    def capture(self, function):
        self._captured = captured = []
        with self._stream:
            self._stream.begin_capture()
            try:
                function()
            except BaseException:
                with contextlib.suppress(Exception):  # the capture is broken, and so is its end
                    self._stream.end_capture()
                raise
            finally:
                self._captured = None
            graph = self._stream.end_capture()

        def replay():
            graph.launch(self._stream)

        replay.keeps = captured  # alive, for the graph has the addresses of their arrays
        return replay

    @contextlib.contextmanager
    def session(self):
        runtime = self._cupy.cuda.runtime
        runtime.setDevice(runtime.getDevice())  # gives a new thread its context
        with self._stream:
            yield


def compile_program(program, architecture, *options):
    """(cubin, the compiler's log) of a program for "sm_80" or the like; needs no GPU.

    Raises CompileError.
    """
    nvrtc = _nvrtc()
    handle = nvrtc.createProgram(program.text, program.path.name, (), ())
    try:
        nvrtc.compileProgram(handle, (*_OPTIONS, f"-arch={architecture}", *options))
        # CuPy takes the last byte for a string's end, and leaves it out.
        return nvrtc.getCUBIN(handle) + b"\0", nvrtc.getProgramLog(handle)
    except nvrtc.NVRTCError:
        raise CompileError(f"{program.path}: {nvrtc.getProgramLog(handle)}") from None
    finally:
        nvrtc.destroyProgram(handle)


def resources(log):
    """{kernel: (bytes of stack, bytes spilled, registers)} of the log of --ptxas-options=-v."""
    found = re.findall(
        r"Function properties for (\w+)[\s\w.]*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers",
        log,
        re.DOTALL,
    )
    return {name: (int(s), int(w) + int(r), int(n)) for name, s, w, r, n in found}


def _architecture(capability):
    """The newest architecture of the compiler's whose code runs on such a GPU; None without one."""
    same = [n for n in architectures() if n <= capability and n // 10 == capability // 10]
    return f"sm_{max(same)}" if same else None


def _capability():
    """The GPU's compute capability, as 75 or 120."""
    return int(_import_cupy().cuda.Device().compute_capability)


def _import_cupy():
    return importlib.import_module("cupy")


def _nvrtc():
    return importlib.import_module("cupy_backends.cuda.libs.nvrtc")


def _version(number):
    """CUDA's 13020 as "13.2"."""
    return f"{number // 1000}.{number % 1000 // 10}"
