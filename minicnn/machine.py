"""What the machine has: cores and memory."""

import os
from pathlib import Path

import numpy as np

_most_cores = None  # if this process has only a share of them


def cores():
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        usable = len(os.sched_getaffinity(0))
    else:
        usable = os.cpu_count() or 1
    return min(usable, _most_cores or usable)


def use_cores(count):
    """Use at most so many cores from now on, in this process."""
    global _most_cores  # noqa: PLW0603  it is the process's
    _most_cores = count


def aligned_empty(shape, dtype, alignment):
    """An array whose content is not set, at an address that `alignment` divides."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = np.empty(size + alignment, np.uint8)
    start = -memory.ctypes.data % alignment
    return memory[start : start + size].view(dtype).reshape(shape)


def free_memory():
    """Bytes of memory that can be used without swapping; None where the system does not say."""
    free = [_kernel_says_free(), _container_has_left()]
    return min((f for f in free if f is not None), default=None)


def _kernel_says_free():
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _container_has_left():
    """What a control group (version 2) still allows."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        parts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return limit - used + int(parts.get("inactive_file", 0))  # a cache, given up when needed
    except (OSError, ValueError):  # there is none, or its limit is "max"
        return None
