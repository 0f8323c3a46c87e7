"""Data of any number of classes, image size and channels, from the files to the submission."""

import csv
import json
import re
import warnings
from dataclasses import replace

import numpy as np
import patterns
import pytest
from runs import small_layers, state

import minicnn.recipe
from minicnn import mnist_cnn, predict, train
from minicnn.files import DataError
from minicnn.recipe import RECIPES, Recipe
from minicnn.training import checkpoint, dataset, prediction
from minicnn.training.dataset import Data
from minicnn.training.trainer import Job, Trainer

RECIPE = "--recipe=demo --nets=1 --epochs=3 --batch-size=16 --learning-rate=0.005 --rotation=0"
QUIET = "--quiet", "--no-figures", "--workers=1"
LETTERS, COLOUR = "letters", "colour.npz"


@pytest.fixture
def small_network(monkeypatch):
    """A small network in place of the notebook's."""
    monkeypatch.setattr(minicnn.recipe, "mnist_layers", small_layers)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with 26 letters as CSV files, and with ten classes of 32x32x3 as .npz."""
    folder = tmp_path_factory.mktemp("data")
    (folder / LETTERS).mkdir()
    patterns.write_csv(folder / LETTERS, patterns.LETTERS, 780, 104, columns=("letter", "id"))
    patterns.write_npz(folder / COLOUR, 10, 480, 100, (32, 32, 3))
    return folder


@pytest.fixture(scope="module")
def runs(files):
    """Run folders of a small network: {LETTERS: ..., COLOUR: ...}."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        patch.setattr(minicnn.recipe, "mnist_layers", small_layers)
        return {name: trained(files / name, "numpy") for name in (LETTERS, COLOUR)}


def trained(data, device, recipe=RECIPE):
    """The folder of a new run beside the data."""
    folder = data.parent / f"run-{len(list(data.parent.iterdir()))}"
    arguments = *recipe.split(), f"--data={data}", f"--out={folder}", f"--device={device}"
    assert train.main([*arguments, *QUIET]) == 0
    return folder


def right(folder, data):
    """The share of right answers in a submission, from the drawn labels."""
    rows = list(csv.reader((folder / "submission.csv").open()))[1:]
    if data == LETTERS:
        labels = [patterns.LETTERS[i] for i in patterns.draw_parts(26, 780, 104)[3]]
    else:
        labels = [str(i) for i in patterns.draw_parts(10, 480, 100, (32, 32, 3))[3]]
    return np.mean([row[1] == label for row, label in zip(rows, labels, strict=True)])


# ---- learning ------------------------------------------------------------------------------------


@pytest.mark.every_device
@pytest.mark.parametrize("data", [LETTERS, COLOUR])
def test_a_small_network_learns(device, data, files, small_network):
    """Guessing is right for 4 % of the letters, and for 10 % of the colours."""
    assert right(trained(files / data, device), data) > 0.8


@pytest.mark.full(beside="test_a_small_network_learns")
@pytest.mark.parametrize("name", ["numpy", "cpu"])
@pytest.mark.parametrize("data", [LETTERS, COLOUR])
def test_the_notebooks_network_learns(name, data, files):
    recipe = "--recipe=demo --nets=1 --epochs=4 --batch-size=16 --rotation=0"
    assert right(trained(files / data, name, recipe), data) > 0.8


@pytest.mark.full(but="numpy|cpu")
@pytest.mark.every_device
def test_a_thousand_classes(device, tmp_path, small_network, monkeypatch):
    """Labels then have 16 bits."""
    names = tuple(f"n{i:04}" for i in range(1000))
    source = patterns.data_set(names, 2000, 64)
    assert source.y_train.dtype == np.uint16
    monkeypatch.setattr(dataset, "load", lambda *_: source)
    recipe = "--recipe=demo --nets=1 --epochs=4 --batch-size=32 --learning-rate=0.01 --rotation=0"
    folder = trained(tmp_path / "many", device, f"{recipe} --validation-fraction=0 --zoom=0")
    rows = list(csv.reader((folder / "submission.csv").open()))
    assert {label for _, label in rows[1:]} <= set(names)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["ensemble_test_accuracy"] > 0.05  # guessing: 0.001
    assert tuple(summary["classes"]) == names
    assert prediction.load(folder / "checkpoint.npz").architecture.classes == names


