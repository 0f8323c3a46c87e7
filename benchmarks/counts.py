"""python -m benchmarks.counts: what each kernel of a training step does, as the emulator counts it.

One step of the seed network runs on the checked emulator, which counts every access: exactly, and
without a GPU. From the counts follow the least time that a GPU of given limits takes for each
launch, and the limit that sets it. benchmarks/kernels.py measures what a GPU really takes.

With --ladder it writes a result file instead: all versions of the step side by side, the whole step
and its convolutions by pass. kernels/README.md shows it. This takes 20 minutes, most of them for
the naive version.
"""

from collections import Counter
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from math import prod
from typing import NamedTuple

import numpy as np
import pandas as pd

from benchmarks import timing
from benchmarks.tiles import compiled
from minicnn.backends import cuda, cuda_forms
from minicnn.backends.cuda_convolution import VERSIONS
from minicnn.backends.kernel import SOURCES, Program
from minicnn.backends.ops_cuda import Operations
from minicnn.command import positive
from minicnn.data.digits import draw_digits
from minicnn.emulator import SECTOR_BYTES, Counts, Emulator
from minicnn.network.layers import Conv2D
from minicnn.recipe import RECIPES
from minicnn.training.dataset import Data
from minicnn.training.trainer import Job, Trainer

# Versions of a step: three ways to convolve in float32, layer by layer; and fused blocks, in TF32
# and in bfloat16.
FUSED = {"fused": "tf32", "bfloat16": "bfloat16"}
STEPS = *VERSIONS, *FUSED


@dataclass(frozen=True)
class Limits:
    """A GPU's rates a second: bytes of memory and of cache, FLOP of its cores, of tensor cores.

    Those of tensor cores are in TF32, and in bfloat16.
    """

    memory: float
    cache: float
    arithmetic: float
    tensor: float
    tensor_bfloat16: float

    def seconds(self, row):
        """{limit: the least seconds that it allows for the counts of a Row}."""
        counts = row.counts
        tensor = self.tensor_bfloat16 if row.version == "bfloat16" else self.tensor
        return {
            "memory": (counts.bytes_read + counts.bytes_written) / self.memory,
            "cache": (counts.load_sectors + counts.store_sectors) * SECTOR_BYTES / self.cache,
            # A multiprocessor serves one wavefront, or multiplies and adds 128 times, in a clock.
            "shared": counts.shared_wavefronts * 2 * 128 / self.arithmetic,
            "arithmetic": counts.flops / self.arithmetic,
            "tensor": counts.tensor_flops / tensor,
        }


# An H200's: memory as measured on one, the cache assumed, the others from NVIDIA's datasheet.
H200 = Limits(memory=4.3e12, cache=5.5e12, arithmetic=67e12, tensor=495e12, tensor_bfloat16=990e12)


class Row(NamedTuple):
    """A launch of a step of this version: layer and pass ("" where it has none), and its counts."""

    version: str
    layer: str
    part: str
    kernel: str
    blocks: int
    threads: int
    counts: Counts


def run_step(driver, launches, nets, batch, version):
    """Run one training step of the seed network; returns the (layer, pass) of each launch.

    A launch that belongs to no layer has ("", ""). The driver must append each launch to the list
    `launches`.
    """
    recipe = replace(RECIPES["seed"], nets=nets, batch_size=batch, validation_fraction=0)
    fused = version in FUSED
    given = {"precision": FUSED[version]} if fused else {"convolution": version}
    device = Operations(driver, **given)
    job = Job(recipe, Data(*draw_digits(batch)), device, "float32", None)
    trainer = Trainer(job, recipe.all_nets)
    trainer.begin_epoch(0)
    marks, plan = [], trainer.plan

    def mark(layer="", part=""):
        """Mark the launches since the last call."""
        marks.extend([(layer, part)] * (len(launches) - len(marks)))

    def watched(function, layer_of, part):
        """The function, with its launches marked. layer_of(its arguments): the layer's name."""

        def watching(*arguments):
            mark()
            function(*arguments)
            mark(layer_of(*arguments), part)

        return watching

    if fused:
        blocks = [block.convolution.name for block in plan.network.blocks]
        plan.head = watched(plan.head, lambda *_: plan.network.dense.name, "both")
        for name in ("forward_block", "weight_gradient", "input_gradient"):
            part = name.removesuffix("_block").replace("_", " ")
            setattr(plan, name, watched(getattr(plan, name), blocks.__getitem__, part))
        rebuilt = watched(plan.rebuilt_weight_gradient, lambda: blocks[0], "weight gradient")
        plan.rebuilt_weight_gradient = rebuilt
    else:
        for node in trainer.model.nodes:
            for part in ("forward", "backward", "update"):
                function = watched(getattr(node.layer, part), lambda *_, n=node: n.name, part)
                setattr(node.layer, part, function)
    with device.session():
        trainer.step()
    mark()
    return marks


def count_step(nets, batch, version="implicit"):
    """A Row for each launch of a step, counted by the emulator.

    It runs one net, with grids for `nets`, and multiplies the counts: the net is a grid axis.
    """
    # Marked as they are handed over: launches that run together are executed a little later.
    emulator, launches = Emulator(checked=True), []
    emulator.multiprocessors = Fraction(emulator.multiprocessors, nets)  # for one net
    run = emulator.run
    emulator.run = lambda launch: (launches.append(launch), run(launch))
    marks = run_step(emulator, launches, 1, batch, version)
    rows = []
    for mark, counted in zip(marks, emulator.counted, strict=True):
        blocks, threads = nets * prod(counted.grid), prod(counted.block)
        counts = Counts(*(nets * count for count in counted.counts))
        rows.append(Row(version, *mark, counted.kernel, blocks, threads, counts))
    return rows


