"""An architecture: the layers of a network, the shape of its input, and the names of its classes.

A checkpoint holds the architecture of its nets as JSON: a list of layers, each with the arguments
of its constructor. So a file says what it takes to use its weights.
"""

import inspect
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..data.labels import MAX_CLASSES, classes_text
from ..data.sources import size_text
from ..files import brief
from . import layers as known
from .layers import Layer
from .stack import connect

_MOST_NAME = 60  # characters
_MOST_SIDE = 1 << 24  # of an input shape
_MOST_LAYERS = 1_000
_LAYERS = {
    name: kind
    for name, kind in vars(known).items()
    if inspect.isclass(kind) and issubclass(kind, Layer) and kind is not Layer
}


@dataclass(frozen=True)
class Architecture:
    """Layers for inputs of shape (H, W, C) or (K,); `classes` are names, None without classes.

    Raises ValueError that names the argument, or the layer that does not fit its input.
    """

    layers: tuple
    input_shape: tuple
    classes: tuple | None = None

    def __post_init__(self):
        if not isinstance(self.layers, (list, tuple)) or not self.layers:
            raise ValueError(
                f"layers: got {brief(repr(self.layers))}, expected a list of at least one layer"
            )
        if len(self.layers) > _MOST_LAYERS:
            raise ValueError(f"layers: got {len(self.layers):,}, expected at most {_MOST_LAYERS:,}")
        object.__setattr__(self, "layers", tuple(self.layers))
        object.__setattr__(self, "input_shape", _checked_shape(self.input_shape))
        if self.classes is not None:
            object.__setattr__(self, "classes", checked_classes(self.classes))
        last = connect(self.layers, self.input_shape)[-1].output_shape
        if self.classes is not None and last[-1] != len(self.classes):
            raise ValueError(
                f"classes: got {len(self.classes):,} names, the last layer has {last[-1]:,} outputs"
            )

    @property
    def nodes(self):
        """New nodes of network/stack.py: the layers with their names and shapes."""
        return connect(self.layers, self.input_shape)

    @cached_property
    def output_shape(self):
        """The shape of the output for one input."""
        return self.nodes[-1].output_shape

    @property
    def purpose(self):
        """What the network tells apart, as text: `28x28 images of 10 classes 0..9`."""
        *sides, channels = self.input_shape
        shape = self.input_shape if channels > 1 else tuple(sides)
        text = f"{size_text(shape)} images" if sides else f"vectors of {channels:,} numbers"
        return text if self.classes is None else f"{text} of {classes_text(self.classes)}"

    def as_dict(self):
        """The architecture for JSON. Raises ValueError for a layer that this package does not have.

        from_dict() makes the architecture again.
        """
        return {
            "layers": [_layer_as_dict(layer) for layer in self.layers],
            "input_shape": list(self.input_shape),
            "classes": None if self.classes is None else list(self.classes),
        }

    @classmethod
    def from_dict(cls, value):
        """The inverse of as_dict, for content of unknown origin. Raises ValueError."""
        if not isinstance(value, dict) or set(value) != {"layers", "input_shape", "classes"}:
            raise ValueError(
                f"architecture: got {brief(repr(value))}, expected layers, input_shape and classes"
            )
        found = value["layers"]
        if not isinstance(found, list):
            raise ValueError(f"layers: got {brief(repr(found))}, expected a list of layers")
        layers = [_layer_from_dict(layer) for layer in found]
        return cls(layers, value["input_shape"], value["classes"])


def _layer_as_dict(layer):
    kind = type(layer)
    if _LAYERS.get(kind.__name__) is not kind:
        raise ValueError(
            f"layers: got {brief(repr(layer))}, expected a layer of minicnn: only these can be "
            "saved"
        )
    values = {name: getattr(layer, name) for name in _arguments(kind)}
    return {
        "layer": kind.__name__,
        **{name: list(v) if isinstance(v, tuple) else v for name, v in values.items()},
    }


def _layer_from_dict(value):
    kind = value.get("layer") if isinstance(value, dict) else None
    kind = _LAYERS.get(kind) if isinstance(kind, str) else None
    if kind is None or set(value) != {"layer", *_arguments(kind)}:
        raise ValueError(f"layers: got {brief(repr(value))}, expected a layer with its arguments")
    return kind(**{name: value[name] for name in _arguments(kind)})


def _arguments(kind):
    """The names of the arguments of a layer's constructor. They are its attributes, too."""
    if kind.__init__ is object.__init__:
        return []
    return list(inspect.signature(kind).parameters)


def _checked_shape(shape):
    fine = isinstance(shape, (tuple, list)) and len(shape) in (1, 3)
    fine = fine and all(
        isinstance(n, (int, np.integer)) and not isinstance(n, bool) and 0 < n <= _MOST_SIDE
        for n in shape
    )
    if not fine:
        raise ValueError(f"input_shape: got {brief(repr(shape))}, expected (H, W, C) or (K,)")
    return tuple(map(int, shape))


def checked_classes(classes):
    """The names of classes as a tuple. Raises ValueError if they are not a few different names."""
    if isinstance(classes, np.ndarray):
        classes = classes.tolist()
    fine = isinstance(classes, (list, tuple)) and 2 <= len(classes) <= MAX_CLASSES
    fine = fine and all(isinstance(name, str) and len(name) <= _MOST_NAME for name in classes)
    if not fine or len(set(classes)) < len(classes):
        raise ValueError(
            f"classes: got {brief(repr(classes))}, expected 2 to {MAX_CLASSES:,} different names "
            f"of at most {_MOST_NAME} characters"
        )
    return tuple(classes)
