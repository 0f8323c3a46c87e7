"""Views at prediction: the list of views, and means over them, against SciPy and by hand."""

from math import hypot

import numpy as np
import oracles
import pytest
from runs import small_layers
from stacks import assert_same, batch, small, state

import minicnn.recipe
from minicnn import Activation, Conv2D, Dense, Sequential, augment, nets
from minicnn.augment import MOST_VIEWS, affine_transform
from minicnn.backends import ops_numpy
from minicnn.data.digits import draw_digits
from minicnn.files import DataError
from minicnn.recipe import Recipe, completed
from minicnn.training import inference
from minicnn.training.dataset import Data
from minicnn.training.trainer import Job, Trainer
from minicnn.training.workers import Interrupted

pytestmark = pytest.mark.every_device
BATCH = 8  # images predicted at a time in these tests

# Directions of rotation, horizontal and vertical shift of the first nine views.
FIRST = (
    (0, 0, 0),
    *((0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1), (1, 0, 0), (-1, 0, 0)),
    *((0, 1, 1), (0, -1, -1)),
)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """The emulator takes its time for 64 images."""
    for module in (nets, inference):
        monkeypatch.setattr(module, "PREDICT_BATCH", BATCH)


def by_hand(place, H, W):
    """theta, tx, ty, zx, zy of one of the first views, rounded to float32."""
    theta, x, y = FIRST[place]
    return np.float32([theta * 5, x * W / 28, y * H / 28, 1, 1])


def seen_by(images, place):
    """Images (N, H, W, C) in one of the first views, by SciPy."""
    return np.stack([oracles.affine(x, *by_hand(place, *images.shape[1:3])) for x in images])


def trained(device, **options):
    """A stack for images (9, 7, 2), none of whose weights or statistics is 0 or 1."""
    model = small(device, **options)
    for seed in range(3):
        model.train_on_batch(*batch(model, 6, seed), 0.1)
    return model


def bytes_of(N, H=9, W=7, C=2):
    return np.random.default_rng(3).integers(0, 256, (N, H, W, C), np.uint8)


# ---------------------------------------------------------------------------------------------
# The list


@pytest.mark.parametrize(("H", "W"), [(28, 28), (14, 56), (1, 9)])
def test_the_views_are_shifts_and_rotations_nearest_first(H, W):
    views = augment.views(MOST_VIEWS, H, W)
    assert views[0] is None and len(views) == 27
    assert all(view.shape == (2, 5) and view.dtype == np.float32 for view in views[1:])
    drawn = np.array([[0, 0, 0, 1, 1], *(view[0] for view in views[1:])])
    assert all((low == high).all() for low, high in views[1:])
    np.testing.assert_array_equal(drawn[:9], [by_hand(n, H, W) for n in range(9)])
    assert (drawn[:, 3:] == 1).all()
    changes = drawn[:, :3] / [5, W / 28, H / 28]
    np.testing.assert_allclose(changes, np.rint(changes), atol=1e-6)
    assert len(set(map(tuple, np.rint(changes)))) == 27
    assert np.count_nonzero(changes, axis=1).tolist() == [0] + [1] * 6 + [2] * 12 + [3] * 8
    np.testing.assert_array_equal(changes[1::2], -changes[2::2])
    for count in range(1, 28):
        shorter = augment.views(count, H, W)
        assert len(shorter) == count
        assert all((one == other).all() for one, other in zip(shorter[1:], views[1:], strict=False))


def test_a_rotated_view_moves_pixels_as_far_as_a_shifted_one():
    """So views of two changes are farther from the image than views of one."""
    column = np.tile((np.arange(280.0) - 139.5) / 10, (280, 1))[..., None]  # of an image of 28x28
    fine = np.stack([column, column.transpose(1, 0, 2)])
    turned = affine_transform(fine, [5.0] * 2, [0] * 2, [0] * 2, [1] * 2, [1] * 2)
    moved = hypot(*np.sqrt(((turned - fine)[:, 10:-10, 10:-10] ** 2).mean(axis=(1, 2, 3))))
    assert moved == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("count", [0, -1, 28, 1.0, True, None, "3"])
def test_there_are_1_to_27_views(device, count):
    with pytest.raises(ValueError, match=r"^views: got .*, expected an integer from 1 to 27$"):
        augment.views(count, 28, 28)
    model = small(device, nets=1)
    for x in (bytes_of(1), bytes_of(1) / 255):
        with pytest.raises(ValueError, match=r"^views: got"):
            model.predict(x, views=count)


