"""What the studies have found: their tables in the documents."""

import json

import numpy as np

from benchmarks import timing
from benchmarks.timing import paragraphs
from minicnn.recipe import RECIPES, completed
from minicnn.studies.statistics import mean_interval
from minicnn.studies.trials import NOTEBOOK


def accuracies():
    """Rows of README's first table: what each recipe reaches on all of MNIST, and what it costs."""
    rows = []
    for name, reached in all_reached().items():
        epochs, (single, whole) = reached["recipe"]["epochs"], _arrays(reached)
        nets, notebook = len(reached["images"]), ""
        alone = RECIPES[name].nets == 1
        if alone:
            images, shown, n = reached["images"][0], single, f"{len(single)} nets"
            of_both = f"; ensembles of {nets}: {_fraction(whole.mean(), 3)}"
        else:
            images, shown = reached["images"][-1], whole
            n = f"{len(whole)} ensemble{'s' * (len(whole) > 1)}"
            of_both = f"; single nets {_fraction(single.mean(), 3)}"
        if name == "seed":
            theirs = [_fraction(row["mean"], 3) for row in NOTEBOOK[::-1]]
            notebook = f"; the notebook: {theirs[0]} and {theirs[1]}"
        minutes = _minutes(images)
        rows.append(
            [
                f"`{name}`: {'one net' if alone else f'{nets} nets'}, "
                f"{epochs} epochs of MNIST, {images / 1e6:.1f} million images",
                f"**{_fraction(shown.mean(), 3)}** right{_in_brackets(shown)}{of_both}",
                f"`{reached['device']}`, {n}; {minutes:.{0 if minutes >= 10 else 1}f} minutes at "
                f"the whole job's rate{notebook}",
            ]
        )
    return rows


def all_reached():
    """What each recipe reaches on all of MNIST, of its trials of every seed.

    {recipe: {"recipe": its fields, "device", "images": trained on by an ensemble of 1, 2 ... nets,
    "single_nets": their test accuracies, "ensembles": those of each trial, of 1, 2 ... nets}}
    """
    found = {}
    for name in RECIPES:
        if trials := _full_trials(name):
            cells = [result["cells"][name] for result in trials]
            recipe = cells[0]["recipe"]
            for cell in cells:
                if other := _differing(name, cell["recipe"], recipe):
                    raise ValueError(f"{name}: got trials with another {other}, expected the same")
            steps = trials[0]["settings"]["train_images"] // recipe["batch_size"]
            of_net = recipe["epochs"] * steps * recipe["batch_size"]
            found[name] = {
                "recipe": recipe,
                "device": trials[0]["made_by"][0]["device"],
                "images": [nets * of_net for nets in range(1, recipe["nets"] + 1)],
                "single_nets": [value for cell in cells for value in cell["accuracies"]],
                "ensembles": [sizes for cell in cells for sizes in cell["ensembles"]],
            }
    return found


def _differing(name, recipe, first):
    """The field in which a trial's recipe is not the first trial's, or not the one of `name`."""
    recipe, first, ours = completed(recipe), completed(first), RECIPES[name].as_dict()
    # Trials may have other sizes than the recipe, and train on all images.
    ours |= {field: first[field] for field in ("nets", "epochs", "validation_fraction")}
    return next((f for f in ours if f != "seed" and not recipe[f] == first[f] == ours[f]), None)


def _arrays(reached):
    """(test accuracies of single nets, those of whole ensembles)."""
    by_size = map(np.array, reached["ensembles"])
    whole = [sizes[~np.isnan(sizes)][-1] for sizes in by_size]  # some nets diverge
    return np.array(reached["single_nets"]), np.array(whole)


def _by_size(reached):
    """[accuracies of ensembles of 1, 2 ... nets]: all single nets, then each trial's first nets."""
    columns = np.array(reached["ensembles"]).T
    found = [sizes[~np.isnan(sizes)] for sizes in columns]
    return [np.array(reached["single_nets"]), *found[1:]]


def _minutes(images):
    """How long the training of so many images takes at the rate of the whole job on a CPU."""
    return images / timing.newest("job-cpu")["summary"]["images_per_second"] / 60


