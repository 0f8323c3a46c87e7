"""The pictures of the studies, as matplotlib Figures that are narrow enough for a phone."""

import textwrap

import numpy as np

from ..data.labels import short_names
from ..drawing import FAINT, PANEL, QUIET, TEXT, TRAINING, VALIDATION, gallery, page, tens

_HEIGHT = 560  # pixels
_BOX = 0.13, 0.15, 0.83, 0.72  # of the only axes of a page: left, bottom, width, height


def histograms(single, ensembles, nets, images, notebook):
    """Two histograms: accuracies of single nets (n,) and of ensembles (m,), in percent of each.

    nets: in an ensemble. images: number of test images. notebook: the notebook's rows for single
    nets and for ensembles, of which mean and sd are marked; may be empty.
    """
    figure, axes = _panel()
    # About twenty bins. Each covers the same whole number of correct test images.
    right = np.round(np.concatenate([single, ensembles]) * images)
    step = max(int(np.ceil(np.ptp(right) / 20)), 1)
    edges = np.arange(right.min() - 0.5, right.max() + step, step) / images
    for of, color, label in (
        (single, TRAINING, f"{len(single):,} single nets"),
        (ensembles, VALIDATION, f"{len(ensembles):,} ensembles of {nets}"),
    ):
        weights = np.full(len(of), 1 / max(len(of), 1))
        axes.hist(100 * of, 100 * edges, weights=weights, color=color, alpha=0.6, label=label)
    top = axes.get_ylim()[1]
    for row, color, height in zip(notebook, (TRAINING, VALIDATION), (1.06, 1.14), strict=False):
        spread = 100 * row["sd"]
        axes.errorbar(
            100 * row["mean"], height * top, xerr=spread, color=color, marker="o", capsize=4
        )
    if notebook:
        axes.set_ylim(0, 1.45 * top)
        axes.plot([], [], color=QUIET, marker="o", label="the notebook: mean ± sd")
    axes.set_title("Distribution of test accuracies", loc="left", pad=10)
    axes.set_xlabel("test accuracy in percent")
    axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:g} %")
    axes.legend(loc="upper left")
    return figure


def by_size(table):
    """Mean accuracy by ensemble size, with its interval, minimum and maximum."""
    figure, axes = _panel()
    size = table["size"]
    if table["low"].notna().any():
        label = "95 % interval of the mean"
        axes.fill_between(
            size, 100 * table["low"], 100 * table["high"], color=VALIDATION, alpha=0.25, label=label
        )
    axes.plot(size, 100 * table["mean"], color=VALIDATION, marker="o", label="mean")
    for column in ("min", "max"):
        axes.plot(size, 100 * table[column], color=QUIET, linewidth=0.8, dashes=(2, 2))
    axes.plot([], [], color=QUIET, linewidth=0.8, dashes=(2, 2), label="lowest and highest")
    axes.set_title("Accuracy by ensemble size", loc="left", pad=10)
    axes.set_xlabel("nets in the ensemble")
    axes.set_ylabel("test accuracy in percent")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="lower right")
    return figure


def heat_map(table, what):
    """Mean accuracies by rotation and shift, with half of the interval and the notebook's value."""
    rotations, shifts = sorted(set(table["rotation"])), sorted(set(table["shift"]))
    values = np.full((len(shifts), len(rotations)), np.nan)
    figure = page(150 + 110 * max(len(shifts), 2), "", "", width=PANEL)
    axes = figure.add_axes((0.13, 0.2, 0.85, 0.66))
    for row in table.itertuples():
        values[shifts.index(row.shift), rotations.index(row.rotation)] = 100 * row.mean
    axes.imshow(np.ma.masked_invalid(values), cmap="cividis", aspect="auto")
    bright = values > (np.nanmin(values) + np.nanmax(values)) / 2
    for row in table[table["n"] > 0].itertuples():
        i, j = shifts.index(row.shift), rotations.index(row.rotation)
        color = TEXT if bright[i, j] else "white"
        half = "" if np.isnan(row.low) else f"\n±{_half(row)}"
        axes.text(
            j, i, f"{100 * row.mean:.2f}{half}", size=9, color=color, ha="center", va="center"
        )
        if not np.isnan(row.notebook):
            told = f"{100 * row.notebook:.2f}"
            axes.text(j, i + 0.38, told, size=7.5, color=color, alpha=0.8, ha="center", va="center")
    axes.set_xticks(range(len(rotations)), [f"{r:g}°" for r in rotations])
    axes.set_yticks(range(len(shifts)), [f"{s:g}" for s in shifts])
    axes.grid(False)
    axes.set_xlabel("rotation (zoom: degrees / 100)")
    axes.set_ylabel("shift")
    axes.set_title(f"Mean test accuracy of {what}, in percent", loc="left", pad=10)
    return figure


def _half(row):
    """Half the width of an interval, in percent."""
    half = 50 * (row.high - row.low)
    return f"{half:.2f}" if half < 10 else f"{half:.0f}"


