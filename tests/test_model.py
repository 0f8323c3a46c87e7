"""Sequential and mnist_cnn: weights, passes, training steps, and what each refuses.

Sizes are small; that a net's bits do not depend on the others is tested here for every layer.
"""

import re
import tracemalloc
from math import sqrt

import numpy as np
import oracles
import pytest
import threadpoolctl

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
    rng,
)
from minicnn.network.plan import plan_layout

pytestmark = pytest.mark.every_device
DTYPES = "float32", pytest.param("float64", marks=pytest.mark.float64)

# Keras's get_weights() of the notebook's network.
MNIST_SHAPES = [
    shape
    for kernel in [
        (3, 3, 1, 32),
        (3, 3, 32, 32),
        (5, 5, 32, 32),
        (3, 3, 32, 64),
        (3, 3, 64, 64),
        (5, 5, 64, 64),
        (4, 4, 64, 128),
    ]
    for shape in [kernel, *[kernel[-1:]] * 5]  # bias, gamma, beta, moving mean and variance
] + [(128, 10), (10,)]


def small(device, nets=3, first_net=0, seed=0, dtype="float32", **options):
    """A stack with every layer in it, on images of 9x7x2, odd wherever it can be."""
    layers = [
        Conv2D(3, (3, 2), activation="relu"),
        BatchNormalization(momentum=0.8),
        Conv2D(5, 4, strides=(2, 1), padding="same", activation="tanh"),
        Dropout(0.3),
        Activation("sigmoid"),
        MaxPooling2D((2, 3), 2, "same"),
        Flatten(),
        Dense(7, activation="relu"),
        BatchNormalization(),
        Dropout(0.2),
        Dense(4, activation="softmax"),
    ]
    return Sequential(layers, (9, 7, 2), nets, first_net, seed, device, dtype, **options)


def batch(model, B, seed=0):
    """Random images (E, B, ...) in [0, 1] and labels (E, B) for a model."""
    random = np.random.default_rng(seed)
    E = len(model.nets)
    x = random.uniform(size=(E, B, *model.input_shape)).astype(model.dtype)
    return x, random.integers(0, model.output_shape[0], (E, B))


def state(model):
    """Everything that training may change, as bytes."""
    arrays = model.params, model.moving, model.moment_1, model.moment_2, model.step
    return [model.ops.to_host(array).tobytes() for array in arrays]


