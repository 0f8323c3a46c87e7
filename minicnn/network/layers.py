"""The layers: each declares its output shape and its arrays, and runs its two passes.

A layer object is a description and holds no arrays. The model (nets.py) owns the weights and
gradients, a plan (plan.py) the activations. A pass receives a plan.Frame with views into them.
Layers do not depend on the device: they call the operations `ops` of a backend, of which
backends/ops_numpy.py is the reference. Names and conventions are Keras's.
"""

from math import prod, sqrt
from typing import NamedTuple

from .. import checks
from .geometry import Window

ACTIVATIONS = "linear", "relu", "sigmoid", "tanh", "softmax"
PADDINGS = "valid", "same"


class Weight(NamedTuple):
    """A weight of one net: its shape, and its initial values, uniform in center +- limit."""

    shape: tuple
    center: float = 0.0
    limit: float = 0.0


class Layer:
    """The interface of a layer. The defaults are those of a layer without weights.

    Shapes are those of one image, without the axes E and B. A pass works on a plan.Frame `f`.
    """

    activation = "linear"
    # Whether its backward pass also differentiates the activation that computed its input.
    differentiates_input_activation = False

    def output_shape(self, input_shape):
        """The shape of the output. Raises ValueError for an input shape that does not fit."""
        return input_shape

    def weights(self, input_shape):
        """{name: Weight} of the trainable weights."""
        return {}

    def moving(self, input_shape):
        """{name: Weight} of the moving statistics."""
        return {}

    def saved(self, input_shape):
        """{name: (per, shape, dtype)} of the arrays that forward saves for backward.

        per: "net" for an array (E, *shape), "image" for (E, B, *shape). dtype None is the model's.
        """
        return {}

    def workspace(self, ops, nets, batch, input_shape):
        """Bytes of scratch memory that a pass needs."""
        return 0

    def least_batch(self, input_shape):
        """The smallest batch that it can be trained with."""
        return 1

    def shares_memory(self, training):
        """Whether the output is a view of the input, possibly reshaped, and no pass is needed."""
        return False

    def forward(self, ops, f, training):
        """Compute f.y from f.x."""

    def backward(self, ops, f):
        """Compute f.gradients and f.dx from f.dy. May overwrite f.dy."""

    def activate_backward(self, ops, f):
        """Turn f.dy into the gradient with respect to the activation's input.

        Does nothing if the next layer has done so (Frame.dy_is_before_activation).
        """
        if not f.dy_is_before_activation:
            ops.activate_backward(self.activation, f.y, f.dy)

    def update(self, ops, f, momentum=None):
        """Update the moving statistics f.moving after a forward pass in training.

        momentum: of the update (default: the layer's).
        """


class Conv2D(Layer):
    """Convolution of images (H, W, Cin) with Cout = `filters` kernels, then bias, then activation.

        y[r, c] = activation(bias + sum over i in range(kh), j in range(kw) of
                                    x[r*sh + i - top, c*sw + j - left] @ kernel[i, j])

    sh, sw are the strides; top, left are the padding before (geometry.Window). Convention: Keras's
    Conv2D.
    """

    def __init__(self, filters, kernel_size, strides=1, padding="valid", activation="linear"):
        self.filters = checks.integer("filters", filters, 1)
        self.kernel_size = _pair("kernel_size", kernel_size)
        self.strides = _pair("strides", strides)
        self.padding = checks.choice("padding", padding, PADDINGS)
        self.activation = _activation(activation)

    def window(self, input_shape):
        """The Window of the kernel over the input."""
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
    """Batch normalisation of each channel. In training, over all images and pixels of the batch:

        y = gamma * (x - mean) / sqrt(variance + epsilon) + beta
        moving = momentum * moving + (1 - momentum) * (mean or variance)

    Inference uses the moving statistics. The variance is the biased one (divided by n), in `moving`
    too. Source: S. Ioffe, C. Szegedy, arXiv:1502.03167.
    """

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

    def least_batch(self, input_shape):
        # Normalised alone, a value is always 0, and so is the gradient with respect to it.
        return 2 if prod(input_shape[:-1]) == 1 else 1

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

    def update(self, ops, f, momentum=None):
        momentum = self.momentum if momentum is None else momentum
        ops.update_moving(f.moving.moving_mean, f.saved.mean, momentum)
        ops.update_moving(f.moving.moving_variance, f.saved.variance, momentum)


class Dropout(Layer):
    """Dropout. In training, each element is 0 with probability `rate`, else x / (1 - rate).

    Inference returns x. Source: N. Srivastava et al., JMLR 15, 2014.
    """

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
    """The maximum under a window of `pool_size`, per channel. Padding is never the maximum.

        y[r, c] = max over i in range(kh), j in range(kw) of x[r*sh + i - top, c*sw + j - left]

    kh, kw are `pool_size`; sh, sw are the strides, kh, kw unless given; top, left are the padding
    before (geometry.Window).
    """

    def __init__(self, pool_size=2, strides=None, padding="valid"):
        self.pool_size = _pair("pool_size", pool_size)
        if prod(self.pool_size) > 2**16:  # `winner` holds 16 bits
            raise ValueError(f"pool_size: got {self.pool_size}, expected at most 65536 pixels")
        self.strides = self.pool_size if strides is None else _pair("strides", strides)
        self.padding = checks.choice("padding", padding, PADDINGS)

    def window(self, input_shape):
        """The Window over the input."""
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
    """Reshapes images (H, W, C) to vectors (H*W*C,)."""

    def output_shape(self, input_shape):
        return (prod(input_shape),)

    def shares_memory(self, training):
        return True


class Dense(Layer):
    """y = activation(x @ kernel + bias): vectors (K,) to vectors (units,), kernel (K, units)."""

    def __init__(self, units, activation="linear"):
        self.units = checks.integer("units", units, 1)
        self.activation = _activation(activation)

    def output_shape(self, input_shape):
        if len(input_shape) != 1:
            raise ValueError(
                f"got an input of shape {input_shape}, expected (K,); add Flatten() before"
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
    """An activation as a separate layer: y = activation(x)."""

    def __init__(self, activation):
        self.activation = _activation(activation)

    def forward(self, ops, f, training):
        ops.copy(f.x, f.y)
        ops.activate(self.activation, f.y)

    def backward(self, ops, f):
        self.activate_backward(ops, f)
        ops.copy(f.dy, f.dx)


def _glorot_uniform(shape, fan_in, fan_out):
    """A Weight uniform in +- sqrt(6 / (fan_in + fan_out)).

    Source: X. Glorot, Y. Bengio, AISTATS 2010, equation 16.
    """
    return Weight(shape, limit=sqrt(6 / (fan_in + fan_out)))


def _fit_window(layer, argument, size, input_shape):
    if len(input_shape) != 3:
        raise ValueError(f"got an input of shape {input_shape}, expected (H, W, C)")
    H, W, _ = input_shape
    if layer.padding == "valid" and (size[0] > H or size[1] > W):
        raise ValueError(
            f"{argument} is {size}, expected at most the input's {(H, W)} with padding 'valid'"
        )
    return Window.fit(size, layer.strides, layer.padding, (H, W))


def _pair(name, value):
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2:
        raise ValueError(f"{name}: got {value!r}, expected a positive integer or a pair of them")
    return checks.integer(name, pair[0], 1), checks.integer(name, pair[1], 1)


def _activation(value):
    return checks.choice("activation", "linear" if value is None else value, ACTIVATIONS)
