"""The networks from LeNet-5 to the seed network, one change at a time, and their recipes.

LeNet-5: Y. LeCun and others, "Gradient-based learning applied to document recognition", Proc. IEEE,
1998. Here in the usual form for 28x28 images: with max pooling, without padding. The changes are
those of the notebook, plus one that it does not list: the hidden dense layer is removed, because
the notebook's network has none.
"""

from dataclasses import dataclass

from ..network.layers import BatchNormalization, Conv2D, Dense, Dropout, Flatten, MaxPooling2D
from ..recipe import Recipe

STEPS = (
    "LeNet-5: sigmoid, max pooling",
    "ReLU for sigmoid",
    "two 3x3 convolutions for one 5x5",
    "a convolution of stride 2 for pooling",
    "batch normalisation",
    "dropout",
    "no hidden dense layer",
    "more maps: the seed network",
    "augmentation",
)


@dataclass(frozen=True)
class Variant(Recipe):
    """A recipe for the network STEPS[changes]: LeNet-5 after `changes` changes."""

    changes: int = 0

    @property
    def layers(self):
        """The network's layers."""
        return layers(self.changes, self.dropout, self.momentum, len(self.classes))


def layers(changes, dropout, momentum, classes=10):
    """The layers of the network STEPS[changes]: LeNet-5 after `changes` changes."""
    relu, pairs, strides, normalized, dropped, direct, wide = (changes > i for i in range(7))
    activation = "relu" if relu else "sigmoid"
    stack = []

    def add(layer):
        stack.append(layer)
        if normalized:
            stack.append(BatchNormalization(momentum))

    for maps in (32, 64) if wide else (6, 16):
        for size in (3, 3) if pairs else (5,):
            add(Conv2D(maps, size, activation=activation))
        if strides:
            add(Conv2D(maps, 5, strides=2, padding="same", activation=activation))
        else:
            stack.append(MaxPooling2D(2))
        if dropped:
            stack.append(Dropout(dropout))
    add(Conv2D(128 if wide else 120, 4, activation=activation))
    stack.append(Flatten())
    if not direct:
        add(Dense(84, activation=activation))
    if dropped:
        stack.append(Dropout(dropout))
    return [*stack, Dense(classes, activation="softmax")]


def recipe_of(fields):
    """A Variant if the dict `fields` has "changes", else a Recipe. Raises ValueError, TypeError."""
    return Variant(**fields) if "changes" in fields else Recipe(**fields)
