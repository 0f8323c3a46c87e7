"""python -m benchmarks.workers: images a second of an ensemble by the number of processes.

Whole trainings of as many nets as there are cores, validation and the start of the processes
included; each number of processes in turn, and each must give the same bits.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks import timing
from minicnn import load_data
from minicnn.machine import cores
from minicnn.recipe import RECIPES
from minicnn.training import checkpoint, ensemble
from minicnn.training.trainer import Data, Job, steps_per_epoch


def main():
    parser = argparse.ArgumentParser(prog="benchmarks.workers", description=__doc__)
    parser.add_argument("--device", choices=["numpy", "cpu"], default="cpu", help="default: cpu")
    parser.add_argument("--rounds", type=int, default=7, help="default: 7")
    parser.add_argument("--out", help="default: in benchmarks/results")
    arguments = parser.parse_args()
    (images, labels), _ = load_data("digits")
    recipe = replace(RECIPES["seed"], nets=cores(), epochs=3)
    data = Data(images, labels)
    steps = recipe.nets * recipe.epochs * steps_per_epoch(recipe, len(images))
    trained = steps * recipe.batch_size
    seconds = {workers: [] for workers in range(1, cores() + 1)}
    weights = []
    for _ in range(arguments.rounds):
        for workers, measured in seconds.items():
            with tempfile.TemporaryDirectory() as folder:
                job = Job(recipe, data, arguments.device, "float32", Path(folder))
                start = time.perf_counter()
                ensemble.train_ensemble(job, workers)
                measured.append(time.perf_counter() - start)
                weights.append(checkpoint.load(Path(folder) / ensemble.FINAL)[0]["params"])
            assert np.array_equal(weights[0], weights[-1]), "processes changed the result"
    rates = {workers: timing.rates(s, trained) for workers, s in seconds.items()}
    one = rates[1]["images_per_second"]
    result = {
        "what": f"training {recipe.nets} nets for {recipe.epochs} epochs of {len(images)} images",
        "processes": rates,
        "ratio_to_one": {w: rate["images_per_second"] / one for w, rate in rates.items()},
        "machine": timing.machine(),
        "versions": timing.versions(),
    }
    for workers, rate in rates.items():
        print(
            f"{workers} process(es){rate['images_per_second']:8.0f} images a second, "
            f"{rate['images_per_second'] / one:.2f} times one"
        )
    timing.write(f"workers-{arguments.device}", result, arguments.out)


if __name__ == "__main__":
    main()
