"""Processes that train side by side, each in a process of its own, and how fast they are together.

A contender is measured as its users would run it: in fresh processes, with so many threads each.
While one crew runs, the others wait for a word from their pipes, and take no time.
"""

import multiprocessing
import os
import time
from dataclasses import dataclass

from benchmarks import timing
from minicnn import ensemble, load_data, machine
from minicnn.recipe import RECIPES

RECIPE = RECIPES["seed"]
# glibc's malloc gives freed memory back to the system and fetches it again, page by page, in each
# step that allocates its arrays anew, as PyTorch's does. Told to keep it, PyTorch is a quarter
# faster, and is measured so.
_KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": "2000000000", "MALLOC_MMAP_THRESHOLD_": "2000000000"}


@dataclass(frozen=True)
class Contender:
    """What trains: minicnn on a device, or PyTorch in one of its ways."""

    name: str
    device: str | None = None
    channels_last: bool = False
    compiled: bool = False

    def make(self, threads):
        """A function that does one training step of one net, on so many threads."""
        (images, labels), _ = load_data("digits")
        if self.device:
            machine.use_cores(threads)
            return minicnn_step(ensemble.Data(images, labels), RECIPE, self.device)
        import torch  # noqa: PLC0415  only contenders of PyTorch's need it

        from benchmarks.torch_net import Training  # noqa: PLC0415

        torch.set_num_threads(threads)
        return Training(images, labels, RECIPE, self.channels_last, self.compiled)


def minicnn_step(data, recipe, device, nets=1):
    """A training step of some nets, augmentation included, as training does it."""
    job = ensemble.Job(recipe, data, device, "float32", None)
    trainer = ensemble.Trainer(job, range(1, nets + 1))
    trainer.begin_epoch(0)
    again = ensemble.Repeat(trainer.ops, graph=True)

    def step():
        with trainer.ops.session():
            again(trainer.step)

    return step


class Crew:
    """`processes` processes of a contender, with `threads` threads each, ready to run."""

    def __init__(self, contender, processes, threads):
        context = multiprocessing.get_context("spawn")
        os.environ.update(_KEEP_MEMORY)  # of the processes that are started from here
        self._pipes, self._processes = [], []
        for _ in range(processes):
            ours, theirs = context.Pipe()
            arguments = theirs, contender, threads
            self._processes.append(context.Process(target=_serve, args=arguments, daemon=True))
            self._pipes.append(ours)
            self._processes[-1].start()
            theirs.close()
        for pipe in self._pipes:
            pipe.recv()  # until all are warm

    def images_per_second(self, seconds):
        """What all processes together train on, while each runs for so long."""
        for pipe in self._pipes:
            pipe.send(seconds)
        return RECIPE.batch_size * sum(pipe.recv() for pipe in self._pipes)

    def close(self):
        """End the processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join()


def _serve(pipe, contender, threads):
    step = contender.make(threads)
    for _ in range(4):  # what is made once: buffers, compiled code
        step()
    pipe.send("ready")
    while True:
        try:
            seconds = pipe.recv()
        except EOFError:
            return
        steps, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            step()
            steps += 1
        pipe.send(steps / elapsed)


def compare(crews, rounds, seconds):
    """Let crews {key: Crew} take turns: {key: median and spread of images a second}."""
    rates = {key: [] for key in crews}
    for _ in range(rounds):
        for key, crew in crews.items():
            rates[key].append(crew.images_per_second(seconds))
    return {key: timing.spread(measured) for key, measured in rates.items()}


def ratio(ours, theirs):
    """Our best median by their best one."""
    return max(map(_median, ours)) / max(map(_median, theirs))


def _median(rate):
    return rate["images_per_second"]
