"""What each change of a recipe does to the accuracy of single nets, by all candidates together.

In a factorial design, where each value of a field goes with all values of the others, every net
tells about every field: so a few nets tell about many changes.
"""

from dataclasses import fields, replace

import numpy as np
import pandas as pd

from ..recipe import Recipe
from .statistics import gain_interval, least_squares

# The fields of a recipe in which candidates cannot differ: they are the study's.
_FIXED = {"nets", "first_net", "validation_fraction", "seed", "input_shape", "classes"}
VARIED = tuple(field.name for field in fields(Recipe) if field.name not in _FIXED)

COLUMNS = "effect", "effect_low", "effect_high"


def of_changes(recipes, accuracies):
    """A DataFrame: change, candidates that have it, and COLUMNS: its effect and 95 % interval.

    recipes: {candidate: its Recipe}; accuracies: {candidate: {net: accuracy}}. A change is from the
    value of the first candidate; fields that change together are one change. Candidates that differ
    in views only have the same nets; these count once, with the views of the first of them. What
    other views add to the same nets has rows of its own.

    None unless there are more candidates than effects, so that an effect is a mean over several
    pairs of candidates, and unless the effects can be told apart.
    """
    if len(recipes) < 3:
        return None
    same = {}
    for name, recipe in recipes.items():
        same.setdefault(replace(recipe, views=1), []).append(name)
    first = [names[0] for names in same.values()]
    changes = _changes({name: recipes[name] for name in first})
    nets = sorted({net for name in first for net in accuracies[name]})
    rows = [(name, net) for name in first for net in sorted(accuracies[name])]
    has_changes = [[name in has for has in changes.values()] for name, _ in rows]
    of_nets = [[net == other for other in nets] for _, net in rows]  # a net's own accuracy
    design = np.hstack([has_changes, of_nets]).astype(float)
    if len(first) < len(changes) + 2 or np.linalg.matrix_rank(design) < design.shape[1]:
        return None
    found = least_squares(design, [accuracies[name][net] for name, net in rows])
    found = [
        (change, len(has), *effect)
        for (change, has), effect in zip(changes.items(), found, strict=False)
    ]
    found += _of_views(recipes, accuracies, same.values())
    return pd.DataFrame(found, columns=["change", "candidates", *COLUMNS])


def _changes(recipes):
    """{change, as text: the candidates that have it}, from the values of the first candidate."""
    texts, (first, *_) = {}, recipes.values()
    for field in VARIED:
        before = getattr(first, field)
        values = {name: getattr(recipe, field) for name, recipe in recipes.items()}
        for value in dict.fromkeys(values.values()):
            if value != before:
                has = tuple(name for name in values if values[name] == value)
                texts.setdefault(has, []).append(f"{field} {before} to {value}")
    return {", ".join(parts): has for has, parts in texts.items()}


def _of_views(recipes, accuracies, groups):
    """Rows of of_changes: gains of the same nets by more views, in groups of candidates."""
    gains = {}
    for first, *others in groups:
        for other in others:
            change = f"views {recipes[first].views} to {recipes[other].views}, of the same nets"
            both = accuracies[first].keys() & accuracies[other].keys()
            pairs = [accuracies[other][net] - accuracies[first][net] for net in sorted(both)]
            gains.setdefault(change, []).append(pairs)
    rows = []
    for change, of_candidates in gains.items():
        values = np.concatenate(of_candidates)
        rows.append((change, len(of_candidates), values.mean(), *gain_interval(values)))
    return rows
