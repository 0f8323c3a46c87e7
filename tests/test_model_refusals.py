"""Sequential and mnist_cnn refuse bad arguments.

Each message names the argument, the value found and the value expected.
"""

import re
import warnings

import numpy as np
import pytest
from stacks import state

from minicnn import (
    Activation,
    Adam,
    BatchNormalization,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    MaxPooling2D,
    Sequential,
    mnist_cnn,
)

pytestmark = pytest.mark.every_device

FLAT = [Flatten(), Dense(3, activation="softmax")]


@pytest.mark.parametrize(
    ("make", "named", "got"),
    [
        (lambda: Conv2D(0, 3), "filters", "0"),
        (lambda: Conv2D(2.0, 3), "filters", "2.0"),
        (lambda: Conv2D(True, 3), "filters", "True"),
        (lambda: Conv2D(2, 0), "kernel_size", "0"),
        (lambda: Conv2D(2, (3, 3, 3)), "kernel_size", "(3, 3, 3)"),
        (lambda: Conv2D(2, (3, -1)), "kernel_size", "-1"),
        (lambda: Conv2D(2, "3"), "kernel_size", "3"),
        (lambda: Conv2D(2, 3, strides=0), "strides", "0"),
        (lambda: Conv2D(2, 3, strides=(1, 1.5)), "strides", "1.5"),
        (lambda: Conv2D(2, 3, padding="full"), "padding", "full"),
        (lambda: Conv2D(2, 3, padding=None), "padding", "None"),
        (lambda: Conv2D(2, 3, padding=1), "padding", "1"),
        (lambda: Conv2D(2, 3, activation="gelu"), "activation", "gelu"),
        (lambda: Conv2D(2, 3, activation=max), "activation", "max"),
        (lambda: Dense(0), "units", "0"),
        (lambda: Dense("ten"), "units", "ten"),
        (lambda: Dense(3, activation="swish"), "activation", "swish"),
        (lambda: Activation("reul"), "activation", "reul"),
        (lambda: Dropout(1), "rate", "1"),
        (lambda: Dropout(-0.1), "rate", "-0.1"),
        (lambda: Dropout(float("nan")), "rate", "nan"),
        (lambda: Dropout("0.4"), "rate", "0.4"),
        (lambda: Dropout(True), "rate", "True"),
        (lambda: MaxPooling2D(0), "pool_size", "0"),
        # Training stores the index of the maximum in 16 bits.
        (lambda: MaxPooling2D((256, 257)), "pool_size", "(256, 257)"),
        (lambda: MaxPooling2D(2, strides=-1), "strides", "-1"),
        (lambda: MaxPooling2D(2, padding="SAME"), "padding", "SAME"),
        (lambda: BatchNormalization(momentum=1), "momentum", "1"),
        (lambda: BatchNormalization(momentum=-0.5), "momentum", "-0.5"),
        (lambda: BatchNormalization(epsilon=0), "epsilon", "0"),
        (lambda: BatchNormalization(epsilon=float("inf")), "epsilon", "inf"),
    ],
)
def test_bad_layers_are_refused(make, named, got):
    with pytest.raises(ValueError, match=rf"^{named}\b.*{re.escape(got)}.*expected"):
        make()


