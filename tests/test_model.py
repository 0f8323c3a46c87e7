"""Sequential and mnist_cnn: weights, passes, memory, and the summary. Sizes are small."""

import re
import tracemalloc
from math import sqrt

import numpy as np
import oracles
import pytest
from stacks import assert_same, batch, small, state

from minicnn import (
    Activation,
    BatchNormalization,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    Sequential,
    mnist_cnn,
    rng,
)
from minicnn.network.plan import plan_layout

pytestmark = pytest.mark.every_device


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
