"""The programs that read exports, and models to export.

A test that needs a program is skipped where that is not installed.
"""

import importlib.util
import os

import pytest
import stacks
from export_stacks import STACKS, randomized

from minicnn import Sequential, mnist_cnn


def _installed(name):
    return pytest.importorskip(name, reason=f"needs {name}", exc_type=ImportError)


@pytest.fixture(scope="session")
def onnxruntime():
    _installed("onnx")
    return _installed("onnxruntime")


@pytest.fixture(scope="session")
def safetensors():
    return _installed("safetensors.numpy")


@pytest.fixture(scope="session")
def torch():
    return _installed("torch")


@pytest.fixture(scope="session")
def keras():
    """Keras, with a backend that is installed unless KERAS_BACKEND names one."""
    backends = [name for name in ("torch", "jax", "tensorflow") if importlib.util.find_spec(name)]
    if not backends:
        pytest.skip("needs a backend of keras")
    with pytest.MonkeyPatch.context() as patch:
        if "KERAS_BACKEND" not in os.environ:
            patch.setenv("KERAS_BACKEND", backends[0])
        yield _installed("keras")


@pytest.fixture(scope="session")
def seed_network():
    """The seed network with two nets: the third and the fourth."""
    return randomized(mnist_cnn(nets=2, first_net=2, device="numpy", classes=tuple("zyxwvutsrq")))


@pytest.fixture(params=["every layer", *STACKS, "seed network"])
def model(request, seed_network):
    if request.param == "seed network":
        return seed_network
    if request.param == "every layer":
        return randomized(stacks.small("numpy"))
    layers, shape, nets = STACKS[request.param]
    return randomized(Sequential(layers, shape, nets, device="numpy"))
