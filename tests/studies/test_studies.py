"""Networks, statistics and measures of the studies; and bad command lines."""

from argparse import Namespace

import numpy as np
import pandas as pd
import pytest
from runs import command
from scipy import stats
from stored_nets import SETTINGS

from minicnn import RandomAffine, model, study
from minicnn.recipe import Recipe
from minicnn.studies import ablation, grid, hardest, statistics, variance
from minicnn.studies.networks import STEPS, Variant
from minicnn.studies.store import FILE, Store

# ---- networks ------------------------------------------------------------------------------------


def described(layers):
    return [(type(layer).__name__, vars(layer)) for layer in layers]


def test_the_last_steps_are_the_seed_network():
    for changes in (STEPS.index("more maps: the seed network"), len(STEPS) - 1):
        found = Variant(changes=changes, dropout=0.3, momentum=0.8).layers
        assert described(found) == described(model.mnist_layers(0.3, 0.8))


def test_each_step_changes_one_thing():
    """Consecutive networks differ only in what the step is named for."""

    def without(layers, *kinds, **same):
        kept = [(kind, dict(about)) for kind, about in layers if kind not in kinds]
        for _, about in kept:
            about.update({name: value for name, value in same.items() if name in about})
        return kept

    steps = [described(Variant(changes=changes).layers) for changes in range(len(STEPS))]
    assert without(steps[0], activation="relu") == without(steps[1], activation="relu")
    sizes = [[about["kernel_size"] for kind, about in s if kind == "Conv2D"] for s in steps]
    assert sizes[1] == [(5, 5), (5, 5), (4, 4)]
    assert sizes[2] == [(3, 3), (3, 3), (3, 3), (3, 3), (4, 4)]
    assert sizes[3] == [(3, 3), (3, 3), (5, 5)] * 2 + [(4, 4)]
    assert [about["strides"] for kind, about in steps[3] if kind == "Conv2D"][2] == (2, 2)
    assert without(steps[2], "Conv2D", "MaxPooling2D") == without(steps[3], "Conv2D")
    assert without(steps[4], "BatchNormalization") == steps[3]
    assert without(steps[5], "Dropout") == steps[4]
    hidden = [pair for pair in steps[5] if pair not in steps[6]]
    assert [kind for kind, _ in hidden] == ["Dense"]
    assert without(steps[6], filters=0) == without(steps[7], filters=0)
    assert steps[7] == steps[8]


@pytest.mark.parametrize("changes", range(len(STEPS)))
def test_each_network_can_be_trained(changes):
    images = np.random.default_rng(0).random((1, 8, 28, 28, 1), np.float32)
    variant = Variant(changes=changes, nets=1)
    net = variant.model(range(1, 2), device="numpy")
    loss, _ = net.train_on_batch(images, np.arange(8)[None] % 3)
    assert np.isfinite(loss).all()
    assert net.count_params() == ablation._weights(variant)


def test_the_ablation_augments_in_its_last_step_alone():
    recipe = Recipe(elastic=0.1)
    *before, last = ablation.cells(recipe, Namespace(trials=1))
    assert {cell.recipe.augment for cell in before} == {RandomAffine()}
    assert last.recipe.augment == recipe.augment


def test_the_grid_has_the_notebooks_cells():
    asked = Namespace(rotation=None, shift=None, trials=6)
    cells = grid.cells(Recipe(), asked)
    places = {(cell.recipe.rotation, cell.recipe.height_shift) for cell in cells}
    assert len(cells) == len(places) == 16
    assert {r for r, s in places if s == 0.2} == {10, 15}
    assert {r for r, s in places if s == 0.1} == set(range(0, 31, 5))
    assert all(cell.recipe.zoom == cell.recipe.rotation / 100 for cell in cells)
    asked.rotation, asked.shift = [5.0, 7.5, 5.0, -0.0, 0.0, 5.0000001], [0.3]
    assert [c.recipe.rotation for c in grid.cells(Recipe(), asked)] == [5, 7.5, 0, 5.0000001]


# ---- statistics ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 17])
def test_intervals_are_scipys(n):
    random = np.random.default_rng(n)
    a, b = random.normal(0.99, 0.01, n), random.normal(0.97, 0.03, n + 2)
    low, high = stats.t.interval(0.95, n - 1, a.mean(), stats.sem(a))
    assert statistics.mean_interval(a) == pytest.approx((low, min(high, 1)), rel=1e-12)
    low, high = stats.ttest_ind(b, a, equal_var=False).confidence_interval(0.95)
    assert statistics.difference_interval(a, b) == pytest.approx((low, high), rel=1e-9)
    assert statistics.mean_interval([0.1, 0.9]) == (0, 1)
    assert statistics.difference_interval([0, 1], [1, 0.5]) == (-1, 1)


