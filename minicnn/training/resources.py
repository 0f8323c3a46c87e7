"""Divide a machine among nets: how many train together, and in how many processes."""

import itertools
from bisect import bisect_right

import numpy as np

from ..machine import asked_threads, cores, free_memory
from ..nets import PREDICT_BATCH
from ..network.plan import plan_layout
from ..network.stack import layout_bytes, weights_layout

_PROCESS_BYTES = 150 << 20  # Python, NumPy and their working memory


def arrays_bytes(recipe, ops, nets, train_images=(), *others, dtype="float32"):
    """Bytes of device memory that the arrays of `nets` nets need on the backend `ops`.

    With train_images (N, H, W) uint8: for training; without them: for prediction only, for which
    `recipe` may be an Architecture. others: images to predict, or None. dtype: that of the nets.
    """
    nodes, dtype, index = recipe.nodes, np.dtype(dtype), np.dtype(np.int32).itemsize
    layouts = [
        weights_layout(nodes, nets, dtype),
        plan_layout(nodes, nets, PREDICT_BATCH, False, dtype, ops),
    ]
    if len(train_images):
        layouts.append(plan_layout(nodes, nets, recipe.batch_size, True, dtype, ops))
        of_steps = (len(train_images) // recipe.batch_size,), np.dtype(np.float64)
        layouts.append({"rates": of_steps})
        if recipe.averaging is not None:
            layouts.append({"average weights": of_steps, "averaged": layouts[0]["params"]})
    held = [images for images in (train_images, *others) if images is not None and len(images)]
    most = max(map(len, held), default=0)
    predictions = nets * most * nodes[-1].output_shape[0] * dtype.itemsize
    orders = 2 * nets * most * index
    images = sum(a.nbytes for a in held)
    return sum(map(layout_bytes, layouts)) + predictions + orders + images


def process_bytes(recipe, data, ops):
    """Bytes of memory that a process needs to train one net."""
    images = sum(a.nbytes for a in _images(data) if a is not None)
    # The data set arrives as a pickle. The pickle and the unpickled arrays exist at the same time.
    arrays = arrays_bytes(recipe, ops, 1, *_images(data), dtype=recipe.dtype)
    return _PROCESS_BYTES + arrays + images


def _images(data):
    return data.train_images, data.test_images, data.validation_images


def collected_bytes(recipe, data):
    """Bytes of memory needed to merge all nets.

    Their states exist three times (read, merged, written), their predictions twice (received,
    concatenated).
    """
    weights = layout_bytes(weights_layout(recipe.nodes, 1, np.dtype(np.float32)))
    tested = 0 if data.test_images is None else len(data.test_images)
    predictions = tested * recipe.nodes[-1].output_shape[0] * np.dtype(np.float32).itemsize
    return recipe.nets * (3 * weights + 2 * predictions)


def check_merging(recipe, data):
    """Raise ValueError if this machine has too little memory to merge all nets."""
    collected, free = collected_bytes(recipe, data), free_memory()
    if free is not None and collected > free:
        raise ValueError(
            f"nets: merging {recipe.nets} nets takes {collected:,} bytes, expected at most the "
            f"{free:,} that are free"
        )


def fitting(recipe, data, ops, nets, memory=None):
    """How many of `nets` nets train together on a device: one, or on a GPU as many as fit.

    memory: bytes (default: the free memory). Raises ValueError if not even one net fits.
    """
    if not ops.lockstep:
        return 1

    def needed(nets):
        return arrays_bytes(recipe, ops, nets, *_images(data), dtype=recipe.dtype)

    return group_size(nets, memory or ops.free_memory(), needed)


def group_size(nets, memory, needed):
    """How many of `nets` nets train together in `memory` bytes; n nets need needed(n) bytes.

    The number of groups is the smallest possible, and the groups are as equal in size as possible.
    Raises ValueError if not even one net fits.
    """
    if memory is None or needed(nets) <= memory:
        return nets
    most = bisect_right(range(1, nets + 1), memory, key=needed)
    if most == 0:
        raise ValueError(f"memory: one net takes {needed(1):,} bytes, expected at most {memory:,}")
    groups = -(-nets // most)
    return -(-nets // groups)


def split_nets(nets, size):
    """Split net numbers into ranges of at most `size` consecutive numbers, of nearly equal size."""
    parts = []
    for _, pairs in itertools.groupby(enumerate(nets), lambda pair: pair[1] - pair[0]):
        run = [net for _, net in pairs]
        count = -(-len(run) // size)
        step = -(-len(run) // count)
        parts += [range(n, min(n + step, run[-1] + 1)) for n in range(run[0], run[-1] + 1, step)]
    return parts


def processes(ops, workers=None):
    """How many processes work at a time on a CPU: `workers`, or as many as there are cores for.

    A process takes one core, or as many as machine.use_threads says if its threads share the work.
    """
    of_a_process = (asked_threads() or 1) if ops.threaded else 1
    return workers or max(1, cores() // of_a_process)


def share(recipe, data, ops, memory=None, workers=None):
    """(number of nets that train together, number of processes) for a device.

    A GPU trains as many nets together as fit into `memory` bytes (default: the free memory), in one
    process. On a CPU each net trains alone, in `workers` processes (default: as many as cores, nets
    and memory allow). Raises ValueError if the memory is too small or `workers` is impossible.
    """
    check_merging(recipe, data)
    if ops.lockstep:
        if (workers or 1) > 1:
            raise ValueError(
                f"workers: got {workers}, expected 1: this device trains its nets together, in one "
                "process"
            )
        return fitting(recipe, data, ops, recipe.nets, memory), 1
    needed = process_bytes(recipe, data, ops)
    limit = memory if memory is not None else ops.free_memory()
    most = min(processes(ops, workers), recipe.nets)
    affordable = most if limit is None else min(most, limit // needed)
    least = most if workers else 1
    if affordable < least:
        have = "of memory" if memory is not None else "that are free"
        raise ValueError(
            f"memory: {least} {'processes take' if least > 1 else 'process takes'} "
            f"{least * needed:,} bytes, expected at most the "
            f"{limit:,} {have}"
        )
    return 1, affordable
