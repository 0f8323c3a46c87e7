"""Which images a net trains on, and which it is validated on."""

import math

from .. import checks, rng


def validation_count(count, fraction):
    """How many of `count` images are for validation: ceil(fraction * count)."""
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction: got {fraction!r}, expected 0 <= fraction < 1")
    # 0.07 * 100 is 7.000000000000001: what rounding added must not count as one image more.
    return math.ceil(fraction * count * (1 - 1e-12))


def split(count, fraction, seed, net):
    """The images that a net trains on and those it is validated on, two int32 arrays of indices.

    ceil(fraction * count) images, drawn for this net alone, are for validation, the others, in
    random order, for training. Raises ValueError for a fraction outside [0, 1), or if no image is
    left to train on.
    """
    held_out = validation_count(count, fraction)
    if held_out >= count:
        raise ValueError(
            f"count: got {count} images, expected at least one to train on beside"
            f" {held_out} for validation"
        )
    seed, net = checks.word("seed", seed), checks.word("net", net)
    order = rng.permutation(seed, net, rng.SPLIT, 0, count)  # (count,)
    return order[held_out:], order[:held_out]
