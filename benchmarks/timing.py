"""How a benchmark measures: warm-up outside, contenders in turn, medians, and what ran where."""

import importlib
import importlib.metadata
import json
import os
import platform
import re
import statistics
import sys
import time
from datetime import date
from pathlib import Path

from minicnn import __version__
from minicnn.backends import cuda
from minicnn.machine import cores

RESULTS = Path(__file__).parent / "results"


# ---- clocks --------------------------------------------------------------------------------------


class WallClock:
    """The time of day, for a device that has done its work when a call returns."""

    mark = staticmethod(time.perf_counter)

    def seconds(self, first, last):
        """Between two marks."""
        return last - first


class EventClock:
    """Events on CuPy's current stream, which a GPU reaches when it has done what came before."""

    def __init__(self, library=None):
        self._cuda = (library or importlib.import_module("cupy")).cuda

    def mark(self):
        """A moment in the stream."""
        event = self._cuda.Event()
        event.record(self._cuda.get_current_stream())
        return event

    def seconds(self, first, last):
        """Between two marks; waits for the later one."""
        last.synchronize()
        return self._cuda.get_elapsed_time(first, last) / 1e3


def clock_of(device):
    """The clock of one of minicnn's devices, by its name."""
    return EventClock() if device == "cuda" else WallClock()


# ---- measuring -----------------------------------------------------------------------------------


def alternate(contenders, rounds, seconds, clock=None):
    """Time contenders {name: function of one step} round by round, so that noise meets them alike.

    In each round each runs for about `seconds`. Returns {name: [seconds a step, one a round]}.
    """
    clock = clock or WallClock()

    def timed(step, calls):
        first = clock.mark()
        for _ in range(calls):
            step()
        return clock.seconds(first, clock.mark()) / calls

    counts = {}
    for name, step in contenders.items():
        timed(step, 2)  # what is made once: buffers, compiled code
        counts[name] = max(1, round(seconds / max(timed(step, 1), 1e-6)))
    times = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, step in contenders.items():
            times[name].append(timed(step, counts[name]))
    return times


def measure(step, rounds, seconds, clock=None):
    """The same of one contender: [seconds a step, one a round]."""
    return alternate({"": step}, rounds, seconds, clock)[""]


def spread(name, values):
    """{name: the median, "lowest", "highest", "rounds"} of measured values."""
    values = sorted(values)
    return {
        name: statistics.median(values),
        "lowest": values[0],
        "highest": values[-1],
        "rounds": len(values),
    }


def rates(seconds, images):
    """Median and spread of images a second, from seconds a step of so many images."""
    return spread("images_per_second", [images / s for s in seconds])


# ---- what ran where ------------------------------------------------------------------------------


def machine(device="cpu"):
    """What the figures of one of minicnn's devices were measured on."""
    found = {
        "processor": _processor(),
        "cores": cores(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "date": date.today().isoformat(),
    }
    if device == "cuda":
        found["gpu"] = cuda.gpu_name()
    return found


def versions(*packages):
    """The versions of minicnn, NumPy and of those of some other packages that are installed."""
    found = {"minicnn": __version__}
    for package in ("numpy", *packages):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def in_words(result):
    """When, where and with what versions a result was measured."""
    where = result["machine"]
    on = f"{where['gpu']}, {where['processor']}" if "gpu" in where else where["processor"]
    packages = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    system = f"{where['system']}, Python {where['python']}"
    return f"Measured {where['date']} on {on}, {system}, {packages}."


def _processor():
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_gib():
    """The machine's memory in GiB; None where the system does not say."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    except (AttributeError, ValueError, OSError):
        return None


# ---- result files --------------------------------------------------------------------------------


def write(kind, result, out=None):
    """Write a result as JSON, named by kind, machine and date unless `out` says how.

    The result's "machine" is that of `machine`. Returns the path.
    """
    path = Path(out) if out else RESULTS / f"{kind}-{_slug(result['machine'])}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written: {path}", file=sys.stderr)
    return path


def _slug(where):
    """A machine and a date as part of a file's name."""
    name = where.get("gpu") or f"{where['processor']} {where['cores']} cores"
    name = re.sub(r"\((r|tm)\)", "", name.lower())
    return f"{re.sub('[^a-z0-9]+', '-', name).strip('-')}-{where['date']}"


def newest(kind):
    """The newest result of a kind, on whatever machine. Raises ValueError where there is none."""
    name = re.compile(rf"{re.escape(kind)}-.*(\d{{4}}-\d\d-\d\d)")
    found = {path: name.fullmatch(path.stem) for path in sorted(RESULTS.glob(f"{kind}-*.json"))}
    dates = {path: match[1] for path, match in found.items() if match}
    if not dates:
        raise ValueError(f"{RESULTS}: no result of the kind {kind!r}")
    return json.loads(max(dates, key=dates.get).read_text())
