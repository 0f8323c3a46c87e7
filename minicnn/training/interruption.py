"""Stop work on a signal, such as Ctrl-C: at the next step, so that its state can be kept."""

import contextlib
import os
import signal
import sys


class StopOnSignal:
    """A context that catches signals. Calling it says whether one has arrived.

    The first signal prints `message` on stderr. A second one raises KeyboardInterrupt, but not
    within hold(). Outside the main thread it catches nothing: Python has signal handlers only
    there.
    """

    def __init__(self, message, signals=(signal.SIGINT, signal.SIGTERM)):
        self.message, self.signal = message, None
        self._signals, self._held = signals, False

    def __call__(self):
        return self.signal is not None

    @property
    def status(self):
        """The exit status of a command that a signal stopped: 130 after Ctrl-C."""
        return 128 + (self.signal or signal.SIGINT)

    @contextlib.contextmanager
    def hold(self):
        """A context for what must not be left half-done: further signals are only noted."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def __enter__(self):
        self._before = {}
        with contextlib.suppress(ValueError):  # not the main thread
            for number in self._signals:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error):
        for number, handler in self._before.items():
            # None: it was not set from Python, and cannot be set again
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number, frame):
        if self.signal is not None and not self._held:
            raise KeyboardInterrupt
        first, self.signal = self.signal is None, number
        if first:
            self._tell()

    def _tell(self):
        text = f"\n{self.message}\n"
        try:
            os.write(sys.stderr.fileno(), text.encode())  # print() cannot nest
        except (AttributeError, OSError, ValueError):  # no stderr, or one without a descriptor
            with contextlib.suppress(AttributeError, OSError, ValueError, RuntimeError):
                sys.stderr.write(text)
