"""The findings in the folder of a study, or of a run, as result files."""

import json
from pathlib import Path

from benchmarks import timing
from minicnn.files import DataError
from minicnn.recipe import RECIPES, completed
from minicnn.studies import STUDIES
from minicnn.studies.store import FILE, Store

_WHOLE_JOB = (
    "the whole job: 15 nets, 45 epochs of 42,000 training images of MNIST, then 10,000 test images"
)
_MNIST_TEST = "0910728468be9b097d7aaabb825b9fc24173233cbe5579a343a24560f768710d"  # its fingerprint


def keep(folder):
    """Write the findings in the folder of a study, or of a run, as result files.

    A run is one of the demo, or the whole job. Raises DataError for another folder.
    """
    about = {"machine": timing.machine(), "versions": timing.versions("scipy")}
    if (folder / "summary.json").exists():
        config, result = (
            json.loads((folder / name).read_text()) for name in ("config.json", "summary.json")
        )
        about["machine"] = timing.machine(result["device"])
        recipe = completed(config["recipe"])
        if (recipe, config["source"]) == (RECIPES["demo"].as_dict(), "digits"):
            timing.write(f"demo-{result['device']}", {"summary": result, **about})
        elif _is_whole_job(config):
            job = {"what": _WHOLE_JOB, "summary": result}
            timing.write(f"job-{result['device']}", job | about)
        else:
            raise DataError(
                f"{folder}: another recipe or data, expected a run of the demo or the whole job"
            )
        return
    with Store(folder / FILE, create=False) as store:
        for study, seed in store.studies():
            found = of_study(store.results(study, seed))
            kind = "full-trials" if _is_full(found) else f"study-{study}"
            if study == "trials" and set(found["cells"]) != {"seed"}:
                kind += "-" + "-".join(found["cells"])
            if seed:
                kind += f"-seed-{seed}"
            timing.write(kind, found | about)


def _is_whole_job(config):
    """Whether a run's config is the notebook's recipe on as many MNIST images as Kaggle has."""
    data = config.get("train_images"), config.get("test_data")
    is_seed = completed(config.get("recipe", {})) == RECIPES["seed"].as_dict()
    return is_seed and data == (42_000, _MNIST_TEST)


def _is_full(found):
    """Whether a study's result is trials of whole recipes on all of MNIST: README shows these."""
    if found["study"] != "trials":
        return False
    ((name, cell),) = found["cells"].items()
    if name not in RECIPES or found["settings"]["train_images"] < 60_000:
        return False
    # The notebook's trials have 30 epochs, its submission 45.
    least = 30 if name == "seed" else RECIPES[name].epochs
    recipe = cell["recipe"]
    return recipe["epochs"] >= least and recipe["nets"] >= RECIPES[name].nets


def of_study(results):
    """A study's Results as a dict for JSON, with every accuracy that its tables are made of."""
    found = STUDIES[results.study].findings(results)
    cells = {
        name: {
            "recipe": recipe.as_dict(),
            "trials": len(results.trials(name)),
            "accuracies": results.accuracies(name).tolist(),
            "ensembles": results.ensembles(name).tolist(),
        }
        for name, recipe in results.cells.items()
    }
    tables = {
        name: {
            "caption": table.caption,
            "fractions": list(table.fractions),
            "rows": table.data.astype(object).where(table.data.notna(), None).to_dict("records"),
        }
        for name, table in found.tables.items()
    }
    made_by = []
    for each in results.nets["made_by"]:
        if each not in made_by:
            made_by.append(each)
    return {
        "study": results.study,
        "seed": results.seed,
        "settings": {**results.settings, "source": Path(results.settings["source"]).name},
        "made_by": made_by,
        "lines": found.lines,
        "tables": tables,
        "cells": cells,
    }
