import subprocess
import sys
from pathlib import Path

import numpy as np
import patterns
import pytest

from minicnn import RandomAffine, drawing
from minicnn.data.digits import draw_digits
from minicnn.training import figures

pytest.importorskip("matplotlib")
from matplotlib import rcParams, style
from matplotlib.colors import same_color, to_rgb
from matplotlib.image import imread

NAMES = "training_images.png", "augmented_images.png", "learning_curves.png", "predictions.png"
AUGMENT = RandomAffine(10, 0.1, 0.1, 0.1)

# Warnings that a user would see on the terminal
pytestmark = pytest.mark.filterwarnings("error::UserWarning", "error::RuntimeWarning")


@pytest.fixture(scope="module")
def digits():
    return draw_digits(60)


@pytest.fixture
def build(monkeypatch, tmp_path):
    """build(write, *arguments): the Figure that figures.<write> saves, with its PNG's pixels."""
    made = []
    save = figures.save

    def save_and_keep(path, function, *arguments):
        def kept(*arguments):
            made.append(function(*arguments))
            return made[-1]

        save(path, kept, *arguments)

    def build(write, *arguments):
        getattr(figures, write)(tmp_path / "figure.png", *arguments)
        made[-1].pixels = imread(tmp_path / "figure.png")[..., :3]  # (height, width, 3), 0 to 1
        return made[-1]

    monkeypatch.setattr(figures, "save", save_and_keep)
    return build


def history(nets, epochs, validation=True):
    return [
        {
            "net": net,
            "epoch": epoch,
            "learning_rate": 1e-3,
            "train_loss": 1 / (epoch + net),
            "train_accuracy": 1 - 0.3 / (epoch + net),
            "validation_loss": 0.1 / (epoch + net) if validation else None,
            "validation_accuracy": 1 - 0.03 / (epoch + net) if validation else None,
            "seconds": 1.0,
        }
        for net in range(3, 3 + nets)
        for epoch in range(1, 1 + epochs)
    ]


def titles(figure):
    return [axes.get_title() for axes in figure.axes]


def notes(figure):
    return [text.get_text() for text in figure.texts]


def shown(axes):
    """The pixels of the image in `axes`."""
    return np.asarray(axes.images[0].get_array())


def framed(figure):
    """Which images have a red frame."""
    return [
        all(same_color(spine.get_edgecolor(), drawing.WRONG) for spine in axes.spines.values())
        for axes in figure.axes
    ]


# ---- files ---------------------------------------------------------------------------------------


def test_write_all_writes_png_files_of_one_width(tmp_path, digits):
    images, labels = digits
    folder = tmp_path / "run" / "figures"
    figures.write_all(folder, images, labels, AUGMENT, history(4, 3), images, labels, labels)
    assert {path.name for path in folder.iterdir()} == set(NAMES)
    for name in NAMES:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
        pixels = imread(folder / name)
        height, width, _ = pixels.shape
        assert width == drawing.WIDTH
        assert 400 < height < 900
        assert pixels.std() > 0.05  # not a blank page
    figures.write_all(str(folder), images, labels, AUGMENT, history(4, 3))  # again, over the old


@pytest.mark.full(but="^(1|9)$")
@pytest.mark.parametrize("count", [1, 2, 9, 31])
def test_few_images_and_no_test_set(tmp_path, digits, count):
    images, labels = (array[:count] for array in digits)
    figures.write_all(tmp_path, images, labels, AUGMENT, history(1, 1))
    assert {path.name for path in tmp_path.iterdir()} == set(NAMES) - {"predictions.png"}
    figures.write_all(tmp_path, images, labels, AUGMENT, history(1, 1), images, labels)
    assert {path.name for path in tmp_path.iterdir()} == set(NAMES)


def test_a_failure_leaves_no_file_and_keeps_the_old_one(tmp_path, digits):
    def broken(images, **_):
        raise RuntimeError("no augmentation today")

    path = tmp_path / "augmented_images.png"
    for before in ([], [b"the old one"]):
        for content in before:
            path.write_bytes(content)
        with pytest.raises(RuntimeError, match="today"):
            figures.augmented_images(path, *digits, broken)
        assert [p.read_bytes() for p in tmp_path.iterdir()] == before


