"""network.js and kernels.js: their operations equal ops_numpy's, for every layer and any shape."""

import base64
import shutil
from pathlib import Path

import numpy as np
import pytest
import stacks
from digit_files import MNIST, needs_mnist
from export_stacks import BOUND, STACKS, images_for, models, randomized
from hypothesis import given
from javascript import evaluate, needs_node
from levels import examples

from minicnn import Activation, Conv2D, Dense, Flatten, Sequential, load_model, mnist_cnn
from minicnn.data.load import load_test
from minicnn.drawpage import network_of, wasm

pytestmark = needs_node

# With the compiled kernels, and without them, as in an old browser.
SCRIPTS = {"compiled": ["network.js", "kernels.js"], "plain": ["network.js"]}
FORWARD = """
if (typeof useKernels === "function" && !useKernels(given.network.kernels)) throw "not used";
given.network.nets.map((net) => {
  const weights = readWeights(net.weights);
  const { layers, input_shape: shape } = given.network.architecture;
  return given.images.map((image) => {
    const outputs = forward(layers, weights, { shape, data: Float32Array.from(image) });
    return Array.from(outputs[outputs.length - 1].data);
  });
})
"""


def predicted(model, x, scripts, **changed):
    """As model.predict(x), by scripts of the page. changed: what network_of() does not have so."""
    network = network_of(model) | changed
    given = {"network": network, "images": x.reshape(len(x), -1).tolist()}
    outputs = evaluate(scripts, FORWARD, given)
    return np.array(outputs).reshape(len(model.nets), len(x), *model.output_shape)


def halved(model):
    """The model, with kernels that 16 bits hold exactly."""
    weights = zip(model.named_weights, model.get_weights(), strict=True)
    model.set_weights(
        [w.astype(np.float16).astype(w.dtype) if n.endswith("/kernel") else w for n, w in weights]
    )
    return model


def check(model):
    x = images_for(model)
    expected = halved(model).predict(x)
    for scripts in SCRIPTS.values():
        np.testing.assert_allclose(predicted(model, x, scripts), expected, rtol=0, atol=BOUND)


@pytest.mark.parametrize("name", STACKS)
def test_stacks(name):
    layers, shape, nets = STACKS[name]
    check(randomized(Sequential(layers, shape, nets, device="numpy")))


def test_every_layer():
    check(randomized(stacks.small("numpy")))


@given(models())
@examples(16)
def test_any_stack(model):
    check(model)


def test_large_inputs_of_activations_overflow_nothing():
    layers = [Flatten(), Dense(6), Activation("sigmoid"), Dense(3, "softmax")]
    model = Sequential(layers, (2, 2, 1), device="numpy")
    model.set_weights([w * np.float32(20_000) for w in randomized(model).get_weights()])
    check(model)


def test_rows_and_columns_that_no_tile_covers():
    check(randomized(Sequential([Conv2D(5, 3, 2, "valid")], (8, 9, 3), 2, device="numpy")))


def test_the_memory_of_compiled_kernels_grows():
    layers = [Conv2D(64, 3), Conv2D(70, 3), Conv2D(3, 1)]
    check(randomized(Sequential(layers, (60, 60, 1), 1, device="numpy")))


def test_a_browser_without_webassembly_uses_the_plain_script():
    assert evaluate(SCRIPTS["compiled"], "useKernels('AGFzbQ==')") is False


@pytest.mark.skipif(
    not (shutil.which("clang") and shutil.which("wasm-ld")), reason="needs clang, lld"
)
def test_the_compiled_kernels_are_those_of_their_sources():
    committed = Path(wasm.__file__).with_name("kernels.wasm").read_bytes()
    built = wasm.build()
    model = halved(randomized(stacks.small("numpy")))
    x = images_for(model)
    kernels = base64.b64encode(built).decode()
    found = predicted(model, x, SCRIPTS["compiled"], kernels=kernels)
    np.testing.assert_allclose(found, model.predict(x), rtol=0, atol=BOUND)
    # The section "producers" names the compiler. Others write other bytes.
    if built.partition(b"producers")[2] == committed.partition(b"producers")[2]:
        assert built == committed, "run python -m minicnn.drawpage.wasm"


def test_numbers_of_16_bits():
    codes = np.arange(1 << 16, dtype="<u2")
    codes = codes[np.isfinite(codes.view("<f2"))]
    text = base64.b64encode(codes.tobytes()).decode()
    found = evaluate(["network.js"], "Array.from(halves(given))", text)
    np.testing.assert_array_equal(found, codes.view("<f2").astype(np.float64))


@needs_mnist
@pytest.mark.parametrize("way", SCRIPTS)
def test_real_images_with_weights_of_16_bits(run, way):
    model = load_model(run[0] / "checkpoint.npz", device="numpy")
    x = (load_test(MNIST, progress=False).x_test[:100, ..., None] / 255).astype(np.float32)
    found = predicted(model, x, SCRIPTS[way])
    np.testing.assert_allclose(found, model.predict(x), rtol=0, atol=2e-3)


def test_the_seed_network():
    check(randomized(mnist_cnn(nets=1, device="numpy")))
