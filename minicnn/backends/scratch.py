"""Working memory: buffers that are kept, chunks that fit the cache, and arrays in a workspace."""

import threading
from math import prod

import numpy as np

_CACHE_BYTES = 1 << 20  # half of a typical L2 cache
_buffers = threading.local()


def scratch(name, shape, dtype):
    """An array for use within one operation; its content is not set.

    Each name has one buffer in each thread, which is kept between calls and grows as needed.
    """
    size = prod(shape) * np.dtype(dtype).itemsize
    buffer = getattr(_buffers, name, None)
    if buffer is None or buffer.size < size:
        buffer = np.empty(size, np.uint8)
        setattr(_buffers, name, buffer)
    return buffer[:size].view(dtype).reshape(shape)


def chunks(count, elements, dtype):
    """Slices of range(count), each of as many items as fit the cache, with `elements` per item."""
    length = max(1, _CACHE_BYTES // (elements * np.dtype(dtype).itemsize))
    for first in range(0, count, length):
        yield slice(first, min(first + length, count))


def slice_workspace(workspace, layouts):
    """Split a workspace of bytes into consecutive arrays of these (shape, dtype)."""
    arrays, at = [], 0
    for shape, dtype in layouts:
        stop = at + np.dtype(dtype).itemsize * prod(shape)
        arrays.append(workspace[at:stop].view(dtype).reshape(shape))
        at = stop
    return arrays
