"""PyTorch: a state dict of all nets. README.md has the module that takes it.

A state dict holds tensors only. So the module must know what lies between them: padding, strides,
activations, and epsilon of batch normalisation.
"""

import numpy as np

from ..files import atomic_write
from ..network.layers import BatchNormalization, Conv2D, Dense, Flatten
from .shared import optional, walk

_BATCH_NORM = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def save_pytorch(model, path):
    """Write a Sequential's weights to a file that torch.load(path, weights_only=True) reads.

    It holds a state dict, {"nets.0.conv2d.weight": tensor, ...} in float32, for a ModuleList `nets`
    of E modules whose attributes have the names of model.named_weights. Tensors have PyTorch's
    shapes: (Cout, Cin, kh, kw) and (units, K). The K inputs of the dense layer after Flatten are in
    PyTorch's order: (C, H, W). Raises ValueError without PyTorch, or if there is no dense layer
    after a Flatten for which the order matters; and OSError.
    """
    torch = optional("torch", "a PyTorch state dict")
    arrays = _arrays(model)
    state = {
        f"nets.{e}.{name}": torch.from_numpy(np.array(array[e], order="C"))
        for e in range(len(model.nets))
        for name, array in arrays.items()
    }
    with atomic_write(path) as file:
        torch.save(state, file)


def _arrays(model):
    """{"conv2d.weight": array (E, ...), ...} in PyTorch's names and shapes."""
    steps = model.steps_of_nets.astype(np.int64)
    arrays, order = {}, None  # the order of a vector's elements in PyTorch, if it is another
    for layer, node, weights in walk(model):
        own = {}
        if isinstance(layer, Conv2D):  # (E, kh, kw, Cin, Cout) -> (E, Cout, Cin, kh, kw)
            own = {"weight": weights["kernel"].transpose(0, 4, 3, 1, 2), "bias": weights["bias"]}
        elif isinstance(layer, BatchNormalization):
            own = {_BATCH_NORM[name]: _take(array, order) for name, array in weights.items()}
            own["num_batches_tracked"] = steps  # PyTorch's layer has it, too
        elif isinstance(layer, Flatten) and len(node.input_shape) == 3:
            order = _flatten_order(*node.input_shape)
        elif isinstance(layer, Dense):  # (E, K, units) -> (E, units, K)
            kernel = _take(weights["kernel"], order)
            own, order = {"weight": kernel.transpose(0, 2, 1), "bias": weights["bias"]}, None
        arrays |= {f"{node.name}.{name}": array for name, array in own.items()}
    if order is not None:
        raise ValueError(
            "layers: got no Dense after Flatten, expected one: PyTorch flattens (C, H, W), and "
            "only the weights of a Dense layer can make up for that"
        )
    return arrays


def _take(array, order):
    return array if order is None else array[:, order]


def _flatten_order(H, W, C):
    """The indices in a flattened (H, W, C) of the elements of a flattened (C, H, W).

    None if both are the same.
    """
    if C == 1 or H * W == 1:
        return None
    return np.arange(H * W * C).reshape(H, W, C).transpose(2, 0, 1).ravel()
