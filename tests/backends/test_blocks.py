"""Each kernel of the fused blocks: against the oracles in block_oracles.py, and to the bit."""

import shutil
from unittest import mock

import block_oracles
import numpy as np
import pytest
from block_cases import (
    ABOVE_FIRST,
    FIRST,
    FIRST_BLOCKS,
    FREE,
    RAGGED,
    SEED_NETWORK,
    TENSOR,
    Block,
    cases_of,
    same_roundings,
    with_runs,
)
from cases import Apart, assert_same_bits, poison, relative
from hypothesis import assume, given
from hypothesis import strategies as st
from levels import examples

from minicnn import rng
from minicnn.backends import cuda_forms
from minicnn.backends.kernel import SOURCES
from minicnn.emulator import Emulator, KernelFault

axes = st.tuples(st.integers(1, 14), st.integers(1, 14))
sizes = st.tuples(st.integers(1, 5), st.integers(1, 5))
common = {
    "E": st.integers(1, 3),
    "B": st.integers(1, 5),
    "image": axes,
    "N": st.integers(1, 20).map(lambda n: 4 * n),
    "size": sizes,
    "strides": st.tuples(st.integers(1, 3), st.integers(1, 3)),
    "padding": st.sampled_from(["valid", "same"]),
    "relu": st.booleans(),
    "seed": st.integers(0, 2**32 - 1),
    "storage": st.sampled_from(cuda_forms.STORAGES),
}
blocks = st.builds(
    Block,
    C=st.integers(2, 20).map(lambda n: 4 * n),
    drop=st.booleans(),
    below=st.sampled_from(["parts", "moments"]),
    **common,
)
first_blocks = st.builds(
    Block,
    C=st.one_of(st.integers(1, 7), st.sampled_from([8, 32])),
    below=st.just("nothing"),
    **common,
)
MOST_PRODUCTS = 4_000_000


# ---------------------------------------------------------------------------------------------
# Against the oracles


@pytest.mark.parametrize(("block", "what"), cases_of(SEED_NETWORK))
def test_the_seed_networks_blocks_are_right(driver, block, what):
    block.check(driver, what, block.run(driver, what))


@pytest.mark.parametrize(("block", "what"), cases_of([*RAGGED, *FIRST_BLOCKS, *ABOVE_FIRST]))
def test_ragged_blocks_are_right_with_any_number_of_runs(driver, block, what):
    launch = block.launch(what)
    for runs in {launch.tiling["runs"], 1, 2, 7}:
        block.check(driver, what, block.run(driver, what, with_runs(launch, runs)))


@pytest.mark.parametrize("what", TENSOR)
@examples(10)
@given(block=blocks, way=st.none() | st.integers(0, 2**20))
def test_blocks_are_right_in_any_way_to_launch_them(driver, what, block, way):
    assume(block.products < MOST_PRODUCTS)
    launch = block.launch(what)
    assume(launch)
    if way is not None:
        launches = block.launches(what)
        launch = launches[way % len(launches)]
        launch = with_runs(launch, 1 + way % launch.tiling["runs"], blocks=1 + way % 3)
    block.check(driver, what, block.run(driver, what, launch))


@pytest.mark.parametrize("what", FIRST)
@examples(10)
@given(block=first_blocks)
def test_first_blocks_are_right(driver, what, block):
    assume(block.products < MOST_PRODUCTS and block.launches(what))
    block.check(driver, what, block.run(driver, what))


def defines_of(what, storage="tf32"):
    """The defines of each form of a pass's kernel."""
    return sorted({launch.defines for launch in BY_STORAGE[storage].launches(what)})


FORMS = Block(1, 13, (7, 3), 36, 68, (3, 2), (2, 1), "same", seed=1)
BY_STORAGE = {"tf32": FORMS, "bfloat16": FORMS.in_bfloat16()}
both_storages = pytest.mark.parametrize("storage", list(BY_STORAGE))
KINDS = {
    "several images": lambda tiling: tiling["images"] > 1,
    "bands": lambda tiling: tiling["bands"] > 1,
    "several warps of channels": lambda tiling: tiling["channel_warps"] == 2,
    "several warps of pixels": lambda tiling: tiling["pixel_warps"] > 1,
}


