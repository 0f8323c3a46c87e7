"""Adam's settings and the learning-rate schedules; test_loss_and_adam.py tests Adam's results."""

import dataclasses
import re
from math import cos, pi

import numpy as np
import pytest

from minicnn import Adam, CosineDecay, ExponentialDecay, LinearDecay

pytestmark = pytest.mark.every_device


def test_adams_defaults_are_kerass():
    assert dataclasses.astuple(Adam()) == (1e-3, 0.9, 0.999, 1e-7)
    fields = [field.name for field in dataclasses.fields(Adam)]
    assert fields == ["learning_rate", "beta_1", "beta_2", "epsilon"]


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *[(name, bad) for name in ("beta_1", "beta_2") for bad in (-0.1, 1, 1.5, float("nan"))],
        *[
            (name, bad)
            for name in ("learning_rate", "epsilon")
            for bad in (0, -1e-3, float("nan"), float("inf"))
        ],
        *[(name, bad) for name in ("learning_rate", "beta_1", "epsilon") for bad in ("0.1", None)],
    ],
)
def test_bad_settings_of_adam_are_refused(argument, value):
    with pytest.raises(ValueError, match=f"^{argument}: got {re.escape(repr(value))}.*expected"):
        Adam(**{argument: value})


def test_adam_takes_the_ends_of_its_ranges():
    assert Adam(beta_1=0, beta_2=0).beta_1 == 0


def test_exponential_decay_counts_epochs_from_1():
    schedule = ExponentialDecay(1e-3, 0.95)
    assert schedule(1) == 1e-3
    assert schedule(2) == pytest.approx(0.95e-3, rel=1e-15)
    assert schedule(45) == pytest.approx(1e-3 * 0.95**44, rel=1e-14)  # Keras counts from 0
    assert ExponentialDecay(0.5, 1)(7) == 0.5
    rates = [schedule(epoch) for epoch in range(1, 46)]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("warm_up", [0, 0.25, 0.3])
def test_rates_are_those_of_the_closed_formulas(warm_up):
    """Step by step, in Python's floats."""
    steps, epochs = 5, 4
    schedules = ExponentialDecay(0.5, 0.9, warm_up), LinearDecay(0.5, warm_up)
    schedules = *schedules, CosineDecay(0.5, warm_up)
    for epoch in range(1, epochs + 1):
        found = [schedule.rates(epoch, steps, epochs) for schedule in schedules]
        for k in range(steps):
            p = ((epoch - 1) * steps + k + 0.5) / (steps * epochs)
            after = (p - warm_up) / (1 - warm_up)
            falls = 0.9 ** (epoch - 1), 1 - after, (1 + cos(pi * after)) / 2
            if p < warm_up:
                falls = falls[0] * p / warm_up, *[p / warm_up] * 2
            assert [rates[k] for rates in found] == pytest.approx(
                [0.5 * f for f in falls], rel=1e-12
            )


def test_no_rate_is_0():
    for kind in (LinearDecay, CosineDecay):
        for warm_up in (0, 0.1):
            first, last = (kind(1e-3, warm_up).rates(epoch, 10**6, 1000) for epoch in (1, 1000))
            assert 0 < first[0] <= 1e-3 and 0 < last[-1] < 1e-11
            assert (np.diff(last) < 0).all()


def test_without_warm_up_exponential_decay_is_equal_in_an_epoch():
    schedule = ExponentialDecay(1e-3, 0.95)
    for epoch in (1, 2, 45):
        assert schedule.rates(epoch, 3, 45).tolist() == [schedule(epoch)] * 3


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((-1e-3, 0.95), "initial"),
        ((float("nan"), 0.95), "initial"),
        (("fast", 0.95), "initial"),
        ((1e-3, -0.5), "decay"),
        ((1e-3, float("inf")), "decay"),
        ((1e-3, None), "decay"),
        ((1e-3, 0.95, 1), "warm_up"),
        ((1e-3, 0.95, -0.1), "warm_up"),
    ],
)
def test_bad_schedules_are_refused(arguments, named):
    with pytest.raises(ValueError, match=f"^{named}: got .*expected"):
        ExponentialDecay(*arguments)
    if named != "decay":
        for kind in (LinearDecay, CosineDecay):
            with pytest.raises(ValueError, match=f"^{named}: got .*expected"):
                kind(arguments[0], *arguments[2:])
