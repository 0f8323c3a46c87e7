"""Settings and data that train nothing: refused where they never can, else told in one line."""

import re
import warnings
from dataclasses import replace

import numpy as np
import patterns
import pytest
from runs import command, small_layers

import minicnn.recipe
from minicnn import train
from minicnn.network.layers import BatchNormalization, Conv2D, Dense, Flatten
from minicnn.network.stack import check_batch, connect
from minicnn.recipe import RECIPES
from minicnn.training import dataset, learnable
from minicnn.training.dataset import Data

LETTERS = patterns.data_set(patterns.LETTERS, 260, 26)


def checked(source=LETTERS, **fields):
    """The warnings of learnable.check for a DataSet and a changed recipe."""
    data = Data.of(source)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", ResourceWarning)  # what other tests left open
        learnable.check(replace(RECIPES["demo"], **fields).of(data), data)
    return [str(warning.message) for warning in told]


def test_an_ordinary_training_is_no_occasion_for_words():
    assert checked() == []
    assert (
        checked(
            batch_size=4, learning_rate=1.0, decay=0.5, rotation=180, zoom=0.5, label_smoothing=0.5
        )
        == []
    )
    # They end at 0, and decay is not theirs.
    for schedule in ("linear", "cosine"):
        assert checked(epochs=2000, schedule=schedule, warm_up=0.1, decay=0.1) == []


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (
            {"batch_size": 1},
            r"batch_size: got 1, expected at least 2: batch_normalization_6 would normalise a "
            "single value per channel",
        ),
        (
            {"learning_rate": 1e-10},
            r"learning_rate: got 1e-10, expected at least 9e-10: float32 rounds",
        ),
        (
            {"validation_fraction": 0.9},
            "batch_size: got 64, expected at most the 26 training",
        ),
    ],
)
def test_settings_that_never_learn_are_refused(fields, named):
    with pytest.raises(ValueError, match=named):
        checked(**fields)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"batch_size": 2}, "batch_normalization_6 normalise 2 values per channel"),
        ({"label_smoothing": 0.51}, "label smoothing 0.51 spreads more than half of each label"),
        ({"learning_rate": 1e-6}, "learning rate 1e-06 moves a weight by at most about 9e-06"),
        ({"learning_rate": 1e-5, "schedule": "cosine"}, "weight by at most about 5e-05 in"),
        ({"epochs": 9, "decay": 0.01}, "from epoch 5 of 9 on the nets learn nothing"),
        (
            {"epochs": 9, "decay": 0.01, "warm_up": 0.3},
            "from epoch 8 of 9 on the nets learn nothing",
        ),
        ({"learning_rate": 4e-5, "warm_up": 0.5, "decay": 1.0}, "by at most about 0.0003 in"),
        (
            {"average_decay": 0.999},
            "the average of the weights needs about 4,604 steps at average decay 0.999 to leave "
            "the first weights, this training has 9",
        ),
        ({"zoom": 0.9}, "zoom 0.9 moves much of an image out of its frame"),
        ({"width_shift": 0.8}, "width shift 0.8 moves much"),
        ({"height_shift": 1.0}, "height shift 1 moves much"),
        ({"elastic": 0.4}, "elastic 0.4 distorts images so much that some fold"),
        ({"validation_fraction": 0.6}, "leaves less than half of the images for training"),
    ],
)
def test_settings_that_are_unwise_are_told(fields, told):
    (line,) = checked(**fields)
    assert told in line


def test_an_average_that_leaves_the_first_weights_is_no_occasion_for_words():
    assert checked(average_decay=0.5) == [] == checked(average_decay=0.999, epochs=1600, decay=1.0)


def test_a_training_of_one_step_is_checked_like_any_other():
    batch = 234  # all images of a net but a few, so that there is one step
    assert not any("average" in told for told in checked(epochs=1, batch_size=batch))
    told = checked(epochs=1, batch_size=batch, average_decay=0.5)
    assert any("needs about 8 steps at average decay 0.5" in line for line in told)


def test_any_number_of_epochs_is_checked_at_once():
    (line,) = checked(epochs=10**9, decay=0.999999)
    assert re.search("from epoch 138\\d{5} of 1000000000 on", line)


def test_labels_of_one_class_are_refused():
    source = replace(LETTERS, y_train=np.full_like(LETTERS.y_train, 3))
    with pytest.raises(ValueError, match="all 260 are of the class 'D', expected images of at"):
        checked(source)


def test_equal_images_are_refused():
    for images in (np.zeros_like(LETTERS.x_train), np.repeat(LETTERS.x_train[5:6], 260, axis=0)):
        with pytest.raises(ValueError, match="training images: all 260 are equal"):
            checked(replace(LETTERS, x_train=images))
    images = np.zeros((3000, 28, 28), np.uint8)
    images[-1, 27, 27] = 255  # the last pixel of the last image differs
    labels = np.arange(3000, dtype=np.uint8) % 26
    assert checked(replace(LETTERS, x_train=images, y_train=labels)) == []


def test_classes_without_images_are_told():
    few = replace(LETTERS, y_train=LETTERS.y_train % 20)
    assert checked(few) == [
        "no training image is of U, V, W, X, Y and 1 more: the nets cannot learn 6 of the 26 "
        "classes"
    ]


