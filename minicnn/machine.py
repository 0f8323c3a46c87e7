"""The machine: its cores and its free memory, and arrays at aligned addresses."""

import os
from pathlib import Path

import numpy as np

_most_cores = None  # the limit set by use_cores, None without


def cores():
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        usable = len(os.sched_getaffinity(0))
    else:
        usable = os.cpu_count() or 1
    return min(usable, _most_cores or usable)


def use_cores(count):
    """Limit this process to `count` cores from now on."""
    global _most_cores  # noqa: PLW0603  a setting of the process
    _most_cores = count


def aligned_empty(shape, dtype, alignment):
    """An uninitialised array whose address is a multiple of `alignment` bytes."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = np.empty(size + alignment, np.uint8)
    start = -memory.ctypes.data % alignment
    return memory[start : start + size].view(dtype).reshape(shape)


def free_memory():
    """Bytes of memory that are free without swapping; None if the system does not report it."""
    free = [_system_free_memory(), _container_free_memory()]
    return min((f for f in free if f is not None), default=None)


def _system_free_memory():
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _container_free_memory():
    """Bytes that this process's control group (version 2) still allows; None without a limit."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        parts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return limit - used + int(parts.get("inactive_file", 0))  # file cache: freed on demand
    except (OSError, ValueError):  # no group, or its limit is "max"
        return None
