"""How a benchmark measures: after a warm-up, in rounds, by medians; and its result files.

Warm times are of calls one after the other, which find their arrays in the caches. Flushed times
are of calls that find a GPU's second-level cache full of other data.
"""

import importlib
import importlib.metadata
import json
import platform
import re
import statistics
import sys
import time
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np

from minicnn import __version__
from minicnn.backends import cuda
from minicnn.command import Parser
from minicnn.files import atomic_write
from minicnn.machine import cores

RESULTS = Path(__file__).parent / "results"
_EMULATED_CACHE_BYTES = 1 << 20
# A copy of so much takes a GPU longer than the host takes to queue the next launch and its events.
# Else the GPU would wait for the host while the time runs.
_LEAST_FLUSH_BYTES = 1 << 26
_VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2"}  # {flag of Linux: name}, the widest first


# ---- clocks --------------------------------------------------------------------------------------


class WallClock:
    """The host's clock, for a device that has finished when a call returns."""

    mark = staticmethod(time.perf_counter)

    def seconds(self, first, last):
        """The time between two marks."""
        return last - first


class EventClock:
    """Events on CuPy's current stream; the GPU records one when all work before it is done."""

    def __init__(self, library=None):
        self._cuda = (library or importlib.import_module("cupy")).cuda

    def mark(self):
        """Record an event."""
        event = self._cuda.Event()
        event.record(self._cuda.get_current_stream())
        return event

    def seconds(self, first, last):
        """The time between two marks; waits for the later one."""
        last.synchronize()
        return self._cuda.get_elapsed_time(first, last) / 1e3


def clock_of(device):
    """The clock of one of minicnn's devices, by its name."""
    return EventClock() if device == "cuda" else WallClock()


# ---- measuring -----------------------------------------------------------------------------------


def measure(step, rounds, seconds, clock=None):
    """Time a function, in rounds of about `seconds`: [seconds a call, one a round]."""
    clock = clock or WallClock()

    def timed(calls):
        first = clock.mark()
        for _ in range(calls):
            step()
        return clock.seconds(first, clock.mark()) / calls

    timed(2)  # allocates and compiles
    calls = max(1, round(seconds / max(timed(1), 1e-6)))
    return [timed(calls) for _ in range(rounds)]


def measure_flushed(step, flush, rounds, calls, clock=None):
    """Time a function with flushed caches: [mean seconds of `calls` calls, one a round].

    flush() runs before each call, outside of the time that is measured. The time of a short launch
    includes its start, a few microseconds.
    """
    clock = clock or WallClock()

    def timed():
        flush()
        begin = clock.mark()
        step()
        return begin, clock.mark()

    timed()  # allocates and compiles
    found = []
    for _ in range(rounds):
        marks = [timed() for _ in range(calls)]  # all are queued before the first is waited for
        found.append(sum(clock.seconds(*both) for both in marks) / calls)
    return found


def cache_bytes(device):
    """Bytes of the GPU's second-level cache; on the emulator a size that stands in for it."""
    if device != "cuda":
        return _EMULATED_CACHE_BYTES
    runtime = importlib.import_module("cupy").cuda.runtime
    return runtime.getDeviceProperties(runtime.getDevice())["l2CacheSize"]


def flusher(device, arrays):
    """A function that fills a device's second-level cache with other data, by a copy.

    arrays: the driver or the backend that makes and copies arrays. The copy writes twice as much as
    the cache holds, on the stream on which the launches run.
    """
    least = _LEAST_FLUSH_BYTES if device == "cuda" else 0
    size = max(2 * cache_bytes(device), least)
    source, target = (arrays.zeros((size,), np.uint8) for _ in range(2))
    return partial(arrays.copy, source, target)


def spread(name, values):
    """{name: median, "lowest", "highest", "rounds": count} of measured values."""
    values = sorted(values)
    return {
        name: statistics.median(values),
        "lowest": values[0],
        "highest": values[-1],
        "rounds": len(values),
    }


