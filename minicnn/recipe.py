"""Recipes: the settings of the networks and of their training; the notebook's layers.

The data and the machine (device, precision, processes, memory) are not part of a recipe. Read
training/ensemble.py next.
"""

from dataclasses import asdict, dataclass, replace
from typing import ClassVar

from . import checks
from .augment import MOST_VIEWS, RandomAffine
from .data.labels import DIGITS
from .files import brief
from .nets import Nets
from .network.architecture import Architecture, checked_classes
from .network.layers import BatchNormalization, Conv2D, Dense, Dropout, Flatten
from .network.optim import Averaging, CosineDecay, ExponentialDecay, LinearDecay
from .network.stack import connect

MNIST_SHAPE = 28, 28, 1
_MOST_SIDE = 1 << 16  # pixels
SCHEDULES = "exponential", "linear", "cosine"  # of the learning rate


@dataclass(frozen=True)
class Recipe:
    """How an ensemble is trained. The defaults are the notebook's.

    Nets are numbered from 1. rotation, zoom, width_shift, height_shift and elastic are the ranges
    of RandomAffine: degrees and fractions.

    learning_rate is the highest one. schedule says how it falls: "exponential", by the factor decay
    after each whole epoch that follows the warm-up; "linear" or "cosine", with each step, to 0 at
    the end. In the warm-up, the fraction warm_up of all steps, it rises linearly from 0: see
    network/optim.py.

    With label_smoothing s the targets in training are (1 - s) * onehot + s / classes; the
    validation loss is that of the labels themselves. momentum is that of batch normalisation's
    moving statistics. With average_epochs or average_decay the weights that predict are an average
    over steps: see Averaging in network/optim.py. Of the history, only the last epoch's validation
    is that of the average. Probabilities of test images are means over the first `views` of
    augment.views; validation uses the images themselves.

    input_shape is (H, W, C) of an image, classes holds the names of the classes. They follow from
    the data: see `of`. Raises ValueError that names the field out of range.
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
    elastic: float = 0.0
    learning_rate: float = 1e-3
    decay: float = 0.95
    schedule: str = "exponential"
    warm_up: float = 0.0
    label_smoothing: float = 0.0
    dropout: float = 0.4
    momentum: float = 0.99
    average_epochs: int = 0
    average_decay: float = 0.0
    views: int = 1
    seed: int = 0
    input_shape: tuple = MNIST_SHAPE
    classes: tuple = DIGITS

    # Where a training begins: new nets, which no step has changed.
    initial_epoch: ClassVar[int] = 0
    initial_step: ClassVar[int] = 0
    dtype: ClassVar[str] = "float32"

    def __post_init__(self):
        object.__setattr__(self, "input_shape", _checked_shape(self.input_shape))
        object.__setattr__(self, "classes", checked_classes(self.classes))
        checks.integer("nets", self.nets, 1, 10_000)
        checks.integer("first_net", self.first_net, 1, 2**32 - 1 - self.nets)
        for name in ("epochs", "batch_size"):
            checks.word(name, checks.integer(name, getattr(self, name), 1))
        for name in ("validation_fraction", "zoom", "label_smoothing", "dropout", "momentum"):
            checks.number(name, getattr(self, name), 0, 1, "[)")
        for name in ("width_shift", "height_shift", "elastic"):
            checks.number(name, getattr(self, name), 0, 1)
        checks.number("learning_rate", self.learning_rate, 0, ends="(]")
        checks.number("decay", self.decay, 0, 1, "(]")
        checks.choice("schedule", self.schedule, SCHEDULES)
        checks.number("warm_up", self.warm_up, 0, 1, "[)")
        checks.number("rotation", self.rotation, 0, 180)
        checks.integer("views", self.views, 1, MOST_VIEWS)
        _ = self.averaging  # raises unless average_epochs and average_decay fit
        checks.word("seed", self.seed)

    @property
    def all_nets(self):
        """The numbers of the nets, a range."""
        return range(self.first_net, self.first_net + self.nets)

    @property
    def augment(self):
        """The augmentation, a RandomAffine."""
        shifts = self.width_shift, self.height_shift
        return RandomAffine(self.rotation, self.zoom, *shifts, self.elastic)

    def learning_rates(self, epoch, steps):
        """The learning rates (steps,) of an epoch, from 1, that has so many steps."""
        if self.schedule == "exponential":
            schedule = ExponentialDecay(self.learning_rate, self.decay, self.warm_up)
        else:
            kind = LinearDecay if self.schedule == "linear" else CosineDecay
            schedule = kind(self.learning_rate, self.warm_up)
        return schedule.rates(epoch, steps, self.epochs)

    @property
    def averaging(self):
        """The Averaging of weights, or None."""
        return Averaging.of(self.average_epochs, self.average_decay, range(1, self.epochs + 1))

    @property
    def layers(self):
        """The network's layers."""
        return mnist_layers(self.dropout, self.momentum, len(self.classes))

    @property
    def architecture(self):
        """The network's Architecture."""
        return Architecture(self.layers, self.input_shape, self.classes)

    @property
    def nodes(self):
        """The network's layers with their names and shapes: nodes of network/stack.py."""
        return connect(self.layers, self.input_shape)

    def model(self, nets, device="auto", precision="float32"):
        """New, untrained Nets: those whose numbers, from 1, are in `nets`."""
        # Nets of an ensemble are numbered from 1, those of Nets from 0.
        numbers = [net - 1 for net in nets]
        settings = {"precision": precision, "label_smoothing": self.label_smoothing}
        return Nets(self.architecture, numbers, self.seed, device, **settings)

    def of(self, data):
        """A copy for a data set: `data` has input_shape and classes. Raises ValueError.

        The network must be able to take such images.
        """
        recipe = replace(self, input_shape=data.input_shape, classes=data.classes)
        recipe.check_size()
        return recipe

    def check_size(self):
        """Raise ValueError that names the layer if the images are too small for the network."""
        if (fault := self._misfit(*self.input_shape[:2])) is None:
            return
        # The two axes are independent: what one needs is found with the other as long as it gets.
        most = 1 << 10
        height = next((n for n in range(1, most) if not self._misfit(n, most)), most)
        width = next((n for n in range(1, most) if not self._misfit(most, n)), most)
        H, W, _ = self.input_shape
        raise ValueError(
            f"images of {H}x{W} pixels are too small for the network, which needs at least "
            f"{height}x{width}: {fault}"
        )

    def _misfit(self, height, width):
        """What a layer says about images of another size that do not fit; None if they fit."""
        try:
            connect(self.layers, (height, width, self.input_shape[2]))
        except ValueError as error:
            return error
        return None

    @property
    def about_data(self):
        """input_shape and classes, for JSON; {} for digits of 28 x 28, the fields' defaults."""
        if (self.input_shape, self.classes) == (MNIST_SHAPE, DIGITS):
            return {}
        return {"input_shape": list(self.input_shape), "classes": list(self.classes)}

    def for_checkpoint(self):
        """What a checkpoint says of its network and recipe: {field: value}."""
        return {"recipe": self.as_dict(), "architecture": self.architecture.as_dict()}

    def as_dict(self):
        """The fields as a dict, for JSON, of which Recipe(**fields) makes the recipe again."""
        values = asdict(self)
        del values["input_shape"], values["classes"]
        return values | self.about_data


