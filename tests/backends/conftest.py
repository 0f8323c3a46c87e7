"""What several tests of backends need."""

import pytest


@pytest.fixture
def kernels_in_c(request):
    """The test is of kernels in C: it is skipped where --device names another device."""
    if request.config.getoption("--device") not in (None, "numpy", "cpu"):
        pytest.skip("tests kernels in C")
