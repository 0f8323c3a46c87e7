"""The figures of README: benchmarks/results drawn. Needs matplotlib.

A figure carries a digest of the result that it shows, so that a test can tell an old one.
"""

import hashlib
import json
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.patches import Patch

from benchmarks import frameworks, timing
from minicnn import drawing
from minicnn.studies import plots

COLORS = {"minicnn": "#0077BB", "frameworks": "#9AA5B1", "less precise than float32": "#D5DAE0"}


def digest(result):
    """What tells one result from another."""
    return hashlib.sha256(json.dumps(result).encode()).hexdigest()


def draw_frameworks(folder):
    """Images a second of every contender, the fastest on top. Returns the file."""
    result = timing.newest("frameworks-cpu")
    rates = result["rates"]
    order = frameworks.ranking(rates)[::-1]
    panels = frameworks.compared(rates)
    size = 9.5, 1.1 + 0.26 * len(order)
    figure, axes = pyplot.subplots(1, 3, figsize=size, sharey=True, layout="constrained")
    for axis, (title, rows) in zip(axes, panels.items(), strict=True):
        shown = [(place, rows[name]) for place, name in enumerate(order) if name in rows]
        places, found = zip(*shown, strict=True)
        middle = [row["images_per_second"] for row in found]
        below = [row["images_per_second"] - row["lowest"] for row in found]
        above = [row["highest"] - row["images_per_second"] for row in found]
        axis.barh(
            places,
            middle,
            xerr=(below, above),
            color=[_color(row) for row in found],
            error_kw={"elinewidth": 0.8, "ecolor": "#444444"},
        )
        axis.set_title(title.capitalize(), fontsize=10)
        axis.set_xlim(left=0)
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.tick_params(labelsize=8)
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(order)), order)
    figure.supxlabel("images a second", fontsize=9)
    axes[-1].legend(
        handles=[Patch(color=color, label=label) for label, color in COLORS.items()],
        frameon=False,
        fontsize=8,
        loc="lower right",
    )
    return _save(figure, folder, "frameworks-cpu.png", result)


def _color(row):
    ours, theirs, reduced = COLORS.values()
    if row["precision"] != "float32":
        return reduced
    return ours if frameworks.is_ours(row) else theirs


def draw_scaling(folder):
    """Throughput and memory by the batch and by the nets. Returns the file."""
    result = timing.newest("scaling-cpu")
    rates = result["rates"]
    figure, axes = pyplot.subplots(2, 2, figsize=(9, 5.6), sharey="row", layout="constrained")
    for column, (varied, fixed, kept) in enumerate((("batch", "nets", 1), ("nets", "batch", 64))):
        rows = sorted((r for r in rates if r[fixed] == kept), key=lambda r: r[varied])
        for cores in sorted({row["cores"] for row in rates}):
            of_cores = [row for row in rows if row["cores"] == cores]
            x = [row[varied] for row in of_cores]
            middle, low, high, memory = (
                [row[key] for row in of_cores]
                for key in ("images_per_second", "lowest", "highest", "memory_bytes")
            )
            label = f"{cores} core{'s' * (cores > 1)}"
            [line] = axes[0, column].plot(x, middle, marker="o", markersize=4, label=label)
            color = line.get_color()
            axes[0, column].fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
            if None not in memory:
                megabytes = [number / 1e6 for number in memory]
                axes[1, column].plot(x, megabytes, marker="o", markersize=4, color=color)
        ticks = sorted({row[varied] for row in rows})
        for axis in axes[:, column]:
            axis.set_xscale("log", base=2)
            axis.set_xticks(ticks, map(str, ticks))
            axis.minorticks_off()
            axis.grid(alpha=0.3)
            axis.spines[["top", "right"]].set_visible(False)
        axes[1, column].set_xlabel({"batch": "images in a batch", "nets": "nets"}[varied])
        title = {"batch": "One net", "nets": "Nets in one process, batch 64"}[varied]
        axes[0, column].set_title(title, fontsize=10)
    axes[0, 0].set_ylabel("images a second")
    axes[1, 0].set_ylabel("memory, MB")
    axes[0, 0].legend(frameon=False, loc="lower right")
    for axis in axes[:, 0]:
        axis.set_ylim(bottom=0)  # and with it that of its row
    return _save(figure, folder, "scaling-cpu.png", result)


def _save(figure, folder, name, result):
    path = Path(folder) / name
    figure.savefig(path, dpi=150, metadata={"Source": digest(result)})
    pyplot.close(figure)
    return path


def draw_trials(folder):
    """How the accuracies of single nets and of ensembles spread. Returns the file."""
    result = timing.newest("study-trials")
    (cell,) = result["cells"].values()
    single, ensembles = np.array(cell["accuracies"]), np.array(cell["ensembles"])[:, -1]
    nets = cell["recipe"]["nets"]
    images = result["settings"]["test_images"]
    return _save_study(folder, result, plots.histograms, single, ensembles, nets, images, [])


def draw_ablation(folder):
    """The error rate after each change. Returns the file."""
    result = timing.newest("study-ablation")
    table = pd.DataFrame(result["tables"]["steps"]["rows"]).fillna({"low": np.nan, "high": np.nan})
    return _save_study(folder, result, plots.steps, table)


def _save_study(folder, result, *build):
    path = Path(folder) / f"study-{result['study']}.png"
    drawing.save(path, *build, metadata={"Source": digest(result)})
    return path


FIGURES = draw_frameworks, draw_scaling, draw_trials, draw_ablation
