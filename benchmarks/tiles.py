"""python -m benchmarks.tiles: how each layer's fused kernels are tiled, as compiled.

For the seed network: the choices of minicnn/backends/cuda_tiles.py, with the registers and spills
that the compiler reports; the grids of 15 nets and of one, and how long the model expects them to
take on an H200. Needs NVRTC, but no GPU. kernels/README.md shows the result.
"""

import numpy as np
import pandas as pd

from benchmarks import timing
from minicnn.backends import cuda, cuda_blocks
from minicnn.backends.cuda_costs import MULTIPROCESSORS, NETS
from minicnn.backends.cuda_forms import STORAGES
from minicnn.backends.kernel import SOURCES, Program
from minicnn.command import positive
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
            alone = launch.cut(MULTIPROCESSORS)
            t, forms = launch.tiling, dict(define.split("=") for define in launch.defines)
            images = f"{t['images']} images" if t["images"] > 1 else f"{t['rows']} rows"
            rows.append(
                {
                    "layer": block.convolution.name,
                    "pass": name.replace("_", " "),
                    "form": " ".join(launch.defines),
                    "tile": "1 image" if (t["images"], t["bands"]) == (1, 1) else images,
                    "warps": launch.threads // 32,
                    "warp_pixels": 8 * int(forms.get("FORM_GROUPS", 0)),
                    "warp_channels": 32 if "FORM_GROUPS" in forms else 0,
                    **{key: t[key] for key in ("images", "rows", "channel_warps")},
                    "grid": launch.grid,
                    "grid_of_one_net": alone.grid,
                    "shared_bytes": launch.shared_bytes,
                    "microseconds": launch.clocks / CLOCKS_A_MICROSECOND,
                    "microseconds_of_one_net": launch.clocks_alone / CLOCKS_A_MICROSECOND,
                    **_resources(block, name, launch),
                }
            )
    return rows


def totals(batch):
    """{precision: {nets: [microseconds of the blocks' launches, the same if two run together]}}.

    By the model, without that of the first layer. A block's two gradients run together.
    """
    found = {}
    for storage in STORAGES:
        blocks = cuda_blocks.fusion(RECIPES["seed"].nodes, batch, storage).blocks[1:]
        found[storage.precision] = {}
        for nets, clocks in ((NETS, "clocks"), (1, "clocks_alone")):
            forward, *gradients = (
                np.array([getattr(getattr(b, name), clocks) for b in blocks]) for name in PASSES
            )
            apart, together = sum(gradients), np.maximum(*gradients)
            both = [(forward + more).sum() / CLOCKS_A_MICROSECOND for more in (apart, together)]
            found[storage.precision][nets] = both
    return found


def _resources(block, name, launch):
    """Registers of a thread, and its bytes of stack and spills, on each of ARCHITECTURES."""
    file, kernel = f"block_{name}.cu", f"block_{name}"
    if block.rebuilt:
        file, kernel = "rebuilt.cu", "rebuilt_moments"
    elif block.first:
        file, kernel = "block_first.cu", f"block_first_{name}"
    program = Program(SOURCES / file, launch.defines)
    found = [compiled(program, architecture)[kernel] for architecture in ARCHITECTURES]
    return {
        "registers": [registers for _, _, registers in found],
        "spilled": [stack + spilled for stack, spilled, _ in found],
    }


def compiled(program, architecture):
    """{kernel: (bytes of stack, of spills, registers)} of a program, as the compiler reports."""
    return cuda.resources(cuda.compile_program(program, architecture, "--ptxas-options=-v")[1])


def main():
    parser = timing.parser("tiles", __doc__)
    parser.add_argument("--batch", type=positive, metavar="N", default=64, help="default: 64")
    arguments = parser.parse_args()
    rows = choices(arguments.batch)
    print(
        pd.DataFrame(rows).drop(columns="form").to_string(index=False, float_format="{:.1f}".format)
    )
    for precision, of_nets in totals(arguments.batch).items():
        for nets, (apart, together) in of_nets.items():
            print(
                f"{precision}, nets: {nets}: {apart:.0f} us, {together:.0f} if a block's two "
                "gradients run together"
            )
    result = {
        "what": "how fused kernels are tiled, by the model of minicnn/backends/cuda_tiles.py",
        "batch": arguments.batch,
        "architectures": ARCHITECTURES,
        "launches": rows,
        "microseconds": totals(arguments.batch),
        "machine": timing.machine(),
        "versions": {**timing.versions(), "nvrtc": ".".join(map(str, cuda.nvrtc_version()))},
    }
    timing.write("tiles", result, arguments.out)


if __name__ == "__main__":
    main()
