"""The embedded digits: reproducible, well drawn, neither too easy nor too hard."""

import tracemalloc

import numpy as np
import pytest
from scipy.optimize import minimize

from minicnn.data import digits
from minicnn.data.digits import GLYPHS, draw_digits

MIDDLE = 14  # the pixel on which the centre of mass lies
RANGES = dict(digits._RANGES)


@pytest.fixture(scope="module")
def sample():
    return draw_digits(12_000)


def centre(images):
    """Column and row of the ink's centre, each (N,)."""
    ink = images.astype(np.float64)
    rows, columns = np.indices(ink.shape[1:])
    return tuple((ink * grid).sum((1, 2)) / ink.sum((1, 2)) for grid in (columns, rows))


def slope(images):
    """Least-squares slope of the column over the row, ink as weight, (N,)."""
    x, y = (c[:, None, None] for c in centre(images))
    rows, columns = np.mgrid[:28, :28]
    ink = images.astype(np.float64)
    return (ink * (rows - y) * (columns - x)).sum((1, 2)) / (ink * (rows - y) ** 2).sum((1, 2))


def rise(images):
    """Rows by which the ink of the right half lies above that of the left half, (N,)."""
    return centre(images[:, :, :14])[1] - centre(images[:, :, 14:])[1]


def box(images):
    """Width and height of the box around the ink, each (N,)."""
    return tuple(
        28 - np.argmax(inked, 1) - np.argmax(inked[:, ::-1], 1)
        for inked in ((images > 0).any(1), (images > 0).any(2))
    )


@pytest.fixture
def hold(monkeypatch):
    """Draws without variation: ranges at their middle, no wobble or move, except for given ones."""

    def hold_still(wobble=0.0, move=0.0, **values):
        still = {name: (sum(ends) / 2,) * 2 for name, ends in RANGES.items()}
        still.update({name: (value, value) for name, value in values.items()})
        assert still.keys() == RANGES.keys()
        monkeypatch.setattr(digits, "_RANGES", still)
        monkeypatch.setattr(digits, "_WOBBLE_SIZE", wobble)
        monkeypatch.setattr(digits, "_MOVE", move)

    return hold_still


# The sequence


def test_form_of_the_result(sample):
    images, labels = sample
    assert images.shape == (12_000, 28, 28)
    assert images.dtype == np.uint8
    assert labels.shape == (12_000,)
    assert labels.dtype == np.uint8
    none = draw_digits(0)
    assert none[0].shape == (0, 28, 28)
    assert none[1].shape == (0,)


@pytest.mark.parametrize(
    ("first", "count"), [(0, 0), (0, 1), (0, 63), (0, 64), (0, 65), (5, 10), (60, 140), (199, 1)]
)
def test_an_image_depends_on_seed_and_index_alone(first, count):
    images, labels = draw_digits(200, seed=3)
    part, part_labels = draw_digits(count, seed=3, first=first)
    np.testing.assert_array_equal(part, images[first : first + count])
    np.testing.assert_array_equal(part_labels, labels[first : first + count])


def test_seeds_and_indices_differ(sample):
    images, labels = sample
    other, other_labels = draw_digits(1000, seed=1)
    assert (other != images[:1000]).any((1, 2)).all()
    assert 0.05 < (other_labels == labels[:1000]).mean() < 0.15
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)


def test_the_ends_of_the_sequence():
    last, labels = draw_digits(3, seed=2**32 - 1, first=2**32 - 3)
    np.testing.assert_array_equal(last[2:], draw_digits(1, seed=2**32 - 1, first=2**32 - 1)[0])
    assert (labels < 10).all()
    assert len(draw_digits(0, first=2**32 - 1)[0]) == 0


@pytest.mark.parametrize("name", ["count", "seed", "first"])
@pytest.mark.parametrize("value", [-1, 2**32, 1.0, "1", None, True])
def test_bad_arguments_are_named(name, value):
    with pytest.raises(ValueError, match=rf"^{name}: "):
        draw_digits(**{"count": 1, name: value})