# ---- the run folder ------------------------------------------------------------------------------


def test_the_files_name_classes_and_shape(runs):
    for data, shape, names in (
        (LETTERS, [28, 28, 1], list(patterns.LETTERS)),
        (COLOUR, [32, 32, 3], list("0123456789")),
    ):
        config, summary = (
            json.loads((runs[data] / name).read_text()) for name in ("config.json", "summary.json")
        )
        about = checkpoint.load(runs[data] / "checkpoint.npz")[1]
        for holder in (config["recipe"], about["recipe"], summary):
            assert (holder["input_shape"], holder["classes"]) == (shape, names)
    rows = list(csv.reader((runs[LETTERS] / "submission.csv").open()))
    assert rows[0] == ["id", "letter"]
    assert [row[0] for row in rows[1:]] == [f"test-{i}" for i in range(104)]
    assert (runs[COLOUR] / "submission.csv").read_text().startswith("ImageId,Label\n1,")


def test_files_of_digits_are_as_they_were(run):
    """Checkpoints without classes and shape are those of digits of 28x28."""
    assert "Data:" not in run[1].stderr
    for text in ((run[0] / "config.json").read_text(), (run[0] / "summary.json").read_text()):
        assert "classes" not in text and "input_shape" not in text
    about = checkpoint.load(run[0] / "checkpoint.npz")[1]
    assert not {"classes", "input_shape"} & set(about["recipe"])
    found = prediction.load(run[0] / "checkpoint.npz").architecture
    assert (found.input_shape, found.classes) == ((28, 28, 1), tuple("0123456789"))


def test_a_run_tells_what_data_it_has_read(files, tmp_path, capsys, small_network):
    arguments = *RECIPE.split(), "--epochs=1", "--device=numpy", "--limit=100", *QUIET
    for name, told in (
        (LETTERS, "Data: 780 images 28x28, 26 classes A..Z"),
        (COLOUR, "Data: 480 images 32x32x3, 10 classes 0..9"),
    ):
        assert train.main([*arguments, f"--data={files / name}", f"--out={tmp_path / name}"]) == 0
        first, second = capsys.readouterr().err.splitlines()[:2]
        assert first.startswith(told)
        assert second.startswith("Training images: 100. Nets: 1.")


def test_a_finished_run_is_resumed_unchanged(runs, files, small_network):
    for data, folder in runs.items():
        before = state(folder)
        arguments = *RECIPE.split(), f"--data={files / data}", f"--out={folder}", "--resume"
        assert train.main([*arguments, "--device=numpy", *QUIET]) == 0
        assert state(folder) == before


def test_other_names_of_the_same_classes_are_another_run(runs, monkeypatch, capsys):
    drawn = patterns.data_set(tuple(reversed(patterns.LETTERS)), 780, 104)
    monkeypatch.setattr(dataset, "load", lambda *_: replace(drawn, y_test=None))
    arguments = *RECIPE.split(), f"--out={runs[LETTERS]}", "--resume", "--device=numpy", *QUIET
    assert train.main(list(arguments)) == 2
    told = capsys.readouterr().err
    assert re.search(r"has classes \['A', 'B', .*\.\.\., got \['Z', 'Y', .*\.\.\.\n", told)
    assert told.count("\n") == 1


def test_test_images_of_another_size_are_refused():
    source = replace(patterns.data_set("ab", 8, 2), x_test=np.zeros((2, 28, 30), np.uint8))
    with pytest.raises(ValueError, match="test images: got 28x30, expected 28x28 as for training"):
        Data.of(source)


def test_images_that_are_too_small_are_refused_in_one_line(tmp_path, capsys):
    patterns.write_npz(tmp_path / "small.npz", 3, 60, 6, (20, 28))
    arguments = f"--data={tmp_path / 'small.npz'} --out={tmp_path / 'run'} --device=numpy".split()
    assert train.main(arguments) == 2
    assert capsys.readouterr().err == (
        "minicnn.train: error: images of 20x28 pixels are too small for the network, which needs "
        "at least 25x25: conv2d_6: kernel_size is (4, 4), expected at most the input's (2, 4) with "
        "padding 'valid'\n"
    )
    assert not (tmp_path / "run").exists()


