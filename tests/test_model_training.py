"""Sequential and mnist_cnn: gradients, training steps, and their bits.

For every layer, a net's bits do not depend on the other nets.
"""

from math import sqrt

import numpy as np
import oracles
import pytest
import threadpoolctl
from stacks import DTYPES, assert_same, batch, lenet, small

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


# ---------------------------------------------------------------------------------------------
# Gradients


def directional_errors(model, x, y, h, directions):
    """The errors of directional derivatives of the loss against central differences, (n, E).

    A direction is {index in trainable_weights: array}; errors are shares of |gradient| |direction|,
    both taken over the direction's arrays.
    """
    names = list(model.named_weights)
    trained = [i for i, name in enumerate(names) if "moving" not in name]
    _, gradients = model.loss_and_gradients(x, y)
    start = model.get_weights()

    def loss(direction, length):
        weights = [w.copy() for w in start]
        for i, step in direction.items():
            weights[trained[i]] += length * step
        model.set_weights(weights)
        return model.loss_and_gradients(x, y)[0]

    norms = np.array([[sqrt(np.sum(g_**2)) for g_ in g] for g in gradients])  # (arrays, E)
    norms = np.maximum(
        norms, 0.01 * norms.max(axis=0)
    )  # a bias before normalisation has gradient 0
    errors = []
    for direction in directions:
        expected = (loss(direction, h) - loss(direction, -h)) / (2 * h)  # (E,)
        for e in range(len(expected)):
            found = sum(np.sum(gradients[i][e] * d[e]) for i, d in direction.items())
            length = sqrt(sum(np.sum(d[e] ** 2) for d in direction.values()))
            errors.append(
                abs(found - expected[e]) / (length * sqrt(sum(norms[list(direction), e] ** 2)))
            )
    model.set_weights(start)
    return np.array(errors)


def random_directions(model, count, seed):
    """`count` directions in all weights at once, and one in each weight array alone."""
    random = np.random.default_rng(seed)
    shapes = [w.shape for w in model.trainable_weights]
    everywhere = [{i: random.normal(size=s) for i, s in enumerate(shapes)} for _ in range(count)]
    return everywhere + [{i: random.normal(size=s)} for i, s in enumerate(shapes)]


@pytest.mark.float64
def test_gradients_of_the_whole_seed_network(device):
    model = mnist_cnn(nets=2, first_net=3, seed=1, device=device, dtype="float64")
    x, y = batch(model, 3, seed=2)
    directions = random_directions(model, 3, seed=3)
    errors = directional_errors(model, x, y, 1e-8, directions)  # h: few ReLUs change sign
    assert errors.max() < 1e-6


@pytest.mark.float64
def test_gradients_of_a_stack_with_every_layer(device):
    model = small(device, nets=2, seed=5, dtype="float64")
    x, y = batch(model, 5, seed=1)
    model.train_on_batch(x, y, 0.01)  # so that the step counter is not 0
    errors = directional_errors(model, x, y, 1e-7, random_directions(model, 5, seed=2))
    assert errors.max() < 1e-6


@pytest.mark.float64
@pytest.mark.parametrize(
    "layers",
    [
        [BatchNormalization(), Flatten(), Dense(3, activation="softmax")],
        [Dropout(0.4), Flatten(), Dense(3, activation="softmax")],
        [Flatten(), Dense(3, activation="softmax")],
        [MaxPooling2D(2), Activation("tanh"), Flatten(), Dense(3, activation="softmax")],
        [Conv2D(3, 2), Activation("softmax"), Flatten(), Dense(3), Activation("softmax")],
        [Conv2D(2, 2, activation="softmax"), Flatten(), Dense(3, activation="softmax")],
        [Flatten(), Dense(4, activation="softmax"), Dense(3, activation="softmax")],
        [Conv2D(4, 2), Dropout(0.4), Dropout(0), Flatten(), Dropout(0.3), Dense(3, "softmax")],
        [Conv2D(3, (5, 4)), Flatten(), Activation("softmax")],
        [Flatten(), Dense(3), BatchNormalization(), Dropout(0.2), Activation("softmax")],
    ],
    ids=lambda layers: "-".join(type(layer).__name__ for layer in layers),
)
def test_stacks_of_all_sorts(device, layers):
    model = Sequential(layers, (5, 4, 2), nets=2, seed=3, device=device, dtype="float64")
    x, y = batch(model, 6)
    errors = directional_errors(model, x, y, 1e-7, random_directions(model, 5, seed=2))
    assert errors.max() < 1e-6
    before, _ = model.loss_and_gradients(x, y)
    for _ in range(30):
        loss, accuracy = model.train_on_batch(x, y, 0.02)
    assert np.all(loss < before)
    assert loss.shape == accuracy.shape == (2,) and np.all((accuracy >= 0) & (accuracy <= 1))
    np.testing.assert_allclose(model.predict(x[0]).sum(axis=-1), 1)


