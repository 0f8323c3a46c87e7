"""Random convolutions for fuzz_convolutions.py: layers, operands, and what is expected of them.

The expected values share no code with the library, and are computed in float64.
"""

import random
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np

from minicnn.network.geometry import Window

# Elements from which on the rms error is that of the method. The error of a sum of rounded terms is
# about normal, so the rms of one or two sums is often twice that of many.
LEAST_FOR_RMS = 64


# --- Shapes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """A layer, a batch, and the kinds of its operands."""

    E: int
    B: int
    H: int
    W: int
    Cin: int
    Cout: int
    size: tuple
    strides: tuple
    padding: str
    activation: str
    x: str  # of INPUTS
    mixed: bool  # each channel has a scale of its own
    threads: int

    @classmethod
    def draw(cls, seed, number):
        """Shape `number` of a seed."""
        draw = random.Random(f"{seed} {number}")
        kind = draw.random()
        if kind < 0.45:
            size, strides = (3, 3), (1, 1)
        elif kind < 0.7:
            size, strides = (5, 5), (2, 2)
        else:
            size, strides = _pair(draw, 1, 7), _pair(draw, 1, 3)
        H, W = _pair(draw, 1, 30)
        padding = "same" if draw.random() < 0.6 else "valid"
        if padding == "valid":
            H, W = max(H, size[0]), max(W, size[1])
        least = (1, 1) if padding == "same" else size
        axes = {"E": draw.randint(1, 2), "B": draw.randint(1, 9), "H": H, "W": W}
        multiples = (16, 32, 32) if kind < 0.6 else (1, 1, 4, 16, 32)
        axes |= {name: _channels(draw, multiples) for name in ("Cin", "Cout")}
        lowest = dict.fromkeys(axes, 1) | dict(zip("HW", least, strict=True))
        most = 2 ** draw.uniform(18, 23)
        while _cost(size, strides, **axes) > most:
            names = [name for name in "BBHWE" if axes[name] > lowest[name]]
            names = names or [name for name in axes if axes[name] > lowest[name]]
            if not names:
                break
            name = draw.choice(names)
            axes[name] = max(lowest[name], axes[name] * 2 // 3)
        return cls(
            **axes,
            size=size,
            strides=strides,
            padding=padding,
            activation=draw.choice(["relu", "linear"]),
            x=draw.choice(list(INPUTS)),
            mixed=draw.random() < 0.3,
            threads=2 if draw.random() < 0.2 else 1,
        )

    @cached_property
    def window(self):
        """The geometry.Window."""
        return Window.fit(self.size, self.strides, self.padding, (self.H, self.W))


def _pair(draw, least, most):
    """Two numbers, equal in half of the cases."""
    first = draw.randint(least, most)
    return first, first if draw.random() < 0.5 else draw.randint(least, most)


def _channels(draw, multiples):
    """A number of channels: often a multiple of a vector or a panel."""
    multiple = draw.choice(multiples)
    return multiple * draw.randint(1, 80 // multiple)


def _cost(size, strides, E, B, H, W, Cin, Cout):
    """About the multiplications of a pass; an element of an array counts like four of them."""
    outputs = E * B * -(-H // strides[0]) * -(-W // strides[1])
    taps = prod(size)
    elements = E * B * H * W * Cin + outputs * Cout + E * taps * Cin * Cout
    return outputs * taps * Cin * Cout + 4 * elements


INPUTS = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "positive": lambda rng, shape: rng.uniform(0, 1, shape),
    "rectified": lambda rng, shape: np.maximum(rng.standard_normal(shape), 0),
    "sparse": lambda rng, shape: rng.standard_normal(shape) * (rng.random(shape) < 0.1),
}


def operands(shape, seed, number):
    """{name: float32 array} of x, kernel, bias and dz."""
    rng = np.random.default_rng([seed, number])
    E, Cin, Cout, window = shape.E, shape.Cin, shape.Cout, shape.window
    found = {
        "x": INPUTS[shape.x](rng, (E, shape.B, *window.input, Cin)),
        "kernel": rng.standard_normal((E, *window.size, Cin, Cout)),
        "bias": rng.standard_normal((E, Cout)),
        "dz": rng.standard_normal((E, shape.B, *window.output, Cout)),
    }
    for array in found.values():
        np.multiply(array, 10 ** rng.uniform(-3, 3), out=array)
        if shape.mixed:
            np.multiply(array, 10 ** rng.uniform(-1, 1, array.shape[-1]), out=array)
    return {name: array.astype(np.float32) for name, array in found.items()}


# --- What is expected -----------------------------------------------------------------------------


class Expected:
    """y, dx, dkernel and dbias in float64, {name: array}, and the scales of their errors.

    `scales` has the same arrays of max(|sum|, root of the sum of squared terms). A sum whose terms
    cancel has an error in proportion to its terms. The second value is about what the sum is
    without such chance, so an array of many sums has nearly its own rms and maximum as its scale.
    But a layer may have a single sum, or few.
    """

    def __init__(self, shape, x, kernel, bias, dz):
        given = [array.astype(np.float64) for array in (x, kernel, bias, dz)]
        self.arrays = _convolve(shape, *given)
        squares = _convolve(shape, *((array**2).astype(np.float32) for array in given))
        self.scales = {
            name: np.maximum(np.abs(array), np.sqrt(squares[name]))
            for name, array in self.arrays.items()
        }
        if shape.activation == "relu":
            self.arrays["y"] = np.maximum(self.arrays["y"], 0)
        axes = {name: tuple(range(1, array.ndim)) for name, array in self.arrays.items()}
        self._rms = {n: np.sqrt((s**2).mean(axes[n])) for n, s in self.scales.items()}
        self._most = {n: s.max(axes[n]) for n, s in self.scales.items()}

    def errors(self, name, found):
        """{"rms": error, "largest": error}, relative, of the net that has the largest.

        NaN stays NaN. An array of few elements has no rms error.
        """
        error = (found - self.arrays[name]).reshape(len(found), -1)
        largest = np.maximum(error.max(axis=1), -error.min(axis=1))
        errors = {"largest": _ratio(largest, self._most[name])}
        if error.shape[1] < LEAST_FOR_RMS:
            return errors
        rms = np.sqrt(np.einsum("ei,ei->e", error, error) / error.shape[1])
        return errors | {"rms": _ratio(rms, self._rms[name])}


def _ratio(errors, scales):
    """The largest quotient; 0 / 0 is 0: the operands may be zeros."""
    with np.errstate(divide="ignore", invalid="ignore"):
        quotients = np.where((errors == 0) & (scales == 0), 0, errors / scales)
    return float(quotients.max())


def _convolve(shape, x, kernel, bias, dz):
    """{name: array} before the activation, by products of matrices."""
    E, B, H, W, Cin = x.shape
    (kh, kw), (sh, sw), (Ho, Wo) = shape.size, shape.strides, dz.shape[2:4]
    top = left = 0
    if shape.padding == "same":
        top = max((Ho - 1) * sh + kh - H, 0) // 2
        left = max((Wo - 1) * sw + kw - W, 0) // 2
    rows, columns = max((Ho - 1) * sh + kh, top + H), max((Wo - 1) * sw + kw, left + W)
    wide = np.zeros((E, B, rows, columns, Cin), x.dtype)
    wide[:, :, top : top + H, left : left + W] = x
    taps = [
        np.s_[:, :, i : i + (Ho - 1) * sh + 1 : sh, j : j + (Wo - 1) * sw + 1 : sw]
        for i in range(kh)
        for j in range(kw)
    ]
    under = np.stack([wide[at] for at in taps], axis=4).reshape(E, B * Ho * Wo, -1)
    dz, matrix = dz.reshape(E, B * Ho * Wo, -1), kernel.reshape(E, kh * kw * Cin, -1)
    d_under = (dz @ matrix.transpose(0, 2, 1)).reshape(E, B, Ho, Wo, kh * kw, Cin)
    d_wide = np.zeros_like(wide)
    for tap, at in enumerate(taps):
        d_wide[at] += d_under[..., tap, :]
    return {
        "y": (under @ matrix + bias[:, None]).reshape(E, B, Ho, Wo, -1),
        "dx": d_wide[:, :, top : top + H, left : left + W],
        "dkernel": (under.transpose(0, 2, 1) @ dz).reshape(kernel.shape),
        "dbias": dz.sum(axis=1),
    }
