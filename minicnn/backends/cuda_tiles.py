"""How the kernels of fused blocks split their work: for each layer and pass, a choice by a model.

A tile is some rows of an image, or several images. A thread block computes one tile after another.
The model estimates the time of each possible tile from counts: multiplications, bytes read from
shared memory, instructions, bytes from the cache, and the thread blocks that a multiprocessor holds
at a time (while one waits for memory, others multiply). The memory traffic is the same for all
tiles, so the model leaves it out.

The choice depends on the layer and the batch alone, because the tiles determine the bits of the
result. So the model assumes a fixed GPU, about an H200, and a fixed number of nets. All tiles fit
the 99 KB of shared memory that a thread block can have on any GPU with tensor cores for TF32.

benchmarks/tiles.py prints the choices for the seed network. Read kernels/block.cuh next.
"""

from dataclasses import replace
from itertools import product
from math import ceil, prod
from typing import NamedTuple

# ---- constants of the kernels: the same as in block.cuh, correlation.cuh and others
CHUNK, PITCH, WARP = 32, 40, 32
TAPS_IN_MEMORY = 3  # taps whose weights correlation.cuh holds
STATISTICS, SUMS, PIVOTED = 3, 2, 4
FIRST_THREADS, FIRST_ROWS = 256, 9  # block_first.cu
HEAD_THREADS = 512

# ---- constants of the model: an H200, and the size of the ensemble
NETS, MULTIPROCESSORS = 15, 132
SHARED_BYTES = 99 << 10  # of a thread block, at most
ALL_SHARED_BYTES = 227 << 10  # of a multiprocessor
RESERVED_BYTES = 1 << 10  # of a thread block, in addition to what it asks for
FIRST_SHARED_BYTES = 48 << 10  # of a thread block of block_first.cu, at most
# What a multiprocessor does per clock: multiplications in TF32 that mma.sync reaches; bytes of
# shared memory; bytes from the L2 cache; elements staged (a warp takes about 56 instructions for
# four in each lane).
TENSOR, SHARED, CACHE, STAGED = 640, 128, 40, 4 * 32 / 14
ISSUES, RESULT = 4, 60  # warp instructions per clock; instructions for four results of each lane
WARPS_TO_BE_BUSY = 8  # that a multiprocessor needs to reach the rates TENSOR and SHARED
LATENCY = 1500  # clocks that a load from memory takes
MOST_IMAGES = 32  # of a tile
MOST_PHASES = 4  # that one thread block computes one after another

# (GROUPS, SPLITS) that correlation.cuh is compiled for. All take at most 168 registers, so a
# multiprocessor holds WARPS_AT_ONCE warps.
FORWARD_FORMS = (9, 1), (6, 1), (5, 2), (6, 2), (8, 2), (4, 1), (4, 4)
GRADIENT_FORMS = (6, 1), (8, 2), (4, 1), (4, 4)
WEIGHT_FORMS = (3, 6), (5, 6), (5, 10)  # (FORM_TAPS, warps) of block_weight_gradient.cu
OUTSIDE = 1 << 30  # in the table of staged pixels: a distance past the last image
MOST_WARPS, WARPS_AT_ONCE = 6, 12  # of a thread block, of a multiprocessor


def programs():
    """[(file, defines)] of every form of the fused blocks' kernels that is compiled."""
    forms = {"block_forward.cu": FORWARD_FORMS, "block_input_gradient.cu": GRADIENT_FORMS}
    found = [(file, _form(*form)) for file in forms for form in forms[file]]
    return found + [("block_weight_gradient.cu", _taps(*form)) for form in WEIGHT_FORMS]


def _form(groups, splits):
    return _defines(FORM_GROUPS=groups, FORM_SPLITS=splits, FORM_THREADS=192, FORM_BLOCKS=2)


def _taps(taps, warps):
    blocks = WARPS_AT_ONCE // warps
    return _defines(FORM_TAPS=taps, FORM_THREADS=warps * WARP, FORM_BLOCKS=blocks)


