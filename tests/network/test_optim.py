"""Adam's settings and the learning-rate schedule; test_loss_and_adam.py tests Adam's results."""

import dataclasses
import re

import pytest

from minicnn import Adam, ExponentialDecay

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


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((-1e-3, 0.95), "initial"),
        ((float("nan"), 0.95), "initial"),
        (("fast", 0.95), "initial"),
        ((1e-3, -0.5), "decay"),
        ((1e-3, float("inf")), "decay"),
        ((1e-3, None), "decay"),
    ],
)
def test_bad_schedules_are_refused(arguments, named):
    with pytest.raises(ValueError, match=f"^{named}: got .*expected"):
        ExponentialDecay(*arguments)