@pytest.mark.parametrize(
    ("arguments", "named", "got"),
    [
        ({"layers": []}, "layers", "[]"),
        ({"layers": [Flatten(), "dense"]}, "layers", "'dense'"),
        ({"layers": [Flatten, Dense(3)]}, "layers", "Flatten"),
        ({"layers": Dense(3)}, "layers", "Dense"),
        ({"layers": None}, "layers", "None"),
        ({"layers": [Conv2D(2, 6)]}, "kernel_size", "(6, 6)"),
        ({"layers": [Conv2D(2, (1, 5))]}, "kernel_size", "(1, 5)"),
        ({"layers": [Conv2D(2, 3), Conv2D(2, 4)]}, "kernel_size", "(4, 4)"),
        ({"layers": [MaxPooling2D((6, 1))]}, "pool_size", "(6, 1)"),
        ({"layers": [Dense(3)]}, "dense", "(5, 4, 2)"),
        ({"layers": [Flatten(), Conv2D(2, 3)]}, "conv2d", "(40,)"),
        ({"layers": [Flatten(), MaxPooling2D(2)]}, "max_pooling2d", "(40,)"),
        ({"input_shape": (5, 4)}, "input_shape", "(5, 4)"),
        ({"input_shape": (5, 4, 0)}, "input_shape", "0"),
        ({"input_shape": (5.0, 4, 2)}, "input_shape", "5.0"),
        ({"input_shape": 40}, "input_shape", "40"),
        ({"input_shape": None}, "input_shape", "None"),
        ({"nets": 0}, "nets", "0"),
        ({"nets": 1.0}, "nets", "1.0"),
        ({"nets": True}, "nets", "True"),
        ({"first_net": -1}, "first_net", "-1"),
        ({"first_net": 2**32 - 1, "nets": 2}, "first_net", str(2**32)),
        ({"first_net": 0.5}, "first_net", "0.5"),
        ({"seed": 2**32}, "seed", str(2**32)),
        ({"seed": -1}, "seed", "-1"),
        ({"seed": None}, "seed", "None"),
        ({"device": "gpu"}, "device", "gpu"),
        ({"device": None}, "device", "None"),
        ({"dtype": "float16"}, "dtype", "float16"),
        ({"dtype": None}, "dtype", "None"),
        ({"precision": "half"}, "precision", "half"),
        ({"optimizer": "adam"}, "optimizer", "adam"),
        ({"optimizer": Adam}, "optimizer", "Adam"),
    ],
)
def test_bad_models_are_refused(device, arguments, named, got):
    arguments = {"layers": FLAT, "input_shape": (5, 4, 2), "device": device, **arguments}
    with pytest.raises(ValueError, match=rf"^(\w+: )?{named}\b.*{re.escape(got)}"):
        Sequential(**arguments)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("nets", 0),
        ("first_net", -3),
        ("seed", -1),
        ("device", "gpu"),
        ("dtype", "int8"),
        ("precision", "double"),
    ],
)
def test_bad_arguments_of_mnist_cnn_are_refused(device, argument, value):
    with pytest.raises(ValueError, match=rf"^{argument}\b.*{value}"):
        mnist_cnn(**{"nets": 1, "device": device, argument: value})
    for rate in ("dropout", "momentum"):
        with pytest.raises(ValueError, match=rf"^{rate}\b.*1\.5"):
            mnist_cnn(nets=1, device=device, **{rate: 1.5})


GOOD_X, GOOD_Y = np.full((2, 3, 5, 4, 2), 0.5, np.float32), np.array([[0, 1, 2], [2, 1, 0]])
BAD_BATCHES = [
    ((GOOD_X * 255).astype(np.uint8), GOOD_Y, "x", "uint8"),
    (GOOD_X.astype(int), GOOD_Y, "x", "int64"),
    (GOOD_X[0], GOOD_Y, "x", r"\(3, 5, 4, 2\)"),
    (GOOD_X[..., 0], GOOD_Y, "x", r"\(2, 3, 5, 4\)"),
    (GOOD_X.transpose(0, 1, 3, 2, 4), GOOD_Y, "x", r"\(2, 3, 4, 5, 2\)"),
    (GOOD_X[:1], GOOD_Y[:1], "x", "1 nets.*2 nets"),
    (np.concatenate([GOOD_X] * 2), np.concatenate([GOOD_Y] * 2), "x", "4 nets.*2 nets"),
    (GOOD_X[:, :0], GOOD_Y[:, :0], "x", "0 images"),
    (GOOD_X, GOOD_Y[:, :2], "y", r"\(2, 2\).*\(2, 3\)"),
    (GOOD_X, GOOD_Y.ravel(), "y", r"\(6,\).*\(2, 3\)"),
    (GOOD_X, GOOD_Y[0], "y", r"\(3,\).*\(2, 3\)"),
    (GOOD_X, np.eye(3)[GOOD_Y], "y", r"\(2, 3, 3\).*integers"),
    (GOOD_X, np.eye(3, dtype=int)[GOOD_Y], "y", r"\(2, 3, 3\).*integers"),
    (GOOD_X, GOOD_Y.astype(float), "y", "float64.*integers"),
    (GOOD_X, GOOD_Y > 0, "y", "bool.*integers"),
    (GOOD_X, GOOD_Y + 1, "y", "1 to 3.*0 to 2"),
    (GOOD_X, GOOD_Y - 1, "y", "-1 to 1.*0 to 2"),
]


