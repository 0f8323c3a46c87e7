"""minicnn: a small convolutional-network library, written by hand down to its kernels.

The front door is the command train.py. To read the code, follow one training job:

    train.py -> recipe.py -> training/ensemble.py -> training/trainer.py -> nets.py
    -> network/stack.py, network/layers.py, network/plan.py -> backends/ops_numpy.py -> kernels/

Shapes are written with the same letters everywhere: E nets; B images of a batch, or N images of a
data set; H, W rows and columns; Cin, Cout input and output channels (C where they are the same);
Ho, Wo output rows and columns; K = kh*kw*Cin, the values under a kernel of kh rows and kw columns.
"""

__version__ = "0.1.0"

from . import augment, rng
from .augment import RandomAffine
from .data.load import load_data
from .model import Sequential, load_model, mnist_cnn
from .network.layers import (
    Activation,
    BatchNormalization,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    MaxPooling2D,
)
from .network.optim import Adam, CosineDecay, ExponentialDecay, LinearDecay

__all__ = [
    "Activation",
    "Adam",
    "BatchNormalization",
    "Conv2D",
    "CosineDecay",
    "Dense",
    "Dropout",
    "ExponentialDecay",
    "Flatten",
    "LinearDecay",
    "MaxPooling2D",
    "RandomAffine",
    "Sequential",
    "augment",
    "load_data",
    "load_model",
    "mnist_cnn",
    "prepare_digits",
    "rng",
]


def __getattr__(name):
    """prepare_digits, imported on its first use: scipy.ndimage takes a while to import."""
    if name != "prepare_digits":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .data.handwriting import prepare_digits  # noqa: PLC0415

    return prepare_digits
