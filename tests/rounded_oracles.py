"""The gradients of a network of blocks whose values are rounded: see benchmarks/rounded_blocks.py.

In float64, with the loops of oracles.py. What is rounded, and how, is an argument.
"""

import numpy as np
from oracles import batch_norm, conv2d, conv2d_gradients, softmax_cross_entropy

from benchmarks.rounding import round_to
from minicnn.network.blocks import find_network


def expected_gradients(model, x, labels, masks, rounding):
    """The gradients of one net in float64; rounding(kind, i, array) rounds values of block i.

    masks: of the blocks' dropouts, or None.
    """
    network, value, kept = find_network(model.nodes), np.float64(x[0]), []
    for i, block in enumerate(network.blocks):
        w, n = block.convolution.weights, block.normalization
        inputs, kernel = (rounding(k, i, a) for k, a in (("x", value), ("kernel", w.kernel[0])))
        layer = block.convolution.layer
        y = conv2d(inputs, kernel, w.bias[0], layer.strides, layer.padding)
        y = rounding("y", i, np.maximum(y, 0))
        epsilon = n.layer.epsilon
        value, mean, variance = batch_norm(y, n.weights.gamma[0], n.weights.beta[0], epsilon)
        drop = 1 if masks[i] is None else masks[i][0] * block.drop.scale
        value, inverse = value * drop, 1 / np.sqrt(variance + epsilon)
        kept.append((inputs, kernel, y, (y - mean) * inverse, inverse, drop))
    dense, flat = network.dense.weights, value.reshape(len(value), -1)
    logits = flat @ np.float64(dense.kernel[0]) + dense.bias[0]
    dlogits = softmax_cross_entropy(logits, labels[0])[2]
    found = [flat.T @ dlogits, dlogits.sum(axis=0)]
    gradient = (dlogits @ np.float64(dense.kernel[0]).T).reshape(value.shape)
    for i in reversed(range(len(kept))):
        inputs, kernel, y, z, inverse, drop = kept[i]
        layer, gamma = network.blocks[i].convolution.layer, network.blocks[i].normalization.weights
        dx, axes = rounding("dx", i, gradient * drop), (0, 1, 2)
        mean, mean_z = dx.mean(axis=axes), (dx * z).mean(axis=axes)
        dz = np.where(y > 0, gamma.gamma[0] * inverse * (dx - mean - z * mean_z), 0)
        rounded = rounding("dz", i, dz)
        gradient, dkernel, _ = conv2d_gradients(
            inputs, kernel, rounded, layer.strides, layer.padding
        )
        dbias = rounding("sum of dz", i, dz).sum(axis=axes)
        count = dx[..., 0].size
        found = [dkernel, dbias, mean_z * count, mean * count, *found]
    return found


def rounding_of(name, scale, but="", also=""):
    """What the arm rounds, without the kind `but`, and with a kind or the first block `also`."""

    def rounding(kind, i, array):
        stored = kind in ("y", "dx")
        operand = kind in ("x", "kernel", "dz") and (i or also == "the first block")
        if (not (stored or operand) or kind == but) and kind != also:
            return array
        array = np.array(array, np.float32)
        round_to(name, array, scale if kind in ("dx", "dz", "sum of dz") else 1.0)
        return np.float64(array)

    return rounding


def distance(found, expected):
    """The mean over arrays of the relative difference."""
    pairs = zip(found, expected, strict=True)
    return np.mean([np.linalg.norm(a[0] - b) / np.linalg.norm(b) for a, b in pairs])