def test_shape_is_what_a_csv_file_cannot_say(tmp_path, capsys, small_network):
    images, labels = patterns.draw(3, 60, (28, 56))
    rows = [(label, *image.ravel()) for image, label in zip(images, labels, strict=True)]
    text = "\n".join(",".join(map(str, row)) for row in rows)
    header = ",".join(["label", *(f"p{i}" for i in range(28 * 56))])
    (tmp_path / "train.csv").write_text(f"{header}\n{text}\n")
    arguments = [*RECIPE.split(), f"--data={tmp_path}", f"--out={tmp_path / 'run'}", *QUIET]
    arguments.append("--device=numpy")
    assert train.main(arguments) == 2
    capsys.readouterr()
    assert train.main([*arguments, "--shape=28x56"]) == 0
    assert "images 28x56, 3 classes" in capsys.readouterr().err
    assert train.main(["--shape=32x32x3", "--data=digits", "--device=numpy"]) == 2
    assert "got images 28x28, expected the shape 32x32x3" in capsys.readouterr().err
    for bad in ("28", "28x", "0x28", "28x28x28x3", "axb"):
        with pytest.raises(SystemExit):
            train.main([f"--shape={bad}"])
        told = capsys.readouterr().err
        assert f"--shape: got '{bad}', expected HxW or HxWxC" in told and told.count("\n") == 1


# ---- predict -------------------------------------------------------------------------------------


def predicted(folder, data, out):
    paths = f"--checkpoint={folder / 'checkpoint.npz'}", f"--data={data}", f"--out={out}"
    return predict.main([*paths, "--quiet", "--device=numpy", "--workers=1"])


def test_predict_repeats_the_submissions(runs, files, tmp_path, capsys, small_network):
    """Without labels (the letters) and with labels (the colours)."""
    for data, folder in runs.items():
        assert predicted(folder, files / data, tmp_path / "out.csv") == 0
        told = capsys.readouterr()
        assert ("Test accuracy" in told.out) == (data == COLOUR)
        assert re.match(r"Data: 10\d images (28x28, 26|32x32x3, 10) classes", told.err)
        written, own = ((f).read_text() for f in (tmp_path / "out.csv", folder / "submission.csv"))
        assert written.splitlines()[1:] == own.splitlines()[1:]


@pytest.mark.parametrize(
    ("run_of", "data", "told"),
    [
        (LETTERS, "digits", "digits: got '0', expected one of 26 classes A..Z"),
        (LETTERS, COLOUR, "got images 32x32x3, expected the shape 28x28"),
        (COLOUR, LETTERS, "got 784 columns of pixels besides 'id', expected 3072"),
        (COLOUR, "digits", "digits: got images 28x28, expected the shape 32x32x3"),
    ],
)
def test_predict_refuses_other_classes_and_sizes(
    run_of, data, told, runs, files, tmp_path, capsys, small_network
):
    source = data if data == "digits" else files / data
    assert predicted(runs[run_of], source, tmp_path / "out.csv") == 2
    line = capsys.readouterr().err
    assert told in line and line.count("\n") == 1
    trained_on = {LETTERS: "28x28 images of 26 classes A..Z", COLOUR: "32x32x3 images of 10 cl"}
    assert f"checkpoint.npz was trained on {trained_on[run_of]}" in line
    assert not (tmp_path / "out.csv").exists()


