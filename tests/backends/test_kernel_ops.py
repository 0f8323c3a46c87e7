"""Kernels but those of convolution: against the same operation of ops_numpy, and to the bit."""

from dataclasses import replace

import numpy as np
import pytest
from cases import Apart, Case, as_float32, assert_same_bits, few, poison, relative
from hypothesis import example, given
from hypothesis import strategies as st
from planted import KERNELS
from test_rng import KNOWN_ANSWERS

from minicnn import rng
from minicnn.backends import ops_numpy
from minicnn.backends.affine import affine_parameters
from minicnn.backends.ops_cuda import Operations
from minicnn.network.geometry import Window

DRAWING = KERNELS / "random.cu"
RANGES = np.array([[-20, -2, -3, 0.8, 0.9], [20, 2, 3, 1.2, 1.1]], np.float32)


def make_case(operation, random, E=2, B=3, H=5, W=4, C=3):
    """A Case of the operation on (E, B, H, W, C), with random inputs.

    operation: one of OPERATIONS; an activation's name may follow.
    """
    operation, *activation = operation.split()
    shape = E, B, H, W, C
    normal = lambda *axes: as_float32(random, axes)  # noqa: E731
    x, dy, per_channel = normal(*shape), normal(*shape), (E, C)
    gamma, beta = normal(*per_channel) + 1, normal(*per_channel)
    nets = {"nets": np.arange(5, 5 + E)}
    step = np.array([random.integers(2**32)])
    match operation:
        case "activate" | "activate_backward":
            others = {"name": activation[0]}
            case = Case("activate", {"y": 2 * x}, {}, ("y",), others)
            if operation == "activate":
                return case
            inputs = {**case.run(ops_numpy), "dy": dy}
            return Case(operation, inputs, changed=("dy",), others=others)
        case "batch_norm" | "batch_norm_inference" | "batch_norm_backward":
            x = 3 * x + 2
            epsilon = {"epsilon": 1e-3}
            mean, variance = x.mean(axis=(1, 2, 3)), x.var(axis=(1, 2, 3))
            weights = {"gamma": gamma, "beta": beta}
            statistics = {"mean": mean, "variance": variance}
            if operation == "batch_norm_inference":
                inputs = {"x": x, **weights, **statistics}
                return Case(operation, inputs, {"y": (shape, float)}, others=epsilon)
            need = lambda ops, nets: ops.batch_norm_workspace(nets, B, shape[2:])  # noqa: E731
            if operation == "batch_norm":
                results = dict.fromkeys(("mean", "variance"), (per_channel, float))
                results["y"] = shape, float
                return Case(operation, {"x": x, **weights}, results, (), epsilon, need)
            inputs = {"x": x, "dy": dy, "gamma": gamma, **statistics}
            epsilon["activation"] = activation[0] if activation else "linear"
            results = dict.fromkeys(("dgamma", "dbeta"), (per_channel, float))
            results["dx"] = shape, float
            return Case(operation, inputs, results, (), epsilon, need)
        case "update_moving":
            inputs = {"moving": normal(*per_channel), "batch": normal(*per_channel)}
            return Case(operation, inputs, changed=("moving",), others={"momentum": 0.99})
        case "dropout":
            others = {"rate": 0.4, "seed": 7, "stream": 17, "step": step}
            results = {"mask": (shape, bool), "y": (shape, float)}
            return Case(operation, {"x": x, **nets}, results, (), others)
        case "dropout_backward":
            inputs = {"dy": dy, "mask": random.random(shape) < 0.6}
            return Case(operation, inputs, {"dx": (shape, float)}, (), {"rate": 0.4})
        case "max_pool" | "max_pool_backward":
            size, strides = random.integers(1, 4, (2, 2))
            padding = random.choice(["valid", "same"]) if (size <= (H, W)).all() else "same"
            size, strides = tuple(map(int, size)), tuple(map(int, strides))
            window = Window.fit(size, strides, padding, (H, W))
            x = np.round(x)  # so that there are equals
            pooled = E, B, *window.output, C
            case = Case(operation, {"x": x}, {}, (), {"window": window})
            case.results = {"winner": (pooled, np.uint16), "y": (pooled, float)}
            if operation == "max_pool":
                return case
            forward = replace(case, operation="max_pool").run(ops_numpy)
            inputs = {"dy": normal(*pooled), "winner": forward["winner"]}
            return replace(case, inputs=inputs, results={"dx": (shape, float)})
        case "softmax_cross_entropy":
            logits = np.round(4 * normal(E, B, C)) / 2  # with equals
            labels = np.where(
                random.random((E, B)) < 0.5, logits.argmax(axis=-1), random.integers(0, C, (E, B))
            )
            results = {"loss": ((E,), float), "correct": ((E,), int)}
            results["dlogits"] = (E, B, C), float
            return Case(operation, {"logits": logits, "labels": labels}, results)
        case "accumulate":
            inputs = {"loss": normal(E), "correct": random.integers(0, B + 1, E)}
            inputs["sums"] = random.normal(size=(E, 3))
            return Case(operation, inputs, changed=("sums",))
        case "collect":
            case = Case(operation, {"source": normal(E, B, C)}, {}, ("target",))
            case.inputs["target"] = normal(E, 4, B, C)
            return replace(case, others={"step": np.array([2])})
        case "adam":
            flat = E, 11 * H * W * C
            inputs = {name: normal(*flat) for name in ("params", "gradients", "m")}
            inputs["gradients"] *= 10.0 ** random.integers(-6, 2, flat)
            inputs["gradients"] = np.float64(np.float32(inputs["gradients"]))
            inputs["v"] = normal(*flat) ** 2
            others = {"step": np.array([random.integers(30_000)])}
            others |= {"learning_rate": np.array([0.01]), "beta_1": 0.9, "beta_2": 0.999}
            others["epsilon"] = 1e-7
            return Case(operation, inputs, changed=("params", "m", "v"), others=others)
        case "load_batch":
            return make_load_batch(random, E, B, H, W)
    raise ValueError(operation)


