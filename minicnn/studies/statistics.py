"""Confidence intervals of accuracies, from a few trainings.

The intervals cover the randomness of training only: weights, splits, shuffles, augmentation. The
test images are the same in every training, so the intervals do not cover the choice of test images.
"""

import numpy as np
from scipy.special import stdtrit  # quantiles of Student's t

from .. import rng

CONFIDENCE = 0.95
_RESAMPLES = 4000


def mean_interval(values):
    """(low, high): Student's 95 % interval of the mean of accuracies (n,); NaN for fewer than two.

    Not a bootstrap: for a few values a bootstrap interval is too narrow. Limited to 0 and 1, the
    range of accuracies.
    """
    low, high = gain_interval(values)
    return np.clip(low, 0, 1), np.clip(high, 0, 1)


def gain_interval(gains):
    """(low, high): Student's 95 % interval of the mean of paired differences (n,).

    mean ± t(n - 1, 0.975) * standard deviation / sqrt(n)
    """
    gains = np.asarray(gains, float)
    if len(gains) < 2:
        return np.nan, np.nan
    margin = stdtrit(len(gains) - 1, (1 + CONFIDENCE) / 2)
    margin *= gains.std(ddof=1) / np.sqrt(len(gains))
    return gains.mean() - margin, gains.mean() + margin


def least_squares(design, values):
    """(k, 3): the k coefficients of a least-squares fit, and their 95 % intervals, low and high.

    design @ coefficients = values, where design is (n, k), of full rank, and values (n,). The
    intervals are Student's, from the residuals, with n - k degrees of freedom; NaN without any.
    """
    design, values = np.asarray(design, float), np.asarray(values, float)
    found, *_ = np.linalg.lstsq(design, values, rcond=None)
    freedom = len(values) - design.shape[1]
    margins = np.full(len(found), np.nan)
    if freedom:
        variance = np.sum((values - design @ found) ** 2) / freedom
        of_each = np.diag(np.linalg.inv(design.T @ design))
        margins = stdtrit(freedom, (1 + CONFIDENCE) / 2) * np.sqrt(variance * of_each)
    return np.stack([found, found - margins, found + margins], axis=1)


def difference_interval(before, after):
    """(low, high): Welch's 95 % interval of mean(after) - mean(before), two sets of accuracies.

    NaN if either has fewer than two values. Source: B. L. Welch, Biometrika 34, 1947.
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
    margin = stdtrit(freedom, (1 + CONFIDENCE) / 2) * np.sqrt(parts.sum())
    return max(middle - margin, -1.0), min(middle + margin, 1.0)


def bootstrap_interval(values, statistic):
    """(low, high): the 95 % bootstrap interval of a statistic of values (n,); NaN for fewer than 2.

    4000 times: resampled = n values drawn from values with replacement; statistic(resampled)
    low, high = quantiles 0.025 and 0.975 of the 4000 results

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
    """The sample standard deviation of values, with the divisor n - 1."""
    return np.std(values, axis=axis, ddof=1)


def spread(values):
    """Summary of accuracies (n,), a dict: n, mean and sd with bootstrap intervals, min and max."""
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