class TiledLaunch(NamedTuple):
    """How a kernel is launched: its form, its grid, and how its work is split into tiles."""

    defines: tuple  # select the form
    tiling: dict  # the fields of block.cuh's struct Tiling
    tables: tuple  # all tables that the kernel reads, one after another
    grid: tuple
    threads: int
    shared_bytes: int
    parts: int  # number of partial sums that it writes for each sum
    clocks: float  # that the model expects for a multiprocessor; for block_first.cu only a rank
    taps: tuple = ()  # of a correlation: the kernel's taps of each phase, in order


class Axis(NamedTuple):
    """The rows, or the columns, of the results that meet the same taps: a phase, or all.

    Result i is at first + i * step, where step is the stride of the gradient_window in an input
    gradient, else 1. It meets the `taps` source positions from i * stride + start on; position k
    has tap weight + k * weight_step of the kernel.
    """

    first: int
    count: int
    stride: int
    start: int
    taps: int
    weight: int
    weight_step: int


class _Tile(NamedTuple):
    """Rows of an image, or whole images, and the source pixels that are staged for them."""

    images: int
    rows: int
    bands: int  # tiles per image
    pixels: int  # results in the tile, in the largest phase
    staging: dict  # the fields of Tiling that describe the staging
    staged: int  # staged pixels

    def tiling(self, **more):
        """The fields of block.cuh's struct Tiling."""
        return {
            "images": self.images,
            "rows": self.rows,
            "bands": self.bands,
            **self.staging,
            **more,
        }

    def count(self, batch):
        """The number of tiles of a batch."""
        return ceil(batch / self.images) * self.bands


class _Work(NamedTuple):
    """What a thread block does for a tile, counted."""

    products: int  # multiplications, including those for unused places of the tile
    shared: int  # bytes of operands loaded from shared memory
    stagings: int  # times that all threads wait for memory
    staged: int  # elements staged
    loaded: int  # elements loaded from the cache, or written
    issued: float  # warp instructions, without those for staging


def best(launches):
    """The TiledLaunch with the shortest time in the model; None if there is none."""
    return min(launches, key=lambda launch: launch.clocks, default=None)


def forward(window, channels, filters, batch):
    """Every TiledLaunch of block_forward that fits, for a geometry.Window."""
    fixed = 2 * _padded(channels)
    size = _Correlation(channels, filters, batch, fixed, PIVOTED, 1)
    return _correlations(FORWARD_FORMS, _axes(window), window.input, size)


def input_gradient(window, channels, filters, batch):
    """Every TiledLaunch of block_input_gradient that fits, for a gradient_window."""
    axes = [
        [
            Axis(p.first, p.count, 1, p.start, p.taps, p.tap + (p.taps - 1) * stride, -stride)
            for p in phases
        ]
        for phases, stride in zip(window.phases, window.strides, strict=True)
    ]
    fixed = 3 * _padded(filters) + 2 * _padded(channels)
    size = _Correlation(filters, channels, batch, fixed, SUMS, 2)
    return _correlations(GRADIENT_FORMS, axes, window.output, size)


def gradient_window(window):
    """The window of the gradient with respect to the input.

    If the window has only one place and covers the whole input, its strides do not matter. Here
    they become the window's size, so that each pixel meets one tap. With smaller strides each pixel
    would meet many taps whose outputs do not exist.
    """
    if window.output == (1, 1) and window.size == window.input:
        return replace(window, strides=window.size)
    return window


def _axes(window):
    """[[Axis of the rows], [Axis of the columns]] of a forward pass, which has one phase."""
    both = zip(window.output, window.strides, window.before, window.size, strict=True)
    return [[Axis(0, count, stride, -before, size, 0, 1)] for count, stride, before, size in both]


def _tiles(axes, batch):
    """Every _Tile that may be the best: bands of nearly equal height, or several whole images."""
    rows, columns = (max(axis.count for axis in of) for of in axes)
    for height in sorted({ceil(rows / bands) for bands in range(1, rows + 1)}):
        for images in range(1, min(batch, MOST_IMAGES) + 1) if height == rows else [1]:
            staging = _staging(axes, images, height)
            staged = images * staging["source_rows"] * staging["source_columns"]
            pixels = images * height * columns
            yield _Tile(images, height, ceil(rows / height), pixels, staging, staged)


