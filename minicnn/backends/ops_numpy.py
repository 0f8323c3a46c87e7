"""The reference backend: every operation of the library in plain NumPy.

Shapes: E nets, B images of a batch, H W rows and columns, Cin Cout channels (C where they are
equal), Ho Wo output rows and columns, K = kh*kw*Cin, or the inputs of a dense layer. Activations
are (E, B, H, W, C), kernels (E, kh, kw, Cin, Cout). dx is the gradient of the loss with respect to
x; dz is the one with respect to a layer's output before its activation.

Results are written into arrays of the caller, so that a training step allocates none. An operation
computes one net after the other, and a few images at a time, so that its data stay in the cache
(scratch.py). How many depends on the layer only, so a net's result is independent of the other
nets.

The docstrings give each operation's loop for one net; `[b, r, c]` are image, row and column.
backend.py declares the functions that every backend has; devices.py chooses one.
"""

import contextlib
from itertools import product

import numpy as np
import threadpoolctl

from .. import rng
from ..machine import free_memory  # noqa: F401  one of the functions of a backend
from ..shared_context import SharedContext
from . import im2col
from .affine import augment
from .scratch import chunks, scratch

name = "numpy"
dtypes = "float32", "float64"
precisions = ("float32",)
precision = "float32"
lockstep = False
threaded = False  # BLAS runs on one thread, see session()
capture = None  # a repeated step would not be faster

_blas = threadpoolctl.ThreadpoolController().select(user_api="blas")
_one_thread = SharedContext(lambda: _blas.limit(limits=1))


# ---------------------------------------------------------------------------------------------
# Arrays


def empty(shape, dtype):
    """An array whose content is not set."""
    return np.empty(shape, dtype)


def zeros(shape, dtype):
    """An array of zeros."""
    return np.zeros(shape, dtype)


def to_device(array):
    """A NumPy array as an array of this backend: C-contiguous."""
    return np.ascontiguousarray(array)


def to_host(array, out=None):
    """A NumPy copy of an array; in `out` if it is given."""
    if out is None:
        return np.array(array)
    np.copyto(out, array)
    return out


def copy(source, target):
    """Copy one array into another of the same shape."""
    np.copyto(target, source)


@contextlib.contextmanager
def session():
    """The context in which operations run.

    BLAS uses one thread, because its rounding depends on the number of threads. Floating-point
    warnings are off: a net that diverges shows it in its loss.
    """
    with _one_thread(), np.errstate(all="ignore"):
        yield


def fusion(nodes, nets, batch):
    """None: no layers are fused."""


def _rows(x):
    """x (..., W, C) as (rows, W*C): NumPy is faster on long rows."""
    return x.reshape(-1, x.shape[-2] * x.shape[-1])


def _row_sums(x):
    """Sums over all but the last axis of x (..., W, C), as a matrix-vector product. (C,)"""
    rows = _rows(x)
    ones = scratch("ones", (len(rows),), x.dtype)
    ones.fill(1)
    return (ones @ rows).reshape(x.shape[-2:]).sum(axis=0)


# ---------------------------------------------------------------------------------------------
# The batch: gathered from the data set and augmented


def load_batch(images, labels, order, ranges, seed, nets, step, x, y):
    """Fill x (E, B, H, W, C) and y (E, B) with each net's next batch.

        i = order[step % steps, b];  y[b] = labels[i]
        x[b] = augment(images[i] / 255, with what is drawn for (seed, net, step, b))

    images uint8 (N, H, W), with C = 1, or (N, H, W, C); labels (N,) uint16, or None, then y is not
    written; order (E, steps, B) int32; nets (E,), the nets' numbers; step an array of one integer.
    ranges (2, 5) or (2, 7) are those of affine.augment; None: images are not resampled.
    """
    for e, net in enumerate(nets):
        chosen = order[e, int(step[0]) % order.shape[1]]
        if labels is not None:
            y[e] = labels[chosen]
        batch = scratch("batch", (len(chosen), *images.shape[1:]), images.dtype)
        np.take(images, chosen, axis=0, out=batch, mode="clip")
        plain = x[e] if ranges is None else scratch("plain", x[e].shape, x.dtype)
        np.multiply(batch.reshape(plain.shape), x.dtype.type(1 / 255), out=plain)
        if ranges is not None:
            augment(plain, ranges, seed, int(net), int(step[0]), x[e])


