"""Keras 3: a model with the same layers, as a .keras file or as objects, and its weights back.

Keras itself writes the file, so that it fits the Keras that is installed.
"""

import itertools
import tempfile
from pathlib import Path

import numpy as np

from ..files import atomic_write, brief
from .shared import net_names, optional, walk

# Layers that ask where the channels are. Unless told, Keras reads that from the user's settings.
_WITH_CHANNELS = "Conv2D", "MaxPooling2D", "Flatten"


def save_keras(model, path, each_net=False):
    """Write a Sequential to a .keras file, in float32: a functional model that is not compiled.

    Input: images (N, H, W, C) in [0, 1]. Output: (N, classes), the mean of the nets' probabilities;
    with `each_net` (N, E, classes), those of each net. The nets are its layers "net_1" and so on,
    each a keras.Sequential. Raises ValueError without Keras or its backend, or if the name does not
    end in .keras, which Keras demands; and OSError.
    """
    path = Path(path)
    if path.suffix != ".keras":
        raise ValueError(f"{path}: expected a name that ends in .keras")
    keras = _keras()
    nets = to_keras(model)
    images = keras.Input(model.input_shape, name="images")
    outputs = [net(images) for net in nets]
    if each_net:
        outputs = [keras.layers.Reshape((1, *model.output_shape))(y) for y in outputs]
        join = keras.layers.Concatenate(axis=1, name="probabilities")
    else:
        join = keras.layers.Average(name="probabilities")
    joined = join(outputs) if len(outputs) > 1 else outputs[0]  # they take two or more
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder, "model.keras")
        keras.Model(images, joined).save(written)
        content = written.read_bytes()
    with atomic_write(path) as file:
        file.write(content)


def to_keras(model):
    """[keras.Sequential, ...]: each net of a Sequential as a Keras model, in float32.

    The layers have the names of model.named_weights. Raises ValueError without Keras or its
    backend.
    """
    keras = _keras()
    layers = walk(model)
    described = model.architecture.as_dict()["layers"]
    weights = [array for _, _, own in layers for array in own.values()]  # each (E, ...)
    nets = []
    for e, name in enumerate(net_names(model)):
        made = [
            _layer(keras.layers, node.name, **values)
            for (_, node, _), values in zip(layers, described, strict=True)
        ]
        net = keras.Sequential([keras.Input(model.input_shape), *made], name=name)
        net.set_weights([array[e] for array in weights])
        nets.append(net)
    return nets


def _layer(layers, name, layer, **arguments):
    """A layer of Keras, from Architecture.as_dict: its class and arguments have Keras's names."""
    if layer in _WITH_CHANNELS:
        arguments["data_format"] = "channels_last"
    return getattr(layers, layer)(**arguments, name=name, dtype="float32")


def from_keras(models):
    """The weights of a Keras model, or of a list of E with the same layers, for set_weights.

    Returns a list of arrays (E, ...) in Keras's order, which is that of Sequential.get_weights: so
    model.set_weights(from_keras(models)) fills a model of the same layers. Raises ValueError if the
    layers or the shapes of the models differ.
    """
    models = list(models) if isinstance(models, (list, tuple)) else [models]
    if not models:
        raise ValueError("models: got an empty list, expected at least one Keras model")
    for i, model in enumerate(models):
        if not hasattr(model, "get_weights") or not hasattr(model, "layers"):
            raise ValueError(
                f"models: got {brief(repr(model))} at position {i}, expected a Keras model"
            )
    each = [model.get_weights() for model in models]
    _check_same("layer", [_kinds(model) for model in models])
    _check_same("shape of weight", [[array.shape for array in weights] for weights in each])
    return [np.stack(arrays) for arrays in zip(*each, strict=True)]


def _kinds(model):
    """The names of the classes of a Keras model's layers."""
    names = [type(layer).__name__ for layer in model.layers]
    return [name for name in names if name != "InputLayer"]  # only some kinds of models list it


def _check_same(what, lists):
    """Raise ValueError unless the lists, one for each model, are equal."""
    for i, of_model in enumerate(lists):
        pairs = itertools.zip_longest(of_model, lists[0], fillvalue="none")
        for j, (got, expected) in enumerate(pairs):
            if got != expected:
                raise ValueError(
                    f"models: {what} {j} of the model at position {i}: got {got}, expected "
                    f"{expected}, as at position 0"
                )


def _keras():
    return optional("keras", "a Keras model")
