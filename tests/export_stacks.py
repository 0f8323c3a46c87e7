"""Models with random weights for the tests of exports, and how to compare their predictions."""

import json

import numpy as np
from hypothesis import strategies as st

from minicnn import (
    Activation,
    BatchNormalization,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    MaxPooling2D,
    Sequential,
)
from minicnn.network.architecture import Architecture
from minicnn.network.layers import ACTIVATIONS, PADDINGS

BOUND = 1e-5  # of the difference of two probabilities

# {name: (layers, input shape, nets)}
STACKS = {
    "softmax inside": (
        [
            Conv2D(3, (2, 5), strides=(3, 2), padding="same", activation="softmax"),
            MaxPooling2D((3, 2), (2, 1)),
            Activation("softmax"),
            Flatten(),
            BatchNormalization(epsilon=0.1),
            Activation("tanh"),
            Dense(5),
            Activation("softmax"),
        ],
        (17, 12, 3),
        2,
    ),
    "strides larger than windows": (
        [
            Conv2D(4, 1, strides=3, padding="same", activation="sigmoid"),
            MaxPooling2D(1, 2, padding="same"),
            BatchNormalization(),
            Flatten(),
            Flatten(),
            Dropout(0.5),
            Dense(4, "relu"),
            Dense(3, "softmax"),
        ],
        (11, 10, 2),
        1,
    ),
    "vectors": (
        [Dense(6, "relu"), BatchNormalization(epsilon=0.1), Dense(4, "softmax")],
        (12,),
        3,
    ),
    "images out": (
        [BatchNormalization(), Conv2D(4, 3, activation="tanh"), Conv2D(3, 2, activation="softmax")],
        (6, 5, 2),
        2,
    ),
}


def randomized(model, seed=0):
    """The model, with random weights and moving statistics."""
    random = np.random.default_rng(seed)
    weights = []
    for name, view in model.named_weights.items():
        if name.endswith(("gamma", "moving_variance")):
            weights.append(random.uniform(0.5, 2, view.shape))
        elif name.endswith("kernel"):
            fan_in = np.prod(view.shape[1:-1])
            weights.append(random.normal(0, 1.5 / np.sqrt(fan_in), view.shape))
        else:
            weights.append(random.normal(0, 0.5, view.shape))
    model.set_weights(weights)
    return model


def images_for(model, count=5):
    """Random inputs (count, H, W, C) in [0, 1] of a model."""
    return np.random.default_rng(1).uniform(size=(count, *model.input_shape)).astype(np.float32)


def windows():
    """Arguments of a convolution's or a pooling's window."""
    sizes = st.tuples(st.integers(1, 3), st.integers(1, 3))
    strides = st.tuples(st.integers(1, 3), st.integers(1, 3))
    return st.tuples(sizes, strides, st.sampled_from(PADDINGS))


def image_layers():
    """Layers that take images and return images."""
    activations = st.sampled_from(ACTIVATIONS)
    return st.one_of(
        st.builds(
            lambda filters, window, activation: Conv2D(filters, *window, activation),
            st.integers(1, 4),
            windows(),
            activations,
        ),
        st.builds(lambda window: MaxPooling2D(*window), windows()),
        vector_layers(),
    )


def vector_layers():
    """Layers that keep the shape."""
    return st.one_of(
        st.builds(BatchNormalization, epsilon=st.floats(1e-4, 0.1)),
        st.builds(Dropout, st.floats(0, 0.9)),
        st.builds(Activation, st.sampled_from(ACTIVATIONS)),
    )


@st.composite
def models(draw):
    """Models of 1 to 3 nets for images: layers on images, on vectors, then Dense with softmax."""
    layers = draw(st.lists(image_layers(), min_size=1, max_size=3))
    layers += [Flatten(), *draw(st.lists(vector_layers(), max_size=2))]
    if draw(st.booleans()):
        layers.append(Dense(draw(st.integers(1, 5)), draw(st.sampled_from(ACTIVATIONS))))
    layers.append(Dense(3, "softmax"))
    sides = st.integers(27, 30)  # three windows of 3 with strides of 3 fit
    shape = draw(sides), draw(sides), draw(st.integers(1, 3))
    nets, seed = draw(st.integers(1, 3)), draw(st.integers(0, 99))
    return randomized(Sequential(layers, shape, nets, device="numpy"), seed)


def small_model(nets=2, layers=None):
    return randomized(
        Sequential(layers or [Flatten(), Dense(3, "softmax")], (4, 3, 2), nets, device="numpy")
    )


def assert_close(found, expected):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=BOUND)


def check_facts(found, model):
    assert Architecture.from_dict(json.loads(found["architecture"])).as_dict() == (
        model.architecture.as_dict()
    )
    assert json.loads(found["nets"]) == [3, 4]
    assert json.loads(found["classes"]) == list("zyxwvutsrq")
