"""What the formats share: optional packages, the layers and weights of a model, facts about it."""

import importlib
import json

import numpy as np

from .. import __version__

_INSTALL = {
    "keras": "pip install keras",
    "onnx": 'pip install "minicnn[export]"',
    "safetensors": 'pip install "minicnn[export]"',
    "torch": "pip install torch",
}


def optional(module, purpose):
    """Import a module such as "safetensors.numpy" that is needed for `purpose`, and return it.

    Raises ValueError that names the package to install if it, or a package that it needs, is
    missing.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or package).partition(".")[0]
        if missing == package:
            raise ValueError(f"{purpose} needs {package}: {_INSTALL[package]}") from None
        advice = f"pip install {missing}"
        if package == "keras":
            advice += ", or set KERAS_BACKEND to torch or jax if that is installed"
        raise ValueError(f"{purpose} needs {package}, which needs {missing}: {advice}") from None


def walk(model, dtype=np.float32):
    """[(layer, node, weights), ...] of a Sequential, from its input to its output.

    weights: {"kernel": array (E, ...), ...} in Keras's order, C-contiguous copies of type `dtype`,
    in the host's memory. The node (network/stack.py) has the layer's name and shapes. Raises
    ValueError for a layer that is not one of this package, and for weights that are not finite.
    """
    model.architecture.as_dict()  # refuses other layers
    finite = np.isfinite(model.ops.to_host(model.params)).all(axis=1)
    finite &= np.isfinite(model.ops.to_host(model.moving)).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"weights: those of net {model.nets[~finite][0] + 1} are not finite, expected finite "
            "ones; load_model leaves out nets that diverged"
        )
    found = []
    # node.layer lacks the last layer's softmax: see connect.
    for layer, node in zip(model.layers, model.nodes, strict=True):
        views = vars(node.weights) | vars(node.moving)
        weights = {
            name: np.ascontiguousarray(model.ops.to_host(view), dtype)
            for name, view in views.items()
        }
        found.append((layer, node, weights))
    return found


def net_names(model):
    """["net_1", ...]: a name for each net. Nets count from 1, as in a run folder."""
    return [f"net_{net + 1}" for net in model.nets]


def facts(model):
    """{name: text} about a model, for a file's metadata.

    architecture: Architecture.as_dict() as JSON; nets: their numbers, from 1, as JSON; classes: the
    names of the classes as JSON, if the model has such; minicnn: the version that wrote the file.
    """
    architecture = model.architecture
    about = {
        "architecture": json.dumps(architecture.as_dict()),
        "nets": json.dumps([int(net) + 1 for net in model.nets]),
        "minicnn": __version__,
    }
    if architecture.classes is not None:
        about["classes"] = json.dumps(architecture.classes)
    return about
