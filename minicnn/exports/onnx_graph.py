"""ONNX: the nets of an ensemble as one graph, images in and probabilities out.

Inside the graph images are (N, C, H, W), as ONNX's operators demand. Each net is a chain of nodes
named "net_1/conv2d" and so on. Sources: ONNX operators of opset 13, which onnxruntime reads since
version 1.6.
"""

import numpy as np

from .. import __version__
from ..files import atomic_write
from ..network.layers import (
    Activation,
    BatchNormalization,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    MaxPooling2D,
)
from .shared import facts, net_names, optional, walk

_OPSET, _IR_VERSION = 13, 7
# Bytes of weights. A file of protobuf has at most 2**31 - 1 bytes; the rest is for the graph.
_MOST_BYTES = 2_000_000_000
_TO_CHANNELS_FIRST, _TO_CHANNELS_LAST = (0, 3, 1, 2), (0, 2, 3, 1)
_OPERATORS = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "softmax": "Softmax"}


def save_onnx(model, path, each_net=False):
    """Write a Sequential to an .onnx file, in float32.

    Input "images": (N, H, W, C) in [0, 1], any N. Output "probabilities": (N, classes), the mean
    over the nets; with `each_net` (E, N, classes), those of each net. The metadata are
    shared.facts. Raises ValueError without the package onnx or for more weights than such a file
    can hold, and OSError.
    """
    onnx = optional("onnx", "an .onnx file")
    content = _build(onnx, model, each_net).SerializeToString()
    with atomic_write(path) as file:
        file.write(content)


def _build(onnx, model, each_net):
    layers = walk(model)
    size = sum(array.nbytes for _, _, weights in layers for array in weights.values())
    if size > _MOST_BYTES:
        raise ValueError(
            f"the weights take {size / 1e9:.1f} GB, expected at most {_MOST_BYTES / 1e9:.1f} GB "
            "for an .onnx file: export fewer nets, or to safetensors"
        )
    graph = _Graph(onnx)
    x = images = "images"
    if len(model.input_shape) == 3:
        x = graph.add("Transpose", [images], "channels_first", perm=_TO_CHANNELS_FIRST)
    outputs = [graph.net(name, e, layers, x) for e, name in enumerate(net_names(model))]
    if each_net:
        axes = graph.weight("net_axis", np.array([0]))
        outputs = [graph.add("Unsqueeze", [y, axes], f"{y}/net_axis") for y in outputs]
        graph.add("Concat", outputs, "probabilities", axis=0)
    else:
        graph.add("Mean", outputs, "probabilities")
    shape = ["N", *model.output_shape]
    return graph.model(
        facts(model),
        inputs={images: ["N", *model.input_shape]},
        outputs={"probabilities": [len(model.nets), *shape] if each_net else shape},
    )


class _Graph:
    """An ONNX graph that is being built: its operators, and its weights."""

    def __init__(self, onnx):
        self._onnx, self._nodes, self._weights = onnx, [], []

    def add(self, operator, inputs, output, **attributes):
        """Add an operator, named as its output; returns that name."""
        node = self._onnx.helper.make_node(operator, inputs, [output], output, **attributes)
        self._nodes.append(node)
        return output

    def weight(self, name, array):
        """Add an array, and return its name."""
        self._weights.append(self._onnx.numpy_helper.from_array(array, name))
        return name

    def net(self, name, e, layers, x):
        """Add net e of the layers that shared.walk gave; returns the name of its output."""
        for layer, node, weights in layers:
            prefix = f"{name}/{node.name}"
            own = {key: array[e] for key, array in weights.items()}
            x = _ADD[type(layer)](self, layer, node, prefix, own, x)
            if layer.activation != "linear":
                options = {"axis": 1} if layer.activation == "softmax" else {}
                operator = _OPERATORS[layer.activation]
                x = self.add(operator, [x], f"{prefix}/{layer.activation}", **options)
        if len(node.output_shape) == 3:
            x = self.add("Transpose", [x], f"{name}/channels_last", perm=_TO_CHANNELS_LAST)
        return x

    def model(self, metadata, inputs, outputs):
        """The finished, checked onnx.ModelProto. inputs and outputs: {name: shape}."""
        helper, kind = self._onnx.helper, self._onnx.TensorProto.FLOAT
        ends = [
            [helper.make_tensor_value_info(name, kind, shape) for name, shape in end.items()]
            for end in (inputs, outputs)
        ]
        model = helper.make_model(
            helper.make_graph(self._nodes, "minicnn", *ends, self._weights),
            opset_imports=[helper.make_opsetid("", _OPSET)],
            ir_version=_IR_VERSION,
            producer_name="minicnn",
            producer_version=__version__,
        )
        helper.set_model_props(model, metadata)
        self._onnx.checker.check_model(model, full_check=True)
        return model


# ---- one function for each layer: adds its operators, returns the name of its output -------------


def _conv2d(graph, layer, node, prefix, weights, x):
    kernel = weights["kernel"].transpose(3, 2, 0, 1)  # (Cout, Cin, kh, kw)
    inputs = [
        x,
        graph.weight(f"{prefix}/kernel", kernel),
        graph.weight(f"{prefix}/bias", weights["bias"]),
    ]
    return graph.add("Conv", inputs, prefix, **_window(layer, node))


def _max_pooling(graph, layer, node, prefix, weights, x):
    return graph.add("MaxPool", [x], prefix, **_window(layer, node))


def _window(layer, node):
    """The attributes of a convolution or pooling."""
    window = layer.window(node.input_shape)
    return {
        "kernel_shape": window.size,
        "strides": window.strides,
        "pads": [*window.before, *window.after],
    }


def _batch_normalization(graph, layer, node, prefix, weights, x):
    names = [graph.weight(f"{prefix}/{name}", array) for name, array in weights.items()]
    return graph.add("BatchNormalization", [x, *names], prefix, epsilon=layer.epsilon)


def _flatten(graph, layer, node, prefix, weights, x):
    if len(node.input_shape) == 3:
        x = graph.add("Transpose", [x], f"{prefix}/channels_last", perm=_TO_CHANNELS_LAST)
    return graph.add("Flatten", [x], prefix, axis=1)


def _dense(graph, layer, node, prefix, weights, x):
    inputs = [x, *(graph.weight(f"{prefix}/{name}", array) for name, array in weights.items())]
    return graph.add("Gemm", inputs, prefix)


def _unchanged(graph, layer, node, prefix, weights, x):
    return x


_ADD = {
    Conv2D: _conv2d,
    BatchNormalization: _batch_normalization,
    Dropout: _unchanged,
    MaxPooling2D: _max_pooling,
    Flatten: _flatten,
    Dense: _dense,
    Activation: _unchanged,
}