def make_load_batch(random, E, B, H, W, ranges=RANGES, labels=True, step=None):
    """A Case of load_batch: of nine images, in steps of B."""
    steps = 3
    results = {"x": ((E, B, H, W, 1), float), "y": ((E, B), np.int64)}
    others = {
        "images": random.integers(0, 256, (9, H, W), np.uint8),
        "labels": random.integers(0, 10, 9, np.uint8) if labels else None,
        "ranges": ranges,
        "seed": 11,
        "step": np.array([random.integers(2**32) if step is None else step]),
    }
    order = random.integers(0, 9, (E, steps, B), np.int32)
    return Case("load_batch", {"order": order, "nets": np.arange(3, 3 + E)}, results, (), others)


ACTIVATIONS = "linear", "relu", "sigmoid", "tanh", "softmax"
OPERATIONS = [
    *(f"{part} {name}" for part in ("activate", "activate_backward") for name in ACTIVATIONS),
    *"batch_norm batch_norm_inference batch_norm_backward update_moving".split(),
    *(f"batch_norm_backward {name}" for name in ("relu", "tanh")),
    *"dropout dropout_backward max_pool max_pool_backward".split(),
    *"load_batch softmax_cross_entropy accumulate collect adam".split(),
]
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
@few
@given(shape=shapes, seed=st.integers(0, 2**32 - 1))
@example(SHAPES[0], 0)
@example(SHAPES[1], 1)
@example(SHAPES[3], 2)
@example(SHAPES[4], 3)
@example(SHAPES[5], 4)
def test_operations_are_numpys_in_float64(kernel_ops, operation, shape, seed):
    case = make_case(operation, np.random.default_rng(seed), *shape)
    expected = case.run(ops_numpy, dtype=np.float64)
    found = case.run(kernel_ops)
    for name, array in found.items():
        if array.dtype.kind != "f":
            np.testing.assert_array_equal(array, expected[name], err_msg=name)
        elif operation.startswith("batch_norm_backward") and np.prod(shape[1:4]) < 3:
            size = np.linalg.norm(case.inputs["dy"])  # what is left of dx is rounding
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


