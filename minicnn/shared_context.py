"""A context manager for settings of the whole process, which threads share."""

import contextlib
import threading


class SharedContext:
    """A context manager that the first thread enters and the last one leaves.

    Without it, the thread that ends first would undo the setting for the others. make(*arguments)
    makes the context manager, with the arguments of the first thread.
    """

    def __init__(self, make):
        self._make, self._lock, self._users = make, threading.Lock(), 0
        self._context = self._value = None

    @contextlib.contextmanager
    def __call__(self, *arguments):
        with self._lock:
            if not self._users:
                self._context = self._make(*arguments)
                self._value = self._context.__enter__()
            self._users += 1
        try:
            yield self._value
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._context.__exit__(None, None, None)
