"""Oracles of the layers: nested loops in float64 that share no code with the library.

Every function computes one net: arrays have no net axis. They are slow; use tiny shapes.
"""

import numpy as np
from scipy import interpolate, ndimage


def meetings(rows, columns, size, strides, padding):
    """Yield (i, j, r, c, k, l): at output (i, j), tap (k, l) of the window meets input (r, c).

    Padding is TensorFlow's: "same" gives ceil(length / stride) outputs; the smaller half of the
    zeros comes first. Taps come row by row.
    """
    Ho, top = _places(rows, size[0], strides[0], padding)
    Wo, left = _places(columns, size[1], strides[1], padding)
    for i in range(Ho):
        for j in range(Wo):
            for k in range(size[0]):
                for l in range(size[1]):  # noqa: E741
                    r, c = i * strides[0] + k - top, j * strides[1] + l - left
                    if 0 <= r < rows and 0 <= c < columns:
                        yield i, j, r, c, k, l


def output_size(rows, columns, size, strides, padding):
    """(Ho, Wo)."""
    return (
        _places(rows, size[0], strides[0], padding)[0],
        _places(columns, size[1], strides[1], padding)[0],
    )


def _places(length, size, stride, padding):
    """(outputs along an axis, zeros before the input)."""
    if padding == "valid":
        return len([at for at in range(0, length, stride) if at + size <= length]), 0
    places = len(range(0, length, stride))
    missing = (places - 1) * stride + size - length
    return places, missing // 2 if missing > 0 else 0


def conv2d(x, kernel, bias, strides, padding):
    """y (B, Ho, Wo, Cout) from x (B, H, W, Cin), kernel (kh, kw, Cin, Cout), bias (Cout,)."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    B, H, W, _ = x.shape
    y = np.zeros((B, *output_size(H, W, kernel.shape[:2], strides, padding), kernel.shape[3]))
    for i, j, r, c, k, l in meetings(H, W, kernel.shape[:2], strides, padding):  # noqa: E741
        y[:, i, j] += x[:, r, c] @ kernel[k, l]
    return y + bias


def conv2d_gradients(x, kernel, dz, strides, padding):
    """(dx, dkernel, dbias) from dz (B, Ho, Wo, Cout)."""
    x, kernel, dz = (np.asarray(array, np.float64) for array in (x, kernel, dz))
    dx, dkernel = np.zeros(x.shape), np.zeros(kernel.shape)
    places = meetings(*x.shape[1:3], kernel.shape[:2], strides, padding)
    for i, j, r, c, k, l in places:  # noqa: E741
        dx[:, r, c] += dz[:, i, j] @ kernel[k, l].T
        dkernel[k, l] += x[:, r, c].T @ dz[:, i, j]
    dbias = np.array([sum(dz[..., f].ravel()) for f in range(dz.shape[-1])])
    return dx, dkernel, dbias


def max_pool(x, size, strides, padding):
    """(y, at): the maxima, and their rows and columns in x, at (B, Ho, Wo, C, 2).

    Of equal elements the first is the maximum.
    """
    B, H, W, C = x.shape
    shape = B, *output_size(H, W, size, strides, padding), C
    y, at = np.full(shape, np.nan), np.zeros((*shape, 2), int)
    for i, j, r, c, _, _ in meetings(H, W, size, strides, padding):
        for b in range(B):
            for f in range(C):
                if not x[b, r, c, f] <= y[b, i, j, f]:
                    y[b, i, j, f], at[b, i, j, f] = x[b, r, c, f], (r, c)
    return y, at


def max_pool_gradient(x, dy, size, strides, padding):
    """dx (B, H, W, C): each element of dy is added at its maximum's place."""
    dx = np.zeros(x.shape)
    _, at = max_pool(x, size, strides, padding)
    for b, i, j, f in np.ndindex(dy.shape):
        r, c = at[b, i, j, f]
        dx[b, r, c, f] += dy[b, i, j, f]
    return dx


def dense(x, kernel, bias):
    """y (B, N) from x (B, K), kernel (K, N), bias (N,)."""
    y = np.zeros((len(x), len(bias)))
    for b, n in np.ndindex(y.shape):
        y[b, n] = sum(float(x[b, k]) * float(kernel[k, n]) for k in range(len(kernel))) + bias[n]
    return y


def dense_gradients(x, kernel, dz):
    """(dx, dkernel, dbias) from dz (B, N)."""
    dx, dkernel, dbias = np.zeros(x.shape), np.zeros(kernel.shape), np.zeros(dz.shape[1])
    for b, n in np.ndindex(dz.shape):
        dbias[n] += dz[b, n]
        for k in range(len(kernel)):
            dx[b, k] += float(dz[b, n]) * float(kernel[k, n])
            dkernel[k, n] += float(x[b, k]) * float(dz[b, n])
    return dx, dkernel, dbias