@pytest.mark.parametrize("H", [28, 56])
def test_a_backend_draws_the_views_parameters_whatever_the_random_numbers(ops, H):
    images = bytes_of(5, H, 28, 1)
    order, y = np.arange(10, dtype=np.int32).reshape(2, 1, 5) % 5, np.zeros((2, 5), np.int64)
    images_on_device, order, y = map(ops.to_device, (images, order, y))
    for place, view in enumerate(augment.views(9, H, 28)[1:], 1):
        found = []
        for seed, numbers, step in ((0, [0, 1], 0), (7, [4, 9], 5)):
            x = ops.to_device(np.full((2, 5, H, 28, 1), np.nan, np.float32))
            given = map(ops.to_device, map(np.array, (view, numbers, [step])))
            ranges, of_nets, steps = given
            ops.load_batch(images_on_device, None, order, ranges, seed, of_nets, steps, x, y)
            found.append(ops.to_host(x))
        np.testing.assert_array_equal(found[0], found[1])
        expected = seen_by(images / 255, place)
        np.testing.assert_allclose(found[0][0], expected, rtol=0, atol=2e-6)
        if FIRST[place][0] == 0:  # shifts by whole pixels do not interpolate
            np.testing.assert_array_equal(np.rint(found[0][0] * 255), np.rint(expected * 255))
            assert set(np.unique(found[0][0])) <= set(np.unique(images * np.float32(1 / 255)))


# ---------------------------------------------------------------------------------------------
# Predictions of a model


@pytest.mark.parametrize(("N", "views"), [(5, 2), (8, 9), (19, 6)])
def test_bytes_are_predicted_as_the_mean_of_scipys_views(device, N, views):
    model, x = trained(device), bytes_of(N)
    before = state(model)
    found = model.predict(x, views=views)
    alone = [model.predict(seen_by(x / 255, place)) for place in range(views)]
    assert found.shape == (3, N, 4) and found.dtype == np.float32
    np.testing.assert_allclose(found, np.mean(alone, axis=0), rtol=0, atol=2e-6)
    assert np.abs(alone[1] - alone[0]).max() > 1e-3  # the views differ
    assert state(model) == before
    assert_same([model.predict(x, views=views)], [found])


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [("float32", 2e-6), pytest.param("float64", 1e-14, marks=pytest.mark.float64)],
)
def test_floats_are_not_rounded(device, dtype, tolerance):
    model = trained(device, dtype=dtype)
    x = np.random.default_rng(0).uniform(size=(11, 9, 7, 2))
    found = model.predict(x, views=9)
    expected = np.mean([model.predict(seen_by(x, place)) for place in range(9)], axis=0)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def test_the_sum_is_in_the_views_order(device):
    """To the bit; in NumPy, bytes are also what floats are."""
    model, x = trained(device), bytes_of(2 * BATCH)
    of_bytes = [model.predict(x, views=n) for n in (1, 2, 3)]
    floats = x * np.float32(1 / 255)
    of_floats = [model.predict(floats, views=n) for n in (1, 2, 3)]
    assert_same(of_bytes[:1], of_floats[:1])
    if model.ops is ops_numpy:
        assert_same(of_bytes, of_floats)
    total = of_floats[0]
    for n, view in enumerate(augment.views(3, 9, 7)[1:], 2):
        seen = affine_transform(floats, *np.tile(view[0][:, None], 2 * BATCH))
        total = total + model.predict(seen)
        assert_same([of_floats[n - 1]], [total / np.float32(n)])


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_a_net_alone_predicts_what_it_does_among_three(device, kind):
    together, alone = trained(device), small(device, nets=1, first_net=2)
    alone.set_weights([weight[2:] for weight in together.get_weights()])
    x = bytes_of(11) if kind is np.uint8 else (bytes_of(11) / 300).astype(kind)
    assert_same([alone.predict(x, views=5)[0]], [together.predict(x, views=5)[2]])


def test_an_images_probabilities_depend_on_it_alone(device):
    model, x = trained(device), bytes_of(11)
    assert_same([model.predict(x[BATCH:], views=3)], [model.predict(x, views=3)[:, BATCH:]])


