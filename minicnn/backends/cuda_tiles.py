"""How the kernels of fused blocks split their work: for each layer and pass, a choice by a model.

A tile is some rows of an image, or several images. A thread block computes one tile after another.
The model of cuda_costs.py estimates the time of each possible tile. The launches that it chooses
take 1.02 times as long together as the fastest of each layer, timed on an H200.

Tiles, and the runs of tiles that are summed up together, determine the bits of a result. They
depend on the layer and the batch alone. The grid changes no bit: TiledLaunch.cut fits it to the
number of nets and to the GPU. All tiles fit the 99 KB of shared memory that a thread block can have
on any GPU with tensor cores for TF32.

cuda_forms.py has the forms in which the kernels are compiled. benchmarks/tiles.py prints the
choices for the seed network. Read kernels/block.cuh next.
"""

from dataclasses import replace
from itertools import product
from math import ceil, prod
from typing import NamedTuple

from .cuda_costs import (
    FORWARD_COSTS,
    GRADIENT_COSTS,
    MOST_RUNS,
    MULTIPROCESSORS,
    SHARE,
    WEIGHT_COSTS,
    Grid,
    Work,
    blocks_along,
    pays_in_pairs,
    runs_of,
)
from .cuda_forms import (
    BLOCKS,
    CHUNK,
    GRADIENT_FORMS,
    REBUILDING,
    REBUILDING_GRADIENT_FORMS,
    REBUILDING_WEIGHT_FORMS,
    STEP,
    TF32,
    WARP,
    WARPS_AT_ONCE,
    WEIGHT_FORMS,
    Storage,
    weight_defines,
)
from .cuda_rebuilt import SUMS_OF_WARP, Rebuilt

# ---- constants of the kernels: the same as in block.cuh, correlation.cuh and others
STATISTICS, SUMS, PIVOTED, SHARERS = 3, 2, 4, 4
TAPS_IN_MEMORY = 3  # taps whose weights correlation.cuh holds
PIXELS_IN_FLIGHT = 4  # of block_weight_gradient.cu
FIRST_THREADS, FIRST_ROWS = 256, 9  # block_first.cu
HEAD_THREADS = 512
REBUILT_THREADS = 192  # rebuilt.cu

SHARED_BYTES = 99 << 10  # of a thread block, at most
FIRST_SHARED_BYTES = 48 << 10  # of a thread block of block_first.cu, at most
MOST_IMAGES = 32  # of a tile
MOST_PHASES = 4  # that one thread block computes one after another
OUTSIDE = 1 << 30  # in the table of staged pixels: a distance past the last image


class TiledLaunch(NamedTuple):
    """How a kernel is launched: its form, its grid, and how its work is split into tiles."""

    defines: tuple  # select the form
    tiling: dict  # the fields of block.cuh's struct Tiling
    tables: tuple  # all tables that the kernel reads, one after another
    grid: tuple
    threads: int
    shared_bytes: int
    parts: int  # number of partial sums that it writes for each sum
    at_once: int  # thread blocks that a multiprocessor holds
    clocks: float  # that the model expects for its nets; for block_first.cu only a rank
    clocks_alone: float = 0.0  # the same for a single net on that GPU; not for block_first.cu
    taps: tuple = ()  # of a correlation: the kernel's taps of each phase, in order
    halves: int = 1  # 2 if it can add up pairs of runs, see block_weight_gradient.cu

    def cut(self, share):
        """The launch with the grid for nets that have `share` multiprocessors each: a Fraction.

        If a thread block for each pair of runs left more than half of them idle, each run has one.
        """
        runs, before, (_, blocks_y) = self.tiling["runs"], self.tiling["parts"], self.grid
        parts = runs // self.halves
        if 2 * parts * blocks_y < share:
            parts = runs
        return self._replace(
            tiling={**self.tiling, "parts": parts},
            grid=(blocks_along(parts, blocks_y, self.at_once, share), blocks_y),
            parts=self.parts // before * parts,
        )

    @property
    def adds_later(self):
        """Whether pairs of its partial sums are still to be added up: p[i] and p[i + parts / 2]."""
        return self.halves == 2 and self.tiling["parts"] == self.tiling["runs"]


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
        own = {"images": self.images, "rows": self.rows, "bands": self.bands}
        return {**own, **self.staging, **more}

    def count(self, batch):
        """The number of tiles of a batch."""
        return ceil(batch / self.images) * self.bands


def best(launches):
    """The TiledLaunch with the shortest time in the model; None if there is none."""
    return min(launches, key=lambda launch: launch.clocks, default=None)


