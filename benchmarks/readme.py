"""python -m benchmarks.readme: write the README files' tables and figures from benchmarks/results.

A table stands between two comments that name it. The newest result of its kind is shown.
"""

import re
from pathlib import Path

from benchmarks import frameworks, timing
from benchmarks.kernel_tables import operations

README = Path(__file__).parent.parent / "README.md"
KERNELS_README = README.parent / "kernels" / "README.md"


def speed():
    """Training and inference beside the frameworks; whole trainings by the number of processes."""
    result, workers = timing.newest("frameworks-cpu"), timing.newest("workers-cpu")
    rates = result["rates"]
    compared = frameworks.compared(rates)
    one_net, ensemble, infer = compared.values()
    lines = [
        "| images a second | training one net | training an ensemble | its best split "
        "| inference |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in frameworks.ranking(rates):
        cells = [_rate(rows[name]) if name in rows else "" for rows in (one_net, ensemble, infer)]
        cells.insert(2, _split(ensemble[name]))
        lines.append(f"| {' | '.join([name, *cells])} |")
    shown = [f"{name} ({why})" for name, why in (result["refused"] | result["left_out"]).items()]
    lines += ["", f"Not measured, or not in every split: {'; '.join(shown)}."] if shown else []
    rounds = {row["rounds"] for row in rates}
    lines += [
        "",
        "Batch 64; augmentation is part of a training step. Median, lowest and highest of "
        f"{_range(rounds)} rounds in turn, on {result['machine']['cores']} cores. "
        + _ratios(compared)
        + f" {timing.in_words(result)}",
        "",
        "| `--workers` | images a second |",
        "| --- | --- |",
    ]
    for count, rate in workers["processes"].items():
        lines.append(f"| {count} | {_rate(rate)} |")
    rounds = {rate["rounds"] for rate in workers["processes"].values()}
    lines += [
        "",
        f"The whole of {workers['what']} on `cpu`, validation and the start of the processes "
        f"included; {_range(rounds)} rounds in turn. {timing.in_words(workers)}",
    ]
    figure = "![Images a second of every contender](benchmarks/results/frameworks-cpu.png)"
    return "\n".join([figure, "", *lines])


def _ratios(found):
    """By how much the fastest minicnn is ahead of the frameworks, or behind."""
    words = []
    for precisions, of_what in (
        (["float32"], "the fastest framework in float32"),
        (["float32", "bfloat16"], "the fastest in any precision"),
    ):
        ratios = {
            name: frameworks.ratio([r for r in rows.values() if r["precision"] in precisions])
            for name, rows in found.items()
        }
        each = (f"{ratio:.2f} in {name}" for name, ratio in ratios.items() if ratio)
        words.append(f"of {of_what}: {', '.join(each)}")
    return f"The fastest minicnn reaches, as a multiple {'; '.join(words)}."


def _split(row):
    """How a row's contender used the cores."""
    if row["nets"] > 1:
        return f"{row['nets']} nets in one process"
    return f"{row['processes']} x {row['threads']}"


def _range(rounds):
    """A set of numbers in words."""
    return " to ".join(map(str, sorted({min(rounds), max(rounds)})))


def scaling():
    """How throughput and memory grow with batch, cores and nets, in one figure."""
    result = timing.newest("scaling-cpu")
    rounds = _range({row["rounds"] for row in result["rates"]})
    return "\n".join(
        [
            "![Images a second and memory by batch, cores and nets]"
            "(benchmarks/results/scaling-cpu.png)",
            "",
            f"Training steps, each size in a process of its own; median of {rounds} rounds in "
            f"turn, and the most memory that the process took. {timing.in_words(result)}",
        ]
    )


def accuracy():
    """Test accuracy of short runs on MNIST."""
    lines = [
        "| training images | epochs | momentum | seeds | device | test images "
        "| test images, distorted |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    results = {device: timing.newest(f"accuracy-{device}") for device in ("numpy", "cpu")}
    for runs in zip(*(result["runs"] for result in results.values()), strict=True):
        for device, run in zip(results, runs, strict=True):
            shown = [_percent(run[key]) for key in ("test_accuracy", "distorted_test_accuracy")]
            lines.append(
                f"| {run['images']:,} | {run['epochs']} | {run['momentum']} | {len(run['seeds'])} "
                f"| {device} | {shown[0]} | {shown[1]} |"
            )
    where = (f"`{device}`: {timing.in_words(result)}" for device, result in results.items())
    return "\n".join([*lines, "", " ".join(where)])


def ladder():
    """What the versions of a step do, as the emulator counts it."""
    result = timing.newest("ladder-emulated")
    counted = result["versions_counted"]
    lines = [
        "| a step | launches | memory, GB | passes | cache, GB | wavefronts, millions | GFLOP "
        "| of tensor cores | least time, ms |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for version, found in counted.items():
        step = found["step"]
        cells = version, step["launches"], *_counts(step, f"{step['passes']:.1f}")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += [
        "",
        "| convolutions | pass | launches | memory, GB | cache, GB | wavefronts, millions | GFLOP "
        "| of tensor cores | least time, ms | set by | registers |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for version, passes in counted.items():
        for name, found in passes.items():
            if name == "step":
                continue
            registers = sorted({result["registers"][kernel] for kernel in found["kernels"]})
            cells = [version, name, found["launches"], *_counts(found)]
            cells += [found["limit"], ", ".join(map(str, registers))]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    versions = result["versions"]
    limits = (result["limits"][k] / 1e12 for k in ("memory", "cache", "arithmetic", "tensor"))
    return "\n".join(
        [
            *lines,
            "",
            f"{result['nets']} nets, {result['batch']} images each. A pass: all convolutions' "
            "outputs once. Limits: {:g} TB/s of memory, {:g} TB/s of cache, {:g} TFLOP/s, {:g} of "
            "tensor cores. ".format(*limits)
            + f"Registers of a thread on {result['architecture']}, by NVRTC {versions['nvrtc']}. "
            f"Counted {result['machine']['date']} by minicnn {versions['minicnn']}.",
        ]
    )


def _counts(found, *passes):
    """The cells of a summary of ladder.py."""
    return (
        f"{found['memory_bytes'] / 1e9:.2f}",
        *passes,
        f"{found['cache_bytes'] / 1e9:.1f}",
        f"{found['shared_wavefronts'] / 1e6:,.0f}",
        f"{found['flops'] / 1e9:.1f}",
        f"{found['tensor_flops'] / 1e9:.1f}",
        f"{found['seconds'] * 1e3:.2f}",
    )


def tile_choices():
    """How each layer's fused kernels cut their work, and what the compiler makes of them."""
    result = timing.newest("tiles")
    lines = [
        "| layer | pass | tile | warps | pixels by channels of a warp | grid | shared, KB "
        "| registers | spilled, bytes | model, us |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["launches"]:
        clocks = f"{row['microseconds']:.0f}" if row["microseconds"] else ""
        of_warp = f"{row['warp_pixels']} x {row['warp_channels']}" if row["warp_pixels"] else ""
        cells = [
            row["layer"], row["pass"], row["tile"], row["warps"], of_warp,
            " x ".join(map(str, row["grid"])), f"{row['shared_bytes'] / 1024:.0f}",
            ", ".join(map(str, row["registers"])), ", ".join(map(str, row["spilled"])), clocks,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(
        [
            *lines,
            "",
            f"Batch {result['batch']}. Registers, and bytes of spills and stack, on "
            f"{' and '.join(result['architectures'])}, by NVRTC {result['versions']['nvrtc']}. "
            f"The model's {result['microseconds']:.0f} us are those of all of these launches, on a "
            f"GPU like an H200, one after the other; nothing of it was measured.",
        ]
    )


def _rate(rate):
    values = (rate[key] for key in ("images_per_second", "lowest", "highest"))
    return "{:,.0f} ({:,.0f} to {:,.0f})".format(*values)


def _percent(values):
    mean = f"{100 * sum(values) / len(values):.2f} %"
    if len(values) == 1:
        return mean
    return f"{mean} ({100 * min(values):.2f} to {100 * max(values):.2f})"


def faults():
    """Trainings that were killed, and inputs that the readers of files were given."""
    result = timing.newest("faults")
    lines = [
        "| trainings killed on | kills | inside a checkpoint's write | runs | bits that differ |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in result["kills"]:
        numbers = row["kills"], row["inside_a_write"], row["runs"], row["differing_bits"]
        lines.append(f"| `{row['device']}` | {' | '.join(f'{n:,}' for n in numbers)} |")
    lines += [
        "",
        "| reader | inputs | accepted | refused | slowest | most memory of a process |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["fuzzing"]:
        counts = " | ".join(f"{row[name]:,}" for name in ("inputs", "accepted", "refused"))
        memory = f"{row['peak_memory_bytes'] / 1e6:.0f} MB"
        lines.append(f"| {row['reader']} | {counts} | {row['longest_seconds']:.2f} s | {memory} |")
    return "\n".join([*lines, "", timing.in_words(result)])


def studies():
    """What the studies have found, in the sizes that were run."""
    found = {name: timing.newest(f"study-{name}") for name in ("variance", *_STUDIES)}
    rows = found["variance"]["tables"]["summary"]["rows"]
    lines = [
        f"**variance** ({_size(found['variance'])}): deviations from the mean, for angle, slant "
        "and size that of the image's class, and the range that holds 95 % of the images",
        "",
        "| | unit | mean | standard deviation | holds 95 % | as a setting | the notebook's |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        numbers = [row[key] for key in ("mean", "sd", "holds_95_%", "setting", "notebook_setting")]
        shown = ["" if n is None else f"{n:.2f}" for n in numbers]
        lines.append(f"| {row['of']} | {row['unit']} | {' | '.join(shown)} |")
    for name, table in _STUDIES.items():
        lines += ["", f"**{name}** ({_size(found[name])})", "", *table(found[name]["tables"])]
        if name in _PICTURES:
            lines += ["", f"![{_PICTURES[name]}](benchmarks/results/study-{name}.png)"]
    return "\n".join([*lines, "", *dict.fromkeys(map(timing.in_words, found.values()))])


def _trials(tables):
    yield "| test accuracy | n | mean, 95 % interval | standard deviation | lowest | highest |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for row in tables["summary"]["rows"]:
        mean = _interval(row, "mean", "mean_low", "mean_high", digits=3)
        cells = [row["of"], f"{row['n']:,}", mean, _fraction(row["sd"], 3)]
        cells += [_fraction(row[key]) for key in ("min", "max")]
        yield f"| {' | '.join(cells)} |"


def _grid(tables):
    kinds = [tables[name]["rows"] for name in ("ensembles", "single_nets")]
    counts = [rows[0]["n"] for rows in kinds]
    yield (
        f"| rotation | zoom | shift | {counts[0]} ensembles | the notebook's 6 "
        f"| {counts[1]} single nets | the notebook's 30 |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for pair in zip(*kinds, strict=True):
        cells = [f"{pair[0][name]:g}" for name in ("rotation", "zoom", "shift")]
        for row in pair:
            cells += [_interval(row), _fraction(row["notebook"])]
        yield f"| {' | '.join(cells)} |"


def _ablation(tables):
    yield "| network | weights | n | mean test accuracy, 95 % interval | gain, 95 % interval |"
    yield "| --- | --- | --- | --- | --- |"
    for row in tables["steps"]["rows"]:
        gain = _interval(row, "gain", "gain_low", "gain_high", sign="+")
        yield f"| {row['step']} | {row['weights']:,} | {row['n']} | {_interval(row)} | {gain} |"


def _interval(row, *names, digits=2, sign=""):
    """A mean with its interval in percent."""
    names = names or ("mean", "low", "high")
    mean, low, high = (_fraction(row[name], digits, sign) for name in names)
    return f"{mean} ({low[:-2]} to {high[:-2]})" if low else mean


def _fraction(value, digits=2, sign=""):
    return "" if value is None else f"{100 * value:{sign}.{digits}f} %"


_STUDIES = {"trials": _trials, "grid": _grid, "ablation": _ablation}
_PICTURES = {
    "trials": "How the test accuracies of single nets and of ensembles spread",
    "ablation": "The error rate after each change",
}


def _size(result):
    """The size in which a study was run, in words."""
    images = f"{result['settings']['train_images']:,} training images"
    if not result["cells"]:
        return f"MNIST's {images}" if result["settings"]["train_images"] == 60_000 else images
    cell = list(result["cells"].values())[-1]
    recipe = cell["recipe"]
    return (
        f"{images}, {recipe['epochs']} epochs, momentum {recipe['momentum']}, {cell['trials']} "
        f"trials, ensembles of {recipe['nets']}, `{result['made_by'][0]['device']}`"
    )


TABLES = {
    README: (speed, scaling, accuracy, studies, faults),
    KERNELS_README: (ladder, tile_choices, operations),
}


def render(path):
    """The text of a README file with every table made anew."""
    text = path.read_text()
    for table in TABLES[path]:
        begin, end = f"<!-- {table.__name__} -->", f"<!-- end of {table.__name__} -->"
        pattern = f"{re.escape(begin)}.*?{re.escape(end)}"
        text, count = re.subn(
            pattern, lambda _, t=table, b=begin, e=end: f"{b}\n\n{t()}\n\n{e}", text, flags=re.S
        )
        if count != 1:
            raise ValueError(f"{path}: expected one table {begin}, got {count}")
    return text


if __name__ == "__main__":
    for path in TABLES:
        path.write_text(render(path))
    from benchmarks import plots  # only this needs matplotlib

    for draw in plots.FIGURES:
        draw(timing.RESULTS)
