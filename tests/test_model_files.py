"""Sequential.save and load_model: to the bit, with the command's files, and strict."""

import json

import numpy as np
import pytest
from runs import small_layers
from stacks import small, state

from minicnn import Adam, Dense, Flatten, Sequential, load_model, mnist_cnn, predict
from minicnn.data.digits import draw_digits
from minicnn.files import DataError
from minicnn.network.architecture import Architecture
from minicnn.network.layers import Layer
from minicnn.training import checkpoint

X, Y = draw_digits(60, 0)


@pytest.fixture(scope="module")
def trained():
    model = Sequential(small_layers(0.4, 0.9), nets=3, first_net=4, seed=7, device="numpy")
    model.fit(X, Y, 16, verbose=0)
    return model


@pytest.mark.every_device
@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.float64)])
def test_what_was_saved_is_loaded_to_the_bit(device, dtype, tmp_path):
    model = small(device, nets=2, first_net=3, seed=5, dtype=dtype, optimizer=Adam(0.01, 0.8))
    x, y = np.random.default_rng(0).random((2, 8, 9, 7, 2)), np.arange(16).reshape(2, 8) % 4
    model.train_on_batch(x, y)
    model.save(tmp_path / "model.npz")
    found = load_model(tmp_path / "model.npz", device)
    assert state(found) == state(model) and found.dtype == model.dtype
    assert found.nets.tolist() == [3, 4] and found.seed == 5
    assert found.optimizer == model.optimizer and found.classes == tuple("0123")
    assert found.architecture.as_dict() == model.architecture.as_dict()
    for m in model, found:
        m.train_on_batch(x, y)
    assert state(found) == state(model)  # dropout goes on with the same random numbers


def test_history_and_names_of_classes_are_saved(tmp_path, trained):
    names = tuple("abcdefghij")
    model = mnist_cnn(1, device="numpy", classes=names)
    model.save(tmp_path / "names.npz")
    found = load_model(tmp_path / "names.npz", "numpy")
    assert found.classes == names and found.history.rows == []
    trained.save(tmp_path / "trained.npz")
    found = load_model(tmp_path / "trained.npz", "numpy")
    assert found.history.rows == trained.history.rows and found.history.rows[0]["net"] == 5


def test_load_model_reads_a_run_of_the_command(run):
    model = load_model(run[0] / "checkpoint.npz", "numpy")
    arrays, about = checkpoint.load(run[0] / "checkpoint.npz")
    assert model.ops.to_host(model.params).tobytes() == arrays["params"].tobytes()
    assert model.nets.tolist() == about["nets"] and len(model.history.rows) == 4
    labels = model.predict(draw_digits(40, first=6000)[0]).sum(axis=0).argmax(axis=1)
    lines = (run[0] / "submission.csv").read_text().splitlines()[1:]
    assert [int(line.split(",")[1]) for line in lines] == labels.tolist()


def test_a_checkpoint_of_an_earlier_version_loads(run, tmp_path):
    """It has no architecture: that follows from its recipe."""
    arrays, about = checkpoint.load(run[0] / "checkpoint.npz")
    del about["architecture"]
    checkpoint.save(tmp_path / "old.npz", arrays, about)
    old, new = (
        load_model(path, "numpy") for path in (tmp_path / "old.npz", run[0] / "checkpoint.npz")
    )
    assert state(old) == state(new) and old.classes == new.classes


def test_the_command_predicts_with_a_saved_model(tmp_path, trained, capsys):
    trained.save(tmp_path / "model.npz")
    np.savez(tmp_path / "data.npz", x_train=X, y_train=Y, x_test=X, y_test=Y)
    arguments = f"--data={tmp_path / 'data.npz'}", "--device=numpy", "--quiet"
    files = f"--checkpoint={tmp_path / 'model.npz'}", f"--out={tmp_path / 'out.csv'}"
    assert predict.main([*arguments, *files]) == 0
    labels = trained.predict(X).sum(axis=0, dtype=np.float64).argmax(axis=1)
    lines = (tmp_path / "out.csv").read_text().splitlines()[1:]
    assert [int(line.split(",")[1]) for line in lines] == labels.tolist()
    assert f"Test accuracy={np.mean(labels == Y):.5f}" in capsys.readouterr().out


def test_the_command_refuses_what_names_no_classes_of_images(tmp_path, capsys):
    model = Sequential([Flatten(), Dense(3)], (28, 28, 1), device="numpy")
    model.save(tmp_path / "model.npz")
    load_model(tmp_path / "model.npz", "numpy")
    files = f"--checkpoint={tmp_path / 'model.npz'}", f"--out={tmp_path / 'out.csv'}"
    assert predict.main(["--data=digits", "--device=numpy", *files]) == 2
    assert "holds nets for 28x28 images, expected classes of images" in capsys.readouterr().err


