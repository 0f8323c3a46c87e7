"""The optimizer and the learning-rate schedule."""

from dataclasses import dataclass
from math import inf

from .. import checks


@dataclass(frozen=True)
class Adam:
    """Adam on the flat parameters w (E, P) with gradients g. In step t, from 1:

        m = beta_1 * m + (1 - beta_1) * g
        v = beta_2 * v + (1 - beta_2) * g**2
        w = w - learning_rate * sqrt(1 - beta_2**t) / (1 - beta_1**t) * m / (sqrt(v) + epsilon)

    Defaults, and where epsilon is added, are Keras's. Source: D. Kingma, J. Ba, arXiv:1412.6980.
    """

    learning_rate: float = 1e-3
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-7

    def __post_init__(self):
        limits = {
            "learning_rate": (0, inf, "(]"),
            "beta_1": (0, 1, "[)"),
            "beta_2": (0, 1, "[)"),
            "epsilon": (0, inf, "(]"),
        }
        for name, limit in limits.items():  # as Python's floats, which JSON takes
            object.__setattr__(self, name, checks.number(name, getattr(self, name), *limit))

    def update(self, ops, params, gradients, m, v, step, learning_rate):
        """One step, in place, on params, gradients, m and v (E, P). Increments `step` by 1.

        step and learning_rate are arrays of one element on the device.
        """
        ops.adam(
            params,
            gradients,
            m,
            v,
            step,
            learning_rate,
            self.beta_1,
            self.beta_2,
            self.epsilon,
        )


@dataclass(frozen=True)
class ExponentialDecay:
    """The learning rate of epoch e (from 1): initial * decay**(e - 1)."""

    initial: float
    decay: float

    def __post_init__(self):
        checks.number("initial", self.initial, 0, ends="(]")
        checks.number("decay", self.decay, 0, ends="(]")

    def __call__(self, epoch):
        """The learning rate of an epoch, from 1."""
        return self.initial * self.decay ** (epoch - 1)