@both_storages
def test_the_cases_have_every_compiled_form(storage):
    forms = BY_STORAGE[storage].storage.forward_forms
    assert len(defines_of("forward", storage)) == len(forms)
    assert len(defines_of("input gradient", storage)) == len(cuda_forms.GRADIENT_FORMS)


@pytest.mark.full(but="defines[047]")
@pytest.mark.parametrize(
    ("what", "defines", "block"),
    [
        (what, form, block)
        for storage, block in BY_STORAGE.items()
        for what in ("forward", "input gradient")
        for form in defines_of(what, storage)
    ],
)
def test_each_form_is_right_with_each_kind_of_tile(driver, what, defines, block):
    of_form = [launch for launch in block.launches(what) if launch.defines == defines]
    chosen = {}
    for kind, holds in KINDS.items():
        found = [launch for launch in of_form if holds(launch.tiling)]
        one_warp = "FORM_SPLITS=4" in defines  # of results: two do not fit
        assert found or (one_warp and "several warps" in kind), kind
        if found:
            launch = found[-1]
            chosen[str(launch.tiling)] = launch
    for launch in chosen.values():
        block.check(driver, what, block.run(driver, what, with_runs(launch, 1)))


@pytest.mark.parametrize("size", [(2, 1), (1, 3), (2, 4), (3, 5), (1, 7), (5, 9)])
@pytest.mark.parametrize("storage", cuda_forms.STORAGES, ids=lambda s: s.precision)
def test_kernels_of_any_width_have_their_gradient(driver, size, storage):
    block = Block(1, 2, (6, 11), 20, 36, size, padding="same", storage=storage)
    for launch in block.launches("weight gradient")[::4]:
        found = block.run(driver, "weight gradient", launch)
        block.check(driver, "weight gradient", found)


@both_storages
@pytest.mark.parametrize("what", TENSOR)
def test_the_bounds_can_be_exceeded(driver, what, storage):
    """The bounds detect another rounding, and a missing dropout."""
    block, free = BY_STORAGE[storage], FREE[storage]
    name = {"forward": "y", "input gradient": "dx_below", "weight gradient": "dkernel"}[what]
    results = block.run(driver, what)
    block.check(driver, what, results)
    found = block.added_up(what, results)[name]
    assert 2 * same_roundings(driver) < relative(found, block.expected(what)[name]) < free

    def cut_off(x, given):
        bits = np.uint32(0xFFFFE000 if storage == "tf32" else 0xFFFF0000)
        return (np.float32(x).view(np.uint32) & bits).view(np.float32)

    with mock.patch.object(block_oracles, "operand", cut_off), pytest.raises(AssertionError):
        block.check(driver, what, results)
    with mock.patch.object(block_oracles, "drop", lambda x, given: x):
        assert relative(found, block.expected(what)[name]) > free


@pytest.mark.parametrize("what", ["forward", "input gradient"])
def test_a_stored_number_that_is_not_the_nearest_is_found(driver, what):
    block = BY_STORAGE["bfloat16"]
    name = {"forward": "y", "input gradient": "dx_below"}[what]
    results = block.run(driver, what)
    place = np.unravel_index(np.abs(results[name]).argmax(), results[name].shape)
    results[name][place] *= 1 + 2.0**-6
    with pytest.raises(AssertionError):
        block.check(driver, what, results)


# ---------------------------------------------------------------------------------------------
# To the bit

FEW = FIRST_BLOCKS[0], FIRST_BLOCKS[0].in_bfloat16(), ABOVE_FIRST[1], ABOVE_FIRST[1].in_bfloat16()
SMALL = cases_of([*RAGGED, *FEW])


@pytest.mark.parametrize(("block", "what"), SMALL)
def test_a_net_alone_is_the_net_among_others_to_the_bit(driver, block, what):
    together = block.run(driver, what)
    for e in range(block.E):
        alone = block.run(driver, what, nets=slice(e, e + 1))
        assert_same_bits(alone, {name: array[e : e + 1] for name, array in together.items()})
    apart = Apart(driver)
    assert_same_bits(block.run(driver, what, place=apart), together)
    apart.check()


