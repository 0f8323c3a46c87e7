"""Augmentation: pixels against SciPy, random numbers against Philox; and the loading of a batch."""

from itertools import product

import numpy as np
import oracles
import pytest
import threadpoolctl
from hypothesis import example, given
from hypothesis import strategies as st
from levels import examples

from minicnn import RandomAffine, rng
from minicnn.augment import affine_transform
from minicnn.backends import ops_numpy
from minicnn.backends.affine import affine_parameters

pytestmark = pytest.mark.every_device

NAMES = "rotation_range", "zoom_range", "width_shift_range", "height_shift_range"
SEED_RECIPE = dict(zip(NAMES, (10, 0.1, 0.1, 0.1), strict=True))
TOLERANCE = {"float32": 1e-5, "float64": 1e-11}
DTYPES = "float32", pytest.param("float64", marks=pytest.mark.float64)


def images_of(N, H, W, C=1, dtype="float64", seed=0):
    return np.random.default_rng(seed).uniform(size=(N, H, W, C)).astype(dtype)


def assert_scipys(found, images, parameters):
    """Assert that `found` equals SciPy's transform of the images with parameters (5, N)."""
    assert found.shape == images.shape and found.dtype == images.dtype
    for n, image in enumerate(images):
        expected = oracles.affine(image, *parameters[:, n])
        tolerance = TOLERANCE[str(images.dtype)]
        np.testing.assert_allclose(found[n], expected, rtol=0, atol=tolerance)


def drawn_by_hand(low_high, seed, net, step, count):
    """(5, count) parameters from Philox's words, in the order of affine_parameters' docstring."""
    counters = np.zeros((2 * count, 4), np.uint32)
    counters[:, 0], counters[:, 1], counters[:, 2] = np.arange(2 * count), step, rng.AUGMENTATION
    keys = np.tile(np.array([seed, net], np.uint32), (2 * count, 1))
    words = rng.philox4x32(counters, keys)
    drawn = np.empty((5, count), np.float32)
    for b in range(count):
        for i, word in enumerate([*words[2 * b], words[2 * b + 1, 0]]):
            low, high = (np.float32(bound[i]) for bound in low_high)
            uniform = np.float32(int(word) >> 8) / np.float32(2**24)
            scaled = np.float32((high - low) * uniform)
            drawn[i, b] = np.float32(low + scaled)
    return drawn


# ---------------------------------------------------------------------------------------------
# affine_transform


@pytest.mark.parametrize("dtype", TOLERANCE)
@examples(60)
@given(
    shape=st.tuples(*[st.integers(1, 13)] * 2, st.integers(1, 3)),
    parameters=st.lists(
        st.tuples(
            st.floats(-200, 200),
            *[st.floats(-15, 15)] * 2,
            *[st.floats(0.2, 4)] * 2,
        ),
        min_size=1,
        max_size=5,
    ),
)
@example((7, 12, 2), [(10.0, 1.5, 0.0, 1.1, 0.9)] * 3)
@example((1, 1, 1), [(10.0, 0.5, 0.5, 1.1, 0.9)])
@example((1, 9, 1), [(0.0, 0.5, 0.5, 1.0, 1.0)])
def test_affine_transform_is_scipys(dtype, shape, parameters):
    parameters = np.array(parameters).T
    images = images_of(parameters.shape[1], *shape, dtype)
    assert_scipys(affine_transform(images, *parameters), images, parameters)


@pytest.mark.parametrize(("H", "W"), [(28, 28), (28, 20), (17, 32)])
def test_affine_transform_of_digits_sized_images(H, W):
    random = np.random.default_rng(1)
    N = 101
    images = images_of(N, H, W, dtype="float32")
    low, high = [[-30], [-6], [-6], [0.7], [0.7]], [[30], [6], [6], [1.3], [1.3]]
    parameters = random.uniform(low, high, (5, N))
    assert_scipys(affine_transform(images, *parameters), images, parameters)


