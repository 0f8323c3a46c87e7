"""The random split of a net's images into training and validation images."""

import math

from .. import checks, rng


def validation_count(count, fraction):
    """The number of validation images among `count`: ceil(fraction * count)."""
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction: got {fraction!r}, expected 0 <= fraction < 1")
    # 0.07 * 100 is 7.000000000000001: the rounding error must not add an image.
    return math.ceil(fraction * count * (1 - 1e-12))


def split(count, fraction, seed, net):
    """(training indices, validation indices) of a net, int32 arrays in random order.

    ceil(fraction * count) of `count` images are for validation. The split depends on (seed, net).
    Raises ValueError for a fraction outside [0, 1), or if no image remains for training.
    """
    held_out = validation_count(count, fraction)
    if held_out >= count:
        raise ValueError(
            f"count: got {count} images, expected at least one for training besides"
            f" {held_out} for validation"
        )
    seed, net = checks.word("seed", seed), checks.word("net", net)
    order = rng.permutation(seed, net, rng.SPLIT, 0, count)  # (count,)
    return order[held_out:], order[:held_out]
