"""python -m benchmarks.readme: write the README files' tables and figure from benchmarks/results.

A table stands between two comments that name it. The newest result of its kind is shown.
"""

import hashlib
import json
import re
from pathlib import Path

from benchmarks.timing import RESULTS

README = Path(__file__).parent.parent / "README.md"
KERNELS_README = README.parent / "kernels" / "README.md"
SCALING_FIGURE = "scaling-cpu.png"


def newest(kind):
    """The newest result file of a kind, parsed; its name ends in the date."""
    return json.loads(max(RESULTS.glob(f"{kind}-????-??-??.json")).read_text())


def speed():
    """Images a second of training steps, and of whole trainings by the number of processes."""
    step, workers = newest("train-step-cpu"), newest("workers-cpu")
    splits = list(dict.fromkeys((r["processes"], r["threads"]) for r in step["rates"]))
    lines = [
        f"| {' | '.join(['', *(_split(*split) for split in splits)])} |",
        f"| {' | '.join(['---'] * (1 + len(splits)))} |",
    ]
    for name in dict.fromkeys(r["contender"] for r in step["rates"]):
        found = {(r["processes"], r["threads"]): r for r in step["rates"] if r["contender"] == name}
        cells = [_rate(found[split]) if split in found else "" for split in splits]
        lines.append(f"| {' | '.join([name, *cells])} |")
    lines += ["", "| `--workers` | images a second |", "| --- | --- |"]
    for count, rate in workers["processes"].items():
        lines.append(f"| {count} | {_rate(rate)} |")
    rounds = step["rates"][0]["rounds"], next(iter(workers["processes"].values()))["rounds"]
    return "\n".join(
        [
            *lines,
            "",
            "Above: images a second in training steps of one net a process, batch 64, "
            f"augmentation included; median, lowest and highest of {rounds[0]} rounds in turn. The "
            f"fastest minicnn is {step['ratio_of_one_process']:.2f} times as fast as the fastest "
            f"PyTorch in one process, and {step['ratio_of_ensembles']:.2f} times where each has "
            f"its best split of the cores. Below: {workers['what']} on `cpu`, validation and the "
            f"start of the processes included, {rounds[1]} rounds. {_where(step)}",
        ]
    )


def scaling():
    """How throughput grows with batch, cores and nets, in one figure."""
    result = newest("scaling-cpu")
    return "\n".join(
        [
            f"![Images a second by batch, cores and nets](benchmarks/results/{SCALING_FIGURE})",
            "",
            f"Training steps in one process, median of {result['rates'][0]['rounds']} rounds in "
            f"turn. {_where(result)}",
        ]
    )


def digest(result):
    """What tells one result from another; a figure carries that of what it shows."""
    return hashlib.sha256(json.dumps(result).encode()).hexdigest()


def draw_scaling(path):
    """The figure of that."""
    import matplotlib  # noqa: PLC0415  only this needs it

    matplotlib.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    result = newest("scaling-cpu")
    rates = result["rates"]
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    for axis, varied, fixed in ((axes[0], "batch", "nets"), (axes[1], "nets", "batch")):
        kept = {"nets": 1, "batch": 64}[fixed]
        for cores in sorted({rate["cores"] for rate in rates}):
            rows = [r for r in rates if r["cores"] == cores and r[fixed] == kept]
            rows.sort(key=lambda r: r[varied])
            x, y = ([r[key] for r in rows] for key in (varied, "images_per_second"))
            low, high = ([r[key] for r in rows] for key in ("lowest", "highest"))
            label = f"{cores} core{'s' * (cores > 1)}"
            [line] = axis.plot(x, y, marker="o", markersize=4, label=label)
            axis.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        axis.set_xlabel({"batch": "images in a batch", "nets": "nets, batch 64"}[varied])
        axis.set_title({"batch": "One net", "nets": "Nets in one process"}[varied], fontsize=10)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_xscale("log", base=2)
    ticks = sorted({rate["batch"] for rate in rates})
    axes[0].set_xticks(ticks, map(str, ticks))
    axes[1].set_xticks(sorted({rate["nets"] for rate in rates if rate["batch"] == 64}))
    axes[0].set_ylim(bottom=0)
    axes[0].set_ylabel("images a second")
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=150, metadata={"Source": digest(result)})
    pyplot.close(figure)


