"""Decides which networks of blocks run fused on a GPU, and chooses how to launch each block.

network/blocks.py finds the blocks. Their convolutions must fit the kernels of cuda_blocks.py, which
reads what this module chooses. cuda_tiles.py chooses how the launches split their work.
"""

from dataclasses import dataclass, replace
from math import inf, prod

from ..network import blocks
from . import cuda_tiles
from .cuda_convolution import sizes
from .cuda_costs import SHARE
from .cuda_forms import TF32, Storage
from .cuda_rebuilt import ELEMENTS, Rebuilt

_FEW_CHANNELS = 8  # fewer input channels do not fill tensor cores


@dataclass(frozen=True)
class Block(blocks.Block):
    """A block, and how it is launched."""

    forward: cuda_tiles.TiledLaunch
    weight_gradient: cuda_tiles.TiledLaunch | None = None  # a rebuilt block needs none
    input_gradient: cuda_tiles.TiledLaunch | None = None  # the first block needs none
    rebuilt: Rebuilt | None = None  # of a first block that is rebuilt (rebuilt.cuh)

    def cut(self, share):
        """The block with its launches cut for nets that have `share` multiprocessors each."""
        names = "forward", "weight_gradient", "input_gradient"
        launches = {name: getattr(self, name) for name in names}
        return replace(self, **{n: launch and launch.cut(share) for n, launch in launches.items()})

    @property
    def first(self):
        """Whether its y is computed by block_first.cu, because its input has few channels."""
        return self.input_gradient is None and self.channels < _FEW_CHANNELS and not self.rebuilt

    @property
    def floor(self):
        """Its activation is max(z, floor)."""
        return 0.0 if self.relu else -inf

    @property
    def weights(self):
        """The number of elements of its kernel and bias."""
        return (prod(self.window.size) * self.channels + 1) * self.filters

    def sizes(self, batch):
        """The fields of convolution.cuh's struct Convolution."""
        return sizes(self.window, batch, self.channels, self.filters)

    def gradient_sizes(self, batch):
        """The same for the gradient with respect to the input."""
        return sizes(self.gradient_window, batch, self.channels, self.filters)

    @property
    def gradient_window(self):
        """The window of the gradient with respect to the input."""
        return cuda_tiles.gradient_window(self.window)


@dataclass(frozen=True)
class Network(blocks.Network):
    """A network of blocks that can be launched."""

    head_images: int  # that head.cu has in shared memory at a time
    head_bytes: int  # of shared memory
    storage: Storage


def find_network(nodes, batch, storage, share=SHARE):
    """The Network of a stack of layers at a batch size; None if it cannot be fused.

    It can if it is a network of blocks with multiples of four channels, or eight in bfloat16, and
    if all launches fit the shared memory of a GPU. The input of the first block is in float32 and
    may have any number of channels; in bfloat16 it has few. share: the multiprocessors that a net
    has, a Fraction.
    """
    found = blocks.find_network(nodes)
    if found is None:
        return None
    launched = _with_rebuilt(found.blocks, batch, storage) or [
        _launched(block, batch, storage, first=not i) for i, block in enumerate(found.blocks)
    ]
    if not all(launched):
        return None
    values = prod(launched[-1].convolution.output_shape)
    head = cuda_tiles.head(values, launched[-1].filters, found.dense.layer.units, batch)
    cut = [block.cut(share) for block in launched]
    return Network(cut, found.dense, *head, storage) if head else None


def _with_rebuilt(found, batch, storage):
    """The Blocks with their launches if the first one can be rebuilt (rebuilt.cuh), else None.

    It can if it has few inputs, no dropout, and above it a block of stride 1 whose gradient has a
    single phase.
    """
    if len(found) < 2:
        return None
    first, second, *others = found
    rebuilt = Rebuilt(first.window, first.channels)
    if (
        rebuilt.elements >= ELEMENTS
        or first.drop.rate
        or first.filters % storage.alignment
        or second.window.strides != (1, 1)
    ):
        return None
    moments = cuda_tiles.best(cuda_tiles.rebuilt_moments(rebuilt, first.filters, batch, storage))
    above = _launched(second, batch, storage, first=False, below=rebuilt)
    if not (moments and above):
        return None
    bottom = Block(first.convolution, first.normalization, first.drop, moments, rebuilt=rebuilt)
    return [bottom, above, *(_launched(block, batch, storage, first=False) for block in others)]


def _launched(block, batch, storage, first, below=None):
    """The Block with its launches; None if no kernel can compute it.

    below: the block below as a Rebuilt, if it is rebuilt.
    """
    window, channels, filters = block.window, block.channels, block.filters
    few = first and channels < _FEW_CHANNELS
    strides_fit = all(
        stride <= min(size, length)
        for stride, size, length in zip(window.strides, window.size, window.input, strict=True)
    )
    step = storage.alignment
    if filters % step or not strides_fit or (channels % step and not few):
        return None
    if first and not few and storage is not TF32:
        return None
    shape = window, channels, filters, batch, storage
    if few:
        ways = cuda_tiles.first_forward(*shape), cuda_tiles.first_weight_gradient(*shape)
    else:
        ways = cuda_tiles.forward(*shape, below), cuda_tiles.weight_gradient(*shape, below)
    if not first:
        of_gradient = cuda_tiles.gradient_window(window), *shape[1:], below
        ways = *ways, cuda_tiles.input_gradient(*of_gradient)
    if not all(ways):
        return None
    launches = map(cuda_tiles.best, ways)
    return Block(block.convolution, block.normalization, block.drop, *launches)
