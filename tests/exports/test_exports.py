"""What holds for every format; safetensors; missing packages."""

import json
import re
import sys

import numpy as np
import pytest
import stacks
from export_stacks import assert_close, check_facts, images_for, randomized, small_model

from minicnn import Dense, Flatten
from minicnn.exports import (
    from_keras,
    save_keras,
    save_onnx,
    save_pytorch,
    save_safetensors,
    to_keras,
)

# ---- safetensors ---------------------------------------------------------------------------------


def test_safetensors_holds_the_weights_to_the_bit(safetensors, model, tmp_path):
    path = tmp_path / "model.safetensors"
    save_safetensors(model, path)
    found = safetensors.load_file(path)
    assert found.keys() == model.named_weights.keys()
    stacks.assert_same([found[name] for name in model.named_weights], model.get_weights())


def test_safetensors_says_what_it_holds(safetensors, seed_network, tmp_path):
    path = tmp_path / "model.safetensors"
    save_safetensors(seed_network, path)
    size = int.from_bytes(path.read_bytes()[:8], "little")  # the header's, which is JSON
    check_facts(json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"], seed_network)


def test_safetensors_keeps_float64(safetensors, tmp_path):
    model = randomized(stacks.small("numpy", dtype="float64"))
    save_safetensors(model, tmp_path / "model.safetensors")
    found = safetensors.load_file(tmp_path / "model.safetensors")
    stacks.assert_same([found[name] for name in model.named_weights], model.get_weights())


# ---- every format --------------------------------------------------------------------------------

FORMATS = {
    "safetensors": (save_safetensors, "safetensors"),
    "onnx": (save_onnx, "onnxruntime"),
    "keras": (save_keras, "keras"),
    "pytorch": (save_pytorch, "torch"),
}


@pytest.fixture(params=FORMATS)
def save(request):
    """A function that writes a format; its name in a folder ends in .keras, which Keras demands."""
    function, reader = FORMATS[request.param]
    request.getfixturevalue(reader)
    return function


def test_a_fault_leaves_the_old_file_and_no_other(save, tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    path = tmp_path / "a.keras"
    path.write_text("old")
    monkeypatch.setattr("minicnn.files.os.fsync", fail)
    with pytest.raises(OSError, match="No space left") as caught:
        save(small_model(), path)
    assert caught.value.filename == str(path)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.keras", "old")]


def test_folders_are_refused_and_a_file_is_replaced(save, tmp_path):
    model, folder = small_model(), tmp_path / "folder.keras"
    folder.mkdir()
    with pytest.raises(OSError, match=re.escape(str(folder))):
        save(model, folder)
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "absent"))):
        save(model, tmp_path / "absent" / "a.keras")
    (tmp_path / "a.keras").write_text("old")
    save(model, tmp_path / "a.keras")
    assert (tmp_path / "a.keras").stat().st_size > 500
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.keras", "folder.keras"]


class Twice(Dense):
    """A layer that is not one of the package."""


def test_a_model_in_float64_is_written_in_float32(onnxruntime, torch, keras, tmp_path):
    model = randomized(stacks.small("numpy", dtype="float64"))
    images = images_for(model)
    save_onnx(model, tmp_path / "a.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    [found] = session.run(None, {"images": images})
    assert found.dtype == np.float32
    assert_close(found, model.predict(images).mean(axis=0))
    save_pytorch(model, tmp_path / "a.pt")
    state = torch.load(tmp_path / "a.pt", weights_only=True)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32, torch.int64}
    kernels = from_keras(to_keras(model))
    stacks.assert_same(kernels, [array.astype(np.float32) for array in model.get_weights()])


def test_layers_of_other_packages_are_refused(save, tmp_path):
    with pytest.raises(ValueError, match=r"layers: got .*Twice.* expected a layer of minicnn"):
        save(small_model(layers=[Flatten(), Twice(3, "softmax")]), tmp_path / "a.keras")


# ---- missing packages ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "modules", "advice"),
    [
        (save_safetensors, ["safetensors", "safetensors.numpy"], 'install "minicnn[export]"'),
        (save_onnx, ["onnx"], 'install "minicnn[export]"'),
        (save_keras, ["keras"], "install keras"),
        (save_pytorch, ["torch"], "install torch"),
    ],
)
def test_a_missing_package_is_named(function, modules, advice, tmp_path, monkeypatch):
    for name in modules:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError) as caught:
        function(small_model(), tmp_path / "a.keras")
    assert f"needs {modules[0]}: pip {advice}" in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_a_missing_backend_of_keras_is_named(tmp_path, monkeypatch):
    (tmp_path / "keras.py").write_text("import absent_backend.core\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    with pytest.raises(ValueError, match=r"keras, which needs absent_backend: .*KERAS_BACKEND"):
        to_keras(small_model())
