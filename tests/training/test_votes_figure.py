"""The figure of minicnn.predict --images."""

from types import SimpleNamespace

import numpy as np
import pytest

from minicnn.data.labels import DIGITS
from minicnn.training import votes_figure

pytest.importorskip("matplotlib")
from matplotlib.colors import same_color
from matplotlib.image import imread
from matplotlib.text import Text

from minicnn.drawing import TEXT, VALIDATION, WIDTH, WRONG

pytestmark = pytest.mark.filterwarnings("error::UserWarning", "error::RuntimeWarning")


def sheet(count, name="photo.png", shape=(100, 300)):
    """A sheet with `count` digits in a row, each in a box of 20x10 pixels of the picture."""
    boxes = [(20, 60, 40 * i, 40 * i + 20) for i in range(count)]
    digits = np.full((count, 28, 28), 7, np.uint8) * np.arange(count)[:, None, None].astype(
        np.uint8
    )
    return SimpleNamespace(
        name=name, picture=np.zeros(shape, np.uint8), shrunk=2, digits=digits, boxes=np.array(boxes)
    )


def answers(count, unsure=()):
    return [
        SimpleNamespace(name="3", probability=0.5, agreeing=2, nets=3, is_unsure=i in unsure)
        for i in range(count)
    ]


@pytest.fixture
def built(tmp_path, monkeypatch):
    """built(*arguments): the Figure that votes() writes, with its PNG's pixels."""
    made = []
    save = votes_figure.save

    def save_and_keep(path, function, *arguments):
        def kept(*arguments):
            made.append(function(*arguments))
            return made[-1]

        save(path, kept, *arguments)

    monkeypatch.setattr(votes_figure, "save", save_and_keep)

    def built(*arguments):
        votes_figure.votes(tmp_path / "digits.png", *arguments)
        made[-1].pixels = imread(tmp_path / "digits.png")
        return made[-1]

    return built


def votes_of(labels, classes=10):
    """Probabilities (nets, 1, classes) of nets that vote for these labels."""
    values = np.full((len(labels), 1, classes), 0.01)
    values[np.arange(len(labels)), 0, labels] = 1 - 0.01 * (classes - 1)
    return values


def test_boxes_digits_and_votes(built):
    one = sheet(2)
    probabilities = np.concatenate([votes_of([3, 3, 5]), votes_of([0, 0, 0])], axis=1)
    figure = built([one], probabilities, answers(2, unsure=[1]), DIGITS)
    photo, first, first_votes, second, second_votes = figure.axes
    assert figure.pixels.shape[1] == WIDTH and photo.get_title("left") == "photo.png"
    assert (photo.images[0].get_array() == one.picture).all()
    for line, box, color in zip(photo.lines, one.boxes, [VALIDATION, WRONG], strict=True):
        across, down = line.get_data()
        ends = [min(down), max(down), min(across), max(across)]
        assert (np.array(ends) == box / 2 - 0.5).all() and same_color(line.get_color(), color)
    for axes, digit, color in zip((first, second), one.digits, [TEXT, WRONG], strict=True):
        assert (axes.images[0].get_array() == digit).all()
        heading = axes.findobj(lambda text: isinstance(text, Text) and ":  3" in text.get_text())
        assert [same_color(text.get_color(), color) for text in heading] == [True]
    assert first.get_title("left") == "1:  3" and first.texts[0].get_text() == "50 %, 2 of 3"
    for axes, share, mean in (
        (first_votes, {3: 2 / 3, 5: 1 / 3}, probabilities[:, 0].mean(axis=0)),
        (second_votes, {0: 1}, probabilities[:, 1].mean(axis=0)),
    ):
        bars = [bar.get_height() for bar in axes.patches]
        assert bars == pytest.approx([share.get(label, 0) for label in range(10)])
        assert axes.lines[0].get_ydata() == pytest.approx(mean)
        assert [text.get_text() for text in axes.get_xticklabels()] == list(DIGITS)


def test_the_pixels_of_a_digit_have_equal_size(built):
    one = sheet(1)
    one.digits[0] = np.indices((28, 28)).sum(axis=0) % 2 * 255
    figure = built([one], votes_of([3]), answers(1), DIGITS)
    box = figure.axes[1].get_window_extent()
    height = figure.pixels.shape[0]
    top, left = round(height - box.y1), round(box.x0)
    inner = figure.pixels[top + 4 : top + 108, left + 4 : left + 108, 0].reshape(26, 4, 26, 4)
    assert (np.ptp(inner, axis=(1, 3)) < 0.01).all()


def test_more_digits_than_are_drawn(built, monkeypatch):
    monkeypatch.setattr(votes_figure, "MOST_DIGITS", 3)
    sheets = [sheet(2, "a.png"), sheet(2, "b.png"), sheet(1, "c.png")]
    figure = built(sheets, np.repeat(votes_of([3, 4]), 5, axis=1), answers(5), DIGITS)
    titles = [axes.get_title("left") for axes in figure.axes]
    assert [title for title in titles if title.endswith(".png")] == ["a.png", "b.png"]
    assert sum(title.endswith(":  3") for title in titles) == 3
    assert len(figure.axes[5].lines) == 2
    assert any("The first 3 of 5 digits" in text.get_text() for text in figure.texts)


def test_many_classes_with_long_names(built):
    names = tuple(f"${i} a long name" for i in range(47))
    figure = built([sheet(1)], votes_of([40, 40, 9], classes=47), answers(1), names)
    shown = [text.get_text() for text in figure.axes[2].get_xticklabels()]
    bars = [bar.get_height() for bar in figure.axes[2].patches]
    assert len(shown) == len(bars) == 8
    assert sorted(bars)[-2:] == pytest.approx([1 / 3, 2 / 3]) and bars.index(max(bars)) > 1


@pytest.mark.full(but="shape0|shape3")
@pytest.mark.parametrize("shape", [(2, 1_600), (1_600, 2), (1, 1), (30, 40, 3)])
def test_photos_of_any_shape(built, shape):
    figure = built([sheet(1, shape=shape)], votes_of([3]), answers(1), DIGITS)
    assert figure.pixels.shape[0] < 1_400
