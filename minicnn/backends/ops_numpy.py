"""The reference backend: every operation of the library in plain NumPy.

Arrays are (E, B, H, W, C): net, image, row, column, channel. Kernels are (E, kh, kw, Cin, Cout).
Results are written into arrays that the caller owns, so that a training step makes none of them
anew. Nets are taken one after the other and images a few at a time, so that what an operation works
on stays in the cache; how many depends on the layer alone. So a net's bits do not depend on the
others.

Another backend is a module of the same functions with the same signatures; devices.py chooses.
"""

import contextlib
from itertools import product

import numpy as np
import threadpoolctl

from .. import rng
from ..machine import free_memory  # noqa: F401  one of the functions of a backend
from . import im2col
from .affine import affine, affine_parameters
from .scratch import chunks, scratch

name = "numpy"
dtypes = "float32", "float64"
precisions = ("float32",)
precision = "float32"
lockstep = False
capture = None  # a repeated step would not be faster

_blas = threadpoolctl.ThreadpoolController().select(user_api="blas")


# ---------------------------------------------------------------------------------------------
# Arrays


def empty(shape, dtype):
    """An array whose content is not set."""
    return np.empty(shape, dtype)


def zeros(shape, dtype):
    """An array of zeros."""
    return np.zeros(shape, dtype)


def to_device(array):
    """A host (NumPy) array where this backend computes."""
    return np.ascontiguousarray(array)


def to_host(array):
    """A NumPy copy of an array."""
    return np.array(array)


def copy(source, target):
    """Copy one array into another of the same shape."""
    np.copyto(target, source)


@contextlib.contextmanager
def session():
    """The context in which operations run.

    BLAS has one thread, since its last bits depend on their number. A net that diverges shows it
    in its loss, and needs no warning at each operation.
    """
    with _blas.limit(limits=1), np.errstate(all="ignore"):
        yield


def fusion(nodes, batch):
    """None: no layers are fused."""


def _rows(x):
    """x (..., W, C) as (rows, W*C): long rows keep NumPy's inner loops long."""
    return x.reshape(-1, x.shape[-2] * x.shape[-1])


def _row_sums(x):
    """Sums over all but the last axis of x (..., W, C), as a matrix-vector product. (C,)"""
    rows = _rows(x)
    ones = scratch("ones", (len(rows),), x.dtype)
    ones.fill(1)
    return (ones @ rows).reshape(x.shape[-2:]).sum(axis=0)


# ---------------------------------------------------------------------------------------------
# The batch: gathered from the data set, turned, zoomed and shifted


def load_batch(images, labels, order, ranges, seed, nets, step, x, y):
    """Fill x and y with each net's next batch: the images named by order[:, step % steps].

    images (N, H, W) uint8; labels (N,) uint8, or None, which leaves y as it is; order (E, steps, B)
    int32; nets (E,) their numbers; step an array of one integer; x (E, B, H, W, 1) in [0, 1];
    y (E, B). `ranges` are those of affine_parameters, or None for images as they are.
    """
    for e, net in enumerate(nets):
        chosen = order[e, int(step[0]) % order.shape[1]]
        if labels is not None:
            y[e] = labels[chosen]
        batch = scratch("batch", (len(chosen), *images.shape[1:]), images.dtype)
        np.take(images, chosen, axis=0, out=batch, mode="clip")
        plain = x[e] if ranges is None else scratch("plain", x[e].shape, x.dtype)
        np.multiply(batch[..., None], x.dtype.type(1 / 255), out=plain)
        if ranges is not None:
            drawn = affine_parameters(ranges, seed, int(net), int(step[0]), len(chosen))
            affine(plain, drawn, x[e])


# ---------------------------------------------------------------------------------------------
# Activations


def activate(name, y):
    """Replace y by its activation: "linear", "relu", "sigmoid", "tanh" or "softmax" (last axis)."""
    if name == "relu":
        np.maximum(y, 0, out=y)
    elif name == "sigmoid":  # as a tanh it overflows nowhere
        np.multiply(y, 0.5, out=y)
        np.tanh(y, out=y)
        np.multiply(y, 0.5, out=y)
        np.add(y, 0.5, out=y)
    elif name == "tanh":
        np.tanh(y, out=y)
    elif name == "softmax":
        y -= y.max(axis=-1, keepdims=True)
        np.exp(y, out=y)
        y /= y.sum(axis=-1, keepdims=True)


