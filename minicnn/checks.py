"""Checks of arguments, which return the converted value or raise ValueError; warnings about them.

The message names the argument, its value and what was expected.
"""

import sys
from math import inf, isfinite
from numbers import Integral, Real


def integer(name, value, low=0, high=inf):
    """`value` as an int; it must be an integer from `low` to `high`."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or not low <= value <= high:
        if high == inf:
            expected = "a positive integer" if low == 1 else f"an integer from {low} up"
        else:
            expected = f"an integer from {low} to {high}"
        raise ValueError(f"{name}: got {value!r}, expected {expected}")
    return int(value)


def word(name, value):
    """`value` as an int; it must fit in 32 bits, like the random generator's keys and counters."""
    return integer(name, value, 0, 2**32 - 1)


def number(name, value, low, high=inf, ends="[]"):
    """`value` as a float; it must be finite and lie between `low` and `high`.

    `ends` is the notation of the interval: "[)" includes `low` and excludes `high`.
    """
    real = isinstance(value, Real) and not isinstance(value, bool)
    try:
        real = real and isfinite(value)
    except OverflowError:  # an integer that no float can hold
        real = False
    above = real and (low <= value if ends[0] == "[" else low < value)
    if not above or not (value <= high if ends[1] == "]" else value < high):
        if high == inf:
            expected = f"a number from {low} up" if ends[0] == "[" else "a positive number"
        else:
            expected = f"a number in {ends[0]}{low}, {high}{ends[1]}"
        raise ValueError(f"{name}: got {value!r}, expected {expected}")
    return float(value)


def choice(name, value, choices):
    """`value`; it must be one of the strings `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(map(repr, choices))}")
    return value


def outside():
    """The `stacklevel` with which a warning names the first caller outside this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] == __package__:
        frame, level = frame.f_back, level + 1
    return level
