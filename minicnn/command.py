"""Shared by the commands: arguments, one-line errors, output, progress.

The commands are train.py, predict.py, export.py, draw.py, study.py and report.py.
"""

import argparse
import contextlib
import io
import itertools
import math
import os
import shutil
import sys
import warnings
from datetime import datetime
from pathlib import Path

from . import machine
from .files import printable
from .progress import counter
from .shared_context import SharedContext
from .training.guard import UnguardedScriptError, check_guard
from .training.interruption import StopOnSignal
from .training.workers import Interrupted, WorkerDiedError

# Errors that end a command with one line and exit status 2: bad arguments, bad input, an input or
# output error, too little memory, a worker process that died.
REFUSALS = ValueError, OSError, MemoryError, WorkerDiedError

EXIT_STATUS = (
    "Exit status: 0 on success; 2 after bad arguments, bad input or a failure of the machine; 130 "
    "after Ctrl-C, 143 after SIGTERM."
)
DEVICE_HELP = (
    "where to compute: 'auto' is 'cuda' if there is a usable GPU, else 'cpu'; 'numpy' is the "
    "reference; 'emulated' runs the CUDA kernels without a GPU (default: auto)"
)
THREADS_HELP = (
    "most threads of a process; the result does not depend on it. All processes together have at "
    "most as many as there are cores (default: $OMP_NUM_THREADS, else as many as there are cores)"
)
CHECKPOINT_HELP = "checkpoint.npz in a run folder of minicnn.train, or what model.save wrote"
DASK_HELP = (
    "run on a Dask cluster, given the address of its scheduler: tcp://HOST:8786. --device, "
    "--precision and --memory then hold for each of its workers; --workers and --threads are not "
    'allowed. Needs pip install "minicnn[dask]"'
)

DATA_HELP = """\
What --data reads:
  digits         the embedded digits: 6,000 training and 2,000 test images
  mnist          MNIST, downloaded once
  CSV files      train.csv and test.csv, or NAME_train.csv and NAME_test.csv:
                 Kaggle's digits, Kannada MNIST, Fashion-MNIST, EMNIST. One column
                 for each pixel; the label is the first or last one, or "label"
  IDX files      train-images-idx3-ubyte and the others: MNIST, Fashion-MNIST,
                 KMNIST, QMNIST, EMNIST (a split: FOLDER/emnist-letters)
  an .npz file   of Keras: x_train, y_train, x_test, y_test
  image folders  a folder of PNG or JPEG files for each class, or train/ and test/
                 with such folders (needs Pillow)
Give a folder, a file or a .zip (of images a folder); files may be compressed with
gzip. Images are grey or in colour, of at least 25x25 pixels; there may be 2 to 1,000
classes."""


class _Formatter(argparse.HelpFormatter):
    """Wraps a text to the width of the terminal, unless it has lines of its own."""

    def _fill_text(self, text, width, indent):
        paragraphs = text.split("\n\n")
        return "\n\n".join(
            part if "\n" in part else super(_Formatter, self)._fill_text(part, width, indent)
            for part in paragraphs
        )


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line."""

    def __init__(self, **options):
        super().__init__(formatter_class=_Formatter, **options)

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


def image_shape(text):
    """An argument's value HxW or HxWxC as a tuple of positive integers."""
    lengths = text.lower().split("x")
    if len(lengths) not in (2, 3) or not all(n.isdecimal() and int(n) for n in lengths):
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected HxW or HxWxC, such as 28x28 or 32x32x3"
        )
    return tuple(map(int, lengths))


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


def set_threads(arguments):
    """Apply --threads. With --dask, raises ValueError if --workers or --threads is given."""
    if arguments.dask is not None:
        for name in ("workers", "threads"):
            if getattr(arguments, name) is not None:
                raise ValueError(
                    f"argument --{name}: not allowed with --dask: it sets this machine's processes"
                )
    machine.use_threads(arguments.threads)


