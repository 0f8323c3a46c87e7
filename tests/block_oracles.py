"""Oracles of the kernels of fused blocks, for one net, in float64.

The convolutions are those of oracles.py. Everything between them exists in two forms: exact, and
with `rounded` rounded as kernels/block.cuh describes (to float32, and to operands of tensor cores
before products), so that a kernel differs only in the order of its sums, and in what it does when
it stores a result in 16 bits. `given` is a namespace of the block's sizes and float32 arrays: one
net of a Block of block_cases.py. Its `storage` is "tf32" or "bfloat16".
"""

from types import SimpleNamespace

import numpy as np
from oracles import adam, conv2d, conv2d_gradients


def to_tf32(x):
    """x rounded to a mantissa of 10 bits, ties away from zero; as float64."""
    bits = np.float32(x).view(np.uint32) + np.uint32(0x1000)
    return (bits & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)


def to_bfloat16(x):
    """x rounded to a mantissa of 7 bits, ties to even; as float64."""
    bits = np.float32(x).view(np.uint32)
    nearest = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    nearest &= np.uint32(0xFFFF0000)
    return np.where(np.isnan(x), np.nan, nearest.view(np.float32)).astype(np.float64)


def bits16(x):
    """The upper halves of float32 numbers: as bfloat16 is stored, uint16."""
    return (x.view(np.uint32) >> 16).astype(np.uint16)


