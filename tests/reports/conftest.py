"""What tests of reports need: one process for predictions, and a run folder."""

import shutil

import pytest

from minicnn.training import prediction


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    """More of them would take longer to start than all these predictions."""
    monkeypatch.setattr(prediction, "cores", lambda: 1)


@pytest.fixture
def folder(run, tmp_path):
    """A run folder of one's own."""
    return shutil.copytree(run[0], tmp_path / "mine")