def test_affine_transform_in_chunks(monkeypatch):
    images = images_of(11, 9, 7, 2)
    parameters = np.random.default_rng(0).uniform(0.5, 2, (5, 11))
    monkeypatch.setattr(
        "minicnn.backends.scratch._CACHE_BYTES", 4 * 12 * 9 * 7 * 8
    )  # 4, 4 and 3 images
    assert_scipys(affine_transform(images, *parameters), images, parameters)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_identity_is_exact(dtype):
    images = images_of(3, 28, 27, 2, dtype)
    kept = images.copy()
    nothing, one = np.zeros(3), np.ones(3)
    found = affine_transform(images, nothing, nothing, nothing, one, one)
    np.testing.assert_array_equal(found, images)
    assert not np.shares_memory(found, images)
    np.testing.assert_array_equal(images, kept)


def test_tx_moves_columns_and_ty_rows():
    images, one, nothing = images_of(1, 6, 5), [1], [0]
    found = affine_transform(images, nothing, [2], nothing, one, one)[0]
    # Output column x shows input column x + 2; the last column is repeated.
    np.testing.assert_array_equal(found, images[0][:, [2, 3, 4, 4, 4]])
    found = affine_transform(images, nothing, nothing, [-1], one, one)[0]
    np.testing.assert_array_equal(found, images[0][[0, 0, 1, 2, 3, 4]])


def test_zx_stretches_columns_and_zy_rows():
    images, two, one, nothing = images_of(1, 5, 7), [2], [1], [0]
    found = affine_transform(images, nothing, nothing, nothing, two, one)[0]
    # From the centre, column 3, each step in the output is two in the input.
    np.testing.assert_array_equal(found, images[0][:, [0, 0, 1, 3, 5, 6, 6]])
    found = affine_transform(images, nothing, nothing, nothing, one, two)[0]
    np.testing.assert_array_equal(found, images[0][[0, 0, 2, 4, 4]])


def test_the_direction_of_a_quarter_turn():
    # R(90) takes the output position (x, y) = (1, 0), right of the centre, to (0, 1), below it:
    # the right shows what was below, so the image turns anticlockwise.
    images = np.arange(9.0).reshape(1, 3, 3, 1)
    found = affine_transform(images, [90], [0], [0], [1], [1])[0, ..., 0]
    np.testing.assert_allclose(found, [[2, 5, 8], [1, 4, 7], [0, 3, 6]], atol=1e-12)


def test_the_rotation_comes_last():
    # R @ T @ Z: the output is first zoomed, then shifted, and then turned.
    images = images_of(1, 9, 9)
    found = affine_transform(images, [90], [1], [0], [2], [1])[0]
    for x, y in [(0, 0), (1, 2), (-2, -3), (-1, 3)]:  # from the centre
        x_in, y_in = -y, 2 * x + 1
        np.testing.assert_allclose(found[4 + y, 4 + x], images[0, 4 + y_in, 4 + x_in], atol=1e-12)


def test_half_a_pixel_is_the_mean_of_two():
    images = images_of(1, 4, 5)
    found = affine_transform(images, [0], [0.5], [0], [1], [1])[0]
    expected = (images[0] + images[0][:, [1, 2, 3, 4, 4]]) / 2
    np.testing.assert_allclose(found, expected, atol=1e-15)


def test_images_far_away_show_their_edge():
    images = images_of(1, 4, 5)
    found = affine_transform(images, [0], [1e9], [-1e9], [1], [1])[0]
    np.testing.assert_array_equal(found, np.broadcast_to(images[0, 0, -1], (4, 5, 1)))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_an_images_result_depends_on_it_alone(dtype):
    images = images_of(37, 28, 28, dtype=dtype)
    parameters = np.random.default_rng(0).uniform(0.8, 1.2, (5, 37))
    whole = affine_transform(images, *parameters)
    for part in (slice(1), slice(5), slice(3, 20), slice(36, 37)):
        found = affine_transform(images[part], *parameters[:, part])
        # Not to the bit: the positions of one image alone come from another product.
        np.testing.assert_allclose(found, whole[part], atol=30 * np.finfo(dtype).eps)


def test_blas_threads_change_no_pixel():
    results = []
    parameters = np.random.default_rng(0).uniform(0.8, 1.2, (5, 64))
    for threads in (1, 2, 4):
        with threadpoolctl.threadpool_limits(threads, user_api="blas"):
            results.append(affine_transform(images_of(64, 64, 64, dtype="float32"), *parameters))
    np.testing.assert_array_equal(results[1], results[0])
    np.testing.assert_array_equal(results[2], results[0])