# ---------------------------------------------------------------------------------------------
# Activations


def activate(name, y):
    """y (E, B, ...) = activation(y), in place.

        relu: max(y, 0)    sigmoid: 1 / (1 + exp(-y))    tanh: tanh(y)    linear: y
        softmax: exp(y) / sum of exp(y) over the last axis

    `name` is one of layers.ACTIVATIONS.
    """
    if name == "relu":
        np.maximum(y, 0, out=y)
    elif name == "sigmoid":  # (tanh(y/2) + 1) / 2, which never overflows
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
    """dy, the gradient with respect to the activation's output y, becomes the one for its input.

        relu: dy * (y > 0)    sigmoid: dy * y * (1 - y)    tanh: dy * (1 - y*y)    linear: dy
        softmax: (dy - sum of dy * y over the last axis) * y

    `name` is one of layers.ACTIVATIONS.
    """
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
# Convolution: each patch under the kernel becomes a row (im2col.py), and the rows are multiplied by
# the kernel as a matrix (K, Cout). Source: K. Chellapilla, S. Puri, P. Simard, "High performance
# convolutional neural networks for document processing", 2006.


def conv2d_workspace(nets, batch, window, channels, filters):
    """Bytes of workspace for the three passes: 0, since these use scratch.py."""
    return 0


def conv2d(x, kernel, bias, window, activation, y, workspace=None):
    """y (E, B, Ho, Wo, Cout) from x (E, B, H, W, Cin), kernel (E, kh, kw, Cin, Cout), bias.

        for i, j in kh x kw:  z[b, r, c] += x[b, r*sh + i - top, c*sw + j - left] @ kernel[i, j]
        y = activation(z + bias)

    bias is (E, Cout). x is 0 outside the image; sh, sw are the window's strides and top, left its
    padding `before`.
    """
    Wo, Cout = y.shape[3:]
    for e in range(len(y)):
        matrix = kernel[e].reshape(-1, Cout)  # (K, Cout)
        bias_row = np.tile(bias[e], Wo)  # (Wo*Cout,)
        for images, columns in im2col.patches(x[e], window):
            np.matmul(columns, matrix, out=y[e, images].reshape(-1, Cout))
            rows = _rows(y[e, images])
            rows += bias_row
            activate(activation, y[e, images])


def conv2d_weight_gradient(x, dz, window, dkernel, dbias, workspace=None):
    """dkernel (E, kh, kw, Cin, Cout), dbias (E, Cout) from dz (E, B, Ho, Wo, Cout).

        for b, r, c in B x Ho x Wo, i, j in kh x kw:
            dkernel[i, j] += outer(x[b, r*sh + i - top, c*sw + j - left], dz[b, r, c])
        dbias = sum of dz over b, r, c

    x is 0 outside the image.
    """
    Cout = dz.shape[-1]
    for e in range(len(dz)):
        total = dkernel[e].reshape(-1, Cout)  # (K, Cout)
        part = scratch("part", total.shape, total.dtype)
        total[...] = 0
        dbias[e] = 0
        for images, columns in im2col.patches(x[e], window):
            np.matmul(columns.T, dz[e, images].reshape(-1, Cout), out=part)
            total += part
            dbias[e] += _row_sums(dz[e, images])