def activations_bytes(nets, batch):
    """Bytes of the outputs of all convolutions: one pass over the activations."""
    outputs = (n.output_shape for n in RECIPES["seed"].nodes if isinstance(n.layer, Conv2D))
    return 4 * nets * batch * sum(map(prod, outputs))


# ---- the ladder ----------------------------------------------------------------------------------

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
    """The counts of launches together, and the least time that they take one after the other."""
    total = Counts(*np.sum([row.counts for row in rows], axis=0).tolist())
    least = Counter()
    for row in rows:
        seconds = limits.seconds(row)
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


def summarize_step(version, nets, batch):
    """{"step" or pass: summary} of a version: of the whole step, and of its convolutions."""
    rows = count_step(nets, batch, version)
    found = {"step": summarize(rows, H200)}
    found["step"]["passes"] = found["step"]["memory_bytes"] / activations_bytes(nets, batch)
    for name in PASSES:
        found[name] = summarize([row for row in rows if convolution_pass(row) == name], H200)
    return found


def registers(storage=cuda_forms.TF32):
    """{kernel: registers of a thread} by NVRTC; of a kernel's forms, the one that needs most."""
    forms = cuda_forms.programs(storage)
    programs = [Program(SOURCES / file, defines) for file, defines in forms]
    if storage is cuda_forms.TF32:
        files = *SOURCES.glob("conv_*.cu"), *(SOURCES / f for f in ("gemm.cu", "rebuilt.cu"))
        programs += [Program(path) for path in files]
    found = {}
    for program in programs:
        for name, (_, _, number) in compiled(program, ARCHITECTURE).items():
            found[name] = max(found.get(name, 0), number)
    return dict(sorted(found.items()))


def ladder(asked, nets, batch):
    """The result file's content: versions `asked` counted, the others from the last result."""
    last = timing.newest("ladder-emulated") if set(asked) != set(STEPS) else None
    if last and (last["nets"], last["batch"]) != (nets, batch):
        raise ValueError("the last result has another number of nets or images")
    if last and (absent := {*STEPS} - {*asked, *last["versions_counted"]}):
        raise ValueError(f"the last result has no counts of {', '.join(sorted(absent))}")
    versions = {}
    for version in STEPS:
        if version not in asked:
            versions[version] = last["versions_counted"][version]
            continue
        versions[version] = summarize_step(version, nets, batch)
        print(f"{version}: {versions[version]['step']['seconds'] * 1e3:.2f} ms")
    return {
        "what": "a training step of the seed network, counted by the emulator",
        "nets": nets,
        "batch": batch,
        "limits": asdict(H200),
        "versions_counted": versions,
        "registers": registers(),
        "registers_bfloat16": registers(cuda_forms.BFLOAT16),
        "architecture": ARCHITECTURE,
        "machine": timing.machine(),
        "versions": {**timing.versions(), "nvrtc": ".".join(map(str, cuda.nvrtc_version()))},
    }


# ---- the command -------------------------------------------------------------------------------

LEGEND = """\
read, written: MB of distinct bytes, the least memory traffic. cache: MB of the 32-byte sectors that
the requests of warps touch. loads, stores: these sectors divided by the fewest possible.
wavefronts: passes of shared memory's banks, in thousands. excess: wavefronts divided by those
without bank conflicts. steps: tensor-core steps. us: the least time that the limits allow. limit:
the limit that sets it."""


def table(rows, limits):
    """The rows as a DataFrame with the columns that LEGEND explains."""
    lines = []
    for row in rows:
        c, seconds = row.counts, limits.seconds(row)
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


def main(argv=None):
    parser = timing.parser("counts", __doc__)
    parser.add_argument(
        "--version",
        choices=STEPS,
        default="fused",
        help="of the step: a way to convolve, layer by layer in float32; fused, in TF32 (default); "
        "or bfloat16, fused as well",
    )
    parser.add_argument(
        "--ladder",
        nargs="*",
        choices=STEPS,
        metavar="VERSION",
        help=f"count {', '.join(STEPS)}, or only those named and take the others from the last "
        "result; write a result file",
    )
    parser.add_argument("--nets", type=positive, metavar="N", default=15, help="default: 15")
    parser.add_argument(
        "--batch",
        type=positive,
        metavar="N",
        help="images of each net, a few seconds each (default: 4; --ladder: 64)",
    )
    arguments = parser.parse_args(argv)
    nets, version = arguments.nets, arguments.version
    if arguments.ladder is not None:
        try:
            result = ladder(arguments.ladder or STEPS, nets, arguments.batch or 64)
        except ValueError as error:
            parser.error(f"argument --ladder: {error}")
        timing.write("ladder-emulated", result, arguments.out)
        return
    if arguments.out:
        parser.error("argument --out: only --ladder writes a file")
    batch = arguments.batch or 4
    rows = count_step(nets, batch, version)
    shown = table(rows, H200)
    print(f"A training step. Nets: {nets}; images of each: {batch}; version: {version}.")
    print(f"{LEGEND}\n")
    print(shown.to_string(index=False, na_rep="", float_format="{:.2f}".format))
    moved = sum(row.counts.bytes_read + row.counts.bytes_written for row in rows)
    print(
        f"\n{len(rows)} launches. {moved / 1e6:.0f} MB read and written, "
        f"{moved / activations_bytes(nets, batch):.1f} times the outputs of all convolutions. "
        f"At least {shown['us'].sum():.0f} us."
    )


if __name__ == "__main__":
    main()
