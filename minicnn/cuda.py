"""Kernels on a GPU, through CuPy: compiled by NVRTC, launched on one stream, captured as a graph.

CuPy is imported where it is first needed, so that everything else works without it. The emulator is
the other driver: the same launches, on a CPU.
"""

import contextlib
import ctypes
import importlib
from functools import lru_cache

from .kernel import Driver, pointers

_OPTIONS = ("-std=c++17",)  # and no fast-math: a kernel asks by name for what it wants
_OLDEST = 70  # compute capability 7.0, Volta: the oldest whose threads of a warp go their own ways
_STATIC_SHARED_BYTES = 48 << 10  # more of it must be asked for


class CompileError(ValueError):
    """A kernel's source is wrong; the message has the compiler's, with the line."""


@lru_cache
def problem():
    """Why there is no CUDA here, and what to do about it, in one line; None if there is."""
    try:
        cupy = _import_cupy()
    except ImportError as error:
        if getattr(error, "name", None) == "cupy":
            return "CuPy is not installed: pip install 'minicnn[cuda13]' (cuda12 for old drivers)"
        return f"CuPy cannot be imported: {error}"
    runtime = cupy.cuda.runtime
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
    capability = cupy.cuda.Device().compute_capability
    if int(capability) < _OLDEST:
        return f"the GPU has compute capability {int(capability) / 10}, {_OLDEST / 10} is the least"
    try:
        nvrtc_version()
    except (ImportError, OSError, RuntimeError) as error:
        return f"NVRTC, the compiler, is missing: pip install nvidia-cuda-nvrtc ({error})"
    return None


def gpu_name():
    """What the GPU calls itself."""
    properties = _import_cupy().cuda.runtime.getDeviceProperties(0)
    return properties["name"].decode()


def nvrtc_version():
    """(major, minor) of the compiler. Raises ImportError, OSError or RuntimeError without it."""
    return importlib.import_module("cupy_backends.cuda.libs.nvrtc").getVersion()


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
        self._launch = importlib.import_module("cupy_backends.cuda.api.driver").launchKernel

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
        """{name: (RawKernel, address of the function)}; CuPy keeps what it compiled on disk."""
        try:
            module = self._cupy.RawModule(code=program.text, options=_OPTIONS)
            kernels = {name: module.get_function(name) for name in program.kernels}
            return {name: (raw, raw.kernel.ptr) for name, raw in kernels.items()}
        except self._cupy.cuda.compiler.CompileException as error:
            raise CompileError(f"{program.path}: {error}") from None

    def run(self, launch):
        raw, function = launch.code[launch.name]
        if launch.shared_bytes > _STATIC_SHARED_BYTES:
            raw.max_dynamic_shared_size_bytes = launch.shared_bytes
        arguments = pointers(launch.values)
        self._launch(
            function,
            *launch.grid,
            *launch.block,
            launch.shared_bytes,
            self._stream.ptr,
            ctypes.addressof(arguments),
            0,
        )

    def capture(self, function):
        with self._stream:
            self._stream.begin_capture()
            try:
                function()
            except BaseException:
                with contextlib.suppress(Exception):  # the capture is broken, and so is its end
                    self._stream.end_capture()
                raise
            graph = self._stream.end_capture()

        def replay():
            graph.launch(self._stream)

        return replay

    @contextlib.contextmanager
    def session(self):
        with self._stream:
            yield


def compile_program(program, architecture, *options):
    """(cubin, the compiler's log) of a program for "sm_80" or the like; needs no GPU.

    Raises CompileError.
    """
    nvrtc = importlib.import_module("cupy_backends.cuda.libs.nvrtc")
    handle = nvrtc.createProgram(program.text, program.path.name, (), ())
    try:
        nvrtc.compileProgram(handle, (*_OPTIONS, f"-arch={architecture}", *options))
        return nvrtc.getCUBIN(handle), nvrtc.getProgramLog(handle)
    except nvrtc.NVRTCError:
        raise CompileError(f"{program.path}: {nvrtc.getProgramLog(handle)}") from None
    finally:
        nvrtc.destroyProgram(handle)


def _import_cupy():
    return importlib.import_module("cupy")


def _version(number):
    """CUDA's 13020 as "13.2"."""
    return f"{number // 1000}.{number % 1000 // 10}"
