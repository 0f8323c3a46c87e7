"""python -m benchmarks.scaling: how throughput grows with the batch, the cores and the nets.

Training steps of the seed network, augmentation included, in one process; all sizes in turn.
"""

import argparse
from dataclasses import replace

import numpy as np

from benchmarks import timing
from benchmarks.crew import RECIPE, minicnn_step
from minicnn import __version__, ensemble, load_data, machine
from minicnn.machine import cores

BATCHES = [2**k for k in range(10)]
NETS = 1, 2, 4, 8, 15


def main():
    parser = argparse.ArgumentParser(prog="benchmarks.scaling", description=__doc__)
    parser.add_argument("--device", choices=["numpy", "cpu"], default="cpu", help="default: cpu")
    parser.add_argument("--rounds", type=int, default=7, help="default: 7")
    parser.add_argument("--seconds", type=float, default=0.5, help="a size and round, default 0.5")
    parser.add_argument("--out", help="default: benchmarks/results/scaling-DEVICE-DATE.json")
    arguments = parser.parse_args()
    (images, labels), _ = load_data("digits")
    data = ensemble.Data(images, labels)
    most = cores()
    sizes = [
        (threads, batch, nets)
        for threads in range(1, most + 1)
        for batch, nets in [*((b, 1) for b in BATCHES), *((RECIPE.batch_size, n) for n in NETS[1:])]
    ]

    def step(threads, batch, nets):
        recipe = replace(RECIPE, batch_size=batch)
        once = minicnn_step(data, recipe, arguments.device, nets)

        def on_threads():
            machine.use_cores(threads)
            once()

        return on_threads

    steps = {size: step(*size) for size in sizes}
    times = timing.alternate(steps, arguments.rounds, arguments.seconds)
    rows = [
        {"cores": c, "batch": b, "nets": n, **timing.summarize(seconds, b * n)}
        for (c, b, n), seconds in times.items()
    ]
    for row in rows:
        rate = f"{row['images_per_second']:8.0f} images a second"
        print(f"cores {row['cores']:>2}, batch {row['batch']:>3}, nets {row['nets']:>2}{rate}")
    result = {
        "what": "training steps, augmentation included, one process",
        "rates": rows,
        "machine": timing.machine(),
        "versions": {"minicnn": __version__, "numpy": np.__version__},
    }
    timing.write(f"scaling-{arguments.device}", result, arguments.out)


if __name__ == "__main__":
    main()
