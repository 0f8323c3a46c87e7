"""python -m benchmarks.ladder: the versions of a training step side by side, as counted.

The emulator counts a step of the seed network, all of it and its convolutions by pass. Needs no
GPU; takes 20 minutes with the default batch, most of them for the naive version. kernels/README.md
shows the result.
"""

from collections import Counter
from dataclasses import asdict

import numpy as np

from benchmarks import timing
from benchmarks.counts import H200, STEPS, activations_bytes, count_step
from minicnn.backends import cuda, cuda_tiles
from minicnn.backends.kernel import SOURCES, Program
from minicnn.command import Parser, positive
from minicnn.emulator import SECTOR_BYTES, Counts

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
    """What launches do together, and the least time they take one after the other."""
    total = Counts(*np.sum([row.counts for row in rows], axis=0).tolist())
    least = Counter()
    for row in rows:
        seconds = limits.seconds(row.counts)
        limit = max(seconds, key=seconds.get)
        least[limit] += seconds[limit]
    return {
        "kernels": sorted({row.kernel for row in rows}),
        "launches": len(rows),
        "memory_bytes": total.bytes_read + total.bytes_written,
        "cache_bytes": (total.load_sectors + total.store_sectors) * SECTOR_BYTES,
        "shared_wavefronts": total.shared_wavefronts,
        "flops": total.flops,
        "tensor_flops": total.tensor_flops,
        "seconds": sum(least.values()),
        "limit": max(least, key=least.get),
    }


def count(version, nets, batch):
    """A version's summaries: of the whole step, and of its convolutions by pass."""
    rows = count_step(nets, batch, version)
    found = {"step": summarize(rows, H200)}
    found["step"]["passes"] = found["step"]["memory_bytes"] / activations_bytes(nets, batch)
    for name in PASSES:
        found[name] = summarize([row for row in rows if convolution_pass(row) == name], H200)
    return found


def registers():
    """{kernel: registers of a thread}, as NVRTC compiles them; the most of those of all forms."""
    programs = [Program(path) for path in (*SOURCES.glob("conv_*.cu"), SOURCES / "gemm.cu")]
    programs += [Program(SOURCES / "block_first.cu")]
    programs += [Program(SOURCES / file, defines) for file, defines in cuda_tiles.programs()]
    found = {}
    for program in programs:
        _, log = cuda.compile_program(program, ARCHITECTURE, "--ptxas-options=-v")
        for name, (_, _, number) in cuda.resources(log).items():
            found[name] = max(found.get(name, 0), number)
    return dict(sorted(found.items()))


def main():
    parser = Parser(prog="benchmarks.ladder", description=__doc__)
    parser.add_argument("--nets", type=positive, metavar="N", default=15, help="default: 15")
    parser.add_argument("--batch", type=positive, metavar="N", default=64, help="default: 64")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=STEPS,
        metavar="VERSION",
        help=f"of {', '.join(STEPS)}; the others' counts are those of the last result",
    )
    parser.add_argument("--out", help="default: in benchmarks/results")
    arguments = parser.parse_args()
    last = timing.newest("ladder-emulated") if arguments.only else {}
    same = all(last.get(name) == getattr(arguments, name) for name in ("nets", "batch"))
    if arguments.only and not same:
        parser.error("argument --only: the last result is of another number of nets or images")
    versions = {}
    for version in STEPS:
        if arguments.only and version not in arguments.only:
            versions[version] = last["versions_counted"][version]
            continue
        versions[version] = count(version, arguments.nets, arguments.batch)
        print(f"{version}: {versions[version]['step']['seconds'] * 1e3:.2f} ms")
    result = {
        "what": "a training step of the seed network, counted by the emulator",
        "nets": arguments.nets,
        "batch": arguments.batch,
        "limits": asdict(H200),
        "versions_counted": versions,
        "registers": registers(),
        "architecture": ARCHITECTURE,
        "machine": timing.machine(),
        "versions": {
            **timing.versions(),
            "nvrtc": ".".join(map(str, cuda.nvrtc_version())),
        },
    }
    timing.write("ladder-emulated", result, arguments.out)


if __name__ == "__main__":
    main()
