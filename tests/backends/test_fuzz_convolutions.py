"""The convolutions in C on a few shapes of `fuzz_convolutions.py`; and the harness itself."""

import json
import subprocess
import sys
from argparse import Namespace

import fuzz_convolutions
import levels
import numpy as np
import oracles
import pytest
from drawn_convolutions import Expected, Shape, operands
from numpy.lib.stride_tricks import as_strided
from runs import python

from minicnn import machine
from minicnn.backends.ops_cpu import VERSIONS, Operations

SCRIPT = fuzz_convolutions.__file__
SMALL = Shape(2, 3, 6, 7, 32, 32, (3, 3), (1, 1), "same", "relu", "normal", False, 1)


@pytest.fixture
def compiled(kernels_in_c, cpu_ops, monkeypatch):
    """The kernels in C; after the test the process has all its cores again."""
    monkeypatch.setattr(machine, "_most_cores", None)
    return cpu_ops.cpu


def checked(shape, kernels, seed=1, number=0):
    """([what is wrong], {version: runs with kernels of its own}, the largest errors)."""
    counts, worst = dict.fromkeys(VERSIONS, 0), {}
    wrong = fuzz_convolutions.check(shape, seed, number, kernels, counts, worst)
    return wrong, counts, worst


def test_convolutions_of_random_shapes(compiled):
    kernels = {("", name): (Operations(compiled, name), False) for name in VERSIONS}
    own = 0
    for number in range(1500 if levels.in_full else 200):
        shape = Shape.draw(2, number)
        wrong, counts, _ = checked(shape, kernels, 2, number)
        assert not wrong, f"--seed 2 --shape {number}: {wrong}, {shape}"
        own += counts["winograd"] > 0
    assert own > 10


@pytest.mark.full(beside="test_convolutions_of_random_shapes")
@pytest.mark.parametrize("shapes, sanitize", [(600, []), (60, ["--sanitize"])])
def test_convolutions_in_all_widths(compiled, shapes, sanitize):
    if sanitize:
        _sanitizer()
    done = python(SCRIPT, f"--shapes={shapes}", "--widths", "all", *sanitize)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["shapes"] == shapes and result["failures"] == 0
    assert result["own_kernels"]["winograd"] > 0


def _sanitizer():
    """The environment for sanitized kernels; without one the test is skipped."""
    try:
        return fuzz_convolutions.sanitizer()
    except ValueError as error:
        pytest.skip(str(error))


# --- What is drawn, and what is expected ----------------------------------------------------------


def test_a_shape_can_be_repeated():
    for number in range(20):
        shape, other = Shape.draw(1, number), Shape.draw(2, number)
        assert shape == Shape.draw(1, number) != other
        first, second = (operands(shape, 1, number) for _ in range(2))
        assert all(np.array_equal(first[name], second[name]) for name in first)


def test_shapes_are_varied():
    shapes = [Shape.draw(1, number) for number in range(1500)]
    for name in ("E", "B", "H", "W", "Cin", "Cout", "size", "strides", "padding", "x"):
        assert len({getattr(shape, name) for shape in shapes}) >= 2, name
    images = {(shape.H, shape.W) for shape in shapes}
    assert (1, 1) in images and max(images) > (26, 26) and any(h != w for h, w in images)
    channels = {shape.Cin for shape in shapes} & {shape.Cout for shape in shapes}
    assert channels >= {1, 3, 16, 31, 32, 33, 48, 64, 80}
    tiles = [s for s in shapes if s.size == (3, 3) and min(s.window.output) >= 4]
    whole = [s for s in tiles if s.Cin % 32 == s.Cout % 32 == 0 and s.strides == (1, 1)]
    assert len(whole) > 100


@pytest.mark.parametrize("number", [0, 3, 4, 11])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_what_is_expected_agrees_with_nested_loops(number, padding):
    shape = Shape(2, 2, 7, 8, 3, 4, (3, 5), (2, 1 + number % 3), padding, "linear", "normal", 1, 1)
    given = operands(shape, 1, number)
    found = Expected(shape, **given).arrays
    for e in range(shape.E):
        x, kernel, bias, dz = (array[e] for array in given.values())
        y = oracles.conv2d(x, kernel, bias, shape.strides, padding)
        of_net = (y, *oracles.conv2d_gradients(x, kernel, dz, shape.strides, padding))
        for name, values in zip(("y", "dx", "dkernel", "dbias"), of_net, strict=True):
            np.testing.assert_allclose(found[name][e], values, rtol=1e-9, err_msg=name)


def test_errors_are_relative_to_the_terms_of_a_sum():
    shape = Shape(1, 1, 1, 1, 2, 1, (1, 1), (1, 1), "same", "linear", "normal", False, 1)
    x, one = np.ones((1, 1, 1, 1, 2), np.float32), np.ones((1, 1, 1, 1, 1), np.float32)
    kernel, bias = np.float32([[[[[1], [-1]]]]]), np.zeros((1, 1), np.float32)
    expected = Expected(shape, x, kernel, bias, one)
    [error] = expected.errors("y", np.full(one.shape, 1e-3)).values()
    assert error == pytest.approx(1e-3 / 2**0.5)