def test_images_in_another_memory_order_and_no_images():
    images = images_of(3, 8, 6, 2)
    parameters = np.random.default_rng(0).uniform(0.8, 1.2, (5, 3))
    expected = affine_transform(images, *parameters)
    turned = np.asfortranarray(images)
    np.testing.assert_array_equal(affine_transform(turned, *parameters), expected)
    assert affine_transform(images[:0], *parameters[:, :0]).shape == (0, 8, 6, 2)


GOOD = {"images": np.zeros((3, 5, 4, 1)), **{n: np.ones(3) for n in ("theta", "tx", "ty")}}
GOOD |= {n: np.ones(3) for n in ("zx", "zy")}


@pytest.mark.parametrize(
    ("argument", "value", "got"),
    [
        ("images", np.zeros((3, 5, 4)), r"\(3, 5, 4\)"),
        ("images", np.zeros((3, 5, 4, 1), np.uint8), "uint8"),
        ("images", np.zeros((3, 5, 4, 1), int), "int64"),
        ("images", np.zeros((3, 0, 4, 1)), r"\(3, 0, 4, 1\)"),
        ("images", np.zeros((3, 5, 4, 0)), r"\(3, 5, 4, 0\)"),
        *[(name, np.ones(2), r"\(2,\)") for name in ("theta", "tx", "ty", "zx", "zy")],
        ("theta", 3.0, r"\(\)"),
        ("tx", np.ones((3, 1)), r"\(3, 1\)"),
        ("ty", np.ones(3, complex), "complex"),
        ("zx", ["1"] * 3, "U1"),
        ("zy", [1, np.nan, 1], "finite"),
        ("theta", [1, np.inf, 1], "finite"),
    ],
)
def test_bad_arguments_of_affine_transform_are_named(argument, value, got):
    with pytest.raises(ValueError, match=f"^{argument}: got .*{got}"):
        affine_transform(**{**GOOD, argument: value})


# ---------------------------------------------------------------------------------------------
# RandomAffine


@pytest.mark.parametrize("used", list(product([False, True], repeat=4)))
@pytest.mark.parametrize(("H", "W"), [(28, 28), (9, 14)])
def test_random_affine_is_scipys_with_philoxs_draws(used, H, W):
    ranges = [r if u else 0 for r, u in zip((25, 0.2, 0.15, 0.3), used, strict=True)]
    augment = RandomAffine(**dict(zip(NAMES, ranges, strict=True)))
    images = images_of(5, H, W, 2, "float32")
    kept = images.copy()
    found = augment(images, seed=7, net=3, step=11)
    r, z, w, h = ranges
    bounds = [(-r, -w * W, -h * H, 1 - z, 1 - z), (r, w * W, h * H, 1 + z, 1 + z)]
    assert_scipys(found, images, drawn_by_hand(bounds, 7, 3, 11, 5))
    if not any(used):
        np.testing.assert_array_equal(found, images)
    assert not np.shares_memory(found, images)
    np.testing.assert_array_equal(images, kept)


def test_parameters_are_philoxs_words_to_the_bit():
    ranges = RandomAffine(**SEED_RECIPE).bounds(28, 20)
    for seed, net, step in [(0, 0, 0), (2**32 - 1, 14, 26_549), (5, 2**32 - 1, 2**32 - 1)]:
        found = affine_parameters(ranges, seed, net, step, 129)
        assert found.shape == (5, 129) and found.dtype == np.float32
        np.testing.assert_array_equal(found, drawn_by_hand(ranges, seed, net, step, 129))


def test_parameters_are_uniform_within_their_ranges():
    ranges = RandomAffine(**SEED_RECIPE).bounds(28, 20)
    n = 20_000
    drawn = affine_parameters(ranges, 1, 2, 3, n).astype(float)
    for values, low, high in zip(drawn, *ranges.astype(float), strict=True):
        width = high - low
        assert values.min() >= low and values.max() <= high
        assert values.min() < low + 0.01 * width and values.max() > high - 0.01 * width
        assert abs(values.mean() - (low + high) / 2) < 5 * width / (12 * n) ** 0.5
        assert abs(values.std() * 12**0.5 / width - 1) < 0.02
    assert np.abs(np.corrcoef(drawn) - np.eye(5)).max() < 5 / n**0.5  # zx and zy are independent


