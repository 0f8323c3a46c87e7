"""The studies, five of them the notebook's: train many nets, store the results, evaluate them.

Read in this order:
- networks.py, tasks.py: what is trained.
- work.py, executors.py: which nets are missing, and where they are trained.
- store.py: the database of results.
- trials.py, grid.py, variance.py, ablation.py, hardest.py, recipes.py: one module per study.
  cells() returns what it trains, findings() evaluates the results.

The command ../study.py runs a study; ../report.py writes a web page about its results.
"""

from . import ablation, grid, hardest, recipes, trials, variance

STUDIES = {module.NAME: module for module in (trials, grid, variance, ablation, hardest, recipes)}