def test_dark_images_are_told():
    (line,) = checked(replace(LETTERS, x_train=LETTERS.x_train // 128))
    assert "the brightest pixel of all training images is 1 of 255" in line


@pytest.mark.parametrize(
    ("size", "told"),
    [
        ((40, 40), None),
        (
            (41, 41),
            "of 41x41 pixels are large for this network: its last convolution leaves 5x5 pixels, "
            "1x1 of 28x28",
        ),
        ((28, 96), "of 28x96 pixels are large for this network: its last convolution leaves 1x18"),
    ],
)
def test_images_that_the_network_fits_badly_are_told(size, told):
    lines = checked(patterns.data_set("ab", 80, 4, size))
    assert [told in line for line in lines] == [True] * (told is not None)


@pytest.mark.parametrize("size", [(24, 40), (40, 24), (7, 7), (1, 1)])
def test_images_that_are_too_small_are_refused(size):
    data = Data.of(patterns.data_set("ab", 80, 4, size))
    told = (
        rf"^images of {size[0]}x{size[1]} pixels are too small for the network, which needs at "
        r"least 25x25: conv2d(_\d)?: kernel_size is \((\d), \2\), expected at most the input's \("
    )
    with pytest.raises(ValueError, match=told):
        RECIPES["seed"].of(data)
    RECIPES["seed"].of(Data.of(patterns.data_set("ab", 80, 4, (25, 25))))


def test_batches_of_one_are_fine_without_a_single_value_to_normalise():
    network = [Conv2D(2, 3), BatchNormalization(), Flatten(), Dense(2, activation="softmax")]
    check_batch(connect(network, (4, 4, 1)), 1)  # 2 x 2 pixels remain
    check_batch(connect([network[0], *network[2:]], (3, 3, 1)), 1)
    with pytest.raises(ValueError, match="batch_normalization would normalise a single value"):
        check_batch(connect(network, (3, 3, 1)), 1)
    with pytest.raises(ValueError, match="batch_normalization would"):
        check_batch(connect([Flatten(), BatchNormalization(), Dense(2)], (3, 3, 1)), 1)


@pytest.mark.parametrize(
    ("option", "told"),
    [
        (
            "--batch-size=1",
            "argument --batch-size: got 1, expected at least 2: batch_normalization_6 would "
            "normalise a single value per channel, which gives gradients of zero",
        ),
        ("--learning-rate=1e-12", "argument --learning-rate: got 1e-12, expected at least 9e-10"),
    ],
)
def test_the_command_refuses_before_it_makes_a_folder(option, told, tmp_path):
    arguments = "--limit=200 --nets=1 --epochs=1 --device=numpy --quiet".split()
    done = command("minicnn.train", *arguments, option, "--out", tmp_path / "run")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"minicnn.train: error: {told}")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


# ---- after the training --------------------------------------------------------------------------


def trained_lines(tmp_path, monkeypatch, capsys, *options, **change):
    """The warnings of a run of a small network on the letters."""
    monkeypatch.setattr(minicnn.recipe, "mnist_layers", small_layers)
    monkeypatch.setattr(dataset, "load", lambda *_: replace(LETTERS, **change))
    arguments = "--recipe=demo --nets=1 --batch-size=16 --quiet --no-figures --workers=1"
    arguments += f" --device=numpy --rotation=0 --zoom=0 --out={tmp_path / 'run'}"
    assert train.main([*arguments.split(), *options]) == 0
    return re.findall("warning: (.*)", capsys.readouterr().err)


def test_a_training_that_learned_is_no_occasion_for_words(tmp_path, monkeypatch, capsys):
    options = "--epochs=8", "--learning-rate=0.01"
    assert trained_lines(tmp_path, monkeypatch, capsys, *options) == []


def test_a_training_that_learned_nothing_says_so(tmp_path, monkeypatch, capsys):
    (line,) = trained_lines(tmp_path, monkeypatch, capsys, "--epochs=2", "--learning-rate=1e-4")
    assert line.startswith("the nets learned nothing: guessing is as good as their training")


@pytest.mark.parametrize(
    ("recipe", "epochs", "told"),
    [
        ("seed", 9, "need about 458 steps at momentum 0.99, this training has 27; train longer or"),
        ("demo", 9, "need about 44 steps at momentum 0.9, this training has 27; train longer$"),
        ("demo", 20, r"are the labels right\?$"),
    ],
)
def test_a_validation_that_is_guessing_is_told_with_its_likely_cause(recipe, epochs, told):
    data = Data.of(LETTERS)
    recipe = replace(RECIPES[recipe], epochs=epochs).of(data)
    rows = [{"epoch": epochs, "train_accuracy": 0.9, "validation_accuracy": 0.05}]
    with pytest.warns(UserWarning, match=told):
        learnable.warn_of_guessing(recipe, data, rows, None)
    rows[0]["validation_accuracy"] = 0.2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learnable.warn_of_guessing(recipe, data, rows, None)
        learnable.warn_of_guessing(recipe, data, [], None)  # every net diverged
        rows[0]["train_accuracy"] = 0.05
        learnable.warn_of_guessing(replace(recipe, epochs=6), data, rows, None)  # 18 steps


def test_an_average_of_the_first_weights_is_told_as_the_cause():
    data = Data.of(LETTERS)
    recipe = replace(RECIPES["demo"], epochs=20).of(data)  # 60 steps
    rows = [{"epoch": 20, "train_accuracy": 0.9, "validation_accuracy": 0.05}]
    for decay, told in ((0.95, r"needs about 91 steps at .* 0\.95 .*, this .* 60"), (0.9, "right")):
        with pytest.warns(UserWarning, match=f"^guessing is as good as the validation .*{told}"):
            learnable.warn_of_guessing(replace(recipe, average_decay=decay), data, rows, None)


def test_test_labels_of_something_else_are_told(tmp_path, monkeypatch, capsys):
    options = "--epochs=8", "--learning-rate=0.01", "--validation-fraction=0"
    shuffled = np.roll(LETTERS.y_test, 3)
    (line,) = trained_lines(tmp_path, monkeypatch, capsys, *options, y_test=shuffled)
    assert "as good as the test accuracy" in line and line.endswith("are the labels right?")