def distributions(away, columns, unit, table):
    """Histograms of deviations from the mean, one per column, with the range that holds 95 %.

    away: variance.deviations(). table: the summary of variance.findings().
    """
    pixels = 40 + 330 * len(columns)
    figure = page(pixels, "", "", width=PANEL)
    height = 330 / pixels
    summary = table.set_index("of")
    for place, column in enumerate(columns):
        bottom = 1 - (place + 0.8) * height - 10 / pixels
        axes = figure.add_axes((0.13, bottom, 0.83, 0.62 * height))
        values = away[column]
        reach = values.abs().max() or 1
        edges = 60
        if unit == "pixels":  # centres are multiples of half a pixel
            first = np.floor(values.min() * 2) / 2
            edges = np.arange(first, values.max() + 0.5, 0.5)
        axes.hist(
            values,
            edges,
            color=VALIDATION,
            alpha=0.7,
            weights=np.full(len(values), 1 / len(values)),
        )
        held = summary.loc[column, "holds_95_%"]
        for side in (-held, held):
            axes.axvline(side, color=TRAINING, dashes=(4, 2))
        axes.set_xlim(-reach, reach)
        shown = f"95 % within ±{held:.3g}"
        if unit == "pixels":
            shown += " pixels"
        elif unit == "degrees":
            shown += "°"
        axes.set_title(f"{column}: {shown}", loc="left", pad=8)
        axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:g} %")
    axes.set_xlabel({"fraction": "fraction of the class's mean"}.get(unit, unit))
    return figure


def steps(table):
    """The error rate after each change with its interval, from top to bottom."""
    from matplotlib.ticker import LogLocator, NullLocator  # noqa: PLC0415

    figure = page(130 + 52 * len(table), "", "", width=PANEL)
    axes = figure.add_axes(
        (0.5, 110 / (130 + 52 * len(table)), 0.47, 1 - 180 / (130 + 52 * len(table)))
    )
    shown = table[table["n"] > 0]
    errors = 100 * (1 - shown["mean"].to_numpy())
    low, high = (100 * (1 - shown[end].to_numpy()) for end in ("high", "low"))
    places = shown.index.to_numpy()
    floor = max(min(errors[errors > 0], default=1e-2) / 3, 1e-4)
    known = ~np.isnan(low)
    axes.hlines(
        places[known],
        np.maximum(low[known], floor),
        np.minimum(high[known], 100),
        color=VALIDATION,
        linewidth=5,
        alpha=0.35,
    )
    axes.plot(np.maximum(errors, floor), places, color=VALIDATION, marker="o")
    for place, error in zip(places, errors, strict=True):
        axes.annotate(
            f"{error:.3g}",
            (max(error, floor), place),
            (0, 7),
            textcoords="offset points",
            size=8,
            ha="center",
            color=TEXT,
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.set_yticks(range(len(table)), table["step"])
    axes.tick_params(axis="y", labelcolor=TEXT, labelsize=9)
    axes.set_ylim(len(table) - 0.5, -0.7)
    axes.set_xlabel("test error rate in percent")
    axes.spines["left"].set_color(FAINT)
    axes.set_title("One change at a time", loc="left", pad=10)
    return figure


def gains(names, means, lows, highs, title):
    """Gains by name, top to bottom, with their intervals (NaN without one); fractions."""
    pixels = 150 + 44 * len(names)
    figure = page(pixels, "", "", width=PANEL)
    axes = figure.add_axes((0.36, 80 / pixels, 0.6, 1 - 140 / pixels))
    places = np.arange(len(names))
    means, lows, highs = (100 * np.asarray(values, float) for values in (means, lows, highs))
    axes.axvline(0, color=QUIET, linewidth=0.8, dashes=(4, 2))
    axes.hlines(places, lows, highs, color=VALIDATION, linewidth=5, alpha=0.35)
    axes.plot(means, places, color=VALIDATION, marker="o", linestyle="none")
    axes.set_yticks(places, [textwrap.fill(name, 24) for name in names], parse_math=False)
    axes.tick_params(axis="y", labelcolor=TEXT, labelsize=9)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("gain in percentage points")
    axes.set_title(title, loc="left", pad=10, parse_math=False)
    return figure


def hardest(images, table):
    """The images listed in a table of hardest.rank, ten per row. images: all of them."""
    shown = [images[number - 1] for number in table["image"]]
    known = "label" in table
    notes = "Above each image: its number in the test set. Below: the "
    notes += "label and the prediction" if known else "prediction"
    names = sorted({*table["predicted"], *(table["label"] if known else ())})
    short = dict(zip(names, short_names([str(name) for name in names], 14), strict=True))
    figure = gallery("The hardest images", notes + ".", tens(shown), down=88)
    for axes, row in zip(figure.axes, table.itertuples(), strict=True):
        axes.set_title(f"{row.image:,}", size=8, color=QUIET)
        guess = short[row.predicted]
        if known and row.label != row.predicted:
            break_ = "\n" if len(f"{row.label}{row.predicted}") > 4 else " "
            guess = f"{short[row.label]},{break_}predicted {guess}"
        axes.set_xlabel(guess, size=8, color=TEXT, parse_math=False)
    return figure


def _panel():
    figure = page(_HEIGHT, "", "", width=PANEL)
    return figure, figure.add_axes(_BOX)
