"""The optimizer, the learning-rate schedules, and the averaging of weights."""

from dataclasses import dataclass
from math import ceil, cos, inf, pi

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
        """One step, in place, on params, m and v (E, P) with their gradients (E, P).

        ops: a Backend, or what else has its `adam`. step is an array of one element on the device,
        the steps done before; learning_rate (n,) holds the rates of the steps: step s, from 0,
        takes element s % n.
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


def warm_up_epochs(warm_up, steps, epochs):
    """How many epochs have steps in the warm-up, the fraction warm_up of all steps."""
    # Step i, from 0, belongs to it if (i + 0.5) / (steps * epochs) < warm_up: see Schedule.
    return ceil(warm_up * epochs - 0.5 / steps)


class Schedule:
    """The learning rate of each step of a training, in which the progress p goes from 0 to 1.

    rate(p) = initial * min(1, p / warm_up) * fall, where `fall` is the subclass's: it is 1 during
    the warm-up, and monotone after it. So the rate first rises linearly from 0, in the fraction
    warm_up of all steps, unless that is 0. Subclasses are dataclasses with the fields initial and
    warm_up.
    """

    def __post_init__(self):
        self._check("initial", 0, ends="(]")
        self._check("warm_up", 0, 1, "[)")

    def _check(self, name, *limits, **options):
        """Check a number and keep it as Python's float, whatever its type was."""
        object.__setattr__(self, name, checks.number(name, getattr(self, name), *limits, **options))

    def rates(self, epoch, steps, epochs):
        """The rates (steps,) float64 of an epoch, from 1, of `epochs` with `steps` steps each.

        Step i of all n steps, from 0, has p = (i + 0.5) / n: no rate is 0.
        """
        p = (np.arange(steps) + float((epoch - 1) * steps) + 0.5) / float(steps * epochs)
        rise = np.minimum(1, p / self.warm_up) if self.warm_up else 1.0
        return self.initial * self._fall(epoch, p, epochs) * rise

    def extremes(self, trained, steps, epochs):
        """A few of the epochs `trained`, a range, which have the lowest and the highest rate."""
        # The rate is monotone in the warm-up and after it.
        last = warm_up_epochs(self.warm_up, steps, epochs)
        ends = {trained[0], last, last + 1, trained[-1]}
        return sorted(epoch for epoch in ends if epoch in trained)

    def _after(self, p):
        """The fractions of the steps after the warm-up that have been done at the progress p."""
        return np.maximum(0, p - self.warm_up) / (1 - self.warm_up)


@dataclass(frozen=True)
class ExponentialDecay(Schedule):
    """The learning rate of epoch e (from 1): initial * decay**(e - 1), equal in all its steps.

    With warm_up the rate first rises: see Schedule. Then e counts the epochs from the first one
    that lies wholly after the warm-up; the steps between have the rate `initial`.
    """

    initial: float
    decay: float
    warm_up: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        self._check("decay", 0, ends="(]")

    def __call__(self, epoch):
        """The learning rate of an epoch, counted from 1 as above; infinite if no float holds it."""
        return self.initial * self._power(epoch - 1)

    def _fall(self, epoch, p, epochs):
        before = warm_up_epochs(self.warm_up, len(p), epochs)
        return np.full(len(p), self._power(max(0, epoch - 1 - before)))

    def _power(self, exponent):
        try:
            return self.decay**exponent
        except OverflowError:  # it may be above 1
            return inf


@dataclass(frozen=True)
class LinearDecay(Schedule):
    """The learning rate falls from `initial` to 0: after the warm-up, linearly with the steps.

    With warm_up this is a one-cycle policy: L. Smith, N. Topin, arXiv:1708.07120.
    """

    initial: float
    warm_up: float = 0.0

    def _fall(self, epoch, p, epochs):
        return 1 - self._after(p)


@dataclass(frozen=True)
class CosineDecay(Schedule):
    """The learning rate falls from `initial` to 0: after the warm-up, as half a period of a cosine.

    A fraction a of the steps after the warm-up gives initial * (1 + cos(pi * a)) / 2. Source:
    I. Loshchilov, F. Hutter, arXiv:1608.03983, without restarts.
    """

    initial: float
    warm_up: float = 0.0

    def _fall(self, epoch, p, epochs):
        # cos(pi / 2 * a)**2 is the same value, without cancellation near a = 1. The last bit of
        # NumPy's cosine depends on the CPU.
        return np.array([cos(pi / 2 * a) for a in self._after(p).tolist()]) ** 2


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
        average_epochs = checks.integer("average_epochs", average_epochs, 0, len(epochs))
        average_decay = checks.number("average_decay", average_decay, 0, 1, "[)")
        if average_epochs and average_decay:
            raise ValueError(
                f"average_decay: got {average_decay!r} with average_epochs {average_epochs}, "
                "expected only one of them"
            )
        if average_decay:
            return cls(epochs, average_decay)
        return cls(epochs[-average_epochs:], 0.0) if average_epochs else None

    def shares(self, epoch, steps):
        """The shares (steps,) float64 of an epoch's steps in ops_numpy.average, or None."""
        if epoch not in self.epochs:
            return None
        count = 1 + self.epochs.index(epoch) * steps + np.arange(steps)  # of the steps averaged
        return np.where(count == 1, 1.0, 1 - self.decay) if self.decay else 1 / count