def assert_same(found, expected):
    """Equal to the bit, array by array."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


# ---------------------------------------------------------------------------------------------
# Weights


def test_mnist_cnn_has_the_weights_of_the_notebooks_network(device):
    model = mnist_cnn(nets=2, device=device)
    assert model.count_params() == 327_242
    weights = model.get_weights()
    assert [w.shape for w in weights] == [(2, *shape) for shape in MNIST_SHAPES]
    assert {w.dtype for w in weights} == {np.dtype("float32")}
    trainable = [s for i, s in enumerate(MNIST_SHAPES) if i >= 42 or i % 6 < 4]
    assert [w.shape for w in model.trainable_weights] == [(2, *shape) for shape in trainable]


def test_layers_of_mnist_cnn_are_the_notebooks(device):
    model = mnist_cnn(nets=1, device=device, dropout=0.3, momentum=0.9)
    block = [Conv2D, BatchNormalization] * 3 + [Dropout]
    kinds = [*block * 2, Conv2D, BatchNormalization, Flatten, Dropout, Dense]
    assert [type(layer) for layer in model.layers] == kinds
    convolutions = [layer for layer in model.layers if type(layer) is Conv2D]
    assert [c.filters for c in convolutions] == [32] * 3 + [64] * 3 + [128]
    assert [c.kernel_size[0] for c in convolutions] == [3, 3, 5, 3, 3, 5, 4]
    assert [c.strides for c in convolutions] == [(1, 1), (1, 1), (2, 2)] * 2 + [(1, 1)]
    assert [c.padding for c in convolutions] == ["valid", "valid", "same"] * 2 + ["valid"]
    assert {c.activation for c in convolutions} == {"relu"}
    assert {la.momentum for la in model.layers if type(la) is BatchNormalization} == {0.9}
    assert {la.rate for la in model.layers if type(la) is Dropout} == {0.3}


def test_defaults_are_the_designs(device):
    model = mnist_cnn(device=device)
    assert model.nets.tolist() == list(range(15))
    assert (model.seed, model.dtype, model.input_shape) == (0, np.float32, (28, 28, 1))
    assert {la.momentum for la in model.layers if type(la) is BatchNormalization} == {0.99}
    assert {la.rate for la in model.layers if type(la) is Dropout} == {0.4}


def test_a_model_knows_its_device(device):
    model = Sequential([Dense(2)], (3,), device=device)
    assert model.device == device and model.ops is not None
    auto = Sequential([Dense(2)], (3,), device="auto")
    assert auto.device != "auto" and auto.device_reason


def test_named_weights_have_kerass_names(device):
    names = list(small(device).named_weights)
    normal = ["gamma", "beta", "moving_mean", "moving_variance"]
    assert names == [
        "conv2d/kernel",
        "conv2d/bias",
        *[f"batch_normalization/{name}" for name in normal],
        "conv2d_1/kernel",
        "conv2d_1/bias",
        "dense/kernel",
        "dense/bias",
        *[f"batch_normalization_1/{name}" for name in normal],
        "dense_1/kernel",
        "dense_1/bias",
    ]


def test_initial_weights_are_glorot_uniform_zeros_and_ones(device):
    model = mnist_cnn(nets=2, device=device)
    for name, weight in zip(model.named_weights, model.get_weights(), strict=True):
        if name.endswith("kernel"):
            *window, inputs, outputs = weight.shape[1:]
            limit = sqrt(6 / (np.prod(window) * (inputs + outputs)))
            assert np.abs(weight).max() <= np.float32(limit)
            assert np.abs(weight).max() > 0.98 * limit
            deviation = limit / sqrt(3)
            assert abs(weight.mean()) < 5 * deviation / sqrt(weight.size)
            assert abs(weight.std() / deviation - 1) < 0.1
        else:
            ones = name.endswith(("gamma", "moving_variance"))
            np.testing.assert_array_equal(weight, float(ones))


def test_initial_weights_are_philoxs_words(device):
    layers = [Flatten(), Dense(3), Dense(5, activation="softmax")]
    model = Sequential(layers, (2, 2, 1), nets=2, first_net=5, seed=9, device=device)
    weights = model.get_weights()
    for e, net in enumerate([5, 6]):
        counters = np.array([[block, 0, rng.WEIGHTS, 0] for block in range(16)], np.uint32)
        words = rng.philox4x32(counters, np.array([[9, net]] * 16, np.uint32)).ravel()
        # In the flat row each weight array starts at a multiple of 16: 12 and 3 numbers take 32.
        for kernel, start, shape in [(weights[0], 0, (4, 3)), (weights[2], 32, (3, 5))]:
            drawn = rng.uniform(words[start : start + np.prod(shape)])
            expected = np.float32(sqrt(6 / sum(shape))) * (np.float32(-1) + np.float32(2) * drawn)
            np.testing.assert_array_equal(kernel[e], expected.reshape(shape))


def test_initial_weights_depend_on_seed_and_net_alone(device):
    three = mnist_cnn(nets=3, seed=4, device=device).get_weights()
    alone = mnist_cnn(nets=1, first_net=2, seed=4, device=device).get_weights()
    assert_same([w[2:] for w in three], alone)
    other = mnist_cnn(nets=1, first_net=2, seed=5, device=device).get_weights()
    kernels = [i for i, w in enumerate(three) if w.ndim > 2]
    for i in kernels:
        assert np.mean(three[i][0] == three[i][1]) < 0.01
        assert np.mean(three[i][2] == other[i][0]) < 0.01


def test_set_weights_takes_what_get_weights_gives(device):
    one, other = small(device, seed=1), small(device, seed=2)
    x, y = batch(one, 6)
    one.train_on_batch(x, y, 0.01)
    assert not np.array_equal(one.predict(x[0]), other.predict(x[0]))
    other.set_weights(one.get_weights())
    assert_same(other.get_weights(), one.get_weights())
    assert_same([other.predict(x[0])], [one.predict(x[0])])
    other.set_weights([w.tolist() for w in one.get_weights()])  # lists will do
    assert_same(other.get_weights(), one.get_weights())


def test_weights_are_copies(device):
    model = small(device)
    kept = state(model)
    for weight in (*model.get_weights(), *model.trainable_weights):
        weight[...] = 7
    assert state(model) == kept
    given = model.get_weights()
    model.set_weights(given)
    given[0] += 1
    assert state(model) == kept


def test_refused_weights_change_nothing(device):
    model = small(device)
    kept = state(model)
    weights = [w + 1 for w in model.get_weights()]
    weights[-1] = weights[-1][:, :2]
    with pytest.raises(ValueError, match="weights"):
        model.set_weights(weights)
    assert state(model) == kept


# ---------------------------------------------------------------------------------------------
# Passes


def oracle_small(model, e, x):
    """The inference pass of small()'s net e on x (B, 9, 7, 2), by the oracles."""
    k1, b1, g1, s1, m1, v1, k2, b2, k3, b3, g2, s2, m2, v2, k4, b4 = (
        w[e].astype(float) for w in model.get_weights()
    )
    z = oracles.activate("relu", oracles.conv2d(x, k1, b1, (1, 1), "valid"))
    z = g1 * (z - m1) / np.sqrt(v1 + 1e-3) + s1
    z = oracles.activate("tanh", oracles.conv2d(z, k2, b2, (2, 1), "same"))
    z = oracles.max_pool(oracles.activate("sigmoid", z), (2, 3), (2, 2), "same")[0]
    z = oracles.activate("relu", oracles.dense(z.reshape(len(x), -1), k3, b3))
    z = g2 * (z - m2) / np.sqrt(v2 + 1e-3) + s2
    return oracles.activate("softmax", oracles.dense(z, k4, b4))


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [("float32", 1e-5), pytest.param("float64", 1e-12, marks=pytest.mark.float64)],
)
def test_predict_is_the_oracles_stack(device, dtype, tolerance):
    model = small(device, dtype=dtype)
    for seed in range(3):  # so that no weight or statistic is 0 or 1
        model.train_on_batch(*batch(model, 6, seed), 0.1)
    x = batch(model, 5)[0][0]
    found = model.predict(x)
    assert found.dtype == dtype
    for e in range(3):
        np.testing.assert_allclose(found[e], oracle_small(model, e, x), rtol=0, atol=tolerance)


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 130])
def test_predict_takes_any_number_of_images(device, count):
    model = small(device, nets=2)
    x = np.random.default_rng(0).uniform(size=(130, 9, 7, 2)).astype(np.float32)
    found = model.predict(x[:count])
    assert found.shape == (2, count, 4)
    np.testing.assert_allclose(found, model.predict(x)[:, :count], atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-5)


