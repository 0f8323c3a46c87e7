"""python -m benchmarks.readme [DIR ...]: write the tables and figures of the documents.

A table stands between `<!-- NAME -->` and `<!-- end of NAME -->`, in any of DOCUMENTS; TABLES has
the names. It shows the newest result of its kind in benchmarks/results.

DIR is the folder of a study, or of a run of `python -m minicnn.train`, the demo: its findings first
become result files. Do this on the machine that made them.
"""

import importlib
import os
import re
from pathlib import Path

from benchmarks import compilers as nvrtcs
from benchmarks import frameworks, kernels, limits, storage_tables, timing
from benchmarks import rungs as rungs_of_c
from benchmarks.keep import keep
from benchmarks.studies import accuracies, studies
from benchmarks.timing import paragraphs
from minicnn.command import Parser
from minicnn.files import DataError

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    ROOT / path
    for path in (
        "README.md",
        "benchmarks/README.md",
        "minicnn/studies/README.md",
        "kernels/README.md",
        "tests/README.md",
    )
]


def render(path):
    """The text of a document with every table made anew.

    Raises ValueError for a marker that has no end, or that names no table.
    """
    text = path.read_text()
    for name in re.findall(r"^<!-- (?:end of )?(\w+) -->$", text, re.M):
        if name not in TABLES:
            raise ValueError(f"{path}: <!-- {name} -->, expected one of {', '.join(TABLES)}")
    for name, table in TABLES.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if (text.count(begin), text.count(end)) not in ((0, 0), (1, 1)):
            raise ValueError(f"{path}: expected one {begin} and one {end}")
        if begin in text:
            before, rest = text.split(begin)
            old, after = rest.split(end)
            text = f"{before}{begin}\n\n{_relative(table(), path.parent)}\n\n{end}{after}"
    return text


def _relative(text, folder):
    """Markdown whose links start at the repository's root, as a document in `folder` needs them."""
    return re.sub(
        r"\]\(([^):#]+)\)",
        lambda link: f"]({Path(os.path.relpath(ROOT / link[1], folder)).as_posix()})",
        text,
    )


# ---- what the project reaches --------------------------------------------------------------------


def summary():
    """The results in brief: accuracy, the demo's time, images a second."""
    rows, found = accuracies(), timing.newest("frameworks-cpu")
    for what, of_what in frameworks.compared(found["rates"]).items():
        ours, theirs = frameworks.fastest(
            [row for row in of_what.values() if row["precision"] == "float32"]
        )
        shown = [f"{row['images_per_second']:,.0f}" for row in (ours, theirs)]
        times = f"{ours['images_per_second'] / theirs['images_per_second']:.2f} times"
        rows.append(
            [
                f"{what}, images a second",
                f"**{shown[0]}**: {times} {theirs['contender']} ({shown[1]})",
                f"`{ours['contender'].removeprefix('minicnn ')}`, float32, "
                f"{_cores(found['machine'])}",
            ]
        )
    for job in (*timing.optional("job-cpu"), *timing.optional("job-cuda")):
        run, where = job["summary"], job["machine"]
        of = f"TF32, {where['gpu']}" if "gpu" in where else f"float32, {_cores(where)}"
        seconds = run["seconds"]
        time = f"{seconds:.0f} s" if seconds < 300 else f"{seconds / 60:.0f} minutes"
        rows.append(
            [
                "the whole job, 25 million images",
                f"**{time}**, {run['images_per_second']:,.0f} images a second; "
                f"{100 * run['ensemble_test_accuracy']:.2f} % right",
                f"`{run['device']}`, {of}",
            ]
        )
    for demo in timing.optional("demo"):
        seconds, rate = demo["summary"]["seconds"], demo["summary"]["images_per_second"]
        accuracy = demo["summary"]["ensemble_test_accuracy"]
        rows.append(
            [
                "the demo: 4 nets, 3 epochs",
                f"**{seconds:.0f} s**, {rate:,.0f} images a second, {100 * accuracy:.2f} % right",
                f"`{demo['summary']['device']}`, {_cores(demo['machine'])}",
            ]
        )
    return timing.table(["what", "result", "how"], rows)


