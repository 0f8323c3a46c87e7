"""What the commands share: arguments, errors in one line, and an orderly stop."""

import argparse
import contextlib
import math
import os
import signal
import sys
import warnings

import tqdm

from .files import printable
from .training.workers import WorkerDiedError

# What ends a command with one line and status 2: bad arguments, bad input, a machine too small.
REFUSALS = ValueError, OSError, MemoryError, WorkerDiedError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {printable(message)}\n")


def integer(text):
    """An argument's value as an int."""
    return _convert(int, text, "an integer")


def number(text):
    """An argument's value as a float."""
    return _convert(float, text, "a number")


def positive(text):
    """An argument's value as an int above 0."""
    value = _convert(int, text, "a positive integer")
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected a positive integer")
    return value


def positive_number(text):
    """An argument's value as a finite float above 0."""
    value = _convert(float, text, "a positive number")
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"got {text}, expected a positive number")
    return value


def _convert(kind, text, expected):
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected {expected}") from None


def one_line(error):
    """What to tell a person of an exception."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        return printable(f"{where}{error.strerror}")
    if isinstance(error, MemoryError):
        return "out of memory; try a smaller --memory or --batch-size, or fewer --workers"
    return printable(" ".join(str(error).split())) or type(error).__name__


class _Output:
    """A stream of text that harms nobody where its terminal, or what stands in its place, is gone.

    What cannot be written is dropped; `error` is the first reason. Characters that the stream has
    not are escaped.
    """

    def __init__(self, stream):
        self._stream, self.error = stream, None
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text):
        self._try(self._stream.write, text)
        return len(text)

    def flush(self):
        self._try(self._stream.flush)

    def _try(self, function, *arguments):
        if self.error is not None:
            return
        try:
            function(*arguments)
        except OSError as error:
            self.error = error
            # What the stream still holds would fail once more when Python ends.
            with contextlib.suppress(OSError, ValueError):
                nothing = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, self._stream.fileno())
                os.close(nothing)


def run(prog, main):
    """The exit status of a command: main()'s, or 2 where what it prints cannot be written.

    Neither stops the command: a run of hours goes on when its terminal is gone.
    """
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_Output, streams)
    try:
        try:
            status = main()
        finally:  # a SystemExit, after --help, too
            sys.stdout.flush()
        if sys.stdout.error is not None and status == 0:
            error = sys.stdout.error.strerror
            print(f"{prog}: error: output cannot be written: {error}", file=sys.stderr)
            return 2
        return status
    finally:
        sys.stdout, sys.stderr = streams


@contextlib.contextmanager
def warnings_in_one_line(prog):
    """Within this context a warning is a line on stderr, without the code that it came from."""

    def show(message, *_, **__):
        print(f"{prog}: warning: {printable(message)}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def images_bar(total, quiet, initial=0):
    """A progress bar on stderr for so many images, of which `initial` are done; none if `quiet`."""
    return tqdm.tqdm(
        total=total,
        initial=initial,
        unit=" images",
        unit_scale=True,
        dynamic_ncols=True,
        disable=quiet,
        smoothing=0.05,
    )


class StopOnSignal:
    """As a context, turns the first SIGINT or SIGTERM into a wish to stop: calling it gives True.

    It says so on stderr. A second signal raises KeyboardInterrupt.
    """

    def __init__(self, message):
        self.message, self.signal = message, None

    def __call__(self):
        return self.signal is not None

    @property
    def status(self):
        """The exit status of a command that a signal stopped: 130 after Ctrl-C."""
        return 128 + (self.signal or signal.SIGINT)

    def __enter__(self):
        self._before = {
            number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *error):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        with contextlib.suppress(OSError):
            os.write(2, f"\n{self.message}\n".encode())  # print() may be what was interrupted
