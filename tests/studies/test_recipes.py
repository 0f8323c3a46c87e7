"""The study of recipes: its candidates, its paired comparison, and the images that judge."""

from argparse import Namespace

import numpy as np
import pytest
from scipy import stats
from stored_nets import SETTINGS

from minicnn import __version__
from minicnn.data.load import load
from minicnn.files import DataError
from minicnn.recipe import Recipe
from minicnn.studies import recipes, trials
from minicnn.studies.store import FILE, Cell, Store
from minicnn.studies.tasks import TrainedNet
from minicnn.training.dataset import Source

# ---- candidates ----------------------------------------------------------------------------------


def cells(*candidates, **fields):
    return recipes.cells(Recipe(**fields), Namespace(candidate=list(candidates), trials=3))


def test_a_candidate_changes_the_fields_that_it_names():
    plain, bold = cells("plain:", " two words : epochs=2,dropout = 0.2 ", epochs=7, nets=3)
    assert plain == Cell("plain", Recipe(epochs=7, nets=3), 3)
    assert bold == Cell("two words", Recipe(epochs=2, nets=3, dropout=0.2), 3)


def test_the_candidates_of_the_study_are_recipes_with_the_base_first():
    found = cells(epochs=6)
    assert [cell.name for cell in found] == list(recipes.CANDIDATES)
    assert len({repr(cell.recipe) for cell in found}) == len(found)


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (["no colon"], "candidate: got 'no colon', expected NAME:FIELD=VALUE,..."),
        ([": epochs=2"], "candidate: got ': epochs=2', expected NAME"),
        (["a: epoch=2"], "candidate: a: got 'epoch=2', expected FIELD=VALUE with one of the fi"),
        (["a: seed=2"], "candidate: a: got 'seed=2', expected FIELD=VALUE"),
        (["a: epochs"], "candidate: a: got 'epochs', expected FIELD=VALUE"),
        (["a: epochs=2.5"], "candidate: a: epochs: got '2.5', expected an integer"),
        (["a: decay=fast"], "candidate: a: decay: got 'fast', expected a number"),
        (["a: dropout=1"], "candidate: a: dropout: got 1.0, expected"),
        (["a:", "a: epochs=3"], "candidate: got the same name twice"),
        (["a: epochs=2, epochs=3"], "candidate: a: got epochs twice, expected it once"),
        (["a: decay=0.5, schedule=linear"], "candidate: a: got decay, which schedule=linear does"),
        (["a: schedule=step"], "candidate: a: schedule: got 'step', expected"),
        (["a\nb: epochs=2"], "candidate: got 'a\\nb: epochs=2', expected NAME"),
        (["a" * 41 + ":"], "candidate: got"),
    ],
)
def test_a_candidate_that_is_not_one_is_refused(texts, told):
    with pytest.raises(ValueError) as refusal:
        cells(*texts)
    assert str(refusal.value).startswith(told)


def test_trials_train_the_recipe_that_is_asked_for():
    recipe = Recipe(nets=4)
    assert trials.cells(recipe, Namespace(recipe="demo", trials=2)) == [Cell("demo", recipe, 2)]


# ---- the images that judge -----------------------------------------------------------------------


def test_held_out_images_are_the_last_of_the_training_images():
    digits = load("digits")
    data, source = Source("digits", limit=100, test_limit=50, held_out=200).load()
    assert np.array_equal(data.train_images, digits.x_train[:100])
    assert np.array_equal(data.test_images, digits.x_train[-200:-150])
    assert np.array_equal(data.test_labels, digits.y_train[-200:-150])
    everything, _ = Source("digits", held_out=200).load()
    assert len(everything.train_images) == len(digits.x_train) - 200
    again = source.load_in_worker(__version__)
    assert np.array_equal(again.test_images, data.test_images)


def test_some_images_must_remain_to_train_on():
    with pytest.raises(DataError, match=r"--hold-out: got 6,000, expected fewer than the 6"):
        Source("digits", held_out=6000).load()


