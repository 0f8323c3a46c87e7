"""python -m benchmarks.studies DIR ...: keep what studies have found, for README.

DIR is a folder of minicnn.study. Each study in it becomes a result file, with every accuracy that
it rests on. Run it on the machine that did the study.
"""

import argparse
from pathlib import Path

from benchmarks import timing
from minicnn.studies import STUDIES
from minicnn.studies.store import FILE, Store


def kept(results):
    """What to keep of a study's Results, a dict that JSON can hold."""
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
    settings = {**results.settings, "source": Path(results.settings["source"]).name}
    about = {"study": results.study, "seed": results.seed, "settings": settings}
    made_by = []
    for each in results.nets["made_by"]:
        if each not in made_by:
            made_by.append(each)
    return about | {"made_by": made_by, "lines": found.lines, "tables": tables, "cells": cells}


def main(argv=None):
    parser = argparse.ArgumentParser(prog="benchmarks.studies", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    for folder in parser.parse_args(argv).folders:
        with Store(folder / FILE, create=False) as store:
            for study, seed in store.studies():
                about = {"machine": timing.machine(), "versions": timing.versions("scipy")}
                timing.write(f"study-{study}", kept(store.results(study, seed)) | about)


if __name__ == "__main__":
    main()
