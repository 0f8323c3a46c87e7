"""Small runs of each command, and of Python with closed descriptors."""

import os
import sqlite3
import subprocess
import sys

import pytest
from runs import ROOT, TINY

STUDY = (
    "trials --quick --trials=2 --nets=1 --epochs=1 --limit=64 --test-limit=40 --device=numpy "
    "--workers=2 --no-figures"
).split()
NOT_QUIET = [option for option in TINY if option != "--quiet"]

posix = pytest.mark.skipif(os.name != "posix", reason="closes descriptors as POSIX does")


def without(closed, *arguments, **options):
    """Run Python with these descriptors closed; returns its status."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: [os.close(number) for number in closed],
        timeout=120,
        check=False,
        **options,
    ).returncode


def predicting(run, few):
    """Arguments of minicnn.predict."""
    given = "--checkpoint", run[0] / "checkpoint.npz", "--data", few, "--device=numpy"
    return list(map(str, given))


def found_by(folder):
    """The rows of a study's nets, without what depends on time, and its tables."""
    connection = sqlite3.connect(folder / "results.sqlite")
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    rows = connection.execute(
        "SELECT cell, trial, net, accuracy, probabilities FROM net"
    ).fetchall()
    connection.close()
    tables = {path.name: path.read_bytes() for path in (folder / "trials").glob("*.csv")}
    return sorted(rows), tables
