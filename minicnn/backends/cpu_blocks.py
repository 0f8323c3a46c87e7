"""Networks of blocks on a CPU: batch normalisation and dropout inside the convolutions.

Of a block (network/blocks.py) only the activation before its normalisation, y, and the dropout's
mask are stored. While a convolution stores y, it also computes the moments of groups of pixels. The
next convolution normalises and drops y while it loads its input; so does its weight gradient. Its
input gradient goes back through the dropout, and computes the sums of groups from which the
gradient of the normalisation follows.

Not every convolution can do that (`fuses` in cpu_convolution.py). Kernels of batch_norm.c do the
rest in passes of their own. A block that is normalised in such a pass stores the result too.

Stacks that are no network of blocks run layer by layer (network/plan.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from ..network import blocks
from ..network.plan import TrainsInTurn, batch_layout
from .cpu_convolution import Below, Fuses, Source

_CHUNK_ELEMENTS = 4096  # of x in batch normalisation: a chunk of x and one of dy fit the L1 cache
# What a block keeps for each channel: rows of an (E, rows, C) array; in training also dz's terms.
_STATISTICS = "mean", "variance", "mean_error"
_SCALES = "scale", "shift"
_TERMS = 4


def rows_of(shape):
    """batch_norm.c's sizes for x of a shape (E, ..., C): a row is a pixel of an image."""
    C = shape[-1]
    return {"rows": prod(shape[1:-1]), "C": C, "chunk_rows": max(1, _CHUNK_ELEMENTS // C)}


def fusion(nodes, batch, ops):
    """The FusedNetwork of a stack of layers for these ops_cpu.Operations; None if it is none."""
    found = blocks.find_network(nodes)
    if found is None:
        return None
    fuses = [ops.convolution.fuses(b.window, batch, b.channels, b.filters) for b in found.blocks]
    fused = [
        Block(block.convolution, block.normalization, block.drop, own, above)
        for block, own, above in zip(found.blocks, fuses, [*fuses[1:], Fuses()], strict=True)
    ]
    return FusedNetwork(fused, found.dense, ops)


@dataclass(frozen=True)
class Block(blocks.Block):
    """A block, and what the convolutions do for it."""

    fuses: Fuses  # moments: its convolution computes the moments
    above: Fuses  # source, sums: the next one normalises its y, and computes its sums


@dataclass(frozen=True)
class FusedNetwork(blocks.Network):
    """A network of blocks that network/plan.py can plan."""

    ops: object

    def plan(self, model, batch, training):
        """Its plan for a batch size, which has the attributes and methods of plan.Plan."""
        return BlockPlan(model, self, batch, training)

    def layout(self, nodes, nets, batch, training, dtype):
        """{key: (shape, dtype)} of every array of its plan, as plan.plan_layout.

        The two buffers hold the blocks' y in turns at inference, the gradients in training.
        """
        layout = batch_layout(nodes, nets, batch, dtype)
        layout["output"] = (nets, batch, *nodes[-1].output_shape), dtype
        shapes = [(nets, batch, *block.convolution.output_shape) for block in self.blocks]
        for k in range(2):
            layout["buffer", k] = (max(map(prod, shapes[k::2]), default=0),), dtype
        readers = [*(block.convolution for block in self.blocks), self.dense]
        bytes_ = [n.layer.workspace(self.ops, nets, batch, n.input_shape) for n in readers]
        layout["workspace"] = (max(bytes_),), np.dtype(np.uint8)
        rows = len(_SCALES) + (len(_STATISTICS) + _TERMS if training else 0)
        for i, block in enumerate(self.blocks):
            layout["channels", i] = (nets, rows, block.filters), dtype
        if not training:
            return layout
        layout["doutput"] = layout["output"]
        groups = [prod(shape) for i in range(len(shapes)) for shape in self.groups(i, batch)]
        layout["groups"] = (nets, max(groups)), np.dtype(np.float64)
        for i, (block, shape) in enumerate(zip(self.blocks, shapes, strict=True)):
            layout["y", i] = shape, dtype
            if block.drop.rate:
                layout["mask", i] = shape, np.dtype(bool)
            if not block.above.source:
                layout["normalized", i] = shape, dtype
        return layout

    def groups(self, i, batch):
        """The shapes (groups, 3, C) of block i's moments and (groups, 2, C) of its sums."""
        block = self.blocks[i]
        rows = rows_of((1, batch, *block.convolution.output_shape))
        moments = sums = -(-rows["rows"] // rows["chunk_rows"])
        if block.fuses.moments:
            moments, _ = self._groups_of_passes(block, batch)
        if block.above.sums:
            _, sums = self._groups_of_passes(self.blocks[i + 1], batch)
        return (moments, 3, block.filters), (sums, 2, block.filters)

    def _groups_of_passes(self, block, batch):
        """(groups of the forward pass, groups of the input gradient) of its convolution."""
        return self.ops.convolution.groups(block.window, batch, block.channels, block.filters)


class Step(NamedTuple):
    """A part of a pass, for one layer and all nets; run() computes it."""

    layer: str
    part: str
    run: Callable


class BlockPlan(TrainsInTurn):
    """The passes of a network of blocks over one batch size; it has what plan.Plan has.

    arrays[i] are those of block i. y is its activation (E, B, Ho, Wo, C), dx the gradient with
    respect to its output, which becomes dz in place; mask is None without dropout; normalized is
    its output, or None if the next block computes that from y.
    """

    def __init__(self, model, network, batch, training):
        self.network, self.batch, self.training = network, batch, training
        # No reference to the model, which refers to this plan: without a cycle the memory of both
        # is freed as soon as the model is.
        self._ops, self._call = model.ops, model.ops.cpu.call
        self._seed, self._nets, self._step = model.seed, model.net_numbers, model.step
        self._smoothing = model.label_smoothing
        layout = network.layout(model.nodes, len(model.nets), batch, training, model.dtype)
        # A short batch does not fill x, so x starts as zeros.
        made = {
            key: (self._ops.zeros if key == "x" else self._ops.empty)(shape, dtype)
            for key, (shape, dtype) in layout.items()
        }
        self.nbytes = sum(array.nbytes for array in made.values())
        self.x, self.labels, self.output = made["x"], made["labels"], made["output"]
        self.loss, self.correct = made["loss"], made["correct"]
        self.doutput, self._workspace = made.get("doutput"), made["workspace"]
        self.arrays = [self._arrays_of(i, made) for i in range(len(network.blocks))]
        # Working memory: a Step's workspace, and the moments or sums of groups for the next Step
        self.scratch = [made[key] for key in ("workspace", "groups") if key in made]

    def _arrays_of(self, i, made):
        block, channels = self.network.blocks[i], made["channels", i]
        shape = (len(self.x), self.batch, *block.convolution.output_shape)
        buffer = made["buffer", i % 2][: prod(shape)].reshape(shape)
        names = _SCALES + _STATISTICS if self.training else _SCALES
        found = SimpleNamespace(**{name: channels[:, k] for k, name in enumerate(names)})
        found.mask = made.get(("mask", i))
        if not self.training:
            found.mean = block.normalization.moving.moving_mean
            found.y, found.normalized = buffer, None if block.above.source else buffer
            return found
        found.terms = channels[:, len(names) :]
        found.y, found.dx, found.normalized = made["y", i], buffer, made.get(("normalized", i))
        found.moments, found.sums = (
            made["groups"][:, : prod(groups)].reshape(-1, *groups)
            for groups in self.network.groups(i, self.batch)
        )
        return found

    # ---- passes ------------------------------------------------------------------------------

    def forward(self):
        """Compute `output` from x."""
        for step in self.forward_steps():
            step.run()

    def forward_backward(self):
        """Compute the loss and the gradients of the batch in x and labels."""
        self.forward()
        for step in self.backward_steps():
            step.run()

    def update_moving(self, momentum=None):
        """Update the moving statistics after a training step, or a forward pass in training.

        momentum: of the update (default: that of each layer).
        """
        for block, a in zip(self.network.blocks, self.arrays, strict=True):
            layer, moving = block.normalization.layer, block.normalization.moving
            keep = layer.momentum if momentum is None else momentum
            self._ops.update_moving(moving.moving_mean, a.mean, keep)
            self._ops.update_moving(moving.moving_variance, a.variance, keep)

    def forward_steps(self):
        """The Steps of the forward pass, in order."""
        for i, (block, a) in enumerate(zip(self.network.blocks, self.arrays, strict=True)):
            yield Step(block.convolution.name, "forward", partial(self._convolve, i))
            if a.mask is not None:
                yield Step(block.drop.name, "forward", partial(self._draw_mask, i))
            normalize = self._normalize if self.training else self._normalize_for_inference
            yield Step(block.normalization.name, "forward", partial(normalize, i))
        yield Step(self.network.dense.name, "forward", self._dense)

    def backward_steps(self):
        """The Steps of the loss and of the backward pass, in order."""
        yield Step("loss", "both", self._loss)
        yield Step(self.network.dense.name, "weight gradient", self._dense_weight_gradient)
        yield Step(self.network.dense.name, "input gradient", self._dense_input_gradient)
        for i, block in reversed([*enumerate(self.network.blocks)]):
            yield Step(block.normalization.name, "backward", partial(self._normalize_backward, i))
            name = block.convolution.name
            yield Step(name, "weight gradient", partial(self._weight_gradient, i))
            if i:
                yield Step(name, "input gradient", partial(self._input_gradient, i))

    # ---- forward -----------------------------------------------------------------------------

    def _convolve(self, i):
        """y of block i, with its moments if its convolution computes them."""
        block, a = self.network.blocks[i], self.arrays[i]
        w = block.convolution.weights
        x, fused = self._input(i)
        if self.training and block.fuses.moments:
            fused["moments"] = a.moments
        self._ops.convolution.forward(
            x, w.kernel, w.bias, block.window, block.relu, a.y, self._workspace, **fused
        )

    def _input(self, i):
        """(x, further arguments) for the passes of block i that read its input."""
        if not i:
            return self.x, {}
        below = self.arrays[i - 1]
        if below.normalized is not None:
            return below.normalized, {}
        keep = self.network.blocks[i - 1].drop.scale
        return below.y, {"source": Source(below.mean, below.scale, below.shift, below.mask, keep)}

    def _draw_mask(self, i):
        drop, mask = self.network.blocks[i].drop, self.arrays[i].mask
        self._call(
            "dropout_mask",
            threshold=drop.threshold, seed=self._seed, net=self._nets, stream=drop.stream,
            step=self._step, count=prod(mask.shape[1:]), mask=mask,
        )  # fmt: skip

    def _normalize(self, i):
        """The statistics of block i's y, and its normalisation if the next block leaves it here."""
        block, a = self.network.blocks[i], self.arrays[i]
        w, epsilon = block.normalization.weights, block.normalization.layer.epsilon
        if not block.fuses.moments:
            self._call("batch_norm_moments", x=a.y, **rows_of(a.y.shape), moments=a.moments)
        self._call(
            "batch_norm_merge",
            moments=a.moments, groups=a.moments.shape[1], C=block.filters,
            gamma=w.gamma, beta=w.beta, epsilon=epsilon, mean=a.mean, variance=a.variance,
            mean_error=a.mean_error, scale=a.scale, shift=a.shift,
        )  # fmt: skip
        self._apply(i)

    def _normalize_for_inference(self, i):
        """The same with the moving statistics."""
        block, a = self.network.blocks[i], self.arrays[i]
        n = block.normalization
        self._call(
            "batch_norm_scale",
            C=block.filters, gamma=n.weights.gamma, beta=n.weights.beta, epsilon=n.layer.epsilon,
            variance=n.moving.moving_variance, mean_error=None, scale=a.scale, shift=a.shift,
        )  # fmt: skip
        self._apply(i)

    def _apply(self, i):
        a = self.arrays[i]
        if a.normalized is not None:
            self._call(
                "batch_norm_apply",
                x=a.y, **rows_of(a.y.shape), mean=a.mean, scale=a.scale, shift=a.shift,
                mask=a.mask, keep=self.network.blocks[i].drop.scale, y=a.normalized,
            )  # fmt: skip

    def _dense(self):
        w = self.network.dense.weights
        rows = self._as_rows(self.arrays[-1].normalized)
        self._ops.dense(rows, w.kernel, w.bias, "linear", self.output, self._workspace)

    def _as_rows(self, images):
        """(E, B, H, W, C) as the dense layer's (E, B, K)."""
        return images.reshape(*images.shape[:2], -1)

    # ---- backward ----------------------------------------------------------------------------

    def _loss(self):
        self._ops.softmax_cross_entropy(
            self.output, self.labels, self._smoothing, self.loss, self.correct, self.doutput
        )

    def _dense_weight_gradient(self):
        g, rows = self.network.dense.gradients, self._as_rows(self.arrays[-1].normalized)
        self._ops.dense_weight_gradient(rows, self.doutput, g.kernel, g.bias, self._workspace)

    def _dense_input_gradient(self):
        kernel, dx = self.network.dense.weights.kernel, self._as_rows(self.arrays[-1].dx)
        self._ops.dense_input_gradient(self.doutput, kernel, dx, self._workspace)

    def _normalize_backward(self, i):
        """dz of block i from its dx, in place, and the gradients of gamma and beta."""
        block, a = self.network.blocks[i], self.arrays[i]
        n, rows = block.normalization, rows_of(a.y.shape)
        if not block.above.sums:
            self._call(
                "batch_norm_dropped_sums",
                x=a.y, dy=a.dx, **rows, mean=a.mean, mask=a.mask, keep=block.drop.scale,
                dropped=None if a.mask is None else a.dx, sums=a.sums,
            )  # fmt: skip
        self._call(
            "batch_norm_terms",
            sums=a.sums, groups=a.sums.shape[1], rows=rows["rows"], C=block.filters,
            gamma=n.weights.gamma, epsilon=n.layer.epsilon, variance=a.variance,
            mean_error=a.mean_error, dgamma=n.gradients.gamma, dbeta=n.gradients.beta,
            terms=a.terms,
        )  # fmt: skip
        self._call(
            "batch_norm_input_gradient",
            x=a.y, dy=a.dx, **rows, mean=a.mean, terms=a.terms, relu=block.relu, dx=a.dx,
        )  # fmt: skip

    def _weight_gradient(self, i):
        block, a = self.network.blocks[i], self.arrays[i]
        g, (x, fused) = block.convolution.gradients, self._input(i)
        self._ops.convolution.weight_gradient(
            x, a.dx, block.window, g.kernel, g.bias, self._workspace, **fused
        )

    def _input_gradient(self, i):
        """dx of the block below, with its sums if the convolution computes them."""
        block, below, fused = self.network.blocks[i], self.arrays[i - 1], {}
        if block.fuses.sums:
            keep = self.network.blocks[i - 1].drop.scale
            fused["below"] = Below(below.y, below.mean, below.mask, keep, below.sums)
        kernel, dz = block.convolution.weights.kernel, self.arrays[i].dx
        self._ops.convolution.input_gradient(
            dz, kernel, block.window, below.dx, self._workspace, **fused
        )
