"""A first block that is rebuilt from the image: its own kernels, and networks that have one.

test_blocks.py tests the kernels of the block above it (ABOVE_FIRST).
"""

import re
from types import SimpleNamespace

import block_oracles
import numpy as np
import pytest
from block_cases import ABOVE_FIRST, Block, First, moments, same_roundings, with_runs
from cases import assert_same_bits, poison, relative
from hypothesis import assume, given
from hypothesis import strategies as st
from levels import examples

from minicnn import BatchNormalization, Conv2D, Dense, Dropout, Flatten, Sequential, model
from minicnn.backends import cuda_forms, cuda_rebuilt, cuda_tiles
from minicnn.backends.cuda_blocks import fusion
from minicnn.backends.kernel import SOURCES
from minicnn.backends.ops_cuda import Operations
from minicnn.network.stack import connect

by_storage = pytest.mark.parametrize("storage", cuda_forms.STORAGES, ids=lambda s: s.precision)
axes = st.tuples(st.integers(1, 14), st.integers(1, 14))
firsts = st.builds(
    First,
    image=axes,
    channels=st.integers(1, 4),
    size=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    padding=st.sampled_from(["valid", "same"]),
    relu=st.booleans(),
)


def fits(first):
    """Whether such a block can exist, and can be rebuilt."""
    inside = all(k <= n for k, n in zip(first.size, first.image, strict=True))
    return first.rebuilt.elements < cuda_rebuilt.ELEMENTS and (inside or first.padding == "same")


# ---- its own kernels -----------------------------------------------------------------------------


def run_moments(driver, block, launch=None, nets=slice(None)):
    """{name: array}: the results of rebuilt_moments for the block below a Block."""
    rebuilt = block.first.rebuilt
    size = rebuilt, block.C, block.B, block.storage
    launch = launch or cuda_tiles.best(cuda_tiles.rebuilt_moments(*size))
    given = [
        driver.to_device(block.arrays[f"{name}_first"][nets]) for name in ("x", "kernel", "bias")
    ]
    shape = len(given[0]), launch.parts
    results = {
        "parts": driver.to_device(poison((*shape, 3, block.C), np.float32)),
        "of_y": driver.to_device(poison((*shape, 2, rebuilt.elements + 1, block.C), np.float32)),
    }
    floor = 0.0 if block.first.relu else -np.inf
    with driver.session():
        driver.launch(
            "rebuilt.cu", "rebuilt_moments", launch.grid, (launch.threads,),
            *given, block.first_sizes(), launch.tiling, floor, *results.values(),
            shared_bytes=launch.shared_bytes, defines=launch.defines,
        )  # fmt: skip
    return {name: driver.to_host(array) for name, array in results.items()}


def check_moments(driver, block, found):
    """Assert that the results of rebuilt_moments are right."""
    for e in range(block.E):
        expected = block_oracles.rebuilt_moments(block._given("forward", e), rounded=True)
        parts = found["parts"][e]
        pixels = block.B * np.prod(block.first.window.output)
        assert (parts[:, 2].sum(axis=0) == pixels).all()
        for name, moment in zip(("mean", "variance"), block_oracles.moments(parts), strict=True):
            assert relative(moment, expected[name]) < same_roundings(driver), name
        # y is rounded twice: see Block.check.
        sums = found["of_y"][e].sum(axis=0, dtype=np.float64)
        for of_found, of_expected in zip(sums, expected["of_y"], strict=True):
            assert relative(of_found, of_expected) < same_roundings(driver) + 4e-5


@pytest.mark.parametrize("block", ABOVE_FIRST, ids=repr)
def test_moments_and_sums_over_pixels_are_right(driver, block):
    size = block.first.rebuilt, block.C, block.B, block.storage
    launch = cuda_tiles.best(cuda_tiles.rebuilt_moments(*size))
    for runs in {launch.tiling["runs"], 1, 2, 7}:
        check_moments(driver, block, run_moments(driver, block, with_runs(launch, runs)))