def test_one_view_is_the_image_itself(device, monkeypatch):
    """One launch of load_batch a batch, which resamples nothing, and no sum or division."""
    model, x, calls = trained(device), bytes_of(19), []
    load_batch = model.ops.load_batch

    class Watched:
        def __getattr__(self, name):
            return getattr(load_batch_of, name)

        def load_batch(self, *arguments):
            calls.append(arguments[3])
            load_batch(*arguments)

    load_batch_of = model.ops
    everything = np.tile(np.arange(19), (3, 1))
    images = model.ops.to_device(x)
    monkeypatch.setattr(model, "ops", Watched())
    found = inference.predict(model, images, everything, graph=False)
    assert calls == [None] * 3
    two = inference.predict(model, images, everything, graph=False, views=2)
    assert [ranges is None for ranges in calls[3:]] == [True] * 3 + [False] * 3
    monkeypatch.undo()
    assert_same([model.predict(x), model.predict(x, views=1)], [found, found])
    assert_same([model.predict(x, views=2)], [two])  # captured or not


def test_each_view_of_an_image_is_reported_and_can_be_stopped(device):
    model, told = small(device, nets=2), []
    images, rows = model.ops.to_device(bytes_of(11)), np.tile(np.arange(11), (2, 1))
    inference.predict(model, images, rows, told.append, views=3)
    assert told == [16, 6] * 3
    answers = iter([False] * 4 + [True])
    with pytest.raises(Interrupted):
        inference.predict(model, images, rows, told.append, lambda: next(answers), views=3)
    assert told == [16, 6] * 5


def test_evaluate_and_other_forms_of_images(device):
    model, x = trained(device), bytes_of(40)
    y = np.arange(40) % 4
    found, probabilities = model.evaluate(x, y, views=3), model.predict(x, views=3)
    right = [np.mean(of_net.argmax(axis=1) == y) for of_net in probabilities]
    np.testing.assert_array_equal(found["accuracy"], right)
    assert found["ensemble_accuracy"] == np.mean(probabilities.sum(axis=0).argmax(axis=1) == y)
    assert_same([model.predict(x.reshape(40, -1), views=3)], [probabilities])
    assert_same([model.predict(x.astype(int).tolist(), views=3)], [probabilities])
    assert model.predict(x[:0], views=3).shape == model.predict(x[:0] / 255, views=3).shape


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ([Dense(3, activation="softmax")], (5,)),
        ([Conv2D(2, 2, activation="softmax")], (5, 4, 1)),  # an output that moves with the image
        ([Activation("softmax")], (5, 4, 2)),
    ],
)
def test_other_networks_have_one_view(device, layers, shape):
    model = Sequential(layers, shape, device=device)
    x = np.random.default_rng(0).uniform(size=(2, *shape))
    assert_same([model.predict(x, views=1)], [model.predict(x)])
    for given in (x, (x * 255).astype(np.uint8)):
        if given.dtype.kind == "f" or len(shape) == 3:
            with pytest.raises(ValueError, match="views: got 3, expected 1"):
                model.predict(given, views=3)


# ---------------------------------------------------------------------------------------------
# Recipes


@pytest.fixture
def job(device, tmp_path, monkeypatch):
    monkeypatch.setattr(minicnn.recipe, "mnist_layers", small_layers)
    recipe = Recipe(nets=2, epochs=1, batch_size=16, momentum=0.9, views=5)
    (images, labels), (of_test, _) = draw_digits(120), draw_digits(30, first=120)
    return Job(recipe, Data(images, labels, of_test, None, "digest"), device, "float32", tmp_path)


def trained_by(job, **changes):
    """A Trainer after its only epoch, with the job's recipe changed."""
    recipe = minicnn.recipe.replace(job.recipe, **changes)
    trainer = Trainer(minicnn.recipe.replace(job, recipe=recipe), range(1, 3))
    trainer.train_epoch(lambda images: None, lambda: False)
    return trainer


def test_a_recipes_views_change_the_predictions_of_test_images_only(job):
    test_images = job.data.test_images
    five, one = trained_by(job), trained_by(job, views=1)
    assert state(five.model) == state(one.model)
    for ours, theirs in zip(five.history, one.history, strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}
    found = five.predict(test_images, lambda: False)
    rows, images = np.tile(np.arange(30), (2, 1)), one.ops.to_device(test_images)
    assert_same([found], [inference.predict(one.model, images, rows, views=5)])
    plain = one.predict(test_images, lambda: False)
    assert_same([plain], [inference.predict(one.model, images, rows)])
    assert (found != plain).any()


def test_a_state_of_other_views_is_refused_and_one_of_an_earlier_version_is_not(job):
    one = trained_by(job, views=1)
    arrays, about = one.state()
    with pytest.raises(DataError, match="recipe: got views 1, expected 5"):
        trained_by(job).restore(arrays, about, "file")
    assert about["recipe"].pop("views") == 1
    one.restore(arrays, about, "file")
    assert Recipe(**about["recipe"]) == Recipe(**completed(about["recipe"])) == one.recipe