def rates(seconds, images):
    """Median and spread of images a second, from the seconds of steps of `images` images."""
    return spread("images_per_second", [images / s for s in seconds])


# ---- what ran where ------------------------------------------------------------------------------


def machine(device="cpu"):
    """The machine, for a result that is measured on one of minicnn's devices."""
    found = {
        "processor": _processor(),
        "cores": cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "date": date.today().isoformat(),
    }
    if device == "cuda":
        found["gpu"] = cuda.gpu_name()
    return found


def versions(*packages):
    """{package: version} of minicnn, NumPy and those of `packages` that are installed."""
    found = {"minicnn": __version__}
    for package in ("numpy", *packages):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def in_words(result):
    """A sentence: when, where and with which versions a result was measured."""
    where = result["machine"]
    on = f"{where['gpu']}, {where['processor']}" if "gpu" in where else where["processor"]
    packages = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    system = f"{where['system']}, Python {where['python']}"
    return f"Measured {where['date']} on {on}, {system}, {packages}."


def table(heads, rows):
    """A table in Markdown."""
    rows = heads, ["---"] * len(heads), *rows
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def aligned(table):
    """A table in Markdown as text whose columns are aligned."""
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rows = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)
    return "\n".join(rows)


def paragraphs(*texts):
    """Texts as paragraphs of Markdown; empty ones are left out."""
    return "\n\n".join(filter(None, texts))


def _processor():
    """The processor's name with its widest vectors: one name may stand for several processors."""
    about = {}
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            key, _, value = line.partition(":")
            about.setdefault(key.strip(), value.strip())  # those of the first core
    except OSError:
        pass
    name = about.get("model name") or platform.processor() or platform.machine()
    features = about.get("flags", "").split()
    vectors = [words for flag, words in _VECTORS.items() if flag in features]
    return f"{name} with {vectors[0]}" if vectors else name


# ---- commands and result files -------------------------------------------------------------------


def parser(name, about, quick=None):
    """The Parser of benchmarks.NAME, with --out and, where `quick` says what it does, --quick."""
    made = Parser(prog=f"benchmarks.{name}", description=about)
    made.add_argument("--out", metavar="FILE", help="default: in benchmarks/results")
    if quick:
        made.add_argument(
            "--quick", action="store_true", help=f"{quick}; writes a file only with --out"
        )
    return made


def write(kind, result, out=None):
    """Write a result to `out`, or to RESULTS under a name of kind, machine and date.

    Its "machine" is that of `machine`. Returns the path.
    """
    path = Path(out) if out else RESULTS / f"{kind}-{_slug(result['machine'])}.json"
    save(path, result)
    print(f"written: {path}", file=sys.stderr)
    return path


def save(path, result):
    """Write a result to a file as JSON, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write((json.dumps(result, indent=2) + "\n").encode())


def _slug(where):
    """Machine and date as part of a file's name."""
    name = where.get("gpu") or f"{where['processor']} {where['cores']} cores"
    name = re.sub(r"\((r|tm)\)", "", name.lower())
    return f"{re.sub('[^a-z0-9]+', '-', name).strip('-')}-{where['date']}"


def newest(kind):
    """The newest result of a kind, from any machine. Raises ValueError where there is none."""
    name = re.compile(rf"{re.escape(kind)}-.*(\d{{4}}-\d\d-\d\d)")
    found = {path: name.fullmatch(path.stem) for path in sorted(RESULTS.glob(f"{kind}-*.json"))}
    dates = {path: match[1] for path, match in found.items() if match}
    if not dates:
        raise ValueError(f"{RESULTS}: no result of the kind {kind!r}")
    return json.loads(max(dates, key=dates.get).read_text())


def optional(kind):
    """[the newest result of a kind], [] where there is none."""
    try:
        return [newest(kind)]
    except ValueError:
        return []


def every(kind):
    """All results of kinds that begin with `kind`, the newest first."""
    paths = RESULTS.glob(f"{kind}*.json")
    found = [json.loads(path.read_text()) for path in sorted(paths)]
    return sorted(found, key=lambda result: result["machine"]["date"], reverse=True)
