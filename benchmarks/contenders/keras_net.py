"""The notebook in Keras 3 on PyTorch or JAX: its layers, its generator, its `fit`.

ImageDataGenerator has left Keras's public interface, but is still part of the package. It augments
on the host, and `fit` and `predict` take their images from there.
"""

import importlib

import keras
import numpy as np
from keras import layers
from keras.src.legacy.preprocessing.image import ImageDataGenerator


class Training:
    """A contender's net and data set: see __init__.py."""

    def __init__(self, contender, images, labels, recipe):
        _set_precision(contender)
        # On a GPU starting fit or predict takes as long as several steps.
        self.stride = 20 if contender.device == "cuda" else 1
        self.recipe = recipe
        whole = len(images) // recipe.batch_size * recipe.batch_size  # whole batches only
        x = (images[:whole, ..., None] / 255).astype(np.float32)
        y = keras.utils.to_categorical(labels[:whole], 10)
        self.ready = x[: recipe.batch_size]
        self.model = network(recipe)
        optimizer = keras.optimizers.Adam(recipe.learning_rate)
        self.model.compile(optimizer, loss="categorical_crossentropy", metrics=["accuracy"])
        self.generator = ImageDataGenerator(
            rotation_range=recipe.rotation,
            zoom_range=recipe.zoom,
            width_shift_range=recipe.width_shift,
            height_shift_range=recipe.height_shift,
        )
        self.batches = self.generator.flow(x, y, batch_size=recipe.batch_size)

    def take_weights(self, weights):
        """Take one net's weights."""
        self.model.set_weights(weights)

    def predict(self, x):
        """Probabilities (1, B, 10) of x (B, 28, 28, 1)."""
        return self.model.predict(x, verbose=0)[None]

    def train_on(self, x, y):
        """One step on a batch; its loss (1,)."""
        self.model.reset_metrics()  # otherwise they are means over all batches so far
        y = keras.utils.to_categorical(y, 10)
        return np.array([self.model.train_on_batch(x, y, return_dict=True)["loss"]])

    def warp(self, x, theta, tx, ty, zx, zy):
        """Augment x (B, 28, 28, 1) with given degrees, pixels and factors."""
        names = "theta", "tx", "ty", "zx", "zy"
        each = zip(x, *(values.tolist() for values in (theta, tx, ty, zx, zy)), strict=True)
        return np.stack(
            [
                self.generator.apply_transform(image, dict(zip(names, drawn, strict=True)))
                for image, *drawn in each
            ]
        )

    def train(self, steps):
        """Make `steps` training steps; one call of `fit` makes an epoch's at most."""
        while steps:
            now = min(steps, len(self.batches))
            self.model.fit(self.batches, steps_per_epoch=now, epochs=1, verbose=0)
            steps -= now

    def infer(self, batches):
        """Predict `batches` batches."""
        x = np.broadcast_to(self.ready, (batches, *self.ready.shape)).reshape(-1, 28, 28, 1)
        self.model.predict(x, batch_size=len(self.ready), verbose=0)


def network(recipe):
    """The notebook's network."""

    def convolution(filters, kernel_size, **options):
        return [
            layers.Conv2D(filters, kernel_size, activation="relu", **options),
            layers.BatchNormalization(momentum=recipe.momentum),
        ]

    def block(filters):
        halved = convolution(filters, 5, strides=2, padding="same")
        return [*convolution(filters, 3), *convolution(filters, 3), *halved]

    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            *block(32),
            layers.Dropout(recipe.dropout),
            *block(64),
            layers.Dropout(recipe.dropout),
            *convolution(128, 4),
            layers.Flatten(),
            layers.Dropout(recipe.dropout),
            layers.Dense(10, activation="softmax"),
        ]
    )


def _set_precision(contender):
    """Set the precision of Keras's backend, which uses a GPU by itself where there is one."""
    if contender.backend == "torch":
        torch_net = importlib.import_module("benchmarks.contenders.torch_net")
        if contender.device == "cuda" and not torch_net.torch.cuda.is_available():
            raise RuntimeError("PyTorch finds no GPU")
        torch_net.allow_tf32(contender.precision != "float32")
    else:
        jax_net = importlib.import_module("benchmarks.contenders.jax_net")
        jax_net.use_precision(contender.precision)