def test_vectors_as_input(device):
    model = Sequential([Dense(5, "tanh"), Dense(3, "softmax")], (4,), nets=2, device=device)
    x, y = batch(model, 6)
    assert x.shape == (2, 6, 4)
    first, _ = model.loss_and_gradients(x, y)
    for _ in range(20):
        loss, _ = model.train_on_batch(x, y, 0.05)
    assert np.all(loss < first)
    assert model.predict(x[0]).shape == (2, 6, 3)


def test_the_loss_is_the_cross_entropy_of_the_training_pass(device):
    model = Sequential([Flatten(), Dense(4, "softmax")], (2, 3, 1), nets=2, device=device)
    x, y = batch(model, 5)
    loss, _ = model.loss_and_gradients(x, y)
    for e in range(2):
        probabilities = model.predict(x[e])[e]
        expected = -np.log(probabilities[np.arange(5), y[e]]).mean()
        np.testing.assert_allclose(loss[e], expected, rtol=1e-5)
        found = model.train_on_batch(x, y, 0.0)[1][e]  # learning rate 0 changes no weight
        np.testing.assert_allclose(found, np.mean(probabilities.argmax(axis=-1) == y[e]))


# ---------------------------------------------------------------------------------------------
# Training steps


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [pytest.param("float64", 1e-12, marks=pytest.mark.float64), ("float32", 2e-5)],
)
def test_train_on_batch_is_adam_on_the_gradients(device, dtype, tolerance):
    model = small(device, nets=2, dtype=dtype)
    names = list(model.named_weights)
    trained = [i for i, name in enumerate(names) if "moving" not in name]
    moments = {}
    for t, rate in enumerate([1e-3, 1e-2, 0.3], start=1):
        x, y = batch(model, 4, seed=t)
        before = model.get_weights()
        expected_loss, gradients = model.loss_and_gradients(x, y)
        loss, _ = model.train_on_batch(x, y, rate)
        np.testing.assert_array_equal(loss, expected_loss)  # the masks are this step's in both
        after = model.get_weights()
        for i, gradient in zip(trained, gradients, strict=True):
            flat = before[i].ravel().astype(float)
            m, v = moments.get(i, (np.zeros_like(flat), np.zeros_like(flat)))
            w, m, v = oracles.adam(flat, gradient.ravel().astype(float), m, v, t, rate)
            moments[i] = m, v
            np.testing.assert_allclose(
                after[i].ravel(), w, rtol=tolerance, atol=tolerance * rate, err_msg=names[i]
            )
        assert int(model.ops.to_host(model.step)[0]) == t


def test_the_learning_rate_is_the_optimizers_unless_given(device):
    layers = [Flatten(), Dense(3, activation="softmax")]
    models = [
        Sequential(layers, (2, 2, 1), device=device, optimizer=Adam(learning_rate=rate))
        for rate in (0.25, 0.125)
    ]
    x, y = batch(models[0], 4)
    models[0].train_on_batch(x, y)
    models[1].train_on_batch(x, y, 0.25)
    assert_same(models[0].get_weights(), models[1].get_weights())
    start = Sequential(layers, (2, 2, 1), device=device).get_weights()[0]
    step = np.abs(models[0].get_weights()[0] - start)
    np.testing.assert_allclose(step, 0.25, rtol=1e-3)  # the first step of Adam is the rate


@pytest.mark.float64
def test_the_optimizers_constants_are_used(device):
    layers, options = [Flatten(), Dense(3, activation="softmax")], {"dtype": "float64"}
    model = Sequential(
        layers, (2, 2, 1), device=device, optimizer=Adam(0.1, 0.5, 0.7, 0.01), **options
    )
    moments = [np.zeros(12), np.zeros(12)]
    for t in (1, 2):
        x, y = batch(model, 4, seed=t)
        before, gradient = model.get_weights()[0], model.loss_and_gradients(x, y)[1][0]
        model.train_on_batch(x, y)
        w, *moments = oracles.adam(
            before.ravel(), gradient.ravel(), *moments, t, 0.1, 0.5, 0.7, 0.01
        )
        np.testing.assert_allclose(model.get_weights()[0].ravel(), w, rtol=1e-12)


