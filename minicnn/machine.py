"""The machine: its cores, threads and free memory, and arrays at aligned addresses."""

import os
import warnings
from functools import lru_cache

import numpy as np

from . import control_groups

_most_cores = None  # the limit set by use_cores, None without
_most_threads = None  # the limit set by use_threads, None without


def cores():
    """How many cores this process may use: its affinity and its control groups limit them.

    A quota counts in whole CPUs: 1.5 are one core, and 0.5 are one, too. A second thread under a
    quota of 1.5 would stand still for half of the time, while the first one waits for it at the end
    of each kernel.
    """
    if hasattr(os, "sched_getaffinity"):
        usable = len(os.sched_getaffinity(0))
    else:
        usable = os.cpu_count() or 1
    quota = _cpu_quota()
    if quota is not None:
        usable = min(usable, max(1, int(quota)))
    return min(usable, _most_cores or usable)


_cpu_quota = lru_cache(control_groups.cpu_quota)  # cores() is called often


def use_cores(count):
    """Limit this process to `count` cores from now on."""
    global _most_cores  # noqa: PLW0603  a setting of the process
    _most_cores = count


def use_threads(count):
    """Limit each process to `count` threads from now on; None: to those of $OMP_NUM_THREADS.

    Warns if that variable is needed and is not valid.
    """
    global _most_threads  # noqa: PLW0603  a setting of the process
    _most_threads = count
    threads()


def asked_threads():
    """The limit that use_threads has set, None without."""
    return _most_threads


def threads(processes=1):
    """How many threads each of so many processes has: an equal share of the cores, at least one.

    use_threads and, without it, the variable OMP_NUM_THREADS limit the number.
    """
    return shares(processes)[0]


def shares(processes):
    """As `threads`, but no core is left over: how many threads each process has, in rising order.

    Four cores give three processes 1, 1 and 2 threads.
    """
    usable = cores()
    each, more = divmod(usable, processes)
    limit = _most_threads or _openmp_limit(os.environ.get("OMP_NUM_THREADS", "")) or usable
    equal, larger = (max(1, min(share, limit)) for share in (each, each + 1))
    return [equal] * (processes - more) + [larger] * more


def openmp_threads(text):
    """The number of threads in a value of OMP_NUM_THREADS, None if it is not valid.

    "4,2" is for nested loops. There are none here, so the first number counts.
    """
    numbers = [number.strip() for number in text.split(",")]
    if all(number.isascii() and number.isdecimal() and int(number) for number in numbers):
        return int(numbers[0])
    return None


@lru_cache  # warns once
def _openmp_limit(text):
    found = openmp_threads(text)
    if text and found is None:
        message = f"OMP_NUM_THREADS: got {text!r}, expected a positive integer; it is ignored"
        warnings.warn(message, stacklevel=2)
    return found


def aligned_empty(shape, dtype, alignment):
    """An uninitialised array whose address is a multiple of `alignment` bytes."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = np.empty(size + alignment, np.uint8)
    start = -memory.ctypes.data % alignment
    return memory[start : start + size].view(dtype).reshape(shape)


def free_memory():
    """Bytes of memory that are free without swapping; None if the system does not report it.

    Control groups may limit them.
    """
    free = [_system_free_memory(), control_groups.free_memory()]
    return min((f for f in free if f is not None), default=None)


def _system_free_memory():
    try:
        with open("/proc/meminfo", errors="replace") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
