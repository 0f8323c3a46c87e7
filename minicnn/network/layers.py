"""The layers. Each says what it turns a shape into, which arrays it needs, and its two passes.

A layer object is a description and holds no numbers: weights, gradients and activations live in
flat arrays that the model owns (model.py), and a pass is given a frame of views into them. Layers
know nothing of devices: they call the operations of one backend module (ops_numpy.py). Names and
conventions are Keras's.
"""

from math import prod, sqrt
from typing import NamedTuple

from .. import checks
from .geometry import Window

ACTIVATIONS = "linear", "relu", "sigmoid", "tanh", "softmax"
PADDINGS = "valid", "same"


class Weight(NamedTuple):
    """A weight of one net: its shape, and its start, uniform within `limit` of `center`."""

    shape: tuple
    center: float = 0.0
    limit: float = 0.0


class Layer:
    """What a layer has to say; the defaults are those of a layer without weights.

    Shapes are those of one image, without the axes of nets and batch. What a pass works on is a
    plan.Frame `f`.
    """

    activation = "linear"
    # Whether its backward pass takes the gradient of the activation that made its input, too.
    differentiates_input_activation = False

    def output_shape(self, input_shape):
        """The shape of the output. Raises ValueError for an input that the layer cannot take."""
        return input_shape

    def weights(self, input_shape):
        """{name: Weight} of what is trained."""
        return {}

    def moving(self, input_shape):
        """{name: Weight} of what is not trained but kept: moving statistics."""
        return {}

    def saved(self, input_shape):
        """{name: (per, shape, dtype)}: arrays kept for the backward pass, per "net" or "image".

        A dtype of None stands for the model's.
        """
        return {}

    def workspace(self, ops, nets, batch, input_shape):
        """Bytes of memory that the passes use and leave nothing in."""
        return 0

    def shares_memory(self, training):
        """Whether the output is the input's own memory in another shape, and passes do nothing."""
        return False

    def forward(self, ops, f, training):
        """Compute f.y from f.x."""

    def backward(self, ops, f):
        """Compute f.gradients and f.dx from f.dy, whose content may be destroyed."""

    def activate_backward(self, ops, f):
        """Turn f.dy into the gradient by what the activation was given, unless it is that."""
        if not f.dy_is_before_activation:
            ops.activate_backward(self.activation, f.y, f.dy)

    def update(self, ops, f):
        """Bring f.moving up to date after a training step."""


class Conv2D(Layer):
    """Convolution of (H, W, Cin) images with `filters` kernels; then bias, then activation."""

    def __init__(self, filters, kernel_size, strides=1, padding="valid", activation="linear"):
        self.filters = checks.integer("filters", filters, 1)
        self.kernel_size = _pair("kernel_size", kernel_size)
        self.strides = _pair("strides", strides)
        self.padding = checks.choice("padding", padding, PADDINGS)
        self.activation = _activation(activation)

    def window(self, input_shape):
        """Where the kernel slides over the input."""
        return _fit_window(self, "kernel_size", self.kernel_size, input_shape)

    def output_shape(self, input_shape):
        return *self.window(input_shape).output, self.filters

    def weights(self, input_shape):
        shape = *self.kernel_size, input_shape[-1], self.filters
        area = prod(self.kernel_size)
        return {
            "kernel": _glorot_uniform(shape, area * input_shape[-1], area * self.filters),
            "bias": Weight((self.filters,)),
        }

    def workspace(self, ops, nets, batch, input_shape):
        window = self.window(input_shape)
        return ops.conv2d_workspace(nets, batch, window, input_shape[-1], self.filters)

    def forward(self, ops, f, training):
        w, window = f.weights, self.window(f.x.shape[2:])
        ops.conv2d(f.x, w.kernel, w.bias, window, self.activation, f.y, f.workspace)

    def backward(self, ops, f):
        g, window = f.gradients, self.window(f.x.shape[2:])
        self.activate_backward(ops, f)
        ops.conv2d_weight_gradient(f.x, f.dy, window, g.kernel, g.bias, f.workspace)
        if f.wants_dx:
            ops.conv2d_input_gradient(f.dy, f.weights.kernel, window, f.dx, f.workspace)


class BatchNormalization(Layer):
    """Normalisation of each channel by the statistics of its batch, or by the moving ones."""

    differentiates_input_activation = True

    def __init__(self, momentum=0.99, epsilon=1e-3):
        self.momentum = checks.number("momentum", momentum, 0, 1, "[)")
        self.epsilon = checks.number("epsilon", epsilon, 0, ends="(]")

    def weights(self, input_shape):
        channels = input_shape[-1:]
        return {"gamma": Weight(channels, center=1.0), "beta": Weight(channels)}

    def moving(self, input_shape):
        channels = input_shape[-1:]
        return {"moving_mean": Weight(channels), "moving_variance": Weight(channels, center=1.0)}

    def saved(self, input_shape):
        channels = input_shape[-1:]
        return {"mean": ("net", channels, None), "variance": ("net", channels, None)}

    def workspace(self, ops, nets, batch, input_shape):
        return ops.batch_norm_workspace(nets, batch, input_shape)

    def forward(self, ops, f, training):
        w = f.weights
        if training:
            mean, variance = f.saved.mean, f.saved.variance
            ops.batch_norm(f.x, w.gamma, w.beta, self.epsilon, mean, variance, f.y, f.workspace)
        else:
            mean, variance = f.moving.moving_mean, f.moving.moving_variance
            ops.batch_norm_inference(f.x, w.gamma, w.beta, self.epsilon, mean, variance, f.y)

    def backward(self, ops, f):
        ops.batch_norm_backward(
            f.x,
            f.dy,
            f.weights.gamma,
            self.epsilon,
            f.saved.mean,
            f.saved.variance,
            f.dx,
            f.gradients.gamma,
            f.gradients.beta,
            f.workspace,
            f.input_activation,
        )

    def update(self, ops, f):
        ops.update_moving(f.moving.moving_mean, f.saved.mean, self.momentum)
        ops.update_moving(f.moving.moving_variance, f.saved.variance, self.momentum)


