"""Random augmentation: affine maps as in Keras's ImageDataGenerator (2.2 and later), and elastic
distortion.

RandomAffine describes it. backends/affine.py computes it in NumPy, kernels/augment.c and
kernels/augment.cu compute the same on other devices. views() lists fixed affine maps, over which
predictions are averaged.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np

from . import checks
from .backends.affine import NODES, affine, augment

MOST_VIEWS = 27
_VIEW_SHIFT = 1 / 28  # of the image's width and height
_VIEW_ROTATION = 5.0  # degrees


@dataclass(frozen=True)
class RandomAffine:
    """Random rotation, zoom, shift and elastic distortion of images.

    rotation_range is in degrees, zoom_range a fraction in [0, 1). The shift ranges and
    elastic_range are fractions of the image's width and height. The parameters of each image are
    drawn uniformly:

        theta  from -rotation_range to rotation_range
        tx     from -width_shift_range * W to width_shift_range * W; ty likewise, with height and H
        zx, zy from 1 - zoom_range to 1 + zoom_range, independently

    Elastic distortion displaces each pixel by another amount, which changes smoothly over the
    image: see affine_transform. The displacement of each node is drawn like tx and ty, with
    elastic_range. A pixel's displacement is a weighted mean of the 16 nodes around it, so its
    standard deviation is about a quarter of the range. Source of the idea: P. Simard,
    D. Steinkraus, J. Platt, "Best practices for convolutional neural networks applied to visual
    document analysis", ICDAR 2003.

    Raises ValueError that names the argument.
    """

    rotation_range: float = 0.0
    zoom_range: float = 0.0
    width_shift_range: float = 0.0
    height_shift_range: float = 0.0
    elastic_range: float = 0.0

    def __post_init__(self):
        checks.number("rotation_range", self.rotation_range, 0, 180)
        checks.number("zoom_range", self.zoom_range, 0, 1, "[)")
        checks.number("width_shift_range", self.width_shift_range, 0, 1)
        checks.number("height_shift_range", self.height_shift_range, 0, 1)
        checks.number("elastic_range", self.elastic_range, 0, 1)

    def bounds(self, height, width):
        """Smallest and largest theta (degrees), tx, ty (pixels), zx, zy: (2, 5) float32.

        With elastic distortion (2, 7): also the nodes' displacements along x and y (pixels). None
        if every range is 0.
        """
        spread = [
            self.rotation_range,
            self.width_shift_range * width,
            self.height_shift_range * height,
            self.zoom_range,
            self.zoom_range,
        ]
        center = [0, 0, 0, 1, 1]
        if self.elastic_range:
            spread += [self.elastic_range * width, self.elastic_range * height]
            center += [0, 0]
        if not any(spread):
            return None
        return np.array([np.subtract(center, spread), np.add(center, spread)], np.float32)

    def __call__(self, images, seed=0, net=0, step=0):
        """Augment images (B, H, W, C) with the random numbers that `net` uses in step `step`."""
        images = _float_images(images)
        bounds = self.bounds(*images.shape[1:3])
        if bounds is None:
            return images.copy()
        seed, net = checks.word("seed", seed), checks.word("net", net)
        step = checks.word("step", step)
        out = np.empty_like(images)
        augment(images, bounds, seed, net, step, out)
        return out


def affine_transform(images, theta, tx, ty, zx, zy, nodes=None):
    """Rotate, shift, zoom and distort images: bilinear interpolation, edges repeated.

    images (B, H, W, C) float; theta (B,) in degrees; tx, ty (B,) in pixels along columns and rows;
    zx, zy (B,) factors: above 1 the content shrinks. nodes (B, 2, 6, 6): displacements in pixels,
    [b, 0] along columns and [b, 1] along rows; None: there are none. For each output pixel:

        x, y = column - (W - 1) / 2, row - (H - 1) / 2
        u, v = R(theta) @ (zx * x + tx, zy * y + ty)          R = [[cos, -sin], [sin, cos]]
        output = the image at column u + dx + (W - 1) / 2, row v + dy + (H - 1) / 2

    dx and dy are uniform cubic B-splines of the nodes, with three intervals along each axis. Rows 1
    and 4 of the nodes lie on the first and on the last row of pixels, columns likewise; the nodes
    around them lie outside the image and still influence it.

    Returns (B, H, W, C) of the images' dtype. Raises ValueError for wrong shapes or values.
    Source of the convention: Keras, ImageDataGenerator.
    """
    images = _float_images(images)
    given = {"theta": theta, "tx": tx, "ty": ty, "zx": zx, "zy": zy}
    parameters = np.empty((5, len(images)))
    for row, (name, values) in zip(parameters, given.items(), strict=True):
        numbers = np.asarray(values)
        if numbers.shape != images.shape[:1] or numbers.dtype.kind not in "iuf":
            raise ValueError(
                f"{name}: got shape {numbers.shape} of {numbers.dtype}, "
                f"expected a number for each of the {len(images)} images"
            )
        if not np.isfinite(numbers).all():
            raise ValueError(f"{name}: got a number that is not finite")
        row[:] = numbers
    if nodes is not None:
        nodes, expected = np.asarray(nodes), (len(images), 2, NODES, NODES)
        if nodes.shape != expected or nodes.dtype.kind not in "iuf":
            raise ValueError(
                f"nodes: got shape {nodes.shape} of {nodes.dtype}, expected {expected} numbers"
            )
        if not np.isfinite(nodes).all():
            raise ValueError("nodes: got a number that is not finite")
    out = np.empty_like(images)
    affine(images, parameters, out, nodes)
    return out


def views(count, height, width):
    """The first `count` of the 27 fixed views of an image, over which predictions are averaged.

    A list of ranges as RandomAffine.bounds gives them, (2, 5) float32, whose lowest and highest
    values are equal: nothing in a view is random. The first is None, the image itself.

    A view is shifted by 1/28 of the width, by 1/28 of the height and rotated by 5 degrees, each in
    either direction or not at all. The shift is one pixel of 28, which needs no interpolation. The
    rotation moves the pixels of a square image as far: sqrt(6)/28 radians are 5.01 degrees (root
    mean square). So a view with k changes is sqrt(k) such distances from the image, and views come
    in this order: 6 with one change, 12 with two, 8 with three. After each view comes the one with
    the opposite changes, so that an odd count favours no direction.

    Raises ValueError if count is not from 1 to 27.
    """
    count = checks.integer("views", count, 1, MOST_VIEWS)
    changes = np.array([_VIEW_ROTATION, width * _VIEW_SHIFT, height * _VIEW_SHIFT, 0, 0])
    found = [None]
    for theta, ty, tx in _view_signs():
        of_view = np.array([0, 0, 0, 1, 1]) + changes * [theta, tx, ty, 0, 0]
        found.append(np.stack([of_view, of_view]).astype(np.float32))
    return found[:count]


def _view_signs():
    """The directions -1, 0 or 1 of rotation, vertical and horizontal shift, of all but view 1."""
    # One of each pair of opposites: the one whose first change is positive.
    halves = [signs for signs in product((0, 1, -1), repeat=3) if signs > (0, 0, 0)]
    for signs in sorted(halves, key=np.count_nonzero):
        yield signs
        yield tuple(-sign for sign in signs)


def _float_images(images):
    images = np.ascontiguousarray(images)
    if images.ndim != 4 or 0 in images.shape[1:] or images.dtype.kind != "f":
        raise ValueError(
            f"images: got shape {images.shape} of {images.dtype}, expected (B, H, W, C) floats"
        )
    return images
