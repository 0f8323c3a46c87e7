"""The CUDA driver without a GPU: compiled kernels, refusals, and the calls that it makes.

NVRTC compiles without a GPU; it comes with CuPy's wheel and nvidia-cuda-nvrtc (extra `cuda13`).
"""

import ctypes
import re
from types import SimpleNamespace

import numpy as np
import pytest
from planted import MISTAKEN, TENSOR_CORE, TOY

from benchmarks.compilers import programs
from minicnn import devices
from minicnn.backends import cuda
from minicnn.backends.kernel import Program
from minicnn.backends.ops_cuda import Operations
from minicnn.emulator import Emulator
from minicnn.recipe import RECIPES

FOR_TENSOR_CORES = 80, 90, "newest"  # older GPUs have none


@pytest.fixture(scope="module")
def nvrtc():
    """The compiler's version; skips the test without one."""
    pytest.importorskip("cupy_backends", reason="needs CuPy: pip install -e '.[cuda13]'")
    try:
        return cuda.nvrtc_version()
    except (ImportError, OSError, RuntimeError) as error:
        pytest.skip(f"needs NVRTC: pip install -e '.[cuda13]' ({error})")


@pytest.mark.full(but="newest")
@pytest.mark.parametrize(
    ("program", "capability"),
    [
        pytest.param(program, capability, id=f"{program.name} {program.defines} {capability}")
        for program in programs()
        for capability in (
            FOR_TENSOR_CORES
            if "mma_m16n8k8_tf32" in program.text
            else ("oldest", 80, 90, 100, "newest")
        )
    ],
)
def test_every_kernel_compiles_and_spills_no_register(nvrtc, program, capability):
    known = cuda.architectures()
    capability = {"oldest": min(known), "newest": max(known)}.get(capability, capability)
    cubin, log = cuda.compile_program(program, f"sm_{capability}", "--ptxas-options=-v")
    assert cubin.startswith(b"\x7fELF")
    assert "warning" not in log, log
    found = cuda.resources(log)
    assert set(found) == set(program.kernels)
    for name, (stack, spilled, registers) in found.items():
        assert (stack, spilled) == (0, 0), name
        assert 0 < registers <= 255


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_tensor_core_steps_and_asynchronous_copies_compile(nvrtc, architecture):
    cubin, _ = cuda.compile_program(Program(TENSOR_CORE), architecture)
    assert cubin.startswith(b"\x7fELF")


def test_a_mistake_in_a_kernel_is_shown_with_its_line(nvrtc):
    with pytest.raises(cuda.CompileError) as caught:
        cuda.compile_program(Program(MISTAKEN), "sm_90")
    message = str(caught.value)
    assert str(MISTAKEN) in message and "mistaken.cu(5)" in message
    assert 'identifier "nowhere" is undefined' in message
    assert "x.row()[0] = nowhere;" in message


# ---------------------------------------------------------------------------------------------
# What is missing is named


class CUDARuntimeError(RuntimeError):
    pass


class CompileException(Exception):  # noqa: N818  CuPy's name
    pass


def fake_cupy(driver=13020, needed=13020, count=1, capability="90", ones=np.ones, is_hip=False):
    """A CuPy for `problem`. It raises an answer that is an error, and a `count` that is a text."""

    def answer(value):
        def function(*arguments):
            if isinstance(value, Exception):
                raise value
            return value

        return function

    if isinstance(count, str):
        count = CUDARuntimeError(count)
    runtime = SimpleNamespace(
        is_hip=is_hip,
        driverGetVersion=answer(driver),
        runtimeGetVersion=answer(needed),
        getDeviceCount=answer(count),
        CUDARuntimeError=CUDARuntimeError,
        getDevice=answer(0),
        getDeviceProperties=lambda number: {"name": b"NVIDIA Test"},
    )
    device = SimpleNamespace(compute_capability=capability)
    parts = SimpleNamespace(
        runtime=runtime,
        Device=answer(capability if isinstance(capability, Exception) else device),
        compiler=SimpleNamespace(CompileException=CompileException),
    )
    return SimpleNamespace(cuda=parts, ones=answer(ones) if isinstance(ones, Exception) else ones)


