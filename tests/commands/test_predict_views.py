"""--views of minicnn.train and minicnn.predict; reports of such runs."""

import contextlib
import json
import shutil

import numpy as np
import pytest
from report_pages import Page
from runs import TINY, command, small_layers, state

import minicnn.recipe
from minicnn import load_data, predict, progress, report, train
from minicnn.training import inference, resources

RUN = *TINY, "--views=3", "--workers=1"


@pytest.fixture(scope="module")
def asked():
    """Over how many views each prediction was made. A small network, one process, every line."""
    of_each, predict = [], inference.Predictor.predict

    def watched(*arguments, views=1, **options):
        of_each.append(views)
        return predict(*arguments, views=views, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minicnn.recipe, "mnist_layers", small_layers)
        patch.setattr(resources, "cores", lambda: 1)
        patch.setattr(progress, "SECONDS", 0)
        patch.setattr(inference.Predictor, "predict", watched)
        yield of_each


@pytest.fixture(scope="module")
def of_three(asked, tmp_path_factory):
    """The folder of a run with three views."""
    folder = tmp_path_factory.mktemp("views") / "run"
    del asked[:]
    assert train.main([*RUN, f"--out={folder}"]) == 0
    assert asked == [1, 1, 3] * 2  # for each net two validations, then the test images
    return folder


@pytest.fixture
def mine(of_three, asked, tmp_path):
    """A copy of that run, which the test may change."""
    del asked[:]
    return shutil.copytree(of_three, tmp_path / "mine")


def without_views(folder):
    """Make the config.json of a run that of an earlier version."""
    config = json.loads((folder / "config.json").read_text())
    assert config["recipe"].pop("views") == 3
    (folder / "config.json").write_text(json.dumps(config))


def test_predict_uses_the_recipes_views_or_those_it_is_told(mine, asked, tmp_path, capsys):
    _, (images, labels) = load_data("digits")
    np.savez(tmp_path / "few.npz", x_test=images[:40], y_test=labels[:40])
    submission = (mine / "submission.csv").read_text()

    def predicted(*options):
        out = tmp_path / "again.csv"
        given = f"--checkpoint={mine / 'checkpoint.npz'}", f"--data={tmp_path}", f"--out={out}"
        assert predict.main([*given, "--device=numpy", *options]) == 0
        return out.read_text()

    assert predicted() == submission
    assert capsys.readouterr().err.splitlines()[-1].startswith("240 of 240 images (100 %)")
    assert predicted("--quiet", "--views=1") != submission
    assert predicted("--quiet", "--views=3") == submission
    assert asked == [3, 3, 1, 1, 3, 3]


def test_a_run_is_resumed_with_its_views_only(mine, asked, capsys):
    before = state(mine)
    again = [*RUN, "--resume", f"--out={mine}"]
    assert train.main([*again, "--views=5"]) == 2
    assert "has views 3, got 5" in capsys.readouterr().err
    assert train.main(again) == 0
    assert state(mine) == before
    assert asked == [3, 3]
    without_views(mine)
    assert train.main(again) == 2
    assert "has views 1, got 3" in capsys.readouterr().err


def test_config_repeats_the_views(mine, tmp_path):
    given = f"--config={mine / 'config.json'}"
    machine = "--quiet", "--no-figures", "--device=numpy", "--workers=1"
    assert train.main([given, *machine, f"--out={tmp_path / 'again'}"]) == 0
    assert state(tmp_path / "again") == state(mine)


def test_options_win_and_an_earlier_version_had_one_view(mine):
    given = f"--config={mine / 'config.json'}"

    def views(*options):
        return train._wanted(train._parser().parse_args([given, *options]))[0].views

    assert (views(), views("--views=5"), views("--recipe=seed")) == (3, 5, 1)
    without_views(mine)
    assert (views(), views("--views=5")) == (1, 5)


def test_a_report_predicts_with_the_runs_views(mine, asked, capsys):
    assert report.main([str(mine), "--device=numpy"]) == 0
    assert asked == [3, 3]
    assert "240 of 240 images (100 %)" in capsys.readouterr().err
    page = Page((mine / "report.html").read_text())
    guesses = np.loadtxt(mine / "submission.csv", int, delimiter=",", skiprows=1)[:, 1]
    np.testing.assert_array_equal(page.confusion().sum(axis=0), np.bincount(guesses, minlength=10))
    without_views(mine)  # unlike its checkpoint
    assert report.main([str(mine), "--device=numpy", "--quiet"]) == 0
    assert "belongs to another run" in capsys.readouterr().err


@pytest.mark.parametrize("views", ["0", "28", "1.5", "many"])
def test_impossible_views_are_refused_in_one_line(tmp_path, capsys, views):
    got = views if views.isdigit() else repr(views)  # argparse refuses the others, and exits
    stopped = contextlib.nullcontext() if views.isdigit() else pytest.raises(SystemExit, match="2")
    checkpoint = f"--checkpoint={tmp_path / 'none.npz'}"
    for main, given in ((train.main, []), (predict.main, [checkpoint, "--data=digits"])):
        with stopped:
            assert main([*given, f"--views={views}"]) == 2
        error = capsys.readouterr().err
        assert f"error: argument --views: got {got}, expected an integer" in error
        assert error.count("\n") == 1


@pytest.mark.full(beside="test_predict_uses_the_recipes_views_or_those_it_is_told")
def test_workers_change_no_bit_with_views(tmp_path):
    for workers in (1, 2):
        given = *TINY, "--views=3", f"--workers={workers}", f"--out={tmp_path / str(workers)}"
        done = command("minicnn.train", *given)
        assert done.returncode == 0, done.stderr
    assert state(tmp_path / "1") == state(tmp_path / "2")
    given = f"--checkpoint={tmp_path / '1/checkpoint.npz'}", "--data=digits", "--device=numpy"
    done = command("minicnn.predict", *given, f"--out={tmp_path / 's.csv'}", "--workers=2")
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "s.csv").read_text().splitlines()
    assert lines[:41] == (tmp_path / "1/submission.csv").read_text().splitlines()
