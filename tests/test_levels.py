"""The quick level touches every operation, kernel, layer, command and class of faults.

The tests read which tests pytest has collected. They are skipped unless it collected all files.
"""

import inspect
import re
from pathlib import Path

import pytest
from levels import needs_full

from minicnn.backends import kernel
from minicnn.network import layers

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def items(request):
    """All tests that need not --slow."""
    found = [item for item in request.session.items if "slow" not in item.keywords]
    if {item.path for item in found} != set(HERE.rglob("test_*.py")):
        pytest.skip("needs the whole suite")
    return found


@pytest.fixture(scope="module")
def quick(items):
    """The tests of the quick level."""
    return [item for item in items if not needs_full(item)]


def values(tests, name, file="*"):
    """{repr of a parameter's value: the value} in tests of one file, or of all."""
    return {
        repr(test.callspec.params[name]): test.callspec.params[name]
        for test in tests
        if hasattr(test, "callspec") and name in test.callspec.params and test.path.match(file)
    }


def test_each_test_that_needs_full_has_a_quick_one_beside_it(items, quick):
    """Its own with other parameters, or the one that its mark names."""
    names = {test.originalname for test in quick}
    for test in items:
        for mark in test.iter_markers("full"):
            beside = test.originalname if "but" in mark.kwargs else mark.kwargs["beside"]
            assert beside in names, test.nodeid


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("test_kernel_ops.py", "operation"),
        ("test_kernel_convolution.py", "what"),
        ("test_kernel_convolution.py", "version"),
        ("test_kernel_convolution.py", "any_ops"),
        ("test_blocks.py", "what"),
        ("test_faults.py", "pattern"),
        ("test_faults.py", "files"),
        ("test_emulator_races.py", "script"),
    ],
)
def test_every_operation_and_planted_fault_is_in_a_quick_test(items, quick, file, name):
    assert values(items, name, file)
    assert values(quick, name, file).keys() == values(items, name, file).keys()


def test_every_kernel_in_cuda_is_in_a_quick_test(quick):
    compiled = {program.name for program in values(quick, "program").values()}
    assert compiled == {path.stem for path in kernel.SOURCES.glob("*.cu")}


def sources(tests):
    return "\n".join({inspect.getsource(test.function) for test in tests})


def test_every_layer_is_in_a_quick_test_of_layers(quick):
    text = sources(test for test in quick if test.path.parent.name == "network")
    for layer in layers.Layer.__subclasses__():
        assert re.search(rf"\b{layer.__name__}\(", text), layer.__name__


def test_every_command_is_in_a_quick_test(quick):
    text = sources(quick)
    commands = [
        path.stem
        for path in Path(layers.__file__).parents[1].glob("*.py")
        if "__main__" in path.read_text()
    ]
    assert len(commands) >= 4
    for name in commands:
        assert re.search(rf'"minicnn\.{name}"|\b{name}\.main\(', text), name
