"""python -m benchmarks.tilings: times every tiling of the fused step's launches on a GPU.

For each layer and pass of the seed network it times the tilings that the model of
minicnn/backends/cuda_tiles.py chooses from, and compares the model's choice with the fastest. The
model's constants were fitted to such times. Takes half a minute on an H200. --device emulated tests
the command; its times say nothing about a GPU's.
"""

import numpy as np
import pandas as pd

from benchmarks import timing
from benchmarks.kernels import make_trainer
from benchmarks.tiles import CLOCKS_A_MICROSECOND, PASSES
from minicnn.backends import cuda, cuda_tiles
from minicnn.command import positive

REPEATS = 6  # of a launch in one graph
WITHIN = 2.5  # times the model's shortest time: slower tilings are not measured


class Launcher:
    """Runs any tiling of any launch of the seed network's fused step, with the arrays of a step."""

    def __init__(self, device, nets, batch):
        self._trainer = make_trainer(device, "tf32", nets, batch, max(batch, 2000))
        self._plan, self.ops = self._trainer.plan, self._trainer.ops
        self.blocks, self._clock = self._plan.network.blocks, timing.clock_of(device)
        with self.ops.session():
            self._trainer.step()  # so that all arrays have plausible values
        self._recorded = {}
        for i in range(1, len(self.blocks)):
            for name in PASSES:
                self._plan._run = lambda *given, key=(i, name), **named: self._recorded.update(
                    {key: (given, named)}
                )
                getattr(self._plan, "forward_block" if name == "forward" else name)(i)

    def tilings(self, i, name):
        """What the model chooses from for a pass of block i, within WITHIN of the shortest."""
        block, below, batch = self.blocks[i], self.blocks[i - 1].rebuilt, self._plan.batch
        window = block.gradient_window if name == "input_gradient" else block.window
        ways = getattr(cuda_tiles, name)
        found = ways(window, block.channels, block.filters, batch, below=below)
        shortest = min(launch.clocks for launch in found)
        share = self.ops.share(len(self._trainer.nets))
        return [launch.cut(share) for launch in found if launch.clocks <= WITHIN * shortest]

    def seconds(self, i, name, launch):
        """The time of a tiling of a pass: the shortest of two."""
        (file, kernel, _), arguments = self._recorded[i, name]
        E, block = len(self._trainer.nets), self.blocks[i]
        size = {
            "forward": cuda_tiles.STATISTICS * block.filters,
            "input_gradient": cuda_tiles.SUMS * block.channels,
            "weight_gradient": block.weights,
        }[name]
        table = "table" if name == "weight_gradient" else "tables"
        arguments = {
            **arguments,
            table: self.ops.to_device(np.array(launch.tables, np.int32)),
            "parts": self.ops.empty((E, launch.parts, size), np.float32),
        }
        if launch.taps:
            sizes = block.channels, block.filters
            slots = cuda_tiles.weight_slots(launch, *sizes[:: 1 if name == "forward" else -1])
            count = len(slots) * cuda_tiles.CHUNK * cuda_tiles.packed_width(launch)
            arguments["packed"] = self.ops.zeros((E, count), np.float32)

        def run():
            for _ in range(REPEATS):
                self.ops.launch(
                    file, kernel, launch.grid, (launch.threads,), **arguments, t=launch.tiling,
                    shared_bytes=launch.shared_bytes, defines=launch.defines,
                )  # fmt: skip

        with self.ops.session():
            run()
            graph, times = self.ops.capture(run), []
            for _ in range(2):
                begin = self._clock.mark()
                graph()
                times.append(self._clock.seconds(begin, self._clock.mark()) / REPEATS)
        return min(times)


def measure(device, nets, batch):
    """[a row for each tiling that was timed]: layer, pass, form, tile, seconds, the model's."""
    launcher, rows = Launcher(device, nets, batch), []
    for i, block in enumerate(launcher.blocks[1:], 1):
        for name in PASSES:
            for launch in launcher.tilings(i, name):
                t = launch.tiling
                rows.append(
                    {
                        "layer": block.convolution.name,
                        "pass": name.replace("_", " "),
                        "form": " ".join(launch.defines),
                        "images": t["images"],
                        "rows": t["rows"],
                        "channel_warps": t["channel_warps"],
                        "grid": list(launch.grid),
                        "shared_bytes": launch.shared_bytes,
                        "seconds": launcher.seconds(i, name, launch),
                        "model_seconds": launch.clocks / CLOCKS_A_MICROSECOND / 1e6,
                    }
                )
    return rows


def compared(rows):
    """A table: the time of the fastest tiling of each pass, and of the model's choice."""
    found = []
    for (layer, name), of in pd.DataFrame(rows).groupby(["layer", "pass"], sort=False):
        chosen = of.loc[of["model_seconds"].idxmin(), "seconds"]
        row = layer, name, len(of), 1e6 * of["seconds"].min(), 1e6 * chosen
        found.append(row)
    return pd.DataFrame(found, columns=["layer", "pass", "tilings", "fastest us", "chosen us"])


def main(argv=None):
    parser = timing.parser("tilings", __doc__)
    parser.add_argument("--batch", type=positive, metavar="N", default=64, help="default: 64")
    parser.add_argument("--nets", type=positive, metavar="N", default=15, help="default: 15")
    parser.add_argument("--device", choices=["cuda", "emulated"], default="cuda")
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and cuda.problem():
        parser.error(f"argument --device: {cuda.problem()}")
    rows = measure(arguments.device, arguments.nets, arguments.batch)
    table = compared(rows)
    print(table.to_string(index=False, float_format="{:.1f}".format))
    chosen, fastest = (table[name].sum() for name in ("chosen us", "fastest us"))
    print(f"all: {chosen:.0f} us chosen, {fastest:.0f} us fastest")
    result = {
        "what": "the time of each tiling that the model of cuda_tiles.py chooses from",
        "nets": arguments.nets,
        "batch": arguments.batch,
        "tilings": rows,
        "machine": timing.machine(arguments.device),
        "versions": timing.versions("cupy-cuda12x", "cupy-cuda13x"),
    }
    timing.write(f"tilings-{arguments.device}", result, arguments.out)


if __name__ == "__main__":
    main()