def curve():
    """The test accuracy of ensembles by what they cost, for a figure.

    {recipe: {"epochs", "trials", and lists for ensembles of 1, 2 ... nets: "images" and "minutes"
    of training, and "mean", "low" and "high" of the accuracy, with the mean's 95 % interval}}
    """
    found = {}
    for name, reached in all_reached().items():
        rows = [(values.mean(), *mean_interval(values)) for values in _by_size(reached)]
        # Rounded: the last bits differ between versions of the libraries.
        mean, low, high = np.round(rows, 6).T.tolist()
        found[name] = {
            "epochs": reached["recipe"]["epochs"],
            "trials": len(reached["ensembles"]),
            "images": reached["images"],
            "minutes": [round(_minutes(images), 3) for images in reached["images"]],
            **{"mean": mean, "low": low, "high": high},
        }
    return found


def _full_trials(name):
    """The results of a recipe's trials on all of MNIST: the newest of each seed."""
    found = {}
    for result in timing.every("full-trials"):
        if set(result["cells"]) == {name}:
            found.setdefault(result["seed"], result)
    return [found[seed] for seed in sorted(found)]


def _in_brackets(accuracies):
    """The 95 % interval of a mean, or, of two accuracies, these."""
    if len(accuracies) < 2:
        return ""
    low, high = np.sort(accuracies) if len(accuracies) == 2 else mean_interval(accuracies)
    low, high = _fraction(low, 3)[:-2], _fraction(high, 3)[:-2]
    return f" ({low} {'and' if len(accuracies) == 2 else 'to'} {high})"


def studies():
    """What the studies have found, in the sizes that were run."""
    found = {name: timing.newest(f"study-{name}") for name in ("variance", *_STUDIES)}
    texts = [
        f"**variance** ({_size(found['variance'])}): deviations from the mean; angle, slant and "
        "size from the mean of the image's class. A range of `holds 95 %` either way holds 95 % "
        "of the images",
        _variance(found["variance"]["tables"]),
    ]
    for name, table in _STUDIES.items():
        texts += [f"**{name}** ({_size(found[name])})", table(found[name]["tables"])]
        if name == "recipes":
            held_out = found[name]["settings"]["held_out"]
            first = found[name]["tables"]["single_nets"]["rows"][0]["changes"].replace("_", " ")
            texts += [
                f"Accuracy on {held_out:,} training images that no net has trained on. An effect "
                f"is the mean in company of the other changes. The first recipe: {first}."
            ]
        if name in _PICTURES:
            texts += [f"![{_PICTURES[name]}](benchmarks/results/study-{name}.png)"]
        if name == "trials":
            texts += ["**trials** of whole recipes on MNIST's 60,000 training images", _whole()]
            texts += [
                "What small ensembles reach and cost. One net: the mean of all nets. More: the "
                "first nets of each trial. Minutes are those at the rate of the whole job.",
                _costs(),
            ]
    return paragraphs(*texts, "\n".join(dict.fromkeys(map(timing.in_words, found.values()))))


def _variance(tables):
    heads = "", "unit", "mean", "standard deviation", "holds 95 %", "as a setting", "the notebook's"
    keys = "mean", "sd", "holds_95_%", "setting", "notebook_setting"
    rows = [
        [row["of"], row["unit"], *("" if row[k] is None else f"{row[k]:.2f}" for k in keys)]
        for row in tables["summary"]["rows"]
    ]
    return timing.table(heads, rows)


def _trials(tables):
    heads = "test accuracy", "n", "mean, 95 % interval", "standard deviation", "lowest", "highest"
    rows = []
    for row in tables["summary"]["rows"]:
        mean = _interval(row, "mean", "mean_low", "mean_high", digits=3)
        extremes = (_fraction(row[key]) for key in ("min", "max"))
        rows.append([row["of"], f"{row['n']:,}", mean, _fraction(row["sd"], 3), *extremes])
    return timing.table(heads, rows)


def _whole():
    """What each recipe reaches on all of MNIST, and what the notebook reached."""
    heads = "recipe", "epochs", "images", "nets", "accuracy", "sd", "ensembles", "accuracy", "sd"
    rows = []
    for name, reached in all_reached().items():
        images = f"{reached['images'][-1] / 1e6:.1f} million"
        cells = [f"`{name}`", reached["recipe"]["epochs"], images]
        for values in _arrays(reached):
            sd = values.std(ddof=1) if len(values) > 1 else None
            mean = f"{_fraction(values.mean(), 3)}{_in_brackets(values)}"
            cells += [len(values), mean, _fraction(sd, 3)]
        rows.append(cells)
    theirs = [
        [f"{row['n']:,}", _fraction(row["mean"], 3), _fraction(row["sd"], 3)] for row in NOTEBOOK
    ]
    rows.append(["the notebook", 30, "27.0 million", *theirs[0], *theirs[1]])
    return timing.table(heads, rows)


