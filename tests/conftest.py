"""Options of the test suite: the device that layers and models are tested on, and slow tests.

Without `--device` the tests of operations and layers run on `numpy` and, where there is a C++
compiler, on `emulated`; those of kernels on `emulated`. With `--device cuda` all run on the GPU.
"""

import pytest

from minicnn import cuda, devices, native
from minicnn.emulator import Emulator


def pytest_addoption(parser):
    parser.addoption("--device", help="the device to test (default: numpy and emulated)")
    parser.addoption("--slow", action="store_true", help="run the tests that take minutes, too")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="takes minutes; run it with --slow"))
    # Tests in float64 are for devices that have it.
    outside = {item for item in items if item.get_closest_marker("float64") and _on_kernels(item)}
    config.hook.pytest_deselected(items=list(outside))
    items[:] = [item for item in items if item not in outside]


def _on_kernels(item):
    return hasattr(item, "callspec") and item.callspec.params.get("device") in ("cuda", "emulated")


def pytest_generate_tests(metafunc):
    if "device" in metafunc.fixturenames:
        asked = metafunc.config.getoption("--device")
        both = metafunc.definition.get_closest_marker("emulated_too")
        names = [asked] if asked else ["numpy", *["emulated"] * bool(both)]
        metafunc.parametrize("device", names, indirect=True, scope="session")


def _usable(device):
    """The device, or a visible skip of the test where it is the emulator and cannot be built."""
    if device == "emulated" and native.problem():
        pytest.skip(native.problem())
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
    """The name of the device whose kernels are tested: `emulated`, or `cuda` if asked for."""
    asked = request.config.getoption("--device")
    return _usable("emulated" if asked in (None, "numpy") else asked)


@pytest.fixture(scope="session")
def kernel_ops(kernel_device):
    """The operations of that device."""
    return devices.choose(kernel_device)[1]


@pytest.fixture(scope="session")
def driver(kernel_device):
    """What launches kernels on that device."""
    return cuda.Cuda() if kernel_device == "cuda" else Emulator()


@pytest.fixture(scope="session")
def checked_driver(kernel_device):
    """The emulator that sees every access; on a GPU the tests that need it are skipped."""
    return _emulator(kernel_device, checked=True)


@pytest.fixture(scope="session", params=["fast", "checked"])
def emulator(request, kernel_device):
    """The emulator, in either of its builds."""
    return _emulator(kernel_device, checked=request.param == "checked")


@pytest.fixture(scope="session", params=["backward", "shuffled"])
def other_order_driver(request, kernel_device):
    """The emulator with its threads in another order."""
    return _emulator(kernel_device, order=request.param)


def _emulator(kernel_device, **options):
    if kernel_device != "emulated":
        pytest.skip("needs the emulator")
    return Emulator(**options)
