"""python -m benchmarks.readme: write the tables of README.md anew from benchmarks/results.

A table stands between two comments that name it. The newest result of its kind is shown.
"""

import json
import re
from pathlib import Path

from benchmarks.timing import RESULTS

README = Path(__file__).parent.parent / "README.md"


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


def render(text):
    """README's text with every table made anew."""
    for table in (speed, accuracy):
        begin, end = f"<!-- {table.__name__} -->", f"<!-- end of {table.__name__} -->"
        pattern = f"{re.escape(begin)}.*?{re.escape(end)}"
        text, count = re.subn(
            pattern, lambda _, t=table, b=begin, e=end: f"{b}\n\n{t()}\n\n{e}", text, flags=re.S
        )
        if count != 1:
            raise ValueError(f"README.md: expected one table {begin}, got {count}")
    return text


if __name__ == "__main__":
    README.write_text(render(README.read_text()))
