"""Recipes: the settings of the networks and of their training.

The data and the machine (device, precision, processes, memory) are not part of a recipe. Read
training/ensemble.py next.
"""

from dataclasses import asdict, dataclass

from . import checks
from .augment import RandomAffine
from .model import MNIST_SHAPE, Sequential, mnist_layers
from .network.optim import ExponentialDecay
from .network.stack import connect


@dataclass(frozen=True)
class Recipe:
    """How an ensemble is trained. The defaults are the notebook's.

    Nets are numbered from 1. rotation, zoom, width_shift and height_shift are the ranges of
    RandomAffine: degrees and fractions. The learning rate of epoch e (from 1) is
    learning_rate * decay**(e - 1). momentum is that of batch normalisation's moving statistics.
    Raises ValueError that names the field out of range.
    """

    nets: int = 15
    first_net: int = 1
    epochs: int = 45
    batch_size: int = 64
    validation_fraction: float = 0.1
    rotation: float = 10.0
    zoom: float = 0.1
    width_shift: float = 0.1
    height_shift: float = 0.1
    learning_rate: float = 1e-3
    decay: float = 0.95
    dropout: float = 0.4
    momentum: float = 0.99
    seed: int = 0

    def __post_init__(self):
        checks.integer("nets", self.nets, 1, 10_000)
        checks.integer("first_net", self.first_net, 1, 2**32 - 1 - self.nets)
        for name in ("epochs", "batch_size"):
            checks.integer(name, getattr(self, name), 1)
        for name in ("validation_fraction", "zoom", "dropout", "momentum"):
            checks.number(name, getattr(self, name), 0, 1, "[)")
        for name in ("width_shift", "height_shift"):
            checks.number(name, getattr(self, name), 0, 1)
        checks.number("learning_rate", self.learning_rate, 0, ends="(]")
        checks.number("decay", self.decay, 0, 1, "(]")
        checks.number("rotation", self.rotation, 0, 180)
        checks.word("seed", self.seed)

    @property
    def all_nets(self):
        """The numbers of the nets, a range."""
        return range(self.first_net, self.first_net + self.nets)

    @property
    def augment(self):
        """The augmentation, a RandomAffine."""
        return RandomAffine(self.rotation, self.zoom, self.width_shift, self.height_shift)

    @property
    def schedule(self):
        """The learning rate as a function of the epoch."""
        return ExponentialDecay(self.learning_rate, self.decay)

    @property
    def layers(self):
        """The network's layers."""
        return mnist_layers(self.dropout, self.momentum)

    @property
    def nodes(self):
        """The network's layers with their names and shapes: nodes of network/stack.py."""
        return connect(self.layers, MNIST_SHAPE)

    def model(self, nets, device="auto", precision="float32"):
        """A new, untrained Sequential of the nets in a range."""
        # Nets of an ensemble are numbered from 1, those of Sequential from 0.
        return Sequential(
            self.layers,
            MNIST_SHAPE,
            nets=len(nets),
            first_net=nets[0] - 1,
            seed=self.seed,
            device=device,
            precision=precision,
        )

    def as_dict(self):
        """The fields as a dict of numbers, for JSON."""
        return asdict(self)


# With momentum 0.99 the moving statistics need about 500 steps to follow the weights. The demo has
# fewer, so its momentum is 0.9.
RECIPES = {
    "seed": Recipe(),
    "demo": Recipe(nets=4, epochs=3, momentum=0.9),
}