@pytest.fixture
def cupy(monkeypatch):
    """A function that installs a fake CuPy."""

    def put(fake):
        def import_cupy():
            if isinstance(fake, Exception):
                raise fake
            return fake

        monkeypatch.setattr(cuda, "_import_cupy", import_cupy)
        monkeypatch.setattr(cuda, "nvrtc_version", lambda: (13, 2))
        monkeypatch.setattr(cuda, "architectures", lambda: (75, 80, 86, 90, 120))
        cuda.problem.cache_clear()

    yield put
    cuda.problem.cache_clear()


PROBLEMS = [
    (ModuleNotFoundError("no", name="cupy"), r"CuPy is not installed: pip install .*cuda13"),
    (ImportError("numpy is\n  too new"), "CuPy cannot be imported: numpy is too new"),
    (fake_cupy(is_hip=True), "for AMD's GPUs"),
    (fake_cupy(driver=0), "no NVIDIA driver is installed"),
    (
        fake_cupy(12040, count="cudaErrorInsufficientDriver: x"),
        r"too old: it supports CUDA 12\.4.*13\.2",
    ),
    (fake_cupy(count="cudaErrorNoDevice: no device"), "finds no GPU: cudaErrorNoDevice"),
    (fake_cupy(count=0), "finds no GPU"),
    (fake_cupy(capability="61"), r"compute capability 6\.1, at least 7\.0 is needed"),
    (fake_cupy(capability="70"), r"7\.0, which NVRTC 13\.2 no longer supports: .*cuda12"),
    (
        fake_cupy(capability="131"),
        r"13\.1, which NVRTC 13\.2 does not support yet: .*-U nvidia-cuda-nvrtc$",
    ),
    (fake_cupy(capability=CUDARuntimeError("in use")), "the GPU cannot be used: in use"),
    (fake_cupy(ones=RuntimeError("no CUDA\nheaders")), "cannot be used: no CUDA headers"),
    (fake_cupy(ones=CompileException("no")), "cannot be used: no"),
]


@pytest.mark.parametrize(("fake", "message"), PROBLEMS)
def test_what_is_missing_is_named(cupy, fake, message):
    cupy(fake)
    with pytest.raises(ValueError, match=f"^device: 'cuda' cannot be used: .*{message}"):
        devices.choose("cuda")
    name, _, reason = devices.choose("auto")
    assert name in ("cpu", "numpy") and re.search(message, reason)
    assert "\n" not in reason


@pytest.mark.parametrize("name", ["numpy", "emulated"])
def test_a_precision_that_the_device_lacks_is_refused(name, monkeypatch):
    monkeypatch.setattr(Emulator, "has_tensor_cores", False)  # as a GPU from before 8.0
    devices._operations.cache_clear()
    refusal = f"^precision: got 'tf32', expected 'float32': the device {name!r} has no tensor cores"
    with pytest.raises(ValueError, match=refusal):
        devices.choose(name, "tf32")
    with pytest.raises(ValueError, match=refusal.replace("tf32", "bfloat16")):
        devices.choose(name, "bfloat16")
    assert devices.choose(name, None)[1].precision == "float32"
    devices._operations.cache_clear()


@pytest.mark.parametrize(("capability", "precision"), [(75, "float32"), (80, "tf32")])
def test_training_on_a_gpu_takes_tensor_cores_where_there_are_some(
    monkeypatch, capability, precision
):
    class Gpu(Emulator):
        name, has_tensor_cores = "cuda", capability >= 80

    monkeypatch.setattr(cuda, "problem", lambda: None)
    monkeypatch.setattr(cuda, "Cuda", Gpu)
    devices._operations.cache_clear()
    assert devices.choose("cuda", None)[1].precision == precision
    assert devices.choose("cuda")[1].precision == "float32"
    devices._operations.cache_clear()


@pytest.mark.parametrize(
    ("needed", "package"), [(13020, "nvidia-cuda-nvrtc"), (12090, "nvidia-cuda-nvrtc-cu12")]
)
def test_a_missing_compiler_is_named(cupy, monkeypatch, needed, package):
    def absent():
        raise OSError("libnvrtc.so.13: cannot open shared object file")

    cupy(fake_cupy(needed=needed))
    monkeypatch.setattr(cuda, "nvrtc_version", absent)
    assert f"pip install {package} (libnvrtc" in cuda.problem()


def test_a_usable_gpu_is_no_problem(cupy):
    cupy(fake_cupy())
    assert cuda.problem() is None
    assert cuda.gpu_name() == "NVIDIA Test"