def one_line(error):
    """The message of an exception, in one line, for the user."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        return printable(f"{where}{error.strerror}")
    if isinstance(error, MemoryError):
        return "out of memory; try a smaller --memory or --batch-size, or fewer --workers"
    return printable(" ".join(str(error).split())) or type(error).__name__


def check_out_file(path):
    """Raise ValueError if --out is no file that can be written. Call it before the work."""
    if not path.resolve().parent.is_dir():
        raise ValueError(f"argument --out: got {path}, expected a file in an existing folder")
    if path.exists() and not path.is_file():
        raise ValueError(f"argument --out: {path} is not a file, expected a file or a new name")


@contextlib.contextmanager
def out_folder(given, parent):
    """A context with the folder of --out, made if it is missing.

    Where none is given, it is a new one in `parent`, named after the time: DATE-TIME, or
    DATE-TIME-2 if another process has just made that one. After UnguardedScriptError a folder that
    was made here is removed again, because nothing was trained. Raises ValueError if `given` is a
    file, and OSError.
    """
    if given:
        folder = Path(given)
        new = not folder.exists()
        if not new and not folder.is_dir():
            raise ValueError(f"argument --out: {folder} is a file, expected a folder")
        folder.mkdir(parents=True, exist_ok=True)
    else:
        folder, new = _new_folder(Path(parent)), True
    try:
        yield folder
    except UnguardedScriptError:
        if new:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _new_folder(parent):
    parent.mkdir(parents=True, exist_ok=True)
    name = datetime.now().strftime("%Y%m%d-%H%M%S")
    for number in itertools.count(1):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder


class _Output:
    """A text stream whose write errors do not raise.

    After the first error, kept in `error`, all further output is dropped. Characters that the
    stream's encoding lacks are escaped. A stream that is None or closed is like the null device.
    """

    def __init__(self, stream):
        if stream is None or getattr(stream, "closed", False):
            stream = _Nowhere()
        self._stream, self.error = stream, None
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text):
        self._try(self._stream.write, text)
        return len(text)

    def flush(self):
        self._try(getattr(self._stream, "flush", lambda: None))

    def _try(self, function, *arguments):
        if self.error is not None:
            return
        try:
            function(*arguments)
        except (OSError, ValueError) as error:  # ValueError: it was closed
            self.error = error
            # Python flushes the stream at exit: without this, its buffer would fail again there.
            with contextlib.suppress(AttributeError, OSError, ValueError):
                number, nothing = self._stream.fileno(), os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, number)
                os.close(nothing)


class _Nowhere(io.TextIOBase):
    """A text stream that keeps nothing."""

    def write(self, text):
        return len(text)


@contextlib.contextmanager
def _safe_output(prog):
    """A context in which stdout and stderr are _Outputs, and a warning is one line on stderr."""

    def show(message, *_, **__):
        print(f"{prog}: warning: {printable(message)}", file=sys.stderr)

    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(_Output(sys.stdout)) as stdout,
        contextlib.redirect_stderr(_Output(sys.stderr)) as stderr,
    ):
        warnings.showwarning = show
        yield stdout, stderr


_shared_output = SharedContext(_safe_output)  # commands may run in several threads


def _open_closed_streams():
    """Open the null device as each of the descriptors 0, 1 and 2 that is closed.

    Otherwise a file that is opened later gets such a number, and receives what a library or a child
    process prints.
    """
    with contextlib.suppress(OSError):
        # The system gives the lowest free number.
        while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
            os.set_inheritable(number, True)
        os.close(number)


def run(prog, main):
    """Run main() and return the exit status: that of main(), or 2 if output could not be written.

    A write error does not stop the command: a long run continues when its terminal is closed.
    Without stdout or stderr, their output is dropped. A script without the guard that worker
    processes need is ended: one line, and SystemExit(2).
    """
    check_guard()
    _open_closed_streams()
    with _shared_output(prog) as (stdout, stderr):
        try:
            status = main()
        except UnguardedScriptError as error:
            print(f"{prog}: error: {error}", file=stderr)
            raise SystemExit(2) from None
        finally:  # also on SystemExit, as after --help
            stdout.flush()
        if stdout.error is not None and status == 0:
            error = one_line(stdout.error)
            print(f"{prog}: error: output cannot be written: {error}", file=stderr)
            return 2
        return status


def run_short(parser, function, argv):
    """As `run`, for function(arguments, should_stop): a command that has nothing to resume."""

    def main():
        arguments = parser.parse_args(argv)
        stop = StopOnSignal("stopping")
        try:
            with stop:
                function(arguments, stop)
        except (Interrupted, KeyboardInterrupt):
            return stop.status
        except REFUSALS as error:
            print(f"{parser.prog}: error: {one_line(error)}", file=sys.stderr)
            return 2
        return 0

    return run(parser.prog, main)


def images_bar(total, quiet, initial=0, about=lambda: ""):
    """The progress of `total` images, starting at `initial`, on stderr; see progress.counter."""
    return counter(total, "images", quiet, initial, about)
