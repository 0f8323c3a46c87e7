"""How launches of fused blocks split their work: the limits of a choice, and its estimated time."""

import re
from fractions import Fraction
from itertools import product
from math import ceil, prod

import pytest

from benchmarks import tiles
from minicnn.backends import cuda_forms, cuda_tiles
from minicnn.backends.cuda_costs import NETS, SHARE
from minicnn.backends.kernel import SOURCES
from minicnn.network.geometry import Window
from minicnn.network.layers import Conv2D
from minicnn.recipe import RECIPES

BATCH = 64
CONVOLUTIONS = [n for n in RECIPES["seed"].nodes if isinstance(n.layer, Conv2D)][1:]
PASSES = "forward", "input_gradient", "weight_gradient"
each_storage = pytest.mark.parametrize("storage", cuda_forms.STORAGES, ids=lambda s: s.precision)


def launch_of(node, what, storage=cuda_forms.TF32):
    """(geometry.Window, TiledLaunch) of a layer's pass."""
    window = node.layer.window(node.input_shape)
    if what == "input_gradient":
        window = cuda_tiles.gradient_window(window)
    channels, filters = node.input_shape[-1], node.layer.filters
    ways = getattr(cuda_tiles, what)(window, channels, filters, BATCH, storage)
    return window, cuda_tiles.best(ways)


def define(launch, name):
    """The value of one of the launch's defines."""
    return int(dict(d.split("=") for d in launch.defines)[name])


def places_of(node, what, storage):
    """The staged places of a tile's results, in order, relative to the first: in pixels."""
    window, launch = launch_of(node, what, storage)
    t = launch.tiling
    of_phases = window.phases if what == "input_gradient" else [[], []]
    columns = max((p.count for p in of_phases[1]), default=window.output[1])
    step = 1 if what == "input_gradient" else window.strides[0]
    return [
        image * t["image_pitch"] + row * step * t["row_pitch"] + column
        for image in range(t["images"])
        for row in range(t["rows"])
        for column in range(columns)
    ]


@each_storage
@pytest.mark.parametrize("what", PASSES)
@pytest.mark.parametrize("node", CONVOLUTIONS, ids=lambda node: node.name)
def test_a_choice_fits_every_gpu_and_wastes_little(node, what, storage):
    window, launch = launch_of(node, what, storage)
    t = launch.tiling
    assert launch.shared_bytes <= 99 << 10
    assert launch.threads % 32 == 0 and launch.threads <= define(launch, "FORM_THREADS")
    assert launch.grid[0] <= ceil(BATCH / t["images"]) * t["bands"]
    if what == "weight_gradient":
        return
    of_phases = window.phases if what == "input_gradient" else [[], []]
    columns = max((p.count for p in of_phases[1]), default=window.output[1])
    pixels = t["images"] * t["rows"] * columns
    places = t["pixel_warps"] * define(launch, "FORM_GROUPS") * 8
    # The last layer has one pixel an image. In TF32 four warps share its results, but in 16 bits a
    # tap has only two steps.
    most = 2 if storage is cuda_forms.BFLOAT16 and window.output == (1, 1) else 1.5
    assert pixels <= places <= most * pixels  # of a tile, in whole warps
    splits = define(launch, "FORM_SPLITS")
    assert launch.threads == 32 * t["pixel_warps"] * t["channel_warps"] * splits


@pytest.mark.parametrize("what", PASSES)
def test_the_estimated_time_of_a_step_is_short(what):
    """In clocks of a multiprocessor, at an H200's 1.755 GHz, on which the model was fitted."""
    microseconds = sum(launch_of(node, what)[1].clocks for node in CONVOLUTIONS) / 1755
    most = {"forward": 410, "input_gradient": 540, "weight_gradient": 425}[what]
    assert 0.8 * most < microseconds <= most


@each_storage
@pytest.mark.parametrize("what", PASSES)
def test_consecutive_pixels_lie_in_different_banks(what, storage):
    """Also across the ends of rows and images, as far as strides allow."""
    run, pitch, words = 4, storage.pitch, 8
    if what == "weight_gradient":
        run, pitch = storage.weights_run, storage.weights_pitch
        words = 32 // run
    for node in CONVOLUTIONS:
        places = places_of(node, what, storage)
        runs = [places[i : i + run] for i in range(0, len(places) - run + 1, run)]
        banks = [{(p * pitch + word) % 32 for p in of for word in range(words)} for of in runs]
        good = sum(len(of_run) == 32 for of_run in banks)
        assert good >= 0.9 * len(runs), (node.name, what)


# ---------------------------------------------------------------------------------------------
# Grids

each_launch = pytest.mark.parametrize(
    ("node", "what"), list(product(CONVOLUTIONS, PASSES)), ids=lambda v: getattr(v, "name", v)
)