def _cores(machine):
    """The cores of a result's machine, in words."""
    return f"{machine['cores']} cores of {machine['processor']}"


# What files do, and their paths in the order in which they are best read.
FILES = """
the command, and every number of a recipe | train.py recipe.py
training: groups of nets and their votes; the epochs | training/ensemble.py training/trainer.py
the network: a step, nodes, layers; the arrays of a step; Adam, schedules, averages | nets.py \
    network/stack.py network/layers.py network/plan.py network/optim.py
what a backend offers, and all of it in NumPy; im2col; strides and padding | \
    backends/backend.py backends/ops_numpy.py backends/im2col.py network/geometry.py
random numbers, and augmentation | rng.py augment.py backends/affine.py
the operations in C: the calls; sums in registers; convolution, direct and by Winograd; blocks | \
    backends/ops_cpu.py backends/cpu_convolution.py kernels/tile.h \
    kernels/conv_direct.c backends/cpu_winograd.py kernels/winograd_matrices.h kernels/winograd.h \
    kernels/conv_winograd.c network/blocks.py backends/cpu_blocks.py
how kernels are declared, checked, compiled and called | backends/kernel.py backends/cpu.py
the operations in CUDA; in TF32, a step in 26 launches of fused blocks | backends/ops_cuda.py \
    backends/cuda_fusion.py backends/cuda_blocks.py \
    kernels/block.cuh kernels/correlation.cuh kernels/block_forward.cu
CUDA kernels launched and captured, on a GPU and on the emulator | backends/cuda.py \
    emulator/__init__.py
the library: fit, evaluate, save; how fit runs the command's code | model.py training/fit.py
"""


def files():
    """The source files in reading order, with their numbers of lines."""
    rows = []
    for number, row in enumerate(FILES.split("\n")[1:-1], start=1):
        words, names = row.split(" | ")
        shown = []
        for name in names.split():
            path = name if (ROOT / name).exists() else f"minicnn/{name}"
            lines = len((ROOT / path).read_text().splitlines())
            shown.append(f"[`{name}`]({path}) {lines}")
        rows.append([number, ", ".join(shown), words])
    heads = "", "files in reading order, and their lines", "what they do"
    return timing.table(heads, rows)


# ---- speed and accuracy --------------------------------------------------------------------------


def speed():
    """Training and inference beside the frameworks; whole trainings by the number of processes."""
    result, workers = timing.newest("frameworks-cpu"), timing.newest("workers-cpu")
    rates = result["rates"]
    absent = [f"{name} ({why})" for name, why in (result["refused"] | result["left_out"]).items()]
    processes = workers["processes"]
    rows = [[count, frameworks.rate(row)] for count, row in processes.items()]
    return paragraphs(
        "![Images a second of every contender](benchmarks/results/frameworks-cpu.png)",
        frameworks.table(rates),
        absent and f"Not measured, or not in every split: {'; '.join(absent)}.",
        "Batch 64; a training step augments its batch. Median, lowest and highest of "
        f"{_rounds(rates)} rounds in turn, on {result['machine']['cores']} cores. "
        f"{frameworks.ratios_in_words(rates)} {timing.in_words(result)}",
        timing.table(["`--workers`", "images a second"], rows),
        f"Whole runs on `cpu`, {workers['what']}, with validation and the start of the processes; "
        f"{_rounds(processes.values())} rounds in turn. {timing.in_words(workers)}",
    )


def _rounds(rows):
    """How many rounds rows had: "7", or "5 to 7"."""
    rounds = {row["rounds"] for row in rows}
    return " to ".join(map(str, sorted({min(rounds), max(rounds)})))


