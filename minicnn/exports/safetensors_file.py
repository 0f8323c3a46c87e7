"""safetensors: the weights of all nets as named arrays."""

from ..files import atomic_write
from .shared import facts, optional, walk


def save_safetensors(model, path):
    """Write the weights of a Sequential to a .safetensors file.

    Names and shapes are those of model.named_weights: "conv2d/kernel" (E, kh, kw, Cin, Cout). The
    values keep the model's dtype. The metadata are shared.facts. Raises ValueError without the
    package safetensors, and OSError.
    """
    safetensors = optional("safetensors.numpy", "a .safetensors file")
    arrays = {
        f"{node.name}/{name}": array
        for _, node, weights in walk(model, model.dtype)
        for name, array in weights.items()
    }
    content = safetensors.save(arrays, metadata=facts(model))
    with atomic_write(path) as file:
        file.write(content)