def activate_backward(name, y, dy):
    """Turn dy, the gradient by the activation's output y, into the gradient by its input."""
    for e in range(len(y)):
        for images in chunks(y.shape[1], y[0, 0].size, y.dtype):
            _activate_backward(name, y[e, images], dy[e, images])


def _activate_backward(name, y, dy):
    if name == "relu":
        mask = scratch("mask", y.shape, bool)
        np.greater(y, 0, out=mask)
        np.multiply(dy, mask, out=dy)
    elif name == "sigmoid":
        slope = scratch("slope", y.shape, y.dtype)
        np.subtract(1, y, out=slope)
        slope *= y
        dy *= slope
    elif name == "tanh":
        slope = scratch("slope", y.shape, y.dtype)
        np.multiply(y, y, out=slope)
        np.subtract(1, slope, out=slope)
        dy *= slope
    elif name == "softmax":
        dy -= np.sum(dy * y, axis=-1, keepdims=True)
        dy *= y


# ---------------------------------------------------------------------------------------------
# Convolution: each patch under the kernel becomes a row (im2col), and the rows are multiplied by
# the kernel as a matrix (GEMM). Source: K. Chellapilla, S. Puri, P. Simard, "High performance
# convolutional neural networks for document processing", 2006.


def conv2d_workspace(nets, batch, window, channels, filters):
    """Bytes that the convolution's passes need beside their results: here they have scratch.py."""
    return 0


def conv2d(x, kernel, bias, window, activation, y, workspace=None):
    """y (E, B, Ho, Wo, Cout) = activation(x (E, B, H, W, Cin) * kernel + bias (E, Cout))."""
    W, C = y.shape[3:]
    for e in range(len(y)):
        matrix = kernel[e].reshape(-1, C)  # (K, Cout)
        bias_row = np.tile(bias[e], W)  # (Wo*Cout,)
        for images, columns in im2col.patches(x[e], window):
            np.matmul(columns, matrix, out=y[e, images].reshape(-1, C))
            rows = _rows(y[e, images])
            rows += bias_row
            activate(activation, y[e, images])


def conv2d_weight_gradient(x, dz, window, dkernel, dbias, workspace=None):
    """Gradients by kernel and bias from dz (E, B, Ho, Wo, Cout), the gradient before activation."""
    C = dz.shape[-1]
    for e in range(len(dz)):
        total = dkernel[e].reshape(-1, C)  # (K, Cout)
        part = scratch("part", total.shape, total.dtype)
        total[...] = 0
        dbias[e] = 0
        for images, columns in im2col.patches(x[e], window):
            np.matmul(columns.T, dz[e, images].reshape(-1, C), out=part)
            total += part
            dbias[e] += _row_sums(dz[e, images])


def conv2d_input_gradient(dz, kernel, window, dx, workspace=None):
    """Gradient by the input, dx (E, B, H, W, Cin).

    With stride s the input falls into s*s interleaved grids (geometry.Phase). For each, the
    gradient is itself a convolution of the padded dz, with some of the taps, turned round.
    """
    sh, sw = window.strides
    C = dx.shape[-1]
    for e in range(len(dx)):
        for r, c in product(*window.phases):
            target = dx[e, :, r.first :: sh, c.first :: sw]
            if r.taps == 0 or c.taps == 0:  # the window steps over these inputs
                target[...] = 0
                continue
            taps = kernel[e, r.tap :: sh, c.tap :: sw][::-1, ::-1].transpose(0, 1, 3, 2)
            matrix = scratch("matrix", taps.shape, taps.dtype)  # (taps, Cout, Cin)
            np.copyto(matrix, taps)
            for images, columns in im2col.phase_patches(dz[e], r, c):
                pixels = scratch("pixels", (len(columns), C), dz.dtype)
                np.matmul(columns, matrix.reshape(-1, C), out=pixels)
                np.copyto(target[images], pixels.reshape(-1, r.count, c.count, C))


