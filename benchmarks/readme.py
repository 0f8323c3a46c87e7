"""python -m benchmarks.readme: write the tables of the README files anew from benchmarks/results.

A table stands between two comments that name it. The newest result of its kind is shown.
"""

import json
import re
from pathlib import Path

from benchmarks.timing import RESULTS

README = Path(__file__).parent.parent / "README.md"
KERNELS_README = README.parent / "kernels" / "README.md"


def newest(kind):
    """The newest result file of a kind, parsed; its name ends in the date."""
    return json.loads(max(RESULTS.glob(f"{kind}-????-??-??.json")).read_text())


def speed():
    """Images a second of a training step, and of several processes."""
    step, workers = newest("train-step-numpy"), newest("workers-numpy")
    lines = [
        "| one process, one core | images a second | lowest to highest |",
        "| --- | --- | --- |",
    ]
    for name, rate in step["images_per_second"].items():
        lines.append(_row(name, rate))
    lines += ["", "| `--workers` | images a second | lowest to highest |", "| --- | --- | --- |"]
    for count, rate in workers["processes"].items():
        lines.append(_row(count, rate))
    rounds = [
        next(iter(r.values()))["rounds"] for r in (step["images_per_second"], workers["processes"])
    ]
    return "\n".join(
        [
            *lines,
            "",
            f"Training steps of one net, batch 64, augmentation included, PyTorch on one thread, "
            f"median of {rounds[0]} rounds in turn; whole trainings of two nets for one epoch, "
            f"median of {rounds[1]}. {_where(step)}",
        ]
    )


def accuracy():
    """Test accuracy of short runs on MNIST."""
    result = newest("accuracy-numpy")
    lines = [
        "| training images | epochs | momentum | seeds | test images | test images, distorted |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for run in result["runs"]:
        shown = [_percent(run[key]) for key in ("test_accuracy", "distorted_test_accuracy")]
        lines.append(
            f"| {run['images']:,} | {run['epochs']} | {run['momentum']} | {len(run['seeds'])} "
            f"| {shown[0]} | {shown[1]} |"
        )
    return "\n".join([*lines, "", _where(result)])


def ladder():
    """What the versions of convolution do in a step, as the emulator counts it."""
    result = newest("ladder-emulated")
    lines = [
        "| version | pass | launches | memory, GB | cache, GB | wavefronts, millions | GFLOP "
        "| least time, ms | set by | registers |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for version, passes in result["convolutions"].items():
        for name, found in passes.items():
            registers = sorted({result["registers"][kernel] for kernel in found["kernels"]})
            cells = [
                version,
                name,
                found["launches"],
                f"{found['memory_bytes'] / 1e9:.2f}",
                f"{found['cache_bytes'] / 1e9:.1f}",
                f"{found['shared_wavefronts'] / 1e6:,.0f}",
                f"{found['flops'] / 1e9:.1f}",
                f"{found['seconds'] * 1e3:.2f}",
                found["limit"],
                ", ".join(map(str, registers)),
            ]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    limits, versions = result["limits"], result["versions"]
    memory, cache, arithmetic = (limits[key] / 1e12 for key in ("memory", "cache", "arithmetic"))
    return "\n".join(
        [
            *lines,
            "",
            f"All seven convolutions, {result['nets']} nets, {result['batch']} images each. "
            f"Limits: {memory:g} TB/s of memory, {cache:g} TB/s of cache, {arithmetic:g} TFLOP/s. "
            f"Registers of a thread on {result['architecture']}, by NVRTC {versions['nvrtc']}. "
            f"Counted {result['machine']['date']} by minicnn {versions['minicnn']}.",
        ]
    )


def _row(name, rate):
    spread = f"{rate['lowest']:.0f} to {rate['highest']:.0f}"
    return f"| {name} | {rate['images_per_second']:.0f} | {spread} |"


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


TABLES = {README: (speed, accuracy), KERNELS_README: (ladder,)}


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
