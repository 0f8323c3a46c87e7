"""Predictions of trained nets, batch by batch on the device; a step captured and replayed."""

import contextlib
from functools import partial

import numpy as np

from ..nets import PREDICT_BATCH
from .workers import Interrupted, take_cores


class Predictor:
    """Predicts the same images with a model again and again; the arrays for that are made once.

    images: (N, H, W) uint8, on the device. indices: (E, n), on the host; row e selects the images
    of net e.
    """

    def __init__(self, model, images, indices, graph=True):
        self.model, self.images = model, images
        ops, self.plan = model.ops, model.plan(PREDICT_BATCH, training=False)
        (E, self._count), batch = indices.shape, self.plan.batch
        self._batches = -(-self._count // batch)
        padded = np.zeros((E, self._batches * batch), np.int32)  # fills the last batch
        padded[:, : self._count] = indices
        self._order = ops.to_device(padded.reshape(E, self._batches, batch))
        self._outputs = ops.empty((E, self._batches, batch, *model.output_shape), model.dtype)
        self._done = ops.zeros((1,), np.int64)  # batches so far of a view, counted on the device
        # The ranges of the view, if it is not the image itself.
        self._of_view = ops.empty((2, 5), np.float32)
        self._unchanged, self._changed = CapturedStep(ops, graph), CapturedStep(ops, graph)

    def predict(self, report=lambda images: None, should_stop=lambda: False, views=1):
        """Class probabilities (E, n, classes), on the host.

        views: they are means over so many views of each image, see augment.views. report(n): n more
        images were predicted, each counted once per view. Raises Interrupted when should_stop()
        returns True.
        """
        model, ops, batch = self.model, self.model.ops, self.plan.batch
        total = None  # of the views' probabilities, in the order of the views
        take_cores()
        with ops.session():
            for view in model.views_of_images(views):
                run_step, ranges = self._unchanged, None
                if view is not None:
                    run_step, ranges = self._changed, self._of_view
                    ops.copy(ops.to_device(view), ranges)
                self._done[...] = 0
                for first in range(0, self._batches * batch, batch):
                    if should_stop():
                        raise Interrupted
                    run_step(partial(self._predict_batch, ranges))
                    report(len(self._outputs) * (min(first + batch, self._count) - first))
                found = ops.to_host(self._outputs)
                total = found if total is None else np.add(total, found, out=total)
        if views > 1:
            total /= views
        return total.reshape(len(total), -1, *model.output_shape)[:, : self._count]

    def _predict_batch(self, ranges):
        model, plan = self.model, self.plan
        model.ops.load_batch(
            self.images,
            None,
            self._order,
            ranges,
            model.seed,
            model.net_numbers,
            self._done,
            plan.x,
            plan.labels,
        )
        model.ops.collect(model.infer(plan), self._done, self._outputs)


def predict(model, images, indices, *callbacks, graph=True, views=1):
    """The probabilities of a Predictor that is used once; callbacks: report and should_stop."""
    return Predictor(model, images, indices, graph).predict(*callbacks, views=views)


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