# ---------------------------------------------------------------------------------------------
# Dense


def dense_workspace(nets, batch, inputs, units):
    """Bytes that dense's passes need beside their results."""
    return 0


def dense(x, kernel, bias, activation, y, workspace=None):
    """y (E, B, N) = activation(x (E, B, K) @ kernel (E, K, N) + bias (E, N))."""
    for e in range(len(x)):
        np.matmul(x[e], kernel[e], out=y[e])
    y += bias[:, None]
    activate(activation, y)


def dense_weight_gradient(x, dz, dkernel, dbias, workspace=None):
    """Gradients by kernel and bias from dz (E, B, N), the gradient before activation."""
    for e in range(len(x)):
        np.matmul(x[e].T, dz[e], out=dkernel[e])
    np.sum(dz, axis=1, out=dbias)


def dense_input_gradient(dz, kernel, dx, workspace=None):
    """Gradient by the input, dx (E, B, K)."""
    for e in range(len(dz)):
        np.matmul(dz[e], kernel[e].T, out=dx[e])


# ---------------------------------------------------------------------------------------------
# Batch normalisation. Source: S. Ioffe, C. Szegedy, arXiv:1502.03167. Statistics are taken over
# all axes but net and channel, chunk by chunk, and the chunks' sums are added in float64.


def batch_norm_workspace(nets, batch, shape):
    """Bytes that batch normalisation of images of a shape (..., C) needs beside its results."""
    return 0


def batch_norm(x, gamma, beta, epsilon, mean, variance, y, workspace=None):
    """y = gamma * (x - mean) / sqrt(variance + epsilon) + beta with the batch's own statistics.

    x, y (E, B, ..., C). mean and variance (E, C) are results: the variance is the biased one.
    """
    x, y = _as_images(x), _as_images(y)
    count = x[0, ..., 0].size
    for e in range(len(x)):
        mean[e] = sum(_row_sums(x[e, i]).astype(np.float64) for i in _image_chunks(x)) / count
        mean_row = np.tile(mean[e], x.shape[3])
        squares = 0
        for i in _image_chunks(x):
            rows = _rows(y[e, i])
            np.subtract(_rows(x[e, i]), mean_row, out=rows)
            square = scratch("square", y[e, i].shape, y.dtype)
            np.multiply(rows, rows, out=_rows(square))
            squares = squares + _row_sums(square).astype(np.float64)
        variance[e] = squares / count
        scale = gamma[e] / np.sqrt(variance[e] + epsilon)
        for i in _image_chunks(x):
            _scale_and_shift(_rows(y[e, i]), scale, beta[e])


def batch_norm_inference(x, gamma, beta, epsilon, mean, variance, y):
    """y = gamma * (x - mean) / sqrt(variance + epsilon) + beta with given statistics (E, C)."""
    x, y = _as_images(x), _as_images(y)
    for e in range(len(x)):
        scale = gamma[e] / np.sqrt(variance[e] + epsilon)
        shift = beta[e] - mean[e] * scale
        for i in _image_chunks(x):
            rows = _rows(y[e, i])
            np.multiply(_rows(x[e, i]), np.tile(scale, x.shape[3]), out=rows)
            rows += np.tile(shift, x.shape[3])