@each_storage
@each_launch
def test_only_the_grid_depends_on_the_nets_and_the_gpu(node, what, storage):
    """And whether a thread block adds up a pair of runs; test_blocks.py shows that no bit does."""
    _, launch = launch_of(node, what, storage)
    tiles, runs, pairs = launch.tiling["tiles"], launch.tiling["runs"], launch.halves == 2
    assert runs <= tiles and (runs <= 132 or runs == launch.cut(SHARE).grid[0])
    for nets, multiprocessors in product((1, 2, 5, 15, 40), (4, 24, 132, 192)):
        share = Fraction(multiprocessors, nets)
        cut = launch.cut(share)
        same = cut._replace(grid=launch.grid, parts=launch.parts, tiling=launch.tiling)
        assert same == launch
        assert {**cut.tiling, "parts": runs} == launch.tiling
        blocks, blocks_y = cut.grid
        assert blocks_y == launch.grid[1] and blocks <= cut.tiling["parts"]
        # All thread blocks fit at once, unless there is one for a net alone.
        assert blocks == 1 or blocks * blocks_y <= share * launch.at_once
        fold = runs // cut.tiling["parts"]
        assert fold in ((1, 2) if pairs else (1,)) and cut.adds_later == (pairs and fold == 1)
        assert cut.parts == launch.parts // fold
        assert cut.cut(SHARE) == launch.cut(SHARE)


@each_storage
@each_launch
def test_nets_that_fill_the_gpu_lose_nothing(node, what, storage):
    """A thread block of 15 nets computes as many tiles as if the grid were cut for them alone."""
    _, launch = launch_of(node, what, storage)
    tiles, (_, blocks_y) = launch.tiling["tiles"], launch.grid
    cut = launch.cut(SHARE)
    rounds = ceil(tiles / min(tiles, max(1, int(SHARE * launch.at_once) // blocks_y)))
    of_block = ceil(cut.tiling["parts"] / cut.grid[0])
    runs = [
        run
        for part in range(of_block)
        for run in range(part, launch.tiling["runs"], cut.tiling["parts"])
    ]
    assert sum(len(range(run, tiles, launch.tiling["runs"])) for run in runs) == rounds


@each_storage
def test_one_net_uses_as_much_of_the_gpu_as_its_tiles_allow(storage):
    """Weight gradients less, since their partial sums are large: the input gradient runs beside."""
    for node, what in product(CONVOLUTIONS, PASSES):
        _, launch = launch_of(node, what, storage)
        alone, before = launch.cut(Fraction(132)), launch.cut(SHARE)
        assert what == "weight_gradient" or alone.grid[0] == launch.tiling["runs"]
        assert prod(alone.grid) >= prod(before.grid)


def test_one_net_takes_a_third_of_the_time_of_fifteen():
    """By the model, in microseconds: of the launches of all blocks but the first."""
    for (apart, together), most in (
        (tiles.totals(BATCH)["tf32"][1], (510, 345)),
        (tiles.totals(BATCH)["bfloat16"][1], (475, 315)),
        (tiles.totals(BATCH)["tf32"][NETS], (1325, 925)),
        (tiles.totals(BATCH)["bfloat16"][NETS], (1105, 785)),
    ):
        assert 0.9 * most[0] < apart <= most[0] and 0.9 * most[1] < together <= most[1]


def test_what_a_whole_window_meets_once_has_phases_of_one_tap():
    window = Window.fit((4, 4), (1, 1), "valid", (4, 4))
    assert cuda_tiles.gradient_window(window).phases != window.phases
    assert all(p.taps == 1 for of in cuda_tiles.gradient_window(window).phases for p in of)
    padded = Window.fit((3, 3), (1, 1), "same", (1, 1))
    assert cuda_tiles.gradient_window(padded) is padded


def test_a_layer_for_which_nothing_fits_has_no_launch():
    wide = Window.fit((1, 200), (1, 1), "valid", (3, 3000))
    assert not cuda_tiles.forward(wide, 32, 32, 1)
    assert not cuda_tiles.weight_gradient(wide, 32, 32, 1)
    assert not cuda_tiles.first_forward(Window.fit((9, 9), (1, 1), "valid", (9, 999)), 7, 512, 1)
    assert cuda_tiles.best([]) is None
    assert cuda_tiles.head(1 << 20, 32, 10, 4) is None
    images, size = cuda_tiles.head(128, 128, 10, 10_000)
    assert 64 < images < 10_000 and size <= 99 << 10


def test_python_and_the_kernels_have_the_same_numbers():
    names = "CHUNK STATISTICS SUMS PIVOTED SHARERS".split()
    text = (SOURCES / "block.cuh").read_text()
    for name in names:
        assert int(re.search(rf"constexpr int {name} = (\d+)[;,]", text)[1]) == getattr(
            cuda_tiles, name
        )
    first, head = ((SOURCES / f).read_text() for f in ("block_first.cu", "head.cu"))
    assert f"constexpr int THREADS = {cuda_tiles.FIRST_THREADS};" in first
    assert f"constexpr int ROWS = {cuda_tiles.FIRST_ROWS};" in first
    assert f"constexpr int THREADS = {cuda_tiles.HEAD_THREADS};" in head
    correlation = (SOURCES / "correlation.cuh").read_text()
    assert "constexpr int PITCH = WORDS + 8;" in correlation
    weights = (SOURCES / "block_weight_gradient.cu").read_text()
    assert "constexpr int PITCH = PER_WORD == 1 ? WORDS + 8 : WORDS + 4;" in weights
    for storage in cuda_forms.STORAGES:
        assert storage.words * 4 == cuda_forms.CHUNK * storage.dtype.itemsize
        assert storage.pitch == storage.words + 8
        assert storage.weights_pitch == storage.words + (8 if storage.per_word == 1 else 4)
    assert f"constexpr int WARP = {cuda_forms.WARP};" in (SOURCES / "reduce.cuh").read_text()
