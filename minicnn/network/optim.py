"""The optimizer and the learning-rate schedule."""

from dataclasses import dataclass

from .. import checks


@dataclass(frozen=True)
class Adam:
    """Adam over the flat parameters; defaults and the place of epsilon are Keras's."""

    learning_rate: float = 1e-3
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-7

    def __post_init__(self):
        checks.number("learning_rate", self.learning_rate, 0, ends="(]")
        checks.number("beta_1", self.beta_1, 0, 1, "[)")
        checks.number("beta_2", self.beta_2, 0, 1, "[)")
        checks.number("epsilon", self.epsilon, 0, ends="(]")

    def update(self, ops, params, gradients, m, v, step, learning_rate):
        """One step on arrays (E, P), in place; `step` and `learning_rate` are arrays of one."""
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
    """A learning rate that is multiplied by `decay` after each epoch."""

    initial: float
    decay: float

    def __post_init__(self):
        checks.number("initial", self.initial, 0, ends="(]")
        checks.number("decay", self.decay, 0, ends="(]")

    def __call__(self, epoch):
        """The learning rate of an epoch; epochs count from 1."""
        return self.initial * self.decay ** (epoch - 1)