def batch_norm_backward(
    x,
    dy,
    gamma,
    epsilon,
    mean,
    variance,
    dx,
    dgamma,
    dbeta,
    workspace=None,
    activation="linear",
):
    """Gradients by x, gamma and beta from dy, the gradient by batch_norm's output.

    Where x is the result of an activation, dx is the gradient by what that was given.

    With n numbers a channel and z = (x - mean) / sqrt(variance + epsilon):
    dbeta = sum dy, dgamma = sum dy*z, dx = gamma / sqrt(variance + epsilon) *
    (dy - dbeta/n - z * dgamma/n).
    """
    x, dy, dx = _as_images(x), _as_images(dy), _as_images(dx)
    count = x[0, ..., 0].size
    for e in range(len(x)):
        inverse = 1 / np.sqrt(variance[e] + epsilon)
        mean_row = np.tile(mean[e], x.shape[3])
        sum_dy, sum_dy_x = 0, 0
        for i in _image_chunks(x):
            centered = dx[e, i]  # x - mean waits in dx
            np.subtract(_rows(x[e, i]), mean_row, out=_rows(centered))
            products = scratch("products", centered.shape, dx.dtype)
            np.multiply(centered, dy[e, i], out=products)
            sum_dy = sum_dy + _row_sums(dy[e, i]).astype(np.float64)
            sum_dy_x = sum_dy_x + _row_sums(products).astype(np.float64)
        dbeta[e] = sum_dy
        dgamma[e] = sum_dy_x * inverse
        # dx = a * dy + b * (x - mean) + c
        a = gamma[e] * inverse
        b = -a * inverse * dgamma[e] / count
        c = -a * dbeta[e] / count
        for i in _image_chunks(x):
            rows = _rows(dx[e, i])
            _scale_and_shift(rows, b, c)
            products = scratch("products", rows.shape, dx.dtype)
            np.multiply(_rows(dy[e, i]), np.tile(a, x.shape[3]), out=products)
            rows += products
            _activate_backward(activation, x[e, i], dx[e, i])


def update_moving(moving, batch, momentum):
    """moving (E, C) = momentum * moving + (1 - momentum) * batch."""
    moving *= momentum
    moving += (1 - momentum) * batch


def _as_images(x):
    """x (E, B, ..., C) as (E, B, 1 or H, W, C); the operation is the same for any of them."""
    return x if x.ndim == 5 else x.reshape(*x.shape[:2], 1, -1, x.shape[-1])


def _image_chunks(x):
    return chunks(x.shape[1], x[0, 0].size, x.dtype)


def _scale_and_shift(rows, scale, shift):
    """rows (n, W*C) = rows * scale (C,) + shift (C,), in place."""
    width = rows.shape[1] // len(scale)
    rows *= np.tile(scale, width)
    rows += np.tile(shift, width)


# ---------------------------------------------------------------------------------------------
# Dropout. Source: N. Srivastava et al., JMLR 15, 2014; inverted, so that inference does nothing.


def dropout(x, rate, seed, nets, stream, step, mask, y):
    """y = x / (1 - rate) where mask, else 0. mask (E, B, ...) bool is a result.

    Element i of net n is kept where word i of Philox (seed, n; stream, step) is at least
    rate * 2^32. `step` is an array of one integer.
    """
    threshold = np.uint32(rng.threshold(rate))
    for e, net in enumerate(nets):
        words = scratch("words", (mask[e].size,), np.uint32)
        rng.random_words(seed, int(net), stream, int(step[0]), words)
        np.greater_equal(words, threshold, out=mask[e].reshape(-1))
    dropout_backward(x, rate, mask, y)


def dropout_backward(dy, rate, mask, dx):
    """dx = dy / (1 - rate) where mask, else 0."""
    np.multiply(dy, mask, out=dx)
    dx *= 1 / (1 - rate)


# ---------------------------------------------------------------------------------------------
# Max pooling


def max_pool(x, window, winner, y):
    """y (E, B, Ho, Wo, C) = the largest number under the window; padding never wins.

    winner (E, B, Ho, Wo, C) uint16 is a result, unless it is None: the tap, row by row, that gave
    it; the first of equals. NaN wins over all, as in any sum.
    """
    y[...] = -np.inf
    for tap, inputs, outputs in _pool_taps(window):
        better = scratch("better", y[outputs].shape, bool)
        np.greater(x[inputs], y[outputs], out=better)
        better |= np.isnan(x[inputs])  # or a net that went wrong would look well
        np.copyto(y[outputs], x[inputs], where=better)
        if winner is not None:
            np.copyto(winner[outputs], tap, where=better)


