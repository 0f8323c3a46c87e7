"""Predictions of trained nets, batch by batch on the device; a step captured and replayed."""

import contextlib
from functools import partial

import numpy as np

from ..nets import PREDICT_BATCH
from .workers import Interrupted, take_cores


def predict(
    model,
    images,
    indices,
    report=lambda images: None,
    should_stop=lambda: False,
    graph=True,
    views=1,
):
    """Class probabilities (E, n, classes), on the host, of n images for each of E nets.

    images: (N, H, W) uint8, on the device. indices: (E, n), on the host; row e selects the images
    of net e. views: the probabilities are means over so many views of each image, see
    augment.views. report(n): n more images were predicted, each counted once per view. Raises
    Interrupted when should_stop() returns True.
    """
    ops = model.ops
    E, n = indices.shape
    plan = model.plan(PREDICT_BATCH, training=False)
    batches = -(-n // plan.batch)
    padded = np.zeros((E, batches * plan.batch), np.int32)  # fills the last batch
    padded[:, :n] = indices
    order = ops.to_device(padded.reshape(E, batches, plan.batch))
    outputs = ops.empty((E, batches, plan.batch, *model.output_shape), model.dtype)
    done = ops.zeros((1,), np.int64)  # batches so far of a view, counted on the device
    of_view = ops.empty((2, 5), np.float32)  # the ranges of the view, if it is not the image itself

    def predict_batch(ranges):
        ops.load_batch(
            images, None, order, ranges, model.seed, model.net_numbers, done, plan.x, plan.labels
        )
        ops.collect(model.infer(plan), done, outputs)

    total = None  # of the views' probabilities, in the order of the views
    take_cores()
    with ops.session():
        unchanged = CapturedStep(ops, graph), partial(predict_batch, None)
        changed = CapturedStep(ops, graph), partial(predict_batch, of_view)
        for view in model.views_of_images(views):
            run_step, step = unchanged if view is None else changed
            if view is not None:
                ops.copy(ops.to_device(view), of_view)
                done[...] = 0
            for batch in range(batches):
                if should_stop():
                    raise Interrupted
                run_step(step)
                report(E * (min((batch + 1) * plan.batch, n) - batch * plan.batch))
            found = ops.to_host(outputs)
            total = found if total is None else np.add(total, found, out=total)
    if views > 1:
        total /= views
    return total.reshape(E, -1, *model.output_shape)[:, :n]


class CapturedStep:
    """Runs a step; from the second call on it replays a captured copy.

    Call it with the same function each time. The first call runs the function, which compiles its
    kernels. The second call captures it (a CUDA graph on a GPU) and replays the capture, as all
    later calls do. Without support for capture, every call runs the function.

    The function is an argument of each call, not an attribute: it refers to a Trainer, whose arrays
    an attribute would keep in memory.
    """

    def __init__(self, ops, graph, around_first=contextlib.nullcontext):
        self._capture = ops.capture if graph else None
        self._around_first = around_first  # makes a context manager for the first call
        self._called, self._replay = False, None

    def __call__(self, function):
        if not self._called:
            with self._around_first():
                function()
            self._called = True
            return
        if self._capture and not self._replay:
            self._replay = self._capture(function)
        (self._replay or function)()


def score(probabilities, labels):
    """(loss, accuracy) of a net's probabilities (N, classes) of images with labels (N,).

    loss = mean over images of: -log(the probability of the image's label)
    """
    at_label = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    loss = -np.log(np.maximum(at_label, np.finfo(np.float32).tiny)).mean()
    return float(loss), float(np.mean(probabilities.argmax(axis=1) == labels))
