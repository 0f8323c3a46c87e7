"""Fixtures of the tests of reports: one process for predictions, and a run folder."""

import shutil

import pytest

from minicnn.training import resources


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    """Starting more processes takes longer than these predictions."""
    monkeypatch.setattr(resources, "cores", lambda: 1)


@pytest.fixture
def folder(run, tmp_path):
    """A copy of the small run's folder, which the test may change."""
    return shutil.copytree(run[0], tmp_path / "mine")