def forward(window, channels, filters, batch, storage=TF32, below=None):
    """Every TiledLaunch of block_forward that fits, for a geometry.Window.

    below: the block below as a Rebuilt, if it is rebuilt.
    """
    fixed = 2 * _padded(channels)
    size = _Correlation(channels, filters, batch, fixed, PIVOTED, False, storage, below)
    forms = storage.forward_forms_for(below is not None)
    return _correlations(forms, _axes(window), window.input, size)


def input_gradient(window, channels, filters, batch, storage=TF32, below=None):
    """Every TiledLaunch of block_input_gradient that fits, for a gradient_window.

    below: the block below as a Rebuilt, if it is rebuilt. Then nothing fits but a single phase.
    """
    if below and prod(map(len, window.phases)) > 1:
        return []
    axes = [
        [
            Axis(p.first, p.count, 1, p.start, p.taps, p.tap + (p.taps - 1) * stride, -stride)
            for p in phases
        ]
        for phases, stride in zip(window.phases, window.strides, strict=True)
    ]
    fixed = 3 * _padded(filters) + 2 * _padded(channels)
    size = _Correlation(filters, channels, batch, fixed, SUMS, True, storage, below)
    forms = REBUILDING_GRADIENT_FORMS if below else GRADIENT_FORMS
    return _correlations(forms, axes, window.output, size)


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


def _tiles(axes, batch, run=4):
    """Every _Tile that may be the best: bands of nearly equal height, or several whole images.

    The words of `run` consecutive pixels are to be in different banks of shared memory.
    """
    rows, columns = (max(axis.count for axis in of) for of in axes)
    for height in sorted({ceil(rows / bands) for bands in range(1, rows + 1)}):
        for images in range(1, min(batch, MOST_IMAGES) + 1) if height == rows else [1]:
            staging = _staging(axes, images, height, run)
            staged = images * staging["source_rows"] * staging["source_columns"]
            pixels = images * height * columns
            yield _Tile(images, height, ceil(rows / height), pixels, staging, staged)


def _staging(axes, images, height, run):
    """The fields of Tiling that describe the staging of `images` images, `height` rows of each."""
    width, stride = max(axis.count for axis in axes[1]), axes[1][0].stride
    source = []
    for of, count in zip(axes, (height, width), strict=True):
        start, stop = min(a.start for a in of), max(a.start + a.taps for a in of)
        source.append((start, (count - 1) * of[0].stride + stop - start))
    (top, source_rows), (left, source_columns) = source
    row_pitch = stride * ceil(source_columns / stride)
    if width % run:  # so that consecutive pixels are in different banks also across a row's end
        step = axes[0][0].stride
        found = (p for p in range(row_pitch, row_pitch + run) if (step * p - width) % run == 0)
        row_pitch = next(found, row_pitch)
    image_pitch = source_rows * row_pitch
    if images > 1 and height * width % run:
        image_pitch += (height * width - image_pitch) % run
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
    gradient: bool
    storage: Storage
    below: Rebuilt | None

    def rebuilding(self, tile, columns, pixel_warps, wide):
        """Words of shared memory that rebuilding the block below takes. columns: of the results."""
        if self.below is None:
            return 0
        if self.gradient:
            own = self.below.of_gradient(pixel_warps, wide, STEP * self.storage.per_word)
            return self.below.shared(tile.images, tile.rows, columns) + own
        source = tile.staging["source_rows"], tile.staging["source_columns"]
        return self.below.shared(tile.images, *source)


def _correlations(forms, axes, image, size):
    """Every TiledLaunch of a correlation that fits. image: (rows, columns) of the source."""
    widths = range(1, min(2, ceil(size.filters / WARP)) + 1)
    return [
        launch
        for tile in _tiles(axes, size.batch)
        for form in forms
        for wide in widths
        if (launch := _correlation(form, tile, wide, axes, image, size))
    ]


