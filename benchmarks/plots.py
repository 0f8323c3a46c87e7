"""python -m benchmarks.plots DIR: draw the results in DIR, those of benchmarks.gpu_report.

The figures of the documents are drawn by readme.py, from benchmarks/results. Needs matplotlib. Each
figure carries a digest of its result, so that a test can recognise an old one.
"""

import hashlib
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from benchmarks import frameworks, studies, timing
from minicnn import drawing
from minicnn.studies import plots as of_studies

COLORS = {"minicnn": "#0077BB", "frameworks": "#9AA5B1", "less precise than float32": "#D5DAE0"}
EARLIER = {"minicnn at an earlier commit": "#88BBDD"}


def digest(result):
    """A text that differs between results."""
    return hashlib.sha256(json.dumps(result).encode()).hexdigest()


def draw(path, build, result):
    """Write the Figure that build(result) returns."""
    drawing.save(path, build, result, metadata={"Source": digest(result)})


def rates(result):
    """Images a second of every contender, the fastest on top."""
    order = frameworks.ranking(result["rates"])[::-1]
    panels = frameworks.compared(result["rates"])
    figure = Figure(figsize=(9.5, 1.1 + 0.26 * len(order)), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True)
    for axis, (title, rows) in zip(axes, panels.items(), strict=True):
        found = [rows[name] for name in order if name in rows]
        middle, low, high = _spread(found, "images_per_second")
        axis.barh(
            [place for place, name in enumerate(order) if name in rows],
            middle,
            xerr=(middle - low, high - middle),
            color=[_color(row) for row in found],
            error_kw={"elinewidth": 0.8, "ecolor": "#444444"},
        )
        axis.set_title(title.capitalize(), fontsize=10)
        axis.set_xlim(left=0)
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.locator_params(axis="x", nbins=4)  # numbers of up to seven digits
        axis.tick_params(labelsize=8)
        axis.grid(visible=False, axis="y")
        axis.set_axisbelow(True)
    axes[0].set_yticks(range(len(order)), order)
    figure.supxlabel("images a second", fontsize=9)
    colors = COLORS | (EARLIER if any(map(frameworks.is_earlier, result["rates"])) else {})
    handles = [Patch(color=color, label=label) for label, color in colors.items()]
    axes[1].legend(handles=handles, fontsize=8, loc="lower right")
    return figure


def _color(row):
    ours, theirs, reduced = COLORS.values()
    if frameworks.is_earlier(row):
        [earlier] = EARLIER.values()
        return earlier
    if frameworks.is_ours(row):
        return ours
    return theirs if row["precision"] == "float32" else reduced


def _spread(rows, name, unit=1):
    """Arrays of medians, lowest and highest values."""
    keys = name, "lowest", "highest"
    return (np.array([row[key] for row in rows], float) * unit for key in keys)


def scaling(result):
    """Throughput and memory by batch size and by nets."""
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    axes = figure.subplots(2, 2, sharey="row")
    columns = (
        ("batch", "nets", 1, "One net"),
        ("nets", "batch", 64, "Nets in one process, batch 64"),
    )
    for column, (varied, fixed, kept, title) in enumerate(columns):
        rows = sorted((r for r in result["rates"] if r[fixed] == kept), key=lambda r: r[varied])
        for cores in sorted({row["cores"] for row in rows}):
            of_cores = [row for row in rows if row["cores"] == cores]
            x = [row[varied] for row in of_cores]
            _line(axes[0, column], x, of_cores, f"{cores} core{'s' * (cores > 1)}")
            memory = [row["memory_bytes"] for row in of_cores]
            if None not in memory:
                axes[1, column].plot(x, np.array(memory) / 1e6, marker="o", markersize=4)
        ticks = sorted({row[varied] for row in rows})
        for axis in axes[:, column]:
            axis.set_xscale("log", base=2)
            axis.set_xticks(ticks, map(str, ticks))
            axis.minorticks_off()
        axes[1, column].set_xlabel({"batch": "images in a batch", "nets": "nets"}[varied])
        axes[0, column].set_title(title, fontsize=10)
    axes[0, 0].set_ylabel("images a second")
    axes[1, 0].set_ylabel("memory, MB")
    axes[0, 0].legend(loc="lower right")
    for axis in axes[:, 0]:
        axis.set_ylim(bottom=0)  # sets that of the whole row
    return figure


def _line(axis, x, rows, label, name="images_per_second", unit=1):
    """A line of medians, in a band from the lowest to the highest values."""
    middle, low, high = _spread(rows, name, unit)
    [line] = axis.plot(x, middle, marker="o", markersize=4, label=label)
    axis.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)


def trials(result):
    """How the accuracies of single nets and of ensembles spread."""
    (cell,) = result["cells"].values()
    single, ensembles = np.array(cell["accuracies"]), np.array(cell["ensembles"])[:, -1]
    images = result["settings"]["test_images"]
    return of_studies.histograms(single, ensembles, cell["recipe"]["nets"], images, [])