def test_a_checkpoint_of_digits_refuses_letters(run, tmp_path, capsys, files):
    patterns.write_npz(tmp_path / "more.npz", 26, 26, 26, (28, 28))
    assert predicted(run[0], tmp_path / "more.npz", tmp_path / "out.csv") == 2
    line = capsys.readouterr().err
    assert "got '10', expected one of 10 classes 0..9" in line and line.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"classes": ["a"]}, r"not a trained ensemble: classes: got \['a'\], expected 2 to 1,000"),
        ({"classes": 10}, "not a trained ensemble: classes: got 10, expected"),
        ({"classes": [["a"], {}]}, "not a trained ensemble: classes: got"),
        ({"classes": ["a", "b", "c"]}, r"params: got shape \(1, \d+\), expected \(1, \d+\)"),
        ({"input_shape": [28, 28]}, "not a trained ensemble: input_shape: got"),
        ({"input_shape": [20, 20, 1]}, "not a trained ensemble: conv2d_6: kernel_size is"),
        ({"input_shape": [2**16, 2**16, 1]}, "params: got shape"),
        ({"input_shape": [28, 28, 2]}, "params: got shape"),
    ],
)
def test_a_checkpoint_of_impossible_classes_or_shapes_is_refused(change, told, run, tmp_path):
    """A file of an earlier version: its recipe is all that it says of its network."""
    arrays, about = checkpoint.load(run[0] / "checkpoint.npz")
    about["recipe"] |= change
    del about["architecture"]
    path = tmp_path / "changed.npz"
    arrays = {name: array[:1] for name, array in arrays.items()}  # one net and its first epoch
    checkpoint.save(path, arrays, {**about, "nets": about["nets"][:1]})
    with pytest.raises(DataError, match=rf"^{re.escape(str(path))}: {told}"):
        prediction.load(path)


# ---- the Python API ------------------------------------------------------------------------------


@pytest.mark.every_device
def test_mnist_cnn_of_other_images_and_classes(device):
    model = mnist_cnn(nets=2, device=device, classes=3, input_shape=(26, 29, 3))
    x = np.random.default_rng(0).random((4, 26, 29, 3), np.float32)
    assert model.predict(x).shape == (2, 4, 3)
    y = np.array([[0, 1, 2, 1]] * 2)
    loss, _ = model.train_on_batch(np.stack([x, x]), y)
    assert loss.shape == (2,) and np.isfinite(loss).all()


@pytest.mark.parametrize(("classes", "shape"), [(12, (28, 28)), (10, (28, 28, 3))])
def test_a_trainer_refuses_data_of_another_recipe(classes, shape, tmp_path):
    data = Data.of(patterns.data_set(tuple(map(str, range(classes))), 80, 4, shape))
    with pytest.raises(ValueError, match=r"^data: got images 28x28x\d and labels up to \d+, the"):
        Trainer(Job(RECIPES["demo"], data, "numpy", "float32", tmp_path), range(1, 2))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"classes": 1}, "classes: got 1, expected an integer from 2 up"),
        ({"classes": 2.5}, "classes: got 2.5"),
        ({"input_shape": (24, 28, 1)}, r"conv2d_6: kernel_size is \(4, 4\)"),
        ({"input_shape": (28, 28)}, r"input_shape: got \(28, 28\), expected \(H, W, C\)"),
    ],
)
def test_mnist_cnn_refuses(arguments, named):
    with pytest.raises(ValueError, match=named):
        mnist_cnn(1, device="numpy", **arguments)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("input_shape", (28, 28)),
        ("input_shape", "28x28x1"),
        ("input_shape", (28, 0, 1)),
        ("input_shape", (28, 28, 2**20)),
        ("classes", ("a",)),
        ("classes", ("a", "a")),
        ("classes", ("a", 1)),
        ("classes", "ab"),
        ("classes", ("a", ["b"])),
        ("classes", ("a", "b" * 61)),
        ("classes", tuple(map(str, range(1001)))),
    ],
)
def test_a_recipe_names_a_shape_or_classes_that_cannot_be(field, value):
    with pytest.raises(ValueError, match=f"^{field}: got .*, expected") as told:
        Recipe(**{field: value})
    assert len(str(told.value)) < 200


def test_a_recipe_is_made_again_from_its_json():
    for recipe in (
        RECIPES["seed"],
        replace(RECIPES["demo"], classes=("x", "y,\n\N{SNOWMAN}"), input_shape=(40, 30, 2)),
    ):
        assert Recipe(**json.loads(json.dumps(recipe.as_dict()))) == recipe