def _staging(axes, images, height):
    """The fields of Tiling that describe the staging of `images` images, `height` rows of each."""
    width, stride = max(axis.count for axis in axes[1]), axes[1][0].stride
    source = []
    for of, count in zip(axes, (height, width), strict=True):
        start, stop = min(a.start for a in of), max(a.start + a.taps for a in of)
        source.append((start, (count - 1) * of[0].stride + stop - start))
    (top, source_rows), (left, source_columns) = source
    row_pitch = stride * ceil(source_columns / stride)
    if width % 4:  # so that consecutive pixels are in different banks also across a row's end
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


class _Correlation(NamedTuple):
    """The sizes of a correlation; those of arrays in elements."""

    channels: int
    filters: int
    batch: int
    fixed: int  # in shared memory: coefficients of channels
    sums: int  # in shared memory: for each filter
    accesses: int  # elements loaded for each one staged; loaded or written for each result


def _correlations(forms, axes, image, size):
    """Every TiledLaunch of a correlation that fits. image: (rows, columns) of the source."""
    widths = range(1, min(2, ceil(size.filters / WARP)) + 1)
    launches = [
        _correlation(form, tile, wide, axes, image, size)
        for tile in _tiles(axes, size.batch)
        for form in forms
        for wide in widths
    ]
    return [launch for launch in launches if launch]


def _correlation(form, tile, wide, axes, image, size):
    """One way to launch a correlation, with `wide` warps along the filters; None if too big."""
    groups, splits = form
    phases = prod(map(len, axes))
    # More phases than this occur where a phase has one tap (gradient_window). They are small, so
    # each gets its own thread blocks.
    phase_groups = phases if phases > MOST_PHASES else 1
    pixel_warps = ceil(tile.pixels / (8 * groups))
    warps, width = pixel_warps * wide * splits, wide * WARP
    taps = sum(r.taps * c.taps for r in axes[0] for c in axes[1])  # of all phases
    adding = (splits - 1) * pixel_warps * wide * groups * 8 * WARP
    area = max(tile.images * tile.staging["image_pitch"] * PITCH, adding)
    weights = TAPS_IN_MEMORY * CHUNK * width
    tables = 4 * ceil((2 * tile.staged + 6 * phases + taps) / 4)
    sums = pixel_warps * size.sums * width
    shared = 4 * (size.fixed + sums + tables + area + weights)
    if warps > MOST_WARPS or shared > SHARED_BYTES:
        return None

    chunks, own_phases = ceil(size.channels / CHUNK), phases // phase_groups
    steps = taps // phase_groups * chunks * CHUNK // 8  # of depth 8
    stagings = chunks * (own_phases if chunks > 1 or splits > 1 else 1)
    staged = stagings * tile.staged * CHUNK
    results = own_phases * pixel_warps * groups * 8 * width
    work = _Work(
        products=pixel_warps * groups * 8 * width * steps * 8,
        shared=pixel_warps * wide * steps * (8 + 2 * groups) * 128,
        stagings=stagings,
        staged=staged,
        loaded=size.accesses * (staged + results) + steps * 8 * width,
        issued=pixel_warps * wide * steps * (16 + 3.2 * groups) + results / 4 / WARP * RESULT,
    )
    blocks_y = ceil(size.filters / width) * phase_groups
    blocks, clocks = _share(tile.count(size.batch), blocks_y, warps, shared, work)
    tiling = tile.tiling(
        pixel_warps=pixel_warps, channel_warps=wide, groups=phase_groups, area=area
    )
    tables, taps = _taps_tables(axes, tile.staging)
    tables = (*_staged_table(axes, tile, image), *tables)
    grid, parts = (blocks, blocks_y), blocks * phase_groups
    return TiledLaunch(
        _form(*form), tiling, tables, grid, warps * WARP, shared, parts, clocks, taps
    )


