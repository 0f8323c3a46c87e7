"""What the machine has: cores and memory, and how many processes they are good for."""

import os
from math import prod
from pathlib import Path

from .model import PREDICT_BATCH
from .plan import plan_layout

_PROCESS_BYTES = 150 << 20  # Python, NumPy and their working memory


def cores():
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_memory():
    """Bytes of memory that can be used without swapping; None where the system does not say."""
    free = [_kernel_says_free(), _container_has_left()]
    return min((f for f in free if f is not None), default=None)


def _kernel_says_free():
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _container_has_left():
    """What a control group (version 2) still allows."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        return limit - int((group / "memory.current").read_text())
    except (OSError, ValueError):  # there is none, or its limit is "max"
        return None


def training_bytes(recipe, data):
    """What a process that trains one net takes."""
    model = recipe.model(range(1, 2), "numpy")
    weights = 4 * model.params.nbytes + model.moving.nbytes
    plans = sum(
        prod(shape) * dtype.itemsize
        for batch, training in ((recipe.batch_size, True), (PREDICT_BATCH, False))
        for shape, dtype in plan_layout(model, batch, training).values()
    )
    images = sum(a.nbytes for a in (data.train_images, data.test_images) if a is not None)
    # The data set arrives as a pickle, which for a moment is there beside what it becomes.
    return _PROCESS_BYTES + weights + plans + 2 * images


def default_workers(recipe, data, memory=None, workers=None):
    """How many processes to train in: `workers`, or what cores, nets and memory (bytes) allow.

    Never more than there are nets. Raises ValueError where `memory`, or what the machine has free,
    does not hold even one, or not the number asked for.
    """
    needed = training_bytes(recipe, data)
    limit = memory if memory is not None else free_memory()
    most = min(workers or cores(), recipe.nets)
    affordable = most if limit is None else min(most, limit // needed)
    least = most if workers else 1
    if affordable < least:
        have = f"--memory allows {limit:,}" if memory is not None else f"{limit:,} are free"
        raise ValueError(f"memory: {least} process(es) take {least * needed:,} bytes, {have}")
    return affordable
