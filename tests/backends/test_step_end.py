"""The end of a fused training step: Adam adds up the partial sums of gradients itself."""

from types import SimpleNamespace

import block_oracles
import numpy as np
import pytest
from cases import Apart, assert_same_bits, relative
from stacks import batch

from minicnn import BatchNormalization, Conv2D, Dense, Dropout, Flatten, Sequential
from minicnn.backends import cuda_tiles
from minicnn.backends.cuda_block_arrays import _sum_rows
from minicnn.backends.cuda_blocks import fusion
from minicnn.backends.cuda_forms import STORAGES
from minicnn.backends.ops_cuda import Operations
from minicnn.emulator import Emulator
from minicnn.recipe import RECIPES

E, P, M, MOMENTUM = 2, 5000, 700, 0.99
RATES = np.array([1e-3, 1e-2, 0.3])
# (from, parts, halves, step, to, length): more elements than a thread block takes at a time, none
# of some thread's, a single part, parts that are first added in pairs, and gradients that are
# written already
SUMS = np.array(
    [
        [0, 3, 1, 2600, 100, 2500],
        [9001, 1, 1, 0, 2600, 1],
        [5, 8, 2, 450, 2601, 301],
        [0, 0, 1, 0, 3000, 2000],
        [0, 0, 1, 0, 2902, 98],
        [3000, 1, 2, 7000, 0, 100],
    ],
    np.int32,
)
SETTINGS = 0.9, 0.999, 1e-7


def given_arrays(seed=0):
    """{name: (E, ...) float32} of what Adam's launch reads and writes."""
    random = np.random.default_rng(seed)

    def normal(size):
        return random.normal(size=(E, size)).astype(np.float32)

    spread = np.float32(10.0 ** random.integers(-6, 2, (E, 12_000)))
    arrays = {"parts": normal(12_000) * spread, "v": normal(P) ** 2}
    arrays |= {name: normal(P) for name in ("w", "g", "m")}
    return arrays | {name: normal(M) for name in ("moving", "batch")}


def run(driver, arrays, step, kernel, moving=True, place=None):
    """{name: array}: w, m, v and moving after a step by `kernel`, or by three launches."""
    ops, put = Operations(driver), place or driver.to_device
    a = SimpleNamespace(**{name: put(array) for name, array in arrays.items()})
    sums, count = driver.to_device(SUMS.reshape(-1)), driver.to_device(np.array([step]))
    adam = a.w, a.g, a.m, a.v, count, driver.to_device(RATES), *SETTINGS
    grid, block = (len(SUMS),), (256,)
    with driver.session():
        if kernel == "adam_from_parts":
            statistics = {"moving": None, "batch": None, "M": 0, "keep": 0.0, "take": 0.0}
            if moving:
                statistics = {"moving": a.moving, "batch": a.batch, "M": M}
                statistics |= {"keep": MOMENTUM, "take": 1 - MOMENTUM}
            arguments = {"sums": sums, "parts": a.parts, **ops.adam_arguments(*adam), **statistics}
            driver.launch("adam.cu", kernel, grid, block, **arguments)
        else:
            driver.launch("sum_parts.cu", "sum_parts", grid, block, sums, a.parts, a.g)
            ops.adam(*adam)
            if moving:
                ops.update_moving(a.moving, a.batch, MOMENTUM)
    return {name: driver.to_host(getattr(a, name)) for name in ("w", "m", "v", "moving")}


def test_the_table_has_each_weight_once():
    places = np.concatenate([to + np.arange(length) for *_, to, length in SUMS])
    np.testing.assert_array_equal(np.sort(places), np.arange(P))


@pytest.mark.parametrize("step", [0, 1, 1000])
def test_adam_from_parts_is_the_oracles(driver, step):
    arrays = given_arrays()
    found = run(driver, arrays, step, "adam_from_parts")
    for e in range(E):
        of_net = SimpleNamespace(
            **{name: array[e] for name, array in arrays.items()}, sums=SUMS, momentum=MOMENTUM,
            t=step + 1, rate=RATES[step % len(RATES)],
        )  # fmt: skip
        expected = block_oracles.adam_from_parts(of_net)
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            assert relative(found[name][e], array) < 1e-6, name
        change = expected["w"] - arrays["w"][e]
        assert relative(found["w"][e] - arrays["w"][e], change) < 1e-4


