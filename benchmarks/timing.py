"""How a benchmark measures: warm-up outside, contenders in turn, medians, and what ran where."""

import json
import platform
import statistics
import sys
import time
from datetime import date
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def alternate(contenders, rounds, seconds):
    """Time contenders {name: function of one step} round by round, so that noise meets them alike.

    In each round each runs for about `seconds`. Returns {name: [seconds a step, one a round]}.
    """
    counts = {}
    for name, step in contenders.items():
        step()  # what is made once: buffers, compiled code
        step()
        start = time.perf_counter()
        step()
        counts[name] = max(1, round(seconds / (time.perf_counter() - start)))
    times = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, step in contenders.items():
            start = time.perf_counter()
            for _ in range(counts[name]):
                step()
            times[name].append((time.perf_counter() - start) / counts[name])
    return times


def summarize(seconds, images):
    """Median and spread of images a second from seconds a step of so many images."""
    return spread([images / s for s in seconds])


def spread(rates):
    """Median and spread of images a second."""
    rates = sorted(rates)
    return {
        "images_per_second": statistics.median(rates),
        "lowest": rates[0],
        "highest": rates[-1],
        "rounds": len(rates),
    }


def machine():
    """What the figures were measured on."""
    return {
        "processor": _processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "date": date.today().isoformat(),
    }


def _processor():
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()


def write(name, result, out=None):
    """Write a result as JSON, into benchmarks/results unless `out` says where. Returns the path."""
    path = Path(out) if out else RESULTS / f"{name}-{date.today().isoformat()}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written: {path}", file=sys.stderr)
    return path
