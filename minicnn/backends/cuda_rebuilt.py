"""The first block of a network, if the launches of the block above rebuild it from the image.

kernels/rebuilt.cuh says how, and why. Here is what it takes of shared memory, and where. Pixels are
those of the block's output. For a tile of them, all elements of the image that the window meets are
staged in shared memory.
"""

from math import ceil, prod
from typing import NamedTuple

from ..network.geometry import Window
from .cuda_forms import WARP

# ---- constants of rebuilt.cuh
ELEMENTS = 16  # of a kernel, and one more, at most
SUMS_OF_WARP = 4 * (4 * WARP + 4)  # words


class Rebuilt(NamedTuple):
    """The sizes of such a block."""

    window: Window
    channels: int  # of the image

    @property
    def elements(self):
        """Of its kernel, for each filter."""
        return prod(self.window.size) * self.channels

    def line(self, columns):
        """Elements from a staged row of the image to the next, under so many columns of output."""
        width = self.window.size[1]
        line = ((columns - 1) * self.window.strides[1] + width) * self.channels
        return line + (7 + width - line) % 32 if self.channels == 1 else line

    def image(self, rows, columns):
        """Elements of the staged image under so many rows and columns of its output."""
        height = (rows - 1) * self.window.strides[0] + self.window.size[0]
        return height * self.line(columns)

    def place(self, which, row, column, rows, columns):
        """Where the window of a pixel of its output begins, in the staged images of a tile."""
        of_image = which * self.image(rows, columns)
        (down, right), line = self.window.strides, self.line(columns)
        return of_image + row * down * line + column * right * self.channels

    def shared(self, images, rows, columns):
        """Words for the images of a tile of so many rows and columns: struct Rebuilt's size."""
        return ELEMENTS + 4 * ceil(images * self.image(rows, columns) / 4)

    def of_gradient(self, pixel_warps, channel_warps, depth):
        """More words, of block_input_gradient: operands, biases, and sums over pixels.

        depth: operands along the depth of one mma.sync.
        """
        weights = channel_warps * (2 * ELEMENTS // depth + 1) * 4 * WARP
        return weights + pixel_warps * channel_warps * SUMS_OF_WARP
