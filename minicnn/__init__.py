"""minicnn: a convolutional-network library written by hand, small enough to read in an evening.

Start with train.py, the command; then ensemble.py, model.py, layers.py and ops_numpy.py.
"""

from . import augment, rng
from .augment import RandomAffine
from .data.load import load_data
from .model import Sequential, mnist_cnn
from .network.layers import (
    Activation,
    BatchNormalization,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    MaxPooling2D,
)
from .network.optim import Adam, ExponentialDecay

__version__ = "0.1.0"

__all__ = [
    "Activation",
    "Adam",
    "BatchNormalization",
    "Conv2D",
    "Dense",
    "Dropout",
    "ExponentialDecay",
    "Flatten",
    "MaxPooling2D",
    "RandomAffine",
    "Sequential",
    "augment",
    "load_data",
    "mnist_cnn",
    "rng",
]
