"""Fixtures of the tests of backends."""

import re

import pytest

from minicnn.backends import cpu
from minicnn.backends.cpu import Cpu
from minicnn.backends.kernel import SOURCES
from minicnn.backends.ops_cpu import Operations


@pytest.fixture
def kernels_in_c(request):
    """For tests of kernels in C: skips them where --device names another device."""
    if request.config.getoption("--device") not in (None, "numpy", "cpu"):
        pytest.skip("tests kernels in C")


@pytest.fixture(scope="session")
def shared_ops(cpu_ops, tmp_path_factory):
    """The operations in C, compiled to split even the smallest work among threads."""
    folder = tmp_path_factory.mktemp("kernels")
    for path in SOURCES.glob("*.[ch]"):
        text = re.sub(r"\bWORTH_SHARING = [^}]+", "WORTH_SHARING = 0 ", path.read_text())
        (folder / path.name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "SOURCES", folder)
        return Operations(Cpu())