def conv2d_input_gradient(dz, kernel, window, dx, workspace=None):
    """dx (E, B, H, W, Cin) from dz (E, B, Ho, Wo, Cout).

        for b, r, c in B x Ho x Wo, i, j in kh x kw:
            dx[b, r*sh + i - top, c*sw + j - left] += kernel[i, j] @ dz[b, r, c]

    Positions outside dx are left out. The sum is computed without scattering: the strides split dx
    into sh*sw interleaved grids (geometry.Phase), and each is a convolution of the padded dz with
    some of the taps in reverse order.
    """
    sh, sw = window.strides
    Cin = dx.shape[-1]
    for e in range(len(dx)):
        for r, c in product(*window.phases):
            target = dx[e, :, r.first :: sh, c.first :: sw]
            if r.taps == 0 or c.taps == 0:  # no window covers these inputs
                target[...] = 0
                continue
            taps = kernel[e, r.tap :: sh, c.tap :: sw][::-1, ::-1].transpose(0, 1, 3, 2)
            matrix = scratch("matrix", taps.shape, taps.dtype)  # (taps, Cout, Cin)
            np.copyto(matrix, taps)
            for images, columns in im2col.phase_patches(dz[e], r, c):
                pixels = scratch("pixels", (len(columns), Cin), dz.dtype)
                np.matmul(columns, matrix.reshape(-1, Cin), out=pixels)
                np.copyto(target[images], pixels.reshape(-1, r.count, c.count, Cin))


# ---------------------------------------------------------------------------------------------
# Dense


def dense_workspace(nets, batch, inputs, units):
    """Bytes of workspace for the three passes."""
    return 0


def dense(x, kernel, bias, activation, y, workspace=None):
    """y (E, B, units) from x (E, B, K), kernel (E, K, units), bias (E, units).

        y = activation(x @ kernel + bias)

    `activation` is one of layers.ACTIVATIONS.
    """
    for e in range(len(x)):
        np.matmul(x[e], kernel[e], out=y[e])
    y += bias[:, None]
    activate(activation, y)


def dense_weight_gradient(x, dz, dkernel, dbias, workspace=None):
    """dkernel (E, K, units), dbias (E, units) from x (E, B, K), dz (E, B, units).

        dkernel = transpose(x) @ dz;  dbias = sum of dz over b

    dz is the gradient before the activation.
    """
    for e in range(len(x)):
        np.matmul(x[e].T, dz[e], out=dkernel[e])
    np.sum(dz, axis=1, out=dbias)


def dense_input_gradient(dz, kernel, dx, workspace=None):
    """dx (E, B, K) from dz (E, B, units): dx = dz @ transpose(kernel)."""
    for e in range(len(dz)):
        np.matmul(dz[e], kernel[e].T, out=dx[e])


# ---------------------------------------------------------------------------------------------
# Batch normalisation. Source: S. Ioffe, C. Szegedy, arXiv:1502.03167. Sums are over all axes except
# net and channel. They are taken in chunks of images, whose sums are added in float64.


def batch_norm_workspace(nets, batch, shape):
    """Bytes of workspace for both passes; `shape` is that of one image, (..., C)."""
    return 0


