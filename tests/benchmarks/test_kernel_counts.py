"""Bounds on what a training step's kernels do, as the emulator counts it; the command and ladder.

The counts are exact: a count above its bound means that a kernel got worse.
"""

import json
import re
from collections import Counter

import numpy as np
import pytest

from benchmarks import counts, timing
from benchmarks.counts import Limits
from minicnn.backends.cuda_block_arrays import arrays_layout
from minicnn.backends.cuda_blocks import fusion
from minicnn.backends.cuda_costs import NETS
from minicnn.backends.cuda_forms import BFLOAT16, TF32
from minicnn.emulator import Counts, Emulator
from minicnn.network.layers import Conv2D
from minicnn.recipe import RECIPES

BATCH = 3
IN_FULL = pytest.mark.full(beside="test_a_step_in_16_bits_moves_at_most_950_mb")
PARTS = "forward", "input gradient", "weight gradient"  # of a step, which have tables
LAYERS = {n.name: n for n in RECIPES["seed"].nodes if isinstance(n.layer, Conv2D)}


@pytest.fixture(scope="module")
def rows(cuda_device):
    """The counts of a step of one net, layer by layer; a GPU runs the same kernels."""
    if cuda_device != "emulated":
        pytest.skip("needs the emulator")
    return counts.count_step(1, BATCH, "implicit")


