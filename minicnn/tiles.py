"""How the kernels of fused blocks cut their work: a choice for each layer and pass, from a model.

A tile is some rows of an image or several images; a block of threads makes one tile after another.
Which tile is best follows from counts: multiplications, turns of shared memory, bytes from the
cache, and how many blocks a multiprocessor holds at a time, so that one can multiply while another
one waits. The choice depends on the layer and the batch alone, so that the bits of a net depend on
nothing else: the model's GPU is fixed, about an H200, and so is the ensemble's size. All tiles fit
the 99 KB of shared memory that a block can have on any GPU with tensor cores for TF32.

benchmarks/tiles.py prints the choices for the seed network. Read kernels/block.cuh next.
"""

from dataclasses import replace
from math import ceil, prod
from typing import NamedTuple

# ---- of the kernels; block.cuh and correlation.cuh have the same
CHUNK, PITCH, WARP = 32, 40, 32
STAGES, WEIGHT_GAP = 3, 4
STATISTICS, SUMS, PIVOTED = 3, 2, 4
MOST_TAPS = 128
FIRST_THREADS, FIRST_ROWS = 256, 9  # block_first.cu's

# ---- of the model
NETS, MULTIPROCESSORS = 15, 132
SHARED_BYTES = 99 << 10  # of a block
ALL_SHARED_BYTES = 227 << 10  # of a multiprocessor; a block takes 1 KB more than it asks for
# Of a multiprocessor in a clock: multiplications of tensor cores in TF32, as mma.sync reaches them;
# bytes of shared memory; bytes from the second cache.
TENSOR, SHARED, CACHE = 640, 128, 40
WARPS_TO_BE_BUSY = 8  # of a multiprocessor, for tensor cores and shared memory at that rate
STAGING_CLOCKS = 3  # of a multiprocessor for eight channels' worth of a warp's staging
LATENCY = 1500  # clocks until what is asked of memory is there

# (GROUPS, SPLITS) that correlation.cuh is compiled for. All take up to 168 registers, so that a
# multiprocessor holds twelve warps.
FORWARD_FORMS = (6, 1), (5, 2), (4, 1), (4, 2), (4, 4)
GRADIENT_FORMS = (6, 1), (4, 1), (4, 2), (4, 4)
MOST_WARPS, WARPS_AT_ONCE = 6, 12


class Launch(NamedTuple):
    """How a kernel is launched: what it is compiled for, and how the work is cut."""

    defines: tuple
    tiling: dict  # block.cuh's struct
    grid: tuple
    threads: int
    shared_bytes: int
    parts: int  # that it leaves of what it sums
    clocks: float = 0.0  # that the model expects of a multiprocessor


class Axis(NamedTuple):
    """An axis of a correlation: result i meets the source from i * stride + start on, in `taps`.

    correlation.cuh has more of it.
    """

    count: int
    stride: int
    start: int
    taps: int


def forward(window, channels, filters, batch):
    """The Launch of block_forward; geometry.Window says the shapes."""
    axes = [
        [Axis(count, stride, -before, size)]
        for count, stride, before, size in zip(
            window.output, window.strides, window.before, window.size, strict=True
        )
    ]
    fixed = 2 * _padded(channels)
    return _best(FORWARD_FORMS, axes, channels, filters, batch, fixed, PIVOTED)


def input_gradient(window, channels, filters, batch):
    """The Launch of block_input_gradient, for gradient_window(window)."""
    axes = [[Axis(p.count, 1, p.start, p.taps) for p in phases] for phases in window.phases]
    fixed = 3 * _padded(filters) + 2 * _padded(channels)
    return _best(GRADIENT_FORMS, axes, filters, channels, batch, fixed, SUMS)


def gradient_window(window):
    """The window by which the gradient by the input is made.

    Where the window has but one place, and covers the whole input, its stride may be anything; by
    its own size each pixel meets one tap, by less it would meet mostly those that are outside.
    """
    if window.output == (1, 1) and window.size == window.input:
        return replace(window, strides=window.size)
    return window


def _best(forms, axes, channels, filters, batch, fixed, sums):
    """The Launch of a correlation that the model likes best.

    axes: those of the phases' rows and columns; `fixed`: numbers of shared memory for coefficients;
    `sums`: those kept for each channel.
    """
    launches = []
    rows = max(axis.count for axis in axes[0])
    for groups, splits in forms:
        for height in sorted({ceil(rows / bands) for bands in range(1, rows + 1)}):
            for images in range(1, min(batch, 32) + 1) if height == rows else [1]:
                for wide in range(1, min(2, ceil(filters / WARP)) + 1):
                    launch = _correlation(
                        groups, splits, images, height, wide, axes, channels, filters, batch, fixed,
                        sums,
                    )  # fmt: skip
                    if launch:
                        launches.append(launch)
    return min(launches, key=lambda launch: launch.clocks, default=None)


