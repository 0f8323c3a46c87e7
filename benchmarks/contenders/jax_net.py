"""The seed network and its training step in JAX: jit, scan over steps, vmap over nets.

The state of a net is a pytree with one array a weight. A step is a pure function from state to
state; it is compiled as a whole, from drawing the batch to Adam.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks import contenders

# Steps of a scan; few on a CPU, where convolutions in a loop are slow.
SCANNED = {"cuda": 10, "cpu": 4}
# The stride of each convolution; dropout follows the 3rd, 6th and 7th.
STRIDES = 1, 1, 2, 1, 1, 2, 1
DROPOUT_AFTER = 2, 5, 6
EPSILON = 1e-3


class State(NamedTuple):
    """The state of a net in training; m and v are Adam's moments."""

    params: dict
    moving: list  # (mean, variance) of each batch normalisation
    m: dict
    v: dict
    steps: jax.Array
    key: jax.Array


class Training:
    """A contender's nets and data set: see __init__.py."""

    def __init__(self, contender, images, labels, recipe):
        use_precision(contender.precision)
        self.contender, self.recipe = contender, recipe
        self.stride = SCANNED[contender.device] if contender.scan else 1
        images, labels = jnp.asarray(images), jnp.asarray(labels.astype(np.int32))
        self.ready = images[: recipe.batch_size, ..., None].astype(jnp.float32) / 255
        self.state = None
        model = recipe.model([1], "numpy")
        self.take_weights([weight[0] for weight in model.get_weights()])

        def of_all(function):
            """function(state, a, b), mapped over all nets; a and b are the same for all."""
            return jax.vmap(function, in_axes=(0, None, None)) if contender.nets > 1 else function

        def steps(state, images, labels):
            step = of_all(partial(draw_and_step, recipe))
            if not contender.scan:
                return step(state, images, labels)[0]
            again = lambda state, _: step(state, images, labels)  # noqa: E731
            return lax.scan(again, state, None, length=self.stride)[0]

        train = jax.jit(steps, donate_argnums=0)
        self._train = lambda state: train(state, images, labels)
        self._train_on = jax.jit(of_all(partial(step, recipe)))
        self._predict = jax.jit(of_all(lambda state, x, _: probabilities(state, x)))

    def take_weights(self, weights):
        """Give all nets the weights of one."""
        nets, key = self.contender.nets, jax.random.key(self.recipe.seed)
        params, moving = tree_of(weights)
        state = State(params, moving, zeros(params), zeros(params), jnp.zeros(()), key)
        if nets > 1:
            state = jax.tree.map(lambda a: jnp.repeat(a[None], nets, axis=0), state)
            state = state._replace(key=jax.random.split(key, nets))
        self.state = state

    def predict(self, x):
        """Probabilities (E, B, 10) of x (B, 28, 28, 1)."""
        return np.asarray(self._predict(self.state, x, None)).reshape(-1, len(x), 10)

    def train_on(self, x, y):
        """One step of every net on the same batch; losses (E,)."""
        self.state, losses = self._train_on(self.state, x, y)
        return np.asarray(losses).reshape(-1)

    def warp(self, x, theta, tx, ty, zx, zy):
        """Augment x (B, 28, 28, 1) with given degrees, pixels and factors."""
        return np.asarray(jax.jit(warp)(x, np.radians(theta), tx, ty, zx, zy))

    def train(self, steps):
        """Make `steps` training steps, and wait for them."""
        for _ in range(steps // self.stride):
            self.state = self._train(self.state)
        jax.block_until_ready(self.state)

    def infer(self, batches):
        """Predict the prepared batch `batches` times."""
        for _ in range(batches):
            found = self._predict(self.state, self.ready, None)
        jax.block_until_ready(found)


def use_precision(precision):
    """Set the precision of matrix products for the whole process."""
    name = {"float32": "float32", "tf32": "tensorfloat32"}[precision]
    jax.config.update("jax_default_matmul_precision", name)


def tree_of(weights):
    """(parameters, moving statistics) as JAX arrays, from weights in Keras's order."""
    arrays = iter([jnp.array(weight) for weight in weights])
    params, moving = {"convolutions": []}, []
    for _ in STRIDES:
        names = "kernel", "bias", "gamma", "beta"
        params["convolutions"].append({name: next(arrays) for name in names})
        moving.append((next(arrays), next(arrays)))
    params["dense"] = {"kernel": next(arrays), "bias": next(arrays)}
    return params, moving


def zeros(tree):
    """A tree of zeros of the same shapes."""
    return jax.tree.map(jnp.zeros_like, tree)


def forward(params, moving, x, rate, momentum=0.0, key=None):
    """(logits (B, 10), new moving statistics) of x (B, 28, 28, 1); with a key, in training mode."""
    new = []
    layers = zip(params["convolutions"], moving, STRIDES, strict=True)
    for i, (weights, statistics, stride) in enumerate(layers):
        x = lax.conv_general_dilated(
            x,
            weights["kernel"],
            (stride, stride),
            "VALID" if stride == 1 else "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = jax.nn.relu(x + weights["bias"])
        mean, variance = statistics
        if key is not None:
            mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
            pairs = zip(statistics, (mean, variance), strict=True)
            new.append(tuple(momentum * old + (1 - momentum) * now for old, now in pairs))
        x = (x - mean) * (weights["gamma"] * lax.rsqrt(variance + EPSILON)) + weights["beta"]
        if key is not None and i in DROPOUT_AFTER:
            kept = jax.random.bernoulli(jax.random.fold_in(key, i), 1 - rate, x.shape)
            x = jnp.where(kept, x / (1 - rate), 0)
    x = x.reshape(len(x), -1)
    return x @ params["dense"]["kernel"] + params["dense"]["bias"], new


def probabilities(state, x):
    """The probabilities (B, 10) of images x (B, 28, 28, 1)."""
    return jax.nn.softmax(forward(state.params, state.moving, x, 0.0)[0])


def step(recipe, state, x, y):
    """(new state, loss) of a training step on a batch x (B, 28, 28, 1), y (B,)."""
    key, dropped = jax.random.split(state.key)

    def loss_of(params):
        logits, moving = forward(params, state.moving, x, recipe.dropout, recipe.momentum, dropped)
        of_label = jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1)
        return -of_label.mean(), moving

    (loss, moving), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    steps = state.steps + 1
    m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, state.m, gradients)
    v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, state.v, gradients)
    rate = recipe.learning_rate * jnp.sqrt(1 - 0.999**steps) / (1 - 0.9**steps)
    params = jax.tree.map(lambda w, m, v: w - rate * m / (jnp.sqrt(v) + 1e-7), state.params, m, v)
    return State(params, moving, m, v, steps, key), loss


