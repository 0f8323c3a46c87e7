"""Fused blocks: trains networks of convolutions with batch normalisation in few launches.

One launch computes a block's activation y, including the normalisation and dropout before the
block, and writes partial sums for the next normalisation. The backward launches mirror it. So each
activation is written once in a step and read by at most five launches. That of a first block with
a small kernel is not written at all: the launches of the second block rebuild it from the image
(kernels/rebuilt.cuh). A step of the seed network has 26 launches, for all layers and nets. Their
grids are cut for the number of nets. The two gradients of a block are launched together, because a
weight gradient of a single net fills a small part of a GPU.

`fusion` decides whether a stack of layers is such a network. Other stacks run layer by layer
(network/plan.py), as every stack does in float32 on a GPU.

cuda_fusion.py decides which networks fit the kernels, cuda_tiles.py chooses how launches split
their work, and cuda_block_arrays.py has the arrays. Read kernels/block.cuh next, then
correlation.cuh and the kernels.
"""

from dataclasses import dataclass, fields
from functools import partial
from math import prod

from . import cuda_tiles
from .cuda_block_arrays import BlockArrays, arrays_layout
from .cuda_costs import SHARE
from .cuda_forms import TF32
from .cuda_fusion import Network, find_network

_THREADS = 256


def fusion(nodes, batch, storage=TF32, share=SHARE):
    """The FusedNetwork of a stack of layers at a batch size; None if it cannot be fused.

    If it cannot with this Storage, it is fused in TF32. share: the multiprocessors that a net has,
    a Fraction; it changes grids, but no bit of a result.
    """
    predicts = find_network(nodes, batch, TF32, share)
    trains = predicts
    if storage is not TF32:
        trains = find_network(nodes, batch, storage, share) or predicts
    if not (trains and predicts):
        return None
    return FusedNetwork(*(getattr(trains, f.name) for f in fields(trains)), predicts)


@dataclass(frozen=True)
class FusedNetwork(Network):
    """A Network that network/plan.py can plan."""

    predicts: Network  # the same for predictions, which are in TF32: they are a small part of a run

    def layout(self, nodes, nets, batch, training, dtype):
        """{key: (shape, dtype)} of every array of its plan, as plan.plan_layout."""
        network = self if training else self.predicts
        return arrays_layout(network, nodes, nets, batch, training, dtype)

    def plan(self, model, batch, training):
        """Its plan for a batch size, which has the attributes and methods of plan.Plan."""
        return BlockPlan(model, self if training else self.predicts, batch, training)


