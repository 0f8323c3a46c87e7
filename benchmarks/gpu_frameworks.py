"""The part of gpu_report.py that compares: images a second beside PyTorch's (gpu_torch.py)."""

import importlib
import importlib.util
from collections import defaultdict
from functools import partial

import numpy as np

from benchmarks import timing
from benchmarks.gpu_parts import LeftOut, make_trainer, repeated, some_digits
from minicnn.command import one_line
from minicnn.recipe import Recipe


def frameworks(run):
    """Part: images a second beside PyTorch's, all contenders taking turns."""
    missing = {
        name: "is there, but not measured" if importlib.util.find_spec(name) else "not installed"
        for name in ("jax", "keras", "tensorflow")
    }
    yield {"not_measured": missing}
    if not importlib.util.find_spec("torch"):
        raise LeftOut("PyTorch is not installed")
    gpu_torch = importlib.import_module("benchmarks.gpu_torch")
    try:
        yield {"torch": gpu_torch.torch.__version__, "gpu": gpu_torch.device_name()}
    except RuntimeError as error:
        raise LeftOut(one_line(error)) from None
    ours, times = _our_contenders(run), defaultdict(list)
    for group in gpu_torch.groups(run.sizes.nets):
        if times and run.left < 45:  # compiling takes about so long
            missing.update({contender.name: "no time left" for contender in group})
            continue
        theirs = _their_contenders(gpu_torch, group, run, missing)
        if times and not theirs:
            continue
        contenders = ours | theirs
        for name, found in compare(contenders, run.sizes).items():
            times[name, contenders[name][1]] += found
        rates = rates_of(times, run.sizes.batch)
        yield {"rates": rates, **ratios(rates), "headline": _in_words(rates)}


def _our_contenders(run):
    """{name: (function of so many steps, nets)} of minicnn."""
    cupy = importlib.import_module("cupy")
    found = {}
    for precision in run.precisions():
        for nets in (1, run.sizes.nets):
            trainer = make_trainer(run.device, precision, nets, run.sizes.batch, run.sizes.images)
            again = repeated(trainer)

            def steps(count, trainer=trainer, again=again):
                with trainer.ops.session():
                    for _ in range(count):
                        again()
                cupy.cuda.Device().synchronize()

            found[f"minicnn {precision}, {nets} net{'s' * (nets > 1)}"] = steps, nets
    return found


def _their_contenders(gpu_torch, contenders, run, missing):
    """The same of PyTorch; what does not work is in `missing` afterwards."""
    digits, found = some_digits(run.sizes.images), {}
    for contender in contenders:
        try:
            training = gpu_torch.Training(contender, *digits, Recipe(batch_size=run.sizes.batch))
            training(3)
            if not np.isfinite(training.loss.item()):
                raise FloatingPointError("its loss is not finite")
            found[contender.name] = training, contender.nets
        except Exception as error:  # whatever a way of PyTorch's makes of it
            missing[contender.name] = one_line(error)[:500]
    return found


def compare(contenders, sizes, steps=10):
    """Let {name: (function of so many steps, nets)} take turns: {name: [seconds a step]}."""
    turns = {name: partial(function, steps) for name, (function, _) in contenders.items()}
    times = timing.alternate(turns, sizes.rounds, sizes.seconds)
    return {name: [seconds / steps for seconds in found] for name, found in times.items()}


def rates_of(times, batch):
    """Median and spread of the images a second of each contender, from {(name, nets): times}."""
    return [
        {"contender": name, "nets": nets, **timing.summarize(found, nets * batch)}
        for (name, nets), found in times.items()
    ]


def ratios(rates):
    """Our best median by the best of PyTorch: of one net, and of any number."""

    def ratio(rates):
        ours, theirs = _best(rates)
        return ours["images_per_second"] / theirs["images_per_second"] if ours and theirs else None

    one_net = [row for row in rates if row["nets"] == 1]
    return {"ratio_of_one_net": ratio(one_net), "ratio": ratio(rates)}


def _best(rates):
    """The rows with the highest rate, or None: ours, theirs."""
    return [
        max(
            (row for row in rates if is_ours(row) == ours),
            key=lambda row: row["images_per_second"],
            default=None,
        )
        for ours in (True, False)
    ]


def is_ours(row):
    """Whether a contender's row is minicnn's."""
    return row["contender"].startswith("minicnn")


def _in_words(rates):
    best = (f"{b['contender']} {b['images_per_second']:,.0f}" for b in _best(rates) if b)
    ratio = ratios(rates)["ratio"]
    return f"images a second: {', '.join(best)}" + (f": {ratio:.2f} times" if ratio else "")