@few
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


# ---------------------------------------------------------------------------------------------
# The batch


@few
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5), *[st.integers(1, 20)] * 2),
    plain=st.booleans(),
    step=st.integers(0, 2**32 - 1),
    seed=st.integers(0, 2**32 - 1),
)
@example((2, 3, 1, 1), False, 4, 0)
@example((2, 3, 1, 9), False, 5, 1)
@example((2, 3, 8, 1), False, 6, 2)
@example((1, 2, 28, 28), False, 7, 3)
def test_a_batch_is_numpys(kernel_ops, shape, plain, step, seed):
    random = np.random.default_rng(seed)
    ranges = None
    if not plain:  # up to whole turns, and far beyond the edges
        spread = np.float32([180, 5, 5, 0.5, 0.5])
        ranges = np.float32([0, 0, 0, 1, 1]) + np.stack([-spread, spread])
    case = make_load_batch(random, *shape, ranges, labels=not plain, step=step)
    found, expected = case.run(kernel_ops), case.run(ops_numpy)
    np.testing.assert_array_equal(found["y"], expected["y"])
    if plain:
        np.testing.assert_array_equal(found["x"], expected["x"])
        assert (found["y"] == 119).all()  # there are no labels
    assert np.abs(found["x"] - expected["x"]).max() < 1e-6


# ---------------------------------------------------------------------------------------------
# What is easily got wrong


@pytest.mark.parametrize("mean", [1e3, 1e5])
@pytest.mark.parametrize("shape", [(2, 4, 9, 8, 3), (1, 64, 14, 12, 2), (1, 3, 3, 1, 40)])
def test_batch_norm_of_a_mean_that_is_large_beside_the_deviation(kernel_ops, shape, mean):
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


def test_batch_norm_of_equal_numbers_has_no_variance(kernel_ops):
    case = make_case("batch_norm", np.random.default_rng(0))
    case.inputs["x"][...] = np.float32(0.1)
    found = case.run(kernel_ops)
    assert (found["variance"] >= 0).all() and (found["variance"] < 1e-12).all()
    beta = np.broadcast_to(case.inputs["beta"][:, None, None, None], found["y"].shape)
    np.testing.assert_allclose(found["y"], beta, atol=1e-6)


@pytest.mark.parametrize("activation", ["", " relu"])
def test_batch_norm_of_one_number_a_channel_has_no_gradient(kernel_ops, activation):
    """What rounding would leave, Adam would turn into steps of the learning rate."""
    operation = f"batch_norm_backward{activation}"
    case = make_case(operation, np.random.default_rng(0), 2, 1, 1, 1, 70)
    case.inputs |= {"mean": case.inputs["x"][:, 0, 0, 0], "variance": np.zeros((2, 70))}
    assert not case.run(kernel_ops)["dx"].any()


@pytest.mark.parametrize("step", [0, 1, 9, 999, 26_549, 10**7])
def test_adam_is_numpys_at_any_step(kernel_ops, step):
    case = make_case("adam", np.random.default_rng(step))
    case.others["step"] = np.array([step])
    case.changed = *case.changed, "step"
    found, expected = case.run(kernel_ops), case.run(ops_numpy)
    assert found["step"] == expected["step"] == step + 1
    for name in ("m", "v", "params"):
        assert relative(found[name], expected[name]) < 1e-6, name
    before = case.inputs["params"]
    assert relative(found["params"] - before, expected["params"] - before) < 1e-4


def test_collect_counts(kernel_ops):
    case = make_case("collect", np.random.default_rng(0))
    case.changed = "target", "step"
    assert_same_bits(case.run(kernel_ops), case.run(ops_numpy))


@pytest.mark.parametrize("width", [1, 7, 70])
@pytest.mark.parametrize(
    "operation",
    [*OPERATIONS[1:5], "batch_norm", "max_pool", "softmax_cross_entropy"],
)
def test_what_is_not_a_number_stays_visible(kernel_ops, operation, width):
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
