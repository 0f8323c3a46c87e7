"""How long a launch of a fused block's kernel takes on an H200, by a model.

It counts instructions, waits for memory and for other warps, and the thread blocks that a
multiprocessor holds at a time: while one waits, others compute. Its constants were fitted to 2,300
launches of the seed network's layers, timed on an H200.

What is chosen by the model determines the bits of a result. So it assumes that GPU, and a fixed
number of nets, whatever the GPU and the number of nets are. Only the grid depends on them: it
changes no bit.
"""

from fractions import Fraction
from math import ceil, hypot
from typing import NamedTuple

MULTIPROCESSORS, NETS = 132, 15  # of an H200, and of the seed's ensemble
SHARE = Fraction(MULTIPROCESSORS, NETS)  # the multiprocessors that a net has
# Runs of tiles, at most: thread blocks add up the sums of all runs of the launch before
MOST_RUNS = MULTIPROCESSORS
CACHE = 23.7  # bytes of the cache for a multiprocessor in a clock: an H200's 5.5 TB/s
ALL_SHARED_BYTES = 227 << 10  # of a multiprocessor
RESERVED_BYTES = 1 << 10  # of a thread block, in addition to what it asks for
PAYS = 7.5  # see pays_in_pairs: what a single net must gain, as a multiple of what many lose


class Costs(NamedTuple):
    """The model's constants for one kernel: instructions of a warp, and clocks."""

    mma: float  # instructions for an mma.sync, with what loads its operands
    step: float  # instructions of a step besides
    staged: float  # instructions for four staged elements in each lane
    result: float  # instructions for four results in each lane
    position: float  # instructions that find where eight pixels are staged
    rate: float  # instructions per clock of a multiprocessor, at most
    alone: float  # clocks from one instruction of a warp to the next, where nothing else waits
    load: float  # clocks for a load from memory
    wait: float  # clocks until all have the weights of a tap
    tile: float  # clocks of a tile besides


FORWARD_COSTS = Costs(1.1, 3.38, 17.1, 19, 35.2, 0.738, 5.14, 1130, 584, 995)
GRADIENT_COSTS = Costs(1.36, 1.58, 27.1, 76.9, 27, 0.948, 4.42, 1530, 660, 626)
WEIGHT_COSTS = Costs(1.49, 1.37, 25.5, 0, 0, 0.76, 2.18, 871, 0, 2160)
TENSOR = 640 / 1024  # mma.sync per clock of a multiprocessor, at most


class Work(NamedTuple):
    """What a thread block does for a tile, counted over all of its warps."""

    mma: int  # mma.sync
    steps: int  # of the loops around them
    staged: float  # times that a warp stages four elements in each lane
    results: float  # times that a warp stores four results in each lane
    positions: int  # groups of eight pixels that a warp finds
    loads: int  # times that a thread waits for loads from memory
    waits: float  # times that all wait for weights
    loaded: float  # bytes from the cache

    def clocks(self, costs, warps, at_work):
        """Those of a multiprocessor on which `at_work` thread blocks compute a tile each."""
        issued = (
            self.mma * costs.mma
            + self.steps * costs.step
            + self.staged * costs.staged
            + self.results * costs.result
            + self.positions * costs.position
        )
        computing = at_work * max(issued / costs.rate, self.mma / TENSOR)
        waiting = self.loads * costs.load + self.waits * costs.wait + costs.tile
        return hypot(computing, issued / warps * costs.alone + waiting)  # they overlap in part


class Grid(NamedTuple):
    """The tiles of a launch for one net, and the thread blocks that compute them."""

    tiles: int
    blocks_y: int  # thread blocks of the same tile
    warps: int  # of a thread block
    registers: int  # thread blocks at once that the registers of a multiprocessor allow
    shared: int  # bytes of a thread block

    @property
    def at_once(self):
        """The thread blocks that a multiprocessor holds."""
        return min(self.registers, ALL_SHARED_BYTES // (self.shared + RESERVED_BYTES))

    def clocks(self, work, costs, cache, share=SHARE, pieces=None):
        """Those of the launch, by the model, if it is cut into `pieces` (default: its tiles).

        cache: its bytes for a multiprocessor in a clock.
        """
        blocks = blocks_along(pieces or self.tiles, self.blocks_y, self.at_once, share)
        rounds, share = ceil(self.tiles / blocks), float(share)
        at_work = min(self.at_once, max(1.0, blocks * self.blocks_y / share))
        loading = self.tiles * self.blocks_y * work.loaded / (share * cache)
        return hypot(rounds * work.clocks(costs, self.warps, at_work), loading)


def blocks_along(pieces, blocks_y, at_once, share):
    """The thread blocks along x that compute so many equal pieces of work of a net.

    As many as multiprocessors hold at once; fewer, if those take as long.
    """
    most = min(pieces, max(1, share * at_once // blocks_y))
    return ceil(pieces / ceil(pieces / most))


def pays_in_pairs(grid, work, costs, cache, blocks, size):
    """Whether a launch that sums up `size` bytes should have two runs for each of `blocks` parts.

    A thread block of many nets adds the second run to the first, in the cache. Of a single net each
    run has a thread block, and the launch takes half as long. It pays if this saves a multiple of
    what it costs the model's nets, because another launch runs beside it.
    """
    if 2 * blocks > grid.tiles:
        return False
    one, two = (grid.clocks(work, costs, cache, MULTIPROCESSORS, n * blocks) for n in (1, 2))
    added = 2 * size * blocks  # read and written once more
    return one - two > PAYS * added * NETS / (MULTIPROCESSORS * CACHE)


def runs_of(tiles, blocks_y, at_once, most=MOST_RUNS):
    """Into how many runs of tiles a launch is split (see block.cuh), `most` at most if possible.

    For the nets and the GPU that the model assumes, a thread block computes a whole number of runs.
    """
    rounds = ceil(tiles / blocks_along(tiles, blocks_y, at_once, SHARE))
    lengths = (n for n in range(1, rounds + 1) if rounds % n == 0)
    return next(ceil(tiles / n) for n in lengths if n == rounds or tiles <= n * most)
