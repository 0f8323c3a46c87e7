"""How sure a mean is: what a few trainings tell of all that could have been.

These intervals are about the chance in training (weights, splits, shuffles, augmentation). The test
images are the same each time, so of other test images they say nothing.
"""

import numpy as np
from scipy.special import stdtrit  # Student's t, whose quantiles are tables elsewhere

from .. import rng

CONFIDENCE = 0.95
_RESAMPLES = 4000


def mean_interval(values):
    """(low, high): Student's 95 % interval of the mean of accuracies (n,); NaN for fewer than two.

    Of a handful of values it is wide, as it should be, where a bootstrap would be too sure. It ends
    where accuracies do, at 0 and 1.
    """
    low, high = gain_interval(values)
    return np.clip(low, 0, 1), np.clip(high, 0, 1)


def gain_interval(gains):
    """(low, high): Student's 95 % interval of the mean of gains (n,), each that of a pair."""
    gains = np.asarray(gains, float)
    if len(gains) < 2:
        return np.nan, np.nan
    reach = stdtrit(len(gains) - 1, (1 + CONFIDENCE) / 2)
    reach *= gains.std(ddof=1) / np.sqrt(len(gains))
    return gains.mean() - reach, gains.mean() + reach


def difference_interval(before, after):
    """(low, high): Welch's 95 % interval of the difference of the means of two sets of accuracies.

    NaN where either has fewer than two values. Source: B. L. Welch, Biometrika 34, 1947.
    """
    if min(len(before), len(after)) < 2:
        return np.nan, np.nan
    parts = np.array([np.var(values, ddof=1) / len(values) for values in (before, after)])
    middle = np.mean(after) - np.mean(before)
    if not parts.any():
        return middle, middle
    freedom = parts.sum() ** 2 / (
        parts[0] ** 2 / (len(before) - 1) + parts[1] ** 2 / (len(after) - 1)
    )
    reach = stdtrit(freedom, (1 + CONFIDENCE) / 2) * np.sqrt(parts.sum())
    return max(middle - reach, -1.0), min(middle + reach, 1.0)


def bootstrap_interval(values, statistic):
    """(low, high): the 95 % percentile interval of statistic(values, axis) over resamples of
    values (n,); NaN for fewer than two.

    Source: B. Efron, R. J. Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
    """
    values = np.asarray(values, float)
    n = len(values)
    if n < 2:
        return np.nan, np.nan
    words = rng.random_words(0, 0, rng.BOOTSTRAP, 0, np.empty(_RESAMPLES * n, np.uint32))
    chosen = (words.astype(np.uint64) * np.uint64(n)) >> np.uint64(32)  # uniform below n
    found = statistic(values[chosen.reshape(_RESAMPLES, n)], axis=1)
    tail = (1 - CONFIDENCE) / 2
    return tuple(map(float, np.quantile(found, [tail, 1 - tail])))


def deviation(values, axis=-1):
    """The standard deviation of values, estimated from a sample: n - 1 below the line."""
    return np.std(values, axis=axis, ddof=1)


def spread(values):
    """What there is to say of accuracies (n,), a dict: n, mean and standard deviation, each with
    its bootstrap interval, minimum and maximum.
    """
    values = np.asarray(values, float)
    if not len(values):
        return {"n": 0}
    mean_low, mean_high = bootstrap_interval(values, np.mean)
    sd_low, sd_high = bootstrap_interval(values, deviation)
    return {
        "n": len(values),
        "mean": values.mean(),
        "mean_low": mean_low,
        "mean_high": mean_high,
        "sd": deviation(values) if len(values) > 1 else np.nan,
        "sd_low": sd_low,
        "sd_high": sd_high,
        "min": values.min(),
        "max": values.max(),
    }
