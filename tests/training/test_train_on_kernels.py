"""The command python -m minicnn.train with kernels in CUDA: on the emulator, or on --device."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import weakref
from contextlib import redirect_stderr
from dataclasses import replace
from io import StringIO

import pytest
from runs import ROOT, small_layers, state

import minicnn.recipe
from minicnn import devices, model, train
from minicnn.data.digits import draw_digits
from minicnn.recipe import RECIPES
from minicnn.training import ensemble, resources
from minicnn.training.dataset import Data
from minicnn.training.trainer import Job, Trainer

SMALL = (
    "--nets=3 --epochs=2 --limit=40 --test-limit=9 --batch-size=16 --no-figures --quiet"
).split()


@pytest.fixture(scope="module")
def small_network():
    """A small network, which can be fused, in place of the seed network."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (model, minicnn.recipe):
            patch.setattr(module, "mnist_layers", small_layers)
        yield


def test_the_whole_command_takes_less_than_two_minutes(cuda_device, tmp_path):
    arguments = f"--device {cuda_device} --nets 2 --epochs 1 --limit 128 --test-limit 32"
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "minicnn.train", *arguments.split(), "--out", "run"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 120
    assert re.search(r"CNN 2: Epochs=1, .*\nEnsemble of 2: Test accuracy=", done.stdout)
    told = f"Device: {cuda_device} (as asked)"
    assert f"{told}. All nets together." in done.stderr or f"{told}, in TF32. All" in done.stderr
    assert len((tmp_path / "run/submission.csv").read_text().splitlines()) == 33


@pytest.fixture(scope="module", params=["float32", "tf32", "bfloat16"])
def precision(request, cuda_device):
    """float32 runs layer by layer, the others in fused blocks."""
    return request.param


@pytest.fixture(scope="module")
def whole(cuda_device, precision, small_network, tmp_path_factory):
    """The state, the arguments but for the folder, and the stderr of a run of all nets together."""
    arguments = [*SMALL, "--device", cuda_device, "--precision", precision]
    folder = tmp_path_factory.mktemp("whole") / "run"
    with redirect_stderr(StringIO()) as stderr:
        assert train.main([*arguments, "--out", str(folder)]) == 0
    assert json.loads((folder / "config.json").read_text())["precision"] == precision
    return state(folder), arguments, stderr.getvalue()


@pytest.mark.full(but="float32|tf32-2")
@pytest.mark.parametrize(
    ("together", "told"), [(1, "Nets one by one"), (2, "In groups of 2, 1 nets")]
)
def test_too_little_memory_makes_groups_of_the_same_bits(
    whole, cuda_device, precision, tmp_path, capsys, together, told
):
    expected, arguments, _ = whole
    recipe = replace(RECIPES["demo"], batch_size=16)
    (images, _), (tests, _) = draw_digits(40), draw_digits(9)
    ops = devices.choose(cuda_device, precision)[1]
    memory = resources.arrays_bytes(recipe, ops, together, images, tests)
    more = [f"--memory={memory}", "--out", str(tmp_path / "groups")]
    assert train.main([*arguments, *more]) == 0
    assert f"{told}, as memory allows." in capsys.readouterr().err
    assert state(tmp_path / "groups") == expected


def test_the_precision_is_printed(whole, precision):
    told = {"float32": "", "tf32": ", in TF32", "bfloat16": ", in bfloat16"}[precision]
    assert f"(as asked){told}. All nets together." in whole[2]


def test_memory_for_no_net_is_refused(whole, tmp_path, capsys):
    assert train.main([*whole[1], "--memory=99", "--out", str(tmp_path / "none")]) == 2
    assert re.search(
        r"memory: one net takes [\d,]+ bytes, expected at most 99\n", capsys.readouterr().err
    )
    assert not (tmp_path / "none").exists()