def draw_and_step(recipe, state, images, labels):
    """(new state, loss) of a step on a batch drawn from uint8 images (N, 28, 28), and augmented."""
    key, of_batch, of_warp = jax.random.split(state.key, 3)
    chosen = jax.random.randint(of_batch, (recipe.batch_size,), 0, len(images))
    x = images[chosen][..., None].astype(jnp.float32) / 255
    drawn = jax.random.uniform(of_warp, (5, len(x)), minval=-1)
    x = warp(x, *contenders.augmentation(recipe, x.shape[1], *drawn))
    return step(recipe, state._replace(key=key), x, labels[chosen])


def warp(x, theta, tx, ty, zx, zy):
    """Images x (B, 28, 28, 1) rotated by theta (B,) radians, shifted by pixels, zoomed."""

    def of_one(image, theta, tx, ty, zx, zy):
        center = (image.shape[0] - 1) / 2
        row, column = jnp.indices(image.shape) - center
        column, row = column * zx + tx, row * zy + ty
        cos, sin = jnp.cos(theta), jnp.sin(theta)
        at = [sin * column + cos * row + center, cos * column - sin * row + center]
        return jax.scipy.ndimage.map_coordinates(image, at, order=1, mode="nearest")

    return jax.vmap(of_one)(x[..., 0], theta, tx, ty, zx, zy)[..., None]
