"""Killed and resumed runs equal undisturbed runs to the bit. kills.py, a command, kills more."""

import random

import levels
import pytest
from kills import Killer, kill

from minicnn.training import archive


@pytest.mark.full(but="cpu")
@pytest.mark.every_device
def test_no_bit_differs_after_kills(device):
    kills = 4 if levels.in_full and device != "emulated" else 2
    result = kill(device, kills, seed=1)
    assert result["kills"] >= kills and 1 <= result["inside_a_write"] < result["kills"]
    assert result["differing_bits"] == 0


@pytest.mark.full(beside="test_no_bit_differs_after_kills")
def test_a_bit_that_differs_is_counted(tmp_path):
    killer = Killer("numpy", tmp_path, random.Random(0))
    path = tmp_path / "alone" / "checkpoint.npz"
    names = "params", "moving", "moment_1", "moment_2", "sums", "history"
    arrays, about = archive.read(path, names)
    arrays = {name: array.copy() for name, array in arrays.items()}
    arrays["moment_2"].view("u4")[1, 7] ^= 5
    archive.write(path, arrays, about)
    assert killer._differing_bits(tmp_path / "alone") == 2
