"""What the machine has: cores and memory, and how many processes they are good for."""

import os
from math import prod

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
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def training_bytes(recipe, data):
    """What a process that trains one net takes."""
    model = recipe.model(range(1, 2))
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

    Raises ValueError where `memory`, or what the machine has free, does not hold even one, or not
    the number asked for.
    """
    needed = training_bytes(recipe, data)
    limit = memory if memory is not None else free_memory()
    affordable = limit // needed if limit is not None else recipe.nets
    if affordable < (workers or 1):
        raise ValueError(
            f"memory: {workers or 1} process(es) need {(workers or 1) * needed:,} bytes, "
            f"got {limit:,}"
        )
    return workers or min(cores(), recipe.nets, affordable)
