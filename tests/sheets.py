"""Sheets of handwritten digits for tests: images blown up, a pen's drawings, and no digits."""

import io
import itertools

import numpy as np
import PIL.Image
from scipy import ndimage

from minicnn.data.digits import GLYPHS


def blown_up(image, times, blur=0.0):
    """An image (H, W) uint8 that is `times` as large, interpolated; blur: its old pixels."""
    big = ndimage.zoom(image.astype(float), times, order=1, grid_mode=True, mode="nearest")
    return ndimage.gaussian_filter(big, blur * times) if blur else big


def sheet(images, times, dark=True, seed=0, noise=8.0, gradient=80.0):
    """Images (n, 28, 28) side by side on grey paper, moved up or down, uint8.

    dark: dark on light. gradient: by how much the light changes from one end to the other.
    """
    random = np.random.default_rng(seed)
    cells = []
    for image in images:
        big, down = blown_up(image, times, 0.3) / 255, int(random.integers(-3, 4)) * times
        cells.append(np.pad(big, ((6 * times + down, 6 * times - down), (times, times))))
    ink = np.concatenate(cells, axis=1)
    H, W = ink.shape
    angle = random.uniform(0, 2 * np.pi)
    slope = np.add.outer(np.sin(angle) * np.arange(H) / H, np.cos(angle) * np.arange(W) / W)
    light = 1 + gradient / 200 * ((slope - slope.min()) / np.ptp(slope) - 0.5)
    grey = (200 * (1 - 0.85 * ink) if dark else 50 + 170 * ink) * light
    return np.clip(grey + random.normal(0, noise, ink.shape), 0, 255).astype(np.uint8)


def decoded(pixels, kind):
    """The pixels after a PNG or JPEG file."""
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, kind, **({"quality": 75} if kind == "JPEG" else {}))
    return np.asarray(PIL.Image.open(file))


def pen_drawing(digits, pen, height=60, ruled=0, fall=0.0):
    """Digits drawn with a pen of `pen` pixels on light paper, uint8 (2 height, ...).

    digits: numbers, or shapes as in digits.GLYPHS.
    ruled: the distance of the paper's lines, 0 without; fall: by how much they fall to the right.
    """
    shape = 2 * height, (3 * len(digits) + 1) * height // 2
    ink = np.zeros(shape)
    rows, columns = np.indices(shape)
    if ruled:
        lines = (rows - fall * columns + ruled / 2) % ruled
        ink[lines < 2] = 0.5
    for place, digit in enumerate(digits):
        for stroke in GLYPHS.get(digit, [digit])[0].split("/"):
            points = np.array([point.split(",") for point in stroke.split()], float) * height / 100
            points += [(3 * place + 1) * height / 2, height / 2]
            for start, end in itertools.pairwise(points):
                for t in np.linspace(0, 1, int(np.abs(end - start).max()) + 2):
                    column, row = start + t * (end - start)
                    box = np.s_[
                        max(0, int(row) - pen) : int(row) + pen + 2,
                        max(0, int(column) - pen) : int(column) + pen + 2,
                    ]
                    far = np.hypot(rows[box] - row, columns[box] - column)
                    ink[box] = np.maximum(ink[box], np.clip(pen / 2 + 0.5 - far, 0, 1))
    return np.rint(230 * (1 - 0.8 * ink)).astype(np.uint8)


def no_digits():
    """{name: uint8 image} of photos on which nothing is written."""
    random = np.random.default_rng(0)
    rows, columns = np.indices((300, 400)) / 400
    noisy = random.normal(200, 20, (600, 400))
    return {
        "blank": np.full((300, 400), 230, np.uint8),
        "black": np.zeros((300, 400, 3), np.uint8),
        "paper": decoded(np.clip(noisy, 0, 255).astype(np.uint8), "JPEG"),
        "noise": random.integers(0, 256, (400, 600, 3), np.uint8),
        "black and white noise": (random.integers(0, 2, (300, 300)) * 255).astype(np.uint8),
        "spots": (255 * (random.random((300, 300)) < 0.03)).astype(np.uint8),
        "slope": np.tile(np.linspace(0, 255, 400).astype(np.uint8), (300, 1)),
        "lamp": (220 - 400 * ((rows - 0.4) ** 2 + (columns - 0.5) ** 2)).astype(np.uint8),
        "edge": np.repeat(np.array([20, 220], np.uint8), 200)[None].repeat(300, axis=0),
        "ruled paper": pen_drawing([], 3, height=200, ruled=40)[:, :100].repeat(4, axis=1),
        "1x1": np.zeros((1, 1), np.uint8),
        "1x1 in colour": np.full((1, 1, 3), 255, np.uint8),
        "2x2": np.array([[0, 255], [255, 0]], np.uint8),
        "28x28 of noise": random.integers(0, 256, (28, 28), np.uint8),
        "one row": random.integers(0, 256, (1, 20_000), np.uint8),
        "one column": np.zeros((50_000, 1, 3), np.uint8),
    }