def accuracy():
    """Test accuracy of short runs on MNIST."""
    lines = [
        "| training images | epochs | momentum | seeds | device | test images "
        "| test images, distorted |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    results = {device: newest(f"accuracy-{device}") for device in ("numpy", "cpu")}
    for runs in zip(*(result["runs"] for result in results.values()), strict=True):
        for device, run in zip(results, runs, strict=True):
            shown = [_percent(run[key]) for key in ("test_accuracy", "distorted_test_accuracy")]
            lines.append(
                f"| {run['images']:,} | {run['epochs']} | {run['momentum']} | {len(run['seeds'])} "
                f"| {device} | {shown[0]} | {shown[1]} |"
            )
    where = (f"`{device}`: {_where(result)}" for device, result in results.items())
    return "\n".join([*lines, "", " ".join(where)])


def layers():
    """Each layer and pass of a step on the CPU."""
    result = newest("layers-cpu")
    peak, rows = result["gemm_flops_per_second"], result["passes"]
    passes = "forward", "weight gradient", "input gradient"
    lines = [
        f"| layer | {' | '.join(passes)} |",
        f"| --- {'| --- ' * len(passes)}|",
    ]
    with_flops = [row for row in rows if row["flops"]]
    for layer in dict.fromkeys(row["layer"] for row in with_flops):
        cells = {
            row["pass"]: f"{row['flops'] / row['seconds'] / 1e9:.0f} GFLOP/s, "
            f"{row['flops'] / row['seconds'] / peak:.0%}, {row['seconds'] * 1e3:.2f} ms"
            for row in with_flops
            if row["layer"] == layer
        }
        lines.append(f"| {layer} | {' | '.join(cells.get(name, '') for name in passes)} |")
    lines += ["", "| all layers of a kind | milliseconds |", "| --- | --- |"]
    kinds = {}
    for row in rows:
        kind = f"{re.sub('_[0-9]+$', '', row['layer'])}, {row['pass']}"
        kinds[kind] = kinds.get(kind, 0) + row["seconds"]
    for kind, seconds in sorted(kinds.items(), key=lambda item: -item[1]):
        lines.append(f"| {kind} | {seconds * 1e3:.2f} |")
    return "\n".join(
        [
            *lines,
            "",
            f"Of {result['what']}, on {result['cores']} cores, median of {result['rounds']} steps. "
            f"Per cent: of NumPy's BLAS on a product of large matrices on as many cores, "
            f"{peak / 1e9:.0f} GFLOP/s. {_where(result)}",
        ]
    )


def ladder():
    """What the versions of a step do, as the emulator counts it."""
    result = newest("ladder-emulated")
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
    result = newest("tiles")
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


def _split(processes, threads):
    counts = (processes, "process", "processes"), (threads, "thread", "threads")
    return ", ".join(f"{n} {one if n == 1 else many}" for n, one, many in counts) + (
        " each" if processes > 1 else ""
    )


def _rate(rate):
    values = (rate[key] for key in ("images_per_second", "lowest", "highest"))
    return "{:,.0f} ({:,.0f} to {:,.0f})".format(*values)


def _percent(values):
    mean = f"{100 * sum(values) / len(values):.2f} %"
    if len(values) == 1:
        return mean
    return f"{mean} ({100 * min(values):.2f} to {100 * max(values):.2f})"


def _where(result):
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    machine = result["machine"]
    return (
        f"Measured {machine['date']} on {machine['processor']}, {machine['system']}, "
        f"Python {machine['python']}, {versions}."
    )


TABLES = {README: (speed, scaling, accuracy), KERNELS_README: (ladder, tile_choices, layers)}


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
    draw_scaling(RESULTS / SCALING_FIGURE)