def max_pool_backward(dy, window, winner, dx):
    """Give each gradient in dy to the input that won; dx (E, B, H, W, C)."""
    dx[...] = 0
    for tap, inputs, outputs in _pool_taps(window):
        won = scratch("won", dy[outputs].shape, bool)
        np.equal(winner[outputs], tap, out=won)
        np.add(dx[inputs], dy[outputs], out=dx[inputs], where=won)


def _pool_taps(window):
    """For each tap of the window: its number, and the inputs that it meets at which outputs."""
    for tap in range(window.size[0] * window.size[1]):
        inputs, outputs = [slice(None), slice(None)], [slice(None), slice(None)]
        for axis, offset in enumerate(divmod(tap, window.size[1])):
            stride, before = window.strides[axis], window.before[axis]
            first = max(-((offset - before) // stride), 0)  # the first output with its tap inside
            last = min(
                (window.input[axis] - 1 + before - offset) // stride, window.output[axis] - 1
            )
            at = first * stride + offset - before
            inputs.append(slice(at, at + (last - first) * stride + 1, stride))
            outputs.append(slice(first, last + 1))
        if all(s.stop > s.start for s in outputs[2:]):
            yield tap, tuple(inputs), tuple(outputs)


# ---------------------------------------------------------------------------------------------
# Loss and optimizer


def softmax_cross_entropy(logits, labels, loss, correct, dlogits):
    """The mean over the batch of -log softmax(logits)[label], and its gradient.

    logits, dlogits (E, B, N); labels (E, B) integers. Results: loss (E,); correct (E,), how many
    images have their largest logit at their label. Taken from logits, the loss never saturates.
    """
    B = labels.shape[1]
    at_label = labels[..., None]
    np.subtract(logits, logits.max(axis=-1, keepdims=True), out=dlogits)
    shifted = np.take_along_axis(dlogits, at_label, axis=-1)[..., 0]  # (E, B)
    np.exp(dlogits, out=dlogits)
    total = dlogits.sum(axis=-1, keepdims=True)  # (E, B, 1)
    np.mean(np.log(total[..., 0]) - shifted, axis=1, out=loss)
    right = (logits.argmax(axis=-1) == labels) & (total[..., 0] > 0)  # not if it is NaN
    np.sum(right, axis=1, out=correct)
    dlogits /= total
    np.put_along_axis(
        dlogits, at_label, np.take_along_axis(dlogits, at_label, axis=-1) - 1, axis=-1
    )
    dlogits /= B


def accumulate(loss, correct, sums):
    """Add a step's loss (E,) and correct (E,) to sums (E, 3), float64.

    The third counts the steps before the first whose loss is not finite.
    """
    sums[:, 0] += loss
    sums[:, 1] += correct
    sums[:, 2] += np.isfinite(sums[:, 0])


def collect(source, step, target):
    """target[:, step] = source, and step += 1: keeps results one after the other.

    source (E, ...); target (E, steps, ...); step an array of one integer.
    """
    target[:, int(step[0])] = source
    step += 1


def adam(params, gradients, m, v, step, learning_rate, beta_1, beta_2, epsilon):
    """One step of Adam on flat arrays (E, P), in place, and step += 1. `m`, `v`: the moments.

    `step` and `learning_rate` are arrays of one number. Source: D. Kingma, J. Ba,
    arXiv:1412.6980, in the order of section 2's end, as Keras has it.
    """
    step += 1
    t = int(step[0])
    rate = float(learning_rate[0]) * (1 - beta_2**t) ** 0.5 / (1 - beta_1**t)
    P = params.shape[1]
    for e in range(len(params)):
        for part in chunks(P, 5, params.dtype):
            w, g, m_, v_ = (array[e, part] for array in (params, gradients, m, v))
            change = scratch("change", g.shape, g.dtype)
            m_ *= beta_1
            m_ += np.multiply(g, 1 - beta_1, out=change)
            v_ *= beta_2
            np.multiply(g, g, out=change)
            v_ += np.multiply(change, 1 - beta_2, out=change)
            np.sqrt(v_, out=change)
            change += epsilon
            np.divide(m_, change, out=change)
            w -= np.multiply(change, rate, out=change)