def test_a_bootstrap_interval_holds_what_it_should():
    """In about 95 of 100 samples the interval of the mean holds the true mean."""
    random = np.random.default_rng(5)
    held = 0
    for _ in range(300):
        low, high = statistics.bootstrap_interval(random.normal(2, 1, 40), np.mean)
        held += low <= 2 <= high
    assert 0.90 <= held / 300 <= 0.98
    values = random.random(9)
    again = statistics.bootstrap_interval(values, np.mean)
    assert statistics.bootstrap_interval(values, np.mean) == again


def test_one_value_has_no_interval():
    for found in (
        statistics.mean_interval([0.5]),
        statistics.difference_interval([0.5], [0.1, 0.2]),
        statistics.bootstrap_interval([0.5], np.mean),
    ):
        assert np.isnan(found).all()
    assert statistics.difference_interval([0.5, 0.5], [0.75, 0.75]) == (0.25, 0.25)
    assert statistics.spread([]) == {"n": 0}


# ---- measures and ranks --------------------------------------------------------------------------


def test_an_image_without_any_pixel_is_left_out():
    images = np.zeros((4, 28, 28), np.uint8)
    images[1, 3:9, 5] = images[2, 4, 5:20] = images[3, 9:12, 9:20] = 200
    measures = variance.measure(images, np.array([1, 1, 1, 1]))
    assert measures.iloc[0, 2:].isna().all()
    assert measures.loc[1, ["center_column", "center_row"]].to_list() == [6, 6.5]
    assert abs(measures.loc[1, "angle"]) == pytest.approx(90)
    assert measures.loc[2, "angle"] == 0
    assert len(variance.deviations(measures)) == 3


@pytest.mark.parametrize("lit", [0, 1])
def test_images_of_no_extent(tmp_path, lit):
    images = np.zeros((70, 28, 28), np.uint8)
    images[:, 5, 7] = lit
    with Store(tmp_path / FILE) as store:
        store.claim("variance", 0, SETTINGS, None, [])
        measures = variance.measure(images, np.arange(70) % 10)
        store.add_images("variance", 0, measures)
        found = variance.findings(store.results("variance", 0))
    if not lit:
        assert found.lines == ["all pixels of all images are zero"]
        return
    assert found.lines[0].startswith("centre of the bounding box: mean (8.00, 6.00)")
    assert all(picture.build().axes for picture in found.pictures.values())


def test_the_hardest_by_entropy():
    probabilities = np.random.default_rng(3).dirichlet(np.ones(10), (4, 70)).astype(np.float32)
    table = hardest.rank(probabilities)
    entropies = [
        -sum(p * np.log(p) for p in probabilities[:, i].mean(axis=0, dtype=float))
        for i in range(70)
    ]
    order = sorted(range(70), key=lambda i: -entropies[i])[:50]
    assert table["image"].to_list() == [i + 1 for i in order]
    assert table["entropy"].to_list() == pytest.approx([entropies[i] for i in order])
    assert "label" not in table
    assert isinstance(table, pd.DataFrame)


# ---- the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("", "the following arguments are required: NAME"),
        ("nothing", "invalid choice: 'nothing'"),
        ("trials --trials 0", "argument --trials: got 0, expected a positive integer"),
        ("trials --quick --momentum 1.5", "argument --momentum: got 1.5"),
        ("trials --quick --seed -1", "argument --seed: got -1"),
        ("trials --quick --trials 400 --nets 9000", "argument --trials: 400 trials need 3,600,000"),
        ("trials --quick --nets 20000", "argument --nets: got 20000"),
        ("trials --quick --limit 20", "got 20 training images, expected at least one batch of 64"),
        ("grid --quick --shift 5", "argument --shift: got 5.0, expected a number in [0, 1]"),
        (
            "trials --quick --dask tcp://x:1 --workers 2",
            "argument --workers: not allowed with --dask",
        ),
        (
            "trials --quick --dask tcp://x:1 --threads 2",
            "argument --threads: not allowed with --dask",
        ),
        ("trials --quick --device cuda", "device: 'cuda' cannot be used"),
        ("trials --quick --workers 3 --device emulated", "workers: got 3, expected 1"),
        ("grid --quick --rotation 500", "argument --rotation: got 500"),
        ("grid --quick --rotation x", "argument --rotation: got 'x', expected a number"),
        ("variance --trials 3", "unrecognized arguments: --trials 3"),
        ("variance --data nowhere", "nowhere: No such file or directory"),
        ("variance --quick --out FILE", "FILE is a file, expected a folder"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(arguments, named, tmp_path, monkeypatch, capsys):
    (tmp_path / "FILE").touch()
    monkeypatch.chdir(tmp_path)
    try:
        status = study.main(arguments.split())
    except SystemExit as error:  # argparse's
        status = error.code
    assert status == 2
    stderr = capsys.readouterr().err
    assert "Traceback" not in stderr
    line = stderr.splitlines()[-1]
    assert "error: " in line
    assert named in line


def test_help_tells_both_sizes(tmp_path):
    done = command("minicnn.study", "trials", "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "(default: 100; --quick: 3)" in " ".join(done.stdout.split())
