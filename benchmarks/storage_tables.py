"""The tables of benchmarks.storage: each 16-bit arm beside float32, net by net."""

import numpy as np

from benchmarks import timing
from benchmarks.rounded_blocks import KINDS
from minicnn.studies.statistics import gain_interval

BASE = "float32"
# The last one rounds nothing, but computes the moments in other groups. It shows by how much nets
# differ whose sums differ in their last bits.
OTHER_ORDER = "float32, other sums"
ARMS = BASE, "bfloat16", "float16"
COUNTED = 50  # values are counted in every such step


def differences(trainings, setting, arm, key):
    """The paired differences (n,) of an arm to BASE in `key`; NaN where one of a pair diverged."""
    of = {
        (row["arm"], row["net"]): np.nan if row[key] is None else row[key]
        for row in trainings
        if row["setting"] == setting
    }
    nets = sorted(net for each, net in of if each == arm)
    return np.array([of[arm, net] - of[BASE, net] for net in nets])


def table(result):
    """Accuracies and losses of each setting and arm in Markdown, with differences in pairs."""
    heads = "training", "arm", "nets", "test accuracy", "to float32", "mean log loss", "to float32"
    rows = []
    for setting, about in result["settings"].items():
        of_setting = [row for row in result["trainings"] if row["setting"] == setting]
        images, epochs = of_setting[0]["images"], about["recipe"]["epochs"]
        label = f"`{setting}`, {images:,} images, {epochs} epochs"
        for arm in dict.fromkeys(row["arm"] for row in of_setting):
            of = [row for row in of_setting if row["arm"] == arm]
            cells = [label, arm, len(of)]
            for key, unit, digits, sign in (("accuracy", 100, 3, " %"), ("log_loss", 1, 5, "")):
                values = [np.nan if row[key] is None else unit * row[key] for row in of]
                gains = unit * differences(result["trainings"], setting, arm, key)
                cells.append(f"{np.mean(values):.{digits}f}{sign}")
                cells.append("" if arm == BASE else _with_interval(gains, digits))
            rows.append(cells)
    return timing.table(heads, rows)


def _with_interval(gains, digits):
    low, high = gain_interval(gains)
    return f"{np.mean(gains):+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def counts_table(result):
    """What rounding did to each kind of value, over all trainings of an arm, in Markdown.

    The largest magnitudes are without the loss scale in float32, with it in float16.
    """
    rows = []
    for kind in KINDS:
        cells = [f"`{kind}`", _number(_counted(result, BASE, kind)["largest"])]
        for arm in ARMS[1:]:
            found = _counted(result, arm, kind)
            cells += [
                _number(1e6 * found[what] / found["elements"]) for what in ("zero", "subnormal")
            ]
            cells.append(f"{found['overflows']:,}")
        rows.append([*cells, _number(found["largest"])])
    heads = ["values", "largest"]
    for arm in ARMS[1:]:
        heads += [f"{arm}: become 0, in a million", "become subnormal, in a million", "overflows"]
    return timing.table([*heads, "largest, scaled"], rows)


def _number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def _counted(result, arm, kind):
    """The counts of a kind of value, over all trainings of an arm."""
    of = [row["counts"][kind] for row in result["trainings"] if row["arm"] == arm]
    found = {what: sum(counts[what] for counts in of) for what in of[0]}
    return found | {"largest": max(counts["largest"] for counts in of)}


def report(result):
    """The tables with what they are about, in Markdown."""
    rows = result["trainings"]
    scales = sorted({int(about["loss_scale"]) for about in result["settings"].values()})
    nets = {row["net"] for row in rows}
    return timing.paragraphs(
        table(result),
        counts_table(result),
        f"Means over {len(nets)} nets and {rows[0]['test_images']:,} test images. Differences are "
        "between nets with the same start and the same draws; in brackets Student's 95 % interval "
        f"of their mean. `{OTHER_ORDER}`: nothing is rounded, but sums are added up in another "
        "order. Overflows are counted in all steps, the rest in every "
        f"{COUNTED}th, of elements that are not 0. Loss scale of float16: "
        f"{' and '.join(map('{:,}'.format, scales))}. {timing.in_words(result)}",
    )
