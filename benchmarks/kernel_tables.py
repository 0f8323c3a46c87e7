"""What benchmarks/kernels.py found, as the tables of kernels/README.md."""

import re

import numpy as np

from benchmarks import timing

_LIMITS = {
    "gemm_flops_per_second": "GFLOP/s",
    "tf32_gemm_flops_per_second": "GFLOP/s in TF32",
    "copy_bytes_per_second": "GB/s",
}


def operations(kind="kernels-cpu"):
    """Markdown of the newest result: each operation of a step, and all of a kind together."""
    result = timing.newest(kind)
    devices, rows = list(result["limits"]), result["operations"]
    lines = _table(["layer", "pass", *devices], _pivot(rows, devices, _operation, cell))
    shown = _pivot(_totals(rows), devices, lambda row: (row["kind"],), _milliseconds)
    sums = {device: _sum(row for row in rows if row["device"] == device) for device in devices}
    shown.append(["all", *(f"{1e3 * seconds:.2f}" for seconds in sums.values())])
    lines += ["", *_table(["all of a kind, ms", *devices], shown)]
    return "\n".join([*lines, "", _sentence(result)])


def cell(row):
    """A row of a result in a few words: its rate, its share of the limit, its time."""
    done, unit = (row["flops"], "GFLOP/s") if row["flops"] else (row["bytes"], "GB/s")
    share = "" if row["of_limit"] is None else f"{row['of_limit']:.0%}, "
    return (
        f"{_digits(done / row['seconds'] / 1e9)} {unit}, {share}{_digits(1e3 * row['seconds'])} ms"
    )


def _digits(value):
    """A positive number in three digits."""
    return np.format_float_positional(value, 3, fractional=False, trim="-")


def _operation(row):
    return row["layer"], row["pass"]


def _milliseconds(row):
    return f"{1e3 * row['seconds']:.2f}"


def _sum(rows):
    return sum(row["seconds"] for row in rows)


def _totals(rows):
    """The seconds of all layers of a kind, on each device; the longest of the last device first."""
    found = {}
    for row in rows:
        name = re.sub("_[0-9]+$", "", row["layer"])
        key = row["device"], f"{name}, {row['pass']}"
        found[key] = found.get(key, 0) + row["seconds"]
    totals = [{"device": d, "kind": k, "seconds": s} for (d, k), s in found.items()]
    last = {row["kind"]: row["seconds"] for row in totals if row["device"] == rows[-1]["device"]}
    return sorted(totals, key=lambda row: -last.get(row["kind"], 0))


def _pivot(rows, devices, key, shown):
    """Lists of cells: the key's, and for each device what is shown of its row with that key."""
    found = {}
    for row in rows:
        found.setdefault(key(row), {})[row["device"]] = shown(row)
    return [[*k, *(cells.get(device, "") for device in devices)] for k, cells in found.items()]


def _table(heads, lines):
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *lines)]


def limits_in_words(result):
    """What was measured on each device, and its limits."""
    words = []
    for device, found in result["limits"].items():
        cores, nets = found["cores"], result["nets"][device]
        on = [f"{cores} core{'s' * (cores > 1)}"] if cores else []
        on.append(f"{nets} net{'s' * (nets > 1)}")
        rates = (f"{found[name] / 1e9:,.0f} {u}" for name, u in _LIMITS.items() if found.get(name))
        words.append(f"`{device}` ({', '.join(on)}): {' and '.join(rates)}")
    return words


def _sentence(result):
    """What was measured, how often, and on what."""
    return (
        f"Median of {result['rounds']} training steps, batch {result['batch']}, the devices in "
        "turn. Per cent: of a large product of matrices where there are GFLOP/s, else of a large "
        f"copy, on as many cores. {'; '.join(limits_in_words(result))}. More than 100% of a copy: "
        f"arrays lie in a cache. {timing.in_words(result)}"
    )
