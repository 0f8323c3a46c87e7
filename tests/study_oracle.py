"""The findings of a study, computed again from its SQLite file with no code of the library.

Plain SQL and loops: the accuracies of single nets and of ensembles, and Student's intervals.
"""

import json
import math
import sqlite3
from collections import defaultdict

import numpy as np
from scipy import stats


class Oracle:
    """Of a study in a file: accuracy[cell] of each net, ensembles[cell] by trial and size."""

    def __init__(self, path, study):
        connection = sqlite3.connect(path)
        rows = connection.execute(
            "SELECT cell, trial, net, probabilities FROM net WHERE study = ? ORDER BY net", (study,)
        ).fetchall()
        ((blob,),) = connection.execute("SELECT labels FROM study WHERE study = ?", (study,))
        self.labels = list(blob)
        self.recipes = {
            cell: json.loads(recipe)
            for cell, recipe in connection.execute(
                "SELECT cell, recipe FROM cell WHERE study = ? ORDER BY place", (study,)
            )
        }
        connection.close()
        nets = defaultdict(lambda: defaultdict(list))
        for cell, trial, _, probabilities in rows:
            values = np.frombuffer(probabilities, np.float32).reshape(len(self.labels), 10)
            nets[cell][trial].append(values.astype(float))
        self.accuracy, self.ensembles = defaultdict(list), defaultdict(list)
        for cell, trials in nets.items():
            for of_trial in trials.values():
                self.accuracy[cell] += [self._right(values) for values in of_trial]
                total, sizes = np.zeros_like(of_trial[0]), []
                for values in of_trial:
                    total = total + values
                    sizes.append(self._right(total))
                self.ensembles[cell].append(sizes)
        self.sums = {  # of all nets of a cell
            cell: sum(values for of_trial in trials.values() for values in of_trial)
            for cell, trials in nets.items()
        }

    def _right(self, scores):
        guesses = [max(range(10), key=lambda digit, row=row: row[digit]) for row in scores]
        hits = sum(guess == label for guess, label in zip(guesses, self.labels, strict=True))
        return hits / len(self.labels)

    def whole(self, cell):
        """The accuracies of the cell's whole ensembles."""
        return [sizes[-1] for sizes in self.ensembles[cell]]


def mean(values):
    return math.fsum(values) / len(values)


def deviation(values):
    middle = mean(values)
    return math.sqrt(math.fsum((v - middle) ** 2 for v in values) / (len(values) - 1))


def student(values):
    """The 95 % interval of the mean."""
    low, high = stats.t.interval(0.95, len(values) - 1, mean(values), stats.sem(values))
    return max(low, 0), min(high, 1)