def test_bounds():
    bounds = RandomAffine(10, 0.1, 0.2, 0.3).bounds(30, 20)
    expected = np.float32([[-10, -4, -9, 0.9, 0.9], [10, 4, 9, 1.1, 1.1]])
    assert bounds.dtype == np.float32
    np.testing.assert_array_equal(bounds, expected)
    assert RandomAffine().bounds(28, 28) is None
    for name in NAMES:
        assert RandomAffine(**{name: 0.5}).bounds(28, 28) is not None


def test_an_images_draw_depends_on_its_place_seed_net_and_step_alone():
    augment = RandomAffine(**SEED_RECIPE)
    images = np.repeat(images_of(1, 28, 28, dtype="float32"), 9, axis=0)
    first = augment(images, seed=1, net=2, step=3)
    np.testing.assert_array_equal(augment(images, seed=1, net=2, step=3), first)
    np.testing.assert_array_equal(augment(images[:4], seed=1, net=2, step=3), first[:4])
    for other in [(2, 2, 3), (1, 3, 3), (1, 2, 4)]:
        changed = augment(images, *other)
        assert not any(np.array_equal(a, b) for a, b in zip(first, changed, strict=True))
    assert len({image.tobytes() for image in first}) == 9
    np.testing.assert_array_equal(augment(images), augment(images, seed=0, net=0, step=0))


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *[(name, bad) for name in NAMES for bad in (-0.1, float("nan"), float("inf"), "0.1", None)],
        *[(name, True) for name in NAMES],
        ("rotation_range", 181),
        ("zoom_range", 1),
        ("zoom_range", (0.9, 1.1)),
        ("width_shift_range", 1.5),
        ("height_shift_range", 2),
    ],
)
def test_bad_ranges_are_named(argument, value):
    with pytest.raises(ValueError, match=f"^{argument}: got .*expected"):
        RandomAffine(**{argument: value})


@pytest.mark.parametrize("argument", ["seed", "net", "step"])
@pytest.mark.parametrize("value", [-1, 2**32, 0.5])
def test_bad_places_in_the_random_stream_are_named(argument, value):
    with pytest.raises(ValueError, match=f"^{argument}: got {value}"):
        RandomAffine(**SEED_RECIPE)(np.zeros((1, 4, 4, 1)), **{argument: value})


@pytest.mark.parametrize("ranges", [{}, SEED_RECIPE])
@pytest.mark.parametrize("images", [np.zeros((4, 4, 1)), np.zeros((2, 4, 4, 1), np.uint8)])
def test_bad_images_are_named(images, ranges):
    with pytest.raises(ValueError, match=f"^images: got .*{images.dtype}"):
        RandomAffine(**ranges)(images)


def test_defaults_change_nothing():
    images = images_of(2, 5, 4, dtype="float32")
    np.testing.assert_array_equal(RandomAffine()(images), images)


# ---------------------------------------------------------------------------------------------
# The batch


def load(ops, ranges, step, dtype="float32", nets=(4, 9), H=28, W=28, C=None, B=6):
    """(images, x, y, chosen): a batch as training loads it, and the indices of its images.

    The images of the data set are (N, H, W, C), without C those of one channel (N, H, W); `images`
    are (N, H, W, C) in any case.
    """
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (20, H, W, C or 1), np.uint8)
    images[0].flat[:256] = np.arange(256)[: images[0].size]
    labels = np.arange(900, 920, dtype=np.uint16)
    order = random.integers(0, 20, (len(nets), 3, B)).astype(np.int32)
    order[:, :, 0] = 0
    chosen = order[:, step % 3]
    x = ops.to_device(np.full((len(nets), B, H, W, C or 1), np.nan, dtype))
    y = ops.to_device(np.full((len(nets), B), -1))
    data_set = images if C else images[..., 0]
    given = map(ops.to_device, (data_set, labels, order))
    ranges = None if ranges is None else ops.to_device(ranges)
    nets, step = ops.to_device(np.array(nets)), ops.to_device(np.array([step]))
    ops.load_batch(*given, ranges, 7, nets, step, x, y)
    return images, ops.to_host(x), ops.to_host(y), chosen


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("step", "C"), [(0, None), (1, 1), (2, 3), (3, None), (100, 4), (26_549, 3)]
)
def test_load_batch_gathers_the_images_of_the_step(ops, step, C, dtype):
    images, x, y, chosen = load(ops, None, step, dtype, C=C)
    assert x.dtype == dtype
    np.testing.assert_array_equal(y, chosen + 900)
    expected = images[chosen] / 255
    np.testing.assert_allclose(x, expected, rtol=2 * np.finfo(dtype).eps)
    assert x.max() == 1 and x.min() == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("H", "W", "C"), [(28, 28, None), (11, 14, 1), (13, 10, 2), (32, 32, 3)])
