"""The part of gpu_report.py that compares: frameworks.py, within the time that is left."""

from benchmarks import frameworks as comparison
from benchmarks.gpu_parts import Failed
from minicnn.machine import cores


def frameworks(run):
    """Part: images a second beside the frameworks that are installed, all taking turns."""
    plan = comparison.plan_of("cuda", run.sizes.nets, cores())
    [(given, _, _, jobs)] = plan
    rounds = run.sizes.rounds
    turns = len(given) * len(jobs) * (rounds + 2)  # warming up takes about two rounds
    # A third of the time is for measuring at most, and a fifth is kept for turns that take longer
    # and for ending processes. What is not ready when the rest has passed is left out, and named.
    seconds = min(run.sizes.seconds / 2, run.left / 3 / turns)
    to_start = 0.8 * run.left - turns * seconds
    for result in comparison.measure(plan, "cuda", rounds, seconds, to_start):
        yield {**result, "headline": in_words(result["rates"])}
    if result["refused"]:
        raise Failed("; ".join(f"{name}: {why}" for name, why in result["refused"].items()))
    if not any(comparison.is_ours(row) for row in result["rates"]):
        raise Failed("no contender of minicnn's was measured")


def in_words(rates):
    """The fastest in training, of ours and of theirs, and the ratio."""
    rows = list(comparison.best(rates, "train").values())
    words = []
    for of_us in (True, False):
        found = [row for row in rows if comparison.is_ours(row) == of_us]
        if found:
            best = max(found, key=lambda row: row["images_per_second"])
            words.append(f"{best['contender']} {best['images_per_second']:,.0f}")
    ratio = comparison.ratio(rows)
    return f"images a second: {', '.join(words)}" + (f": {ratio:.2f} times" if ratio else "")
