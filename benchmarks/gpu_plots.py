"""The part of gpu_report.py that draws what the others found. Needs matplotlib."""

import contextlib
import importlib
import importlib.util

import numpy as np

from benchmarks.frameworks import best, is_ours, ranking
from benchmarks.gpu_parts import LeftOut
from minicnn.files import atomic_write


def plots(run):
    """Part: what the others found, drawn."""
    if not importlib.util.find_spec("matplotlib"):
        raise LeftOut("matplotlib is not installed")
    drawn = []
    for part, key, draw in (
        ("kernels", "launches", draw_kernels),
        ("step", "steps", draw_steps),
        ("frameworks", "rates", draw_frameworks),
    ):
        rows = run.found(part).get(key)
        if rows:
            draw(run.out / f"{part}.png", rows)
            drawn.append(f"{part}.png")
            yield {"files": drawn}
    yield {"headline": ", ".join(drawn) or "nothing to draw"}


@contextlib.contextmanager
def _page(path, height, panels=1):
    """Axes to draw on, a list of them if they are several; afterwards they are at `path`."""
    figure_module = importlib.import_module("matplotlib.figure")
    figure = figure_module.Figure(figsize=(9, height), layout="constrained")
    found = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
    for axes in found:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    yield found if panels > 1 else found[0]
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=150)


def draw_kernels(path, rows):
    """The time of each launch, in order, and the least that each limit allows."""
    with _page(path, 1.2 + 0.25 * len(rows)) as axes:
        places = np.arange(len(rows))
        names = [f"{row['kernel']} {row['layer']}".strip() for row in rows]
        axes.barh(places, [1e6 * row["seconds"] for row in rows], color="#88BBDD", label="measured")
        for key, color, label in (
            ("memory_seconds", "#CC3311", "limit of the memory, as a copy reaches it"),
            ("matrix_seconds", "#222222", "limit of products of matrices, as cuBLAS reaches it"),
        ):
            marks = [(1e6 * row[key], i) for i, row in enumerate(rows) if row.get(key)]
            if marks:
                x, y = zip(*marks, strict=True)
                axes.plot(x, y, "|", color=color, markersize=11, markeredgewidth=2, label=label)
        axes.set_yticks(places, names, fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel("microseconds")
        axes.set_title("Launches of a training step", loc="left")
        axes.legend(frameon=False)


def draw_steps(path, rows):
    """The time of a captured step by the number of nets."""
    with _page(path, 4) as axes:
        for precision in dict.fromkeys(row["precision"] for row in rows):
            kept = [row for row in rows if row["precision"] == precision and row["captured"]]
            kept.sort(key=lambda row: row["nets"])
            nets = [row["nets"] for row in kept]
            middle, low, high = (
                [1e3 * row[key] for row in kept] for key in ("seconds", "lowest", "highest")
            )
            [line] = axes.plot(nets, middle, marker="o", label=precision)
            axes.fill_between(nets, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("nets")
        axes.set_ylabel("milliseconds a step")
        axes.set_title("Training step, all nets together", loc="left")
        axes.legend(frameon=False)


def draw_frameworks(path, rows):
    """Images a second of each contender in training and in inference, the fastest on top."""
    names = ranking(rows)[::-1]
    titles = {"train": "Training steps, augmentation included", "infer": "Inference"}
    with _page(path, 1.2 + 0.3 * len(names), len(titles)) as panels:
        for axes, (job, title) in zip(panels, titles.items(), strict=True):
            found = best(rows, job)
            shown = [(place, found[name]) for place, name in enumerate(names) if name in found]
            middle, low, high = (
                np.array([row[key] for _, row in shown])
                for key in ("images_per_second", "lowest", "highest")
            )
            axes.barh(
                [place for place, _ in shown],
                middle,
                xerr=(middle - low, high - middle),
                color=["#0077BB" if is_ours(row) else "#BBBBBB" for _, row in shown],
            )
            axes.xaxis.set_major_formatter("{x:,.0f}")
            axes.locator_params(axis="x", nbins=4)  # for numbers of seven digits
            axes.tick_params(axis="x", labelsize=8)
            axes.set_xlabel("images a second")
            axes.set_title(title, loc="left", fontsize=10)
        panels[0].set_yticks(range(len(names)), names, fontsize=8)
