"""minicnn.train --config: a run is repeated from its config.json, and options win over the file."""

import json

import pytest
from digit_files import csv_bytes, csv_rows, write_digits
from runs import TINY, state

from minicnn import train
from minicnn.data.digits import draw_digits

MACHINE = "--quiet", "--no-figures", "--device=numpy", "--workers=1"


def edited(run, path, without=(), **changes):
    """The config of a run with changes, in a file."""
    config = json.loads((run[0] / "config.json").read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if k not in without}))
    return path


def images(folder):
    """The path of a file of more than the images of TINY."""
    write_digits(folder / "images.npz", 200, 60)
    return str(folder / "images.npz")


def test_a_run_is_repeated_to_the_bit(run, tmp_path, capsys):
    """The recipe, the data and how much of them: TINY changes all three."""
    config = edited(run, tmp_path / "c.json", source=images(tmp_path))
    assert train.main([f"--config={config}", *MACHINE, f"--out={tmp_path / 'again'}"]) == 0
    assert state(tmp_path / "again") == state(run[0])
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert again == json.loads(config.read_text())
    assert (again["limit"], again["test_limit"], again["shape"]) == (150, 40, None)
    assert "warning" not in capsys.readouterr().err


def wanted(*options):
    """(recipe, source) that the command takes."""
    return train._wanted(train._parser().parse_args(list(options)))[:2]


def test_options_win(run):
    given = f"--config={run[0] / 'config.json'}"
    recipe, source = wanted(given)
    assert (recipe, source) == wanted(*TINY)
    changed, limited = wanted(given, "--nets=5", "--decay=0.5", "--limit=99", "--data=mnist")
    assert (changed.nets, changed.decay, changed.epochs, changed.batch_size) == (5, 0.5, 2, 32)
    assert (limited.name, limited.limit, limited.test_limit) == ("mnist", 99, None)
    assert wanted(given, "--recipe=seed")[0].epochs == 45
    assert wanted()[1].name == "digits" and wanted("--data=x")[0].nets == 15


def test_a_config_of_an_earlier_version_is_read(run, tmp_path):
    """It does not say how many images were asked for; so many as there were are taken."""
    old = edited(run, tmp_path / "old.json", without=("limit", "test_limit", "shape"))
    recipe, source = wanted(f"--config={old}")
    assert (recipe, source) == wanted(*TINY)
    assert wanted(f"--config={old}", "--data=mnist")[1].limit is None


def test_the_shape_of_images_in_a_csv_file_is_kept(tmp_path, capsys):
    images, labels = draw_digits(40)
    wide = images.reshape(40, 28, 28).repeat(2, axis=2).reshape(40, 28, 56)
    (tmp_path / "train.csv").write_bytes(csv_bytes(csv_rows(wide, labels)))
    small = "--recipe=demo --nets=1 --epochs=1 --batch-size=16 --shape=28x56".split()
    first, second = (tmp_path / name for name in ("first", "second"))
    assert train.main([*small, f"--data={tmp_path}", *MACHINE, f"--out={first}"]) == 0
    assert train.main([f"--config={first / 'config.json'}", *MACHINE, f"--out={second}"]) == 0
    files = [(folder / "config.json").read_bytes() for folder in (first, second)]
    assert files[0] == files[1]
    assert json.loads(files[0])["shape"] == [28, 56]
    old = json.loads(files[0])
    for name in ("limit", "test_limit", "shape"):
        del old[name]
    (tmp_path / "old.json").write_text(json.dumps(old))
    assert wanted(f"--config={tmp_path / 'old.json'}")[1].shape == (28, 56, 1)


def test_other_data_are_told(run, tmp_path, capsys):
    was = json.loads((run[0] / "config.json").read_text())
    config = edited(run, tmp_path / "c.json", source=images(tmp_path), data="0" * 64)
    arguments = f"--config={config}", *MACHINE, "--epochs=1", f"--out={tmp_path / 'out'}"
    assert train.main(list(arguments)) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert line == (
        f"minicnn.train: warning: {config}: its run had other training images or labels: "
        f"fingerprint {'0' * 16}..., got {was['data'][:16]}..."
    )


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "no such file, expected what minicnn.train writes"),
        (b"", "not JSON, expected what minicnn.train writes"),
        (b"[1]", "the file: got [1], expected an object"),
        (b"{}", "recipe: got nothing, expected what minicnn.train writes"),
        ({"recipe": {"nets": 0}}, "recipe: nets: got 0, expected"),
        ({"recipe": {"colour": 1}}, "recipe: "),
        ({"limit": 0}, "limit: got 0, expected a number from 1"),
        ({"test_limit": "x"}, "test_limit: got x, expected a number from 1"),
        ({"shape": "28x28"}, "shape: got 28x28, expected a list"),
        ({"shape": [28, -1]}, "shape: got -1, expected a number from 1"),
        ({"shape": [True, 784]}, "shape: got True, expected a number from 1"),
        ({"recipe": {"rotation": 10**400}}, "recipe: rotation: got 1000"),
        ({"recipe": {"epochs": 10**400}}, "recipe: epochs: got 1000"),
        ({"source": ""}, "source: got nothing, expected where the data are"),
        ({"source": "/nowhere"}, "/nowhere: No such file or directory"),
    ],
    ids=str,
)
def test_what_is_no_config_is_refused_in_one_line(run, tmp_path, capsys, content, named):
    path = tmp_path / "c.json"
    if isinstance(content, dict):
        edited(run, path, **content)
    elif content is not None:
        path.write_bytes(content)
    assert train.main([f"--config={path}", *MACHINE, f"--out={tmp_path / 'out'}"]) == 2
    line = capsys.readouterr().err
    assert line.startswith("minicnn.train: error: ") and line.count("\n") == 1
    assert named in line
    assert not (tmp_path / "out").exists()