def _correlation(form, tile, wide, axes, image, size):
    """One way to launch a correlation, with `wide` warps along the filters; None if too big."""
    (groups, splits, most_warps), storage = form, size.storage
    phases = prod(map(len, axes))
    # More phases than this occur where a phase has one tap (gradient_window). They are small, so
    # each gets its own thread blocks.
    phase_groups = phases if phases > MOST_PHASES else 1
    pixel_warps = ceil(tile.pixels / (8 * groups))
    warps, width = pixel_warps * wide * splits, wide * WARP
    taps = sum(r.taps * c.taps for r in axes[0] for c in axes[1])  # of all phases
    adding = (splits - 1) * pixel_warps * wide * groups * 8 * WARP
    area = max(tile.images * tile.staging["image_pitch"] * storage.pitch, adding)
    weights = TAPS_IN_MEMORY * storage.words * width
    tables = 4 * ceil((2 * tile.staged + 6 * phases + taps) / 4)
    sums = pixel_warps * size.sums * width
    columns = max(axis.count for axis in axes[1])
    rebuilding = size.rebuilding(tile, columns, pixel_warps, wide)
    shared = 4 * (size.fixed + sums + tables + rebuilding + area + weights)
    if warps > most_warps or shared > SHARED_BYTES:
        return None

    chunks, own_phases = ceil(size.channels / CHUNK), phases // phase_groups
    own_taps = taps / phase_groups * chunks
    steps = own_taps * storage.words // STEP * pixel_warps * wide
    stagings = chunks * (own_phases if chunks > 1 or splits > 1 else 1)
    results = own_phases * pixel_warps * groups * 8 * width
    positions = own_phases * chunks * warps * groups
    in_flight = warps * 4 * storage.pixels_in_flight(form, size.gradient)
    work = Work(
        mma=steps * groups * 2,
        steps=steps,
        staged=stagings * tile.staged * CHUNK / 128,
        results=results / 128,
        positions=positions,
        loads=stagings * ceil(tile.staged / in_flight),
        waits=own_taps,
        loaded=stagings * tile.staged * storage.chunk_bytes * (2 if size.gradient else 1)
        + 4 * own_taps * storage.words * width,
    )
    blocks_y = ceil(size.filters / width) * phase_groups
    at_once = BLOCKS * most_warps // warps
    costs = GRADIENT_COSTS if size.gradient else FORWARD_COSTS
    grid = Grid(tile.count(size.batch), blocks_y, warps, at_once, shared)
    runs = runs_of(grid.tiles, blocks_y, grid.at_once)
    tiling = tile.tiling(
        pixel_warps=pixel_warps, channel_warps=wide, groups=phase_groups, area=area,
        tiles=grid.tiles, runs=runs, parts=runs,
    )  # fmt: skip
    tables, taps = _taps_tables(axes, tile.staging)
    staged_below = None if size.gradient else size.below
    tables = (
        *_staged_table(axes, tile, image, size.channels, storage.pitch, staged_below), *tables
    )  # fmt: skip
    if size.below and size.gradient:
        # correlate hands over two groups of a warp at a time, also if the second does not exist
        count = (pixel_warps * groups + groups % 2) * 8
        tables = *tables, *_places(tile, columns, count, size.below)
    defines = *form.defines, *storage.defines, *(REBUILDING if size.below else ())
    return TiledLaunch(
        defines, tiling, tables, (runs, blocks_y), warps * WARP, shared, runs * phase_groups,
        grid.at_once, grid.clocks(work, costs, storage.cache),
        grid.clocks(work, costs, storage.cache, MULTIPROCESSORS, runs), taps,
    )  # fmt: skip


def _places(tile, columns, count, below):
    """Where a rebuilt block's window begins for each of `count` pixels of a tile of its output."""
    places = []
    for pixel in range(count):
        line, column = divmod(min(pixel, tile.pixels - 1), columns)
        which, row = divmod(line, tile.rows)
        places.append(below.place(which, row, column, tile.rows, columns))
    return places


def _staged_table(axes, tile, image, channels, pitch, below=None):
    """The table of block.cuh's Staged: two integers for each staged pixel.

    pitch: from a staged pixel to the next one, in words. If the block below is rebuilt, the first
    integer is its place in the staged image, as Rebuilt::stage says.
    """
    (rows, columns), t = image, tile.staging
    table = []
    for which, row, column in product(
        range(tile.images), range(t["source_rows"]), range(t["source_columns"])
    ):
        inside = 0 <= column + t["left"] < columns
        place = which * t["image_pitch"] + row * t["row_pitch"] + _place(axes, t, column)
        if below:
            distance = below.place(which, row, column, t["source_rows"], t["source_columns"])
        else:
            distance = ((which * rows + row) * columns + column) * channels
        distance = distance if inside else OUTSIDE
        table += distance, row << 16 | place * pitch
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


def weight_gradient(window, channels, filters, batch, storage=TF32, below=None):
    """Every TiledLaunch of block_weight_gradient that fits.

    below: the block below as a Rebuilt, if it is rebuilt.
    """
    size = window, channels, filters, batch, storage, below
    return [
        launch
        for form in (REBUILDING_WEIGHT_FORMS if below else WEIGHT_FORMS)
        for tile in _tiles(_axes(window), batch, storage.weights_run)
        if (launch := _weight_gradient(form, tile, *size))
    ]


