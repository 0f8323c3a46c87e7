"""Nets: E networks of the same layers, trained at once, a step at a time.

The P trainable weights of a net are one row of the flat array `params` (E, P), its gradients one
row of `gradients` (E, P). So Adam is one operation, and a checkpoint is a few arrays. The layers
work on named views into these rows.

A training step is Nets.train_step: forward, loss, backward, moving statistics, Adam, metrics.
Sequential (model.py) adds what a user of the library calls: fit, evaluate, save.

Read network/stack.py (the flat arrays), network/layers.py and network/plan.py (the arrays of one
batch) next, then backends/ops_numpy.py.
"""

import contextlib
import warnings

import numpy as np

from . import augment, checks, devices, rng
from .network.optim import Adam
from .network.plan import make_plan
from .network.stack import batch_problem, views, weights_layout

PREDICT_BATCH = 64


class Nets:
    """E networks of one Architecture, each with its own weights.

    numbers: the E numbers of the nets, from 0. The random numbers of net n depend on (seed, n)
    only. The loss is softmax cross-entropy, so to be trained the stack must end in activation
    "softmax". device: a name in devices.py or a Backend (backends/backend.py), such as the
    Operations of ops_cuda.py or ops_cpu.py; dtype: "float32" or "float64"; precision: one of
    devices.PRECISIONS, that of matrix products; optimizer: an Adam; label_smoothing: in [0, 1), of
    the loss in training (ops_numpy.softmax_cross_entropy). Raises ValueError that names the
    argument.
    """

    def __init__(
        self,
        architecture,
        numbers,
        seed=0,
        device="auto",
        dtype="float32",
        precision="float32",
        optimizer=None,
        label_smoothing=0.0,
    ):
        self.dtype = _check_dtype(dtype)
        self.device, self.ops, self.device_reason = devices.choose(
            device, precision, self.dtype.name
        )
        if self.dtype.name not in self.ops.dtypes:
            raise ValueError(
                f"dtype: got {dtype!r}, the device {self.device!r} computes in "
                f"{' and '.join(self.ops.dtypes)}"
            )
        self.seed = checks.word("seed", seed)
        self.nets = np.array(numbers)  # (E,); on the device: net_numbers
        self.optimizer = Adam() if optimizer is None else optimizer
        if not isinstance(self.optimizer, Adam):
            raise ValueError(f"optimizer: got {optimizer!r}, expected an Adam")
        self.label_smoothing = checks.number("label_smoothing", label_smoothing, 0, 1, "[)")
        self.architecture = architecture
        self.layers, self.input_shape = list(architecture.layers), architecture.input_shape
        self.nodes = architecture.nodes
        self.output_shape = self.nodes[-1].output_shape
        self._ends_in_softmax = self.layers[-1].activation == "softmax"
        with self.ops.session():
            self._allocate()
            self._initialize()
        self._plans = {}

    # ---- weights ----------------------------------------------------------------------------

    def _allocate(self):
        """Allocate the flat arrays, and set each node's named views into them."""
        layout = weights_layout(self.nodes, len(self.nets), self.dtype)
        arrays = {name: self.ops.zeros(shape, dtype) for name, (shape, dtype) in layout.items()}
        self.params, self.gradients = arrays["params"], arrays["gradients"]  # (E, P)
        self.moment_1, self.moment_2 = arrays["moment_1"], arrays["moment_2"]  # (E, P), of Adam
        self.moving = arrays["moving"]  # (E, M)
        self.step, self.learning_rate = arrays["step"], arrays["learning_rate"]  # (1,)
        self.net_numbers = self.ops.to_device(self.nets)
        at = moving_at = 0
        for node in self.nodes:
            node.weights, _ = views(self.params, node.specs, at)
            node.gradients, at = views(self.gradients, node.specs, at)
            node.moving, moving_at = views(self.moving, node.moving_specs, moving_at)

    def _initialize(self):
        """Set the initial weights of each net, and reset its moving statistics.

        params[e, i] = center[i] + limit[i] * u, with u in [-1, 1) from word i of stream WEIGHTS.
        """
        P, M = self.params.shape[1], self.moving.shape[1]
        center, limit = np.zeros((2, 1, P), np.float32)
        moving = np.zeros((1, M), self.dtype)
        at = moving_at = 0
        for node in self.nodes:
            centers, _ = views(center, node.specs, at)
            limits, at = views(limit, node.specs, at)
            for name, spec in node.specs.items():
                vars(centers)[name][...] = spec.center
                vars(limits)[name][...] = spec.limit
            movings, moving_at = views(moving, node.moving_specs, moving_at)
            for name, spec in node.moving_specs.items():
                vars(movings)[name][...] = spec.center
        self.ops.copy(self.ops.to_device(np.repeat(moving, len(self.nets), axis=0)), self.moving)
        words = np.empty(P, np.uint32)
        for e, net in enumerate(self.nets):
            rng.random_words(self.seed, int(net), rng.WEIGHTS, 0, words)
            start = center[0] + limit[0] * rng.draw(-1, 1, words)
            self.params[e] = self.ops.to_device(start.astype(self.dtype))

    @property
    def named_weights(self):
        """{"conv2d/kernel": view (E, ...), ...} in Keras's order, including moving statistics."""
        return {
            f"{node.name}/{name}": view
            for node in self.nodes
            for group in (node.weights, node.moving)
            for name, view in vars(group).items()
        }

    @property
    def trainable_weights(self):
        """Copies of the trainable weights, each (E, ...), in the order of the gradients."""
        return [self.ops.to_host(v) for node in self.nodes for v in vars(node.weights).values()]

    def get_weights(self):
        """Copies of all weights, each (E, ...), in Keras's order."""
        return [self.ops.to_host(view) for view in self.named_weights.values()]

    def set_weights(self, weights):
        """Set all weights, in the form of get_weights. Raises ValueError for other shapes."""
        ours = self.named_weights
        if not isinstance(weights, (list, tuple)):
            raise ValueError(f"weights: got {weights!r}, expected a list of arrays")
        try:
            weights = [np.asarray(weight) for weight in weights]
        except ValueError as error:  # rows of different lengths
            raise ValueError(f"weights: got {error}, expected a list of arrays") from None
        if len(weights) != len(ours):
            raise ValueError(f"weights: got {len(weights)} arrays, this model has {len(ours)}")
        for (name, view), weight in zip(ours.items(), weights, strict=True):
            if weight.shape != view.shape:
                raise ValueError(
                    f"weights: {name} has shape {weight.shape}, this model expects {view.shape}"
                )
            if weight.dtype.kind not in "iuf":
                raise ValueError(f"weights: {name} has dtype {weight.dtype}, expected numbers")
        for view, weight in zip(ours.values(), weights, strict=True):
            self.ops.copy(self.ops.to_device(weight.astype(self.dtype)), view)

    def count_params(self):
        """The number of weights of one net, including moving statistics."""
        return sum(node.count_params() for node in self.nodes)

    def summary(self):
        """A table as text: layer, output shape, number of weights."""
        lines = [f"{'Layer':<28}{'Output':<18}{'Weights':>10}"]
        for node in self.nodes:
            lines.append(f"{node.name:<28}{node.output_shape!s:<18}{node.count_params():>10,}")
        total = f"{self.count_params():,} weights a net, {len(self.nets)} net(s)"
        return "\n".join([*lines, total])

    # ---- public methods: NumPy arrays in, NumPy arrays out ------------------------------------

    def predict(self, x, views=1):
        """Class probabilities (E, N, classes) by each net, for images x (N, H, W, C) in [0, 1].

        views: they are means over so many views of each image, see augment.views. Changes no state.
        """
        x, shown = self._check_images("x", x, "N"), self.views_of_images(views)
        outputs = np.empty((len(self.nets), len(x), *self.output_shape), self.dtype)
        plan = self.plan(min(PREDICT_BATCH, max(len(x), 1)), training=False)
        with self.ops.session():
            for first in range(0, len(x), plan.batch):
                part = x[first : first + plan.batch]
                total = outputs[:, first : first + len(part)]
                for view in shown:
                    seen = part if view is None else _seen(part, view)
                    # A short last batch leaves older images in the other rows; they are not used.
                    plan.x[:, : len(part)] = self.ops.to_device(seen)
                    found = self.ops.to_host(self.infer(plan))[:, : len(part)]
                    total[...] = found if view is None else total + found
        if views > 1:
            outputs /= views
        return outputs

    def views_of_images(self, count):
        """The views, as augment.views gives them, over which predictions are averaged.

        Raises ValueError for more than one unless a network takes images and returns vectors.
        """
        if len(self.input_shape) == 3 and len(self.output_shape) == 1:
            return augment.views(count, *self.input_shape[:2])
        if count != 1:
            raise ValueError(f"views: got {count!r}, expected 1: they are for classes of images")
        return [None]

    def loss_and_gradients(self, x, y):
        """Loss (E,) and gradients of a batch in training mode, without changing any state.

        x (E, B, H, W, C) in [0, 1]; y (E, B) integer labels. The gradients are a list in the order
        of trainable_weights. Dropout uses the masks of the current step, so a second call returns
        the same values.
        """
        with self.ops.session():
            plan = self._load(x, y)
            plan.forward_backward()
            loss = self.ops.to_host(plan.loss)
        views = (view for node in self.nodes for view in vars(node.gradients).values())
        return loss, [self.ops.to_host(view) for view in views]

    def train_on_batch(self, x, y, learning_rate=None):
        """One Adam step on images x (E, B, H, W, C) in [0, 1] with integer labels y (E, B).

        learning_rate: the optimizer's unless given. Returns loss (E,) and accuracy (E,) of this
        batch before the step. Warns if a batch normalisation has a single value per channel,
        because what is before it then learns nothing.
        """
        if learning_rate is None:
            learning_rate = self.optimizer.learning_rate
        rate = checks.number("learning_rate", learning_rate, 0)
        with self.ops.session():
            plan = self._load(x, y)
            if problem := batch_problem(self.nodes, plan.batch):
                warnings.warn(problem, stacklevel=2)
            self.learning_rate[...] = rate
            self.train_step(plan)
            return self.ops.to_host(plan.loss), self.ops.to_host(plan.correct) / plan.batch

    def _load(self, x, y):
        x = self._check_images("x", x, "E, B")
        E, B = x.shape[:2]
        if E != len(self.nets) or B < 1:
            raise ValueError(
                f"x: got {E} nets, {B} images; expected {len(self.nets)} nets, at least 1 image"
            )
        y = np.asarray(y)
        classes = self.output_shape[0]
        if y.shape != (E, B) or y.dtype.kind not in "iu":
            raise ValueError(f"y: got shape {y.shape} of {y.dtype}, expected {(E, B)} integers")
        if y.min() < 0 or y.max() >= classes:
            raise ValueError(f"y: got {y.min()} to {y.max()}, expected labels 0 to {classes - 1}")
        plan = self.plan(B, training=True)
        plan.x[...] = self.ops.to_device(x)
        plan.labels[...] = self.ops.to_device(y)
        return plan

    def _check_images(self, name, x, axes):
        x = np.asarray(x)
        expected = f"({axes}, {', '.join(map(str, self.input_shape))}) floats in [0, 1]"
        if x.dtype.kind != "f":
            raise ValueError(f"{name}: got {x.dtype}, expected {expected}; divide bytes by 255")
        leading = axes.count(",") + 1
        if x.ndim != leading + len(self.input_shape) or x.shape[leading:] != self.input_shape:
            raise ValueError(f"{name}: got shape {x.shape}, expected {expected}")
        return x.astype(self.dtype, copy=False)

    def check_trainable(self):
        """Raise ValueError if the loss does not fit the output, or nothing can be trained."""
        if not self._ends_in_softmax:
            raise ValueError(
                "layers: the loss is softmax cross-entropy; the last layer's activation is "
                f"{self.layers[-1].activation!r}, expected 'softmax'"
            )
        if len(self.output_shape) != 1:
            raise ValueError(
                f"layers: the output has shape {self.output_shape}, expected (classes,) for the "
                "loss; end the stack with Flatten() and Dense()"
            )
        if not any(node.specs for node in self.nodes):
            raise ValueError("layers: got no layer with weights, expected at least one to train")

    # ---- passes over the arrays of a plan, on the device --------------------------------------

    def plan(self, batch, training):
        """The Plan (network/plan.py) for a batch size. It is allocated once and kept.

        Raises ValueError for training if the loss does not fit the stack's output.
        """
        if training:
            self.check_trainable()
        key = batch, training
        if key not in self._plans:
            self._plans[key] = make_plan(self, batch, training)
        return self._plans[key]

    def infer(self, plan):
        """The output (E, B, ...) for plan.x in inference mode, on the device."""
        plan.forward()
        if self._ends_in_softmax:
            self.ops.activate("softmax", plan.output)
        return plan.output

    def train_step(self, plan, learning_rate=None, sums=None):
        """One training step on the batch in plan.x and plan.labels.

        learning_rate (n,) float64, on the device: see Adam.update (default: self.learning_rate).
        sums (E, 3) float64, on the device: the loss and correct predictions are added to them, see
        ops_numpy.accumulate. `gradients` need not hold the gradients of the step afterwards.
        """
        plan.train(
            self.optimizer,
            self.params,
            self.gradients,
            self.moment_1,
            self.moment_2,
            self.step,
            self.learning_rate if learning_rate is None else learning_rate,
        )
        self.ops.accumulate(plan.loss, plan.correct, self.step, sums)


def _seen(images, view):
    """Images (B, H, W, C) in one of augment.views."""
    return augment.affine_transform(images, *np.tile(view[0, :, None], len(images)))


def _check_dtype(dtype):
    with contextlib.suppress(TypeError):
        # np.dtype(None) is float64
        if dtype is not None and np.dtype(dtype) in (np.float32, np.float64):
            return np.dtype(dtype)
    raise ValueError(f"dtype: got {dtype!r}, expected 'float32' or 'float64'")