@pytest.mark.parametrize("moving", [True, False])
def test_one_launch_gives_the_bits_of_three(driver, moving):
    arrays = given_arrays()
    expected = run(driver, arrays, 7, "three", moving)
    assert_same_bits(run(driver, arrays, 7, "adam_from_parts", moving), expected)
    assert (expected["moving"] != arrays["moving"]).all() == moving


def test_it_stays_in_bounds_and_keeps_its_bits(driver, checked_driver, other_order_driver):
    arrays = given_arrays()
    expected = run(driver, arrays, 7, "adam_from_parts")
    for other in (checked_driver, other_order_driver):
        assert_same_bits(run(other, arrays, 7, "adam_from_parts"), expected)
        assert_same_bits(run(other, arrays, 7, "three"), expected)
    apart = Apart(driver)
    assert_same_bits(run(driver, arrays, 7, "adam_from_parts", place=apart), expected)
    apart.check()
    for e in range(E):
        alone = {name: array[e : e + 1] for name, array in arrays.items()}
        found = run(driver, alone, 7, "adam_from_parts")
        assert_same_bits(found, {name: array[e : e + 1] for name, array in expected.items()})


@pytest.mark.parametrize("beta_1", [0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("beta_2", [0.0, 0.9, 0.999, 0.999999])
def test_adams_correction_is_exact_in_any_step(driver_ops, beta_1, beta_2):
    """From weights 0, with m = 1 and v = 1 as they stay with gradients of 1."""
    for step in (0, 1, 2, 9, 100, 26_549, 10**7):
        ones = (driver_ops.to_device(np.ones((1, 3), np.float32)) for _ in range(3))
        w = driver_ops.zeros((1, 3), np.float32)
        count, rate = driver_ops.to_device(np.array([step])), driver_ops.to_device(np.ones(1))
        with driver_ops.session():
            driver_ops.adam(w, *ones, count, rate, beta_1, beta_2, 1e-30)
        t = np.longdouble(step + 1)
        expected = -np.sqrt(1 - np.longdouble(beta_2) ** t) / (1 - np.longdouble(beta_1) ** t)
        np.testing.assert_allclose(driver_ops.to_host(w)[0], float(expected), rtol=5e-7)


# ---------------------------------------------------------------------------------------------
# In a network


@pytest.mark.parametrize("storage", STORAGES, ids=lambda s: s.precision)
@pytest.mark.parametrize("images", [1, 4, 64, 200])
def test_a_step_takes_each_gradient_once(storage, images):
    nodes = RECIPES["seed"].nodes
    model = RECIPES["seed"].model(range(1, 2), "numpy")
    model.params[...] = 0
    for *_, to, length in _sum_rows(fusion(nodes, images, storage), nodes):
        model.params[:, to : to + length] += 1
    for weight in model.trainable_weights:
        assert (weight == 1).all()
    assert model.params.sum() == sum(weight.size for weight in model.trainable_weights)


def network(device, momenta, precision="tf32", filters=8):
    """Three blocks; with small batches the gradients of some have a single partial sum."""
    first, *others = momenta
    layers = [Conv2D(filters, 3, activation="relu"), BatchNormalization(first), Dropout(0.3)]
    for momentum in others:
        layers += [Conv2D(16, 3, activation="relu"), BatchNormalization(momentum)]
    layers += [Flatten(), Dense(5, activation="softmax")]
    return Sequential(layers, (11, 9, 3), nets=2, seed=3, device=device, precision=precision)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
@pytest.mark.parametrize("filters", [(8, 40, 136), (72, 64, 32)])
def test_weights_are_packed_as_each_pass_meets_them(
    cuda_device, checked_driver, precision, filters, training
):
    layers = []
    for count in filters:
        layers += [Conv2D(count, (3, 2), activation="relu"), BatchNormalization()]
    layers += [Flatten(), Dense(5, activation="softmax")]
    for device in (cuda_device, Operations(checked_driver, precision=precision)):
        model = Sequential(layers, (9, 7, 3), nets=2, seed=3, device=device, precision=precision)
        plan = model.plan(4, training)
        with model.ops.session():
            plan._pack_weights()
        storage, arrays = plan.network.storage, plan._arrays
        count = 0
        for (what, i), found in arrays.packed.items():
            block = plan.network.blocks[i]
            launch = block.forward if what == "forward" else block.input_gradient
            kernels = model.ops.to_host(block.convolution.weights.kernel)
            kernels, sizes = kernels.reshape(2, 6, *kernels.shape[-2:]), kernels.shape[-2:]
            if what == "input gradient":
                kernels, sizes = kernels.swapaxes(2, 3), sizes[::-1]
            slots = cuda_tiles.weight_slots(launch, *sizes)
            width = cuda_tiles.packed_width(launch)
            for kernel, own in zip(kernels, model.ops.to_host(found), strict=True):
                expected = block_oracles.packed(kernel, slots, width, storage.precision)
                np.testing.assert_array_equal(own.view(np.uint32), expected.view(np.uint32))
                count += 1
        assert count == (8 if training else 4)


def state(model):
    """{name: array} of all that a step changes."""
    names = "params", "moving", "moment_1", "moment_2", "step"
    return {name: model.ops.to_host(getattr(model, name)) for name in names}


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
@pytest.mark.parametrize("momenta", [(0.9, 0.9, 0.9), (0.9, 0.8, 0.99)], ids=["one", "several"])
@pytest.mark.parametrize("images", [1, 7])
def test_a_fused_step_is_its_gradients_and_adam_to_the_bit(cuda_device, precision, momenta, images):
    fused, apart = (network(cuda_device, momenta, precision) for _ in range(2))
    x, y = batch(fused, images)
    for _ in range(2):
        fused.train_on_batch(x, y, 0.01)
        with apart.ops.session():
            plan = apart._load(x, y)
            apart.learning_rate[...] = 0.01
            plan.forward_backward()
            plan.update_moving()
            arrays = apart.params, apart.gradients, apart.moment_1, apart.moment_2
            apart.optimizer.update(apart.ops, *arrays, apart.step, apart.learning_rate)
            apart.step += 1
        assert_same_bits(state(fused), state(apart))
    assert hasattr(plan, "network")  # it is fused


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_the_size_of_the_gpu_changes_no_bit(precision):
    """A large one has a thread block for each run of tiles, a small one adds up pairs of them."""
    states, grids, later = [], [], []
    layers = [Conv2D(8, 3, activation="relu"), BatchNormalization()]
    layers += [Conv2D(16, 3, activation="relu"), BatchNormalization(), Dropout(0.3)]
    layers += [Conv2D(16, 4, strides=3, activation="relu"), BatchNormalization()]
    layers += [Flatten(), Dense(5, activation="softmax")]
    for multiprocessors in (200, 24, 3):
        driver = Emulator()
        driver.multiprocessors = multiprocessors
        model = Sequential(
            layers, (16, 15, 1), nets=2, seed=3, device=Operations(driver, precision=precision)
        )
        x, y = batch(model, 40)
        for _ in range(2):
            model.train_on_batch(x, y, 0.01)
        states.append(state(model))
        blocks = model.plan(40, training=True).network.blocks
        assert blocks[1].weight_gradient.halves == 2
        later.append(blocks[1].weight_gradient.adds_later)
        launches = [blocks[0].forward, *vars(blocks[1]).values()]
        grids.append([launch.grid for launch in launches if hasattr(launch, "grid")])
    assert len(grids[0]) == 4 and grids[0] != grids[1] != grids[2] and later == [True, False, False]
    for other in states[1:]:
        assert_same_bits(other, states[0])


def test_a_single_partial_sum_is_no_gradient_where_there_is_a_gap_before_the_bias(cuda_device):
    """108 weights of a kernel, and the bias 112 elements after its begin."""
    models = [
        network(*given, filters=4)
        for given in ((cuda_device, [0.9] * 2), ("numpy", [0.9] * 2, "float32"))
    ]
    x, y = batch(models[0], 1)
    assert models[0].ops.fusion(models[0].nodes, 2, 1).blocks[0].weight_gradient.parts == 1
    (_, found), (_, expected) = (model.loss_and_gradients(x, y) for model in models)
    for ours, numpys in zip(found, expected, strict=True):
        assert relative(ours, numpys) < 2e-2
