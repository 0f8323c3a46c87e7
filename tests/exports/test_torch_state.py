"""PyTorch predicts what the model predicts, with the weights of the state dict."""

import numpy as np
import pytest
import stacks
from export_stacks import assert_close, images_for, models, small_model
from hypothesis import given
from levels import examples

from minicnn import Activation, BatchNormalization, Conv2D, Dense, Flatten, MaxPooling2D
from minicnn.exports import save_pytorch


def run_torch(torch, model, path, images):
    """Probabilities (E, N, classes): the layers again in PyTorch, with the state dict's weights."""
    state = torch.load(path, weights_only=True)
    with torch.no_grad():
        outputs = [
            run_torch_net(torch, model, state, f"nets.{e}", images) for e in range(len(model.nets))
        ]
    assert not state  # every tensor was used
    return np.stack(outputs)


def run_torch_net(torch, model, state, prefix, images):
    functional = torch.nn.functional
    y = torch.from_numpy(images)
    if y.ndim == 4:
        y = y.permute(0, 3, 1, 2)
    for layer, node in zip(model.layers, model.nodes, strict=True):

        def take(name, node=node):
            return state.pop(f"{prefix}.{node.name}.{name}")

        if isinstance(layer, (Conv2D, MaxPooling2D)):
            window = layer.window(node.input_shape)
            (top, left), (bottom, right) = window.before, window.after
            empty = -torch.inf if isinstance(layer, MaxPooling2D) else 0
            y = functional.pad(y, (left, right, top, bottom), value=empty)
        if isinstance(layer, Conv2D):
            y = functional.conv2d(y, take("weight"), take("bias"), layer.strides)
        elif isinstance(layer, MaxPooling2D):
            y = functional.max_pool2d(y, layer.pool_size, layer.strides)
        elif isinstance(layer, BatchNormalization):
            assert take("num_batches_tracked") == 0
            mean, variance = take("running_mean"), take("running_var")
            gamma, beta = take("weight"), take("bias")
            y = functional.batch_norm(y, mean, variance, gamma, beta, eps=layer.epsilon)
        elif isinstance(layer, Flatten):
            y = y.flatten(1)
        elif isinstance(layer, Dense):
            y = functional.linear(y, take("weight"), take("bias"))
        if layer.activation == "softmax":
            y = y.softmax(1)
        elif layer.activation != "linear":
            y = getattr(torch, layer.activation)(y)
    return (y.permute(0, 2, 3, 1) if y.ndim == 4 else y).numpy()


def check_torch(torch, model, path):
    images = images_for(model)
    save_pytorch(model, path)
    assert_close(run_torch(torch, model, path, images), model.predict(images))


def test_a_state_dict_predicts_the_same(torch, model, tmp_path):
    check_torch(torch, model, tmp_path / "model.pt")


@examples(60)
@given(model=models())
def test_a_state_dict_predicts_the_same_for_drawn_stacks(torch, tmp_path_factory, model):
    check_torch(torch, model, tmp_path_factory.mktemp("drawn") / "model.pt")


def test_a_state_dict_counts_the_batches_of_each_net(torch, tmp_path):
    model = stacks.small("numpy", nets=2)
    x = np.random.default_rng(0).integers(0, 256, (12, *model.input_shape), np.uint8)
    y = np.arange(12) % 4
    model.fit(x, y, 4, epochs=2, on_epoch=lambda row: row["net"] == 1, verbose=0)
    save_pytorch(model, tmp_path / "model.pt")
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    counts = [state[f"nets.{e}.batch_normalization.num_batches_tracked"] for e in range(2)]
    assert counts == [3, 6]


def test_an_order_that_no_dense_layer_can_mend_is_refused(torch, tmp_path):
    model = small_model(layers=[Conv2D(2, 2), Flatten(), Activation("softmax")])
    with pytest.raises(ValueError, match="no Dense after Flatten"):
        save_pytorch(model, tmp_path / "model.pt")
    one_pixel = [Conv2D(5, (4, 3)), Flatten(), Activation("softmax")]
    check_torch(torch, small_model(layers=one_pixel), tmp_path / "model.pt")