class Dropout(Layer):
    """In training, drops each number with probability `rate` and scales up the others."""

    def __init__(self, rate):
        self.rate = checks.number("rate", rate, 0, 1, "[)")

    def saved(self, input_shape):
        return {"mask": ("image", input_shape, "bool")} if self.rate else {}

    def shares_memory(self, training):
        return not (training and self.rate)

    def forward(self, ops, f, training):
        if training and self.rate:
            ops.dropout(f.x, self.rate, f.seed, f.nets, f.stream, f.step, f.saved.mask, f.y)

    def backward(self, ops, f):
        if self.rate:
            ops.dropout_backward(f.dy, self.rate, f.saved.mask, f.dx)


class MaxPooling2D(Layer):
    """The largest number under a window; `strides` are the window's size unless given."""

    def __init__(self, pool_size=2, strides=None, padding="valid"):
        self.pool_size = _pair("pool_size", pool_size)
        if prod(self.pool_size) > 2**16:  # a tap's number is 16 bits wide
            raise ValueError(f"pool_size: got {self.pool_size}, expected at most 65536 pixels")
        self.strides = self.pool_size if strides is None else _pair("strides", strides)
        self.padding = checks.choice("padding", padding, PADDINGS)

    def window(self, input_shape):
        """Where the window slides over the input."""
        return _fit_window(self, "pool_size", self.pool_size, input_shape)

    def output_shape(self, input_shape):
        return *self.window(input_shape).output, input_shape[-1]

    def saved(self, input_shape):
        return {"winner": ("image", self.output_shape(input_shape), "uint16")}

    def forward(self, ops, f, training):
        winner = f.saved.winner if training else None
        ops.max_pool(f.x, self.window(f.x.shape[2:]), winner, f.y)

    def backward(self, ops, f):
        ops.max_pool_backward(f.dy, self.window(f.x.shape[2:]), f.saved.winner, f.dx)


class Flatten(Layer):
    """Images (H, W, C) as vectors (H*W*C,)."""

    def output_shape(self, input_shape):
        return (prod(input_shape),)

    def shares_memory(self, training):
        return True


class Dense(Layer):
    """Product of vectors (K,) with a matrix (K, units); then bias, then activation."""

    def __init__(self, units, activation="linear"):
        self.units = checks.integer("units", units, 1)
        self.activation = _activation(activation)

    def output_shape(self, input_shape):
        if len(input_shape) != 1:
            raise ValueError(
                f"Dense: got an input of shape {input_shape}, expected (K,) as Flatten() gives it"
            )
        return (self.units,)

    def weights(self, input_shape):
        inputs = input_shape[-1]
        return {
            "kernel": _glorot_uniform((inputs, self.units), inputs, self.units),
            "bias": Weight((self.units,)),
        }

    def workspace(self, ops, nets, batch, input_shape):
        return ops.dense_workspace(nets, batch, input_shape[0], self.units)

    def forward(self, ops, f, training):
        w = f.weights
        ops.dense(f.x, w.kernel, w.bias, self.activation, f.y, f.workspace)

    def backward(self, ops, f):
        g = f.gradients
        self.activate_backward(ops, f)
        ops.dense_weight_gradient(f.x, f.dy, g.kernel, g.bias, f.workspace)
        if f.wants_dx:
            ops.dense_input_gradient(f.dy, f.weights.kernel, f.dx, f.workspace)


class Activation(Layer):
    """An activation as a layer of its own."""

    def __init__(self, activation):
        self.activation = _activation(activation)

    def forward(self, ops, f, training):
        ops.copy(f.x, f.y)
        ops.activate(self.activation, f.y)

    def backward(self, ops, f):
        self.activate_backward(ops, f)
        ops.copy(f.dy, f.dx)


def _glorot_uniform(shape, fan_in, fan_out):
    """Source: X. Glorot, Y. Bengio, AISTATS 2010, equation 16."""
    return Weight(shape, limit=sqrt(6 / (fan_in + fan_out)))


def _fit_window(layer, argument, size, input_shape):
    name = type(layer).__name__
    if len(input_shape) != 3:
        raise ValueError(f"{name}: got an input of shape {input_shape}, expected (H, W, C)")
    H, W, _ = input_shape
    if layer.padding == "valid" and (size[0] > H or size[1] > W):
        raise ValueError(
            f"{name}: {argument} is {size}, expected at most the input's {(H, W)} "
            f"with padding 'valid'"
        )
    return Window.fit(size, layer.strides, layer.padding, (H, W))


def _pair(name, value):
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2:
        raise ValueError(f"{name}: got {value!r}, expected a positive integer or a pair of them")
    return checks.integer(name, pair[0], 1), checks.integer(name, pair[1], 1)


def _activation(value):
    return checks.choice("activation", "linear" if value is None else value, ACTIVATIONS)