def of_one_net(version):
    """The counts of a step of fused blocks, of one net among the 15 that the grids are cut for."""
    rows = counts.count_step(NETS, BATCH, version)
    return [r._replace(counts=Counts(*(count // NETS for count in r.counts))) for r in rows]


@pytest.fixture(scope="module")
def fused(cuda_device):
    """The counts of a step of fused blocks."""
    if cuda_device != "emulated":
        pytest.skip("needs the emulator")
    return of_one_net("fused")


@pytest.fixture(scope="module")
def sixteen(cuda_device):
    """The same in bfloat16."""
    if cuda_device != "emulated":
        pytest.skip("needs the emulator")
    return of_one_net("bfloat16")


def of_layer(rows, layer, kernel):
    """The counts of the only launch of a layer whose kernel's name begins so."""
    [row] = [r for r in rows if r.layer == layer and r.kernel.startswith(kernel)]
    return row.counts


def numbers(shape):
    return int(np.prod(shape))


def convolution_bytes(node):
    """{what: bytes} of a convolution's arrays, for the batch."""
    window = node.layer.window(node.input_shape)
    K = numbers(window.size) * node.input_shape[-1]
    return {
        "x": 4 * BATCH * numbers(node.input_shape),
        "y": 4 * BATCH * numbers(node.output_shape),
        "kernel": 4 * K * node.layer.filters,
        "bias": 4 * node.layer.filters,
        "flops": 2 * BATCH * numbers(node.output_shape) * K,
    }


# ---------------------------------------------------------------------------------------------
# Bounds


def test_warps_touch_no_more_sectors_than_their_bytes_fill(rows):
    """Exceptions: small kernels, and the first layer, whose rows of 3 taps fill no sector."""
    small = "load_batch", "gemm", "gemm_left_transposed", "gemm_right_transposed"
    for row in rows:
        if row.kernel in small or row.layer == "conv2d":
            continue
        c, what = row.counts, f"{row.layer} {row.kernel}"
        assert c.load_sectors <= 1.03 * c.ideal_load_sectors, what
        assert c.store_sectors == c.ideal_store_sectors, what
    first = [r.counts for r in rows if r.layer == "conv2d" and r.kernel.startswith("conv_")]
    assert len(first) == 3
    for c in first:
        assert c.load_sectors <= 1.6 * c.ideal_load_sectors
        assert c.store_sectors == c.ideal_store_sectors


def test_shared_memory_has_no_bank_conflicts(rows):
    used = [row.counts for row in rows if row.counts.shared_requests]
    assert len(used) > 40
    for c in used:
        assert c.shared_wavefronts <= 1.1 * c.ideal_shared_wavefronts


@pytest.mark.parametrize("layer", LAYERS)
def test_a_convolution_reads_and_writes_its_arrays_and_nothing_else(rows, layer):
    """In distinct bytes, the least memory traffic."""
    node = LAYERS[layer]
    sizes = convolution_bytes(node)
    forward = of_layer(rows, layer, "conv_implicit_forward")
    reached = sizes["x"] + sizes["kernel"] + sizes["bias"]
    assert 0.8 * reached < forward.bytes_read <= reached  # a stride may pass over the last pixels
    assert forward.bytes_written == sizes["y"]
    weights = of_layer(rows, layer, "conv_implicit_weight_gradient")
    assert weights.bytes_read <= sizes["x"] + sizes["y"]
    splits = -(-BATCH * numbers(node.output_shape[:2]) // 1024)
    assert weights.bytes_written == splits * (sizes["kernel"] + sizes["bias"])
    sums = of_layer(rows, layer, "conv_implicit_sum_parts")
    assert sums.bytes_read == weights.bytes_written
    assert sums.bytes_written == sizes["kernel"] + sizes["bias"]
    if layer != "conv2d":
        inputs = of_layer(rows, layer, "conv_implicit_input_gradient")
        assert inputs.bytes_read == sizes["y"] + sizes["kernel"]
        assert inputs.bytes_written == sizes["x"]


@pytest.mark.parametrize("layer", list(LAYERS)[1:6])
def test_a_convolution_reads_an_element_a_dozen_times_at_most(rows, layer):
    """From the cache; without tiles in shared memory it would read one for each product."""
    for part in ("forward", "input_gradient", "weight_gradient"):
        c = of_layer(rows, layer, f"conv_implicit_{part}")
        assert 32 * c.load_sectors <= 12 * c.bytes_read


@pytest.mark.parametrize("layer", list(LAYERS)[1:5])
def test_tiles_and_borders_add_little_arithmetic(rows, layer):
    """The last two layers have too few pixels in this batch to fill a tile."""
    needed = convolution_bytes(LAYERS[layer])["flops"]
    for part, most in (("forward", 1.2), ("input_gradient", 1.75), ("weight_gradient", 1.4)):
        flops = of_layer(rows, layer, f"conv_implicit_{part}").flops
        assert needed <= flops <= most * needed, part


def test_adam_moves_its_arrays_once(rows):
    [adam] = [row.counts for row in rows if row.kernel == "adam"]
    P = RECIPES["seed"].model(range(1, 2), "numpy").params.shape[1]
    arrays = 4 * P
    assert 0 <= adam.bytes_read - 4 * arrays < 100  # w, g, m, v; step and rate
    assert adam.bytes_written == 3 * arrays


def test_a_step_takes_at_most_104_launches(rows):
    assert len(rows) <= 104
    assert {row.layer for row in rows} >= set(LAYERS)
    assert [r.kernel for r in rows if not r.layer][:1] == ["load_batch"]


# ---------------------------------------------------------------------------------------------
# The step of fused blocks


def weights_bytes(batch, storage):
    """Bytes that a fused step moves for its weights: kernels, partial sums, Adam's arrays, tables.

    They do not grow with the batch, but the tiles depend on it.
    """
    nodes = RECIPES["seed"].nodes
    network = fusion(nodes, batch, storage)
    P = RECIPES["seed"].model(range(1, 2), "numpy").params.shape[1]
    # Adam's arrays; the dense layer's gradients. Those of blocks are partial sums, single or not.
    numbers = 6 * P + 2 * sum(np.prod(spec.shape) for spec in network.dense.specs.values())
    layout = arrays_layout(network, nodes, 1, batch, True, np.dtype(np.float32))
    numbers += 2 * layout["packed"][0][1]  # the packed weights: written, read by a correlation each
    tables = [key for key in layout if key in ("weights", "sums", "drops") or key[0] in PARTS]
    numbers += sum(np.prod(layout[key][0]) for key in tables)
    above = [block.input_gradient.parts for block in network.blocks[1:]] + [1]
    for block, sums in zip(network.blocks, above, strict=True):
        if block.rebuilt:
            # its gradients, and the sums over pixels that they follow from: written, read; its
            # weights: read for its moments, and by the three launches of the block above
            numbers += (2 + 2 * sums + 2 * 2 * block.forward.parts + 4) * block.weights
        else:
            numbers += 2 * block.weight_gradient.parts * block.weights
            numbers += block.weights  # read to pack them, or by the first block
        numbers += 2 * 3 * block.forward.parts * block.filters  # the moments: written, read
        # The gradient's sums: written, read for the gradients of the weights, and of the input;
        # the gradients of gamma and beta: written, read
        numbers += (2 + bool(block.input_gradient)) * 2 * sums * block.filters
        numbers += 2 * 2 * block.filters
        # Of a channel: bias; gamma, beta, mean and variance for the launch above (mean and variance
        # are written then); gamma, mean and variance for its own gradients; for those of the block
        # above, what normalises its input; the update of the moving statistics.
        own, last = 1 + 4 + 3 + 3 * bool(block.input_gradient), block is network.blocks[-1]
        numbers += (own + (0 if last else 4 + 2) + 6) * block.filters
    return 4 * numbers


def passes(rows, batch, storage=TF32):
    """Distinct bytes of all launches, divided by the size of all convolutions' outputs; batch 64.

    The bytes that grow with the batch are scaled from `batch` to 64.
    """
    moved = sum(row.counts.bytes_read + row.counts.bytes_written for row in rows)
    of_images, after = moved - weights_bytes(batch, storage), weights_bytes(64, storage)
    return (of_images * 64 / batch + after) / counts.activations_bytes(1, 64)


def test_a_fused_step_takes_26_launches(fused, sixteen):
    for rows in fused, sixteen:
        assert len(rows) == 26
        by_part = Counter(row.part for row in rows)
        assert by_part == {
            "forward": 7, "weight gradient": 7, "input gradient": 6, "both": 1, "": 5,
        }  # fmt: skip


def test_adam_reads_partial_sums_once_and_writes_no_gradient(fused, sixteen):
    P = sum(weight.size for weight in RECIPES["seed"].model(range(1, 2), "numpy").trainable_weights)
    nodes = RECIPES["seed"].nodes
    for rows, storage in ((fused, TF32), (sixteen, BFLOAT16)):
        [adam] = [row.counts for row in rows if row.kernel == "adam_from_parts"]
        network = fusion(nodes, BATCH, storage)
        moving = sum(2 * block.filters for block in network.blocks)
        assert adam.bytes_written == 4 * (3 * P + moving)
        parts = sum(np.prod(spec.shape) for spec in network.dense.specs.values())
        for block in network.blocks:
            of_weights = 1 if block.rebuilt else block.weight_gradient.parts
            parts += of_weights * block.weights + 2 * block.filters
        table = adam.bytes_read - 4 * (3 * P + 2 * moving + parts)
        assert 0 < table < 20 * P / 512  # five integers for each thread block; step and rate


def test_a_fused_step_passes_over_the_activations_eight_times_at_most(fused):
    assert 6 < passes(fused, BATCH) <= 8


def test_a_step_in_16_bits_moves_at_most_950_mb(sixteen):
    """15 nets, batch 64: passes over activations in 32 bits."""
    assert 4 < passes(sixteen, BATCH, BFLOAT16) <= 0.95e9 / counts.activations_bytes(15, 64)


@pytest.mark.parametrize(
    ("version", "gigabytes", "wavefronts", "milliseconds"),
    [
        pytest.param("fused", 1.57, 122e6, 0.64, marks=pytest.mark.slow),
        pytest.param("bfloat16", 0.95, 75e6, 0.35, marks=IN_FULL),
    ],
)
def test_a_whole_batch_stays_within_bounds(
    cuda_device, version, gigabytes, wavefronts, milliseconds
):
    """Of 15 nets: memory traffic, wavefronts of shared memory, the ladder's least time."""
    found = counts.summarize_step(version, 15, 64)["step"]
    assert found["launches"] <= 26
    assert found["memory_bytes"] <= 1e9 * gigabytes
    assert found["shared_wavefronts"] <= wavefronts
    assert found["seconds"] <= milliseconds / 1e3


def test_fused_blocks_read_and_write_whole_sectors_without_bank_conflicts(fused):
    hot = [row for row in fused if row.kernel.startswith("block_")]
    assert len(hot) == 18
    for row in hot:
        c, what = row.counts, f"{row.layer} {row.kernel}"
        assert c.shared_wavefronts <= 1.01 * c.ideal_shared_wavefronts, what
        assert c.load_sectors <= 1.02 * c.ideal_load_sectors, what
        assert c.store_sectors == c.ideal_store_sectors, what


def test_blocks_in_16_bits_read_and_write_whole_sectors(sixteen):
    """Staging has a few bank conflicts, where two pixels are stored at once."""
    hot = [row for row in sixteen if row.kernel.startswith("block_")]
    assert len(hot) == 18
    for row in hot:
        c, what = row.counts, f"{row.layer} {row.kernel}"
        assert c.shared_wavefronts <= 1.16 * c.ideal_shared_wavefronts, what
        assert c.load_sectors <= 1.1 * c.ideal_load_sectors, what
        assert c.store_sectors == c.ideal_store_sectors, what
    total, ideal = (
        sum(getattr(row.counts, name) for row in hot)
        for name in ("shared_wavefronts", "ideal_shared_wavefronts")
    )
    assert total <= 1.03 * ideal


def test_what_is_rebuilt_is_read_and_written_nowhere(fused, sixteen):
    """Neither the first block's y nor its dx; in its place the image, in whole sectors."""
    first, second = list(LAYERS)[:2]
    image, own = convolution_bytes(LAYERS[first])["x"], convolution_bytes(LAYERS[second])
    for rows, size in ((fused, 1), (sixteen, 2)):
        moments = of_layer(rows, first, "rebuilt_moments")
        assert moments.bytes_read < image + 2**14 and moments.bytes_written < 2**17
        assert moments.shared_wavefronts <= 1.3 * moments.ideal_shared_wavefronts
        assert moments.load_sectors <= 1.25 * moments.ideal_load_sectors
        for kernel, arrays in (("block_forward", 0), ("block_input", 2), ("block_weight", 2)):
            c = of_layer(rows, second, kernel)
            assert c.bytes_read < image + arrays * own["y"] / size + 2**17, kernel
        assert of_layer(rows, second, "block_input").bytes_written < 2**16 < own["x"] / size


@pytest.mark.parametrize("layer", list(LAYERS)[1:])
def test_tensor_cores_compute_all_products(fused, sixteen, layer):
    """They may compute more, at the edges of tiles: cuda_tiles.py chooses tiles by that."""
    needed = convolution_bytes(LAYERS[layer])["flops"]
    for rows in fused, sixteen:
        steps = [row.counts.tensor_flops for row in rows if row.layer == layer]
        assert len(steps) == 3
        assert min(steps) >= needed


def test_a_forward_launch_reads_and_writes_its_activations_once(fused):
    """A forward launch reads what is below and writes its own, in distinct bytes."""
    for name, below in list(zip(list(LAYERS)[1:], LAYERS.values(), strict=False))[1:]:
        sizes = convolution_bytes(LAYERS[name])
        read_below = 4 * BATCH * numbers(below.output_shape)
        assert read_below == sizes["x"]
        forward = of_layer(fused, name, "block_forward")
        assert forward.bytes_written < 1.1 * sizes["y"] + 2**15
        assert forward.bytes_read < sizes["x"] + sizes["kernel"] + 2**16


@pytest.mark.full(beside="test_a_fused_step_takes_26_launches")
def test_counts_are_the_same_each_time_and_for_each_net():
    one, again = (counts.count_step(nets, 1, "implicit") for nets in (1, 2))
    assert [r.counts for r in again] == [Counts(*(2 * n for n in r.counts)) for r in one]
    both = Emulator(checked=True)
    counts.run_step(both, both.counted, 2, 1, "implicit")
    for row, counted in zip(again, both.counted, strict=True):
        assert row.kernel == counted.kernel
        if row.kernel.startswith(("conv_", "batch_norm_")):  # others share numbers between nets
            assert row.counts == counted.counts, row.kernel


# ---------------------------------------------------------------------------------------------
# The command


def test_the_limit_that_is_reached_first_sets_the_time():
    zeros = Counts(*[0] * len(Counts._fields))
    limits = Limits(100.0, 200.0, 512.0, tensor=1000.0, tensor_bfloat16=4000.0)
    made = zeros._replace(
        bytes_read=30, bytes_written=20, load_sectors=4, store_sectors=1, shared_wavefronts=3,
        flops=64, tensor_flops=100,
    )  # fmt: skip
    row = counts.Row("fused", "conv2d", "forward", "kernel", 5, 32, made)
    expected = {"memory": 0.5, "cache": 0.8, "shared": 1.5, "arithmetic": 0.125, "tensor": 0.1}
    assert limits.seconds(row) == expected
    assert limits.seconds(row._replace(version="bfloat16")) == {**expected, "tensor": 0.025}
    [line] = counts.table([row], limits).to_dict("records")
    assert line["us"] == 1.5e6 and line["limit"] == "shared"
    assert np.isnan(line["loads"])  # nothing to compare with


def test_a_convolutions_launches_are_summed_by_pass(rows, fused):
    for version, of_step in (("implicit", rows), ("fused", fused)):
        by_pass = {
            name: counts.summarize(
                [row for row in of_step if counts.convolution_pass(row) == name], counts.H200
            )
            for name in counts.PASSES
        }
        sums = 14 if version == "implicit" else 7  # one launch more where partial sums are added
        assert [found["launches"] for found in by_pass.values()] == [7, 6, sums]
        step = counts.summarize(of_step, counts.H200)
        assert step["launches"] == len(of_step)
        assert step["flops"] == sum(row.counts.flops for row in of_step)
        assert sum(found["memory_bytes"] for found in by_pass.values()) < step["memory_bytes"]
        seconds = counts.table(of_step, counts.H200)["us"].sum() / 1e6
        assert step["seconds"] == pytest.approx(seconds)


def test_the_ladder_counts_what_is_asked_and_keeps_the_others(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(counts, "registers", lambda *given: {})
    monkeypatch.setattr(counts.cuda, "nvrtc_version", lambda: (13, 5))
    monkeypatch.setattr(counts, "summarize_step", lambda *given: {"step": {"seconds": given[1]}})
    last, out = timing.newest("ladder-emulated"), tmp_path / "ladder.json"
    counts.main(["--ladder", "fused", "--out", str(out)])
    found = json.loads(out.read_text())
    assert list(found["versions_counted"]) == list(counts.STEPS)
    for version in counts.STEPS:
        same = found["versions_counted"][version] == last["versions_counted"][version]
        assert same == (version != "fused")
    assert capsys.readouterr().out == "fused: 15000.00 ms\n"
    with pytest.raises(SystemExit) as stopped:
        counts.main(["--ladder", "fused", "--nets=3", "--out", str(out)])
    assert stopped.value.code == 2
    message = "argument --ladder: the last result has another number of nets or images"
    assert capsys.readouterr().err == f"benchmarks.counts: error: {message}\n"
    with pytest.raises(SystemExit):
        counts.main(["--out", str(out)])
    assert "argument --out: only --ladder writes a file" in capsys.readouterr().err
    counts.main(["--ladder", "--nets=3", "--out", str(out)])
    assert json.loads(out.read_text())["nets"] == 3


@pytest.mark.full(but="fused")
@pytest.mark.parametrize("version", ["naive", "im2col", "fused", "bfloat16"])
def test_the_command_prints_a_line_for_each_launch(cuda_device, version, monkeypatch, capsys):
    if cuda_device != "emulated":
        pytest.skip("needs the emulator")
    count_step, counted = counts.count_step, []
    monkeypatch.setattr(
        counts, "count_step", lambda *given: counted.extend(count_step(*given)) or counted
    )
    counts.main(["--nets=2", "--batch=1", f"--version={version}"])
    lines = capsys.readouterr().out.splitlines()
    kernels_of = {"naive": "conv_naive_forward", "im2col": "col2im"}
    kernel = kernels_of.get(version, "block_forward")
    assert sum(kernel in line for line in lines) == sum(r.kernel == kernel for r in counted) > 5
    assert re.match(rf"{len(counted)} launches\. \d+ MB read and written", lines[-1])
    assert all(count % 2 == 0 for row in counted for count in row.counts)  # of two nets
