"""python -m benchmarks.scaling: throughput and memory by batch size, nets, cores and processes.

Training steps of the seed network, augmentation included. Each size runs in its own process, pinned
to its cores; the sizes take turns. Memory is the peak of the process, Python and the data set
included; on a GPU, what CuPy has allocated.

With --workers, whole trainings instead: as many nets as there are cores, in 1, 2, ... processes,
validation and the start of the processes included. All must give the same bits.
"""

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks import timing
from benchmarks.contenders import Contender
from benchmarks.crew import RECIPE, Crew, NotRunningError
from minicnn import load_data, machine
from minicnn.backends import cuda
from minicnn.command import positive, positive_number
from minicnn.training import checkpoint, ensemble
from minicnn.training.dataset import Data
from minicnn.training.trainer import Job, steps_per_epoch

BATCHES = [2**k for k in range(10)]
NETS = 1, 2, 4, 8, 15, 30


def sizes(device, quick):
    """[(cores, batch, nets), ...]: one net with any batch, the recipe's batch with any nets."""
    most = machine.cores()
    cores = [2**k for k in range(most.bit_length()) if 2**k < most] + [most]
    if device != "cpu":  # numpy uses one core; on a GPU the cores do not matter
        cores = cores[-1:] if device == "cuda" else cores[:1]
    batches, nets = (BATCHES[::4], NETS[:2]) if quick else (BATCHES, NETS)
    varied = [(b, 1) for b in batches] + [(RECIPE.batch_size, n) for n in nets]
    return [(c, b, n) for c in cores for b, n in dict.fromkeys(varied)]


def measure(device, asked, rounds, seconds):
    """A row for each size: median and spread of images a second, and bytes of memory.

    Raises NotRunningError where a size does not run, for lack of memory, say.
    """
    crews = {}
    try:
        for size in tqdm(asked, desc="processes", file=sys.stderr):
            cores, batch, nets = size
            contender = Contender("minicnn", "minicnn_net", device, nets)
            recipe = replace(RECIPE, batch_size=batch)
            crews[size] = Crew(contender, 1, cores, jobs=("train",), recipe=recipe)
            crews[size].begin()
            crews[size].differences()  # waits until it is ready
            crews[size].warm_up("train", seconds)
        rates = {size: [] for size in crews}
        for _ in tqdm(range(rounds), desc="rounds", file=sys.stderr):
            for size, crew in crews.items():
                rates[size].append(crew.images_per_second("train", seconds))
        return [
            {
                "cores": cores,
                "batch": batch,
                "nets": nets,
                "memory_bytes": crew.peak_memory()[0],
                **timing.spread("images_per_second", rates[cores, batch, nets]),
            }
            for (cores, batch, nets), crew in crews.items()
        ]
    finally:
        for crew in crews.values():
            crew.close()


def measure_workers(recipe, data, device, rounds):
    """{processes: median and spread of images a second} of whole trainings, in turn.

    Raises AssertionError where the number of processes changes a weight.
    """
    steps = recipe.nets * recipe.epochs * steps_per_epoch(recipe, len(data.train_images))
    seconds = {workers: [] for workers in range(1, recipe.nets + 1)}
    weights = []
    for _ in range(rounds):
        for workers, measured in seconds.items():
            with tempfile.TemporaryDirectory() as folder:
                job = Job(recipe, data, device, "float32", Path(folder))
                start = time.perf_counter()
                ensemble.train_ensemble(job, workers)
                measured.append(time.perf_counter() - start)
                weights.append(checkpoint.load(Path(folder) / ensemble.FINAL)[0]["params"])
            assert np.array_equal(weights[0], weights[-1]), "processes changed the result"
    return {w: timing.rates(measured, steps * recipe.batch_size) for w, measured in seconds.items()}


def _workers_result(device, rounds, quick):
    (images, labels), _ = load_data("digits")
    images, labels = (images[:640], labels[:640]) if quick else (images, labels)
    recipe = replace(RECIPE, nets=machine.cores(), epochs=1 if quick else 3)
    rates = measure_workers(recipe, Data(images, labels), device, rounds)
    one = rates[1]["images_per_second"]
    for workers, rate in rates.items():
        print(
            f"{workers} process(es){rate['images_per_second']:8.0f} images a second, "
            f"{rate['images_per_second'] / one:.2f} times one"
        )
    return {
        "what": f"training {recipe.nets} nets for {recipe.epochs} epochs of {len(images)} images",
        "processes": rates,
    }


def _sizes_result(device, rounds, seconds, quick):
    rows = measure(device, sizes(device, quick), rounds, seconds)
    for row in rows:
        print(
            f"cores {row['cores']:>2}, batch {row['batch']:>3}, nets {row['nets']:>2}"
            f"{row['images_per_second']:8.0f} images a second"
            f"{(row['memory_bytes'] or 0) / 1e6:8.0f} MB"
        )
    return {
        "what": "training steps of the seed network, augmentation included, one process a size",
        "rates": rows,
    }


def main(argv=None):
    parser = timing.parser("scaling", __doc__, "few sizes, about ten seconds")
    parser.add_argument(
        "--device", choices=["numpy", "cpu", "cuda"], default="cpu", help="default: cpu"
    )
    parser.add_argument(
        "--workers", action="store_true", help="whole trainings by the number of processes"
    )
    parser.add_argument("--rounds", type=positive, metavar="N", help="default: 7; quick: 1")
    parser.add_argument(
        "--seconds",
        type=positive_number,
        metavar="S",
        help="of a size in a round (default: 0.5; quick: 0.1)",
    )
    arguments = parser.parse_args(argv)
    device, quick = arguments.device, arguments.quick
    if device == "cuda" and arguments.workers:
        parser.error("argument --workers: one process trains all nets on a GPU")
    if device == "cuda" and cuda.problem():
        parser.error(f"argument --device: {cuda.problem()}")
    rounds = arguments.rounds or (1 if quick else 7)
    try:
        if arguments.workers:
            result = _workers_result(device, rounds, quick)
        else:
            seconds = arguments.seconds or (0.1 if quick else 0.5)
            result = _sizes_result(device, rounds, seconds, quick)
    except NotRunningError as error:
        parser.error(str(error))
    result |= {"machine": timing.machine(device), "versions": timing.versions()}
    if arguments.out or not quick:
        kind = "workers" if arguments.workers else "scaling"
        timing.write(f"{kind}-{device}", result, arguments.out)


if __name__ == "__main__":
    main()