@pytest.mark.parametrize(("block", "what"), SMALL)
def test_the_grid_changes_no_bit(driver, checked_driver, block, what):
    """Nor does it which thread block adds up the two runs of a weight gradient's part."""
    # The tiling with the most tiles: several for each thread block, and for each run
    launch = max(block.launches(what), key=lambda launch: launch.tiling["tiles"])
    runs = min(6, launch.tiling["tiles"] // 2 * 2)
    if not runs:
        assert block.B == 1
        return
    expected = block.run(driver, what, with_runs(launch, runs))
    for own, blocks in ((driver, 1), (driver, 2), (checked_driver, 4)):
        found = block.run(own, what, with_runs(launch, runs, blocks))
        assert_same_bits(found, expected)
    if what != "weight gradient" or not block.tensor:
        return
    half, parts = runs // 2, expected["parts"]
    expected["parts"] = parts[:, :half] + parts[:, half:]
    for own, blocks in ((driver, 3), (driver, 2), (checked_driver, 1)):
        found = block.run(own, what, with_runs(launch, runs, blocks, parts=half))
        assert_same_bits(found, expected)


@pytest.mark.parametrize(("block", "what"), SMALL)
def test_kernels_stay_in_bounds_and_race_with_nothing(driver, checked_driver, block, what):
    assert_same_bits(block.run(checked_driver, what), block.run(driver, what))


@both_storages
@pytest.mark.parametrize("what", TENSOR)
def test_partly_filled_tiles_stay_in_bounds(driver, checked_driver, what, storage):
    block = BY_STORAGE[storage]
    launches = [launch for launch in block.launches(what) if block.B % launch.tiling["images"]]
    launch = with_runs(launches[-1], 1)  # which computes all tiles, one after another
    found = block.run(checked_driver, what, launch)
    block.check(driver, what, found)
    assert_same_bits(found, block.run(driver, what, launch))


@pytest.mark.full(but="shuffled")
@pytest.mark.parametrize(("block", "what"), SMALL)
def test_the_order_of_threads_changes_no_bit(driver, other_order_driver, block, what):
    assert_same_bits(block.run(other_order_driver, what), block.run(driver, what))


@pytest.fixture(scope="session")
def late_driver(checked_driver):
    """The emulator with asynchronous copies as late as allowed; skips like `checked_driver`."""
    return Emulator(copies="late", order="shuffled")


@pytest.mark.parametrize(("block", "what"), SMALL)
def test_copies_that_land_late_change_no_bit(driver, late_driver, block, what):
    assert_same_bits(block.run(late_driver, what), block.run(driver, what))


@pytest.mark.parametrize("storage", cuda_forms.STORAGES, ids=lambda s: s.precision)
@pytest.mark.parametrize("what", TENSOR)
def test_nan_stays_visible(driver, what, storage):
    block = Block(1, 2, (5, 4), 12, 8, (2, 2), drop=False, storage=storage)
    name = "y_below" if what == "forward" else "dx"
    block.arrays[name][0, 1, 2, 2, 5] = np.nan
    block.arrays["y"] += 1  # so that the ReLU passes all gradients
    found = block.added_up(what, block.run(driver, what))
    expected = block.expected(what)
    for result, array in expected.items():
        np.testing.assert_array_equal(np.isnan(found[result]), np.isnan(array), err_msg=result)
    assert any(np.isnan(array).any() for array in expected.values())


# ---------------------------------------------------------------------------------------------
# Planted faults

WAIT = "wait_copies<1>();  // for this tap's weights"
BARRIER = "__syncthreads();  // weights and pixels are there; the last tap's are free"
both_ways = pytest.mark.parametrize("what", ["forward", "input gradient"])


def without(line, folder):
    """The folder, with a copy of the kernels whose correlation.cuh lacks a line."""
    source = (SOURCES / "correlation.cuh").read_text()
    assert source.count(line) == 1
    (folder / "correlation.cuh").write_text(source.replace(line, ""))
    for what in ("forward", "input gradient"):
        shutil.copy(SOURCES / TENSOR[what][1], folder)
    return folder


each_line = pytest.mark.parametrize("line", [WAIT, BARRIER], ids=["wait", "barrier"])


@pytest.mark.full(but="early")
@both_ways
@each_line
@pytest.mark.parametrize("block", [RAGGED[0], RAGGED[0].in_bfloat16()], ids=list(BY_STORAGE))
@pytest.mark.parametrize("copies", ["early", "late"])
def test_a_missing_wait_or_barrier_is_found(checked_driver, copies, block, line, what, tmp_path):
    driver = Emulator(checked=True, copies=copies) if copies == "late" else checked_driver
    early = "which an asynchronous copy has not reached|(in|of) this block has (written|read)"
    with pytest.raises(KernelFault, match=early):
        block.run(driver, what, folder=without(line, tmp_path))


BETWEEN = "__syncthreads();\n        for (int step = share"  # staging, products


@pytest.mark.parametrize("block", [RAGGED[0], RAGGED[0].in_bfloat16()], ids=list(BY_STORAGE))
def test_a_missing_barrier_before_the_weight_gradients_products_is_found(
    checked_driver, block, tmp_path
):
    """Their operands are read where others have staged them, in bfloat16 by whole rows."""
    source = (SOURCES / "block_weight_gradient.cu").read_text()
    assert source.count(BETWEEN) == 1
    changed = source.replace(BETWEEN, BETWEEN.removeprefix("__syncthreads();"))
    (tmp_path / "block_weight_gradient.cu").write_text(changed)
    with pytest.raises(KernelFault, match=r"(in|of) this block has written"):
        block.run(checked_driver, "weight gradient", folder=tmp_path)


@both_ways
@each_line
def test_without_it_tensor_cores_get_values_that_are_not_tf32(late_driver, line, what, tmp_path):
    with pytest.raises(KernelFault, match="gives a tensor core a number that is not TF32"):
        RAGGED[0].run(late_driver, what, folder=without(line, tmp_path))


# ---------------------------------------------------------------------------------------------
# Partial sums, and dropout's bits


@pytest.fixture(params=["driver", "checked_driver"])
def each_driver(request):
    """The driver under test, and the emulator with every access checked."""
    return request.getfixturevalue(request.param)


def test_partial_sums_are_added_in_order(each_driver):
    driver = each_driver
    random = np.random.default_rng(3)
    parts = random.normal(size=(2, 900)).astype(np.float32)
    rows = [5, 3, 1, 20, 40, 20], [65, 1, 2, 7, 0, 7], [72, 4, 2, 92, 70, 90]
    table = np.array(rows, np.int32)
    expected = np.full((2, 200), 9, np.float32)
    for begin, count, halves, step, to, length in table:
        for e in range(2):
            total = np.zeros(length, np.float32)
            for part in range(count):
                own = [parts[e, begin + i * step :][:length] for i in (part, part + count)]
                total += own[0] + own[1] if halves == 2 else own[0]
            expected[e, to : to + length] = total
    gradients = driver.to_device(np.full((2, 200), 9, np.float32))
    arguments = driver.to_device(table.reshape(-1)), driver.to_device(parts), gradients
    with driver.session():
        driver.launch("sum_parts.cu", "sum_parts", (3,), (32,), *arguments)
    np.testing.assert_array_equal(driver.to_host(gradients), expected)


@pytest.mark.parametrize("lengths", [(1,), (5, 3), (2, 300, 1)])
def test_dropouts_bits_are_those_of_the_words(each_driver, lengths):
    driver = each_driver
    nets, seed, step, count = np.array([3, 70000]), 11, np.array([2**31]), sum(lengths)
    thresholds = [2**30, 2**32 - 1, 2**31][: len(lengths)]
    begins = np.cumsum([0, *lengths])
    rows = [(begins[i], 16 + 3 * i, t) for i, t in enumerate(thresholds)]
    expected = [
        [
            rng.random_words(seed, int(net), stream, int(step[0]), np.empty(32 * n, np.uint32)) >= t
            for (_, stream, t), n in zip(rows, lengths, strict=True)
        ]
        for net in nets
    ]
    kept = driver.to_device(poison((2, count), np.uint32))
    table = driver.to_device(np.array(rows, np.uint32).reshape(-1))
    arguments = table, len(rows), count, seed, driver.to_device(nets), driver.to_device(step), kept
    with driver.session():
        driver.launch("dropout.cu", "dropout_bits", (-(-count // 64),), (64,), *arguments)
    for words, bits in zip(driver.to_host(kept), expected, strict=True):
        found = block_oracles.unpack(words, 32 * count)
        np.testing.assert_array_equal(found, np.concatenate(bits))
