"""The packages: imports point down only, and the import paths that README has shown still work."""

import ast
import importlib
from pathlib import Path

import pytest

import minicnn

PACKAGE = Path(minicnn.__file__).parent
# Each may import those in earlier lines, and modules of its own line.
FLOORS = """
checks control_groups files machine progress rng shared_context
drawing data network
backends exports drawpage
emulator augment
devices
nets
recipe
training
model
command
studies train predict predict_images export draw
reports
study report
"""
FLOOR = {name: number for number, line in enumerate(FLOORS.split("\n")) for name in line.split()}


def room(module):
    """The package, or the module at the top, of a dotted name such as minicnn.data.load."""
    return module.split(".")[1]


def imported(path):
    """The rooms that a file imports from."""
    here = ("minicnn", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level + 1]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from (".".join([*base, name]) for name in names)


SOURCES = [p for p in sorted(PACKAGE.rglob("*.py")) if p.parent != PACKAGE or p.stem in FLOOR]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for module in imported(path):
        if module != "minicnn.__version__" and room(module) != own:
            assert FLOOR[room(module)] <= FLOOR[own], f"{own} imports {module}, which lies above it"


def test_every_module_has_a_floor():
    rooms = {path.stem for path in PACKAGE.glob("*.py")} | {
        path.parent.name for path in PACKAGE.glob("*/__init__.py")
    }
    assert rooms - {"__init__", "ops_cuda", "kernels"} == set(FLOOR)


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("minicnn", minicnn.__all__),
        ("minicnn.augment", ["affine_transform"]),
        ("minicnn.data", ["load_data"]),
        ("minicnn.emulator", ["Emulator"]),
        ("minicnn.ops_cuda", ["Operations"]),
        ("minicnn.rng", ["philox4x32"]),
    ],
)
def test_what_readme_has_shown_can_be_imported(module, names):
    found = importlib.import_module(module)
    assert names and all(hasattr(found, name) for name in names)


def test_public_names_stay():
    expected = """
        Activation Adam BatchNormalization Conv2D CosineDecay Dense Dropout ExponentialDecay Flatten
        LinearDecay MaxPooling2D RandomAffine Sequential augment load_data load_model mnist_cnn
        prepare_digits rng
    """
    assert set(minicnn.__all__) == set(expected.split())