def _weight_gradient(form, tile, window, channels, filters, batch, storage, below):
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
    depth, pitch = STEP * storage.per_word, storage.weights_pitch
    steps = ceil(tile.pixels / depth)
    area = tile.images * tile.staging["image_pitch"] * pitch
    words = area + steps * depth * pitch  # x and dz
    fixed += 4 * ceil((2 * tile.staged + steps * depth) / 4)  # tables
    if below:
        t = tile.staging
        fixed += below.shared(tile.images, t["source_rows"], t["source_columns"])
    shared = 4 * (fixed + max(words, adding, most_warps * CHUNK))
    if shared > SHARED_BYTES:
        return None
    in_flight = warps * 4 * PIXELS_IN_FLIGHT
    work = Work(
        mma=steps * item_warps * taps * CHUNK // 8,
        steps=steps * item_warps,
        staged=(tile.staged + 2 * tile.pixels) * CHUNK / 128,  # dz needs two loads per element
        results=0,
        positions=0,
        loads=ceil(tile.staged / in_flight) + ceil(tile.pixels / in_flight),
        waits=0,
        loaded=(tile.staged + 2 * tile.pixels) * storage.chunk_bytes,
    )
    grid = Grid(tile.count(batch), blocks_y, warps, WARPS_AT_ONCE // warps, shared)
    # Partial sums of weights are large: only as many as let the model's nets fill its GPU.
    blocks = blocks_along(grid.tiles, blocks_y, grid.at_once, SHARE)
    size = 4 * (kh * kw * channels + 1) * filters
    in_pairs = pays_in_pairs(grid, work, WEIGHT_COSTS, storage.cache, blocks, size)
    halves = 2 if in_pairs else 1
    runs = blocks * halves
    tiling = tile.tiling(
        pixel_warps=shares, channel_warps=item_warps, groups=groups, area=area, tiles=grid.tiles,
        runs=runs, parts=runs,
    )  # fmt: skip
    axes, t = _axes(window), tile.staging
    columns, step = window.output[1], window.strides[0] * t["row_pitch"]
    places = []
    for i in range(steps * depth):
        line, column = divmod(min(i, tile.pixels - 1), columns)
        which, row = divmod(line, tile.rows)
        places.append((which * t["image_pitch"] + row * step + column) * pitch)
    table = *_staged_table(axes, tile, window.input, channels, pitch, below), *places
    rebuilding = REBUILDING if below else ()
    return TiledLaunch(
        (*weight_defines(*form), *storage.defines, *rebuilding), tiling, table, (runs, blocks_y),
        warps * WARP, shared, runs, grid.at_once, grid.clocks(work, WEIGHT_COSTS, storage.cache),
        grid.clocks(work, WEIGHT_COSTS, storage.cache, MULTIPROCESSORS, runs), halves=halves,
    )  # fmt: skip


def first_forward(window, channels, filters, batch, storage=TF32):
    """Every TiledLaunch of block_first_forward that fits."""
    return _first(window, channels, filters, batch, storage, 1, PIVOTED * filters, at_once=3)


def first_weight_gradient(window, channels, filters, batch, storage=TF32):
    """Every TiledLaunch of block_first_weight_gradient that fits."""
    rows = ceil(prod(window.size) * channels / FIRST_ROWS)
    return _first(window, channels, filters, batch, storage, rows, filters, at_once=2)


def rebuilt_moments(rebuilt, filters, batch, storage=TF32):
    """Every TiledLaunch of rebuilt_moments that fits, for a Rebuilt."""
    launches, blocks_y, warps = [], ceil(filters / WARP), REBUILT_THREADS // WARP
    area = warps * max(2 * SUMS_OF_WARP, 4 * PIVOTED * WARP)  # first of sums, then of moments
    for tile in _tiles(_axes(rebuilt.window), 1):
        shared = 4 * (rebuilt.shared(1, tile.rows, rebuilt.window.output[1]) + area)
        if shared <= SHARED_BYTES:
            found = _by_rows(tile, batch, storage, blocks_y, REBUILT_THREADS, area, shared, BLOCKS)
            launches.append(found)
    return launches


def _by_rows(tile, batch, storage, blocks_y, threads, area, shared, at_once):
    """The TiledLaunch of a kernel whose tiles are rows of an image; fewer tiles rank higher.

    Such kernels have much to add up at the end of a run, so there are few runs.
    """
    tiles = tile.count(batch)
    runs = runs_of(tiles, blocks_y, at_once, MOST_RUNS // 8)
    tiling = tile.tiling(
        pixel_warps=1, channel_warps=1, groups=1, area=area, tiles=tiles, runs=runs, parts=runs
    )
    grid, rank = (runs, blocks_y), float(tile.bands)
    return TiledLaunch(storage.defines, tiling, (), grid, threads, shared, runs, at_once, rank)


def _first(window, channels, filters, batch, storage, blocks_y, sums, at_once):
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
            found = _by_rows(tile, batch, storage, blocks_y, FIRST_THREADS, area, shared, at_once)
            launches.append(found)
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


def coefficients_bytes(filters):
    """Bytes of shared memory of rebuilt_weight_gradient: for a, b and c of each filter."""
    return 4 * 3 * _padded(filters)


def _padded(channels):
    """The number of channels, rounded up to whole chunks."""
    return CHUNK * ceil(channels / CHUNK)
