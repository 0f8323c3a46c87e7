"""Every kernel names its twin, the function that computes the same, and a trace shows both."""

import importlib
import re

import pytest

from minicnn import devices
from minicnn.backends import trace
from minicnn.backends.kernel import SOURCES, Program
from minicnn.data.digits import draw_digits
from minicnn.recipe import Recipe
from minicnn.training.dataset import Data
from minicnn.training.trainer import Job, Trainer

FILES = sorted([*SOURCES.glob("*.c"), *SOURCES.glob("*.cu")])


def find(twin):
    """The function of that name: of ops_numpy, or of a module of oracles among the tests."""
    module, _, name = twin.rpartition(".")
    place = f"minicnn.backends.{module}" if module == "ops_numpy" else module
    return getattr(importlib.import_module(place), name)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_kernel_names_a_twin_that_exists(path):
    program = Program(path)
    assert program.twins.keys() == program.kernels.keys()
    for twin in program.twins.values():
        assert re.fullmatch(r"(ops_numpy|\w*oracles)\.\w+", twin)
        assert callable(find(twin))


def test_there_are_kernels_to_look_at():
    kernels = {path.suffix: len(Program(path).kernels) for path in FILES}
    assert kernels.keys() == {".c", ".cu"}
    assert sum(len(Program(path).kernels) for path in FILES if path.suffix == ".c") > 15
    assert sum(len(Program(path).kernels) for path in FILES if path.suffix == ".cu") > 30


def test_a_twin_is_the_line_directly_above_its_kernel(tmp_path):
    path = tmp_path / "some.c"
    path.write_text(
        "// y = 0\n// Twin: ops_numpy.zeros\nKERNEL with_twin(int n) {\n}\n"
        "// Twin: ops_numpy.copy\n\nKERNEL below_an_empty_line(int n) {}\n"
        "//Twin: ops_numpy.copy\nKERNEL misspelt(int n) {}\n"
    )
    assert Program(path).twins == {"with_twin": "ops_numpy.zeros"}
    assert len(Program(path).kernels) == 3
    with pytest.raises(AttributeError):
        find("ops_numpy.conv3d")


@pytest.fixture
def steps(monkeypatch, capfd, tmp_path):
    """Run some training steps of a group of nets; what they print on stderr, by lines."""

    def run(device, precision, nets=range(1, 3), graph=True, asked="1"):
        monkeypatch.setenv("MINICNN_TRACE", asked)
        recipe = Recipe(nets=2, batch_size=4, epochs=1, validation_fraction=0)
        job = Job(recipe, Data(*draw_digits(12)), device, precision, tmp_path, graph=graph)
        trainer = Trainer(job, nets)
        capfd.readouterr()
        trainer.train_epoch(lambda images: None, lambda: False)
        assert trainer.steps_done == 3
        return capfd.readouterr().err.splitlines()

    return run


LINE = re.compile(r"(\S+\.cu?): (\w+) +(nets \d+|grid \(.*?\) block \(.*?\)) +twin: (\S+)")


@pytest.mark.parametrize("graph", [True, False])
def test_a_trace_shows_each_call_of_one_step(steps, graph, cpu_ops):
    lines = steps("cpu", "float32", graph=graph)
    found = [LINE.fullmatch(line).groups() for line in lines if not line.startswith("ops_numpy")]
    kernels = [name for _, name, _, _ in found]
    for name in ("load_batch", "softmax_cross_entropy", "adam"):
        assert kernels.count(name) == 1  # a step's, and not three steps'
    assert kernels.count("batch_norm_merge") == 7
    assert [line for line in lines if line.startswith("ops_numpy")] == ["ops_numpy.py: accumulate"]
    for file, name, size, twin in found:
        assert Program(SOURCES / file).twins[name] == twin and size == "nets 2"


@pytest.mark.full(but="float32")
@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_a_trace_shows_each_launch_of_one_step(steps, precision, cuda_device):
    found = [LINE.fullmatch(line).groups() for line in steps(cuda_device, precision)]
    kernels = [name for _, name, _, _ in found]
    once = ["load_batch", "accumulate"]
    once += ["head", "adam_from_parts"] if precision == "tf32" else ["softmax_cross_entropy"]
    for name in once:
        assert kernels.count(name) == 1
    adam = "adam.cu", "adam", "grid (80, 1, 2) block (256, 1, 1)", "ops_numpy.adam"
    assert found.count(adam) == (precision == "float32")


def test_a_trace_shows_the_operations_of_the_reference(steps):
    lines = steps("numpy", "float32")
    assert lines[0] == "ops_numpy.py: load_batch" and lines[-1] == "ops_numpy.py: accumulate"
    assert lines.count("ops_numpy.py: conv2d") == 7 and lines.count("ops_numpy.py: adam") == 1
    assert not any("_rows" in line for line in lines)


def test_only_the_first_group_prints_and_only_if_asked(steps, capfd):
    assert steps("numpy", "float32", asked="0") == []
    assert steps("numpy", "float32", nets=range(2, 3)) == []
    backend = devices.choose("numpy")[1]
    with trace.printing():
        backend.zeros((2,), float)
    assert capfd.readouterr().err == "ops_numpy.py: zeros\n"
    backend.zeros((2,), float)
    assert capfd.readouterr().err == ""
