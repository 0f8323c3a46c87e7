"""The page to draw on: one HTML file with trained nets in it, which a browser runs.

    page.html    the page, with places for what follows
    style.css    its style
    paper.js     the strokes that a person draws
    page.js      what it shows
    prepare.js   from strokes to the image that the nets see: a twin of data/handwriting.py
    worker.js    runs the nets beside the page
    network.js   their forward pass: a twin of backends/ops_numpy.py
    kernels.js   its convolutions by the C kernels, four to five times as fast
    kernels.wasm the C kernels, which wasm.py compiles

document() joins them. The page has a Content-Security-Policy that allows its own script, which is
known by its hash, a worker, and WebAssembly; none can open a connection. draw.py is the command.
"""

import base64
import hashlib
import html
import json
import re
from pathlib import Path

import numpy as np

from .. import __version__
from ..data.digits import curve
from ..data.glyphs import GLYPHS
from ..data.labels import DIGITS
from ..exports.shared import walk
from ..files import printable

_SHAPE = 28, 28, 1  # of the image that a drawing becomes
_FOLDER = Path(__file__).parent
_MARGIN = 0.15  # of the paper's side, around an example
_POINTS = 4  # of a curve's points, every so many-th is in an example


def document(model, count=None):
    """The page, HTML, with the first `count` nets of a Sequential (default: all).

    Raises ValueError for a model that does not tell apart classes of 28x28 images in grey, and for
    weights that are not finite or too large for 16 bits.
    """
    _check_architecture(model.architecture)
    network = network_of(model, count)
    classes = model.architecture.classes
    nets = [net["number"] for net in network["nets"]]
    are_digits = classes == DIGITS
    what = "a digit" if are_digits else "something"
    about = {
        "classes": [printable(name) for name in classes],
        "nets": nets,
        "layers": [{"kind": type(node.layer).__name__, "name": node.name} for node in model.nodes],
        "examples": [_example(shapes[0]) for shapes in GLYPHS.values()] if are_digits else [],
        "what": what,
    }
    style = _source("style.css")
    script = "".join(map(_source, ("prepare.js", "paper.js", "page.js")))
    policy = (
        f"default-src 'none'; script-src {_hash(script)} 'wasm-unsafe-eval'; "
        f"style-src {_hash(style)}; worker-src blob:; connect-src 'none'; "
        "base-uri 'none'; form-action 'none'"
    )
    values = {
        "policy": policy,
        "title": f"Draw {what}",
        "count": "a network" if len(nets) == 1 else f"{len(nets):,} networks",
        "mean": "" if len(nets) == 1 else f", mean of {len(nets):,} networks",
        "version": html.escape(__version__),
        "style": style,
        "about": _json(about),
        "network": _json(network),
        "worker": "".join(map(_source, ("network.js", "kernels.js", "worker.js"))),
        "script": script,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda place: values[place[1]], _source("page.html"))


def _check_architecture(architecture):
    """Raise ValueError unless its nets tell apart classes of images of _SHAPE."""
    classes, outputs = architecture.classes, architecture.output_shape
    if architecture.input_shape != _SHAPE or classes is None or len(outputs) != 1:
        raise ValueError(
            f"network: got one for {architecture.purpose}, expected classes of 28x28 images in "
            "grey: a drawing is prepared in that size"
        )


def _source(name):
    return (_FOLDER / name).read_text(encoding="utf-8")


def _hash(text):
    """The source expression of an inline script or style in a Content-Security-Policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(value):
    """A value as JSON that stands in a script element: a "<" in a text might end the element."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _example(shape):
    """The strokes of a shape of digits.GLYPHS on the paper: lists of points [x, y], 0 to 1."""
    curves = [curve(stroke) for stroke in shape.split("/")]  # each (2, S)
    every = np.concatenate(curves, axis=1)
    low, high = every.min(axis=1), every.max(axis=1)
    scale = (1 - 2 * _MARGIN) / (high - low).max()
    return [
        np.round(((points.T - (low + high) / 2) * scale + 0.5), 3)[
            np.append(np.arange(0, points.shape[1] - 1, _POINTS), -1)
        ].tolist()
        for points in curves
    ]


# ---- weights -------------------------------------------------------------------------------------


def network_of(model, count=None):
    """What worker.js takes, for JSON: the first `count` nets of a Sequential.

    {"architecture": Architecture.as_dict(), "nets": [{"number": from 1, "weights": of each layer
    {name: base64}}, ...], "kernels": base64 of the compiled kernels}. A convolution's kernel has 16
    bits an element, other arrays 32. A batch normalisation has `scale` and `shift`: y = scale * x +
    shift. Raises ValueError.
    """
    layers = []  # of each layer {name: [base64 of each net]}
    for layer, node, weights in walk(model, np.float64):
        arrays = _folded(layer, weights).items()
        layers.append({name: _encoded(node.name, name, a[:count]) for name, a in arrays})
    return {
        "architecture": model.architecture.as_dict(),
        "nets": [
            {
                "number": int(net) + 1,
                "weights": [{name: nets[e] for name, nets in layer.items()} for layer in layers],
            }
            for e, net in enumerate(model.nets[:count])
        ],
        "kernels": base64.b64encode((_FOLDER / "kernels.wasm").read_bytes()).decode(),
    }


def _folded(layer, weights):
    """The weights {name: (E, ...)} of a layer, with the moving statistics in scale and shift."""
    if "moving_mean" not in weights:
        return weights
    with np.errstate(all="ignore"):
        scale = weights["gamma"] / np.sqrt(weights["moving_variance"] + layer.epsilon)
        return {"scale": scale, "shift": weights["beta"] - weights["moving_mean"] * scale}


def _encoded(layer, name, array):
    """The bytes of each net's array, in base64. Raises ValueError for what its type cannot hold."""
    dtype = np.dtype("<f2" if name == "kernel" else "<f4")
    with np.errstate(over="ignore"):
        stored = array.astype(dtype)
    if not np.isfinite(stored).all():
        most = np.abs(array).max()
        raise ValueError(
            f"{layer}/{name}: got values up to {most:.3g}, expected at most "
            f"{np.finfo(dtype).max:.6g}: the page stores them in {8 * dtype.itemsize} bits"
        )
    return [base64.b64encode(net.tobytes()).decode() for net in stored]
