"""python -m benchmarks.tiles: how the fused kernels cut each layer's work (minicnn/tiles.py).

For the seed network, with what the compiler says of registers and spills. Needs NVRTC, but no GPU.
kernels/README.md shows the result.
"""

import pandas as pd

from benchmarks import timing
from minicnn.backends import cuda, cuda_blocks
from minicnn.backends.kernel import SOURCES, Program
from minicnn.command import Parser, positive
from minicnn.recipe import RECIPES

ARCHITECTURES = "sm_80", "sm_90"
CLOCKS_A_MICROSECOND = 1755  # an H200's
PASSES = "forward", "input_gradient", "weight_gradient"


def choices(batch):
    """A dict for each launch of the seed network's blocks: layer, pass, tile, grid, ..."""
    rows = []
    for block in cuda_blocks.fusion(RECIPES["seed"].nodes, batch).blocks:
        for name in PASSES:
            launch = getattr(block, name)
            if launch is None:
                continue
            t, forms = launch.tiling, dict(define.split("=") for define in launch.defines)
            images = f"{t['images']} images" if t["images"] > 1 else f"{t['rows']} rows"
            rows.append(
                {
                    "layer": block.convolution.name,
                    "pass": name.replace("_", " "),
                    "tile": "1 image" if (t["images"], t["bands"]) == (1, 1) else images,
                    "warps": launch.threads // 32,
                    "warp_pixels": 8 * int(forms.get("FORM_GROUPS", 0)),
                    "warp_channels": 32 if "FORM_GROUPS" in forms else 0,
                    "grid": launch.grid,
                    "shared_bytes": launch.shared_bytes,
                    "microseconds": launch.clocks / CLOCKS_A_MICROSECOND,
                    **_compiled(name, launch, block.first),
                }
            )
    return rows


def _compiled(name, launch, first):
    """The registers of a thread, and the bytes that it has in memory instead, by architecture."""
    program = Program(SOURCES / f"block_{'first' if first else name}.cu", launch.defines)
    kernel = f"block_first_{name}" if first else f"block_{name}"
    found = {"registers": [], "spilled": []}
    for architecture in ARCHITECTURES:
        _, log = cuda.compile_program(program, architecture, "--ptxas-options=-v")
        stack, spilled, registers = cuda.resources(log)[kernel]
        found["registers"].append(registers)
        found["spilled"].append(stack + spilled)
    return found


def main():
    parser = Parser(prog="benchmarks.tiles", description=__doc__)
    parser.add_argument("--batch", type=positive, metavar="N", default=64, help="default: 64")
    parser.add_argument("--out", help="default: in benchmarks/results")
    arguments = parser.parse_args()
    rows = choices(arguments.batch)
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.1f}".format))
    result = {
        "what": "how fused kernels cut their work, by the model of minicnn/tiles.py",
        "batch": arguments.batch,
        "architectures": ARCHITECTURES,
        "launches": rows,
        "microseconds": sum(row["microseconds"] for row in rows),
        "machine": timing.machine(),
        "versions": {**timing.versions(), "nvrtc": ".".join(map(str, cuda.nvrtc_version()))},
    }
    timing.write("tiles", result, arguments.out)


if __name__ == "__main__":
    main()