def cost(result):
    """The test accuracy of ensembles by what they cost: studies.curve()."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    axis = figure.subplots()
    for (name, of), color in zip(result.items(), ("#666666", "#EE7733", "#0077BB"), strict=True):
        millions, minutes = np.array(of["images"]) / 1e6, of["minutes"]
        mean, low, high = (100 * np.array(of[key]) for key in ("mean", "low", "high"))
        label = f"{name}: {of['epochs']} epochs, {of['trials']} trials"
        axis.plot(millions, mean, color=color, marker="o", markersize=4, label=label)
        # The interval of the whole ensemble only: those of the smaller ones would hide each other.
        ends = np.array([mean[-1:] - low[-1:], high[-1:] - mean[-1:]])
        axis.errorbar(millions[-1:], mean[-1:], ends, color=color, marker="o", capsize=4)
        a_million = minutes[-1] / millions[-1]
    axis.set_xscale("log")
    ticks = 0.5, 1, 2, 5, 10, 20
    axis.set_xticks(ticks, map(str, ticks))
    axis.minorticks_off()
    axis.set_xlabel(
        "million training images. 1 net: the mean of all; 2, 3, ...: the first nets of each trial"
    )
    axis.set_ylabel("test accuracy in percent")
    axis.set_title("What training costs, and gains", loc="left", pad=10)
    both = (lambda x: x * a_million), (lambda x: x / a_million)
    top = axis.secondary_xaxis("top", functions=both)
    top.set_xticks(ticks := (1, 2, 5, 10, 20, 50), map(str, ticks))
    top.minorticks_off()
    top.set_xlabel("minutes on two cores, at the rate of the whole job")
    axis.legend(loc="upper left")
    return figure


def ablation(result):
    """The error rate after each change."""
    table = pd.DataFrame(result["tables"]["steps"]["rows"])
    return of_studies.steps(table.fillna({"low": np.nan, "high": np.nan}))


def launches(result):
    """The times of each launch of a fused step, in order, and the least that each limit allows."""
    rows = [row for of_device in result["launches"].values() for row in of_device]
    figure = Figure(figsize=(9, 1.2 + 0.25 * len(rows)), layout="constrained")
    axis, places = figure.subplots(), np.arange(len(rows))
    middle, _, _ = _spread(rows, "seconds", 1e6)
    axis.barh(places, middle, color="#88BBDD", label="measured, repeated")
    flushed = [1e6 * row["flushed"]["seconds"] for row in rows]
    axis.plot(flushed, places, "o", color="#0077BB", markersize=4, label="measured, cache flushed")
    for key, color, label in (
        ("memory_seconds", "#CC3311", "limit of memory: rate of a large copy"),
        ("matrix_seconds", "#222222", "limit of products: rate of cuBLAS"),
    ):
        x = [1e6 * row.get(key, np.nan) for row in rows]
        axis.plot(x, places, "|", color=color, markersize=11, markeredgewidth=2, label=label)
    names = [" ".join(filter(None, (r["kernel"], r["layer"], r["precision"]))) for r in rows]
    axis.set_yticks(places, names, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("microseconds")
    axis.set_title("Launches of a training step", loc="left")
    axis.legend()
    return figure


def steps(result):
    """The time of a captured step by the number of nets."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    axis = figure.subplots()
    captured = sorted((r for r in result["steps"] if r["captured"]), key=lambda r: r["nets"])
    for precision in dict.fromkeys(row["precision"] for row in captured):
        rows = [row for row in captured if row["precision"] == precision]
        _line(axis, [row["nets"] for row in rows], rows, precision, "seconds", 1e3)
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("nets")
    axis.set_ylabel("milliseconds a step")
    axis.set_title("Training step, all nets together", loc="left")
    axis.legend()
    return figure


# Of the documents: {name: (what builds it, what returns its result)}.
FIGURES = {
    "accuracy-by-cost": (cost, studies.curve),
    "frameworks-cpu": (rates, partial(timing.newest, "frameworks-cpu")),
    "scaling-cpu": (scaling, partial(timing.newest, "scaling-cpu")),
    "study-trials": (trials, partial(timing.newest, "study-trials")),
    "study-ablation": (ablation, partial(timing.newest, "study-ablation")),
}
# Of a GPU's report: figure, file of results, its part that is drawn.
_REPORT = (
    (launches, "kernels", "launches"),
    (steps, "step", "steps"),
    (rates, "frameworks", "rates"),
)


def main(argv=None):
    """Draw what is in a folder of results."""
    [folder] = map(Path, sys.argv[1:] if argv is None else argv)
    for build, kind, part in _REPORT:
        path = folder / f"{kind}.json"
        result = json.loads(path.read_text()) if path.exists() else {}
        figure = folder / f"{build.__name__}.png"
        figure.unlink(missing_ok=True)  # may show an earlier result
        if result.get(part):
            draw(figure, build, result)
            print(figure.name)


if __name__ == "__main__":
    main()