# --- The harness fails where kernels do -----------------------------------------------------------


class Planted:
    """Operations with a fault: `fault` is called with the arrays of the forward pass, after it."""

    def __init__(self, ops, fault):
        self._ops, self._fault = ops, fault

    def __getattr__(self, name):
        return getattr(self._ops, name)

    def conv2d(self, x, kernel, bias, window, activation, y, workspace):
        self._ops.conv2d(x, kernel, bias, window, activation, y, workspace)
        self._fault({"x": x, "kernel": kernel, "y": y, "workspace": workspace})


def faults_of(compiled, fault, shape=SMALL):
    ops = Planted(Operations(compiled), fault)
    return checked(shape, {("", "winograd"): (ops, False)})[0]


def test_the_planted_operations_work_without_a_fault(compiled):
    assert faults_of(compiled, lambda arrays: None) == []


def beyond(array, steps):
    """A view of one element, so many behind an array's first."""
    first = array[(slice(0, 1),) * array.ndim].ravel()
    return as_strided(first, (steps + 1,), (array.itemsize,))[steps:]


def add(array, at, error):
    array[at] += error * np.abs(array).max()


FIRST = (0,) * 5
FAULTS = {
    "y: largest error 2.": lambda a: add(a["y"], FIRST, 2e-5),
    "y: rms error": lambda a: add(a["y"], np.s_[:, :, ::2], 4e-6),
    "y: largest error nan": lambda a: a["y"].__setitem__(FIRST, np.nan),
    "written outside y": lambda a: beyond(a["y"], a["y"].size).fill(0),
    "written outside kernel": lambda a: beyond(a["kernel"], a["kernel"][0].size).fill(0),
    "written outside the workspace": lambda a: beyond(a["workspace"], a["workspace"].size).fill(0),
    "written to x, an operand": lambda a: a["x"].__setitem__(FIRST, 0),
}


@pytest.mark.parametrize("message", FAULTS)
def test_a_fault_is_found(compiled, message):
    found = faults_of(compiled, FAULTS[message])
    assert any(message in line for line in found), found


def test_a_workspace_that_is_too_small_is_found(compiled):
    ops = Operations(compiled)
    needed = ops.conv2d_workspace(2, 3, SMALL.window, 32, 32)
    ops.conv2d_workspace = lambda *_: needed - 4
    with pytest.raises(ValueError, match="size"):
        checked(SMALL, {("", "winograd"): (ops, False)})


FORBIDDEN = """
import ctypes, sys
from fuzz_convolutions import SANITIZED, Cpu, Guarded, forbidden
kernels, y = Cpu(SANITIZED), Guarded((1, 500))
with forbidden([y]):
    for count in (500, 501):
        kernels.call("relu_forward", count, y.array)
        print(count, flush=True)
"""


@pytest.mark.full(beside="test_a_fault_is_found")
def test_an_access_outside_an_array_is_found_in_a_sanitized_build(compiled):
    environment = _sanitizer()
    path = f"{fuzz_convolutions.Path(SCRIPT).parent}:{fuzz_convolutions.Path(SCRIPT).parents[1]}"
    done = python("-c", FORBIDDEN, **environment, PYTHONPATH=path)
    assert done.returncode != 0 and done.stdout == "500\n", done.stdout + done.stderr
    assert "AddressSanitizer: use-after-poison" in done.stderr


# --- The command ----------------------------------------------------------------------------------


def test_the_command_shares_shapes_among_processes(compiled, capfd):
    assert fuzz_convolutions.main(["--shapes=5", "--seed=3", "--processes=2"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert (result["shapes"], result["failures"]) == (5, 0)
    assert {key.split()[1] for key in result["worst"]} == {"y", "dx", "dkernel", "dbias"}


def test_a_failing_shape_is_printed_with_its_command(compiled, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(fuzz_convolutions, "BOUNDS", {"rms": 1e-9, "largest": 1e-9})
    given = Namespace(widths=["native"], sanitize=False, seed=4, numbers=[7], at=tmp_path / "at")
    fuzz_convolutions.fuzz(given)
    *shown, last = capsys.readouterr().out.splitlines()
    assert json.loads(last)["failures"] == 1
    assert shown[0].startswith("Shape(E=") and "error" in shown[1]
    assert shown[-1] == (
        "    repeat: python tests/fuzz_convolutions.py --seed 4 --shape 7 --widths native"
    )


def test_a_process_that_dies_is_reported_with_its_shape(tmp_path, capsys):
    at = tmp_path / "at"
    at.write_text("17\n")
    code = "import os; print('words', flush=True); os._exit(3)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    given = Namespace(widths=["sse"], sanitize=True, seed=5)
    assert fuzz_convolutions._finish(given, process, at)["failures"] == 1
    shown = capsys.readouterr().out
    assert shown.startswith("words\nShape(") and "ended with status 3" in shown
    assert shown.endswith("--seed 5 --shape 17 --widths sse --sanitize\n")