@pytest.mark.parametrize("method", ["loss_and_gradients", "train_on_batch"])
@pytest.mark.parametrize(("x", "y", "named", "message"), BAD_BATCHES)
def test_bad_batches_are_refused(device, method, x, y, named, message):
    model = Sequential(FLAT, (5, 4, 2), nets=2, device=device)
    kept = state(model)
    with pytest.raises(ValueError, match=f"^{named}: got .*{message}"):
        getattr(model, method)(x, y)
    assert state(model) == kept


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ((GOOD_X[0] * 512).astype(int), "integers from 256 to 256, expected 0 to 255"),
        (GOOD_X[0] > 0, "bool, expected bytes, or floats"),
        (GOOD_X, r"\(2, 3, 5, 4, 2\).*\(N, 5, 4, 2\)"),
        (GOOD_X[0, 0], r"\(5, 4, 2\).*\(N, 5, 4, 2\)"),
        (GOOD_X[0, ..., :1], r"\(3, 5, 4, 1\).*\(N, 5, 4, 2\)"),
        (["digit"], r"expected \(N, 5, 4, 2\)"),
    ],
)
def test_bad_images_to_predict_are_refused(device, x, message):
    model = Sequential(FLAT, (5, 4, 2), nets=2, device=device)
    with pytest.raises(ValueError, match=f"^x: got .*{message}"):
        model.predict(x)


@pytest.mark.parametrize("rate", [-1e-3, float("nan"), float("inf"), "fast", [0.1]])
def test_bad_learning_rates_are_refused(device, rate):
    model = Sequential(FLAT, (5, 4, 2), nets=2, device=device)
    kept = state(model)
    with pytest.raises(ValueError, match=f"^learning_rate: got {re.escape(repr(rate))}.*expected"):
        model.train_on_batch(GOOD_X, GOOD_Y, rate)
    assert state(model) == kept


def changed_weights(model):
    """(weights of another network, what the message says) of a model with a kernel and a bias."""
    kernel, bias = model.get_weights()
    return [
        ([], "0 arrays.*2"),
        ([kernel], "1 arrays.*2"),
        ([kernel, bias, bias], "3 arrays.*2"),
        ([bias, kernel], r"dense/kernel.*\(2, 3\).*\(2, 40, 3\)"),
        ([kernel[:1], bias[:1]], r"dense/kernel.*\(1, 40, 3\).*\(2, 40, 3\)"),
        ([kernel[0], bias[0]], r"dense/kernel.*\(40, 3\).*\(2, 40, 3\)"),
        ([kernel[..., :2], bias[..., :2]], r"dense/kernel.*\(2, 40, 2\).*\(2, 40, 3\)"),
        ([kernel, bias.astype(str)], "dense/bias"),
        ([kernel + 1j, bias], "dense/kernel.*complex"),
    ]


@pytest.mark.parametrize("case", range(9))
def test_weights_of_another_network_are_refused(device, case):
    model = Sequential(FLAT, (5, 4, 2), nets=2, device=device)
    weights, message = changed_weights(model)[case]
    with pytest.raises(ValueError, match=f"^weights.*{message}"):
        model.set_weights(weights)


@pytest.mark.parametrize("weights", [None, 3, [[[1, 2], [3]], [1]]])
def test_weights_must_be_a_list_of_arrays(device, weights):
    model = Sequential([Dense(2)], (2,), device=device)
    with pytest.raises(ValueError, match=r"^weights: got"):
        model.set_weights(weights)


@pytest.mark.parametrize(
    "layers",
    [
        [Flatten(), Dense(3)],
        [Flatten(), Dense(3, activation="sigmoid")],
        [Dense(3, activation="softmax"), Dropout(0.5)],
        [Flatten(), Activation("softmax")],  # nothing to train
        [Conv2D(3, 2, activation="softmax")],  # an image of classes, not one class
    ],
)
def test_stacks_that_cannot_be_trained_are_refused(device, layers):
    shape = (40,) if type(layers[0]) is Dense else (5, 4, 2)
    model = Sequential(layers, shape, nets=2, device=device)
    x = GOOD_X.reshape(2, 3, *shape)
    assert np.isfinite(model.predict(x[0])).all()
    for method in (model.loss_and_gradients, model.train_on_batch):
        with pytest.raises(ValueError, match=r"^layers:"):
            method(x, GOOD_Y)


def test_a_step_on_a_single_value_per_channel_warns():
    model = Sequential([Flatten(), BatchNormalization(), Dense(3, activation="softmax")], (5, 4, 2))
    told = "batch_size: got 1, expected at least 2: batch_normalization would normalise a single"
    with pytest.warns(UserWarning, match=told):
        model.train_on_batch(GOOD_X[:1, :1], GOOD_Y[:1, :1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.train_on_batch(GOOD_X[:1], GOOD_Y[:1])