def batch_norm(x, gamma, beta, epsilon):
    """(y, mean (C,), variance (C,)) of x (..., C); the variance is the biased one."""
    x = np.asarray(x, np.float64)
    y, means, variances = np.zeros(x.shape), [], []
    for c in range(x.shape[-1]):
        values = [float(value) for value in x[..., c].ravel()]
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / len(values)
        y[..., c] = gamma[c] * (x[..., c] - mean) / (variance + epsilon) ** 0.5 + beta[c]
        means.append(mean)
        variances.append(variance)
    return y, np.array(means), np.array(variances)


def activate(name, z):
    """The activation of z; softmax is over the last axis."""
    z = np.asarray(z, np.float64)
    if name == "relu":
        return np.where(z > 0, z, 0.0)
    if name == "sigmoid":
        return 1 / (1 + np.exp(-z))
    if name == "tanh":
        return np.tanh(z)
    if name == "softmax":
        return np.exp(z) / sum(np.exp(z[..., i : i + 1]) for i in range(z.shape[-1]))
    return z


def softmax_cross_entropy(logits, labels, smoothing=0.0):
    """(loss, correct, dlogits) of logits (B, N), labels (B,): means over the batch."""
    B, N = logits.shape
    loss, correct, dlogits = 0.0, 0, np.zeros((B, N))
    for b in range(B):
        row = [float(z) for z in logits[b]]
        peak = max(row)
        total = sum(np.exp(z - peak) for z in row)
        correct += row.index(peak) == labels[b]
        for n in range(N):
            target = smoothing / N + (1 - smoothing if n == labels[b] else 0)
            loss += target * (peak + np.log(total) - row[n]) / B
            dlogits[b, n] = (np.exp(row[n] - peak) / total - target) / B
    return loss, correct, dlogits


def adam(w, g, m, v, t, rate, beta_1=0.9, beta_2=0.999, epsilon=1e-7):
    """Keras's step number t (from 1) on flat arrays. Returns the new (w, m, v)."""
    w, m, v = w.copy(), m.copy(), v.copy()
    for i in range(len(w)):
        m[i] = beta_1 * m[i] + (1 - beta_1) * g[i]
        v[i] = beta_2 * v[i] + (1 - beta_2) * g[i] ** 2
        correction = (1 - beta_2**t) ** 0.5 / (1 - beta_1**t)
        w[i] -= rate * correction * m[i] / (v[i] ** 0.5 + epsilon)
    return w, m, v


def affine(image, theta, tx, ty, zx, zy):
    """SciPy's affine_transform of an image (H, W, C), in float64. theta in degrees."""
    image = np.asarray(image, np.float64)
    H, W, C = image.shape
    cos, sin = np.cos(np.radians(float(theta))), np.sin(np.radians(float(theta)))
    rotation = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    shift = np.array([[1, 0, tx], [0, 1, ty], [0, 0, 1]], np.float64)
    zoom = np.diag(np.array([zx, zy, 1], np.float64))
    to_centre = np.array([[1, 0, (W - 1) / 2], [0, 1, (H - 1) / 2], [0, 0, 1]])
    matrix = to_centre @ rotation @ shift @ zoom @ np.linalg.inv(to_centre)  # on (x, y, 1)
    swap = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1]])
    matrix = swap @ matrix @ swap  # on (row, column, 1), which is SciPy's order
    channels = [
        ndimage.affine_transform(
            image[..., c], matrix[:2, :2], matrix[:2, 2], order=1, mode="nearest"
        )
        for c in range(C)
    ]
    return np.stack(channels, axis=-1)


def distort(image, theta, tx, ty, zx, zy, nodes):
    """SciPy's map_coordinates of an image (H, W, C), displaced by B-splines of nodes (2, 6, 6)."""
    image = np.asarray(image, np.float64)
    H, W, C = image.shape
    along_x, along_y = (_surface(of_axis, H, W) for of_axis in np.asarray(nodes, np.float64))
    theta, tx, ty, zx, zy = (float(number) for number in (theta, tx, ty, zx, zy))
    angle = complex(np.cos(np.radians(theta)), np.sin(np.radians(theta)))
    at = np.empty((2, H, W))
    for r in range(H):
        for c in range(W):
            x, y = zx * (c - (W - 1) / 2) + tx, zy * (r - (H - 1) / 2) + ty
            turned = angle * complex(x, y)
            at[0, r, c] = turned.imag + (H - 1) / 2 + along_y[r, c]
            at[1, r, c] = turned.real + (W - 1) / 2 + along_x[r, c]
    channels = [
        ndimage.map_coordinates(image[..., c], at, order=1, mode="nearest") for c in range(C)
    ]
    return np.stack(channels, axis=-1)


def _surface(nodes, H, W):
    """The values (H, W) of SciPy's cubic B-spline with coefficients (6, 6) and knots -3 to 6."""
    knots = np.arange(-3.0, 7.0)
    columns = interpolate.BSpline(knots, nodes, 3)(np.linspace(0, 3, H))  # (H, 6)
    return interpolate.BSpline(knots, columns.T, 3)(np.linspace(0, 3, W)).T
