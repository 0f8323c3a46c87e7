"""What Sequential.fit, evaluate and predict refuse, and that nothing changes then."""

import numpy as np
import pytest
from runs import small_layers
from stacks import state

from minicnn import BatchNormalization, Dense, Flatten, Sequential
from minicnn.data.digits import draw_digits

X, Y = draw_digits(120, 0)


def network(device, nets):
    return Sequential(small_layers(0.4, 0.9), nets=nets, device=device)


PLAIN = {"x": X, "y": Y, "batch_size": 16, "verbose": 0}
REFUSED = [
    (
        {"x": X[:, :20]},
        r"x: got shape \(120, 20, 28\), expected \(N, 28, 28, 1\), \(N, 28, 28\) or ",
    ),
    ({"x": X[:0], "y": Y[:0]}, "x: got no images, expected at least one"),
    ({"x": X.astype(float)}, r"x: got floats from 0\.0 to 255\.0, expected 0 to 1"),
    ({"x": X.astype(int) - 1}, "x: got integers from -1 to .*, expected 0 to 255"),
    ({"x": X * np.nan}, "x: got floats from nan to nan, expected"),
    ({"x": X > 9}, "x: got bool, expected bytes, or floats"),
    ({"x": "digits"}, r"x: got shape \(\), expected"),
    ({"y": Y / 1.0}, r"y: got shape \(120,\) of float64, expected 120 integers from 0 to 9"),
    ({"y": np.eye(10, dtype=int)[Y]}, "y: got shape .*; take argmax"),
    ({"y": Y[:99]}, "y: got 99 labels, expected 120 as in x"),
    ({"y": Y.astype(int) + 1}, "y: got labels from 1 to 10, expected .* 0 to 9"),
    ({"batch_size": 0}, "batch_size: got 0, expected a positive integer"),
    ({"batch_size": 121}, "batch_size: got 121, expected at most the 120 training images"),
    ({"epochs": 0}, "epochs: got 0"),
    ({"initial_epoch": 1}, "initial_epoch: got 1, expected an integer from 0 to 0"),
    ({"validation_split": 1}, r"validation_split: got 1, expected a number in \[0, 1\)"),
    ({"validation_split": 0.95}, "batch_size: got 16, expected at most the 6 training"),
    ({"validation_data": 0.1}, r"validation_data: got 0.1, expected \(x, y\)"),
    ({"validation_data": (X, Y[1:])}, r"validation_data\[1\]: got 119 labels, expected 120"),
    ({"augment": 10}, "augment: got 10, expected a RandomAffine"),
    ({"learning_rate": 0}, "learning_rate: got 0, expected a positive number"),
    ({"learning_rate": lambda epoch: "x"}, r"learning_rate\(1\): got 'x', expected"),
    ({"average_epochs": 2}, "average_epochs: got 2, expected an integer from 0 to 1"),
    ({"average_decay": 1.0}, r"average_decay: got 1.0, expected a number in \[0, 1\)"),
    ({"average_epochs": 1, "average_decay": 0.9}, "average_decay: got 0.9 with average_epochs 1"),
    ({"on_epoch": 3}, "on_epoch: got 3, expected a function"),
    ({"verbose": 3}, "verbose: got 3"),
    ({"workers": 0}, "workers: got 0"),
    ({"workers": 2, "on_epoch": lambda row: None}, "on_epoch: worker processes cannot import it"),
    ({"label_smoothing": 1}, r"label_smoothing: got 1, expected a number in \[0, 1\)"),
    ({"label_smoothing": "0.1"}, "label_smoothing: got '0.1', expected a number in"),
    ({"learning_rate": 1e-12}, "learning_rate: got 1e-12, expected at least"),
    ({"y": Y * 0}, "training images: all 120 are of the class '0'"),
    ({"x": [[1, 2], [3]]}, "x: .* expected an array"),
    ({"memory": 1}, "memory: 1 process takes .* bytes, expected at most the 1 "),
]


@pytest.mark.parametrize(("change", "told"), REFUSED)
def test_bad_arguments_are_refused(change, told):
    model = network("numpy", 2)
    before, history = state(model), model.history
    with pytest.raises(ValueError, match=rf"^{told}"):
        model.fit(**{**PLAIN, **change})
    assert state(model) == before and model.history is history


def test_a_batch_that_normalises_one_value_is_refused():
    layers = [Flatten(), Dense(5), BatchNormalization(), Dense(10, "softmax")]
    with pytest.raises(ValueError, match=r"^batch_size: got 1, expected at least 2: batch_normal"):
        Sequential(layers, device="numpy").fit(X, Y, batch_size=1)


def test_a_backend_of_this_process_cannot_have_workers(cpu_ops):
    with pytest.raises(ValueError, match=r"^workers: other processes cannot have the backend"):
        network(cpu_ops, 2).fit(X, Y, 16, workers=2, verbose=0)


def test_networks_that_fit_cannot_train_are_refused():
    vectors = Sequential([Dense(3, "softmax")], (4,), device="numpy")
    with pytest.raises(ValueError, match=r"^layers: this network is for vectors of 4 numbers"):
        vectors.fit(np.zeros((5, 4), np.uint8), np.arange(5) % 3)
    plain = Sequential([Flatten(), Dense(3)], device="numpy")
    with pytest.raises(ValueError, match=r"^layers: the loss is softmax cross-entropy"):
        plain.fit(X, Y % 3)
    with pytest.raises(ValueError, match=r"^layers: this network is for 28x28 images, expected"):
        plain.evaluate(X, Y % 3)


def test_evaluate_refuses_what_it_cannot_score():
    model = network("numpy", 2)
    with pytest.raises(ValueError, match=r"^x: got no images"):
        model.evaluate(X[:0], Y[:0])
    with pytest.raises(ValueError, match=r"^x: got floats from 0\.0 to 255\.0, expected 0 to 1; "):
        model.evaluate(X.astype(float), Y)
    with pytest.raises(ValueError, match=r"^x: got floats from nan to nan"):
        model.predict(X * np.nan)
    with pytest.raises(ValueError, match=r"^y: got shape \(120,\) of float64"):
        model.evaluate(X, Y / 2)
    with pytest.raises(ValueError, match=r"^y: got labels from 0 to 11"):
        model.evaluate(X, Y.astype(int) + 2 * (Y == 9))