def test_a_failure_while_saving_leaves_no_file(tmp_path, digits, monkeypatch):
    from matplotlib.figure import Figure  # noqa: PLC0415

    def savefig(self, file, **_):
        file.write(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", savefig)
    path = tmp_path / "training_images.png"
    with pytest.raises(OSError, match="training_images"):
        figures.training_images(path, *digits)
    assert not any(tmp_path.iterdir())


def test_matplotlib_is_imported_late_and_without_pyplot(tmp_path):
    code = f"""
import sys
from minicnn import RandomAffine
from minicnn.training import figures
from minicnn.data.digits import draw_digits
assert "matplotlib" not in sys.modules
x, y = draw_digits(5)
rows = [{{"net": 1, "epoch": 1, "train_loss": 1, "train_accuracy": 0.5,
         "validation_loss": None, "validation_accuracy": None}}]
figures.write_all({str(tmp_path)!r}, x, y, RandomAffine(), rows, x, y, y)
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    root = Path(figures.__file__).parents[2]  # so that a bare checkout is found
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


def test_matplotlib_can_be_absent(monkeypatch):
    assert drawing.available()
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # import matplotlib: ImportError
    assert not drawing.available()


def test_the_users_settings_neither_show_nor_change(tmp_path, digits):
    plain, dark = tmp_path / "plain.png", tmp_path / "dark.png"
    figures.training_images(plain, *digits)
    with style.context(["dark_background", {"savefig.dpi": 30, "savefig.bbox": "tight"}]):
        before = dict(rcParams)
        figures.training_images(dark, *digits)
        assert dict(rcParams) == before
    assert plain.read_bytes() == dark.read_bytes()


# ---- images --------------------------------------------------------------------------------------


def test_training_images_stand_below_their_labels(build, digits):
    images, labels = digits
    figure = build("training_images", images, labels)
    assert titles(figure) == [str(label) for label in labels[:30]]
    for axes, image in zip(figure.axes, images, strict=False):
        np.testing.assert_array_equal(shown(axes), image)
    assert notes(figure) == ["Training images", "The first 30 of 60 images, each below its label"]
    boxes = np.array([axes.get_position().bounds for axes in figure.axes])
    assert len(np.unique(boxes[:, 0].round(6))) == 10
    assert len(np.unique(boxes[:, 1].round(6))) == 3


def test_pixels_are_squares_of_ink_on_white_paper(build, digits):
    images, labels = digits
    figure = build("training_images", images, labels)
    # Every image stands at whole pixels, each of its own drawn as 4 x 4: (28, 4, 28, 4).
    side, across, down = drawing.TILE, drawing.GAP, drawing.LABEL
    for i, image in enumerate(images[:30]):
        top = drawing.HEAD + i // 10 * (side + down)
        left = drawing.MARGIN + i % 10 * (side + across)
        drawn = figure.pixels[top : top + side, left : left + side, 0].reshape(28, 4, 28, 4)
        inner = drawn[1:-1, :, 1:-1]  # the frame covers half of a pixel at the edge
        assert np.ptp(inner, axis=(1, 3)).max() == 0
        expected = 1 - image[1:-1, 1:-1] / 255
        np.testing.assert_allclose(inner[:, 0, :, 0], expected, atol=0.01)


def test_augmented_images(build, digits):
    images, labels = digits
    calls = []

    class Recorded(RandomAffine):
        def __call__(self, batch, seed, net, step):
            calls.append((batch, super().__call__(batch, seed, net, step)))
            return calls[0][1]

    figure = build("augmented_images", images, labels, Recorded(10, 0.1, 0.1, 0.1))
    (batch, augmented) = calls[0]
    assert batch.shape == (30, 28, 28, 1)
    assert batch.dtype == np.float32
    assert batch.max() <= 1
    rows = np.array([shown(axes) for axes in figure.axes]).reshape(3, 11, 28, 28)
    for row, image in zip(rows, images[:3], strict=True):
        np.testing.assert_array_equal(row[0], image)
        assert (abs(row[1:] - row[0]).max(axis=(1, 2)) > 50).all()
    np.testing.assert_allclose(rows[:, 1:].reshape(30, 28, 28) / 255, augmented[..., 0], atol=1e-6)
    assert notes(figure) == [
        "Three images, augmented ten times each",
        "Rotation ±10°, zoom ±10 %, shift ±10 %",
    ]


def test_augmented_images_differ_in_their_labels(build, digits):
    images, _ = digits
    for labels, chosen in (
        ([1, 1, 1, 7, 1, 2, 3], [0, 3, 5]),
        ([4, 4, 4, 4, 0], [0, 4, 1]),
        ([4, 4, 4, 4, 4], [0, 1, 2]),
    ):
        figure = build("augmented_images", images[: len(labels)], np.array(labels), AUGMENT)
        for axes, index in zip(figure.axes[::11], chosen, strict=True):
            np.testing.assert_array_equal(shown(axes), images[index])


def test_augmentation_in_words(build, digits):
    images, labels = (array[:1] for array in digits)
    figure = build("augmented_images", images, labels, RandomAffine(7.5, 0, 0.125, 0.2))
    assert notes(figure) == [
        "One image, augmented ten times",
        "Rotation ±7.5°, zoom ±0 %, shift ±12.5 % of the width and ±20 % of the height",
    ]
    assert len(figure.axes) == 11
    figure = build("augmented_images", images, labels, RandomAffine(10, 0.1, 0.1, 0.1, 0.075))
    assert notes(figure)[1] == "Rotation ±10°, zoom ±10 %, shift ±10 %, elastic ±7.5 %"


# ---- predictions ---------------------------------------------------------------------------------


def test_wrong_predictions_are_marked_and_counted(build, digits):
    images, truth = digits
    predicted = truth.copy()
    wrong = [0, 13, 39, 40, 59]  # three of them among the first 40
    predicted[wrong] = (truth[wrong] + 1) % 10
    figure = build("predictions", images, predicted, truth)
    assert len(figure.axes) == 40
    assert np.flatnonzero(framed(figure)).tolist() == wrong[:3]
    expected = [str(label) for label in predicted[:40]]
    for i in wrong[:3]:
        expected[i] += f", not {truth[i]}"
    assert titles(figure) == expected
    assert notes(figure)[1] == (
        "The first 40 of 60 test images, each below its predicted label. "
        "Wrong (red): 3 of these, 5 of all (8.33 %)"
    )
    red = abs(figure.pixels - to_rgb(drawing.WRONG)).max(axis=2) < 0.02
    assert 3000 < red.sum() < 15000  # three frames of 4 x 112 x 5 pixels, and their labels


def test_all_right(build, digits):
    images, truth = digits
    figure = build("predictions", images[:12], truth[:12], truth[:12])
    assert not any(framed(figure))
    assert notes(figure)[1].endswith(
        "All 12 test images, each below its predicted label. Wrong (red): none"
    )


def test_without_the_truth_nothing_is_marked(build, digits):
    images, predicted = digits
    figure = build("predictions", images, predicted)
    assert not any(framed(figure))
    assert titles(figure) == [str(label) for label in predicted[:40]]
    assert "rong" not in notes(figure)[1]
    assert np.ptp(figure.pixels, axis=2).max() == 0  # all is grey


def test_probabilities_are_below_the_images(build, digits):
    images, predicted = digits
    probabilities = np.full((60, 10), 0.001)
    probabilities[np.arange(60), predicted] = np.linspace(0.5, 1, 60)
    figure = build("predictions", images, predicted, None, probabilities)
    assert [axes.get_xlabel() for axes in figure.axes[:3]] == ["50 %", "51 %", "52 %"]
    figure = build("predictions", images[-1:], predicted[-1:], None, probabilities[-1:])
    assert figure.axes[0].get_xlabel() == "> 99 %"
    assert notes(figure)[1] == "The only test image, below its predicted label"


# ---- learning curves -----------------------------------------------------------------------------


@pytest.mark.parametrize(("nets", "epochs"), [(1, 1), (4, 6), (15, 1), (15, 45)])
@pytest.mark.parametrize("validation", [True, False])
def test_learning_curves(build, nets, epochs, validation):
    rows = history(nets, epochs, validation)
    figure = build("learning_curves", rows)
    each = nets + 1 if nets > 1 else 1  # a line for each net and one for the mean
    parts = ["training", "validation"] if validation else ["training"]
    for axes, measure in zip(figure.axes, ("accuracy", "loss"), strict=True):
        assert len(axes.lines) == each * len(parts)
        bold = [line for line in axes.lines if line.get_linewidth() > 2]
        assert [line.get_label() for line in bold] == parts
        assert [text.get_text() for text in axes.get_legend().get_texts()] == parts
        for line, part in zip(bold, ("train", "validation"), strict=False):
            values = np.array([row[f"{part}_{measure}"] for row in rows]).reshape(nets, epochs)
            mean = values.mean(axis=0)
            expected = 1 - mean if measure == "accuracy" else mean
            np.testing.assert_allclose(line.get_ydata(), expected)
            np.testing.assert_array_equal(line.get_xdata(), np.arange(1, epochs + 1))
            assert (line.get_marker() not in (None, "None", "")) == (epochs <= 15)
        if validation:  # distinguishable without colour
            assert bold[0].is_dashed() and not bold[1].is_dashed()
        drawn = np.concatenate([line.get_ydata() for line in axes.lines])
        low, high = axes.get_ylim()
        assert low < drawn.min() and drawn.max() < high
        ticks = axes.xaxis.get_major_locator()()
        inside = ticks[(ticks > axes.get_xlim()[0]) & (ticks < axes.get_xlim()[1])]
        assert len(inside) >= 1
        assert (inside == inside.round()).all()
        assert inside.min() >= 1
    title, explained = notes(figure)
    assert title == f"Learning curves of {nets if nets > 1 else 'one'} net{'s' * (nets > 1)}"
    assert ("bold: their mean" in explained) == (nets > 1)
    assert ("validation" in explained) == validation


def test_learning_curves_of_a_data_frame(build, tmp_path):
    pandas = pytest.importorskip("pandas")
    rows = history(2, 3, validation=False)
    pandas.DataFrame(rows[::-1]).to_csv(tmp_path / "history.csv", index=False)  # None becomes NaN
    from_csv = build("learning_curves", pandas.read_csv(tmp_path / "history.csv"))
    np.testing.assert_array_equal(from_csv.pixels, build("learning_curves", rows).pixels)


def test_learning_curves_of_perfect_and_of_diverged_nets(build):
    rows = history(3, 4)
    rows[2]["validation_accuracy"] = 1.0  # no error, which a logarithmic axis cannot show
    rows[5]["train_loss"] = float("inf")
    rows[6]["train_loss"] = float("nan")
    for axes in build("learning_curves", rows).axes:
        assert axes.get_yscale() == "log"
        assert np.isfinite(axes.get_ylim()).all()
        assert len(axes.lines) == 8
    for row in rows:
        row.update(train_accuracy=1.0, validation_accuracy=1.0)
        row.update(train_loss=float("nan"), validation_loss=float("nan"))
    figure = build("learning_curves", rows)
    assert [len(axes.lines) for axes in figure.axes] == [8, 0]


def test_untrained_nets_err_in_less_than_all_cases(build):
    rows = [{**row, "train_accuracy": 0.0} for row in history(1, 1, validation=False)]
    axes = build("learning_curves", rows).axes[0]
    labels = [tick.get_text() for tick in axes.get_yticklabels()]
    low, high = axes.get_ylim()
    inside = [t for t, y in zip(labels, axes.get_yticks(), strict=True) if low <= y <= high]
    assert inside[-2:] == ["50 %", "100 %"]


# ---- other images and classes --------------------------------------------------------------------


def test_names_stand_for_labels_and_fit(tmp_path, monkeypatch):
    """They are no formulas, whatever they hold, and a script that the fonts lack warns nobody."""
    drawn = {}
    monkeypatch.setattr(
        figures, "save", lambda path, function, *given: drawn.update({path.name: function(*given)})
    )
    names = "T-shirt/top", "a $x_1$ b", "a very long name of a class", "\u0c95\u0ca8", "e"
    images, labels = patterns.draw(5, 20, (32, 40, 3))
    wrong = (labels + (np.arange(20) == 1)) % 5
    rows = history(1, 1)
    figures.write_all(tmp_path, images, labels, AUGMENT, rows, images, wrong, labels, names)
    shown = titles(drawn["training_images.png"])
    assert shown[:5] == ["T-shirt/top", "a $x_1$ b", "a very long...", "\u0c95\u0ca8", "e"]
    assert titles(drawn["predictions.png"])[:3] == [
        "T-shirt/top",
        "a very long...,\nnot a $x_1$ b",
        "a very long...",
    ]
    for name, figure in drawn.items():
        drawing.save(tmp_path / name, lambda figure=figure: figure)
        if name in ("training_images.png", "predictions.png"):
            assert not any(axes.title.get_parse_math() for axes in figure.axes)
        across = imread(tmp_path / name)[:, [0, -1], :3]
        assert (across == across[0, 0]).all()  # nothing is cut off at the sides


def test_names_that_begin_alike_are_other_names(tmp_path, monkeypatch):
    """What is shortened to fit still tells right from wrong."""
    drawn = {}
    monkeypatch.setattr(
        figures, "save", lambda path, function, *given: drawn.update({path.name: function(*given)})
    )
    names = [f"traffic light, {colour}" for colour in ("red", "green", "yellow")]
    images, labels = patterns.draw(3, 20, (28, 28))
    rows, wrong = history(1, 1), (labels + 1) % 3
    figures.write_all(tmp_path, images, labels, AUGMENT, rows, images, wrong, labels, names)
    assert "Wrong (red): 20" in " ".join(t.get_text() for t in drawn["predictions.png"].texts)
    assert titles(drawn["predictions.png"])[0] == "traff... green,\nnot traff...t, red"
    assert len(drawn["augmented_images.png"].axes) == 3 * 11


@pytest.mark.parametrize("channels", [2, 3])
def test_images_are_shown_in_their_colours(build, channels):
    images, labels = patterns.draw(5, 6, (30, 40, channels))
    for i, axes in enumerate(build("training_images", images, labels).axes):
        expected = images[i] if channels == 3 else images[i].mean(axis=2)
        assert np.array_equal(axes.images[0].get_array(), expected)
    figure = build("augmented_images", images, labels, RandomAffine())
    shown = figure.axes[1].images[0].get_array()  # augmented by nothing
    expected = images[0] if channels == 3 else images[0].mean(axis=2)
    assert shown.shape == expected.shape
    np.testing.assert_allclose(shown, expected, atol=1)
