"""The seed network in the minicnn of an earlier commit, by that commit's own minicnn_net.py.

It is imported from the contender's folder (benchmarks/commit.py), into a process that runs no other
contender.
"""

import importlib
import sys
from dataclasses import fields
from functools import lru_cache
from pathlib import Path

from minicnn import machine


def Training(contender, images, labels, recipe):  # noqa: N802  it makes one
    """The commit's Training: see __init__.py. Fields of the recipe that it lacks are left out."""
    net, Recipe = _imported(contender.folder)
    known = {field.name for field in fields(Recipe)} & {field.name for field in fields(recipe)}
    recipe = Recipe(**{name: getattr(recipe, name) for name in known})
    return net.Training(contender, images, labels, recipe)


@lru_cache  # once in a process
def _imported(folder):
    """(minicnn_net.py, the class Recipe) of a commit.

    Its minicnn takes the place of this one in sys.modules, where it may import more of itself
    later. Its benchmarks do so during the import only: messages to the parent process are pickled
    by this crew.py.
    """
    before = {name: sys.modules.pop(name) for name in _modules("minicnn", "benchmarks")}
    sys.path.insert(0, folder)
    try:
        net = importlib.import_module("benchmarks.contenders.minicnn_net")
        recipe = importlib.import_module("minicnn.recipe")
        importlib.import_module("minicnn.machine").use_cores(machine.cores())
    finally:
        for name in _modules("benchmarks"):
            del sys.modules[name]
        sys.modules.update({n: m for n, m in before.items() if n.split(".")[0] == "benchmarks"})
    for module in net, recipe:
        if not Path(module.__file__).is_relative_to(folder):
            raise ImportError(f"{module.__name__} was imported from {module.__file__}")
    return net, recipe.Recipe


def _modules(*packages):
    """The names of all modules of these packages that are imported."""
    return [name for name in sys.modules if name.split(".")[0] in packages]