def test_predict_takes_other_floats_and_lists(device):
    model = small(device)
    x = batch(model, 2)[0][0]
    assert_same([model.predict(x.astype(np.float64))], [model.predict(x)])
    assert_same([model.predict(x.tolist())], [model.predict(x)])
    assert_same([model.predict(x[:, ::-1].copy()[:, ::-1])], [model.predict(x)])


def test_passes_change_no_state_and_repeat_exactly(device):
    model = small(device)
    x, y = batch(model, 6)
    model.train_on_batch(x, y, 0.01)
    kept, given = state(model), (x.copy(), y.copy())
    first = [model.predict(x[0]), *model.loss_and_gradients(x, y)[1]]
    other_x, other_y = batch(model, 6, seed=1)
    model.predict(other_x[0])
    model.loss_and_gradients(other_x, other_y)
    second = [model.predict(x[0]), *model.loss_and_gradients(x, y)[1]]
    assert_same(second, first)
    assert state(model) == kept
    assert_same([x, y], given)


@pytest.mark.float64
def test_a_stack_without_softmax_predicts_its_last_layer(device):
    model = Sequential([Conv2D(2, 2)], (3, 4, 1), nets=2, device=device, dtype="float64")
    x = np.random.default_rng(0).uniform(size=(3, 3, 4, 1))
    found = model.predict(x)
    kernel, bias = model.get_weights()
    for e in range(2):
        expected = oracles.conv2d(x, kernel[e], bias[e], (1, 1), "valid")
        np.testing.assert_allclose(found[e], expected, atol=1e-14)


@pytest.mark.parametrize("last", [Conv2D(3, 2, activation="softmax"), Activation("softmax")])
def test_a_last_softmax_over_channels_of_images(device, last):
    model = Sequential([last], (3, 4, 3), nets=1, device=device)
    found = model.predict(np.random.default_rng(0).uniform(size=(2, 3, 4, 3)))
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-6)


# ---------------------------------------------------------------------------------------------
# Gradients