@pytest.mark.parametrize("step", [0, 5])
def test_load_batch_augments_as_random_affine_does(ops, step, H, W, C, dtype):
    augment = RandomAffine(**SEED_RECIPE)
    shape = {"H": H, "W": W, "C": C}
    _, plain, _, _ = load(ops, None, step, dtype, **shape)
    images, x, y, chosen = load(ops, augment.bounds(H, W), step, dtype, **shape)
    np.testing.assert_array_equal(y, chosen + 900)
    for e, net in enumerate((4, 9)):
        ours = augment(plain[e], seed=7, net=net, step=step)
        np.testing.assert_allclose(x[e], ours, rtol=0, atol=8 * np.finfo(dtype).eps)
        if ops is ops_numpy:
            np.testing.assert_array_equal(x[e], ours)
        drawn = drawn_by_hand(augment.bounds(H, W), 7, net, step, 6)
        scaled = (images[chosen[e]] / 255).astype(dtype)
        assert_scipys(x[e], scaled, drawn)


@pytest.mark.parametrize("elastic", [0, 0.1])
def test_a_nets_batch_is_the_same_beside_others(ops, elastic):
    # 37 images are more than a chunk of the augmentation.
    ranges = RandomAffine(**SEED_RECIPE, elastic_range=elastic).bounds(28, 28)
    _, x, _, _ = load(ops, ranges, 4, nets=(4, 9, 2), B=37)
    _, first, _, _ = load(ops, ranges, 4, nets=(4,), B=37)
    np.testing.assert_array_equal(first[0], x[0])


@pytest.mark.parametrize(
    "ranges",
    [None, *(RandomAffine(25, 0.3, 0.2, 0.1, elastic).bounds(15, 12) for elastic in (0, 0.1))],
)
def test_each_channel_is_augmented_as_a_grey_image_is(ops, ranges):
    images, x, _, chosen = load(ops, ranges, 5, H=15, W=12, C=3)
    nets, step = ops.to_device(np.array([4, 9])), ops.to_device(np.array([5]))
    for c in range(3):
        grey = ops.to_device(np.full((*x.shape[:-1], 1), np.nan, np.float32))
        given = ops.to_device(images[..., c]), None, ops.to_device(chosen[:, None].astype(np.int32))
        bounds = None if ranges is None else ops.to_device(ranges)
        y = ops.to_device(np.zeros(x.shape[:2], np.int64))
        ops.load_batch(*given, bounds, 7, nets, step, grey, y)
        np.testing.assert_array_equal(ops.to_host(grey)[..., 0], x[..., c])


def test_a_data_set_may_have_more_bytes_than_32_bits_count(ops):
    H, W, C = 64, 64, 3
    N = 2**31 // (H * W * C) + 2
    images = ops.empty((N, H, W, C), np.uint8)  # takes memory where it is written
    last = np.random.default_rng(0).integers(0, 256, (H, W, C), np.uint8)
    images[N - 1] = ops.to_device(last)
    order, nets, step = np.full((1, 1, 1), N - 1, np.int32), np.array([1]), np.array([0])
    x = ops.to_device(np.zeros((1, 1, H, W, C), np.float32))
    y = ops.to_device(np.zeros((1, 1), np.int64))
    order, nets, step = map(ops.to_device, (order, nets, step))
    ops.load_batch(images, None, order, None, 0, nets, step, x, y)
    np.testing.assert_allclose(ops.to_host(x)[0, 0], last / 255, rtol=1e-6)
