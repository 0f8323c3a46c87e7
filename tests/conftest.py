"""Options of the test suite: the device that layers and models are tested on, and slow tests."""

import pytest

from minicnn import devices


def pytest_addoption(parser):
    parser.addoption("--device", default="numpy", help="the device to test (default: numpy)")
    parser.addoption("--slow", action="store_true", help="run the tests that take minutes, too")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="takes minutes; run it with --slow"))


@pytest.fixture(scope="session")
def device(request):
    """The name of the device under test."""
    return request.config.getoption("--device")


@pytest.fixture(scope="session")
def ops(device):
    """The operations of the device under test."""
    return devices.choose(device)[1]
