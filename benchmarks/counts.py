"""python -m benchmarks.counts: what each kernel of a training step does, and what that costs.

One step of the seed network runs on the checked emulator, which counts every access: exactly, the
same each time, and without a GPU. From the counts follows the least time that a GPU of given limits
takes for each launch, and which of them sets it. What a GPU takes in fact, benchmarks/kernels.py
measures.
"""

from dataclasses import dataclass, replace
from itertools import repeat
from math import prod
from typing import NamedTuple

import numpy as np
import pandas as pd

from minicnn.backends.cuda_convolution import VERSIONS
from minicnn.backends.ops_cuda import Operations
from minicnn.command import Parser, positive
from minicnn.data.digits import draw_digits
from minicnn.emulator import SECTOR_BYTES, Counts, Emulator
from minicnn.network.layers import Conv2D
from minicnn.recipe import RECIPES
from minicnn.training.trainer import Data, Job, Trainer

# Of a step: the three ways to convolve in float32, layer by layer; and fused blocks in TF32.
STEPS = *VERSIONS, "fused"


@dataclass(frozen=True)
class Limits:
    """What a GPU does in a second: bytes of memory and cache, operations, those of tensor cores."""

    memory: float
    cache: float
    arithmetic: float
    tensor: float

    def seconds(self, counts):
        """{limit: the seconds that it alone sets for what was counted}."""
        return {
            "memory": (counts.bytes_read + counts.bytes_written) / self.memory,
            "cache": (counts.load_sectors + counts.store_sectors) * SECTOR_BYTES / self.cache,
            # In the clock that serves a wavefront a multiprocessor multiplies and adds 128 times.
            "shared": counts.shared_wavefronts * 2 * 128 / self.arithmetic,
            "arithmetic": counts.flops / self.arithmetic,
            "tensor": counts.tensor_flops / self.tensor,
        }


# About an H200's: memory as measured on one, the cache assumed, the others from NVIDIA's datasheet.
H200 = Limits(memory=4.3e12, cache=5.5e12, arithmetic=67e12, tensor=495e12)


class Row(NamedTuple):
    """A launch of the step: the layer and the pass that made it, if one did, and its counts."""

    layer: str
    part: str
    kernel: str
    blocks: int
    threads: int
    counts: Counts


class _Marks(list):
    """The (layer, pass) of each launch so far; those that no layer's pass makes have none."""

    def __init__(self, launches):
        super().__init__()
        self._launches = launches

    def up_to_now(self, layer="", part=""):
        """Says whose the launches since the last call are."""
        self += repeat((layer, part), len(self._launches) - len(self))

    def watch(self, function, layer, part):
        """The function, its launches marked."""

        def watched(*arguments):
            self.up_to_now()
            function(*arguments)
            self.up_to_now(layer, part)

        return watched


class _Watched:
    """A layer whose passes note which launches are theirs."""

    def __init__(self, layer, name, marks):
        self._layer, self._name, self._marks = layer, name, marks

    def __getattr__(self, part):
        return self._marks.watch(getattr(self._layer, part), self._name, part)


def _watch_blocks(plan, marks):
    """The same of a plan of fused blocks."""
    blocks = [block.convolution.name for block in plan.network.blocks]
    plan.head = marks.watch(plan.head, plan.network.dense.name, "both")
    for part in ("forward_block", "weight_gradient", "input_gradient"):
        function = getattr(plan, part)

        def watched(i, function=function, part=part):
            marks.watch(function, blocks[i], part.removesuffix("_block").replace("_", " "))(i)

        setattr(plan, part, watched)


def run_step(driver, launches, nets, batch, version):
    """One training step of the seed network: the (layer, pass) of each of its launches.

    The driver adds each launch to the list `launches`.
    """
    recipe = replace(RECIPES["seed"], nets=nets, batch_size=batch, validation_fraction=0)
    fused = version == "fused"
    device = Operations(driver, precision="tf32") if fused else Operations(driver, version)
    job = Job(recipe, Data(*draw_digits(batch)), device, "float32", None)
    trainer = Trainer(job, recipe.all_nets)
    trainer.begin_epoch(0)
    marks = _Marks(launches)
    if fused:
        _watch_blocks(trainer.plan, marks)
    else:
        names = {id(node.layer): node.name for node in trainer.model.nodes}
        for passes in (trainer.plan.passes, trainer.plan.backward_passes):
            passes[:] = [(_Watched(p, names[id(p)], marks), frame) for p, frame in passes]
    with device.session():
        trainer.step()
    marks.up_to_now()
    return marks


