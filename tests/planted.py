"""Kernels with planted faults, each beside a correct version: where they are, what is expected.

The checked emulator must find the fault and accept the correct version.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest

from minicnn.emulator import KernelFault

KERNELS = Path(__file__).parent / "kernels"
FAULTS, WARPS, TRAFFIC, TENSOR_CORE, MISTAKEN, TOY = (
    KERNELS / f"{name}.cu" for name in "faults warps traffic tensor_core mistaken toy".split()
)
FULL = 0xFFFFFFFF  # all lanes of a warp
ORDERS = "forward", "backward", "shuffled"


def floats(driver, *shape):
    """An array of distinct values on the device."""
    return driver.to_device(np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape))


def line(path, comment):
    """Where the line with a comment is, as "file.cu:12"."""
    lines = path.read_text().splitlines()
    [number] = [i for i, text in enumerate(lines, 1) if text.endswith(f"// {comment}")]
    return f"{path.name}:{number}"


def assert_fault(launch, path, message, where=None, block=0, thread=0):
    """Assert that a launch fails with this message; `where`: the comment of the line at fault."""
    with pytest.raises(KernelFault) as caught:
        launch()
    found = str(caught.value)
    kernel, _, rest = found.removeprefix(f"{path.name}: ").partition(": ")
    assert kernel.isidentifier()
    expected = f"block ({block}, 0, 0), thread ({thread}, 0, 0) {message}"
    shown = where and shutil.which("addr2line")
    assert rest == expected + (f" ({line(path, where)})" if shown else "")


def matrices(random):
    """a (16, 8), b (8, 8), c (16, 8) of distinct integers, exact in TF32."""
    numbers = random.permutation(2000)[: 128 + 64 + 128].astype(np.float32) - 1000
    a, b, c = np.split(numbers, [128, 192])
    return a.reshape(16, 8), b.reshape(8, 8), c.reshape(16, 8)