def _costs():
    """The accuracy of small and whole ensembles of each recipe, by what they cost."""
    rows = []
    for name, of in all_reached().items():
        sizes = range(1, len(of["images"]) + 1)
        by_size = dict(zip(sizes, _by_size(of), strict=True))
        for nets in sorted({1, 3, 7, len(by_size)} & by_size.keys()):
            values, images = by_size[nets], of["images"][nets - 1]
            accuracy = f"{_fraction(values.mean(), 3)}{_in_brackets(values)}"
            rows.append((images, nets, f"`{name}`", accuracy, len(values)))
    heads = "images", "minutes", "nets", "recipe", "accuracy", "n"
    cells = [
        [f"{images / 1e6:.1f} million", f"{_minutes(images):.1f}", nets, name, accuracy, n]
        for images, nets, name, accuracy, n in sorted(rows)
    ]
    return timing.table(heads, cells)


def _grid(tables):
    kinds = [tables[name]["rows"] for name in ("ensembles", "single_nets")]
    ensembles, nets = (rows[0]["n"] for rows in kinds)
    heads = ["rotation", "zoom", "shift", f"{ensembles} ensembles", "the notebook's 6"]
    heads += [f"{nets} single nets", "the notebook's 30"]
    rows = []
    for pair in zip(*kinds, strict=True):
        cells = [f"{pair[0][name]:g}" for name in ("rotation", "zoom", "shift")]
        for row in pair:
            cells += [_interval(row), _fraction(row["notebook"])]
        rows.append(cells)
    return timing.table(heads, rows)


def _ablation(tables):
    heads = "network", "weights", "n", "mean test accuracy, 95 % interval", "gain, 95 % interval"
    rows = []
    for row in tables["steps"]["rows"]:
        gain = _interval(row, "gain", "gain_low", "gain_high", sign="+")
        rows.append([row["step"], f"{row['weights']:,}", row["n"], _interval(row), gain])
    return timing.table(heads, rows)


def _recipes(tables):
    """The effects of changes, or where a study has none, the gains of its candidates."""
    if "effects" in tables:
        heads = "change", "candidates with it", "effect on single nets' accuracy, 95 % interval"
        rows = []
        for row in tables["effects"]["rows"]:
            effect = _interval(row, "effect", "effect_low", "effect_high", digits=3, sign="+")
            rows.append([row["change"].replace("_", " "), row["candidates"], effect])
        return timing.table(heads, rows)
    heads = "candidate", "changes", "n", "single nets, 95 % interval", "gain", "ensembles", "gain"
    rows = []
    for pair in zip(tables["single_nets"]["rows"], tables["ensembles"]["rows"], strict=True):
        cells = [pair[0]["candidate"], pair[0]["changes"].replace("_", " "), pair[0]["n"]]
        for row in pair:
            cells.append(_interval(row, digits=3))
            cells.append(_interval(row, "gain", "gain_low", "gain_high", digits=3, sign="+"))
        rows.append(cells)
    return timing.table(heads, rows)


def _interval(row, *names, digits=2, sign=""):
    """A mean with its interval, in percent."""
    names = names or ("mean", "low", "high")
    mean, low, high = (_fraction(row[name], digits, sign) for name in names)
    return f"{mean} ({low[:-2]} to {high[:-2]})" if low else mean


def _fraction(value, digits=2, sign=""):
    return "" if value is None else f"{100 * value:{sign}.{digits}f} %"


_STUDIES = {"trials": _trials, "grid": _grid, "ablation": _ablation, "recipes": _recipes}
_PICTURES = {
    "trials": "How the test accuracies of single nets and of ensembles spread",
    "ablation": "The error rate after each change",
}


def _size(result):
    """The size in which a study was run, in words."""
    images = f"{result['settings']['train_images']:,} training images"
    if not result["cells"]:
        return f"MNIST's {images}" if result["settings"]["train_images"] == 60_000 else images
    cells = list(result["cells"].values())
    recipe, device = cells[-1]["recipe"], result["made_by"][0]["device"]
    size = f"{images}, {recipe['epochs']} epochs"
    if result["study"] == "recipes":
        # Candidates that differ in views only have their nets in common.
        nets = {
            json.dumps(cell["recipe"] | {"views": 1}): len(cell["accuracies"]) for cell in cells
        }
        return f"{size}, {len(nets)} recipes, {sum(nets.values())} nets, `{device}`"
    return (
        f"{size}, momentum {recipe['momentum']}, {cells[-1]['trials']} trials, ensembles of "
        f"{recipe['nets']}, `{device}`"
    )
