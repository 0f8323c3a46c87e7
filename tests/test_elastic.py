"""Elastic distortion: pixels against SciPy, nodes against Philox; in training, on all devices."""

import numpy as np
import oracles
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from levels import examples
from test_augment import DTYPES, SEED_RECIPE, TOLERANCE, drawn_by_hand, images_of, load

from minicnn import RandomAffine, rng
from minicnn.augment import affine_transform
from minicnn.backends.affine import affine_parameters, elastic_nodes
from minicnn.recipe import Recipe
from minicnn.training.dataset import Source
from minicnn.training.trainer import Job, Trainer

pytestmark = pytest.mark.every_device

ELASTIC = {**SEED_RECIPE, "elastic_range": 0.12}
SIZES = [(28, 28, 1), (11, 14, 3), (13, 10, 2), (33, 5, 1)]  # not whole numbers of pixels a third


def nodes_by_hand(low_high, seed, net, step, count):
    """(count, 2, 6, 6) nodes from Philox's words; low_high (2, 2): of x and y."""
    nodes = np.empty((count, 72), np.float32)
    for b in range(count):
        counters = np.array([[18 * b + i, step, 6, 0] for i in range(18)], np.uint32)
        keys = np.tile(np.array([seed, net], np.uint32), (18, 1))
        for i, word in enumerate(rng.philox4x32(counters, keys).reshape(-1)):
            low, high = (np.float32(bound[i // 36]) for bound in low_high)
            uniform = np.float32(int(word) >> 8) / np.float32(2**24)
            nodes[b, i] = low + np.float32((high - low) * uniform)
    return nodes.reshape(count, 2, 6, 6)


def assert_scipys(found, images, parameters, nodes):
    """Assert that `found` equals SciPy's images with parameters (5, N), nodes (N, 2, 6, 6)."""
    assert found.shape == images.shape and found.dtype == images.dtype
    for n, image in enumerate(images):
        expected = oracles.distort(image, *parameters[:, n], nodes[n])
        tolerance = TOLERANCE[str(images.dtype)]
        np.testing.assert_allclose(found[n], expected, rtol=0, atol=tolerance)


def undistorted(images, nodes):
    """The images, moved by the nodes alone."""
    nothing, one = np.zeros(len(images)), np.ones(len(images))
    return affine_transform(images, nothing, nothing, nothing, one, one, nodes)


# ---------------------------------------------------------------------------------------------
# affine_transform with nodes


@pytest.mark.parametrize("dtype", TOLERANCE)
@examples(40)
@given(
    shape=st.tuples(*[st.integers(1, 17)] * 2, st.integers(1, 3)),
    far=st.floats(0, 9),
    seed=st.integers(0, 2**32 - 1),
)
@example((7, 12, 2), 3.0, 0)
@example((1, 1, 1), 1.0, 1)
@example((1, 9, 3), 2.0, 2)
@example((8, 1, 1), 2.0, 3)
@example((2, 2, 1), 2.0, 4)
def test_affine_transform_with_nodes_is_scipys(dtype, shape, far, seed):
    random = np.random.default_rng(seed)
    images = images_of(2, *shape, dtype, seed)
    parameters = random.uniform([[-200], [-5], [-5], [0.2], [0.2]], [[200], [5], [5], [3], [3]])
    parameters = np.repeat(parameters, 2, axis=1)
    nodes = random.uniform(-far, far, (2, 2, 6, 6))
    kept = nodes.copy()
    found = affine_transform(images, *parameters, nodes)
    assert_scipys(found, images, parameters, nodes)
    np.testing.assert_array_equal(nodes, kept)


def test_the_first_nodes_move_columns_and_the_second_rows():
    images, nodes = images_of(1, 6, 5), np.zeros((1, 2, 6, 6))
    nodes[0, 0] = 2
    found = undistorted(images, nodes)[0]
    np.testing.assert_allclose(found, images[0][:, [2, 3, 4, 4, 4]], atol=1e-14)
    nodes[0] = [np.zeros((6, 6)), np.full((6, 6), -1)]
    found = undistorted(images, nodes)[0]
    np.testing.assert_allclose(found, images[0][[0, 0, 1, 2, 3, 4]], atol=1e-14)


@pytest.mark.parametrize("axis", [0, 1])
def test_nodes_on_a_slope_stretch_the_image(axis):
    """A B-spline of a straight line is the line: node 1 is on the first pixel, 4 on the last."""
    images = images_of(1, 7, 7)
    slope = np.tile((np.arange(6) - 1) / 3 * 6, (6, 1))  # as many pixels as the place has before it
    nodes = np.zeros((1, 2, 6, 6))
    nodes[0, axis] = slope if axis == 0 else slope.T
    places = [0, 2, 4, 6, 6, 6, 6]
    expected = images[0][:, places] if axis == 0 else images[0][places]
    np.testing.assert_allclose(undistorted(images, nodes)[0], expected, atol=1e-13)


def test_the_displacement_is_that_of_the_output_pixel():
    """It is added after the affine map: turned images are displaced as others are."""
    images, nodes = images_of(1, 9, 9), np.zeros((1, 2, 6, 6))
    nodes[0, 0] = 1
    found = affine_transform(images, [90], [0], [0], [1], [1], nodes)[0]
    turned = affine_transform(images, [90], [0], [0], [1], [1])[0]
    # One column further right in the image is one row further up in the turned image.
    np.testing.assert_allclose(found[1:], turned[:-1], atol=1e-12)


def test_affine_transform_with_nodes_in_chunks(monkeypatch):
    images, random = images_of(11, 9, 7, 2), np.random.default_rng(0)
    parameters, nodes = random.uniform(0.5, 2, (5, 11)), random.uniform(-2, 2, (11, 2, 6, 6))
    monkeypatch.setattr("minicnn.backends.scratch._CACHE_BYTES", 4 * 12 * 9 * 7 * 8)
    assert_scipys(affine_transform(images, *parameters, nodes), images, parameters, nodes)


@pytest.mark.parametrize(
    ("nodes", "got"),
    [
        (np.zeros((2, 2, 6, 6)), r"shape \(2, 2, 6, 6\) of float64, expected \(3, 2, 6, 6\)"),
        (np.zeros((3, 2, 6, 5)), r"shape \(3, 2, 6, 5\)"),
        (0.5, r"shape \(\)"),
        (np.zeros((3, 2, 6, 6), complex), "complex"),
        (np.full((3, 2, 6, 6), np.inf), "a number that is not finite"),
    ],
)
def test_bad_nodes_are_named(nodes, got):
    with pytest.raises(ValueError, match=f"^nodes: got .*{got}"):
        affine_transform(images_of(3, 5, 4), *np.ones((5, 3)), nodes)


# ---------------------------------------------------------------------------------------------
# RandomAffine


@pytest.mark.parametrize("others", [{}, SEED_RECIPE])
@pytest.mark.parametrize(("H", "W", "C"), SIZES)
def test_random_elastic_is_scipys_with_philoxs_draws(others, H, W, C):
    augment = RandomAffine(**{**others, "elastic_range": 0.15})
    images = images_of(5, H, W, C, "float32")
    bounds = augment.bounds(H, W)
    np.testing.assert_array_equal(bounds[:, 5:], np.float32([[-1], [1]] * np.array([W, H]) * 0.15))
    nodes = nodes_by_hand(bounds[:, 5:], 7, 3, 11, 5)
    found = augment(images, seed=7, net=3, step=11)
    assert_scipys(found, images, drawn_by_hand(bounds, 7, 3, 11, 5), nodes)
    np.testing.assert_array_equal(augment(images[:2], seed=7, net=3, step=11), found[:2])


def test_nodes_are_philoxs_words_to_the_bit():
    ranges = RandomAffine(elastic_range=0.1).bounds(28, 20)[:, 5:]
    for seed, net, step in [(0, 0, 0), (2**32 - 1, 14, 26_549), (5, 2**32 - 1, 2**32 - 1)]:
        found = elastic_nodes(ranges, seed, net, step, 33)
        assert found.shape == (33, 2, 6, 6) and found.dtype == np.float32
        np.testing.assert_array_equal(found, nodes_by_hand(ranges, seed, net, step, 33))


def test_nodes_are_uniform_within_their_range_and_independent():
    n = 5000
    ranges = np.float32([[-2, -3.5], [2, 3.5]])
    nodes = elastic_nodes(ranges, 1, 2, 3, n).astype(float)
    for of_axis, most in ((nodes[:, 0], 2), (nodes[:, 1], 3.5)):
        assert most * 0.999 < of_axis.max() <= most and -most * 0.999 > of_axis.min() >= -most
        quarters, _ = np.histogram(of_axis, 4, (-most, most))
        assert abs(quarters / of_axis.size - 0.25).max() < 5 * (0.1875 / of_axis.size) ** 0.5
    affine = affine_parameters(RandomAffine(**SEED_RECIPE).bounds(28, 28), 1, 2, 3, n)
    together = np.concatenate([nodes.reshape(n, 72).T, affine.astype(float)])
    assert np.abs(np.corrcoef(together) - np.eye(77)).max() < 6 / n**0.5


def test_a_pixel_moves_by_about_a_quarter_of_the_range():
    """As the docstring says; found from images whose pixels are their places."""
    places = np.broadcast_to(np.arange(60.0)[:, None], (200, 60, 60, 1))  # of their columns
    moved = RandomAffine(elastic_range=0.1)(places, seed=3) - places
    inside = moved[:, :, 6:-6]  # from where no displacement leaves the image
    assert abs(inside).max() <= 6
    assert inside.std() / 6 == pytest.approx(0.27, abs=0.02)


def test_without_elastic_distortion_the_ranges_are_those_of_the_affine_map():
    bounds = RandomAffine(10, 0.1, 0.2, 0.3, elastic_range=0.0).bounds(28, 20)
    expected = [[-10, -4, -8.4, 0.9, 0.9], [10, 4, 8.4, 1.1, 1.1]]
    np.testing.assert_array_equal(bounds, np.float32(expected))


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), "0.1", None, True])
def test_a_bad_elastic_range_is_named(value):
    with pytest.raises(ValueError, match=r"^elastic_range: got .*expected"):
        RandomAffine(elastic_range=value)


