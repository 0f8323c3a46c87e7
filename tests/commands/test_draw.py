"""python -m minicnn.draw: what it writes, prints and refuses."""

import re

import pytest
from runs import command, small_layers

from minicnn import Dense, Flatten, Sequential, draw, load_model
from minicnn.drawpage import document
from minicnn.training.interruption import StopOnSignal


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    """A file of three nets."""
    path = tmp_path_factory.mktemp("nets") / "nets.npz"
    Sequential(small_layers(0.4, 0.9), nets=3, device="numpy").save(path)
    return path


def test_the_command_writes_a_page(nets, tmp_path):
    done = command("minicnn.draw", f"--checkpoint={nets}", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    content = (tmp_path / "draw.html").read_bytes()
    assert done.stdout == f"3 nets, {len(content) / 1e6:.1f} MB: draw.html\n"
    assert content == document(load_model(nets, device="numpy")).encode()


def test_the_first_nets_of_a_run(run, tmp_path, capsys):
    checkpoint, out = run[0] / "checkpoint.npz", tmp_path / "a.html"
    assert draw.main([f"--checkpoint={checkpoint}", f"--out={out}", "--nets=1"]) == 0
    assert capsys.readouterr().out == f"1 net, 1.0 MB: {out}\n"
    assert out.read_bytes() == document(load_model(checkpoint, device="numpy"), 1).encode()


@pytest.mark.parametrize(
    ("checkpoint", "more", "named"),
    [
        ("absent.npz", [], "absent.npz"),
        ("damaged.npz", [], "damaged.npz"),
        ("vectors.npz", [], r"vectors.npz: network: got one for vectors of 4 numbers"),
        ("nets.npz", ["--out=absent/a"], "argument --out: got"),
        ("nets.npz", ["--out=folder"], "argument --out: .* is not a file"),
        ("nets.npz", ["--nets=4"], "argument --nets: got 4, expected at most 3, the nets in"),
        ("nets.npz", ["--nets=0"], "argument --nets: got 0, expected a positive integer"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(
    nets, tmp_path, monkeypatch, checkpoint, more, named, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "nets.npz").write_bytes(nets.read_bytes())
    (tmp_path / "damaged.npz").write_bytes(nets.read_bytes()[:-1])
    Sequential([Dense(2, "softmax")], (4,), device="numpy").save(tmp_path / "vectors.npz")
    before = sorted(tmp_path.iterdir())
    try:
        status = draw.main([f"--checkpoint={checkpoint}", *more])
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2
    assert re.match(rf"minicnn\.draw: error: .*{named}", error) and error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_a_network_without_classes(tmp_path, capsys):
    path = tmp_path / "nets.npz"
    Sequential([Flatten(), Dense(3)], device="numpy").save(path)
    assert draw.main([f"--checkpoint={path}", f"--out={tmp_path / 'a'}"]) == 2
    assert "expected classes of 28x28 images in grey" in capsys.readouterr().err


def test_a_signal_leaves_no_file(nets, tmp_path, monkeypatch):
    monkeypatch.setattr(StopOnSignal, "__call__", lambda self: True)
    assert draw.main([f"--checkpoint={nets}", f"--out={tmp_path / 'a'}"]) == 130
    assert not any(tmp_path.iterdir())
