"""What the machine has: cores and memory."""

import os
from pathlib import Path


def cores():
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
        return limit - int((group / "memory.current").read_text())
    except (OSError, ValueError):  # there is none, or its limit is "max"
        return None