@pytest.mark.parametrize(
    ("capability", "architecture"),
    [(75, "sm_75"), (89, "sm_86"), (90, "sm_90"), (121, "sm_120"), (70, None), (130, None)],
)
def test_code_for_an_older_gpu_of_the_same_generation_is_used(cupy, capability, architecture):
    cupy(fake_cupy())
    assert cuda._architecture(capability) == architecture


# ---------------------------------------------------------------------------------------------
# The calls that the driver makes, recorded by a stand-in for CuPy


class Array(np.ndarray):
    """A NumPy array with its address where CuPy's arrays have it."""

    @property
    def data(self):
        return SimpleNamespace(ptr=self.ctypes.data)


class Stream:
    ptr, second = 77, 78

    def __init__(self, calls, ptr=None):
        self.calls = calls
        self.ptr = ptr or Stream.ptr

    def wait_event(self, event):
        self.calls.append(("wait", self.ptr, event.number))

    def __enter__(self):
        self.calls.append("enter")

    def __exit__(self, *error):
        self.calls.append("exit")

    def begin_capture(self):
        self.calls.append("begin")

    def end_capture(self):
        self.calls.append("end")
        return SimpleNamespace(launch=lambda stream: self.calls.append(("graph", stream)))


class Event:
    def __init__(self, calls, number):
        self.calls, self.number = calls, number

    def record(self, stream):
        self.calls.append(("record", stream.ptr, self.number))


class Module:
    """A loaded cubin: here, the name of its program. A function's address is 55."""

    def load(self, cubin):
        self.cubin = cubin

    def get_function(self, name):
        return SimpleNamespace(ptr=55)


class NVRTCError(RuntimeError):
    pass


@pytest.fixture
def calls():
    return []


@pytest.fixture
def stand_in(monkeypatch, calls, tmp_path):
    """A CuPy on NumPy, whose launches are kept as (function, grid, block, shared, stream, ...)."""

    def compile_program(code, options):
        calls.append(("compile", options))
        if "broken" in code:
            raise NVRTCError

    def launch(function, *rest):
        *sizes, parameters, extra = rest
        assert extra == 0
        values = list((ctypes.c_uint64 * 7).from_address(parameters))
        calls.append(("launch", function, tuple(sizes), values))

    def asnumpy(array, out):
        if out is None:
            return np.array(array)
        assert (out.shape, out.dtype, out.flags.c_contiguous) == (array.shape, array.dtype, True)
        np.copyto(out, array)
        return out

    streams, events = iter([Stream.ptr, Stream.second] * 9), iter(range(99))
    cupy = SimpleNamespace(
        empty=lambda shape, dtype: np.empty(shape, dtype).view(Array),
        zeros=lambda shape, dtype: np.zeros(shape, dtype).view(Array),
        array=lambda array, order: np.array(array, order=order).view(Array),
        asnumpy=asnumpy,
        cuda=SimpleNamespace(
            Stream=lambda: Stream(calls, next(streams)),
            Event=lambda disable_timing: Event(calls, next(events)),
            Device=lambda: SimpleNamespace(compute_capability="89"),
            function=SimpleNamespace(Module=Module),
            runtime=SimpleNamespace(
                memGetInfo=lambda: (1000, 4000),
                getDevice=lambda: 3,
                getDeviceProperties=lambda device: {3: {"multiProcessorCount": 58}}[device],
                setDevice=lambda device: calls.append(("device", device)),
            ),
        ),
        get_default_memory_pool=lambda: SimpleNamespace(free_bytes=lambda: 500),
    )
    nvrtc = SimpleNamespace(
        NVRTCError=NVRTCError,
        getVersion=lambda: (13, 2),
        getSupportedArchs=lambda: (75, 86, 90),
        createProgram=lambda code, name, headers, includes: code,
        compileProgram=compile_program,
        getCUBIN=lambda code: b"cubin",
        getProgramLog=lambda code: "mistaken.cu(3): error: nowhere",
        destroyProgram=lambda code: None,
    )
    driver = SimpleNamespace(
        launchKernel=launch, funcSetAttribute=lambda *given: calls.append(("attribute", *given))
    )
    modules = {
        "cupy": cupy,
        "cupy_backends.cuda.api.driver": driver,
        "cupy_backends.cuda.libs.nvrtc": nvrtc,
    }
    monkeypatch.setattr(cuda.importlib, "import_module", modules.__getitem__)
    monkeypatch.setattr(cuda.native, "_folder", lambda: tmp_path)
    return cupy