# The fields that earlier versions do not have.
_ADDED = (
    "elastic",
    "schedule",
    "warm_up",
    "label_smoothing",
    "average_epochs",
    "average_decay",
    "views",
)


def completed(saved):
    """The dict `saved`, a recipe's fields from a file, with the fields of later versions.

    They have their defaults, because that is what earlier versions computed.
    """
    return {name: getattr(Recipe, name) for name in _ADDED} | saved


def image_shape(images):
    """(H, W, C) of images: (N, H, W) in grey, or (N, H, W, C)."""
    return (*images.shape[1:], 1)[:3]


def _checked_shape(shape):
    if not isinstance(shape, (list, tuple)) or len(shape) != 3:
        raise ValueError(f"input_shape: got {brief(repr(shape))}, expected (H, W, C)")
    return tuple(checks.integer("input_shape", length, 1, _MOST_SIDE) for length in shape)


def mnist_layers(dropout, momentum, classes=10):
    """The layers of the notebook's network."""
    checks.number("dropout", dropout, 0, 1, "[)")
    checks.integer("classes", classes, 2)

    def block(filters):
        return [
            Conv2D(filters, 3, activation="relu"),
            BatchNormalization(momentum),
            Conv2D(filters, 3, activation="relu"),
            BatchNormalization(momentum),
            Conv2D(filters, 5, strides=2, padding="same", activation="relu"),
            BatchNormalization(momentum),
            Dropout(dropout),
        ]

    return [
        *block(32),
        *block(64),
        Conv2D(128, 4, activation="relu"),
        BatchNormalization(momentum),
        Flatten(),
        Dropout(dropout),
        Dense(classes, activation="softmax"),
    ]


# Accuracies are means, with 95 % intervals: of MNIST's test images, after training on all of its
# 60,000 others. minicnn/studies/README.md has more of them.
#
# seed: the notebook's. An ensemble that is trained for 30 epochs, as in the notebook's trials, sees
# 27 million images: 99.740 % (99.665 to 99.815), 3 ensembles; single nets 99.642 %.
#
# fast: 5.4 million. No dropout, batches of 32, a learning rate that falls to 0 with each step, and
# 9 views. `minicnn.study recipes` chose these on training images that no net had seen.
# 99.722 % (99.697 to 99.747), 5 ensembles; single nets 99.654 %.
#
# single: one net, 0.6 million. Longer training can learn images by heart, so it has some dropout
# and stronger augmentation; in 6 epochs the study found them neither better nor worse. It averages
# its weights. 99.685 % (99.675 to 99.695), 45 nets. Voting gains little: 15 of its nets reach
# 99.703 %. So it became a recipe for one net, after the test.
#
# With momentum 0.99 the moving statistics need about 500 steps to follow the weights. The demo has
# fewer, so its momentum is 0.9.
RECIPES = {
    "seed": Recipe(),
    "fast": Recipe(
        epochs=6,
        batch_size=32,
        learning_rate=3e-3,
        schedule="linear",
        warm_up=0.1,
        dropout=0.0,
        views=9,
    ),
    "single": Recipe(
        nets=1,
        epochs=10,
        batch_size=32,
        rotation=15.0,
        zoom=0.15,
        learning_rate=3e-3,
        schedule="linear",
        warm_up=0.1,
        dropout=0.15,
        average_decay=0.999,
        views=9,
    ),
    "demo": Recipe(nets=4, epochs=3, momentum=0.9),
}