def test_the_sequence_ends():
    with pytest.raises(ValueError, match=r"^first: "):
        draw_digits(2, first=2**32 - 1)


def test_stored_sample():
    """Labels, mean brightness and centre of 20 images equal the stored ones."""
    images, labels = draw_digits(20, seed=2018)
    assert labels.tolist() == [9, 7, 5, 3, 5, 3, 6, 9, 2, 4, 7, 1, 3, 1, 3, 6, 3, 0, 2, 9]
    # fmt: off
    brightness = [
        21.04, 32.99, 38.41, 32.81, 28.66, 67.52, 44.76, 17.67, 18.81, 20.70,
        28.39, 24.44, 35.22, 29.29, 29.16, 33.04, 33.06, 41.14, 23.34, 43.99,
    ]
    columns = [
        15.03, 12.43, 13.12, 13.66, 14.48, 14.90, 12.93, 13.88, 13.13, 12.92,
        13.56, 14.38, 12.62, 12.54, 12.80, 14.90, 14.87, 13.81, 13.60, 13.44,
    ]
    rows = [
        14.51, 15.01, 13.15, 13.31, 12.40, 13.87, 14.02, 13.35, 14.08, 13.18,
        15.33, 12.81, 14.32, 15.50, 13.75, 12.97, 14.17, 15.10, 14.59, 13.20,
    ]
    # fmt: on
    np.testing.assert_allclose(images.mean((1, 2)), brightness, atol=0.02)
    np.testing.assert_allclose(centre(images), [columns, rows], atol=0.02)