def test_a_layer_of_the_user_cannot_be_saved(tmp_path):
    class Mine(Layer):
        def __repr__(self):
            return "Mine()"

    model = Sequential([Mine(), Dense(3, "softmax")], (4,), device="numpy")
    with pytest.raises(ValueError, match=r"^layers: got Mine\(\), expected a layer of minicnn"):
        model.save(tmp_path / "model.npz")
    assert list(tmp_path.iterdir()) == []


def layer(**changes):
    return lambda about: about["architecture"]["layers"][0].update(changes)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda about: about.pop("architecture"), "params: got shape"),  # then a seed network's
        (lambda about: about.update(architecture=[]), "architecture: got .*, expected an arch"),
        (lambda about: about.update(architecture={}), "not a trained ensemble: architecture: got"),
        (lambda about: about["architecture"].update(layers=[]), "not a .*: layers: got"),
        (lambda about: about["architecture"].update(layers={"a": 1}), "not a .*: layers: got"),
        (lambda about: about["architecture"].update(layers=[[]]), "not a .*: layers: got"),
        (lambda about: about["architecture"].update(classes=["a"]), "not a .*: classes: got"),
        (
            lambda about: about["architecture"].update(classes=["a", "b"]),
            "not a .*: classes: got 2",
        ),
        (
            lambda about: about["architecture"].update(input_shape=[28]),
            "not a .*: conv2d: got an",
        ),
        (lambda about: about["architecture"].update(input_shape=[1e9, 1, 1]), "not a .*: input_sh"),
        (layer(layer="Layer"), "not a trained ensemble: layers: got .*, expected a layer with its"),
        (layer(layer="os"), "not a trained ensemble: layers: got"),
        (layer(layer=["Conv2D"]), "not a trained ensemble: layers: got"),
        (layer(more=1), "not a trained ensemble: layers: got"),
        (layer(filters=0), "not a trained ensemble: filters: got 0"),
        (layer(filters=10**15), "params: got shape"),
        (layer(activation="eval"), "not a trained ensemble: activation: got 'eval'"),
        (layer(kernel_size=[3, "3"]), "not a trained ensemble: kernel_size: got"),
        (lambda about: about.update(optimizer={"learning_rate": -1}), "optimizer: learning_rate"),
        (lambda about: about.update(optimizer={"speed": 1}), "optimizer: .*speed"),
        (lambda about: about.update(optimizer=3), "optimizer: got 3, expected Adam's settings"),
    ],
)
def test_a_file_that_does_not_describe_its_nets_is_refused(change, told, tmp_path, trained):
    path = tmp_path / "model.npz"
    trained.save(path)
    arrays, about = checkpoint.load(path)
    change(about)
    checkpoint.save(path, arrays, about)
    with pytest.raises(DataError, match=rf"{path.name}: ({told})"):
        load_model(path, "numpy")


def test_architecture_and_recipe_of_a_file_must_agree(run, tmp_path):
    arrays, about = checkpoint.load(run[0] / "checkpoint.npz")
    about["architecture"]["layers"][0]["filters"] = 33
    checkpoint.save(tmp_path / "bad.npz", arrays, about)
    with pytest.raises(DataError, match=r"architecture: expected that of the file's recipe"):
        load_model(tmp_path / "bad.npz")


def test_every_layer_survives_json():
    """Each layer's arguments are its attributes; a new layer that breaks this is found here."""
    stacks = small("numpy").layers, small_layers(0.1, 0.9)
    for layers, shape in zip(stacks, [(9, 7, 2), (28, 28, 1)], strict=True):
        before = Architecture(layers, shape).as_dict()
        after = Architecture.from_dict(json.loads(json.dumps(before)))
        assert after.as_dict() == before
        assert [vars(a) for a in after.layers] == [vars(b) for b in layers]


def test_saving_into_nothing_is_told(tmp_path, trained):
    with pytest.raises(OSError, match="missing"):
        trained.save(tmp_path / "missing" / "model.npz")


def test_numbers_of_numpy_are_saved_too(tmp_path):
    optimizer = Adam(np.float32(0.5))
    Sequential([Dense(3, "softmax")], (4,), device="numpy", optimizer=optimizer).save(
        tmp_path / "model.npz"
    )
    assert load_model(tmp_path / "model.npz", "numpy").optimizer == Adam(0.5)


def test_looks(trained):
    assert repr(trained) == (
        "<Sequential: 3 net(s) for 28x28 images of 10 classes 0..9, "
        f"{trained.count_params():,} weights each, on numpy>"
    )
    html = trained._repr_html_()
    assert "<td>conv2d_1</td>" in html and "28x28 images of 10 classes 0..9" in html
    assert "<table" in trained.history._repr_html_()