def toy_arguments(driver):
    x, y = (driver.to_device(np.ones((2, 3, 4), np.float32)) for _ in range(2))
    factor = driver.to_device(np.ones(1))
    return [x, None, factor, {"rows": 3, "columns": 4}, 7, True, y]


def test_a_launch_is_put_on_the_stream_with_pointers_to_its_arguments(stand_in, calls):
    driver = cuda.Cuda()
    given = toy_arguments(driver)
    held = driver.bind(TOY, "scale", (5,), (64, 2), given)
    calls.clear()
    driver.run(held)
    [(what, function, sizes, addresses)] = calls
    assert (what, function) == ("launch", 55)
    assert sizes == (5, 1, 2, 64, 2, 1, 0, Stream.ptr)
    row = ctypes.cast(addresses[0], ctypes.POINTER(ctypes.c_int64))
    assert row[:2] == [given[0].ctypes.data, 12]
    assert ctypes.cast(addresses[3], ctypes.POINTER(ctypes.c_int32))[:2] == [3, 4]
    assert ctypes.c_int32.from_address(addresses[4]).value == 7


def test_a_program_is_compiled_once_and_kept_on_disk_without_fast_math(stand_in, calls, tmp_path):
    for _ in range(2):
        driver = cuda.Cuda()
        for _ in range(2):
            driver.launch(TOY, "scale", (5,), (64,), *toy_arguments(driver))
    [(_, options)] = [call for call in calls if call[0] == "compile"]
    assert options == ("-std=c++17", "-arch=sm_86")
    [kept] = tmp_path.iterdir()
    assert kept.suffix == ".cubin" and kept.read_bytes() == b"cubin\0"


def test_large_shared_memory_is_requested_once(stand_in, calls):
    driver = cuda.Cuda()
    for size in (48 << 10, 100_000, 60_000):
        driver.launch(TOY, "scale", (5,), (64,), *toy_arguments(driver), shared_bytes=size)
    asked = [call[1:] for call in calls if call[0] == "attribute"]
    assert asked == [(55, 9, 100), (55, 8, 100_000), (55, 9, 100)]


def test_a_session_gives_the_thread_the_device_of_the_driver(stand_in, calls):
    driver = cuda.Cuda()
    stand_in.cuda.runtime.getDevice = lambda: 0  # what a new thread has
    calls.clear()
    with driver.session():
        assert calls == [("device", 3), "enter"]


def test_a_launch_that_fails_names_its_kernel(stand_in, monkeypatch):
    driver = cuda.Cuda()
    held = driver.bind(TOY, "scale", (5,), (64, 2), toy_arguments(driver))

    def fail(*given):
        raise RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS")

    monkeypatch.setattr(driver._driver, "launchKernel", fail)
    told = r"toy\.cu: scale, grid \(5, 1, 2\), blocks of \(64, 2, 1\) threads: CUDA_ERROR_ILLEGAL"
    with pytest.raises(RuntimeError, match=told):
        driver.run(held)


def test_a_capture_is_made_on_the_stream_and_launched_there(stand_in, calls):
    driver = cuda.Cuda()
    calls.clear()
    replay = driver.capture(lambda: calls.append("function"))
    assert calls == ["enter", "begin", "function", "end", "exit"]
    calls.clear()
    replay()
    [(what, stream)] = calls
    assert what == "graph" and stream.ptr == Stream.ptr


def test_an_error_in_joining_the_streams_does_not_hide_the_first_one(stand_in, monkeypatch):
    driver = cuda.Cuda()

    def fail(*given):
        raise RuntimeError("no more" if not given else "nor this")

    monkeypatch.setattr(driver._joined, "record", fail)
    with pytest.raises(RuntimeError, match="no more"):
        driver.together(lambda: None, fail)


@pytest.mark.parametrize("shape", [(2, 3), (2, 0)])
def test_a_copy_on_the_host_may_take_the_memory_of_another(stand_in, shape):
    driver = cuda.Cuda()
    array, out = driver.to_device(np.ones(shape)), np.zeros(shape)
    assert driver.to_host(array, out) is out
    np.testing.assert_array_equal(out, 1)
    assert not np.shares_memory(driver.to_host(array), array)