def count_step(nets, batch, version="implicit"):
    """A Row for each launch of a step, counted by the emulator.

    It runs one net; since the net is a grid axis, `nets` of them make so many times its counts.
    """
    emulator = Emulator(checked=True)
    marks = run_step(emulator, emulator.counted, 1, batch, version)
    rows = []
    for mark, counted in zip(marks, emulator.counted, strict=True):
        blocks, threads = nets * prod(counted.grid), prod(counted.block)
        counts = Counts(*(nets * count for count in counted.counts))
        rows.append(Row(*mark, counted.kernel, blocks, threads, counts))
    return rows


def activations_bytes(nets, batch):
    """What the outputs of all convolutions take: one pass over the activations."""
    outputs = (n.output_shape for n in RECIPES["seed"].nodes if isinstance(n.layer, Conv2D))
    return 4 * nets * batch * sum(map(prod, outputs))


# ---- the command -------------------------------------------------------------------------------

LEGEND = """\
read, written: MB of distinct bytes, which memory must give and take at least; cache: MB in sectors
of 32 bytes that the requests of warps touch; loads, stores: how many times the sectors that their
bytes would fill. wavefronts: turns of shared memory's banks, in thousands; excess: how many times
those without conflicts. steps: those of tensor cores. us: the least that the limits allow, and the
limit that sets it."""


def table(rows, limits):
    """The rows as a DataFrame, which LEGEND explains."""
    lines = []
    for row in rows:
        c, seconds = row.counts, limits.seconds(row.counts)
        limit = max(seconds, key=seconds.get)
        lines.append(
            {
                "layer": row.layer,
                "kernel": row.kernel,
                "blocks": row.blocks,
                "threads": row.threads,
                "read": c.bytes_read / 1e6,
                "written": c.bytes_written / 1e6,
                "cache": (c.load_sectors + c.store_sectors) * SECTOR_BYTES / 1e6,
                "loads": _excess(c.load_sectors, c.ideal_load_sectors),
                "stores": _excess(c.store_sectors, c.ideal_store_sectors),
                "wavefronts": c.shared_wavefronts / 1e3,
                "excess": _excess(c.shared_wavefronts, c.ideal_shared_wavefronts),
                "barriers": c.barriers,
                "MFLOP": c.flops / 1e6,
                "steps": c.tensor_steps,
                "us": 1e6 * seconds[limit],
                "limit": limit,
            }
        )
    return pd.DataFrame(lines)


def _excess(count, least):
    return count / least if least else np.nan


_LIMITS = (
    ("memory", 1e9, "GB/s"),
    ("cache", 1e9, "GB/s"),
    ("arithmetic", 1e12, "TFLOP/s"),
    ("tensor", 1e12, "TFLOP/s of tensor cores in TF32"),
)


def _parser():
    parser = Parser(prog="benchmarks.counts", description=__doc__)
    parser.add_argument(
        "--version",
        choices=STEPS,
        default="fused",
        help="of the step: its convolutions layer by layer in float32, or fused (default)",
    )
    parser.add_argument("--nets", type=positive, metavar="N", default=15, help="default: 15")
    parser.add_argument(
        "--batch",
        type=positive,
        metavar="N",
        default=4,
        help="images of each net (default: 4; the emulator takes a few seconds for each)",
    )
    parser.add_argument("--csv", metavar="FILE", help="write all counts there")
    group = parser.add_argument_group("limits of a GPU", "the defaults are about an H200's")
    for name, unit, text in _LIMITS:
        default = round(getattr(H200, name) / unit)
        group.add_argument(
            f"--{name}", type=positive, metavar="N", default=default, help=f"{text} ({default})"
        )
    return parser


def main(argv=None):
    arguments = _parser().parse_args(argv)
    nets, batch, version = arguments.nets, arguments.batch, arguments.version
    limits = Limits(**{name: unit * getattr(arguments, name) for name, unit, _ in _LIMITS})
    rows = count_step(nets, batch, version)
    shown = table(rows, limits)
    print(f"A training step. Nets: {nets}; images of each: {batch}; version: {version}.")
    print(f"{LEGEND}\n")
    print(shown.to_string(index=False, na_rep="", float_format="{:.2f}".format))
    moved = sum(row.counts.bytes_read + row.counts.bytes_written for row in rows)
    print(
        f"\n{len(rows)} launches. {moved / 1e6:.0f} MB read and written, "
        f"{moved / activations_bytes(nets, batch):.1f} times the outputs of all convolutions. "
        f"At least {shown['us'].sum():.0f} us."
    )
    if arguments.csv:
        names = pd.DataFrame(rows).drop(columns="counts")
        counts = pd.DataFrame([row.counts for row in rows])
        pd.concat([names, counts], axis=1).to_csv(arguments.csv, index=False)


if __name__ == "__main__":
    main()