def gpu():
    """Training and inference beside the frameworks on a GPU; the whole job; the step's versions."""
    found, job, steps = (timing.newest(f"{kind}-cuda") for kind in ("frameworks", "job", "steps"))
    rates, summary = found["rates"], job["summary"]
    absent = list(found["refused"] | found["left_out"])
    tests = f"The tests of kernels: {', '.join(job['tests'])}. " if "tests" in job else ""
    versions = [
        [row["kernels"], *(f"{1e3 * row['seconds'][nets]:.2f}" for nets in ("1", "15"))]
        for row in steps["steps"]
    ]
    return paragraphs(
        frameworks.table(rates),
        absent
        and "Not measured, since not installed, or not compiled in the time that a report has: "
        f"{'; '.join(absent)}.",
        "Batch 64; a training step augments its batch. Median, lowest and highest of "
        f"{_rounds(rates)} rounds in turn. {frameworks.ratios_in_words(rates)} "
        f"{timing.in_words(found)}",
        f"{job['what'][0].upper()}{job['what'][1:]}: **{summary['seconds']:.0f} s** from the "
        f"command to the submission, {summary['images_per_second']:,.0f} images a second, "
        f"{100 * summary['ensemble_test_accuracy']:.2f} % of the test images right. {tests}"
        f"{timing.in_words(job)}",
        timing.table(["a captured step in TF32, ms", "1 net", "15 nets"], versions),
        "The rates and the whole job above are of the first of these versions.",
    )


def scaling():
    """How throughput and memory grow with batch size, cores and nets: a figure."""
    result = timing.newest("scaling-cpu")
    return (
        "![Images a second and memory by batch size, cores and nets]"
        "(benchmarks/results/scaling-cpu.png)\n\n"
        "Training steps, one process a size: median images a second of "
        f"{_rounds(result['rates'])} rounds in turn, and the process's peak memory. "
        f"{timing.in_words(result)}"
    )


def accuracy():
    """Test accuracy of short runs on MNIST."""
    rows = []
    results = {device: timing.newest(f"accuracy-{device}") for device in ("numpy", "cpu")}
    for runs in zip(*(result["runs"] for result in results.values()), strict=True):
        for device, run in zip(results, runs, strict=True):
            shown = [_percent(run[key]) for key in ("test_accuracy", "distorted_test_accuracy")]
            about = f"{run['images']:,}", run["epochs"], run["momentum"], len(run["seeds"])
            rows.append([*about, device, *shown])
    heads = "training images", "epochs", "momentum", "seeds", "device", "test images"
    where = (f"`{device}`: {timing.in_words(result)}" for device, result in results.items())
    return paragraphs(timing.table([*heads, "test images, distorted"], rows), " ".join(where))


def _percent(values):
    mean = f"{100 * sum(values) / len(values):.2f} %"
    if len(values) == 1:
        return mean
    return f"{mean} ({100 * min(values):.2f} to {100 * max(values):.2f})"


def faults():
    """Killed trainings, and fuzzed readers of files."""
    result = timing.newest("faults")
    heads = (
        "trainings killed on",
        "kills",
        "during a checkpoint's write",
        "runs",
        "bits that differ",
    )
    keys = "kills", "inside_a_write", "runs", "differing_bits"
    kills = [[f"`{r['device']}`", *(f"{r[key]:,}" for key in keys)] for r in result["kills"]]
    fuzzing = []
    for row in result["fuzzing"]:
        counts = [f"{row[name]:,}" for name in ("inputs", "accepted", "refused")]
        memory = f"{row['peak_memory_bytes'] / 1e6:.0f} MB"
        fuzzing.append([row["reader"], *counts, f"{row['longest_seconds']:.2f} s", memory])
    of_fuzzing = "reader", "inputs", "accepted", "refused", "slowest", "most memory of a process"
    return paragraphs(
        timing.table(heads, kills), timing.table(of_fuzzing, fuzzing), timing.in_words(result)
    )


