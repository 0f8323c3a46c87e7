"""Trained nets in the formats of other programs, and weights of Keras models back.

    safetensors_file.py    named arrays, with the net axis as here
    onnx_graph.py          one graph: images in, the ensemble's probabilities out
    keras_model.py         a .keras file; a list of Keras models; weights of Keras models
    torch_state.py         a PyTorch state dict

Each function takes a Sequential. shared.py reads its weights. The package that writes a format is
optional and imported when it is needed: without it the function raises ValueError that names it.
A file is written completely or not at all. README.md says what is in each file and how to load it;
export.py is the command.
"""

from .keras_model import from_keras, save_keras, to_keras
from .onnx_graph import save_onnx
from .safetensors_file import save_safetensors
from .torch_state import save_pytorch

__all__ = [
    "from_keras",
    "save_keras",
    "save_onnx",
    "save_pytorch",
    "save_safetensors",
    "to_keras",
]