# ---- findings ------------------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path):
    """A Store with two candidates of two nets: three trials of the first, two of the second."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, 50)
    candidates = [
        Cell("base", Recipe(nets=2, epochs=2, batch_size=32), 3),
        Cell("other", Recipe(nets=2, epochs=1, batch_size=64, dropout=0.2), 3),
    ]
    with Store(tmp_path / FILE) as store:
        settings = SETTINGS | {"train_images": 200}
        store.claim("recipes", 0, settings, labels, candidates, recipes.VARIED)
        for cell, count in zip(candidates, (6, 4), strict=True):
            nets = []
            for net in range(1, count + 1):
                probabilities = random.random((50, 10), np.float32)
                probabilities[np.arange(50), labels] += random.random(50) < 0.6
                row = dict.fromkeys(("learning_rate", "train_loss", "train_accuracy"), 0.5) | {
                    "validation_loss": None,
                    "validation_accuracy": None,
                }
                history = [row | {"net": net, "epoch": e, "seconds": net} for e in (1, 2)]
                nets.append(TrainedNet(net, history, None, probabilities, {"device": "cpu"}))
            store.add("recipes", 0, cell, nets, labels)
        yield store, candidates, labels


def test_gains_are_of_nets_and_ensembles_that_both_have(stored):
    """Against scipy's paired t interval of accuracies computed from the probabilities here."""
    store, _, labels = stored
    results = store.results("recipes", 0)
    found = recipes.findings(results)
    accuracy = {
        cell: np.concatenate(
            [(results.probabilities(cell, t).argmax(-1) == labels).mean(-1) for t in trials_]
        )
        for cell, trials_ in (("base", (1, 2, 3)), ("other", (1, 2)))
    }
    gains = accuracy["other"] - accuracy["base"][:4]
    interval = stats.ttest_rel(accuracy["other"], accuracy["base"][:4]).confidence_interval(0.95)
    base, other = found.tables["single_nets"].data.to_dict("records")
    assert (base["n"], other["n"]) == (6, 4)
    assert other["mean"] == pytest.approx(accuracy["other"].mean(), rel=1e-12)
    assert np.isnan(base["gain"]) and other["gain"] == pytest.approx(gains.mean(), abs=1e-12)
    assert [other["gain_low"], other["gain_high"]] == pytest.approx(list(interval), abs=1e-9)

    def votes(cell, trial):
        return (results.probabilities(cell, trial).sum(0).argmax(-1) == labels).mean()

    difference = [votes("other", t) - votes("base", t) for t in (1, 2)]
    base, other = found.tables["ensembles"].data.to_dict("records")
    assert (base["n"], other["n"]) == (3, 2)
    assert other["gain"] == pytest.approx(np.mean(difference), abs=1e-12)
    line = next(line for line in found.lines if line.startswith("other: single"))
    assert f"gain {100 * gains.mean():+.3f}" in line


def test_the_cost_of_a_candidate_is_that_of_one_net(stored):
    store, *_ = stored
    base, other = (
        recipes.findings(store.results("recipes", 0)).tables["single_nets"].data.to_dict("records")
    )
    assert (base["images"], other["images"]) == (2 * 6 * 32, 3 * 64)
    assert (base["seconds"], other["seconds"]) == (2 * 3.5, 2 * 2.5)  # means over the nets
    assert base["changes"] == "epochs 2, batch_size 32"
    assert other["changes"] == "epochs 1, dropout 0.2"


def test_other_candidates_join_a_study_but_not_with_another_size(stored):
    store, candidates, labels = stored
    settings = SETTINGS | {"train_images": 200}
    third = Cell("third", Recipe(nets=2, epochs=9, decay=0.5), 1)
    store.claim("recipes", 0, settings, labels, [candidates[0], third], recipes.VARIED)
    assert list(store.results("recipes", 0).cells) == ["base", "other", "third"]
    wide = Cell("wide", Recipe(nets=3), 1)
    with pytest.raises(ValueError, match=r"the study recipes \(base\) with nets 2, got 3"):
        store.claim("recipes", 0, settings, labels, [wide], recipes.VARIED)