def _staged_table(axes, tile, image):
    """The table of block.cuh's Staged: two integers for each staged pixel."""
    (rows, columns), t = image, tile.staging
    table = []
    for which, row, column in product(
        range(tile.images), range(t["source_rows"]), range(t["source_columns"])
    ):
        inside = 0 <= column + t["left"] < columns
        place = which * t["image_pitch"] + row * t["row_pitch"] + _place(axes, t, column)
        table += (which * rows + row) * columns + column if inside else OUTSIDE, row << 16 | place
    return table


def _place(axes, staging, column):
    """Where in its row a column is staged: grouped by column % stride, as block.cuh says."""
    stride = axes[1][0].stride
    return column % stride * ceil(staging["source_columns"] / stride) + column // stride


def _taps_tables(axes, staging):
    """correlation.cuh's tables of phases (ResultPhase) and of taps; the kernel's taps by phase."""
    kernel_columns = sum(axis.taps for axis in axes[1])
    phases, offsets, weights = [], [], []
    for r, c in product(*axes):
        phases += len(offsets), r.taps * c.taps, r.first, r.count, c.first, c.count
        of_phase = []
        for i, j in product(range(r.taps), range(c.taps)):
            weight = r.weight + i * r.weight_step, c.weight + j * c.weight_step
            row, column = i + r.start - staging["top"], j + c.start - staging["left"]
            offsets.append(row * staging["row_pitch"] + _place(axes, staging, column))
            of_phase.append(weight[0] * kernel_columns + weight[1])
        weights.append(tuple(of_phase))
    return (*phases, *offsets), tuple(weights)


def weight_slots(launch, channels, filters):
    """[(tap, first channel, first filter)] of the weights of a correlation, in packed order.

    Each is CHUNK channels by the `width` filters of a thread block. The order is that in which a
    thread block meets them. channels and filters: those of its source and of its results.
    """
    return [
        (tap, channel, filter)
        for filter in range(0, filters, packed_width(launch))
        for taps in launch.taps
        for channel in range(0, channels, CHUNK)
        for tap in taps
    ]


def packed_width(launch):
    """The filters of a thread block of a correlation."""
    return launch.tiling["channel_warps"] * WARP


def weight_gradient(window, channels, filters, batch):
    """Every TiledLaunch of block_weight_gradient that fits."""
    return [
        launch
        for form in WEIGHT_FORMS
        for tile in _tiles(_axes(window), batch)
        if (launch := _weight_gradient(form, tile, window, channels, filters, batch))
    ]


def _weight_gradient(form, tile, window, channels, filters, batch):
    """One way to launch block_weight_gradient; None if too big."""
    (kh, kw), (taps, most_warps) = window.size, form
    in_row = ceil(kw / taps)
    items = kh * in_row * 2  # some taps of a row by half of the channels, for a warp
    groups = ceil(items / most_warps)
    item_warps = 2 * ceil(items / groups / 2)
    shares = most_warps // item_warps
    warps = item_warps * shares
    blocks_y = ceil(channels / CHUNK) * ceil(filters / CHUNK) * groups
    fixed = 2 * _padded(channels) + 3 * _padded(filters)
    adding = item_warps * taps * CHUNK // 8 * 4 * WARP if shares > 1 else 0
    steps = ceil(tile.pixels / 8)
    area = tile.images * tile.staging["image_pitch"] * PITCH
    # x; dz and the table of its pixels' places; the table of staged pixels
    elements = area + steps * 8 * (PITCH + 1) + 2 * tile.staged
    shared = 4 * (fixed + max(elements, adding, most_warps * CHUNK))
    if shared > SHARED_BYTES:
        return None
    staged = (tile.staged + 2 * tile.pixels) * CHUNK  # dz needs two loads per element
    work = _Work(
        products=steps * 8 * item_warps * taps * CHUNK // 2 * CHUNK,
        shared=steps * item_warps * (10 + 4 * taps) * 128,
        stagings=1,
        staged=staged,
        loaded=staged,
        issued=steps * item_warps * (16 + 10 * taps),
    )
    blocks, clocks = _share(tile.count(batch), blocks_y, warps, shared, work)
    tiling = tile.tiling(pixel_warps=shares, channel_warps=item_warps, groups=groups, area=area)
    axes, t = _axes(window), tile.staging
    columns, step = window.output[1], window.strides[0] * t["row_pitch"]
    places = []
    for i in range(steps * 8):
        line, column = divmod(min(i, tile.pixels - 1), columns)
        which, row = divmod(line, tile.rows)
        places.append((which * t["image_pitch"] + row * step + column) * PITCH)
    table = *_staged_table(axes, tile, window.input), *places
    grid = blocks, blocks_y
    return TiledLaunch(_taps(*form), tiling, table, grid, warps * WARP, shared, blocks, clocks)