# ---- the kernels ---------------------------------------------------------------------------------


def ladder():
    """What the versions of a step do, as the emulator counts it."""
    result = timing.newest("ladder-emulated")
    counted = result["versions_counted"]
    heads = ["launches", "memory, GB", "cache, GB", "wavefronts, millions", "GFLOP"]
    heads += ["GFLOP of tensor cores", "least time, ms"]
    steps, convolutions = [], []
    for version, passes in counted.items():
        for name, found in passes.items():
            if name == "step":
                cells = _counts(found)
                steps.append([version, *cells[:2], f"{found['passes']:.1f}", *cells[2:]])
                continue
            of = result["registers_bfloat16" if version == "bfloat16" else "registers"]
            registers = sorted({of[kernel] for kernel in found["kernels"]})
            cells = [*_counts(found), found["limit"], ", ".join(map(str, registers))]
            convolutions.append([version, name, *cells])
    limits = "memory", "cache", "arithmetic", "tensor", "tensor_bfloat16"
    rates = (result["limits"][name] / 1e12 for name in limits)
    return paragraphs(
        timing.table(["a step", *heads[:2], "passes", *heads[2:]], steps),
        timing.table(["convolutions", "pass", *heads, "limit", "registers"], convolutions),
        f"{result['nets']} nets, {result['batch']} images each. Passes: memory traffic divided "
        "by the size of all convolutions' outputs. Limits: {:g} TB/s of memory, {:g} TB/s of "
        "cache, {:g} TFLOP/s, {:g} TFLOP/s of tensor cores in TF32 and {:g} in bfloat16. ".format(
            *rates
        )
        + f"Registers of a thread on {result['architecture']}, by NVRTC "
        f"{result['versions']['nvrtc']}. Counted {result['machine']['date']} by minicnn "
        f"{result['versions']['minicnn']}.",
    )


def _counts(found):
    """The cells of a summary of counts.py."""
    return [
        found["launches"],
        f"{found['memory_bytes'] / 1e9:.2f}",
        f"{found['cache_bytes'] / 1e9:.1f}",
        f"{found['shared_wavefronts'] / 1e6:,.0f}",
        f"{found['flops'] / 1e9:.1f}",
        f"{found['tensor_flops'] / 1e9:.1f}",
        f"{found['seconds'] * 1e3:.2f}",
    ]


def tile_choices():
    """How each layer's fused kernels are tiled, and what the compiler reports."""
    result, rows, timed = timing.newest("tiles"), [], timing.newest("tilings-cuda")
    for row in result["launches"]:
        of_warp = f"{row['warp_pixels']} x {row['warp_channels']}" if row["warp_pixels"] else ""
        cells = [row["layer"], row["pass"], row["tile"], row["warps"], of_warp]
        cells += [" x ".join(map(str, row[grid])) for grid in ("grid", "grid_of_one_net")]
        cells.append(f"{row['shared_bytes'] / 1024:.0f}")
        cells += [", ".join(map(str, row[key])) for key in ("registers", "spilled")]
        for key in ("microseconds_of_one_net", "microseconds"):
            cells.append(f"{row[key]:.0f}" if row[key] else "")
        rows.append([*cells, *_times_of(row, timed["tilings"])])
    heads = ["layer", "pass", "tile", "warps", "pixels by channels of a warp", "grid"]
    heads += ["grid, one net", "shared, KB", "registers", "spilled, bytes", "one net, model, us"]
    heads += ["model, us", "timed, us", "fastest, us"]
    sums = [
        f"{nets} {'nets' if int(nets) > 1 else 'net'} in {name} {apart:.0f} us, {together:.0f} if "
        "a block's two gradients run together"
        for name, of_nets in result["microseconds"].items()
        for nets, (apart, together) in of_nets.items()
    ]
    return paragraphs(
        timing.table(heads, rows),
        f"By the model all launches of the table take: {'; '.join(sums)}.",
        f"Batch {result['batch']}. Registers of a thread, and its bytes of stack and spills, "
        f"on {' and '.join(result['architectures'])}, by NVRTC {result['versions']['nvrtc']}. "
        f"Timed: this tiling, and the fastest of the {len(timed['tilings']):,} that were timed for "
        f"{timed['nets']} nets. {timing.in_words(timed)}",
    )