@by_storage
@examples(10)
@given(first=firsts.filter(fits), C=st.integers(2, 20), B=st.integers(1, 4), way=st.integers(0, 99))
def test_moments_are_right_with_any_tiles(driver, storage, first, C, B, way):
    block = Block(2, B, None, 4 * C, 8, (1, 1), storage=storage, first=first)
    ways = cuda_tiles.rebuilt_moments(first.rebuilt, block.C, B, storage)
    launch = ways[way % len(ways)]
    launch = with_runs(launch, 1 + way % launch.tiling["runs"], blocks=1 + way % 3)
    check_moments(driver, block, run_moments(driver, block, launch))


@pytest.mark.parametrize("block", [ABOVE_FIRST[1], ABOVE_FIRST[1].in_bfloat16()], ids=repr)
def test_moments_are_the_same_bits_alone_and_in_any_order(
    driver, checked_driver, other_order_driver, block
):
    size = block.first.rebuilt, block.C, block.B, block.storage
    ways = cuda_tiles.rebuilt_moments(*size)
    launch = with_runs(max(ways, key=lambda launch: launch.tiling["tiles"]), 5)
    assert launch.tiling["tiles"] > launch.tiling["runs"] == 5
    several = run_moments(driver, block, launch)
    for other, blocks in ((driver, 2), (checked_driver, 1)):  # some compute several runs
        found = run_moments(other, block, with_runs(launch, 5, blocks))
        assert_same_bits(found, several)
    together = run_moments(driver, block)
    for e in range(block.E):
        alone = run_moments(driver, block, nets=slice(e, e + 1))
        assert_same_bits(alone, {name: array[e : e + 1] for name, array in together.items()})
    assert_same_bits(run_moments(checked_driver, block), together)
    assert_same_bits(run_moments(other_order_driver, block), together)