def _share(tiles, blocks_y, warps, shared, work):
    """The model: (size of the grid along x, clocks of the launch).

    The grid has as many thread blocks as the multiprocessors hold at once; each computes several
    tiles. While one thread block of a multiprocessor waits for memory, others multiply.
    """
    at_once = min(WARPS_AT_ONCE // warps, ALL_SHARED_BYTES // (shared + RESERVED_BYTES))
    blocks = min(tiles, max(1, MULTIPROCESSORS * at_once // (NETS * blocks_y)))
    rounds = ceil(tiles / blocks)
    blocks = ceil(tiles / rounds)  # the fewest for this time: each writes partial sums
    at_work = min(at_once, max(1.0, blocks * blocks_y * NETS / MULTIPROCESSORS))

    busy = min(1.0, at_work * warps / WARPS_TO_BE_BUSY)
    multiplying = max(work.products / TENSOR, work.shared / SHARED) / busy
    issuing = work.issued / ISSUES + work.staged / STAGED
    working = max(multiplying, issuing)
    loading = work.loaded * 4 / CACHE
    alone = max(working, loading) + work.stagings * LATENCY
    tile = max(working, loading, alone / at_work)
    return blocks, rounds * blocks * blocks_y * NETS / MULTIPROCESSORS * tile


def first_forward(window, channels, filters, batch):
    """Every TiledLaunch of block_first_forward that fits."""
    return _first(window, channels, filters, batch, 1, PIVOTED * filters, at_once=3)


def first_weight_gradient(window, channels, filters, batch):
    """Every TiledLaunch of block_first_weight_gradient that fits."""
    rows = ceil(prod(window.size) * channels / FIRST_ROWS)
    return _first(window, channels, filters, batch, rows, filters, at_once=2)


def _first(window, channels, filters, batch, blocks_y, sums, at_once):
    """Every TiledLaunch of a kernel of block_first.cu that fits.

    More rows per tile are better, because these kernels are limited by memory. sums: elements of
    shared memory for the sums of a lane, that is, of the threads that compute the same pixels.
    at_once: thread blocks per multiprocessor.
    """
    launches = []
    if filters > 4 * FIRST_THREADS:
        return launches
    K, lanes = prod(window.size) * channels, FIRST_THREADS // (filters // 4)
    for tile in _tiles(_axes(window), 1):
        area = 4 * ceil(tile.staged * channels / 4)
        shared = 4 * (3 * _padded(filters) + K * filters + area + lanes * sums + K)
        if shared <= FIRST_SHARED_BYTES:
            blocks = min(MULTIPROCESSORS * at_once // NETS, tile.count(batch))
            tiling = tile.tiling(pixel_warps=1, channel_warps=1, groups=1, area=area)
            grid, clocks = (blocks, blocks_y), float(tile.bands)
            launches.append(
                TiledLaunch((), tiling, (), grid, FIRST_THREADS, shared, blocks, clocks)
            )
    return launches


def head(features, channels, units, batch):
    """(images at a time, bytes of shared memory) of head.cu; None if not even one image fits.

    features: inputs of the dense layer.
    """
    if units > HEAD_THREADS:
        return None
    slices = max(1, HEAD_THREADS // features)
    fixed = 2 * _padded(channels) + 2 * features * units + SUMS * slices * features
    per_image = features + 1 + units + 2
    images = min(batch, (SHARED_BYTES // 4 - fixed) // per_image)
    return (images, 4 * (fixed + images * per_image)) if images > 0 else None


def _padded(channels):
    """The number of channels, rounded up to whole chunks."""
    return CHUNK * ceil(channels / CHUNK)


def _defines(**values):
    return tuple(f"{name}={value}" for name, value in values.items())
