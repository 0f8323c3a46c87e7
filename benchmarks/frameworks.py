"""python -m benchmarks.frameworks: training steps and inference beside PyTorch, Keras and JAX.

Whichever of the frameworks are installed are compared, in the ways in which their users speed them
up (contenders/); Keras 3 runs the notebook's own code. Batch 64; a training step draws and augments
its batch. Each contender must first prove that it computes the same function, or it is refused
(equality.py). Then all take turns, round by round, each in processes of its own (crew.py).

One process on all cores trains one net, and predicts. An ensemble is trained in every split of the
cores into processes and threads, or by one process that trains many nets together; each contender's
best split counts. On a GPU one process trains one net, or many together.

With --commit the kernels in C of an earlier commit (commit.py) take turns with the others, so that
the gain since then is a ratio within one run.

Exit status: 0; 1 if a contender was refused; 2 for bad arguments.
"""

import sys
import time

from tqdm import tqdm

from benchmarks import commit, contenders, equality, timing
from benchmarks.crew import JOBS, Crew, NotRunningError
from minicnn import machine
from minicnn.backends import cuda
from minicnn.command import positive, positive_number

COMMIT = "06ed209"  # what --commit measures by default: convolution in Winograd tiles of 2 x 2 only
PROCESS_BYTES = 700 << 20  # about what a process of a framework takes
WHAT = "the seed network's training steps, augmentation included, and predictions; batch 64"


class Comparison:
    """Contenders on one split of the cores, and their measured rates.

    It adds to the dicts "differences", "refused" and "left_out" of `result`, {contender: ...}.
    seconds_to_start: time for all to start; None: no limit.
    """

    def __init__(self, given, processes, threads, jobs, reference, result, seconds_to_start=None):
        self.processes, self.threads, self.jobs = processes, threads, jobs
        self._result, self._crews, self._rates = result, {}, {}
        free, started = machine.free_memory(), []
        for contender in given:
            missing = ", ".join(contender.missing)
            if missing:
                result["left_out"][contender.name] = f"not installed: {missing}"
            elif free is not None and free < processes * PROCESS_BYTES * (len(started) + 1):
                why = f"too little memory for {processes} more processes"
                result["left_out"][contender.name] = why
            elif contender.name not in result["refused"]:
                started.append(Crew(contender, processes, threads, jobs, reference=reference))
        # On a GPU they start one after the other, the slow ones last: libraries time their
        # algorithms there, and another process would disturb that.
        started.sort(key=lambda crew: crew.contender.slow_to_start)
        together = [crew for crew in started if crew.contender.device != "cuda"]
        for crew in together:
            crew.begin()
        end = None if seconds_to_start is None else time.monotonic() + seconds_to_start
        for crew in started:
            self._guarded(crew, self._prove, crew, crew in together, end)

    def _prove(self, crew, has_begun, end):
        if not has_begun:
            crew.begin()
        left = None if end is None else max(0.0, end - time.monotonic())
        self._result["differences"][crew.contender.name] = crew.differences(left)
        self._crews[crew.contender.name] = crew

    def _guarded(self, crew, function, *arguments):
        """Call a function; a crew that fails in it is closed and named."""
        name = crew.contender.name
        try:
            function(*arguments)
        except (NotRunningError, equality.DifferentError) as error:
            refused = isinstance(error, equality.DifferentError)
            split = "" if refused else f" ({self.processes} x {self.threads})"
            self._result["refused" if refused else "left_out"][name] = f"{error}{split}"
            print(f"{name}: {'refused' if refused else 'left out'}: {error}", file=sys.stderr)
            self._crews.pop(name, None)
            crew.close()

    def take_turns(self, rounds, seconds):
        """A generator that measures a round of every job each time."""
        for job in self.jobs:
            for crew in list(self._crews.values()):
                self._guarded(crew, crew.warm_up, job, seconds)
        for _ in range(rounds):
            for job in self.jobs:
                for crew in list(self._crews.values()):
                    self._guarded(crew, self._measure, crew, job, seconds)
            yield

    def _measure(self, crew, job, seconds):
        rates = self._rates.setdefault((crew.contender, job), [])
        rates.append(crew.images_per_second(job, seconds))

    def rows(self):
        """A dict for each contender and job: median and spread of images a second."""
        return [
            {
                "contender": contender.name,
                "job": job,
                "nets": contender.nets,
                "precision": contender.precision,
                **({"commit": contender.commit} if contender.commit else {}),
                "processes": self.processes,
                "threads": self.threads,
                **timing.spread("images_per_second", rates),
            }
            for (contender, job), rates in self._rates.items()
            if rates
        ]

    def close(self):
        """End all processes."""
        for crew in self._crews.values():
            crew.close()
        self._crews.clear()


