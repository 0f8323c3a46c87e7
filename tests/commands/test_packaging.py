"""The package as a new user installs it: wheel, editable install and bare checkout.

Each in a new virtual environment, with a run from an empty folder.
"""

import configparser
import os
import shutil
import subprocess
import venv

import pytest
from runs import ROOT

import minicnn
from minicnn.backends import native

RUN = ["--limit=100", "--test-limit=10", "--nets=2", "--epochs=1", "--batch-size=16", "--out=run"]
FOLDERS = ("minicnn", "kernels")
FILES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture
def checkout(tmp_path):
    """A copy of the sources, so that building adds no files to the tree under test."""
    target = tmp_path / "checkout"
    target.mkdir()
    for name in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, target / name, ignore=ignored)
    for name in FILES:
        shutil.copy(ROOT / name, target)
    return target


def python_in(folder):
    venv.create(folder, with_pip=True)
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def succeed(*command, cwd, **variables):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**clean, **variables},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def install(python, *what, cwd):
    """pip install; skips the test where no package registry can be reached."""
    # Compiling all dependencies takes 15 s; Python compiles what a run imports.
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    try:
        succeed(*pip, *what, cwd=cwd)
    except AssertionError as error:
        unreachable = ("NewConnectionError", "No matching distribution", "Max retries")
        if os.environ.get("CI") or not any(word in str(error) for word in unreachable):
            raise
        pytest.skip("no package registry can be reached")


def dependencies():
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg")
    return config["options"]["install_requires"].split()


@pytest.mark.full(but="wheel")
@pytest.mark.parametrize("way", ["wheel", "editable install", "bare checkout"])
def test_a_run_from_an_empty_folder(way, checkout, tmp_path):
    python, empty = python_in(tmp_path / "venv"), tmp_path / "empty"
    empty.mkdir()
    variables = {}
    if way == "wheel":
        install(python, checkout, cwd=tmp_path)
        shutil.rmtree(checkout)  # the installed package must not need it
    elif way == "editable install":
        install(python, "--editable", checkout, cwd=tmp_path)
    else:
        install(python, *dependencies(), cwd=tmp_path)
        variables["PYTHONPATH"] = str(checkout)
    out = succeed(python, "-m", "minicnn.train", *RUN, cwd=empty, **variables)
    assert "CNN 2: Epochs=1" in out and "Ensemble of 2" in out
    assert [path.name for path in empty.iterdir()] == ["run"]
    assert (empty / "run" / "submission.csv").is_file()
    succeed(python, "-m", "minicnn.draw", "--checkpoint=run/checkpoint.npz", cwd=empty, **variables)
    if way != "bare checkout":
        question = (
            "import importlib.util as u; import minicnn.kernels; "
            "print(u.find_spec('kernels'), u.find_spec('tests'), u.find_spec('benchmarks'))"
        )
        assert succeed(python, "-c", question, cwd=empty) == "None None None\n"
        question = "import importlib.metadata as m; print(m.version('minicnn'))"
        assert succeed(python, "-c", question, cwd=empty).strip() == minicnn.__version__
    if native.problem() is None:  # the sources of the kernels and the emulator are installed
        device = ("--device=emulated", "--limit=10", "--batch-size=8", "--nets=1", "--out=emulated")
        if way == "wheel":  # another package of that name has no effect
            site = python.parent.parent.glob("lib/python*/site-packages")
            (next(site) / "kernels").mkdir()
        out = succeed(python, "-m", "minicnn.train", *RUN, *device, cwd=empty, **variables)
        assert "CNN 1: Epochs=1" in out
