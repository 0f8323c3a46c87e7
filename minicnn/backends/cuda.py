"""Kernels on a GPU through CuPy: compiled by NVRTC, launched on streams, captured as graphs.

CuPy is imported when it is first needed, so that everything else works without it. The emulator is
the other driver: it runs the same launches on a CPU.
"""

import contextlib
import ctypes
import importlib.util
import os
import re
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

from . import native
from .kernel import Driver, pointers

_OPTIONS = ("-std=c++17",)  # no fast-math
OLDEST = 70  # compute capability 7.0, Volta: the first with independent threads in a warp
_STATIC_SHARED_BYTES = 48 << 10  # a kernel needs an attribute to use more
# Attributes of a function, as numbers of CUDA's driver API
_MAX_DYNAMIC_SHARED_SIZE_BYTES, _PREFERRED_SHARED_MEMORY_CARVEOUT = 8, 9


class CompileError(ValueError):
    """A kernel does not compile; the message contains the compiler's, with the line."""


@lru_cache
def problem():
    """Why CUDA cannot be used here, and what to do about it, in one line; None if it can."""
    found = _problem()
    return found and " ".join(found.split())


def _problem():
    try:
        cupy = _import_cupy()
    except (ImportError, OSError) as error:
        if getattr(error, "name", None) == "cupy":
            return "CuPy is not installed: pip install -e '.[cuda13]' (cuda12 for old drivers)"
        return f"CuPy cannot be imported: {error}"
    runtime = cupy.cuda.runtime
    if runtime.is_hip:
        return "this CuPy is for AMD's GPUs"
    driver, needed = runtime.driverGetVersion(), runtime.runtimeGetVersion()
    if driver == 0:
        return "no NVIDIA driver is installed, or this process cannot see it"
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        if "InsufficientDriver" not in str(error):
            return f"the NVIDIA driver finds no GPU: {error}"
        return (
            f"the NVIDIA driver is too old: it supports CUDA {_version(driver)}, CuPy needs "
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
        if capability < OLDEST:
            return f"{gpu}, at least {OLDEST / 10} is needed"
        if capability < min(architectures()):
            return f"{gpu}, which {compiler} no longer supports: pip install -e '.[cuda12]'"
        if _architecture(capability) is None:
            return f"{gpu}, which {compiler} does not support yet: pip install -U {package}"
        cupy.ones(1)  # creates a context, and compiles one of CuPy's own kernels
    except (RuntimeError, OSError, cupy.cuda.compiler.CompileException) as error:
        return f"the GPU cannot be used: {error}"
    return None


def gpu_name():
    """The GPU's name."""
    runtime = _import_cupy().cuda.runtime
    return runtime.getDeviceProperties(runtime.getDevice())["name"].decode(errors="replace")


def installed_nvrtc():
    """CuPy's module of NVRTC. Raises ImportError without CuPy; without NVRTC its calls fail."""
    return importlib.import_module("cupy_backends.cuda.libs.nvrtc")


def nvrtc_version():
    """(major, minor) of NVRTC. Raises ImportError, OSError or RuntimeError if it is missing."""
    return installed_nvrtc().getVersion()


def architectures():
    """The compute capabilities that NVRTC compiles for, as 75 or 120."""
    return installed_nvrtc().getSupportedArchs()


class Cuda(Driver):
    """A driver whose arrays are CuPy's. Work runs on one stream, in order; `together` has a second.

    The streams synchronise with CuPy's default stream, so plain CuPy code may be mixed with
    launches.
    """

    name = "cuda"

    def __init__(self):
        super().__init__()
        self._cupy = _import_cupy()
        self._device = self._cupy.cuda.runtime.getDevice()
        self._stream, self._second = self._cupy.cuda.Stream(), self._cupy.cuda.Stream()
        self._launching = self._stream  # the one of the next launch
        event = self._cupy.cuda.Event
        self._forked, self._joined = event(disable_timing=True), event(disable_timing=True)
        self._driver = importlib.import_module("cupy_backends.cuda.api.driver")
        self._architecture = _architecture(_capability())
        self.has_tensor_cores = _capability() >= 80  # that multiply in TF32 and bfloat16
        properties = self._cupy.cuda.runtime.getDeviceProperties(self._device)
        self.multiprocessors = properties["multiProcessorCount"]
        self._shared_bytes = {}  # {function: the bytes that its attributes allow}
        self._captured = None  # during a capture, a list of what must stay alive for its graph

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

    def to_host(self, array, out=None):
        with self._stream:
            return self._cupy.asnumpy(array, out=out)

    def copy(self, source, target):
        if self._captured is not None:
            self._captured.append((source, target))
        with self._stream:
            target[...] = source

    def address(self, array):
        return array.data.ptr

    def free_memory(self):
        """Bytes that can be allocated, less a tenth for kernels and graphs."""
        free, _ = self._cupy.cuda.runtime.memGetInfo()
        pooled = self._cupy.get_default_memory_pool().free_bytes()
        return (free + pooled) // 10 * 9

    # ---- kernels -----------------------------------------------------------------------------

    def compile(self, program):
        """(module, {name: address of the function}). Compiled code is cached on disk.

        CuPy's own compilation needs CUDA's headers and adds options, so it is not used.
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
            # The most shared memory (100 %), so that a multiprocessor holds the most thread blocks.
            set_attribute(function, _PREFERRED_SHARED_MEMORY_CARVEOUT, 100)
            self._shared_bytes[function] = launch.shared_bytes
        if self._captured is not None:
            self._captured.append(launch)
        arguments = pointers(launch.values)
        sizes = *launch.grid, *launch.block, launch.shared_bytes
        stream, addresses = self._launching.ptr, ctypes.addressof(arguments)
        try:
            self._driver.launchKernel(function, *sizes, stream, addresses, 0)
        except RuntimeError as error:
            # An error in a kernel comes up in a later call, unless launches are synchronous.
            raise RuntimeError(
                f"{launch.program.path.name}: {launch.name}, grid {launch.grid}, blocks of "
                f"{launch.block} threads: {error} (an earlier launch may be at fault, unless "
                "CUDA_LAUNCH_BLOCKING=1 is set)"
            ) from error

    def together(self, first, second):
        # The events order the streams also in a capture, where they become edges of the graph.
        self._forked.record(self._stream)
        self._second.wait_event(self._forked)
        try:
            self._launching = self._second
            first()
            self._launching = self._stream
            second()
        except BaseException:
            self._launching = self._stream
            with contextlib.suppress(Exception):  # after a fault on the GPU, joining fails, too
                self._join()
            raise
        self._join()

    def _join(self):
        self._joined.record(self._second)
        self._stream.wait_event(self._joined)

    def capture(self, function):
        self._captured = captured = []
        with self._stream:
            self._stream.begin_capture()
            try:
                function()
            except BaseException:
                with contextlib.suppress(Exception):  # ending a broken capture fails, too
                    self._stream.end_capture()
                raise
            finally:
                self._captured = None
            graph = self._stream.end_capture()

        def replay():
            graph.launch(self._stream)

        replay.keeps = captured  # alive, since the graph has the addresses of their arrays
        return replay

    @contextlib.contextmanager
    def session(self):
        self._cupy.cuda.runtime.setDevice(self._device)  # the calling thread may have another
        with self._stream:
            yield


def compile_program(program, architecture, *options, nvrtc=None):
    """(cubin, compiler's log) of a program for an architecture such as "sm_80"; needs no GPU.

    nvrtc: a module like CuPy's, which is the default. Raises CompileError.
    """
    nvrtc = nvrtc or installed_nvrtc()
    handle = nvrtc.createProgram(program.text, program.path.name, (), ())
    try:
        nvrtc.compileProgram(handle, (*_OPTIONS, f"-arch={architecture}", *options))
        # CuPy treats the code as a string and removes its last byte.
        return nvrtc.getCUBIN(handle) + b"\0", _log(nvrtc, handle)
    except nvrtc.NVRTCError:
        raise CompileError(f"{program.path}: {_log(nvrtc, handle)}") from None
    finally:
        nvrtc.destroyProgram(handle)


def _log(nvrtc, handle):
    """What NVRTC says about a program. CuPy decodes UTF-8 only."""
    try:
        return nvrtc.getProgramLog(handle)
    except UnicodeDecodeError as error:
        return error.object.decode("utf-8", "backslashreplace")


def resources(log):
    """{kernel: (bytes of stack, bytes spilled, registers)} from the log of --ptxas-options=-v."""
    found = re.findall(
        r"Function properties for (\w+)[\s\w.]*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers",
        log,
        re.DOTALL,
    )
    return {name: (int(s), int(w) + int(r), int(n)) for name, s, w, r, n in found}


def _architecture(capability):
    """The newest architecture that NVRTC knows and that this capability runs; None without one."""
    same = [n for n in architectures() if n <= capability and n // 10 == capability // 10]
    return f"sm_{max(same)}" if same else None


def _capability():
    """The GPU's compute capability, as 75 or 120."""
    return int(_import_cupy().cuda.Device().compute_capability)


def _import_cupy():
    _replace_cupy_cache()
    return importlib.import_module("cupy")


@lru_cache
def _replace_cupy_cache():
    """Give CuPy another folder for its own kernels, if it cannot write into its usual one.

    It makes that folder while it is imported; without a home folder, in the working folder.
    """
    if "cupy" in sys.modules or not importlib.util.find_spec("cupy"):
        return
    folder = Path(os.environ.get("CUPY_CACHE_DIR") or os.path.expanduser("~/.cupy/kernel_cache"))
    with contextlib.suppress(OSError):
        if folder.parts[0] != "~":  # it stays where there is no home folder
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return
    os.environ["CUPY_CACHE_DIR"] = str(native.usable_folder())


def _version(number):
    """CUDA's 13020 as "13.2"."""
    return f"{number // 1000}.{number % 1000 // 10}"
