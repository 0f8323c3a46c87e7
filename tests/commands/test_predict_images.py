"""minicnn.predict --images: what it prints, draws and refuses, and that it reads real digits."""

import sys

import numpy as np
import PIL.Image
import pytest
from digit_files import MNIST, needs_mnist
from runs import small_layers
from sheets import decoded, no_digits, pen_drawing, sheet

from minicnn import Sequential, drawing, load_data, load_model, predict, prepare_digits
from minicnn import train as train_command
from minicnn.training import prediction

LETTERS = tuple("abcdefghij")


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    """A file of three nets for the classes a to j."""
    path = tmp_path_factory.mktemp("nets") / "nets.npz"
    layers = small_layers(0.4, 0.9)
    Sequential(layers, (28, 28, 1), nets=3, device="numpy", classes=LETTERS).save(path)
    return path


@pytest.fixture
def answered(monkeypatch):
    """answered(probabilities): what the nets (nets, n, 10) say of the digits found.

    Returns a list that gets the digits.
    """

    def answered(probabilities):
        seen = []

        def probabilities_of(trained, images, *_):
            seen.append(images)
            return np.array(probabilities, np.float32)

        monkeypatch.setattr(prediction, "probabilities_of", probabilities_of)
        return seen

    return answered


@pytest.fixture
def main(capsys, nets, tmp_path, monkeypatch):
    """main(*arguments): (status, stdout, lines on stderr) of the command in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def main(*arguments, checkpoint=nets):
        given = [f"--checkpoint={checkpoint}", "--device=numpy", "--workers=1", "--quiet"]
        try:
            status = predict.main([*given, *map(str, arguments)])
        except SystemExit as stop:
            status = stop.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err.splitlines()

    return main


def save(path, pixels):
    PIL.Image.fromarray(pixels).save(path)


def sure(label, probability=0.91):
    """Probabilities (10,) with this one for a class."""
    values = np.full(10, (1 - probability) / 9)
    values[label] = probability
    return values


def test_a_line_for_each_digit_and_a_figure(main, tmp_path, answered):
    drawn = pen_drawing([3, 5, 7], 6)
    save("line.png", drawn)
    expected, boxes = prepare_digits(drawn)
    seen = answered(
        [
            [sure(3), sure(5), sure(7)],
            [sure(3), sure(5), sure(8)],
            [sure(3), sure(2, 0.3), sure(9)],
        ]
    )
    status, out, err = main("--images", "line.png")
    assert (status, err) == (0, [])
    assert (seen[0] == expected).all()
    places = [f"rows {t + 1} to {b}, columns {lo + 1} to {hi}" for t, b, lo, hi in boxes]
    assert out.splitlines() == [
        f"line.png: digit 1, {places[0]}: d, probability 0.9100, 3 of 3 nets agree",
        f"line.png: digit 2, {places[1]}: f, probability 0.6326, 2 of 3 nets agree",
        f"line.png: digit 3, {places[2]}: h, probability 0.3100, 1 of 3 nets agree, unsure",
        "3 digits in 1 image, 1 unsure",
        "Figure: digits.png",
    ]
    with PIL.Image.open(tmp_path / "digits.png") as figure:
        assert figure.width == drawing.WIDTH


def test_an_ensemble_that_agrees_on_little_is_unsure(main, answered):
    save("one.png", pen_drawing([4], 6))
    for probability, is_unsure in ((0.49, True), (0.51, False)):
        answered([[sure(4, probability)]] * 3)
        out = main("--images", "one.png")[1]
        assert ("3 of 3 nets agree, unsure" in out) == is_unsure
        assert out.count("\n1 digit in 1 image, 1 unsure\n") == is_unsure


def test_files_and_folders_with_nets_that_predict(main, tmp_path, nets):
    (tmp_path / "photos").mkdir()
    drawings = {"a.png": [1], "photos/2.png": [2, 3], "photos/10.png": [4]}
    for name, digits in drawings.items():
        save(name, pen_drawing(digits, 6))
    status, out, err = main("--images", "a.png", "photos", "--out", "votes.png")
    assert (status, err) == (0, [])
    lines = out.splitlines()
    assert [line.partition(", rows")[0] for line in lines[:4]] == [
        "a.png: digit 1",
        "photos/2.png: digit 1",
        "photos/2.png: digit 2",
        "photos/10.png: digit 1",
    ]
    assert lines[4].startswith("4 digits in 3 images, ") and lines[5] == "Figure: votes.png"
    images = np.concatenate([prepare_digits(pen_drawing(d, 6))[0] for d in drawings.values()])
    means = load_model(nets, device="numpy").predict(images).mean(axis=0)
    for line, mean in zip(lines, means, strict=False):
        assert f": {LETTERS[mean.argmax()]}, probability {mean.max():.4f}, " in line


@pytest.mark.parametrize("name", ["blank", "black", "noise", "1x1"])
def test_nothing_like_a_digit(main, tmp_path, name):
    save("photo.png", no_digits()[name])
    status, out, err = main("--images", "photo.png")
    assert (status, err) == (0, [])
    assert out == "photo.png: nothing like a digit is found\n0 digits in 1 image, none unsure\n"
    assert not (tmp_path / "digits.png").exists()


def test_a_damaged_file_does_not_keep_the_others_from_being_answered(main, tmp_path):
    save("good.png", pen_drawing([4], 6))
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    status, out, err = main("--images", "half.png", "missing.png", "good.png")
    assert status == 2 and "1 digit in 1 image, " in out and "Figure: digits.png" in out
    assert [line.partition(": c")[0] for line in err] == [
        "minicnn.predict: error: half.png",
        "minicnn.predict: error: missing.png",
    ]
    status, out, err = main("--images", "half.png")
    assert (status, out, len(err)) == (2, "", 1)


def test_a_name_that_cannot_be_printed(main):
    save("a\nb\x1b[2J$x_$.png", pen_drawing([4], 6))
    status, out, err = main("--images", ".")
    assert (status, err) == (0, []) and out.startswith("a\\nb\\x1b[2J$x_$.png: digit 1, ")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--images"], "argument --images: expected at least one argument"),
        ([], "one of the arguments --data --images is required"),
        (
            ["--images=a.png", "--data=digits"],
            "argument --data: not allowed with argument --images",
        ),
        (["--images=."], ".: got no images, expected 1 to 1,000 PNG or JPEG files"),
        (["--images=a.png"], "a.png: cannot be read: No such file or directory"),
        (["--images=a.png", "--out=x/y.png"], "argument --out: got x/y.png, expected a file in an"),
    ],
)
def test_bad_arguments(main, arguments, expected):
    status, out, err = main(*arguments)
    assert (status, out) == (2, "")
    assert len(err) == 1 and err[0].startswith(f"minicnn.predict: error: {expected}")


def test_nets_for_other_images_are_refused(main, tmp_path):
    other = tmp_path / "other.npz"
    Sequential(small_layers(0.4, 0.9), (32, 32, 3), nets=1, device="numpy", classes=LETTERS).save(
        other
    )
    status, out, err = main("--images", "a.png", checkpoint=other)
    assert (status, out) == (2, "")
    assert err == [
        f"minicnn.predict: error: {other}: was trained on 32x32x3 images of 10 classes a..j, "
        "expected 28x28 images in grey: --images prepares digits in that size"
    ]


def test_without_matplotlib_the_answers_are_printed(main, tmp_path, monkeypatch):
    save("one.png", pen_drawing([4], 6))
    monkeypatch.setattr(drawing, "available", lambda: False)
    status, out, err = main("--images", "one.png")
    assert status == 0 and "1 digit in 1 image" in out and "Figure" not in out
    assert err == ['no figure, because matplotlib is missing: pip install "minicnn[figures]"']
    assert not (tmp_path / "digits.png").exists()


def test_without_pillow(main, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    status, _, err = main("--images", "one.png")
    assert status == 2
    assert err == [
        "minicnn.predict: error: --images: images in files need Pillow: pip install "
        '"minicnn[images]"'
    ]


# ---- real digits ---------------------------------------------------------------------------------


@pytest.mark.full(beside="test_files_and_folders_with_nets_that_predict")
@pytest.mark.parametrize(  # with as many images to train on, of 6,000 and of 12,000
    ("source", "epochs"), [("digits", 4), pytest.param(MNIST, 2, marks=needs_mnist)]
)
def test_prepared_digits_are_recognised_like_the_originals(source, epochs, tmp_path):
    """200 test images, blown up, inverted, blurred, moved, on grey paper, as PNG and JPEG."""
    options = "--nets=2 --momentum=0.9 --limit=12000 --quiet --no-figures".split()
    out = tmp_path / "run"
    options += f"--data={source}", f"--epochs={epochs}", f"--out={out}"
    assert train_command.main(options) == 0
    model = load_model(out / "checkpoint.npz")
    _, (images, labels) = load_data(source)
    images, labels = images[:200], labels[:200]

    def accuracy(images):
        return np.mean(model.predict(images).sum(axis=0).argmax(axis=1) == labels)

    original = accuracy(images)
    assert original > 0.95
    for times, dark, kind in ((3, True, "PNG"), (6, False, "JPEG"), (12, True, "JPEG")):
        for each in 1, 8:
            found = [
                prepare_digits(decoded(sheet(images[i : i + each], times, dark, seed=i), kind))[0]
                for i in range(0, 200, each)
            ]
            assert [len(digits) for digits in found] == [each] * (200 // each)
            assert accuracy(np.concatenate(found)) >= original - 0.01
