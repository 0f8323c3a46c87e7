"""python -m benchmarks.gpu_report --out DIR: what minicnn does on an NVIDIA GPU, in one command.

It asks the machine, measures its limits, runs the tests of the kernels, holds a step against NumPy,
times each launch and whole steps, trains the seed recipe on MNIST, compares with PyTorch, and draws
all that. Each part is a process of its own with a limit of time, so that one that fails or hangs
takes nothing from the others. DIR/report.json is written anew after each part.

Exit status: 0; 1 if a part failed; 2 for bad arguments, or without a GPU. With --device emulated
the parts that need no GPU run on the emulator, with tiny sizes: that tests the command itself.
"""

import argparse
import contextlib
import gc
import importlib
import importlib.util
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import timing
from minicnn import __version__, cuda, ensemble
from minicnn.command import Parser, one_line, positive
from minicnn.devices import choose
from minicnn.digits import draw_digits
from minicnn.emulator import Emulator
from minicnn.files import atomic_write
from minicnn.ops_cuda import Operations
from minicnn.recipe import Recipe

ROOT = Path(__file__).parent.parent
TEST_FILES = (
    "test_kernel_ops.py",
    "test_kernel_convolution.py",
    "test_step.py",
    "test_blocks.py",
    "test_train_on_kernels.py",
)
REPEATS = 20  # of a launch within one graph: its time is then not that of launching
STEP_LAUNCHES = 28  # of a fused step
MATRIX = 8192  # side of the matrices whose product is the peak
PLOT_SECONDS = 25  # kept for the plots, the last part
STATE = "params", "moving", "moment_1", "moment_2", "step"
# The largest relative errors of a step against NumPy's. TF32 keeps eleven bits of a factor, and a
# rounding that switches a ReLU moves a gradient by more than that.
TOLERANCES = {"float32": 1e-4, "tf32": 5e-2}


class Failed(Exception):  # noqa: N818  what happened to a part, as LeftOut
    """A part found something wrong; the message says what."""


class LeftOut(Exception):  # noqa: N818
    """A part cannot be done here; the message says why."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    nets: int
    batch: int
    step_nets: tuple  # the numbers of nets whose steps are timed
    check: tuple  # (nets, images of each, nets among which one is the same)
    precisions: tuple
    images: int
    warm_up: int
    rounds: int
    seconds: float  # of a round


FULL = Sizes(15, 64, (1, 5, 15, 30), (2, 16, 15), ("tf32", "float32"), 42_000, 3, 9, 0.2)
QUICK = replace(FULL, rounds=3, seconds=0.05)
EMULATED = Sizes(1, 1, (1, 2), (2, 2, 3), ("float32",), 12, 1, 2, 0)


class Run:
    """What a part is told: the options, how much to measure, its time, what others found."""

    def __init__(self, options, seconds):
        self.options, self.device, self.out = options, options.device, Path(options.out)
        quick = QUICK if options.quick else FULL
        self.sizes = EMULATED if self.device == "emulated" else quick
        self._deadline = time.monotonic() + seconds

    @property
    def left(self):
        """Seconds until the part is stopped."""
        return self._deadline - time.monotonic()

    def found(self, part):
        """The results of an earlier part, {} without any."""
        return _read(_part_file(self.out, part)).get("results", {})

    def precisions(self):
        """Those that the device has, the fastest first."""
        has_tf32 = choose(self.device)[1].has_tf32
        return [p for p in self.sizes.precisions if has_tf32 or p != "tf32"]


# ---- time ----------------------------------------------------------------------------------------


class EventClock:
    """Marks on the GPU's current stream."""

    def __init__(self, library=None):
        self._cuda = (library or importlib.import_module("cupy")).cuda

    def mark(self):
        """A moment in the stream."""
        event = self._cuda.Event()
        event.record(self._cuda.get_current_stream())
        return event

    def seconds(self, first, last):
        """Between two marks; waits for the later one."""
        last.synchronize()
        return self._cuda.get_elapsed_time(first, last) / 1e3


class WallClock:
    """The same on a device that has done its work when a call returns."""

    mark = staticmethod(time.perf_counter)

    def seconds(self, first, last):
        """Between two marks."""
        return last - first


def clock_of(device):
    """The clock of a device, by its name."""
    return EventClock() if device == "cuda" else WallClock()


def measure(clock, function, sizes):
    """Seconds of a call: [one a round], each the mean of as many calls as fill the round."""

    def timed(calls):
        first = clock.mark()
        for _ in range(calls):
            function()
        return clock.seconds(first, clock.mark()) / calls

    for _ in range(sizes.warm_up):
        function()
    calls = max(1, round(sizes.seconds / max(timed(1), 1e-6)))
    return [timed(calls) for _ in range(sizes.rounds)]


def summary(seconds):
    """Median and spread of measured seconds."""
    return {
        "seconds": statistics.median(seconds),
        "lowest": min(seconds),
        "highest": max(seconds),
        "rounds": len(seconds),
    }


# ---- training steps ------------------------------------------------------------------------------


def make_trainer(device, precision, nets, batch, images, first_net=1):
    """A Trainer of the seed network on drawn digits, at the start of an epoch."""
    drawn, labels = draw_digits(min(images, 2000))
    data = ensemble.Data(
        np.resize(drawn, (images, *drawn.shape[1:])), np.resize(labels, (images,))
    )
    recipe = Recipe(nets=nets, first_net=first_net, batch_size=batch, validation_fraction=0)
    trainer = ensemble.Trainer(ensemble.Job(recipe, data, device, precision, None), recipe_nets(recipe))
    trainer.begin_epoch(0)
    return trainer