def batch_norm(x, gamma, beta, epsilon, mean, variance, y, workspace=None):
    """y (E, B, ..., C) from x, gamma, beta (E, C), with the statistics of the batch.

        mean = sum of x / n;  variance = sum of (x - mean)**2 / n    # n elements per channel
        y = gamma * (x - mean) / sqrt(variance + epsilon) + beta

    mean and variance (E, C) are results, too.
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
    """y (E, B, ..., C) from x, gamma, beta (E, C), and the statistics mean, variance (E, C).

        y = gamma * (x - mean) / sqrt(variance + epsilon) + beta

    mean and variance are inputs here: the moving ones.
    """
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
    """dx (E, B, ..., C), dgamma, dbeta (E, C) from x, dy (E, B, ..., C) and batch_norm's results.

        z = (x - mean) / sqrt(variance + epsilon)
        dbeta = sum of dy;  dgamma = sum of dy * z
        dx = gamma / sqrt(variance + epsilon) * (dy - dbeta/n - z * dgamma/n)

    n is the number of elements per channel. `activation` names the one whose output x is; dx is
    then the gradient with respect to the activation's input.
    """
    x, dy, dx = _as_images(x), _as_images(dy), _as_images(dx)
    count = x[0, ..., 0].size
    for e in range(len(x)):
        inverse = 1 / np.sqrt(variance[e] + epsilon)
        mean_row = np.tile(mean[e], x.shape[3])
        sum_dy, sum_dy_x = 0, 0
        for i in _image_chunks(x):
            centered = dx[e, i]  # dx holds x - mean until the second loop
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
    """moving (E, C) = momentum * moving + (1 - momentum) * batch (E, C)."""
    moving *= momentum
    moving += (1 - momentum) * batch


def _as_images(x):
    """x (E, B, ..., C) as (E, B, H, W, C), with H = 1 unless x has these axes."""
    return x if x.ndim == 5 else x.reshape(*x.shape[:2], 1, -1, x.shape[-1])


def _image_chunks(x):
    return chunks(x.shape[1], x[0, 0].size, x.dtype)


def _scale_and_shift(rows, scale, shift):
    """rows (n, W*C) = rows * scale (C,) + shift (C,), in place."""
    width = rows.shape[1] // len(scale)
    rows *= np.tile(scale, width)
    rows += np.tile(shift, width)


# ---------------------------------------------------------------------------------------------
# Dropout. Source: N. Srivastava et al., JMLR 15, 2014; inverted, so inference needs no scaling.


def dropout(x, rate, seed, nets, stream, step, mask, y):
    """y (E, B, ...) from x (E, B, ...); mask (E, B, ...) bool is a result, too.

        mask[i] = word i of Philox(seed, net; stream, step) >= rate * 2**32    # i: element of a net
        y = x / (1 - rate) where mask, else 0

    nets (E,) are the nets' numbers; step is an array of one integer.
    """
    threshold = np.uint32(rng.threshold(rate))
    for e, net in enumerate(nets):
        words = scratch("words", (mask[e].size,), np.uint32)
        rng.random_words(seed, int(net), stream, int(step[0]), words)
        np.greater_equal(words, threshold, out=mask[e].reshape(-1))
    dropout_backward(x, rate, mask, y)


def dropout_backward(dy, rate, mask, dx):
    """dx (E, B, ...) = dy / (1 - rate) where mask, else 0."""
    np.multiply(dy, mask, out=dx)
    dx *= 1 / (1 - rate)


# ---------------------------------------------------------------------------------------------
# Max pooling


def max_pool(x, window, winner, y):
    """y (E, B, Ho, Wo, C) and winner (E, B, Ho, Wo, C) uint16 from x (E, B, H, W, C).

        winner[b, r, c] = i * kw + j of the tap where x is largest; the first of equals
        y[b, r, c] = x[b, r*sh + i - top, c*sw + j - left]

    Padding is never the maximum. NaN counts as larger than any number. winner may be None.
    """
    y[...] = -np.inf
    for tap, inputs, outputs in _pool_taps(window):
        better = scratch("better", y[outputs].shape, bool)
        np.greater(x[inputs], y[outputs], out=better)
        better |= np.isnan(x[inputs])  # or a diverged net would seem sound
        np.copyto(y[outputs], x[inputs], where=better)
        if winner is not None:
            np.copyto(winner[outputs], tap, where=better)


def max_pool_backward(dy, window, winner, dx):
    """dx (E, B, H, W, C) from dy, winner (E, B, Ho, Wo, C).

        dx[b, r*sh + i - top, c*sw + j - left] += dy[b, r, c]    # i, j: the winner of [b, r, c]

    Windows may overlap; then gradients add up.
    """
    dx[...] = 0
    for tap, inputs, outputs in _pool_taps(window):
        won = scratch("won", dy[outputs].shape, bool)
        np.equal(winner[outputs], tap, out=won)
        np.add(dx[inputs], dy[outputs], out=dx[inputs], where=won)


def _pool_taps(window):
    """Yield (tap, inputs, outputs): its number, and slices of x and y where it is inside x."""
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


def softmax_cross_entropy(logits, labels, smoothing, loss, correct, dlogits):
    """loss, correct (E,), dlogits (E, B, classes) from logits (E, B, classes), labels (E, B).

        target[b] = (1 - smoothing) * onehot(label) + smoothing / classes
        loss = mean over b of -sum(target[b] * log(softmax(logits[b])))
        dlogits[b] = (softmax(logits[b]) - target[b]) / B
        correct = number of images with argmax(logits[b]) == label    # the first of equals

    smoothing: a number in [0, 1), of the labels; 0 leaves them as they are. Source: C. Szegedy and
    others, arXiv:1512.00567. Computed from logits, the loss never saturates.
    """
    B, classes = logits.shape[1:]
    at_label = labels[..., None]
    np.subtract(logits, logits.max(axis=-1, keepdims=True), out=dlogits)
    # The logits, less the largest, averaged over the target
    at_target = np.take_along_axis(dlogits, at_label, axis=-1)[..., 0]  # (E, B)
    if smoothing:  # without it 0 * -inf would be NaN
        at_target = (1 - smoothing) * at_target + smoothing * dlogits.mean(axis=-1)
    np.exp(dlogits, out=dlogits)
    total = dlogits.sum(axis=-1, keepdims=True)  # (E, B, 1)
    np.mean(np.log(total[..., 0]) - at_target, axis=1, out=loss)
    right = (logits.argmax(axis=-1) == labels) & (total[..., 0] > 0)  # false if it is NaN
    np.sum(right, axis=1, out=correct)
    dlogits /= total
    dlogits -= smoothing / classes
    of_label = np.take_along_axis(dlogits, at_label, axis=-1) - (1 - smoothing)
    np.put_along_axis(dlogits, at_label, of_label, axis=-1)
    dlogits /= B


def accumulate(loss, correct, step, sums):
    """sums (E, 3) float64 += loss (E,), correct (E,), and 1 while the sum of the losses is finite.

    So the third sum counts the steps before the first whose loss is not finite. sums may be None.
    Then step += 1, an array of one integer: this ends a training step.
    """
    if sums is not None:
        sums[:, 0] += loss
        sums[:, 1] += correct
        sums[:, 2] += np.isfinite(sums[:, 0])
    step += 1


def collect(source, step, target):
    """target[:, step] = source, then step += 1.

    source (E, ...); target (E, steps, ...); step an array of one integer.
    """
    target[:, int(step[0])] = source
    step += 1


def adam(params, gradients, m, v, step, learning_rate, beta_1, beta_2, epsilon):
    """One step of Adam on params, gradients g and moments m, v, all (E, P), in place.

        t = step + 1
        m = beta_1 * m + (1 - beta_1) * g;  v = beta_2 * v + (1 - beta_2) * g*g
        rate = learning_rate[step % n] * sqrt(1 - beta_2**t) / (1 - beta_1**t)
        params -= rate * m / (sqrt(v) + epsilon)

    `step` is an array of one element, the steps done before; learning_rate (n,). Source: D. Kingma,
    J. Ba, arXiv:1412.6980; the order of computation is that of the end of its section 2, as in
    Keras.
    """
    rate = float(learning_rate[int(step[0]) % len(learning_rate)])
    t = int(step[0]) + 1
    rate = rate * (1 - beta_2**t) ** 0.5 / (1 - beta_1**t)
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


def average(params, averaged, step, shares):
    """Take params (E, P) into their average, after a step: averaged (E, P) in place.

        averaged = (1 - share) * averaged + share * params,  share = shares[(step - 1) % n]

    computed as averaged + share * (params - averaged), so that equal params change nothing. `step`
    is an array of one element, the steps so far; shares (n,). With the shares 1, 1/2, 1/3, ... it
    is the mean.
    """
    share = float(shares[(int(step[0]) - 1) % len(shares)])
    for e in range(len(params)):
        for part in chunks(params.shape[1], 3, params.dtype):
            w, a = params[e, part], averaged[e, part]
            change = scratch("change", w.shape, w.dtype)
            np.subtract(w, a, out=change)
            a += np.multiply(change, share, out=change)