def compilers():
    """What versions of NVRTC make of the kernels."""
    result = timing.newest("compilers")
    return paragraphs(
        nvrtcs.table(result),
        "Registers of a thread, and the forms that spill, with their bytes of stack and spills. "
        f"Compiled {result['machine']['date']} by minicnn {result['versions']['minicnn']}.",
    )


def _times_of(row, tilings):
    """The cells of a launch's time and of the fastest tiling's, in microseconds."""
    of = [t for t in tilings if (t["layer"], t["pass"]) == (row["layer"], row["pass"])]
    same = ("form", "images", "rows", "channel_warps")
    found = [t["seconds"] for t in of if all(t[key] == row[key] for key in same)]
    if not found:
        return ["", ""]
    return [f"{1e6 * seconds:.0f}" for seconds in (found[0], min(t["seconds"] for t in of))]


def storage():
    """Nets trained with values rounded to 16 bits, and what the rounding did."""
    return storage_tables.report(timing.newest("storage-cpu"))


def rungs():
    """What each idea of the convolutions in C gains."""
    result = timing.newest("rungs-cpu")
    rounds = _rounds(result["rungs"].values())
    return paragraphs(
        rungs_of_c.table(result),
        f"Multiplications of all convolutions of a step. {result['what'].capitalize()}; median of "
        f"{rounds} rounds in turn. {timing.in_words(result)}",
    )


def operations():
    """Each operation of a step, and the sums over all layers of a kind; also of earlier kernels.

    A result of kind kernels-before is what benchmarks.kernels writes at an earlier commit, with the
    key "commit" added.
    """
    result, earlier = timing.newest("kernels-cpu"), []
    merged = {"limits": dict(result["limits"]), "operations": list(result["operations"])}
    for before in timing.optional("kernels-before"):
        name, of_cpu = f"cpu at {before['commit']}", before["limits"]["cpu"]
        merged["limits"] = {"numpy": None, name: of_cpu, **result["limits"]}
        rows = [row for row in before["operations"] if row["device"] == "cpu"]
        merged["operations"] = [*({**row, "device": name} for row in rows), *result["operations"]]
        words = f"Earlier kernels in C, those of commit {before['commit']}."
        earlier = [f"{words} {timing.in_words(before)}"]
    return paragraphs(
        *kernels.tables(merged),
        f"Median of {result['rounds']} training steps, batch {result['batch']}, the devices in "
        "turn. Per cent: of the rate of a large matrix product (GFLOP/s) or of a large copy "
        f"(GB/s) on as many cores. {'; '.join(limits.in_words(result))}. More than 100% of a "
        f"copy: the arrays lie in a cache. {timing.in_words(result)}",
        *earlier,
    )


TABLES = {
    table.__name__: table
    for table in (
        summary, files, speed, gpu, scaling, accuracy, studies, faults, ladder, tile_choices,
        compilers, storage, rungs, operations,
    )
}  # fmt: skip


def main(argv=None):
    parser = Parser(prog="benchmarks.readme", description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, metavar="DIR")
    for folder in parser.parse_args(argv).folders:
        try:
            keep(folder)
        except (DataError, OSError) as error:
            parser.error(str(error))
    for path in DOCUMENTS:
        if path.exists():
            path.write_text(render(path))
    plots = importlib.import_module("benchmarks.plots")  # the only one that needs matplotlib
    for name, (build, result) in plots.FIGURES.items():
        plots.draw(timing.RESULTS / f"{name}.png", build, result())


if __name__ == "__main__":
    main()