def widened(bits):
    """The numbers, float32, that are stored as bfloat16."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def operand(x, storage):
    """x as tensor cores multiply it."""
    return {"tf32": to_tf32, "bfloat16": to_bfloat16}[storage](x)


def packed(kernel, slots, width, storage="tf32"):
    """The weights of a correlation in the order of pack_weights.cu, in words, as float32.

    kernel: (taps, channels of the depth, result channels). slots: [(tap, first channel, first
    filter)]. A slot is 32 channels by `width` filters, zero outside the kernel. A word is a TF32
    number, or two bfloat16 ones, the first in its lower half.
    """
    found = []
    for tap, channel, filter in slots:
        weights = np.zeros((32, width), np.float32)
        inside = kernel[tap, channel : channel + 32, filter : filter + width]
        weights[: inside.shape[0], : inside.shape[1]] = inside
        words = np.float32(operand(weights, storage))
        if storage == "bfloat16":
            halves = words.view(np.uint32) >> 16
            words = (halves[::2] | halves[1::2] << 16).view(np.float32)
        # word = 8 * step + 2 * lane + c, filter = 4 * quad + 2 * operand + f
        apart = words.reshape(-1, 4, 2, width // 4, 2, 2)  # step, lane, c, quad, operand, f
        found.append(apart.transpose(0, 4, 3, 1, 2, 5).ravel())
    return np.concatenate(found)


def unpack(words, shape):
    """Bools of this shape: element i is bit i % 32 of word i // 32."""
    numbers = np.arange(np.prod(shape))
    return (words[numbers // 32] >> np.uint32(numbers % 32) & 1).astype(bool).reshape(shape)


def moments(parts):
    """(mean, variance) from partial means, squared deviations and counts (count, 3, C)."""
    means, squares, numbers = np.moveaxis(np.float64(parts), 1, 0)
    n = numbers.sum(axis=0)
    mean = (numbers * means).sum(axis=0) / n
    return mean, (squares + numbers * (means - mean) ** 2).sum(axis=0) / n


def drop(x, given):
    """Dropout: x where it is kept, else 0."""
    return x if given.kept is None else np.where(unpack(given.kept, x.shape), x, 0)


def with_y_below(given, rounded):
    """The values given, with y_below as the first block computes it, if that is rebuilt."""
    if given.first is None:
        return given
    x, kernel, first = given.x_first, given.kernel_first, given.first
    if rounded:
        x, kernel = operand(x, given.storage), operand(kernel, given.storage)
    y = conv2d(x, kernel, given.bias_first, first.strides, first.padding)
    return SimpleNamespace(**{**vars(given), "y_below": np.maximum(y, 0) if first.relu else y})


def over_pixels(given, values, rounded=False):
    """The sums of x * values over pixels, (K + 1, C), with x the first block's input, then 1."""
    x, first = given.x_first, given.first
    if rounded:
        x, values = operand(x, given.storage), operand(values, given.storage)
    kernel = conv2d_gradients(x, given.kernel_first, values, first.strides, first.padding)[1]
    return np.vstack([kernel.reshape(-1, kernel.shape[-1]), values.sum(axis=(0, 1, 2))])


def masked(given, values):
    """The values where the first block's activation passes a gradient, else 0.

    This is decided with rounded operands in both forms: rounding moves a few y across zero.
    """
    y = with_y_below(given, rounded=True).y_below
    return np.where(y > 0, values, 0) if given.first.relu else values


def rebuilt_moments(given, rounded=False):
    """The moments of the first block's y, and the sums over pixels of x * y and of x * mask."""
    given = with_y_below(given, rounded)
    y = given.y_below
    sums = [over_pixels(given, v, rounded) for v in (y, masked(given, np.ones(y.shape)))]
    return {"mean": y.mean(axis=(0, 1, 2)), "variance": y.var(axis=(0, 1, 2)), "of_y": sums}


def rebuilt_weight_gradient(given):
    """(dkernel, dbias) of the first block from sums over pixels: of_dx, and of_y."""
    slope, mean = given.sum_z / given.rows, given.sum / given.rows
    inverse = 1 / np.sqrt(np.float64(given.variance_below) + given.epsilon_below)
    z = (given.of_y[0] - given.mean_below * given.of_y[1]) * inverse
    found = given.gamma_below * inverse * (given.of_dx - mean * given.of_y[1] - slope * z)
    return {"dkernel": found[:-1], "dbias": found[-1]}


def block_input(given, rounded=False):
    """x from y_below: normalisation, then dropout."""
    if given.gamma_below is None:
        return np.float64(given.y_below)
    if given.parts_below is None:
        mean, variance = given.mean_below, given.variance_below
    else:
        mean, variance = moments(given.parts_below)
    if not rounded:
        z = (np.float64(given.y_below) - mean) / np.sqrt(variance + given.epsilon_below)
        return drop((z * given.gamma_below + given.beta_below) * given.kept_scale, given)
    scale = given.gamma_below / np.sqrt(np.float64(np.float32(variance)) + given.epsilon_below)
    shift = given.beta_below - np.float32(mean) * scale
    scale, shift = np.float32(scale * given.kept_scale), np.float32(shift * given.kept_scale)
    return drop(_fma(scale, given.y_below, shift), given)


def before_activation(given, rounded=False):
    """dz from dx, y, and the sums of dx and of dx * z."""
    sums = given.sums.sum(axis=0, dtype=np.float64) / given.rows
    mean, inverse = np.float64(given.mean), 1 / np.sqrt(np.float64(given.variance) + given.epsilon)
    if rounded:
        slope = sums[1] * inverse
        a = given.gamma * inverse
        b, c = np.float32(-a * slope), np.float32(-a * (sums[0] - slope * mean))
        dy = _fma(np.float32(a), given.dx, _fma(b, given.y, c))
    else:
        z = (given.y - mean) * inverse
        dy = given.gamma * inverse * (given.dx - sums[0] - z * sums[1])
    return np.where(given.y > 0, dy, 0) if given.relu else dy


def _fma(a, b, c):
    return np.float32(np.float64(a) * b + c).astype(np.float64)


def forward(given, rounded=False):
    """y, and the statistics of the block below unless they were given."""
    given = with_y_below(given, rounded)
    x, kernel = block_input(given, rounded), given.kernel
    if rounded and given.tensor:
        x, kernel = operand(x, given.storage), operand(kernel, given.storage)
    y = conv2d(x, kernel, given.bias, given.strides, given.padding)
    found = {"y": np.maximum(y, 0) if given.relu else y}
    if given.parts_below is not None:
        found["mean_below"], found["variance_below"] = moments(given.parts_below)
    return found


def input_gradient(given, rounded=False):
    """dx_below, and the sums of dx_below and of dx_below * (normalised y_below)."""
    dz, kernel = before_activation(given, rounded), given.kernel
    given = with_y_below(given, rounded)
    if rounded:
        dz, kernel = operand(dz, given.storage), operand(kernel, given.storage)
    x = np.zeros(given.y_below.shape)
    dx = conv2d_gradients(x, kernel, dz, given.strides, given.padding)[0]
    dx = drop(dx * given.kept_scale, given)
    found = sums_of(dx, given)
    if given.first is None:
        return {"dx_below": dx, **found}
    return {"of_dx": over_pixels(given, masked(given, dx), rounded), **found}


def sums_of(dx, given):
    """The sums of dx and of dx * (normalised y_below)."""
    inverse = 1 / np.sqrt(np.float64(given.variance_below) + given.epsilon_below)
    z = (given.y_below - np.float64(given.mean_below)) * inverse
    return {"sum": dx.sum(axis=(0, 1, 2)), "sum_z": (dx * z).sum(axis=(0, 1, 2))}


def weight_gradient(given, rounded=False):
    """The gradients of kernel, bias, gamma and beta. Only the first has rounded products."""
    given = with_y_below(given, rounded)
    x, dz = block_input(given, rounded), before_activation(given, rounded)
    bias = dz.sum(axis=(0, 1, 2))
    if rounded and given.tensor:
        x, dz = operand(x, given.storage), operand(dz, given.storage)
    kernel = conv2d_gradients(x, given.kernel, dz, given.strides, given.padding)[1]
    dbeta, dgamma = given.sums.sum(axis=0, dtype=np.float64)
    return {"dkernel": kernel, "dbias": bias, "dgamma": dgamma, "dbeta": dbeta}


def head(given):
    """The results of the network's end, from the last block's y and the labels."""
    x = block_input(given).reshape(len(given.labels), -1)
    images = np.arange(len(x))
    logits = x @ given.kernel + given.bias
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    share = odds / odds.sum(axis=1, keepdims=True)
    targets = np.full(share.shape, given.smoothing / share.shape[1])
    targets[images, given.labels] += 1 - given.smoothing
    dlogits = (share - targets) / len(x)
    dx = (dlogits @ given.kernel.T.astype(np.float64)).reshape(given.y_below.shape)
    dx = drop(dx * given.kept_scale, given)
    mean, variance = moments(given.parts_below)
    z = (given.y_below - mean) / np.sqrt(variance + given.epsilon_below)
    return {
        "logits": logits,
        "loss": -(targets * np.log(share)).sum(axis=1).mean(),
        "correct": (logits.argmax(axis=1) == given.labels).sum(),
        "dkernel": x.T @ dlogits,
        "dbias": dlogits.sum(axis=0),
        "dx": dx,
        "sum": dx.sum(axis=(0, 1, 2)),
        "sum_z": (dx * z).sum(axis=(0, 1, 2)),
        "mean": mean,
        "variance": variance,
    }


def adam_from_parts(given):
    """The results of a step of Adam whose gradients are `given.parts` of the table `given.sums`.

    `given` has w, g, m, v, and moving and batch with their momentum, too; t: the step's number,
    from 1; rate: its learning rate.
    """
    g = np.float64(given.g)
    for begin, count, halves, step, to, length in given.sums:
        if count:
            places = begin + step * np.arange(count * halves)[:, None] + np.arange(length)
            g[to : to + length] = np.float64(given.parts)[places].sum(axis=0)
    arrays = (np.float64(array) for array in (given.w, g, given.m, given.v))
    found = dict(zip("wmv", adam(*arrays, given.t, given.rate), strict=True))
    taken = (1 - given.momentum) * np.float64(given.batch)
    return found | {"moving": given.momentum * np.float64(given.moving) + taken}