@pytest.mark.parametrize("elements", [(3, 3, 1), (1, 1, 1), (2, 7, 1)])
@pytest.mark.parametrize("filters", [4, 36])
def test_the_gradients_are_right(driver, checked_driver, elements, filters):
    random = np.random.default_rng(0)
    E, rows, K = 2, 60, int(np.prod(elements))
    sizes = dict(zip("B H W Cin Ho Wo Cout kh kw sh sw top left".split(), [0] * 13, strict=True))
    kh, kw, channels = elements
    sizes |= {"B": 3, "Ho": 4, "Wo": 5, "Cout": filters, "Cin": channels, "kh": kh, "kw": kw}

    def normal(*shape):
        return random.normal(size=(E, *shape)).astype(np.float32)

    of_dx, of_y, sums = (
        normal(3, K + 1, filters),
        normal(5, 2, K + 1, filters),
        normal(4, 2, filters),
    )
    gamma, statistics = normal(filters), moments(random, E, filters, "")
    for own in (driver, checked_driver):
        put = own.to_device
        shapes = (K, filters), *[(filters,)] * 3
        found = [put(poison((E, *shape), np.float32)) for shape in shapes]
        with own.session():
            own.launch(
                "rebuilt.cu", "rebuilt_weight_gradient", (-(-(K + 1) * filters // 16),), (64,),
                put(of_dx), 3, put(of_y), 5, put(sums), 4, put(gamma),
                *map(put, statistics.values()), 1e-3, sizes, *found,
                shared_bytes=cuda_tiles.coefficients_bytes(filters),
            )  # fmt: skip
        for e in range(E):
            total = sums[e].sum(axis=0, dtype=np.float64)
            expected = block_oracles.rebuilt_weight_gradient(SimpleNamespace(
                of_dx=of_dx[e].sum(axis=0, dtype=np.float64), rows=rows, gamma_below=gamma[e],
                of_y=of_y[e].sum(axis=0, dtype=np.float64), sum=total[0], sum_z=total[1],
                mean_below=statistics["mean"][e], variance_below=statistics["variance"][e],
                epsilon_below=np.float32(1e-3),
            ))  # fmt: skip
            expected |= {"dgamma": total[1], "dbeta": total[0]}
            for array, name in zip(found, ("dkernel", "dbias", "dgamma", "dbeta"), strict=True):
                assert relative(own.to_host(array)[e], expected[name]) < 1e-5, name


@by_storage
def test_the_three_sums_give_the_gradients_of_the_formula(storage):
    """The oracles themselves: a, b and c multiply the sums as they multiply each pixel."""
    block = Block(1, 3, None, 8, 8, (3, 3), storage=storage, first=First((9, 8), 1, (3, 3)))
    above = block_oracles.with_y_below(block._given("input gradient", 0), rounded=False)
    random = np.random.default_rng(1)
    dx, y = random.normal(size=above.y_below.shape), above.y_below
    # The first block, as one whose gradients are computed from dx and y in memory
    own = SimpleNamespace(
        first=None, gamma_below=None, y_below=above.x_first, kernel=above.kernel_first, kept=None,
        strides=(1, 1), padding="valid", relu=True, gamma=above.gamma_below, epsilon=1e-3, y=y,
        dx=dx, rows=y[..., 0].size, mean=y.mean(axis=(0, 1, 2)), variance=y.var(axis=(0, 1, 2)),
    )  # fmt: skip
    sums = block_oracles.sums_of(dx, SimpleNamespace(
        y_below=y, mean_below=own.mean, variance_below=own.variance, epsilon_below=own.epsilon
    ))  # fmt: skip
    own.sums = np.array([[sums["sum"], sums["sum_z"]]])
    expected = block_oracles.weight_gradient(own)
    mask = y > 0
    given_sums = SimpleNamespace(
        of_dx=block_oracles.over_pixels(above, dx * mask), **sums, rows=own.rows,
        of_y=[block_oracles.over_pixels(above, v) for v in (y, mask.astype(float))],
        gamma_below=own.gamma, mean_below=own.mean, variance_below=own.variance, epsilon_below=1e-3,
    )  # fmt: skip
    found = block_oracles.rebuilt_weight_gradient(given_sums)
    for name, array in found.items():
        expected_array = expected[name].reshape(array.shape)
        np.testing.assert_allclose(array, expected_array, rtol=1e-6, atol=1e-9)


# ---- the block above it, launched in any way -----------------------------------------------------


@pytest.mark.parametrize("what", ["forward", "input gradient", "weight gradient"])
@by_storage
@examples(12)
@given(
    first=firsts.filter(fits),
    E=st.integers(1, 2),
    B=st.integers(1, 4),
    C=st.integers(2, 18).map(lambda n: 4 * n),
    N=st.integers(1, 18).map(lambda n: 4 * n),
    size=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.sampled_from(["valid", "same"]),
    relu=st.booleans(),
    below=st.sampled_from(["parts", "moments"]),
    way=st.none() | st.integers(0, 2**20),
)
def test_the_block_above_is_right_in_any_way_to_launch_it(
    driver, what, storage, first, E, B, C, N, size, padding, relu, below, way
):
    block = Block(
        E,
        B,
        None,
        C,
        N,
        size,
        padding=padding,
        relu=relu,
        below=below,
        storage=storage,
        first=first,
    )
    assume(block.products < 1_000_000)
    launches = block.launches(what)
    assume(launches)
    launch = cuda_tiles.best(launches)
    if way is not None:
        launch = launches[way % len(launches)]
        launch = with_runs(launch, 1 + way % launch.tiling["runs"], blocks=1 + way % 3)
    block.check(driver, what, block.run(driver, what, launch))


FORMS = ABOVE_FIRST[1], ABOVE_FIRST[1].in_bfloat16()


@pytest.mark.full(beside="test_the_block_above_is_right_in_any_way_to_launch_it")
@pytest.mark.parametrize("block", FORMS, ids=["tf32", "bfloat16"])
@pytest.mark.parametrize("what", ["forward", "input gradient", "weight gradient"])
def test_each_form_is_right(driver, what, block):
    defines = {launch.defines for launch in block.launches(what)}
    forms = {
        "forward": block.storage.forward_forms,
        "input gradient": cuda_forms.REBUILDING_GRADIENT_FORMS,
        "weight gradient": cuda_forms.REBUILDING_WEIGHT_FORMS,
    }
    assert len(defines) == len(forms[what])
    for own in defines:
        launch = [launch for launch in block.launches(what) if launch.defines == own][-1]
        block.check(driver, what, block.run(driver, what, launch))


# ---- networks ------------------------------------------------------------------------------------


def layers_of(first=None, drop=0.0, strides=1, filters=8, activation="relu"):
    return [
        first or Conv2D(8, 3, activation="relu"),
        BatchNormalization(0.9),
        Dropout(drop),
        Conv2D(filters, 3, strides=strides, activation=activation),
        BatchNormalization(0.9),
        Flatten(),
        Dense(4, activation="softmax"),
    ]


SHAPE, B = (12, 11, 1), 6
REBUILT = {
    "plain": layers_of(),
    "linear, with strides": layers_of(
        Conv2D(8, (2, 3), strides=2, padding="same"), activation="linear"
    ),
    "many filters": layers_of(Conv2D(40, 3, activation="relu"), filters=16),
    "the largest kernel": layers_of(Conv2D(8, (3, 5), activation="relu")),
}
STORED = {
    "a larger kernel": layers_of(Conv2D(8, 4, activation="relu")),
    "dropout behind the first": layers_of(drop=0.3),
    "strides in the second": layers_of(strides=2),
    "a single block": [*layers_of()[:2], *layers_of()[-2:]],
    "a second kernel as large as its input": layers_of(Conv2D(8, (4, 3), (4, 3))),
}


@by_storage
@pytest.mark.parametrize("name", [*REBUILT, *STORED])
def test_which_first_blocks_are_rebuilt(name, storage):
    network = fusion(connect({**REBUILT, **STORED}[name], SHAPE), B, storage)
    assert bool(network.blocks[0].rebuilt) == (name in REBUILT)
    assert not any(block.rebuilt for block in network.blocks[1:])


@by_storage
def test_the_seed_networks_first_block_is_rebuilt(storage):
    network = fusion(connect(model.mnist_layers(0.4, 0.99), model.MNIST_SHAPE), 64, storage)
    assert network.blocks[0].rebuilt


def step_of(device, layers, nets=2):
    """{name: array}: a training step's results, and predictions after it."""
    random = np.random.default_rng(0)
    m = Sequential(layers, SHAPE, nets=nets, seed=3, device=device)
    x = random.random((3, B, *SHAPE), np.float32)
    labels = random.integers(4, size=(3, B))
    loss, gradients = m.loss_and_gradients(x[:nets], labels[:nets])
    m.train_on_batch(x[:nets], labels[:nets])
    names = [f"gradient of {name}" for name in m.named_weights if "moving" not in name]
    found = {"loss": loss, **dict(zip(names, gradients, strict=True))}
    moving = {name: array for name, array in m.named_weights.items() if "moving" in name}
    found |= {name: m.ops.to_host(array) for name, array in moving.items()}
    return m, found


# Bounds of the errors of the loss, and of gradients and moving statistics: as in test_step.py; and
# of a network without kinks, for each of them
BOUNDS = {"tf32": (1e-3, 2e-2, 2e-3), "bfloat16": (1e-2, 2e-1, 2e-2)}


def of_kind(found, kind):
    """All arrays whose names begin with `kind`, in one."""
    return np.concatenate([a.ravel() for name, a in found.items() if name.startswith(kind)])


@by_storage
@pytest.mark.parametrize("name", REBUILT)
def test_a_step_is_numpys_within_the_rounding(driver, name, storage):
    layers = REBUILT[name]
    ours, found = step_of(Operations(driver, precision=storage.precision), layers)
    reference, expected = step_of("numpy", layers)
    assert ours.plan(B, training=True).network.blocks[0].rebuilt
    of_loss, of_others, _ = BOUNDS[storage.precision]
    assert relative(found["loss"], expected["loss"]) < of_loss
    for kind in ("gradient", "batch_normalization"):  # the latter: moving statistics
        assert relative(of_kind(found, kind), of_kind(expected, kind)) < of_others, kind
    ours.set_weights(reference.get_weights())
    x = np.random.default_rng(1).random((5, *SHAPE), np.float32)
    assert relative(ours.predict(x), reference.predict(x)) < 2e-3  # predictions are in TF32


@by_storage
def test_each_gradient_of_linear_blocks_is_numpys(driver, storage):
    """Without ReLU, whose kinks multiply rounding errors, each gradient can be compared closely."""
    layers = REBUILT["linear, with strides"]
    _, found = step_of(Operations(driver, precision=storage.precision), layers)
    _, expected = step_of("numpy", layers)
    # What the next normalisation removes again has no gradient: only rounding errors.
    nothing = [
        f"gradient of {n}" for n in ("conv2d/bias", "conv2d_1/bias", "batch_normalization/beta")
    ]
    _, _, bound = BOUNDS[storage.precision]
    largest = np.abs(expected["gradient of conv2d/kernel"]).max()
    for name, array in expected.items():
        if name in nothing:
            assert np.abs(array).max() < 1e-5 and np.abs(found[name]).max() < bound * largest, name
        elif name != "loss":
            assert relative(found[name], array) < bound, name


@by_storage
def test_a_net_alone_is_the_net_among_others_to_the_bit(driver, storage):
    alone, together = (
        step_of(Operations(driver, precision=storage.precision), REBUILT["plain"], nets)[1]
        for nets in (1, 3)
    )
    assert_same_bits(alone, {name: array[:1] for name, array in together.items()})


@by_storage
def test_neither_y_nor_dx_of_a_rebuilt_block_has_memory(driver, storage):
    m = Sequential(
        REBUILT["plain"], SHAPE, nets=2, device=Operations(driver, precision=storage.precision)
    )
    for training in (True, False):
        arrays = m.plan(B, training)._arrays
        assert arrays.y[0] is None and arrays.y[1] is not None
    arrays = m.plan(B, training=True)._arrays
    assert arrays.dx[0] is None and not hasattr(arrays.parts[0], "weights")


def test_a_wrong_constant_of_the_kernels_would_be_noticed():
    """Python repeats constants of rebuilt.cuh and rebuilt.cu."""
    header, kernels = ((SOURCES / name).read_text() for name in ("rebuilt.cuh", "rebuilt.cu"))
    assert f"ELEMENTS = {cuda_rebuilt.ELEMENTS};" in header
    tile = int(re.search(r"TILE_OF_SUMS = 4 \* WARP \+ (\d+);", header)[1]) + 4 * cuda_forms.WARP
    assert "SUMS_OF_WARP = 4 * TILE_OF_SUMS;" in header and cuda_rebuilt.SUMS_OF_WARP == 4 * tile
    assert "OUTSIDE = 1 << 30;" in header and cuda_tiles.OUTSIDE == 1 << 30
    assert f"THREADS = {cuda_tiles.REBUILT_THREADS};" in kernels


def test_nan_in_the_image_stays_visible(driver):
    block = Block(1, 2, None, 8, 8, (2, 2), first=First((5, 6), 1, (2, 2)))
    block.arrays["x_first"][0, 1, 2, 2, 0] = np.nan
    found = block.run(driver, "forward")["y"]
    assert np.isnan(found[0, 1]).any() and not np.isnan(found[0, 0]).any()
    parts = run_moments(driver, block)
    assert np.isnan(parts["parts"]).any() and np.isnan(parts["of_y"]).any()
