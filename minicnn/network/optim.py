"""The optimizer, the learning-rate schedules, and the averaging of weights."""

from dataclasses import dataclass
from math import inf

import numpy as np

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

        step is an array of one element on the device, learning_rate (n,) holds the rates of the
        steps: step s, from 0, takes element s % n.
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


class Schedule:
    """The learning rate of each step of a training, in which the progress p goes from 0 to 1.

    rate(p) = initial * min(1, p / warm_up) * fall, where `fall` is the subclass's. So the rate
    first rises linearly from 0, in the fraction warm_up of all steps, unless that is 0.
    """

    def rates(self, epoch, steps, epochs):
        """The rates (steps,) float64 of an epoch, from 1, of `epochs` with `steps` steps each.

        Step i of all n steps, from 0, has p = (i + 0.5) / n: no rate is 0.
        """
        p = (np.arange(steps) + float((epoch - 1) * steps) + 0.5) / float(steps * epochs)
        rise = np.minimum(1, p / self.warm_up) if self.warm_up else 1.0
        after = np.maximum(0, p - self.warm_up) / (1 - self.warm_up)
        return self.initial * self._fall(epoch, after) * rise

    def __post_init__(self):
        checks.number("initial", self.initial, 0, ends="(]")
        checks.number("warm_up", self.warm_up, 0, 1, "[)")


@dataclass(frozen=True)
class ExponentialDecay(Schedule):
    """The learning rate of epoch e (from 1): initial * decay**(e - 1), equal in all its steps.

    With warm_up, it first rises: see Schedule.
    """

    initial: float
    decay: float
    warm_up: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        checks.number("decay", self.decay, 0, ends="(]")

    def __call__(self, epoch):
        """The learning rate of an epoch, from 1, after the warm-up."""
        return self.initial * self.decay ** (epoch - 1)

    def _fall(self, epoch, after):
        return np.full(after.shape, self.decay ** (epoch - 1))


@dataclass(frozen=True)
class LinearDecay(Schedule):
    """The learning rate falls from `initial` to 0: after the warm-up, linearly with the steps.

    With warm_up this is a one-cycle policy: L. Smith, N. Topin, arXiv:1708.07120.
    """

    initial: float
    warm_up: float = 0.0

    def _fall(self, epoch, after):
        return 1 - after


@dataclass(frozen=True)
class CosineDecay(Schedule):
    """The learning rate falls from `initial` to 0: after the warm-up, as half a period of a cosine.

    A fraction a of the steps after the warm-up gives initial * (1 + cos(pi * a)) / 2. Source:
    I. Loshchilov, F. Hutter, arXiv:1608.03983, without restarts.
    """

    initial: float
    warm_up: float = 0.0

    def _fall(self, epoch, after):
        return np.cos(np.pi / 2 * after) ** 2  # the same value, without cancellation near a = 1


@dataclass(frozen=True)
class Averaging:
    """Which weights a training averages: those after each step of `epochs`, a range from 1.

    With decay 0 the average is the mean; else, after each step with the weights w, it is
    a = decay * a + (1 - decay) * w, beginning with a = w after the first step. Sources: B. Polyak,
    A. Juditsky, "Acceleration of stochastic approximation by averaging", 1992; P. Izmailov and
    others, arXiv:1803.05407.
    """

    epochs: range
    decay: float

    @classmethod
    def of(cls, average_epochs, average_decay, epochs):
        """The Averaging of a training's `epochs`, a range from 1; None if it averages nothing.

        average_epochs: the mean over so many last epochs, if not 0; average_decay: the exponential
        average over all, if not 0. Raises ValueError that names the argument.
        """
        checks.integer("average_epochs", average_epochs, 0, len(epochs))
        checks.number("average_decay", average_decay, 0, 1, "[)")
        if average_epochs and average_decay:
            raise ValueError(
                f"average_decay: got {average_decay!r} with average_epochs {average_epochs}, "
                "expected only one of them"
            )
        if average_decay:
            return cls(epochs, average_decay)
        return cls(epochs[-average_epochs:], 0.0) if average_epochs else None

    def weights(self, epoch, steps):
        """The weights (steps,) float64 that an epoch's steps have in ops_numpy.average, or None."""
        if epoch not in self.epochs:
            return None
        count = 1 + self.epochs.index(epoch) * steps + np.arange(steps)  # of the steps averaged
        return np.where(count == 1, 1.0, 1 - self.decay) if self.decay else 1 / count