# ---------------------------------------------------------------------------------------------
# The batch


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("H", "W", "C"), SIZES)
def test_load_batch_distorts_as_random_affine_does(ops, H, W, C, dtype):
    augment, shape = RandomAffine(**ELASTIC), {"H": H, "W": W, "C": C}
    bounds = augment.bounds(H, W)
    _, plain, _, _ = load(ops, None, 5, dtype, **shape)
    images, x, y, chosen = load(ops, bounds, 5, dtype, **shape)
    np.testing.assert_array_equal(y, chosen + 900)
    for e, net in enumerate((4, 9)):
        ours = augment(plain[e], seed=7, net=net, step=5)
        np.testing.assert_allclose(x[e], ours, rtol=0, atol=8 * np.finfo(dtype).eps)
        scaled = (images[chosen[e]] / 255).astype(dtype)
        drawn = drawn_by_hand(bounds, 7, net, 5, 6), nodes_by_hand(bounds[:, 5:], 7, net, 5, 6)
        assert_scipys(x[e], scaled, *drawn)


def test_nodes_that_do_not_move_change_nothing(ops):
    ranges = RandomAffine(**SEED_RECIPE).bounds(15, 40)
    still = np.concatenate([ranges, np.zeros((2, 2), np.float32)], axis=1)
    _, expected, _, _ = load(ops, ranges, 4, H=15, W=40, C=3)
    _, x, _, _ = load(ops, still, 4, H=15, W=40, C=3)
    np.testing.assert_allclose(x, expected, rtol=0, atol=1e-6)


def test_training_distorts_as_the_recipe_says():
    recipe = Recipe(nets=2, batch_size=8, elastic=0.1, momentum=0.9)
    data, _ = Source("digits", 60, 10).load()
    trainer = Trainer(Job(recipe, data, "numpy", "float32", None, 2), range(1, 3))
    trainer.begin_epoch(0)
    with trainer.ops.session():
        trainer.step()
    order, x = trainer.order[:, 0], trainer.plan.x
    for e in range(2):
        images = (data.train_images[order[e]][..., None] / 255).astype(np.float32)
        expected = RandomAffine(10, 0.1, 0.1, 0.1, 0.1)(images, recipe.seed, e, 0)
        np.testing.assert_allclose(x[e], expected, rtol=0, atol=1e-6)