def test_what_runs_together_is_on_two_streams_that_wait_for_each_other(stand_in, calls):
    """In a capture, too: then waiting becomes an edge of the graph."""
    driver = cuda.Cuda()
    first, second, after = (
        driver.bind(TOY, "scale", (grid,), (64,), toy_arguments(driver)) for grid in (1, 2, 3)
    )

    def work():
        driver.together(lambda: driver.run(first), lambda: driver.run(second))
        driver.run(after)

    main, side = Stream.ptr, Stream.second
    expected = [
        ("record", main, 0), ("wait", side, 0), (1, side), (2, main),
        ("record", side, 1), ("wait", main, 1), (3, main),
    ]  # fmt: skip
    for capture in False, True:
        calls.clear()
        driver.capture(work) if capture else work()
        found = [
            (call[2][0], call[2][-1]) if call[0] == "launch" else call
            for call in calls
            if isinstance(call, tuple)
        ]
        assert found == expected


@pytest.mark.parametrize("failing", [0, 1])
def test_after_a_launch_that_fails_beside_another_the_streams_are_joined(stand_in, calls, failing):
    driver = cuda.Cuda()

    def fail():
        raise RuntimeError("no more")

    both = [lambda: None] * 2
    both[failing] = fail
    with pytest.raises(RuntimeError, match="no more"):
        driver.together(*both)
    assert calls[-2:] == [("record", Stream.second, 1), ("wait", Stream.ptr, 1)]
    calls.clear()
    driver.launch(TOY, "scale", (5,), (64,), *toy_arguments(driver))
    assert calls[-1][2][-1] == Stream.ptr


def test_a_graph_keeps_its_arrays(stand_in):
    driver = cuda.Cuda()
    given = toy_arguments(driver)
    source, target = given[0], given[6]

    def step():
        driver.launch(TOY, "scale", (5,), (64,), *given)
        driver.copy(source, target)

    replay = driver.capture(step)
    launch, copied = replay.keeps
    assert launch.arrays[0][1] is source and launch.arrays[-1][1] is target
    assert copied == (source, target)
    assert driver._captured is None


def test_a_capture_that_fails_is_ended(stand_in, calls):
    driver = cuda.Cuda()

    def fail():
        raise KeyError("planted")

    calls.clear()
    with pytest.raises(KeyError, match="planted"):
        driver.capture(fail)
    assert calls == ["enter", "begin", "end", "exit"]


def test_the_compilers_log_may_have_another_encoding(stand_in, tmp_path, monkeypatch):
    nvrtc = cuda.installed_nvrtc()
    monkeypatch.setattr(nvrtc, "getProgramLog", lambda code: b"d\xe9conseill\xe9".decode())
    assert cuda.compile_program(Program(TOY), "sm_89")[1] == r"d\xe9conseill\xe9"
    path = tmp_path / "mistaken.cu"
    path.write_text("// broken\n" + TOY.read_text())
    with pytest.raises(cuda.CompileError, match=r"mistaken\.cu: d\\xe9conseill\\xe9$"):
        cuda.compile_program(Program(path), "sm_89")


def test_the_compilers_message_comes_through(stand_in, tmp_path):
    path = tmp_path / "mistaken.cu"
    path.write_text("// broken\n" + TOY.read_text())
    driver = cuda.Cuda()
    with pytest.raises(cuda.CompileError, match=r"mistaken\.cu\(3\): error: nowhere"):
        driver.launch(path, "scale", (5,), (64,), *toy_arguments(driver))


def test_grids_are_cut_for_the_gpus_multiprocessors(stand_in):
    driver = cuda.Cuda()
    assert driver.multiprocessors == 58
    ops = Operations(driver, precision="tf32")
    found = [ops.fusion(RECIPES["seed"].nodes, nets, 64).blocks[1].forward for nets in (1, 4)]
    assert [launch.grid[0] for launch in found] == [64, 26]


def test_free_memory_keeps_a_reserve(stand_in):
    assert cuda.Cuda().free_memory() == 1350


def test_arrays_go_there_and_back(stand_in):
    driver = cuda.Cuda()
    array = np.arange(6.0).reshape(2, 3)
    there = driver.to_device(array.T)
    assert there.flags.c_contiguous and driver.address(there) == there.ctypes.data
    np.testing.assert_array_equal(driver.to_host(there), array.T)
    target = driver.zeros((3, 2), np.float64)
    driver.copy(there, target)
    np.testing.assert_array_equal(target, array.T)
    assert driver.empty((2,), np.int64).shape == (2,)