@pytest.mark.float64
def test_moving_statistics_are_those_of_the_training_passes(device):
    layers = [BatchNormalization(momentum=0.7), Flatten(), Dense(3, activation="softmax")]
    model = Sequential(layers, (3, 4, 2), nets=2, device=device, dtype="float64")
    mean, variance = np.zeros((2, 2)), np.ones((2, 2))
    for seed in range(3):
        x, y = batch(model, 5, seed)
        model.loss_and_gradients(x, y)  # does not count
        model.predict(x[0])
        model.train_on_batch(x, y)
        mean = 0.7 * mean + 0.3 * x.mean(axis=(1, 2, 3))
        variance = 0.7 * variance + 0.3 * x.var(axis=(1, 2, 3))
        np.testing.assert_allclose(model.get_weights()[2], mean)
        np.testing.assert_allclose(model.get_weights()[3], variance)


def test_dropouts_masks_change_with_the_step_and_the_layer(device):
    def rows(model, x):  # a kernel's gradient is 0 where its input is dropped in every image
        return [np.any(g, axis=-1) for g in model.loss_and_gradients(x, y)[1] if g.ndim == 3]

    layers = [Flatten(), Dropout(0.5), Dense(1000), Dropout(0.5), Dense(3, "softmax")]
    model = Sequential(layers, (1000, 1, 1), nets=2, device=device)
    x, y = np.ones((2, 1, 1000, 1, 1)), np.zeros((2, 1), int)
    first = rows(model, x)
    model.train_on_batch(x, y, 0.0)
    second = rows(model, x)
    masks = [*first, *second]  # (2, 1000) each
    for i, one in enumerate(masks):
        assert 0.4 < one.mean() < 0.6
        assert 0.4 < np.mean(one[0] == one[1]) < 0.6  # nets differ
        for other in masks[:i]:
            assert 0.4 < np.mean(one == other) < 0.6


def labelled_images(E, B, seed):
    """Noisy images (E, B, 28, 28, 1) with a bright square whose place is the label."""
    random = np.random.default_rng(seed)
    x, y = random.uniform(0, 0.3, (E, B, 28, 28, 1)), random.integers(0, 10, (E, B))
    for e, b in np.ndindex(E, B):
        row, column = divmod(y[e, b], 4)
        x[e, b, 2 + 8 * row : 8 + 8 * row, 7 * column : 6 + 7 * column] += 0.6
    return x, y


@pytest.mark.full(but="numpy|cpu")
def test_lenet_5_learns(device):
    model = lenet(device)
    assert model.count_params() == 61_706  # Keras's number
    losses = [model.train_on_batch(*labelled_images(2, 32, step), 2e-3)[0] for step in range(25)]
    assert np.all(losses[-1] < 0.5 * losses[0])
    x, y = labelled_images(1, 200, 99)
    accuracy = np.mean(model.predict(x[0]).argmax(axis=-1) == y, axis=1)
    assert np.all(accuracy > 0.8)


@pytest.mark.full(but="numpy|cpu")
def test_mnist_cnn_learns(device):
    model = mnist_cnn(nets=1, device=device, momentum=0.5)
    losses = [model.train_on_batch(*labelled_images(1, 16, step), 1e-3)[0] for step in range(20)]
    assert np.mean(losses[-3:]) < 0.5 * losses[0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_dtype_is_kept(device, dtype):
    model = small(device, dtype=dtype)
    x, y = batch(model, 3)
    loss, gradients = model.loss_and_gradients(x, y)
    trained_loss, _ = model.train_on_batch(x, y)
    arrays = [loss, trained_loss, *gradients, *model.get_weights(), model.predict(x[0])]
    assert {array.dtype for array in arrays} == {np.dtype(dtype)}
    assert all(isinstance(array, np.ndarray) for array in arrays)


@pytest.mark.float64
def test_float32_follows_float64(device):
    one, other = small(device), small(device, dtype="float64")
    assert_same(one.get_weights(), [w.astype(np.float32) for w in other.get_weights()])
    x, y = batch(one, 6)
    loss, gradients = one.loss_and_gradients(x, y)
    expected_loss, expected_gradients = other.loss_and_gradients(x, y)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    # All gradients together: that of a bias before batch normalisation is only rounding error,
    # which differs from one BLAS to another.
    found = np.concatenate([g.ravel() for g in gradients])
    expected = np.concatenate([g.ravel() for g in expected_gradients])
    assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)


