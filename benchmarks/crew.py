"""The processes of a contender, which train or predict side by side, and their joint rate.

A contender is measured as its users would run it: in new processes, each with its threads pinned to
cores of its own, where the system allows that. While one crew works, the others wait for a message
and use no time.
"""

import contextlib
import multiprocessing
import os
import signal
import time

import numpy as np

from benchmarks import equality
from minicnn import load_data, machine
from minicnn.command import one_line
from minicnn.recipe import RECIPES

RECIPE = RECIPES["seed"]
JOBS = "train", "infer"
SECONDS_TO_ANSWER = 600  # far more than a round takes; after that a process counts as hanging


class NotRunningError(Exception):
    """A contender cannot be measured here; the message says why."""


class Crew:
    """`processes` processes of a contender, with `threads` threads each, which do `jobs`.

    They import their framework and wait for `begin`. With a Reference, the first process proves
    that it computes the same function.
    """

    def __init__(self, contender, processes, threads, jobs=JOBS, recipe=RECIPE, reference=None):
        context = multiprocessing.get_context("spawn")
        self.contender = contender
        self._pipes, self._processes, self._ready = [], [], False
        for i in range(processes):
            ours, theirs = context.Pipe()
            arguments = theirs, contender, threads, jobs, recipe, None if i else reference
            process = context.Process(target=_serve, args=arguments, daemon=True)
            with _started_with(contender.environment(threads), i, threads):
                process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def begin(self):
        """Let the processes set up, and do each job once."""
        for pipe in self._pipes:
            with contextlib.suppress(OSError):  # the process failed: `differences` reports how
                pipe.send("begin")

    def differences(self, seconds=None):
        """Wait, after `begin`, until all are ready; returns the differences from the Reference.

        Raises NotRunningError where one fails or is not ready within `seconds`, and
        equality.DifferentError where it computes another function.
        """
        seconds = SECONDS_TO_ANSWER if seconds is None else seconds
        end = time.monotonic() + seconds
        found = []
        for pipe in self._pipes:
            if not pipe.poll(max(0.0, end - time.monotonic())):
                raise NotRunningError(f"not ready after {seconds:.0f} s")
            found.append(self._receive(pipe))
        self._ready = True
        return found[0]

    def warm_up(self, job, seconds):
        """Prepare for rounds of a job of `seconds` each."""
        self._together("warm_up", job, seconds)

    def images_per_second(self, job, seconds):
        """The rate of all processes together, while each of them runs for about `seconds`."""
        return sum(self._together("images_per_second", job, seconds))

    def peak_memory(self):
        """[peak bytes of each of minicnn's processes], None where unknown."""
        return self._together("peak_memory")

    def close(self):
        """End the processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(10 if self._ready else 0)
            if process.is_alive():  # still compiling, or stuck
                process.kill()
                process.join()

    def _together(self, *message):
        try:
            for pipe in self._pipes:
                pipe.send(message)
        except OSError:
            raise NotRunningError("its process ended") from None
        return [self._receive(pipe) for pipe in self._pipes]

    @staticmethod
    def _receive(pipe):
        """An answer; an exception of the process is raised here."""
        try:
            if not pipe.poll(SECONDS_TO_ANSWER):
                raise NotRunningError(f"no answer within {SECONDS_TO_ANSWER} s")
            answer = pipe.recv()
        except (EOFError, OSError):
            raise NotRunningError("its process ended") from None
        if isinstance(answer, Exception):
            raise answer
        return answer


@contextlib.contextmanager
def _started_with(environment, number, threads):
    """A process started within gets these variables, and the number-th group of `threads` cores."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    own = usable[number * threads : (number + 1) * threads]
    try:
        if len(own) == threads:
            os.sched_setaffinity(0, own)
        yield
    finally:
        if usable:
            os.sched_setaffinity(0, usable)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# ---- in a process of a crew ----------------------------------------------------------------------


def _serve(pipe, contender, threads, jobs, recipe, reference):
    """Send the differences or an exception, then answer messages until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it and closes the pipe
    try:
        machine.use_cores(threads)
        (images, labels), _ = load_data("digits")
        contender.load()
        pipe.recv()  # "begin"
        found = reference and equality.check(contender, images, labels, reference)
        member = _Member(contender, images, labels, jobs, recipe)
        pipe.send(found)
        while True:
            what, *arguments = pipe.recv()
            pipe.send(getattr(member, what)(*arguments))
    except EOFError:
        pass
    except equality.DifferentError as error:
        _send(pipe, error)
    except Exception as error:  # of any framework: its contender is left out
        _send(pipe, NotRunningError(f"{type(error).__name__}: {one_line(error)}"[:500]))


def _send(pipe, error):
    with contextlib.suppress(OSError):  # the parent may have closed the pipe
        pipe.send(error)


class _Member:
    """A contender's Training in a process, and what it is asked to do."""

    def __init__(self, contender, images, labels, jobs, recipe):
        self._training = contender.training(images, labels, recipe)
        self._images = contender.nets * recipe.batch_size  # a step
        self._chunks = {}  # {job: steps between two readings of the clock}
        x = (images[: recipe.batch_size, ..., None] / 255).astype("float32")
        before = self._training.predict(x)
        for job in jobs:  # allocates and compiles
            getattr(self._training, job)(self._training.stride)
        after = self._training.predict(x)
        if not np.isfinite(after).all() or ("train" in jobs and np.array_equal(before, after)):
            raise FloatingPointError("training made its predictions infinite, or did not move them")

    def warm_up(self, job, seconds):
        """Find how many steps take an eighth of a round."""
        work, stride = getattr(self._training, job), self._training.stride
        work(stride)
        start = time.perf_counter()
        work(stride)
        taken = time.perf_counter() - start
        self._chunks[job] = stride * max(1, round(seconds / 8 / taken))

    def images_per_second(self, job, seconds):
        """The rate of a job over about `seconds`."""
        work, chunk = getattr(self._training, job), self._chunks[job]
        done, taken, start = 0, 0.0, time.perf_counter()
        while taken < seconds:
            work(chunk)  # finished on return
            done += chunk
            taken = time.perf_counter() - start
        return self._images * done / taken

    def peak_memory(self):
        """Peak bytes of this process or, on a GPU, of CuPy's pool; None if unknown."""
        if self._training.device_memory():
            return self._training.device_memory()
        with contextlib.suppress(OSError), open("/proc/self/status") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        return None