def _correlation(
    groups, splits, images, height, wide, axes, channels, filters, batch, fixed, sums
):
    """One way to launch a correlation; None where it does not fit."""
    phases = prod(map(len, axes))
    grid_groups = phases if phases > 4 else 1
    rows, columns = (max(axis.count for axis in of) for of in axes)
    stage = _staging(axes, images, height)
    pixel_warps = ceil(images * height * columns / (8 * groups))
    warps = pixel_warps * wide * splits
    width, chunks, taps = wide * WARP, ceil(channels / CHUNK), max(len(of) for of in axes)
    taps = sum(r.taps * c.taps for r in axes[0] for c in axes[1])
    reduction = (splits - 1) * pixel_warps * wide * groups * 8 * WARP
    area = max(images * stage["image_pitch"] * PITCH, reduction)
    ring = STAGES * CHUNK * (width + WEIGHT_GAP)
    shared = 4 * (fixed + pixel_warps * sums * width + area + ring)
    if warps > MOST_WARPS or shared > SHARED_BYTES or taps > MOST_TAPS:
        return None

    at_once = min(WARPS_AT_ONCE // warps, ALL_SHARED_BYTES // (shared + 1024 + 2048))
    bands = ceil(rows / height)
    tiles, blocks_y = ceil(batch / images) * bands, ceil(filters / width) * grid_groups
    blocks = min(tiles, max(1, MULTIPROCESSORS * at_once // (NETS * blocks_y)))
    blocks = ceil(tiles / ceil(tiles / blocks))  # as few as take the same time

    # Of a tile: multiplications, turns of shared memory, staging; all taps of all its phases
    steps = taps * chunks * CHUNK // 8  # of depth 8, for the pixels of one phase
    products = pixel_warps * groups * 8 * width * steps * 8 / TENSOR
    reading = pixel_warps * wide * steps * (8 + 2 * groups) * 128 / SHARED
    stagings = chunks * (phases // grid_groups if chunks > 1 or splits > 1 else 1)
    pixels = images * stage["source_rows"] * stage["source_columns"]
    staging = stagings * pixels * CHUNK / 4 / WARP * STAGING_CLOCKS * 4
    loading = (stagings * pixels * CHUNK * 4 + taps * chunks * CHUNK * width * 4) / CACHE
    at_work = min(at_once, blocks * blocks_y * NETS / MULTIPROCESSORS)
    tile = _tile_clocks(max(products, reading), staging, loading, stagings, at_work, warps)
    rounds = tiles * blocks_y * NETS / MULTIPROCESSORS
    uneven = ceil(tiles / blocks) * blocks / tiles
    tiling = {
        "images": images, "rows": height, "bands": bands, **stage, "pixel_warps": pixel_warps,
        "channel_warps": wide, "tap_step": 1, "groups": grid_groups, "area": area,
    }  # fmt: skip
    return Launch(
        _defines(FORM_GROUPS=groups, FORM_SPLITS=splits, FORM_THREADS=192, FORM_BLOCKS=2),
        tiling,
        (blocks, blocks_y),
        warps * WARP,
        shared,
        blocks * grid_groups,
        rounds * uneven * tile,
    )


def weight_gradient(window, channels, filters, batch):
    """The Launch of block_weight_gradient."""
    kh, kw = window.size
    taps = kw if kw in (3, 5) else 3 if kw < 3 else 5
    items = kh * ceil(kw / taps) * 2  # for a warp: a row's taps, by half of the channels
    item_warps = min(items, MOST_WARPS)
    groups = ceil(items / item_warps)
    item_warps = 2 * ceil(items / groups / 2)
    shares = MOST_WARPS // item_warps
    axes = [
        [Axis(count, stride, -before, size)]
        for count, stride, before, size in zip(
            window.output, window.strides, window.before, window.size, strict=True
        )
    ]
    slices = ceil(channels / CHUNK) * ceil(filters / CHUNK)
    rows, columns = window.output
    fixed = 2 * _padded(channels) + 3 * _padded(filters)
    launches = []
    for height in sorted({ceil(rows / bands) for bands in range(1, rows + 1)}):
        for images in range(1, min(batch, 32) + 1) if height == rows else [1]:
            stage = _staging(axes, images, height)
            pixels = 8 * ceil(images * height * columns / 8)
            staged = images * stage["source_rows"] * stage["source_columns"]
            area = images * stage["image_pitch"] * PITCH
            numbers = area + pixels * PITCH + pixels  # x, dz, and where x's pixels are
            adding = item_warps * taps * CHUNK // 8 * 4 * WARP if shares > 1 else 0
            shared = 4 * (fixed + max(numbers, adding, MOST_WARPS * CHUNK))
            if shared > SHARED_BYTES:
                continue
            at_once = min(2, ALL_SHARED_BYTES // (shared + 1024))
            bands = ceil(rows / height)
            tiles, blocks_y = ceil(batch / images) * bands, slices * groups
            blocks = min(tiles, max(1, MULTIPROCESSORS * at_once // (NETS * blocks_y)))
            blocks = ceil(tiles / ceil(tiles / blocks))
            warp_taps = ceil(kw / ceil(kw / taps))
            products = pixels * item_warps * warp_taps * 16 * CHUNK / TENSOR
            reading = pixels / 8 * item_warps * (10 + 4 * warp_taps) * 128 / SHARED
            staging = (staged + 2 * pixels) * CHUNK / 4 / WARP * STAGING_CLOCKS * 4
            loading = (staged + 2 * pixels) * CHUNK * 4 / CACHE
            at_work = min(at_once, blocks * blocks_y * NETS / MULTIPROCESSORS)
            warps = item_warps * shares
            tile = _tile_clocks(max(products, reading), staging, loading, 1, at_work, warps)
            uneven = ceil(tiles / blocks) * blocks / tiles
            tiling = {
                "images": images, "rows": height, "bands": bands, **stage, "pixel_warps": shares,
                "channel_warps": item_warps, "tap_step": 1, "groups": groups, "area": area,
            }  # fmt: skip
            launches.append(
                Launch(
                    _defines(FORM_TAPS=taps, FORM_THREADS=192, FORM_BLOCKS=2),
                    tiling,
                    (blocks, blocks_y),
                    item_warps * shares * WARP,
                    shared,
                    blocks,
                    tiles * blocks_y * NETS / MULTIPROCESSORS * uneven * tile,
                )
            )
    return min(launches, key=lambda launch: launch.clocks, default=None)


def _tile_clocks(multiplying, staging, loading, stagings, at_work, warps):
    """What a tile takes of a multiprocessor where `at_work` blocks of so many warps share it."""
    working = multiplying / min(1.0, at_work * warps / WARPS_TO_BE_BUSY) + staging
    alone = max(working, loading) + stagings * LATENCY
    return max(working, loading, alone / max(at_work, 1.0))


def first_forward(window, channels, filters, batch):
    """The Launch of block_first_forward; None where it does not fit."""
    return _first(window, channels, filters, batch, 1, _first_sums(filters) * PIVOTED * filters)


def first_weight_gradient(window, channels, filters, batch):
    """The Launch of block_first_weight_gradient; None where it does not fit."""
    rows = ceil(prod(window.size) * channels / FIRST_ROWS)
    return _first(window, channels, filters, batch, rows, _first_sums(filters) * filters)


def _first_sums(filters):
    return FIRST_THREADS // (filters // 4)


def _first(window, channels, filters, batch, blocks_y, sums):
    """As many rows of an image as fit, in 32 blocks a net: memory sets the pace, whatever they are."""
    if filters > 4 * FIRST_THREADS:
        return None
    axes = [
        [Axis(count, stride, -before, size)]
        for count, stride, before, size in zip(
            window.output, window.strides, window.before, window.size, strict=True
        )
    ]
    K = prod(window.size) * channels
    for bands in range(1, window.output[0] + 1):
        height = ceil(window.output[0] / bands)
        stage = _staging(axes, 1, height)
        area = 4 * ceil(stage["source_rows"] * stage["source_columns"] * channels / 4)
        shared = 4 * (3 * _padded(filters) + K * filters + area + sums + K)
        if shared <= 48 << 10:
            tiling = {
                "images": 1, "rows": height, "bands": ceil(window.output[0] / height), **stage,
                "pixel_warps": 1, "channel_warps": 1, "tap_step": 1, "groups": 1, "area": area,
            }  # fmt: skip
            blocks = min(32, batch * tiling["bands"])
            return Launch((), tiling, (blocks, blocks_y), FIRST_THREADS, shared, blocks)
    return None


def _staging(axes, images, height):
    """Tiling's part that says what is staged: for `images` images, of `height` rows of results."""
    (top, source_rows), (left, source_columns) = (
        (
            min(axis.start for axis in of),
            (count - 1) * of[0].stride
            + max(axis.start + axis.taps for axis in of)
            - min(axis.start for axis in of),
        )
        for of, count in zip(axes, (height, max(axis.count for axis in axes[1])), strict=True)
    )
    width, turn = max(axis.count for axis in axes[1]), axes[1][0].stride
    row_pitch = turn * ceil(source_columns / turn)
    if width % 4:  # so that pixels in a row lie in different banks across its end, too
        step = axes[0][0].stride
        found = (p for p in range(row_pitch, row_pitch + 4) if (step * p - width) % 4 == 0)
        row_pitch = next(found, row_pitch)
    image_pitch = source_rows * row_pitch
    if images > 1 and height * width % 4:
        image_pitch += (height * width - image_pitch) % 4
    return {
        "source_rows": source_rows, "source_columns": source_columns, "row_pitch": row_pitch,
        "image_pitch": image_pitch, "top": top, "left": left,
    }  # fmt: skip


def _padded(channels):
    return CHUNK * ceil(channels / CHUNK)


def _defines(**values):
    return tuple(f"{name}={value}" for name, value in values.items())