def test_a_base_without_results_leaves_accuracies_but_no_gains(tmp_path):
    labels = np.arange(10)
    candidates = [Cell(name, Recipe(nets=1), 1) for name in ("base", "odd $name$")]
    with Store(tmp_path / FILE) as store:
        store.claim("recipes", 0, SETTINGS, labels, candidates, recipes.VARIED)
        about = {"device": "emulated"}
        store.add("recipes", 0, candidates[0], [TrainedNet(1, [], (1, 2), None, about)], labels)
        right = np.eye(10, dtype=np.float32)
        store.add("recipes", 0, candidates[1], [TrainedNet(1, [], None, right, about)], labels)
        found = recipes.findings(store.results("recipes", 0))
    base, other = found.tables["single_nets"].data.to_dict("records")
    assert (base["n"], other["n"], other["mean"]) == (0, 1, 1.0)
    assert np.isnan([other["gain"], base["seconds"], other["seconds"]]).all()
    assert not found.pictures
    assert found.lines[0] == "odd $name$: single nets 100.000 %"


def test_names_are_drawn_as_they_are(stored):
    store, (base, _), labels = stored
    named = Cell("b $\\bad$", Recipe(nets=2, decay=0.5), 1)
    settings = SETTINGS | {"train_images": 200}
    store.claim("recipes", 0, settings, labels, [base, named], recipes.VARIED)
    guesses = np.random.default_rng(1).random((50, 10), np.float32)
    nets = [TrainedNet(net, [], None, guesses, {}) for net in (1, 2)]
    store.add("recipes", 0, named, nets, labels)
    pictures = recipes.findings(store.results("recipes", 0)).pictures
    assert set(pictures) == {"single_nets", "ensembles"}
    for picture in pictures.values():
        figure = picture.build()
        figure.draw_without_rendering()
        (axes,) = figure.axes
        shown = [text.get_text() for text in axes.get_yticklabels()]
        assert shown == ["other", named.name]
        assert axes.get_title(loc="left").endswith("over 'base'")


def test_a_study_of_one_recipe_refuses_another(tmp_path):
    with Store(tmp_path / FILE) as store:
        store.claim("trials", 0, SETTINGS, np.arange(6), [Cell("seed", Recipe(), 1)])
        with pytest.raises(ValueError, match="has the study trials of the recipe seed, got demo"):
            store.claim("trials", 0, SETTINGS, np.arange(6), [Cell("demo", Recipe(), 1)])


# ---- effects -------------------------------------------------------------------------------------


def factorial(folder, values, accuracies):
    """Results of candidates with the changes `values`, and accuracies (candidates, nets) of 200."""
    labels = np.arange(200) % 10
    candidates = [
        Cell(f"c{place}", Recipe(nets=accuracies.shape[1], **changes), 1)
        for place, changes in enumerate(values)
    ]
    with Store(folder / FILE) as store:
        store.claim("recipes", 0, SETTINGS, labels, candidates, recipes.VARIED)
        for cell, of_cell in zip(candidates, accuracies, strict=True):
            nets = []
            for net, accuracy in enumerate(of_cell, start=1):
                wrong = np.arange(200) >= round(200 * accuracy)
                guesses = np.eye(10, dtype=np.float32)[(labels + wrong) % 10]
                nets.append(TrainedNet(net, [], None, guesses, {}))
            store.add("recipes", 0, cell, nets, labels)
        return recipes.findings(store.results("recipes", 0))


