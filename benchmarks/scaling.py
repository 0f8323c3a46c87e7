"""python -m benchmarks.scaling: throughput and memory by the batch, the nets and the cores.

Training steps of the seed network, augmentation included. Each size has a process of its own, which
is pinned to as many cores as it may use; all take turns. Memory is the most that the process has
taken, Python and the data set included; on a GPU, what CuPy has taken of the GPU's.
"""

import sys
from dataclasses import replace

from tqdm import tqdm

from benchmarks import timing
from benchmarks.contenders import Contender
from benchmarks.crew import RECIPE, Crew, NotRunningError
from minicnn import machine
from minicnn.backends import cuda
from minicnn.command import Parser, positive, positive_number

BATCHES = [2**k for k in range(10)]
NETS = 1, 2, 4, 8, 15, 30


def sizes(device, quick):
    """[(cores, batch, nets), ...]: one net with any batch, the recipe's batch with any nets."""
    most = machine.cores()
    cores = [2**k for k in range(most.bit_length()) if 2**k < most] + [most]
    if device != "cpu":  # one core a process, or a GPU
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


def main(argv=None):
    parser = Parser(prog="benchmarks.scaling", description=__doc__)
    parser.add_argument(
        "--device", choices=["numpy", "cpu", "cuda"], default="cpu", help="default: cpu"
    )
    parser.add_argument("--rounds", type=positive, metavar="N", help="default: 7; quick: 1")
    parser.add_argument(
        "--seconds",
        type=positive_number,
        metavar="S",
        help="of a size in a round (0.5; quick: 0.1)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="few sizes, in some ten seconds; a file is written only where --out is given",
    )
    parser.add_argument("--out", metavar="FILE", help="default: in benchmarks/results")
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and cuda.problem():
        parser.error(f"argument --device: {cuda.problem()}")
    quick = arguments.quick
    rounds, seconds = arguments.rounds or (1 if quick else 7), arguments.seconds
    try:
        rows = measure(
            arguments.device,
            sizes(arguments.device, quick),
            rounds,
            seconds or (0.1 if quick else 0.5),
        )
    except NotRunningError as error:
        parser.error(str(error))
    for row in rows:
        print(
            f"cores {row['cores']:>2}, batch {row['batch']:>3}, nets {row['nets']:>2}"
            f"{row['images_per_second']:8.0f} images a second"
            f"{(row['memory_bytes'] or 0) / 1e6:8.0f} MB"
        )
    result = {
        "what": "training steps of the seed network, augmentation included, one process a size",
        "rates": rows,
        "machine": timing.machine(arguments.device),
        "versions": timing.versions(),
    }
    if arguments.out or not quick:
        timing.write(f"scaling-{arguments.device}", result, arguments.out)


if __name__ == "__main__":
    main()
