"""Progress on stderr: a bar on a terminal, a line a minute elsewhere, for example in a log file."""

import math
import sys
import time
import warnings
from datetime import timedelta

SECONDS = 60  # between two lines


def counter(total, unit, quiet, initial=0, about=lambda: "", name=None):
    """A context that shows how many of `total` units are done, starting at `initial`.

    Its methods: update(n) adds n; write(line, file) prints a line without breaking the bar;
    set_postfix_str(text) shows a text beside the bar. `n` and `total` can be read, and `total` may
    be set later, or stay None. quiet: show nothing. about(): more text for a line. name: what is
    counted; its last line is printed, however early that is.
    """
    stream = sys.stderr
    terminal = getattr(stream, "isatty", lambda: False)()
    if quiet or not (terminal or _in_notebook()):
        return _Lines(stream, total, unit, quiet, initial, about, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without ipywidgets, a notebook shows a bar of text
        from tqdm.auto import tqdm  # noqa: PLC0415  it looks at where it is imported

    return tqdm(
        file=stream,
        desc=name,
        total=total,
        initial=initial,
        unit=unit if unit == "B" else f" {unit}",
        unit_scale=True,
        dynamic_ncols=True,
        smoothing=0.05,
    )


def _in_notebook():
    """Whether this process is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return "IPKernelApp" in getattr(shell, "config", {})


class _Lines:
    """Progress as lines of text, with those methods of a tqdm bar that are used here."""

    def __init__(self, stream, total, unit, quiet, initial, about, name):
        self.n, self.total = initial, total
        self._stream, self._about, self._initial = stream, about, initial
        self._unit = "bytes" if unit == "B" else unit
        self._name, self._started = name, time.monotonic()
        self._hidden = quiet or stream is None  # print() to None would write to stdout
        self._next = math.inf if self._hidden else self._started + SECONDS

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self._name and not self._hidden:
            self._print()

    def update(self, count):
        """Count `count` more units, and print a line if the last one is a minute old."""
        self.n += count
        now = time.monotonic()
        if now >= self._next:
            self._next = now + SECONDS
            self._print()

    def write(self, line, file):
        """Print a line to a stream."""
        print(line, file=file, flush=True)

    def set_postfix_str(self, text):
        """Nothing: a line has about()."""

    def _print(self):
        seconds = time.monotonic() - self._started
        line = f"{self._name}: " if self._name else ""
        line += f"{self.n:,} of {self.total:,} " if self.total else f"{self.n:,} "
        line += self._unit
        if self.total:
            line += f" ({100 * self.n // self.total} %)"
        line += f", {_duration(seconds)} so far"
        if self.total and self.n > self._initial:
            left = seconds * (self.total - self.n) / (self.n - self._initial)
            line += f", {_duration(left)} left"
        print("; ".join(filter(None, [line, self._about()])), file=self._stream, flush=True)


def _duration(seconds):
    return timedelta(seconds=round(max(seconds, 0)))
