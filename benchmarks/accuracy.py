"""python -m benchmarks.accuracy --data DIR: what the seed network reaches on MNIST's test images.

Short runs that two cores manage: 6,400 training images for five epochs with momentum 0.9, on three
seeds, and 60,000 images for two epochs of the seed recipe, on three seeds too.
"""

import argparse
import concurrent.futures
import multiprocessing
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks import timing
from minicnn import load_data
from minicnn.machine import cores, use_cores
from minicnn.recipe import RECIPES
from minicnn.training import ensemble
from minicnn.training.trainer import Data, Job, Trainer

SHORT = [
    (replace(RECIPES["seed"], nets=1, epochs=5, momentum=0.9, seed=seed), 6_400)
    for seed in range(3)
]
LONG = [(replace(RECIPES["seed"], nets=1, epochs=2, seed=seed), 60_000) for seed in range(3)]


def accuracies(folder, runs, device):
    """[(test accuracy, and that on distorted test images) for (recipe, limit) in runs]."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        cores(), mp_context=context, initializer=use_cores, initargs=(1,)
    ) as pool:
        given = [folder] * len(runs), [device] * len(runs)
        return list(pool.map(_accuracy, *given, *zip(*runs, strict=True)))


def _accuracy(folder, device, recipe, limit):
    (x, y), (x_test, y_test) = load_data(folder)
    data = Data(x[:limit], y[:limit], x_test, y_test)
    with tempfile.TemporaryDirectory() as checkpoints:
        job = Job(recipe, data, device, "float32", Path(checkpoints))
        probabilities = ensemble.train_ensemble(job).probabilities
        trainer = Trainer(job, recipe.all_nets)
        trainer.load(Path(checkpoints) / ensemble.FINAL)
    distorted = np.concatenate(
        [
            recipe.augment((x_test[i : i + 1000, ..., None] / 255).astype(np.float32), 99, 0, i)
            for i in range(0, len(x_test), 1000)
        ]
    )
    predicted = ensemble.vote(trainer.model.predict(distorted))
    plain = np.mean(ensemble.vote(probabilities) == y_test)
    return float(plain), float(np.mean(predicted == y_test))


def main():
    parser = argparse.ArgumentParser(prog="benchmarks.accuracy", description=__doc__)
    parser.add_argument("--data", default="mnist", help="MNIST's folder (default: download it)")
    parser.add_argument("--device", choices=["numpy", "cpu"], default="cpu", help="default: cpu")
    parser.add_argument("--out", help="default: in benchmarks/results")
    arguments = parser.parse_args()
    rows = []
    for runs in (SHORT, LONG):
        results = accuracies(arguments.data, runs, arguments.device)
        recipe, images = runs[0]
        rows.append(
            {
                "images": images,
                "epochs": recipe.epochs,
                "momentum": recipe.momentum,
                "seeds": [recipe.seed for recipe, _ in runs],
                "test_accuracy": [plain for plain, _ in results],
                "distorted_test_accuracy": [distorted for _, distorted in results],
            }
        )
        print(rows[-1])
    result = {"runs": rows, "machine": timing.machine(), "versions": timing.versions()}
    timing.write(f"accuracy-{arguments.device}", result, arguments.out)


if __name__ == "__main__":
    main()