def test_effects_are_the_differences_of_means_in_a_factorial_design(tmp_path):
    """Against means and sums of squares: the columns of such a design are orthogonal."""
    shifts = {"width_shift": 0.1, "height_shift": 0.1}, {"width_shift": 0.0, "height_shift": 0.0}
    values = [
        {"dropout": (0.4, 0.2)[i], "schedule": ("exponential", "linear")[j], **shifts[k]}
        for i, j, k in np.ndindex(2, 2, 2)
    ]
    accuracies = np.random.default_rng(3).integers(150, 200, (2, 2, 2, 3)) / 200
    found = factorial(tmp_path, values, accuracies.reshape(8, 3))
    rows = found.tables["effects"].data.to_dict("records")
    assert [row["change"] for row in rows] == [
        "width_shift 0.1 to 0.0, height_shift 0.1 to 0.0",
        "schedule exponential to linear",
        "dropout 0.4 to 0.2",
    ]
    assert [row["candidates"] for row in rows] == [4, 4, 4]
    differences = [
        accuracies.take(1, axis).mean() - accuracies.take(0, axis).mean() for axis in (2, 1, 0)
    ]
    assert [row["effect"] for row in rows] == pytest.approx(differences, abs=1e-12)
    mean = accuracies.mean()
    squares = np.sum((accuracies - mean) ** 2) - 24 * np.sum(np.square(differences)) / 4
    squares -= 8 * np.sum((accuracies.mean((0, 1, 2)) - mean) ** 2)
    margin = stats.t.ppf(0.975, 24 - 6) * np.sqrt(squares / (24 - 6) * 4 / 24)
    for row in rows:
        assert row["effect_high"] - row["effect"] == pytest.approx(margin, rel=1e-9)
        assert row["effect"] - row["effect_low"] == pytest.approx(margin, rel=1e-9)
    figure = found.pictures["effects"].build()
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert (
        axes.get_yticklabels()[0].get_text() == "width shift 0.1 to 0.0,\nheight shift 0.1 to 0.0"
    )
    assert list(axes.lines[1].get_xdata()) == pytest.approx([100 * d for d in differences])


@pytest.mark.parametrize(
    "values",
    [
        [{}, {"dropout": 0.2}],  # one change at a time: that is the gain
        [{}, {"dropout": 0.2}, {"warm_up": 0.1}],
        [{}, {"dropout": 0.2}, {"dropout": 0.3}, {"dropout": 0.2, "warm_up": 0.1}],
    ],
)
def test_effects_that_the_candidates_cannot_tell_are_not_told(tmp_path, values):
    accuracies = np.random.default_rng(3).integers(150, 200, (len(values), 2)) / 200
    assert "effects" not in factorial(tmp_path, values, accuracies).tables


def test_effects_of_a_field_with_three_values_are_over_the_first(tmp_path):
    pairs = [(batch, dropout) for batch in (64, 32, 16) for dropout in (0.4, 0.2)]
    values = [{"batch_size": batch, "dropout": dropout} for batch, dropout in pairs]
    accuracies = np.random.default_rng(4).integers(150, 200, (6, 2)) / 200
    table = factorial(tmp_path, values, accuracies).tables["effects"].data
    effects = dict(zip(table["change"], table["effect"], strict=True))
    of_batch = accuracies.reshape(3, 4).mean(1)
    assert effects == pytest.approx(
        {
            "batch_size 64 to 32": of_batch[1] - of_batch[0],
            "batch_size 64 to 16": of_batch[2] - of_batch[0],
            "dropout 0.4 to 0.2": accuracies[1::2].mean() - accuracies[::2].mean(),
        },
        abs=1e-12,
    )


def test_nets_that_several_candidates_have_count_once(tmp_path):
    """The effects are those without the other views, and views have the paired interval."""
    values = [{"batch_size": b, "dropout": d} for b in (64, 32) for d in (0.4, 0.2)]
    random = np.random.default_rng(5)
    accuracies = random.integers(150, 200, (4, 3)) / 200
    more = accuracies + random.integers(-5, 6, (4, 3)) / 200
    (tmp_path / "alone").mkdir()
    alone = factorial(tmp_path / "alone", values, accuracies).tables["effects"].data
    viewed = [{**value, "views": 9} for value in values[:2]]
    found = factorial(tmp_path, values + viewed, np.concatenate([accuracies, more[:2]]))
    table = found.tables["effects"].data
    assert table[:2].equals(alone)
    row = table.iloc[2]
    assert (row["change"], row["candidates"]) == ("views 1 to 9, of the same nets", 2)
    interval = stats.ttest_rel(more[:2].ravel(), accuracies[:2].ravel()).confidence_interval(0.95)
    assert row["effect"] == pytest.approx((more - accuracies)[:2].mean(), abs=1e-12)
    assert [row["effect_low"], row["effect_high"]] == pytest.approx(list(interval), abs=1e-9)
