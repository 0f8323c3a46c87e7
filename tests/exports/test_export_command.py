"""python -m minicnn.export: what it writes, prints and refuses; its README's code."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import stacks
from digit_files import MNIST, needs_mnist
from export_stacks import BOUND, randomized
from runs import command

import minicnn.exports
from minicnn import export, load_model, mnist_cnn
from minicnn.data.load import load_test
from minicnn.exports import save_keras, save_onnx, save_pytorch, save_safetensors
from minicnn.training import checkpoint
from minicnn.training.interruption import StopOnSignal

README = Path(minicnn.exports.__file__).with_name("README.md")


@pytest.fixture(scope="module")
def trained(run):
    """The checkpoint of a small run with two nets."""
    return run[0] / "checkpoint.npz"


def exporting(trained, to, out, *more):
    """Run the command in this process; returns its status."""
    return export.main([f"--checkpoint={trained}", f"--to={to}", f"--out={out}", *more])


def test_the_command_writes_a_checkpoints_nets(trained, tmp_path, safetensors):
    out = tmp_path / "nets.safetensors"
    done = command("minicnn.export", f"--checkpoint={trained}", "--to=safetensors", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"2 nets for safetensors, 2.6 MB: {out}\n"
    assert done.stderr == ""
    found, model = safetensors.load_file(out), load_model(trained, device="numpy")
    for name, expected in model.named_weights.items():
        np.testing.assert_array_equal(found[name], expected)


@pytest.mark.parametrize(
    ("to", "reader", "title"),
    [("onnx", "onnxruntime", "ONNX"), ("keras", "keras", "Keras"), ("pytorch", "torch", "PyTorch")],
)
def test_each_format_names_itself(trained, tmp_path, to, reader, title, request, capsys):
    request.getfixturevalue(reader)
    out = tmp_path / "nets.keras"
    assert exporting(trained, to, out) == 0
    size = f"{out.stat().st_size / 1e6:.1f} MB"
    assert capsys.readouterr().out == f"2 nets for {title}, {size}: {out}\n"


@needs_mnist
def test_onnx_on_real_images(trained, tmp_path, onnxruntime):
    out = tmp_path / "nets.onnx"
    assert exporting(trained, "onnx", out) == 0
    x_test = load_test(MNIST, progress=False).x_test[:300]
    images = (x_test[..., None] / 255).astype(np.float32)
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    [found] = session.run(["probabilities"], {"images": images})
    expected = load_model(trained, device="numpy").predict(images).mean(axis=0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=BOUND)


def test_each_net(trained, tmp_path, onnxruntime):
    out = tmp_path / "nets.onnx"
    assert exporting(trained, "onnx", out, "--each-net") == 0
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    assert session.get_outputs()[0].shape == [2, "N", 10]


def test_nets_that_diverged_are_left_out(trained, tmp_path, safetensors, capsys):
    arrays, about = checkpoint.load(trained)
    about["diverged"] = [{"net": 1, "epoch": 1, "step": 1}]
    checkpoint.save(tmp_path / "checkpoint.npz", arrays, about)
    out = tmp_path / "nets.safetensors"
    assert exporting(tmp_path / "checkpoint.npz", "safetensors", out) == 0
    assert capsys.readouterr().out.startswith("1 net for safetensors, 1.3 MB: ")
    model = load_model(trained, device="numpy")
    kernel = safetensors.load_file(out)["dense/kernel"]
    np.testing.assert_array_equal(kernel, model.named_weights["dense/kernel"][1:])
    content = out.read_bytes()
    facts = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    assert facts["nets"] == "[2]"


def test_what_a_model_saved_is_exported(tmp_path, safetensors, capsys):
    model = randomized(stacks.small("numpy"))
    model.save(tmp_path / "model.npz")
    assert exporting(tmp_path / "model.npz", "safetensors", tmp_path / "a") == 0
    assert capsys.readouterr().out.startswith("3 nets for safetensors, 0.0 MB: ")
    found = safetensors.load_file(tmp_path / "a")
    stacks.assert_same([found[name] for name in model.named_weights], model.get_weights())


@pytest.mark.parametrize(
    ("checkpoint", "to", "out", "more", "named"),
    [
        ("absent.npz", "onnx", "a", [], "absent.npz"),
        ("damaged.npz", "onnx", "a", [], "damaged.npz"),
        (None, "onnx", "absent/a", [], "argument --out: got"),
        (None, "onnx", "folder", [], "argument --out: .* is not a file"),
        (None, "keras", "a.h5", [], r"a\.h5: expected a name that ends in \.keras"),
        (None, "pytorch", "a", ["--each-net"], "argument --each-net: got --to pytorch"),
        (None, "safetensors", "a", ["--each-net"], "argument --each-net: got --to safetensors"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(
    trained, tmp_path, checkpoint, to, out, more, named, capsys
):
    (tmp_path / "folder").mkdir()
    (tmp_path / "damaged.npz").write_bytes(trained.read_bytes()[:-1])
    before = sorted(tmp_path.iterdir())
    given = tmp_path / checkpoint if checkpoint else trained
    assert exporting(given, to, tmp_path / out, *more) == 2
    error = capsys.readouterr().err
    assert re.match(rf"minicnn\.export: error: .*{named}", error) and error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_a_format_that_there_is_not(trained, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        exporting(trained, "tflite", tmp_path / "a")
    assert caught.value.code == 2
    assert "argument --to: invalid choice: 'tflite'" in capsys.readouterr().err


def test_a_signal_leaves_no_file(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(StopOnSignal, "__call__", lambda self: True)
    assert exporting(trained, "safetensors", tmp_path / "a") == 130
    assert not any(tmp_path.iterdir())


# ---- README --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported():
    """The network of README's examples."""
    return randomized(mnist_cnn(nets=2, device="numpy"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_readme(*words):
    """Run README's blocks of code that contain these words, on 20 images; returns the variables."""
    texts, values = re.findall(r"(?ms)^```python\n(.*?)^```$", README.read_text()), {}
    for word in ("images =", *words):
        [text] = [text for text in texts if word in text]
        exec(text, values)
        values["images"] = values["images"][:20]
    return values


def assert_predicts(values, model):
    expected = model.predict(values["images"]).mean(axis=0)
    np.testing.assert_allclose(values["probabilities"], expected, rtol=0, atol=BOUND)


def test_readmes_images():
    values = run_readme()
    assert values["images"].shape == (20, 28, 28, 1)
    assert values["images"].dtype == np.float32 and values["images"].max() == 1


def test_readmes_code_for_safetensors(folder, exported, safetensors, capsys):
    save_safetensors(exported, "digits.safetensors")
    values = run_readme("safe_open")
    shown = [line.partition("#")[2] for line in README.read_text().splitlines()]
    assert f" {capsys.readouterr().out.splitlines()[0]}" in shown
    for name, expected in exported.named_weights.items():
        np.testing.assert_array_equal(values["weights"][name], expected)


def test_readmes_code_for_onnx(folder, exported, onnxruntime):
    save_onnx(exported, "digits.onnx")
    assert_predicts(run_readme("InferenceSession"), exported)


def test_readmes_code_for_keras(folder, exported, keras):
    save_keras(exported, "digits.keras")
    values = run_readme("load_model(", "from_keras")
    assert_predicts(values, exported)
    stacks.assert_same(values["model"].get_weights(), exported.get_weights())


def test_readmes_module_for_pytorch(folder, exported, torch):
    save_pytorch(exported, "digits.pt")
    values = run_readme("ModuleList")  # load_state_dict is strict unless told otherwise
    assert_predicts(values, exported)