def test_launches_one_by_one_give_the_same_bits(whole, tmp_path):
    expected, arguments, _ = whole
    assert train.main([*arguments, "--no-graph", "--out", str(tmp_path / "eager")]) == 0
    assert state(tmp_path / "eager") == expected


def test_a_stopped_run_resumes_to_the_bit(whole, tmp_path, monkeypatch, capsys):
    expected, arguments, _ = whole
    step, steps = Trainer.step, []

    def stopping(trainer):
        steps.append(step(trainer))
        if len(steps) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    arguments = [*arguments, "--no-graph", "--out", str(tmp_path / "stopped")]
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stopping)
        assert train.main(arguments) == 130
    assert "--resume" in capsys.readouterr().err
    saved = [path.name for path in (tmp_path / "stopped").glob("checkpoint*")]
    assert len(steps) == 1 and saved == ["checkpoint-nets-001-003.npz"]
    assert train.main([*arguments, "--resume", "--memory=1200000"]) == 0
    assert state(tmp_path / "stopped") == expected


def test_a_net_that_diverges_in_lockstep_does_not_affect_the_others(
    whole, tmp_path, monkeypatch, capsys
):
    (expected, _, rows), arguments, _ = whole
    step = Trainer.step

    def sick(trainer):
        if trainer.steps_done == 2:  # an epoch has two steps
            trainer.model.params[1] = float("inf")
        step(trainer)

    monkeypatch.setattr(Trainer, "step", sick)
    assert train.main([*arguments, "--no-graph", "--out", str(tmp_path / "sick")]) == 0
    stdout, stderr = capsys.readouterr()
    assert "net 2 stopped: its loss or weights were not finite in epoch 2, st" in stderr
    assert "step 1 of 2" in stderr
    assert "CNN 1: " in stdout and "CNN 2: " not in stdout and "CNN 3: " in stdout
    found, _, found_rows = state(tmp_path / "sick")
    for name, content in expected.items():
        if name == "history":  # one row fewer
            continue
        row = len(content) // 3
        for net in (0, 2):
            assert found[name][net * row :][:row] == content[net * row :][:row]
    assert found_rows == [row for row in rows if (row["net"], row["epoch"]) != ("2", "2")]


def test_more_processes_than_one_are_refused(whole, tmp_path, capsys):
    assert train.main([*whole[1], "--workers=2", "--out", str(tmp_path / "two")]) == 2
    assert (
        "workers: got 2, expected 1: this device trains its nets together"
        in capsys.readouterr().err
    )


@pytest.mark.full(but="float32|tf32-1-1")
@pytest.mark.parametrize(("nets", "together"), [(1, 1), (4, 4), (4, 1)])
def test_the_memory_of_a_training_is_known_beforehand(
    cuda_device, precision, small_network, nets, together, tmp_path
):
    """The estimate is at least the memory used, and little more; groups free their memory."""
    if cuda_device != "emulated":
        pytest.skip("counts the emulator's arrays")
    ops = devices.choose(cuda_device, precision)[1]
    taken, most = 0, 0

    def take(count):
        nonlocal taken, most
        taken += count
        most = max(taken, most)

    class Counting:
        """The operations; counts the bytes of their arrays until they are freed."""

        def __getattr__(self, name):
            function = getattr(ops, name)
            if name not in ("empty", "zeros", "to_device"):
                return function

            def counted(*arguments):
                array = function(*arguments)
                take(array.nbytes)
                weakref.finalize(array.base, take, -array.nbytes)  # its memory, not the view
                return array

            return counted

    recipe = replace(RECIPES["demo"], nets=nets, epochs=1, batch_size=32)
    data = Data(*draw_digits(200), *draw_digits(70))
    planned = resources.arrays_bytes(recipe, ops, together, data.train_images, data.test_images)
    job = Job(recipe, data, cuda_device, precision, tmp_path, together)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "_operations", lambda *names: Counting())
        ensemble.train_ensemble(job)
    assert 0.8 * planned < most <= planned
