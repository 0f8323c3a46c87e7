"""Fixtures of the tests of backends."""

import pytest


@pytest.fixture
def kernels_in_c(request):
    """For tests of kernels in C: skips them where --device names another device."""
    if request.config.getoption("--device") not in (None, "numpy", "cpu"):
        pytest.skip("tests kernels in C")
