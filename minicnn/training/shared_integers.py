"""Integers in memory that this process shares with its workers.

multiprocessing has such integers, but they need a folder for shared memory, /dev/shm, which some
containers lack. A file without a name needs none.
"""

import mmap
import os
import tempfile
from multiprocessing import reduction

_BYTES = 8  # of an integer


def shared_integers(count, context):
    """`count` integers of 64 bits, 0 at first, to read and write by their indices.

    Pass them as an argument to a Process of the multiprocessing `context`: it shares them.
    """
    if os.name == "nt":  # does not pass files on, and has shared memory without a folder
        return context.RawArray("q", count)
    descriptor = _nameless_file()
    os.truncate(descriptor, _BYTES * count)
    return _Integers(descriptor)


def _nameless_file():
    """The descriptor of a new file without a name."""
    try:
        return os.memfd_create("minicnn")
    except (AttributeError, OSError):  # not Linux, or it is forbidden
        with tempfile.TemporaryFile() as file:
            return os.dup(file.fileno())


class _Integers:
    """The content of an open file, mapped into memory."""

    def __init__(self, descriptor):
        self._descriptor = descriptor
        self._integers = memoryview(mmap.mmap(descriptor, 0)).cast("q")

    def __getitem__(self, index):
        return self._integers[index]

    def __setitem__(self, index, value):
        self._integers[index] = value

    def __del__(self):
        os.close(self._descriptor)

    def __reduce__(self):  # when a process starts, multiprocessing passes the open file on to it
        return _reopened, (reduction.DupFd(self._descriptor),)


def _reopened(handle):
    return _Integers(handle.detach())
