"""onnxruntime predicts what the model predicts."""

import pytest
from export_stacks import assert_close, check_facts, images_for, models, small_model
from hypothesis import given
from levels import examples

from minicnn.exports import onnx_graph, save_onnx


def run_onnx(onnxruntime, path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["probabilities"], {"images": images})[0]


def check_onnx(onnxruntime, model, path):
    images = images_for(model)
    expected = model.predict(images)
    save_onnx(model, path)
    assert_close(run_onnx(onnxruntime, path, images), expected.mean(axis=0))
    assert_close(run_onnx(onnxruntime, path, images[:1]), expected[:, :1].mean(axis=0))
    save_onnx(model, path, each_net=True)
    assert_close(run_onnx(onnxruntime, path, images), expected)


def test_onnx_predicts_the_same(onnxruntime, model, tmp_path):
    check_onnx(onnxruntime, model, tmp_path / "model.onnx")


@examples(60)
@given(model=models())
def test_onnx_predicts_the_same_for_drawn_stacks(onnxruntime, tmp_path_factory, model):
    check_onnx(onnxruntime, model, tmp_path_factory.mktemp("drawn") / "model.onnx")


def test_onnx_says_what_it_is(onnxruntime, seed_network, tmp_path):
    path = tmp_path / "model.onnx"
    save_onnx(seed_network, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    [images], [probabilities] = session.get_inputs(), session.get_outputs()
    assert (images.name, images.shape) == ("images", ["N", 28, 28, 1])
    assert (probabilities.name, probabilities.shape) == ("probabilities", ["N", 10])
    check_facts(session.get_modelmeta().custom_metadata_map, seed_network)


def test_weights_that_no_onnx_file_can_hold_are_refused(onnxruntime, tmp_path, monkeypatch):
    model = small_model()
    size = sum(array.nbytes for array in model.get_weights())
    monkeypatch.setattr(onnx_graph, "_MOST_BYTES", size)
    save_onnx(model, tmp_path / "model.onnx")
    monkeypatch.setattr(onnx_graph, "_MOST_BYTES", size - 1)
    with pytest.raises(ValueError, match=r"^the weights take .* expected at most .* fewer nets"):
        save_onnx(model, tmp_path / "other.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
