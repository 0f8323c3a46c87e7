"""python -m benchmarks.ladder: the versions of convolution side by side, counted by the emulator.

All seven convolutions of a training step of the seed network, by pass. Needs no GPU; takes about a
quarter of an hour with the default batch. kernels/README.md shows the result.
"""

from collections import Counter
from dataclasses import asdict

import numpy as np

from benchmarks import timing
from benchmarks.kernels import H200, count_step
from minicnn import __version__, cuda
from minicnn.command import Parser, positive
from minicnn.cuda_convolution import VERSIONS
from minicnn.emulator import SECTOR_BYTES, Counts
from minicnn.kernel import SOURCES, Program

PASSES = "forward", "input gradient", "weight gradient"
ARCHITECTURE = "sm_90"
_OF_INPUT = "input_gradient", "gemm_right_transposed", "col2im"


def convolution_pass(row):
    """Which of PASSES a launch belongs to; None if it is no convolution's."""
    if not row.layer.startswith("conv2d") or row.kernel.startswith("activation"):
        return None
    if row.part == "forward":
        return "forward"
    of_input = any(word in row.kernel for word in _OF_INPUT)
    return "input gradient" if of_input else "weight gradient"


def summarize(rows, limits):
    """{pass: what its launches do together, and the least time they take one after the other}."""
    found = {}
    for name in PASSES:
        chosen = [row for row in rows if convolution_pass(row) == name]
        total = Counts(*np.sum([row.counts for row in chosen], axis=0).tolist())
        least = Counter()
        for row in chosen:
            seconds = limits.seconds(row.counts)
            limit = max(seconds, key=seconds.get)
            least[limit] += seconds[limit]
        found[name] = {
            "kernels": sorted({row.kernel for row in chosen}),
            "launches": len(chosen),
            "memory_bytes": total.bytes_read + total.bytes_written,
            "cache_bytes": (total.load_sectors + total.store_sectors) * SECTOR_BYTES,
            "shared_wavefronts": total.shared_wavefronts,
            "flops": total.flops,
            "seconds": sum(least.values()),
            "limit": max(least, key=least.get),
        }
    return found


def registers():
    """{kernel: registers of a thread} of all convolutions' kernels, as NVRTC compiles them."""
    found = {}
    for path in (*SOURCES.glob("conv_*.cu"), SOURCES / "gemm.cu"):
        _, log = cuda.compile_program(Program(path), ARCHITECTURE, "--ptxas-options=-v")
        found |= {name: count for name, (_, _, count) in cuda.resources(log).items()}
    return dict(sorted(found.items()))


def main():
    parser = Parser(prog="benchmarks.ladder", description=__doc__)
    parser.add_argument("--nets", type=positive, metavar="N", default=15, help="default: 15")
    parser.add_argument("--batch", type=positive, metavar="N", default=64, help="default: 64")
    parser.add_argument("--out", help="default: benchmarks/results/ladder-emulated-DATE.json")
    arguments = parser.parse_args()
    found = {}
    for version in VERSIONS:
        rows = count_step(arguments.nets, arguments.batch, version)
        found[version] = summarize(rows, H200)
        print(f"{version}: {sum(part['seconds'] for part in found[version].values()) * 1e3:.2f} ms")
    result = {
        "what": "all convolutions of a training step of the seed network, counted by the emulator",
        "nets": arguments.nets,
        "batch": arguments.batch,
        "limits": asdict(H200),
        "convolutions": found,
        "registers": registers(),
        "architecture": ARCHITECTURE,
        "machine": timing.machine(),
        "versions": {
            "minicnn": __version__,
            "nvrtc": ".".join(map(str, cuda.nvrtc_version())),
        },
    }
    timing.write("ladder-emulated", result, arguments.out)


if __name__ == "__main__":
    main()