class BlockPlan:
    """The passes of a fused network over one batch size; it has what plan.Plan has."""

    def __init__(self, model, network, batch, training):
        self.ops, self.network = model.ops, network
        # No reference to the model, which refers to this plan: without a cycle the memory of both
        # is freed as soon as the model is.
        self._seed, self._nets, self._step = model.seed, model.net_numbers, model.step
        self._smoothing = model.label_smoothing
        self._params, self._gradients, self._moving = model.params, model.gradients, model.moving
        self.batch, self.training = batch, training
        self._arrays = arrays = BlockArrays(model, network, batch, training)
        self.x, self.labels, self.output = arrays.x, arrays.labels, arrays.output
        self.loss, self.correct, self.nbytes = arrays.loss, arrays.correct, arrays.nbytes
        self._launch = model.ops.launch

    # ---- passes ------------------------------------------------------------------------------

    def forward(self):
        """Compute the logits of x; in training also the loss, with the head's gradients."""
        blocks, arrays = self.network.blocks, self._arrays
        if self.training:
            self._draw_dropout()
        self._pack_weights()
        for i in range(len(blocks)):
            self.forward_block(i)
        if self.training:
            self.head()
            return
        last, dense = blocks[-1].normalization, self.network.dense
        self.ops.batch_norm_inference(
            x=arrays.y[-1], gamma=last.weights.gamma, beta=last.weights.beta,
            epsilon=last.layer.epsilon, mean=last.moving.moving_mean,
            variance=last.moving.moving_variance, y=arrays.normalized,
        )  # fmt: skip
        rows = arrays.normalized.reshape(*self.output.shape[:2], -1)
        w = dense.weights
        self.ops.dense(rows, w.kernel, w.bias, "linear", self.output, None)

    def forward_backward(self):
        """Compute loss and gradients of the batch in x and labels."""
        self._forward_backward()
        self._launch_for_sums("sum_parts.cu", "sum_parts", gradients=self._gradients)

    def train(self, optimizer, *arguments):
        """Compute the loss, then update the weights and the moving statistics.

        arguments: those of optimizer.update after `ops`. Gradients that are sums of several partial
        sums are never written: the optimizer's launch adds them up.
        """
        self._forward_backward()
        optimizer.update(self, *arguments)

    def adam(self, *arguments):
        """Adam's step, as in backend.py, on partial sums; and the update of moving statistics."""
        moving = {"moving": None, "batch": None, "M": 0, "keep": 0.0, "take": 0.0}
        if (momentum := self._momentum()) is None:
            self.update_moving()
        else:
            rows = {"moving": self._moving, "batch": self._arrays.all_moments}
            moving = {**rows, "M": self._moving.shape[1], "keep": momentum, "take": 1 - momentum}
        self._launch_for_sums(
            "adam.cu", "adam_from_parts", **self.ops.adam_arguments(*arguments), **moving
        )

    def _forward_backward(self):
        """Compute the loss and the partial sums of all gradients."""
        self.forward()
        for i in range(len(self.network.blocks) - 1, 0, -1):
            self.ops.together(partial(self.weight_gradient, i), partial(self.input_gradient, i))
        if self.network.blocks[0].rebuilt:
            self.rebuilt_weight_gradient()
        else:
            self.weight_gradient(0)

    def _launch_for_sums(self, file, kernel, **arguments):
        """Launch a kernel that adds up the partial sums of gradients: see update.cuh."""
        sums = self._arrays.tables["sums"]  # a row for each thread block
        self._launch(
            file, kernel, (len(sums),), (_THREADS,),
            sums=sums.reshape(-1), parts=self._arrays.all_parts, **arguments,
        )  # fmt: skip

    def update_moving(self, momentum=None):
        """Update the moving statistics after a training step, or a forward pass in training.

        momentum: of the update (default: that of each layer).
        """
        momentum = self._momentum() if momentum is None else momentum
        if momentum is not None:  # one launch for all blocks
            self.ops.update_moving(self._moving, self._arrays.all_moments, momentum)
            return
        for block, moments in zip(self.network.blocks, self._arrays.moments, strict=True):
            n = block.normalization
            for name, moving in vars(n.moving).items():
                self.ops.update_moving(moving, vars(moments)[name], n.layer.momentum)

    def _momentum(self):
        """The momentum of all moving statistics, or None if blocks have different ones."""
        found = {block.normalization.layer.momentum for block in self.network.blocks}
        return found.pop() if len(found) == 1 else None

    # ---- launches ----------------------------------------------------------------------------

    def _draw_dropout(self):
        kept = self._arrays.all_kept
        if kept is None:
            return
        layers, words = self._arrays.tables["drops"], kept.shape[1]
        self._launch(
            "dropout.cu", "dropout_bits", (-(-words // _THREADS),), (_THREADS,),
            layers=layers.reshape(-1), count=len(layers), words=words,
            seed=self._seed, nets=self._nets, step=self._step, kept=kept,
        )  # fmt: skip

    def _pack_weights(self):
        tiles = self._arrays.tables.get("weights")
        if tiles is None:  # no block but the first
            return
        self._launch(
            "pack_weights.cu", "pack_weights", (len(tiles),), (_THREADS,),
            tiles=tiles.reshape(-1), weights=self._params, packed=self._arrays.all_packed,
            defines=self.network.storage.defines,
        )  # fmt: skip

    def forward_block(self, i):
        """Launch the forward pass of block i."""
        block, arrays = self.network.blocks[i], self._arrays
        w = block.convolution.weights
        parts = arrays.parts[i].moments if self.training else None
        arguments = {
            "bias": w.bias, "s": block.sizes(self.batch), "floor": block.floor, "parts": parts,
        }  # fmt: skip
        if block.rebuilt and not self.training:  # with moments that are known, nothing is left
            return
        if block.rebuilt:
            self._run(
                "rebuilt.cu", "rebuilt_moments", block.forward,
                x=self.x, kernel=w.kernel, sums=arrays.parts[i].of_y, **arguments,
            )  # fmt: skip
            return
        arguments["y"] = arrays.y[i]
        if block.first:
            self._run(
                "block_first.cu", "block_first_forward", block.forward,
                x=self.x, kernel=w.kernel, **arguments,
            )  # fmt: skip
            return
        parts_below = arrays.parts[i - 1].moments if i and self.training else None
        self._run(
            "block_forward.cu", "block_forward", block.forward, **self._input_of(i), **arguments,
            parts_below=parts_below, count_below=0 if parts_below is None else parts_below.shape[1],
            packed=arrays.packed["forward", i], tables=arrays.tables["forward", i],
            **self._first(i),
        )  # fmt: skip

    def head(self):
        """Launch the head of the network: from the last block's y to its dx."""
        block, dense, arrays = self.network.blocks[-1], self.network.dense, self._arrays
        n, parts, moments = block.normalization, arrays.parts[-1], arrays.moments[-1]
        self._launch(
            "head.cu", "head", (1,), (cuda_tiles.HEAD_THREADS,),
            shared_bytes=self.network.head_bytes, defines=self.network.storage.defines,
            # the last block: its activation, normalisation and dropout
            y=arrays.y[-1], gamma=n.weights.gamma, beta=n.weights.beta,
            moments=parts.moments, moments_count=parts.moments.shape[1], epsilon=n.layer.epsilon,
            kept_scale=block.drop.scale, kept=arrays.kept[-1],
            # the dense layer and the loss
            kernel=dense.weights.kernel, bias=dense.weights.bias, labels=self.labels,
            smoothing=self._smoothing,
            # sizes
            B=self.batch, F=prod(arrays.y[-1].shape[2:]), C=block.filters, units=dense.layer.units,
            images=self.network.head_images,
            # results
            mean=moments.moving_mean, variance=moments.moving_variance,
            logits=self.output, loss=self.loss, correct=self.correct,
            dkernel=dense.gradients.kernel, dbias=dense.gradients.bias,
            dx=arrays.dx[-1], sums=parts.sums,
        )  # fmt: skip

    def weight_gradient(self, i):
        """Launch the gradients of block i with respect to its kernel and bias."""
        block, arrays = self.network.blocks[i], self._arrays
        arguments = {
            **self._gradient_of(i),
            "s": block.sizes(self.batch),
            "parts": arrays.parts[i].weights,
            **self._normalization_gradients(i),
        }
        if block.first:
            self._run(
                "block_first.cu", "block_first_weight_gradient", block.weight_gradient,
                x=self.x, **arguments,
            )  # fmt: skip
            return
        self._run(
            "block_weight_gradient.cu", "block_weight_gradient", block.weight_gradient,
            **self._input_of(i), **arguments, table=arrays.tables["weight gradient", i],
            **self._first(i),
        )  # fmt: skip

    def input_gradient(self, i):
        """Launch the gradient of block i > 0 with respect to its input."""
        block, arrays = self.network.blocks[i], self._arrays
        self._run(
            "block_input_gradient.cu", "block_input_gradient", block.input_gradient,
            **self._gradient_of(i), **self._below(i),
            packed=arrays.packed["input gradient", i], s=block.gradient_sizes(self.batch),
            tables=arrays.tables["input gradient", i],
            phases=prod(map(len, block.gradient_window.phases)),
            dx_below=arrays.dx[i - 1], parts=arrays.parts[i - 1].sums, **self._first(i),
            sums_first=getattr(arrays.parts[i - 1], "of_dx", None),
        )  # fmt: skip

    def rebuilt_weight_gradient(self):
        """Launch the gradients of a rebuilt block's kernel and bias, from its sums over pixels."""
        block, parts = self.network.blocks[0], self._arrays.parts[0]
        gradients, of_block = block.convolution.gradients, self._gradient_of(0)
        self._launch(
            "rebuilt.cu", "rebuilt_weight_gradient",
            (-(-block.weights * cuda_tiles.SHARERS // _THREADS),), (_THREADS,),
            of_dx=parts.of_dx, count=parts.of_dx.shape[1],
            of_y=parts.of_y, count_y=parts.of_y.shape[1],
            s=block.sizes(self.batch), dkernel=gradients.kernel, dbias=gradients.bias,
            **self._normalization_gradients(0),
            **{name: of_block[name] for name in of_block if name not in ("dx", "y", "floor")},
            shared_bytes=cuda_tiles.coefficients_bytes(block.filters),
            defines=self.network.storage.defines,
        )  # fmt: skip

    def _normalization_gradients(self, i):
        """The gradients of gamma and beta, which the launch of block i's weight gradient writes."""
        gradients = self.network.blocks[i].normalization.gradients
        return {"dgamma": gradients.gamma, "dbeta": gradients.beta}

    def _first(self, i):
        """The arguments from which the launches of block i rebuild the first block, if they do."""
        first = self.network.blocks[0]
        rebuilds = i == 1 and first.rebuilt
        w = first.convolution.weights
        return {
            "x_first": self.x if rebuilds else None,
            "kernel_first": w.kernel if rebuilds else None,
            "bias_first": w.bias if rebuilds else None,
            "floor_first": first.floor,
            "s_first": first.sizes(self.batch),
        }

    def _input_of(self, i):
        """The arguments from which a kernel computes x, the input of block i."""
        if not i:  # x itself: no normalisation, no dropout
            return {
                "y_below": self.x, "gamma_below": None, "beta_below": None, "mean_below": None,
                "variance_below": None, "epsilon_below": 1.0, "kept_scale": 1.0, "kept": None,
            }  # fmt: skip
        weights = self.network.blocks[i - 1].normalization.weights
        return {**self._below(i), "gamma_below": weights.gamma, "beta_below": weights.beta}

    def _below(self, i):
        """The arguments that describe the block below: activation, moments and dropout."""
        below, arrays = self.network.blocks[i - 1], self._arrays
        n = below.normalization
        moments = arrays.moments[i - 1] if self.training else n.moving
        return {
            "y_below": arrays.y[i - 1],
            "mean_below": moments.moving_mean,
            "variance_below": moments.moving_variance,
            "epsilon_below": n.layer.epsilon,
            "kept_scale": below.drop.scale if self.training else 1.0,
            "kept": arrays.kept[i - 1] if self.training else None,
        }

    def _gradient_of(self, i):
        """The arguments from which a kernel computes dz, the gradient before the activation."""
        block, arrays = self.network.blocks[i], self._arrays
        n, moments, sums = block.normalization, arrays.moments[i], arrays.parts[i].sums
        return {
            "dx": arrays.dx[i],
            "y": arrays.y[i],
            "sums_parts": sums,
            "sums_count": sums.shape[1],
            "gamma": n.weights.gamma,
            "mean": moments.moving_mean,
            "variance": moments.moving_variance,
            "epsilon": n.layer.epsilon,
            "floor": block.floor,
        }

    def _run(self, file, name, launch, /, **arguments):
        """Launch a kernel as its TiledLaunch says."""
        self._launch(
            file, name, launch.grid, (launch.threads,), **arguments, t=launch.tiling,
            shared_bytes=launch.shared_bytes, defines=launch.defines,
        )  # fmt: skip