def directional_errors(model, x, y, h, directions):
    """The error of each directional derivative of the loss, against central differences.

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
    norms = np.maximum(norms, 0.01 * norms.max(axis=0))  # a bias before a mean has none
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
    errors = directional_errors(model, x, y, 1e-8, directions)  # h: few relus turn
    assert errors.max() < 1e-6


@pytest.mark.float64
def test_gradients_of_a_stack_with_every_layer(device):
    model = small(device, nets=2, seed=5, dtype="float64")
    x, y = batch(model, 5, seed=1)
    model.train_on_batch(x, y, 0.01)  # so that the step is not 0
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


def lenet(device, nets=2):
    """LeNet-5 as notebooks write it."""
    layers = [
        Conv2D(6, 5, padding="same", activation="tanh"),
        MaxPooling2D(),
        Conv2D(16, 5, activation="tanh"),
        MaxPooling2D(pool_size=(2, 2), strides=2),
        Flatten(),
        Dense(120, activation="tanh"),
        Dense(84, activation="tanh"),
        Dense(10, activation="softmax"),
    ]
    return Sequential(layers, (28, 28, 1), nets=nets, seed=1, device=device)


def labelled_images(E, B, seed):
    """Noisy images (E, B, 28, 28, 1) with a bright square whose place is the label."""
    random = np.random.default_rng(seed)
    x, y = random.uniform(0, 0.3, (E, B, 28, 28, 1)), random.integers(0, 10, (E, B))
    for e, b in np.ndindex(E, B):
        row, column = divmod(y[e, b], 4)
        x[e, b, 2 + 8 * row : 8 + 8 * row, 7 * column : 6 + 7 * column] += 0.6
    return x, y


def test_lenet_5_learns(device):
    model = lenet(device)
    assert model.count_params() == 61_706  # Keras's number
    losses = [model.train_on_batch(*labelled_images(2, 32, step), 2e-3)[0] for step in range(25)]
    assert np.all(losses[-1] < 0.5 * losses[0])
    x, y = labelled_images(1, 200, 99)
    accuracy = np.mean(model.predict(x[0]).argmax(axis=-1) == y, axis=1)
    assert np.all(accuracy > 0.8)


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
    # All together: of a bias before batch normalisation the gradient is zero but for rounding,
    # which is as large as its terms make it, and differs from one BLAS to another.
    found = np.concatenate([g.ravel() for g in gradients])
    expected = np.concatenate([g.ravel() for g in expected_gradients])
    assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)


# ---------------------------------------------------------------------------------------------
# Bits


def trained(model, steps, B, keep=slice(None), rate=0.01):
    """All that a few steps leave behind: weights, losses, predictions. `keep`: its nets of 3."""
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
    """A layer that notes how many threads BLAS has while it runs: NumPy's, not SciPy's own."""

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


# ---------------------------------------------------------------------------------------------
# Memory


def peak_of_a_warm_step(model, B):
    """The bytes that a training step allocates above what was there before it."""
    x, y = batch(model, B)
    for _ in range(2):
        model.train_on_batch(x, y, 1e-3)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        model.train_on_batch(x, y, 1e-3)
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def test_a_training_step_allocates_nothing_big(device):
    # 50 KB measured, at any batch size; one activation of conv1 alone is 1.4 MB here.
    assert peak_of_a_warm_step(mnist_cnn(nets=1, device=device), 16) < 100_000


@pytest.mark.parametrize("training", [False, True])
def test_a_plan_takes_what_its_layout_says(device, training):
    model = small(device, nets=2)
    layout = plan_layout(model.nodes, 2, 5, training, model.dtype, model.ops)
    expected = sum(np.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in layout.values())
    assert model.plan(5, training).nbytes == expected
    assert model.plan(5, training) is model.plan(5, training)
    if training:
        kept = sum(np.prod(node.output_shape) for node in model.nodes[:3])
        assert expected > 2 * 5 * kept * 4


def test_summary(device):
    model = mnist_cnn(nets=3, device=device)
    text = model.summary()
    lines = text.splitlines()
    assert len(lines) == 2 + len(model.layers)
    counts = [int(line.split()[-1].replace(",", "")) for line in lines[1:-1]]
    assert sum(counts) == 327_242
    assert counts[:4] == [320, 128, 9248, 128]  # Keras's numbers
    assert counts[-4:] == [512, 0, 0, 1290]
    assert [line.split()[0] for line in lines[1:4]] == ["conv2d", "batch_normalization", "conv2d_1"]
    assert "(26, 26, 32)" in lines[1] and "(128,)" in lines[-4] and "(10,)" in lines[-2]
    assert re.search(r"327,242\b.*\b3\b", lines[-1])
    assert max(map(len, lines)) <= 100


# ---------------------------------------------------------------------------------------------
# What is refused. Each message names the argument, what it got, and what it takes.

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
        # Training notes which tap won, in 16 bits.
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
        ({"layers": [Dense(3)]}, "Dense", "(5, 4, 2)"),
        ({"layers": [Flatten(), Conv2D(2, 3)]}, "Conv2D", "(40,)"),
        ({"layers": [Flatten(), MaxPooling2D(2)]}, "MaxPooling2D", "(40,)"),
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
        ((GOOD_X[0] * 255).astype(np.uint8), "uint8.*255"),
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
def test_what_is_no_list_of_arrays_is_refused_as_weights(device, weights):
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
def test_stacks_that_cannot_be_trained_say_so(device, layers):
    shape = (40,) if type(layers[0]) is Dense else (5, 4, 2)
    model = Sequential(layers, shape, nets=2, device=device)
    x = GOOD_X.reshape(2, 3, *shape)
    assert np.isfinite(model.predict(x[0])).all()
    for method in (model.loss_and_gradients, model.train_on_batch):
        with pytest.raises(ValueError, match=r"^layers:"):
            method(x, GOOD_Y)
