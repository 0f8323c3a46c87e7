"""python -m benchmarks.rungs: what each idea of the convolutions in C gains in a training step.

Every rung has one idea more than the one before: kernels/README.md explains them. A step of one
seed network is timed on one core, the rungs in turns. The multiplications of all convolutions of a
step are counted, too.
"""

from functools import partial

from tqdm import tqdm

from benchmarks import timing
from benchmarks.kernels import make_trainer
from minicnn import machine
from minicnn.backends.cpu_convolution import Direct, Fuses
from minicnn.backends.cpu_winograd import Winograd, multiplications
from minicnn.backends.ops_cpu import Operations
from minicnn.command import positive
from minicnn.network.layers import Conv2D
from minicnn.recipe import RECIPES

BATCH, IMAGES = 64, 4096


class Apart(Winograd):
    """Winograd convolution that leaves normalisation to kernels of its own."""

    def fuses(self, window, batch, channels, filters):
        return Fuses()


class Unstrided(Apart):
    """The same, for layers with stride 1 only."""

    def _choose(self, window, batch, channels, filters):
        if window.strides != (1, 1):
            return 0, 0, 0
        return super()._choose(window, batch, channels, filters)


RUNGS = {
    "direct": Direct,
    "squares of 2 x 2": partial(Unstrided, m=2),
    "squares of 4 x 4 and 5 x 5": Unstrided,
    "phases": Apart,
    "fused": Winograd,
}


def multiplications_of(convolution):
    """The multiplications of all convolutions of a step."""
    total = 0
    for node in RECIPES["seed"].nodes:
        if isinstance(node.layer, Conv2D):
            sizes = node.layer.window(node.input_shape), BATCH, node.input_shape[-1]
            sizes = *sizes, node.layer.filters
            chosen = getattr(convolution, "choose", lambda *_: (0, 0, 0))(*sizes)
            passes = multiplications(*sizes, chosen)
            total += sum(passes) - (passes[1] if node.name == "conv2d" else 0)  # it has no dx
    return total


def measure(rounds):
    """{rung: a dict of its step's seconds and multiplications}."""
    machine.use_threads(1)
    steps, found = {}, {}
    for name, rung in RUNGS.items():
        ops = Operations()
        ops.convolution = rung(ops.cpu)
        trainer = make_trainer(ops, "float32", 1, BATCH, IMAGES)
        with ops.session():
            trainer.step()
            steps[name] = ops.capture(trainer.step)
        found[name] = {"multiplications": multiplications_of(ops.convolution)}
    seconds = {name: [] for name in steps}
    for _ in tqdm(range(rounds), desc="rounds"):
        for name, step in steps.items():
            seconds[name] += timing.measure(step, 1, 0)
    return {name: {**found[name], **timing.spread("seconds", seconds[name])} for name in found}


def table(result):
    """The rungs in Markdown."""
    rows, before = [], None
    for name, rung in result["rungs"].items():
        gain = f"{before / rung['seconds']:.2f}" if before else ""
        before = rung["seconds"]
        rows.append([name, f"{rung['multiplications'] / 1e6:,.0f}", f"{1e3 * before:.1f}", gain])
    return timing.table(["", "multiplications, millions", "a step, ms", "times as fast"], rows)


def main():
    parser = timing.parser("rungs", __doc__, "3 rounds")
    parser.add_argument("--rounds", type=positive, metavar="N", help="default: 40; quick: 3")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (3 if arguments.quick else 40)
    result = {
        "what": "training steps of one seed network, one core, batch 64",
        "rungs": measure(rounds),
        "machine": timing.machine(),
        "versions": timing.versions(),
    }
    print(timing.aligned(table(result)))
    if arguments.out or not arguments.quick:
        timing.write("rungs-cpu", result, arguments.out)


if __name__ == "__main__":
    main()