# ---------------------------------------------------------------------------------------------
# Bits


def trained(model, steps, B, keep=slice(None), rate=0.01):
    """Gradients, losses, weights and predictions of a few steps. `keep`: its nets out of 3."""
    seen = []
    for step in range(steps):
        random = np.random.default_rng(step)
        x = random.uniform(size=(3, B, *model.input_shape)).astype(model.dtype)[keep]
        y = random.integers(0, model.output_shape[0], (3, B))[keep]
        seen += [*model.loss_and_gradients(x, y)[1], *model.train_on_batch(x, y, rate)]
    images = np.random.default_rng(9).uniform(size=(70, *model.input_shape))
    return [*seen, *model.get_weights(), model.predict(images)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("B", [1, 5, 16])
def test_a_net_alone_is_the_net_among_three(device, dtype, B):
    together = trained(small(device, nets=3, first_net=4, dtype=dtype), 4, B)
    for i in range(3):
        model = small(device, nets=1, first_net=4 + i, dtype=dtype)
        alone = trained(model, 4, B, slice(i, i + 1))
        assert_same(alone, [array[i : i + 1] for array in together])


@pytest.mark.parametrize(
    "layers",
    [
        [BatchNormalization(), Flatten(), Dense(1, "tanh"), Dense(3, "softmax")],
        [Conv2D(1, 1, activation="softmax"), MaxPooling2D((5, 1)), Flatten(), Dense(2, "softmax")],
        [
            Dropout(0.5),
            Conv2D(3, 3, 2, "same"),
            Activation("softmax"),
            Flatten(),
            Dense(3, "softmax"),
        ],
    ],
)
@pytest.mark.parametrize("B", [1, 7])
def test_a_net_alone_is_the_net_among_three_in_other_stacks(device, layers, B):
    options = {"input_shape": (5, 3, 1), "device": device, "seed": 8}
    together = trained(Sequential(layers, nets=3, **options), 3, B)
    for i in range(3):
        alone = trained(Sequential(layers, nets=1, first_net=i, **options), 3, B, slice(i, i + 1))
        assert_same(alone, [array[i : i + 1] for array in together])


@pytest.mark.full(but="numpy|cpu")
def test_a_net_of_mnist_cnn_alone_is_the_net_among_three(device):
    together = trained(mnist_cnn(nets=3, device=device), 2, 8)
    alone = trained(mnist_cnn(nets=1, first_net=1, device=device), 2, 8, slice(1, 2))
    assert_same(alone, [array[1:2] for array in together])


def test_two_runs_are_equal(device):
    assert_same(trained(small(device), 3, 6), trained(small(device), 3, 6))


@pytest.mark.parametrize("name", ["lenet", "mnist_cnn"])
def test_blas_threads_set_outside_change_nothing(name):
    device = "numpy"  # the others have no BLAS
    # The batches are large enough for OpenBLAS to give other bits on two threads.
    make, B = {
        "lenet": (lambda: lenet(device, nets=1), 32),
        "mnist_cnn": (lambda: mnist_cnn(nets=1, device=device), 16),
    }[name]
    results = []
    for threads in (1, 2, 4):
        with threadpoolctl.threadpool_limits(threads, user_api="blas"):
            before = blas_threads()
            results.append(trained(make(), 2, B, slice(1)))
            assert blas_threads() == before  # it is left as it was
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])


def blas_threads():
    """The number of threads of each BLAS in this process."""
    return [p["num_threads"] for p in threadpoolctl.threadpool_info() if p["user_api"] == "blas"]


class Spy(Activation):
    """A layer that notes the number of threads of NumPy's BLAS while it runs."""

    def __init__(self):
        super().__init__("linear")
        self.seen = []

    def forward(self, ops, f, training):
        self.seen.append(min(blas_threads(), default=1))
        super().forward(ops, f, training)

    def backward(self, ops, f):
        self.seen.append(min(blas_threads(), default=1))
        super().backward(ops, f)


def test_blas_runs_on_one_thread_in_every_pass():
    spy, device = Spy(), "numpy"
    model = Sequential([Dense(3), spy, Dense(4, activation="softmax")], (6,), device=device)
    x, y = batch(model, 3)
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        model.predict(x[0])
        model.loss_and_gradients(x, y)
        model.train_on_batch(x, y)
    assert spy.seen == [1] * 5
