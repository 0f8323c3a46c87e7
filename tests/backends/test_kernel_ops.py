"""Every operation but convolution and dense layers: its kernels against ops_numpy, and to the bit.

To add an operation:

1. Write it in ops_numpy.py, ops_cpu.py and ops_cuda.py, with its kernels.
2. Add a function below that returns its Case: the operation's name, its inputs, the shapes and
   types of its results, and its other arguments. Take the inputs from `Inputs`.
3. Add the function to OPERATIONS.

All tests with `operation` then run it on each backend: against NumPy in float64, alone and among
other nets, with threads in other orders, and with every access checked.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from cases import Apart, Case, as_float32, assert_same_bits, poison, relative
from hypothesis import example, given
from hypothesis import strategies as st
from levels import examples
from planted import KERNELS
from test_rng import KNOWN_ANSWERS

from minicnn import rng
from minicnn.backends import ops_numpy
from minicnn.backends.affine import affine_parameters, elastic_nodes
from minicnn.backends.ops_cuda import Operations
from minicnn.network.geometry import Window

DRAWING = KERNELS / "random.cu"
RANGES = np.array([[-20, -2, -3, 0.8, 0.9], [20, 2, 3, 1.2, 1.1]], np.float32)
ELASTIC = np.concatenate([RANGES, np.float32([[-2, -1.5], [2, 1.5]])], axis=1)


class Inputs:
    """Random inputs of operations on a batch (E, B, H, W, C)."""

    def __init__(self, random, E=2, B=3, H=5, W=4, C=3):
        self.random, self.shape, self.per_channel = random, (E, B, H, W, C), (E, C)
        self.x, self.dy = self.normal(*self.shape), self.normal(*self.shape)
        self.gamma, self.beta = self.normal(E, C) + 1, self.normal(E, C)
        self.step = np.array([random.integers(2**32)])
        self.nets = np.arange(5, 5 + E)

    def normal(self, *shape):
        return as_float32(self.random, shape)


# ---------------------------------------------------------------------------------------------
# The Case of each operation


def activate(given, name):
    return Case("activate", {"y": 2 * given.x}, changed=("y",), others={"name": name})


def activate_backward(given, name):
    y = activate(given, name).run(ops_numpy)["y"]
    inputs = {"y": y, "dy": given.dy}
    return Case("activate_backward", inputs, changed=("dy",), others={"name": name})


def batch_norm_workspace(given):
    _, B, *axes = given.shape
    return lambda ops, nets: ops.batch_norm_workspace(nets, B, tuple(axes))


def batch_norm(given):
    inputs = {"x": 3 * given.x + 2, "gamma": given.gamma, "beta": given.beta}
    results = dict.fromkeys(("mean", "variance"), (given.per_channel, float))
    results["y"] = given.shape, float
    workspace = batch_norm_workspace(given)
    return Case("batch_norm", inputs, results, others={"epsilon": 1e-3}, workspace=workspace)


def batch_norm_inference(given):
    x = 3 * given.x + 2
    inputs = {"x": x, "gamma": given.gamma, "beta": given.beta}
    inputs |= {"mean": x.mean(axis=(1, 2, 3)), "variance": x.var(axis=(1, 2, 3))}
    results = {"y": (given.shape, float)}
    return Case("batch_norm_inference", inputs, results, others={"epsilon": 1e-3})


def batch_norm_backward(given, activation="linear"):
    x = 3 * given.x + 2
    inputs = {"x": x, "dy": given.dy, "gamma": given.gamma}
    inputs |= {"mean": x.mean(axis=(1, 2, 3)), "variance": x.var(axis=(1, 2, 3))}
    results = dict.fromkeys(("dgamma", "dbeta"), (given.per_channel, float))
    results["dx"] = given.shape, float
    others = {"epsilon": 1e-3, "activation": activation}
    workspace = batch_norm_workspace(given)
    return Case("batch_norm_backward", inputs, results, others=others, workspace=workspace)


def update_moving(given):
    inputs = {name: given.normal(*given.per_channel) for name in ("moving", "batch")}
    return Case("update_moving", inputs, changed=("moving",), others={"momentum": 0.99})


def dropout(given):
    others = {"rate": 0.4, "seed": 7, "stream": 17, "step": given.step}
    results = {"mask": (given.shape, bool), "y": (given.shape, float)}
    return Case("dropout", {"x": given.x, "nets": given.nets}, results, others=others)


def dropout_backward(given):
    inputs = {"dy": given.dy, "mask": given.random.random(given.shape) < 0.6}
    return Case("dropout_backward", inputs, {"dx": (given.shape, float)}, others={"rate": 0.4})


def max_pool(given):
    E, B, H, W, C = given.shape
    size, strides = given.random.integers(1, 4, (2, 2))
    fits = (size <= (H, W)).all()
    padding = given.random.choice(["valid", "same"]) if fits else "same"
    window = Window.fit(tuple(map(int, size)), tuple(map(int, strides)), padding, (H, W))
    pooled = E, B, *window.output, C
    results = {"winner": (pooled, np.uint16), "y": (pooled, float)}
    x = np.round(given.x)  # integers, so that several elements of a window are equal
    return Case("max_pool", {"x": x}, results, others={"window": window})


def max_pool_backward(given):
    forward = max_pool(given)
    winner = forward.run(ops_numpy)["winner"]
    inputs = {"dy": given.normal(*winner.shape), "winner": winner}
    results = {"dx": (given.shape, float)}
    return Case("max_pool_backward", inputs, results, others=forward.others)


def softmax_cross_entropy(given, smoothing=0.0):
    E, B, _, _, C = given.shape
    logits = np.round(4 * given.normal(E, B, C)) / 2  # rounded, so that several are equal
    right = given.random.random((E, B)) < 0.5
    labels = np.where(right, logits.argmax(axis=-1), given.random.integers(0, C, (E, B)))
    results = {"loss": ((E,), float), "correct": ((E,), int), "dlogits": ((E, B, C), float)}
    inputs, others = {"logits": logits, "labels": labels}, {"smoothing": smoothing}
    return Case("softmax_cross_entropy", inputs, results, others=others)


def accumulate(given):
    E, B = given.shape[:2]
    inputs = {"loss": given.normal(E), "correct": given.random.integers(0, B + 1, E)}
    inputs["sums"] = given.random.normal(size=(E, 3))
    return Case("accumulate", inputs, changed=("sums",), others={"step": given.step})


def collect(given):
    E, B, _, _, C = given.shape
    inputs = {"source": given.normal(E, B, C), "target": given.normal(E, 4, B, C)}
    return Case("collect", inputs, changed=("target",), others={"step": np.array([2])})


def adam(given):
    E, _, H, W, C = given.shape
    flat = E, 11 * H * W * C
    inputs = {name: given.normal(*flat) for name in ("params", "gradients", "m")}
    inputs["gradients"] *= 10.0 ** given.random.integers(-6, 2, flat)
    inputs["gradients"] = np.float64(np.float32(inputs["gradients"]))
    inputs["v"] = given.normal(*flat) ** 2
    step, rates = given.random.integers(30_000), 0.01 * (1 + given.random.random(7))
    others = {"step": np.array([step]), "learning_rate": rates[: 1 + step % 7]}
    others |= {"beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7}
    return Case("adam", inputs, changed=("params", "m", "v"), others=others)


def average(given):
    E, _, H, W, C = given.shape
    flat = E, 11 * H * W * C
    inputs = {name: given.normal(*flat) for name in ("params", "averaged")}
    step, shares = 1 + given.random.integers(30_000), given.random.random(7)
    others = {"step": np.array([step]), "shares": shares[: 1 + step % 7]}
    return Case("average", inputs, changed=("averaged",), others=others)


def load_batch(given, ranges=RANGES):
    return load_batch_of(given.random, *given.shape, ranges)


def load_batch_of(random, E, B, H, W, C, ranges=RANGES, labels=True, step=None):
    """The Case of load_batch for batches of B of nine images, (H, W) or with C > 1 (H, W, C)."""
    steps = 3
    results = {"x": ((E, B, H, W, C), float), "y": ((E, B), np.int64)}
    others = {
        "images": random.integers(0, 256, (9, H, W, C) if C > 1 else (9, H, W), np.uint8),
        "labels": random.integers(0, 1000, 9, np.uint16) if labels else None,
        "ranges": ranges,
        "seed": 11,
        "step": np.array([random.integers(2**32) if step is None else step]),
    }
    order = random.integers(0, 9, (E, steps, B), np.int32)
    return Case("load_batch", {"order": order, "nets": np.arange(3, 3 + E)}, results, (), others)


ACTIVATIONS = "linear", "relu", "sigmoid", "tanh", "softmax"
OPERATIONS = {
    **{f"activate {name}": partial(activate, name=name) for name in ACTIVATIONS},
    **{f"activate_backward {name}": partial(activate_backward, name=name) for name in ACTIVATIONS},
    "batch_norm": batch_norm,
    "batch_norm_inference": batch_norm_inference,
    "batch_norm_backward": batch_norm_backward,
    "batch_norm_backward relu": partial(batch_norm_backward, activation="relu"),
    "batch_norm_backward tanh": partial(batch_norm_backward, activation="tanh"),
    "update_moving": update_moving,
    "dropout": dropout,
    "dropout_backward": dropout_backward,
    "max_pool": max_pool,
    "max_pool_backward": max_pool_backward,
    "load_batch": load_batch,
    "load_batch elastic": partial(load_batch, ranges=ELASTIC),
    "softmax_cross_entropy": softmax_cross_entropy,
    "softmax_cross_entropy smoothed": partial(softmax_cross_entropy, smoothing=0.1),
    "accumulate": accumulate,
    "collect": collect,
    "adam": adam,
    "average": average,
}


def make_case(operation, random, *shape, **axes):
    """The Case of one of OPERATIONS on (E, B, H, W, C), with random inputs."""
    return OPERATIONS[operation](Inputs(random, *shape, **axes))


SHAPES = [
    (1, 1, 1, 1, 1),
    (3, 2, 7, 5, 3),
    (2, 3, 9, 2, 33),
    (2, 1, 1, 6, 70),
    (1, 2, 50, 44, 1),  # rows of more than one chunk in batch normalisation: the last is ragged
    (1, 3, 15, 14, 16),
]
shapes = st.tuples(
    st.integers(1, 3), st.integers(1, 6), *[st.integers(1, 11)] * 2, st.integers(1, 70)
)


# ---------------------------------------------------------------------------------------------
# Every operation


@pytest.mark.parametrize("operation", OPERATIONS)
@examples(40)
@given(shape=shapes, seed=st.integers(0, 2**32 - 1))
@example(SHAPES[0], 0)
@example(SHAPES[1], 1)
@example(SHAPES[3], 2)
@example(SHAPES[4], 3)
@example(SHAPES[5], 4)
@example((1, 1, 1, 2, 2), 1)  # two rows that differ little
@example((1, 1, 3, 9, 1), 3)  # a sum dbeta that cancels
def test_operations_are_numpys_in_float64(kernel_ops, operation, shape, seed):
    case = make_case(operation, np.random.default_rng(seed), *shape)
    expected = case.run(ops_numpy, dtype=np.float64)
    found, rows = case.run(kernel_ops), np.prod(shape[1:4])
    for name, array in found.items():
        if array.dtype.kind != "f":
            np.testing.assert_array_equal(array, expected[name], err_msg=name)
        elif operation.startswith("batch_norm_backward") and (name != "dx" or rows < 3):
            # Sums can cancel, and dx of two rows does unless epsilon exceeds their variance: the
            # rounding errors are then those of the terms.
            size = max(np.linalg.norm(case.inputs["dy"]), np.linalg.norm(expected[name]))
            assert np.linalg.norm(array - expected[name]) <= 1e-5 * size, name
        else:
            assert relative(array, expected[name]) < 1e-5, name


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("shape", SHAPES[1:3])
def test_a_net_alone_is_the_net_among_others_to_the_bit(kernel_ops, operation, shape):
    case = make_case(operation, np.random.default_rng(0), *shape)
    together = case.run(kernel_ops)
    for e in range(shape[0]):
        alone = case.run(kernel_ops, nets=slice(e, e + 1))
        assert_same_bits(alone, {name: a[e : e + 1] for name, a in together.items()})
    assert_same_bits(case.run(kernel_ops), together)


@pytest.fixture(scope="session")
def other_order(other_order_driver):
    return Operations(other_order_driver)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("shape", SHAPES[1:5])
def test_the_order_of_threads_changes_no_bit(driver_ops, other_order, operation, shape):
    case = make_case(operation, np.random.default_rng(1), *shape)
    assert_same_bits(case.run(other_order), case.run(driver_ops))


@pytest.fixture(scope="session")
def checked_ops(checked_driver):
    return Operations(checked_driver)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_stay_in_bounds_and_race_with_nothing(driver_ops, checked_ops, operation, shape):
    case = make_case(operation, np.random.default_rng(2), *shape)
    assert_same_bits(case.run(checked_ops), case.run(driver_ops))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_rows_of_nets_may_lie_apart(kernel_ops, operation):
    case = make_case(operation, np.random.default_rng(3))
    apart = Apart(kernel_ops)
    assert_same_bits(case.run(kernel_ops, place=apart), case.run(kernel_ops))
    apart.check()


# ---------------------------------------------------------------------------------------------
# Random numbers, to the bit


def test_philox_gives_the_known_answers(driver):
    random = np.random.default_rng(0)
    counters, keys, answers = (np.array(a, np.uint32) for a in zip(*KNOWN_ANSWERS, strict=True))
    counters = np.concatenate([counters, random.integers(0, 2**32, (300, 4), np.uint32)])
    keys = np.concatenate([keys, random.integers(0, 2**32, (300, 2), np.uint32)])
    words = driver.to_device(poison(counters.shape, np.uint32))
    on_device = driver.to_device(counters), driver.to_device(keys)
    with driver.session():
        driver.launch(DRAWING, "philox_words", (5,), (64,), *on_device, len(keys), words)
    found = driver.to_host(words)
    np.testing.assert_array_equal(found[: len(answers)], answers)
    np.testing.assert_array_equal(found, rng.philox4x32(counters, keys))


@examples(40)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 500)),
    rate=st.one_of(st.sampled_from([0.4, 1e-10, float(np.nextafter(1, 0))]), st.floats(0.01, 0.99)),
    words=st.tuples(*[st.integers(0, 2**32 - 1)] * 4),
)
def test_dropout_masks_are_numpys_to_the_bit(kernel_ops, shape, rate, words):
    seed, stream, step, net = words
    nets = (net + np.arange(shape[0])) % 2**32
    others = {"rate": rate, "seed": seed, "stream": stream, "step": np.array([step])}
    results = {"mask": (shape, bool), "y": (shape, float)}
    case = Case("dropout", {"x": np.ones(shape), "nets": nets}, results, (), others)
    assert_same_bits(case.run(kernel_ops), case.run(ops_numpy))


def test_dropout_keeps_a_word_that_is_the_threshold(kernel_ops):
    words = rng.random_words(7, 5, 17, 3, np.empty(7, np.uint32))
    for word in words:
        others = {"rate": int(word) / 2**32, "seed": 7, "stream": 17, "step": np.array([3])}
        inputs = {"x": np.ones((1, 1, 7)), "nets": np.array([5])}
        case = Case("dropout", inputs, {"mask": ((1, 1, 7), bool), "y": ((1, 1, 7), float)})
        kept = replace(case, others=others).run(kernel_ops)["mask"]
        np.testing.assert_array_equal(kept[0, 0], words >= word)


@pytest.mark.parametrize("step", [0, 1, 26_549, 2**32 - 1])
def test_affine_parameters_are_numpys_to_the_bit(driver, step):
    seed, B, nets = 2**32 - 5, 2049, np.array([14, 0, 2**32 - 1])
    ranges = np.float32([[-10, -2.8, -3.1, 0.9, 0.87], [10, 2.8, 3.1, 1.1, 1.13]])
    drawn = driver.to_device(poison((len(nets), 5, B), np.float32))
    on_device = driver.to_device(ranges), seed, driver.to_device(nets)
    given = *on_device, rng.AUGMENTATION, step, B, drawn
    with driver.session():
        driver.launch(DRAWING, "affine_parameters", (33,), (64,), *given)
    expected = [affine_parameters(ranges, seed, int(net), step, B) for net in nets]
    np.testing.assert_array_equal(driver.to_host(drawn), expected)


def test_elastic_nodes_are_numpys_to_the_bit(driver):
    seed, step, B, nets = 2**32 - 5, 26_549, 129, np.array([14, 2**32 - 1])
    ranges = np.float32([[-2.8, -3.1], [2.8, 3.3]])
    drawn = driver.to_device(poison((len(nets), B, 72), np.float32))
    on_device = driver.to_device(ranges), seed, driver.to_device(nets)
    with driver.session():
        given = *on_device, rng.ELASTIC, step, drawn
        driver.launch(DRAWING, "elastic_nodes", (B,), (32,), *given)
    expected = [elastic_nodes(ranges, seed, int(net), step, B).reshape(B, 72) for net in nets]
    np.testing.assert_array_equal(driver.to_host(drawn), expected)


# ---------------------------------------------------------------------------------------------
# The batch


@examples(40)
@given(
    shape=st.tuples(
        st.integers(1, 3), st.integers(1, 5), *[st.integers(1, 20)] * 2, st.integers(1, 5)
    ),
    parameters=st.sampled_from([0, 5, 7]),
    step=st.integers(0, 2**32 - 1),
    seed=st.integers(0, 2**32 - 1),
)
@example((2, 3, 1, 1, 1), 5, 4, 0)
@example((2, 3, 1, 9, 3), 5, 5, 1)
@example((2, 3, 8, 1, 2), 5, 6, 2)
@example((1, 2, 28, 28, 1), 5, 7, 3)
@example((1, 2, 32, 32, 3), 5, 8, 4)
@example((2, 3, 17, 19, 3), 0, 9, 5)
@example((2, 3, 1, 1, 1), 7, 4, 0)
@example((2, 3, 1, 9, 3), 7, 5, 1)
@example((2, 3, 8, 1, 2), 7, 6, 2)
@example((1, 40, 28, 28, 1), 7, 7, 3)
@example((2, 3, 3, 71, 1), 7, 8, 4)
@example((1, 2, 35, 33, 3), 7, 2**32 - 1, 5)
def test_a_batch_is_numpys(kernel_ops, shape, parameters, step, seed):
    random = np.random.default_rng(seed)
    plain, ranges = parameters == 0, None
    if not plain:  # up to half a turn, and far beyond the edges
        spread = np.float32([180, 5, 5, 0.5, 0.5, 4, 3])
        ranges = np.float32([0, 0, 0, 1, 1, 0, 0]) + np.stack([-spread, spread])
        ranges = np.ascontiguousarray(ranges[:, :parameters])
    case = load_batch_of(random, *shape, ranges, labels=not plain, step=step)
    found, expected = case.run(kernel_ops), case.run(ops_numpy)
    np.testing.assert_array_equal(found["y"], expected["y"])
    if plain:
        np.testing.assert_array_equal(found["x"], expected["x"])
        assert (found["y"] == 119).all()  # there are no labels
    assert np.abs(found["x"] - expected["x"]).max() < 1e-6


# ---------------------------------------------------------------------------------------------
# Difficult values


@pytest.mark.parametrize("mean", [1e3, 1e5])
@pytest.mark.parametrize("shape", [(2, 4, 9, 8, 3), (1, 64, 14, 12, 2), (1, 3, 3, 1, 40)])
def test_batch_norm_of_a_mean_much_larger_than_the_deviation(kernel_ops, shape, mean):
    random = np.random.default_rng(0)
    for operation in ("batch_norm", "batch_norm_backward"):
        case = make_case(operation, random, *shape)
        centers = mean + 3 * np.arange(shape[1])[:, None, None, None] % 20  # chunks differ
        case.inputs["x"] = x = as_float32(random, shape, center=centers)
        if operation == "batch_norm_backward":
            case.inputs |= {"mean": x.mean(axis=(1, 2, 3)), "variance": x.var(axis=(1, 2, 3))}
        expected = case.run(ops_numpy, dtype=np.float64)
        for name, array in case.run(kernel_ops).items():
            assert relative(array, expected[name]) < 1e-5, name


def test_batch_norm_of_equal_elements_has_no_variance(kernel_ops):
    case = make_case("batch_norm", np.random.default_rng(0))
    case.inputs["x"][...] = np.float32(0.1)
    found = case.run(kernel_ops)
    assert (found["variance"] >= 0).all() and (found["variance"] < 1e-12).all()
    beta = np.broadcast_to(case.inputs["beta"][:, None, None, None], found["y"].shape)
    np.testing.assert_allclose(found["y"], beta, atol=1e-6)


@pytest.mark.parametrize("activation", ["", " relu"])
def test_batch_norm_of_one_element_a_channel_has_no_gradient(kernel_ops, activation):
    """Adam would turn a rounding error into a step of the learning rate."""
    operation = f"batch_norm_backward{activation}"
    case = make_case(operation, np.random.default_rng(0), 2, 1, 1, 1, 70)
    case.inputs |= {"mean": case.inputs["x"][:, 0, 0, 0], "variance": np.zeros((2, 70))}
    assert not case.run(kernel_ops)["dx"].any()


@pytest.mark.parametrize("step", [0, 1, 9, 999, 26_549, 10**7])
def test_adam_is_numpys_at_any_step(kernel_ops, step):
    case = make_case("adam", np.random.default_rng(step))
    case.others["step"] = np.array([step])
    found, expected = case.run(kernel_ops), case.run(ops_numpy)
    for name in ("m", "v", "params"):
        assert relative(found[name], expected[name]) < 1e-6, name
    before = case.inputs["params"]
    assert relative(found["params"] - before, expected["params"] - before) < 1e-4


@pytest.mark.parametrize("operation", ["collect", "accumulate"])
def test_it_counts_once_for_all_nets(kernel_ops, operation):
    case = make_case(operation, np.random.default_rng(0))
    case.changed = *case.changed, "step"
    assert_same_bits(case.run(kernel_ops), case.run(ops_numpy))


@pytest.mark.parametrize("width", [1, 7, 70])
@pytest.mark.parametrize(
    "operation",
    ["batch_norm", "max_pool", "softmax_cross_entropy", "softmax_cross_entropy smoothed"]
    + [f"activate {name}" for name in ACTIVATIONS if name != "linear"],
)
def test_nan_and_infinity_stay_visible(kernel_ops, operation, width):
    random = np.random.default_rng(0)
    case = make_case(operation, random, C=width)
    array = next(iter(case.inputs.values()))
    places = random.choice(array.size, 5)
    array.reshape(-1)[places] = [np.nan, np.inf, np.nan, -np.inf, np.nan]
    found, expected = case.run(kernel_ops), case.run(ops_numpy)
    for name in found:
        np.testing.assert_array_equal(np.isfinite(found[name]), np.isfinite(expected[name]))
        if operation == "max_pool" or name == "correct":
            np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize("classes", [2, 10, 37, 1000])
def test_the_smoothed_loss_of_few_and_many_classes(kernel_ops, classes):
    random = np.random.default_rng(classes)
    for B in (1, 5, 40):
        case = make_case("softmax_cross_entropy", random, E=3, B=B, C=classes)
        case.others["smoothing"] = random.uniform(0.01, 0.99)
        expected = case.run(ops_numpy, dtype=np.float64)
        found = case.run(kernel_ops)
        np.testing.assert_array_equal(found["correct"], expected["correct"])
        assert relative(found["loss"], expected["loss"]) < 1e-6
        assert relative(found["dlogits"], expected["dlogits"]) < 1e-6


def test_the_loss_of_many_images_and_classes(kernel_ops):
    case = make_case("softmax_cross_entropy", np.random.default_rng(0), E=1, B=77, C=100)
    case.inputs["logits"] = np.round(case.inputs["logits"] / 2)
    case.inputs["labels"] = case.inputs["logits"].argmax(axis=-1)  # the first of equals
    case.inputs["labels"][:, ::3] += 1
    case.inputs["labels"] %= 100
    expected = case.run(ops_numpy, dtype=np.float64)
    found = case.run(kernel_ops)
    assert found["correct"] == expected["correct"]
    assert relative(found["loss"], expected["loss"]) < 1e-6
    assert relative(found["dlogits"], expected["dlogits"]) < 1e-6
