"""Working memory: kept buffers, chunks that fit the cache, and a workspace as arrays."""

import threading
from math import prod

import numpy as np

_CACHE_BYTES = 1 << 20  # half of a usual L2 cache
_buffers = threading.local()


def scratch(name, shape, dtype):
    """An array for use within one operation, its content not set.

    There is one buffer a name and thread; it is kept between calls, and grows.
    """
    size = prod(shape) * np.dtype(dtype).itemsize
    buffer = getattr(_buffers, name, None)
    if buffer is None or buffer.size < size:
        buffer = np.empty(size, np.uint8)
        setattr(_buffers, name, buffer)
    return buffer[:size].view(dtype).reshape(shape)


def chunks(count, numbers, dtype):
    """Slices of `count` items, as many at a time as fit the cache at `numbers` numbers each."""
    length = max(1, _CACHE_BYTES // (numbers * np.dtype(dtype).itemsize))
    for first in range(0, count, length):
        yield slice(first, min(first + length, count))


def slice_workspace(workspace, layouts):
    """Arrays of these (shape, dtype), one behind the other in a workspace of bytes."""
    arrays, at = [], 0
    for shape, dtype in layouts:
        stop = at + np.dtype(dtype).itemsize * prod(shape)
        arrays.append(workspace[at:stop].view(dtype).reshape(shape))
        at = stop
    return arrays
