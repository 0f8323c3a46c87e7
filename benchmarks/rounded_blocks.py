"""A training step in C, in which those values are rounded that a 16-bit GPU step would round.

kernels/block.cuh says which arrays such a step stores and which values its tensor cores multiply.
Rounded when stored, of every block:

    y     the activation, before its moments are computed
    dx    the gradient with respect to the output of the normalisation, after the way back through
          the dropout, before its sums are computed

Rounded as operands of products, of every block but the first:

    x         the input, after normalisation and dropout
    kernel    a copy; Adam changes the weights in float32
    dz        the gradient before the activation; the gradient of the bias sums it unrounded

All else stays float32: sums, statistics, weights, Adam, the dense layer, and all of inference.
"""

import numpy as np

from benchmarks.rungs import Apart
from minicnn.backends.cpu_blocks import BlockPlan, FusedNetwork, rows_of
from minicnn.backends.ops_cpu import Operations

KINDS = "y", "x", "kernel", "dx", "dz"
GRADIENTS = "dx", "dz"  # what a loss scale multiplies


class RoundingOperations(Operations):
    """The operations in C; networks of blocks are trained with a rounding.Rounder.

    The convolutions leave normalisation to passes of its own, so that values can be rounded in
    between. A stack that is no network of blocks cannot be trained so: see network/blocks.py.
    """

    def __init__(self, rounder, cpu=None):
        super().__init__(cpu)
        self.convolution, self.rounder = Apart(self.cpu), rounder

    def fusion(self, nodes, nets, batch):
        found = super().fusion(nodes, nets, batch)
        if found is None:
            raise ValueError("layers: expected a network of blocks")
        return RoundedNetwork(found.blocks, found.dense, self)


class RoundedNetwork(FusedNetwork):
    """A network of blocks whose values are rounded in training, not in inference."""

    def plan(self, model, batch, training):
        return (RoundedPlan if training else BlockPlan)(model, self, batch, training)


class RoundedPlan(BlockPlan):
    """The passes of a training step, with roundings between them."""

    def __init__(self, model, network, batch, training):
        super().__init__(model, network, batch, training)
        self._python, self._rounder = model.ops.cpu.python, model.ops.rounder
        self._kernels = []
        for block in network.blocks:
            kernel = block.convolution.weights.kernel
            self._kernels.append(model.ops.empty(kernel.shape, kernel.dtype))
        self.nbytes += sum(kernel.nbytes for kernel in self._kernels)

    def _round(self, kind, array):
        self._python(self._rounder, kind, array, self._step)

    # ---- forward -----------------------------------------------------------------------------

    def _convolve(self, i):
        block, y = self.network.blocks[i], self.arrays[i].y
        w, kernel, (x, _) = block.convolution.weights, self._kernels[i], self._input(i)
        self._python(np.copyto, kernel, w.kernel)
        if i:
            self._round("kernel", kernel)
        self._ops.convolution.forward(
            x, kernel, w.bias, block.window, block.relu, y, self._workspace
        )
        self._round("y", y)

    def _apply(self, i):
        super()._apply(i)
        if i + 1 < len(self.arrays):  # the dense layer reads float32
            self._round("x", self.arrays[i].normalized)

    # ---- backward ----------------------------------------------------------------------------

    def _normalize_backward(self, i):
        block, a = self.network.blocks[i], self.arrays[i]
        n, rows = block.normalization, rows_of(a.y.shape)
        if a.mask is not None:
            self._ops.dropout_backward(a.dx, block.drop.rate, a.mask, a.dx)
        self._round("dx", a.dx)
        self._call(
            "batch_norm_dropped_sums",
            x=a.y, dy=a.dx, **rows, mean=a.mean, mask=None, keep=1.0, dropped=None, sums=a.sums,
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
        if not i:
            super()._weight_gradient(i)
            return
        dz, bias = self.arrays[i].dx, self.network.blocks[i].convolution.gradients.bias
        exact, rounded = np.empty((2, *bias.shape), bias.dtype)  # sums of dz
        self._python(_add_up, dz, exact)
        self._round("dz", dz)
        self._python(_add_up, dz, rounded)
        super()._weight_gradient(i)
        self._python(_replace_term, bias, rounded, exact)

    def _input_gradient(self, i):
        block = self.network.blocks[i]
        self._ops.convolution.input_gradient(
            self.arrays[i].dx, self._kernels[i], block.window, self.arrays[i - 1].dx,
            self._workspace,
        )  # fmt: skip


def _add_up(dz, sums):
    """The sums of dz (E, B, H, W, C) over images and pixels -> sums (E, C)."""
    rows = dz.reshape(len(dz), -1, dz.shape[-1])
    np.matmul(np.ones((1, rows.shape[1]), dz.dtype), rows, out=sums[:, None])


def _replace_term(total, old, new):
    """total + new - old -> total. Where old and new are equal, total keeps its bits."""
    total += new - old
