"""Inputs of the commands."""

import pytest
from digit_files import csv_bytes, csv_rows

from minicnn.data.digits import draw_digits


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A folder with Kaggle's test.csv of 40 images."""
    folder = tmp_path_factory.mktemp("few")
    (folder / "test.csv").write_bytes(csv_bytes(csv_rows(draw_digits(40)[0])))
    return folder