def test_memory():
    tracemalloc.start()
    images, labels = draw_digits(3000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak - images.nbytes - labels.nbytes < 20e6


# The drawing


def test_all_classes_about_equally_often(sample):
    counts = np.bincount(sample[1], minlength=10)
    assert len(counts) == 10
    assert abs(counts - 1200).max() < 5 * 1200**0.5


def test_ink_and_background(sample):
    images = sample[0]
    assert (images.max((1, 2)) >= 150).all()
    assert (images.max((1, 2)) == 255).mean() > 0.7
    assert ((images == 0).mean((1, 2)) > 0.5).all()
    assert 25 < images.mean() < 45  # MNIST: 33
    levels = np.bincount(images.ravel(), minlength=256)
    assert (levels > 0).all()  # anti-aliased: no level is missing


def test_digits_lie_where_mnist_has_them(sample):
    images = sample[0]
    x, y = centre(images)
    assert abs(x.mean() - MIDDLE) < 0.1
    assert abs(y.mean() - MIDDLE) < 0.1
    assert 0.3 < x.std() < 1
    assert 0.3 < y.std() < 1
    assert abs(x - MIDDLE).max() < 3
    assert abs(y - MIDDLE).max() < 3
    longer = np.maximum(*box(images))
    assert longer.min() >= 18
    assert 20 < longer.mean() < 22
    assert longer.max() <= 24
    border = np.ones((28, 28), bool)
    border[1:-1, 1:-1] = False
    assert (images[:, border] > 128).any(1).mean() < 0.01


def test_every_shape_is_drawn_and_differs(hold):
    hold()
    images, labels = draw_digits(8000)
    for digit in range(10):
        mine = images[labels == digit].reshape(-1, 784)
        shapes, counts = np.unique(mine, axis=0, return_counts=True)
        assert len(shapes) == len(GLYPHS[digit]) >= 4
        assert counts.min() > 0.5 * counts.mean()
        shapes = shapes.astype(np.float64)
        for i, shape in enumerate(shapes):
            for other in shapes[:i]:
                assert abs(shape - other).sum() > 0.08 * (shape + other).sum()


def test_position_is_in_pixels(hold):
    hold(side=14.0, x=-1.0, y=2.0)  # small, so that the image's edge does not limit the position
    images, _ = draw_digits(50)
    hold(side=14.0, x=2.0, y=0.0)
    other, _ = draw_digits(50)
    moved = np.roll(images, (-2, 3), (1, 2)).astype(int)
    assert abs(moved - other).max() <= 1


def test_side_is_in_pixels(hold):
    hold(side=20.0, radius=0.1, pressure=0.0, width=1.3, slant=0.5)
    width, height = box(draw_digits(200)[0])
    assert (width > height).any()
    assert (width < height).any()
    reach = 20 + digits._EDGE  # of the ink with its soft edge
    assert abs(np.maximum(width, height) - reach).max() < 2


def test_each_parameter_of_the_hand_has_its_effect(hold):
    def still(**values):
        hold(**values)
        return draw_digits(300)[0]

    assert (slope(still(slant=0.4)) < slope(still(slant=0.0)) - 0.1).all()
    assert rise(still(tilt=0.15)).mean() > rise(still(tilt=-0.15)).mean() + 1
    assert (still(radius=0.2).mean((1, 2)) > 1.4 * still(radius=0.1).mean((1, 2))).all()
    assert (still(ink=1.0, radius=0.1) <= still(ink=1.2, radius=0.1)).all()
    assert (box(still(width=1.2))[0] - box(still(width=0.8))[0]).mean() > 2
    sevens = draw_digits(300)[1] == 7  # drawn from the top to the bottom
    light, heavy = (still(pressure=p)[sevens, 14:].mean((1, 2)) for p in (-0.25, 0.25))
    assert (heavy > 1.1 * light).all()


def test_wobble_bends_but_keeps_the_size(hold):
    hold(side=18.0)
    straight, labels = draw_digits(300)
    hold(side=18.0, wobble=0.14)
    bent, bent_labels = draw_digits(300)
    np.testing.assert_array_equal(bent_labels, labels)
    changed = abs(bent - straight.astype(float)).sum((1, 2)) / straight.sum((1, 2))
    assert changed.min() > 0.05
    assert abs(np.maximum(*box(bent)) - np.maximum(*box(straight))).max() <= 2


def test_ink_is_the_area_that_the_pen_covers():
    """Compares with the distance of every pixel to every point, in float64."""
    n, radius = 5, 1.5
    spots = np.random.default_rng(0).uniform(4, 23, (2, 8, n)).astype(np.float32)
    x, y = spots[:, np.arange(digits._POINTS) % 8]
    hand = {"pressure": np.zeros(n, np.float32)}
    hand["ink"] = np.linspace(0.5, 1.2, n, dtype=np.float32)
    images = digits._ink(x, y, np.full(n, radius, np.float32), hand)
    rows, columns = np.mgrid[:28, :28]
    for i, ink in enumerate(hand["ink"]):
        distance = np.hypot(columns[..., None] - x[:, i], rows[..., None] - y[:, i])
        outside = distance.min(-1) - radius  # pixels from the edge of the ink
        assert (images[i][outside > digits._EDGE / 2] == 0).all()
        assert (abs(images[i][outside < -0.85] - 255 * min(ink, 1)) <= 1).all()
        edge = abs(outside) < 0.3
        wanted = np.minimum(ink * (0.5 - outside[edge] / digits._EDGE), 1)
        assert abs(images[i][edge] - 255 * wanted).max() < 0.04 * 255
        assert edge.sum() > 20
        assert (outside < -0.85).sum() > 5


def test_curves_pass_through_their_points():
    stroke = "0,0 10,20 30,15 20,0"
    curve = digits.curve(stroke)
    for point in ((0, 0), (10, 20), (30, 15), (20, 0)):
        assert np.hypot(*(curve - np.array(point)[:, None])).min() == 0
    assert np.hypot(*np.diff(curve)).max() < 2  # without a gap
    ring = digits.curve("0,0 10,10 20,0 10,-10 0,0")
    np.testing.assert_array_equal(ring[:, 0], ring[:, -1])
    steps = np.diff(ring)
    np.testing.assert_allclose(steps[:, 0], steps[:, -1], atol=0.1)  # smooth where it closes


def test_moved_points_bend_every_stroke_through_them():
    shape = "0,0 40,20 0,50 / 0,50 60,50 40,90 0,100"
    moved = "9,-5 44,20 -9,55 / -9,55 60,40 35,95 3,99"
    places, weights = digits._glyph(shape)
    before, after = (
        np.array([point.split(",") for point in dict.fromkeys(s.replace("/", "").split())], float)
        for s in (shape, moved)
    )
    unit = 50  # the height of the shape is 2 in places
    places[:, : len(before)] += (after - before).T / unit
    origin = before[0] - (places[:, 0] * unit - (after - before)[0])
    points = (places @ weights).T * unit + origin
    curves = np.concatenate([digits.curve(stroke).T for stroke in moved.split("/")])
    distance = np.hypot(*(curves[:, None] - points).T)
    assert distance.shape == (digits._POINTS, len(curves))
    assert distance.min(1).max() < 1.5  # neighbouring points of a curve are up to 3 apart


def test_moves_keep_the_size_and_are_limited(hold):
    hold(side=18.0)
    straight, labels = draw_digits(300)
    hold(side=18.0, move=0.055)
    bent, bent_labels = draw_digits(300)
    np.testing.assert_array_equal(bent_labels, labels)
    changed = abs(bent - straight.astype(float)).sum((1, 2)) / straight.sum((1, 2))
    assert changed.min() > 0.03
    assert changed.mean() < 0.5
    assert abs(np.maximum(*box(bent)) - np.maximum(*box(straight))).max() <= 2


def test_points_are_evenly_spaced():
    for shapes in GLYPHS.values():
        for shape in shapes:
            places, weights = digits._glyph(shape)
            np.testing.assert_allclose(weights.sum(0), 1)
            points = places @ weights
            steps = np.sort(np.hypot(*np.diff(points)))
            drawn = steps[: len(steps) - shape.count("/")]  # a lift of the pen is a long step
            assert drawn.max() < 0.0425 * np.ptp(points, axis=1).max()  # 0.85 of 20 pixels
            np.testing.assert_allclose(points[1].min(), -1)
            np.testing.assert_allclose(points[1].max(), 1)


# The difficulty: trained on 10,000, measured on the 2,000 that follow


@pytest.fixture(scope="module")
def split(sample):
    images, labels = sample
    x = images.reshape(-1, 784).astype(np.float32) / 255
    return x[:10_000], labels[:10_000], x[10_000:], labels[10_000:]


@pytest.fixture(scope="module")
def linear_accuracy(split):
    """Accuracy of softmax regression by SciPy's L-BFGS: the best of three weight decays."""
    x, y, x_test, y_test = split
    x, x_test = (np.column_stack([a, np.ones(len(a), np.float32)]) for a in (x, x_test))
    onehot = np.eye(10, dtype=np.float32)[y]

    def loss(w, decay):
        w = w.reshape(785, 10).astype(np.float32)
        logits = x @ w
        logits -= logits.max(1, keepdims=True)
        p = np.exp(logits)
        total = p.sum(1, keepdims=True)
        entropy = (np.log(total[:, 0]) - (logits * onehot).sum(1)).mean()
        gradient = x.T @ (p / total - onehot) / len(x) + decay * w
        return float(entropy + decay / 2 * (w * w).sum()), gradient.ravel().astype(np.float64)

    accuracies = []
    for decay in (1e-2, 1e-3, 1e-4):
        w = minimize(loss, np.zeros(7850), decay, "L-BFGS-B", True, options={"maxiter": 150}).x
        accuracies.append(((x_test @ w.reshape(785, 10)).argmax(1) == y_test).mean())
    return max(accuracies)


@pytest.fixture(scope="module")
def neighbour_accuracy(split):
    x, y, x_test, y_test = split
    distance = (x * x).sum(1) - 2 * (x_test @ x.T)
    return (y[distance.argmin(1)] == y_test).mean()


@pytest.mark.full(beside="test_the_nearest_neighbour_recognises_the_digits")
def test_a_linear_classifier_is_not_enough(linear_accuracy, neighbour_accuracy):
    assert 0.85 < linear_accuracy < 0.95
    assert neighbour_accuracy > linear_accuracy + 0.02


def test_the_nearest_neighbour_recognises_the_digits(neighbour_accuracy):
    assert neighbour_accuracy > 0.96
