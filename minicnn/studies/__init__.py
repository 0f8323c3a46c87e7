"""The notebook's studies: many trainings, and what comes of them.

Read networks.py and tasks.py for what is trained, work.py and executors.py for when and where,
store.py for what is kept of it. Each study then is a module of its own, with what it trains and
what it finds in the results: trials.py, grid.py, variance.py, ablation.py, hardest.py. The command
study.py, one floor up, runs them, and report.py tells of what they found.
"""

from . import ablation, grid, hardest, trials, variance

STUDIES = {module.NAME: module for module in (trials, grid, variance, ablation, hardest)}