def plan_of(device, nets, cores):
    """[(contenders, processes, threads, jobs)]: each entry is one comparison."""
    if device == "cuda":
        return [(contenders.on_cuda(nets), 1, cores, JOBS)]
    given, plan = contenders.on_cpu(nets), []
    for processes in range(1, cores + 1):
        if cores % processes == 0:
            # One process predicts, and one trains many nets together.
            alone = processes == 1
            kept = [contender for contender in given if alone or contender.nets == 1]
            plan.append((kept, processes, cores // processes, JOBS if alone else JOBS[:1]))
    return plan


def measure(plan, device, rounds, seconds, seconds_to_start=None, left_out=()):
    """A generator of the result so far, after each round; the last one is complete.

    left_out: {contender: why} of those that are not in the plan.
    """
    result = {
        "what": WHAT,
        "rates": [],
        "differences": {},
        "tolerance": equality.TOLERANCE,
        "refused": {},
        "left_out": dict(left_out),
        "machine": timing.machine(device),
        "versions": timing.versions(*_PACKAGES),
    }
    reference = equality.reference()
    for given in plan:
        comparison = Comparison(*given, reference, result, seconds_to_start)
        before = list(result["rates"])
        try:
            for _ in comparison.take_turns(rounds, seconds):
                rates = before + comparison.rows()
                result["rates"] = [r for r in rates if r["contender"] not in result["refused"]]
                yield result
        finally:
            comparison.close()


def fitted(plan, rounds, seconds, limit):
    """(seconds of a contender in a round, seconds to start) so that a plan ends within `limit`.

    At most a third of the time is for measuring; a fifth is kept for ends that take longer.
    """
    turns = sum(len(given) * len(jobs) for given, _, _, jobs in plan) * (rounds + 2)  # 2: warm-up
    seconds = min(seconds, limit / 3 / turns)
    return seconds, (0.8 * limit - turns * seconds) / len(plan)


_PACKAGES = "torch", "keras", "jax", "scipy", "cupy-cuda12x", "cupy-cuda13x"


# ---- what the rates say --------------------------------------------------------------------------


def best(rates, job, **asked):
    """{contender: its fastest row} of a job, among the rows whose values are those asked for."""
    found = {}
    for row in rates:
        if row["job"] == job and all(row[name] == value for name, value in asked.items()):
            known = found.get(row["contender"])
            if known is None or row["images_per_second"] > known["images_per_second"]:
                found[row["contender"]] = row
    return found


def compared(rates):
    """{what: {contender: its best row}} of the three comparisons."""
    return {
        "training one net": best(rates, "train", nets=1, processes=1),
        "training an ensemble": best(rates, "train"),
        "inference": best(rates, "infer"),
    }


def is_ours(row):
    """Whether a row is one of minicnn's contenders, as it is now."""
    return row["contender"].startswith("minicnn") and not is_earlier(row)


def is_earlier(row):
    """Whether a row is minicnn at an earlier commit."""
    return "commit" in row


def ratio(rows):
    """minicnn's best median divided by the frameworks' best; None without both."""
    ours, theirs = fastest(rows)
    return ours["images_per_second"] / theirs["images_per_second"] if ours and theirs else None


def fastest(rows):
    """(minicnn's fastest row, the frameworks' fastest); None where there is none."""
    rows = [row for row in rows if not is_earlier(row)]
    rows.sort(key=lambda row: row["images_per_second"])
    found = {is_ours(row): row for row in rows}  # the last one of each counts
    return found.get(True), found.get(False)


def ratios_in_words(rates):
    """How many times as fast as the fastest framework, and as an earlier commit, minicnn is.

    "" where it is not measured beside either.
    """
    words = []
    for precision, of_what in (
        ("float32", "the fastest framework in float32"),
        (None, "the fastest framework in any precision"),
    ):
        each = []
        for name, rows in compared(rates).items():
            times = ratio([r for r in rows.values() if precision in (None, r["precision"])])
            each += [f"{times:.2f} in {name}"] if times else []
        words += [f"{of_what}: {', '.join(each)}"] if each else []
    rate = "The fastest minicnn's rate divided by that of"
    sentences = [f"{rate} {'; of '.join(words)}."] if words else []
    return " ".join([*sentences, *_gains_in_words(rates)])


def _gains_in_words(rates):
    """A sentence for each earlier commit."""
    for name, revision in {r["contender"]: r["commit"] for r in rates if is_earlier(r)}.items():
        each = []
        for what, rows in compared(rates).items():
            ours, _ = fastest(rows.values())
            if ours and name in rows:
                times = ours["images_per_second"] / rows[name]["images_per_second"]
                each.append(f"{times:.2f} in {what}")
        if each:
            yield f"Times as fast as commit {revision}: {', '.join(each)}."


def ranking(rates):
    """The contenders, the fastest in training an ensemble first."""
    rows = best(rates, "train")
    return sorted(rows, key=lambda name: -rows[name]["images_per_second"])


# ---- the command ---------------------------------------------------------------------------------


def table(rates):
    """The best rates of each contender in Markdown, the fastest first."""
    one_net, ensemble, inference = compared(rates).values()
    heads = "images a second", "training one net", "training an ensemble", "its best split"
    rows = [
        [
            name,
            rate(one_net.get(name)),
            rate(ensemble[name]),
            _split(ensemble[name]),
            rate(inference.get(name)),
        ]
        for name in ranking(rates)
    ]
    return timing.table([*heads, "inference"], rows)


def rate(row):
    """Median, lowest and highest of a row in words; "" for None."""
    keys = "images_per_second", "lowest", "highest"
    return "{:,.0f} ({:,.0f} to {:,.0f})".format(*(row[key] for key in keys)) if row else ""


def _split(row):
    """How a row's contender used the cores."""
    if row["nets"] > 1:
        return f"{row['nets']} nets in one process"
    return f"{row['processes']} x {row['threads']}"


def show(result):
    """Print a result."""
    print(timing.aligned(table(result["rates"])))
    for what in ("refused", "left_out"):
        for name, why in result[what].items():
            print(f"{what.replace('_', ' ')}: {name}: {why}")
    print(ratios_in_words(result["rates"]))


def main(argv=None, plan=None):
    """Run the command; returns its exit status."""
    parser = timing.parser(
        "frameworks",
        __doc__,
        "one split of the cores, and only contenders that start fast: under a minute",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default: cpu")
    parser.add_argument(
        "--only", nargs="+", metavar="TEXT", help="contenders whose names contain one of these"
    )
    parser.add_argument(
        "--nets", type=positive, metavar="N", default=15, help="trained together (default: 15)"
    )
    parser.add_argument("--rounds", type=positive, metavar="N", help="default: 7; quick: 2")
    parser.add_argument(
        "--seconds",
        type=positive_number,
        metavar="S",
        help="of a contender in a round (default: 2; quick: 0.3)",
    )
    parser.add_argument(
        "--within",
        type=positive_number,
        metavar="S",
        help="end within S seconds: shorter rounds, and what is not ready in time is left out",
    )
    parser.add_argument(
        "--commit",
        nargs="?",
        const=COMMIT,
        metavar="REV",
        help=f"measure the kernels in C of an earlier commit, too (REV: {COMMIT})",
    )
    arguments = parser.parse_args(argv)
    if arguments.commit and arguments.device != "cpu":
        parser.error(f"argument --commit: got --device {arguments.device}, expected cpu")
    if arguments.device == "cuda" and cuda.problem():
        parser.error(f"argument --device: {cuda.problem()}")
    plan = plan or plan_of(arguments.device, arguments.nets, machine.cores())
    if arguments.quick:
        plan = plan[:1]
    plan = [(_chosen(arguments, given), *rest) for given, *rest in plan]
    if not any(given for given, *_ in plan):
        names = " or ".join(arguments.only)
        parser.error(f"argument --only: no contender's name contains {names}")
    with commit.added(arguments.commit, plan) as (plan, left_out):
        result = _compare(arguments, plan, left_out)
    show(result)
    if arguments.out or not arguments.quick:
        timing.write(f"frameworks-{arguments.device}", result, arguments.out)
    return int(bool(result["refused"]))


def _compare(arguments, plan, left_out):
    """The result of all rounds."""
    rounds = arguments.rounds or (2 if arguments.quick else 7)
    seconds, to_start = arguments.seconds or (0.3 if arguments.quick else 2), None
    if arguments.within:
        seconds, to_start = fitted(plan, rounds, seconds, arguments.within)
    with tqdm(total=rounds * len(plan), desc="rounds", file=sys.stderr) as progress:
        for result in measure(plan, arguments.device, rounds, seconds, to_start, left_out):
            if arguments.out:  # what was measured stays, if this is stopped
                timing.save(arguments.out, result)
            progress.update()
    return result


def _chosen(arguments, given):
    """The contenders that the arguments ask for."""
    return [
        contender
        for contender in given
        if not (arguments.quick and contender.slow_to_start)
        and any(text in contender.name for text in arguments.only or [""])
    ]


if __name__ == "__main__":
    sys.exit(main())
