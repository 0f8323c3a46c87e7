"""Options of the test suite, and the devices and operations under test.

Levels: without an option the quick level runs. `--full` adds the tests marked `full`, and gives
hypothesis more examples. `--slow` adds the tests that take minutes each.

Devices: without `--device` the tests of operations and layers run on `numpy` and, where there are
compilers, on `cpu` and `emulated`; the tests of kernels run on the last two. `--device NAME` runs
them all on that device, in full.
"""

import levels
import pytest
from hypothesis import Phase, settings
from runs import TINY, command

from minicnn import devices
from minicnn.backends import cpu, cuda, native, ops_cpu
from minicnn.backends.cpu import Cpu
from minicnn.backends.ops_cuda import Operations
from minicnn.emulator import Emulator

# A failing assertion in these helpers shows the values, as it does in a test file.
pytest.register_assert_rewrite(
    "block_cases",
    "browser",
    "drawn",
    "digit_files",
    "image_trees",
    "javascript",
    "layer_frames",
    "report_pages",
    "stacks",
)


def pytest_addoption(parser):
    parser.addoption("--device", help="the device to test (default: numpy, cpu and emulated)")
    parser.addoption("--cpu-flags", default="", help="more flags for the compiler of kernels in C")
    parser.addoption("--full", action="store_true", help="run every test, in every size")
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")


def pytest_configure(config):
    levels.in_full = bool(config.getoption("--full") or config.getoption("--device"))
    if config.getoption("--device") == "cuda":
        # After an illegal access every later launch fails, so shrinking an example finds nothing.
        phases = [phase for phase in Phase if phase not in (Phase.shrink, Phase.explain)]
        settings.register_profile("cuda", phases=phases)
        settings.load_profile("cuda")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="takes minutes; run it with --slow"))
    if not levels.in_full:
        for item in items:
            if levels.needs_full(item):
                item.add_marker(pytest.mark.skip(reason="run it with --full"))
    # Kernels compute in float32, so tests in float64 do not run on them.
    outside = {item for item in items if item.get_closest_marker("float64") and _on_kernels(item)}
    config.hook.pytest_deselected(items=list(outside))
    items[:] = [item for item in items if item not in outside]


def _on_kernels(item):
    device = item.callspec.params.get("device") if hasattr(item, "callspec") else None
    return device in ("cpu", "cuda", "emulated")


def pytest_generate_tests(metafunc):
    asked = metafunc.config.getoption("--device")
    if "device" in metafunc.fixturenames:
        every = metafunc.definition.get_closest_marker("every_device")
        names = [asked] if asked else ["numpy", *["cpu", "emulated"] * bool(every)]
        metafunc.parametrize("device", names, indirect=True, scope="session")
    if "kernel_device" in metafunc.fixturenames:
        names = ["cpu", "emulated"] if asked in (None, "numpy") else [asked]
        metafunc.parametrize("kernel_device", names, indirect=True, scope="session")


def _usable(device):
    """The device; skips the test where it cannot be built."""
    problem = {"emulated": native.problem, "cpu": devices.cpu_problem}.get(device, lambda: None)()
    if problem:
        pytest.skip(problem)
    return device


@pytest.fixture(scope="session")
def device(request):
    """The name of the device under test."""
    return _usable(request.param)


@pytest.fixture(scope="session")
def ops(device):
    """The operations of the device under test."""
    return devices.choose(device)[1]


@pytest.fixture(scope="session")
def kernel_device(request):
    """The name of the device whose kernels are tested."""
    return _usable(request.param)


@pytest.fixture(scope="session")
def kernel_ops(kernel_device, request):
    """The operations of `kernel_device`."""
    if kernel_device == "cpu":
        return request.getfixturevalue("cpu_ops")
    return devices.choose(kernel_device)[1]


@pytest.fixture
def no_compiler(monkeypatch):
    """During the test no compiler is found."""
    caches = devices._operations, devices.cpu_problem, cpu._known
    monkeypatch.setattr(native, "problem", lambda language="c++": "there is no compiler")
    for function in caches:
        function.cache_clear()
    yield
    for function in caches:
        function.cache_clear()


@pytest.fixture(scope="session")
def cpu_ops(request):
    """The operations in C, compiled with --cpu-flags."""
    _usable("cpu")
    return ops_cpu.Operations(Cpu(request.config.getoption("--cpu-flags").split()))


@pytest.fixture(scope="session")
def cuda_device(request):
    """The device on which kernels in CUDA are tested: `emulated`, or `cuda` with --device cuda."""
    asked = request.config.getoption("--device")
    if asked == "cpu":
        pytest.skip("tests kernels in CUDA")
    return _usable("emulated" if asked in (None, "numpy") else asked)


@pytest.fixture(scope="session")
def driver(cuda_device):
    """The driver that launches kernels on `cuda_device`."""
    return cuda.Cuda() if cuda_device == "cuda" else Emulator()


@pytest.fixture(scope="session")
def driver_ops(driver):
    """The operations that launch on `driver`."""
    return Operations(driver)


@pytest.fixture(scope="session")
def checked_driver(cuda_device):
    """The emulator with every access checked; on a GPU its tests are skipped."""
    return _emulator(cuda_device, checked=True)


@pytest.fixture(scope="session", params=["fast", "checked"])
def emulator(request, cuda_device):
    """The emulator in each of its two builds."""
    return _emulator(cuda_device, checked=request.param == "checked")


@pytest.fixture(scope="session", params=["backward", "shuffled"])
def other_order_driver(request, cuda_device):
    """The emulator with the threads in another order."""
    return _emulator(cuda_device, order=request.param)


def _emulator(cuda_device, **options):
    if cuda_device != "emulated":
        pytest.skip("needs the emulator")
    return Emulator(**options)


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """(folder, process) of a small undisturbed run."""
    folder = tmp_path_factory.mktemp("run") / "out"
    done = command("minicnn.train", *TINY, "--workers=1", "--out", folder, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    return folder, done
