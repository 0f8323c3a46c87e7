"""The SQLite file of results: settings, cells and trained nets of one or more studies.

    study   one row per study and seed: its settings as JSON, and the labels of the test images
    cell    one row per cell: its recipe and the number of trials
    net     one row per trained net; key: study, cell, trial, seed, net number
    image   one row per training image, measured by the study "variance"
    distorted   one row per net that was tested on distorted images, too; often missing

Adding a net a second time has no effect. Several processes may write to one file. The file may come
from an unknown source, so it is refused unless its tables are exactly these. `Store` writes;
`Results` reads one study.
"""

import contextlib
import json
import sqlite3
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..files import DataError, brief
from ..recipe import Recipe, completed
from ..training.checkpoint import HISTORY_COLUMNS
from .networks import recipe_of

FILE = "results.sqlite"

_TABLES = {
    "study": """CREATE TABLE study (
    study TEXT NOT NULL, seed INTEGER NOT NULL,
    settings TEXT NOT NULL, -- JSON: where the data are from, how many, and their fingerprints
    labels BLOB, -- uint8, of the test images
    PRIMARY KEY (study, seed))""",
    "cell": """CREATE TABLE cell (
    study TEXT NOT NULL, seed INTEGER NOT NULL, cell TEXT NOT NULL,
    place INTEGER NOT NULL, -- in the order of the study
    recipe TEXT NOT NULL, -- JSON
    trials INTEGER NOT NULL, -- asked for
    PRIMARY KEY (study, seed, cell))""",
    "net": """CREATE TABLE net (
    study TEXT NOT NULL, cell TEXT NOT NULL, trial INTEGER NOT NULL, seed INTEGER NOT NULL,
    net INTEGER NOT NULL,
    accuracy REAL, -- on the test images; NULL where it diverged or their labels are unknown
    diverged TEXT, -- JSON: [epoch, step]
    history TEXT NOT NULL, -- JSON: a list of rows as in history.csv
    probabilities BLOB, -- float32, (test images, 10)
    made_by TEXT NOT NULL, -- JSON: device, precision, versions
    PRIMARY KEY (study, cell, trial, seed, net))""",
    "image": """CREATE TABLE image (
    study TEXT NOT NULL, seed INTEGER NOT NULL,
    image INTEGER NOT NULL, label INTEGER NOT NULL, -- images count from 1
    center_column REAL, center_row REAL, -- of its bounding box, counted from 1
    angle REAL, slant REAL, size REAL, -- degrees, degrees, pixels
    PRIMARY KEY (study, seed, image))""",
}
# Created by the first net that needs it, so that the files of other studies do not have it.
_DISTORTED = """CREATE TABLE distorted (
    study TEXT NOT NULL, seed INTEGER NOT NULL, cell TEXT NOT NULL, net INTEGER NOT NULL,
    accuracy REAL NOT NULL,
    PRIMARY KEY (study, seed, cell, net))"""


@dataclass(frozen=True)
class Cell:
    """A recipe that a study trains `trials` times."""

    name: str
    recipe: Recipe
    trials: int


class Store:
    """An open file of results, a context manager that closes it.

    create: create the file if it does not exist. Raises DataError if it is another kind of file,
    OSError if it cannot be read or written.
    """

    def __init__(self, path, create=True):
        self.path = path
        if not create and not path.is_file():
            raise DataError(f"{path}: no such file, expected the results of minicnn.study")
        if path.exists() and not path.is_file():  # opening a pipe would block
            raise DataError(f"{path}: not a file, expected the results of minicnn.study")
        with self._faults():
            # Not read-only: SQLite must roll back what a killed process left unfinished.
            mode = "rwc" if create else "rw"
            uri = f"{path.resolve().as_uri()}?mode={mode}"
            self._connection = sqlite3.connect(uri, timeout=60, uri=True, isolation_level=None)
            self._connection.execute("PRAGMA trusted_schema = OFF")
            if create:
                with self._transaction():
                    if not self._tables():
                        for statement in _TABLES.values():
                            self._connection.execute(statement)
            tables = self._tables()
        if tables - {_DISTORTED} != set(_TABLES.values()):
            self._connection.close()
            raise DataError(f"{path}: has other tables, expected the results of minicnn.study")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._connection.close()

    def claim(self, study, seed, settings, labels, cells, varied=()):
        """Add a study and its cells, or check that the file has the same study already.

        varied: the fields in which the recipes of its cells may differ; () if its cells are always
        the same. More trials than before are recorded. Raises ValueError if the study in the file
        differs.
        """
        with self._transaction():
            known = self._rows("SELECT settings FROM study WHERE study=? AND seed=?", study, seed)
            if known:
                same = {name: value for name, value in settings.items() if name != "source"}
                same.setdefault("distorted")  # None: no distorted test images
                self._compare(f"the study {study}", _json(known[0][0]), same)
            blob = None if labels is None else labels.astype(_type_of_labels(settings)).tobytes()
            self._write("INSERT OR IGNORE INTO study", study, seed, json.dumps(settings), blob)
            at = self._rows("SELECT count(*) FROM cell WHERE study=? AND seed=?", study, seed)[0][0]
            for place, cell in enumerate(cells):
                key, recipe = (study, seed, cell.name), cell.recipe.as_dict()
                where = "study=? AND seed=? AND cell=?"
                old = self._rows(f"SELECT recipe, trials FROM cell WHERE {where}", *key)
                if not old:
                    values = at + place, json.dumps(recipe), cell.trials
                    self._write("INSERT INTO cell", *key, *values)
                    continue
                about = f"the study {study}" + f" ({cell.name})" * (len(cells) > 1)
                self._compare(about, _recipe(old[0][0]), recipe)
                if cell.trials > old[0][1]:
                    self._connection.execute(
                        f"UPDATE cell SET trials=? WHERE {where}", (cell.trials, *key)
                    )
            self._compare_cells(study, seed, cells, varied)

    def _compare_cells(self, study, seed, cells, varied):
        """Raise ValueError unless cells of earlier commands have the same recipe as these.

        Fields in `varied` may differ.
        """
        names = {cell.name for cell in cells}
        rows = self._rows("SELECT cell, recipe FROM cell WHERE study=? AND seed=?", study, seed)
        for name, recipe in rows:
            if name not in names and not varied:
                raise ValueError(
                    f"argument --out: {self.path} has the study {study} of the recipe "
                    f"{brief(name)}, got {cells[0].name}; choose another folder"
                )
            if name not in names:
                new = cells[0].recipe.as_dict()
                for field in varied:
                    del new[field]
                self._compare(f"the study {study} ({name})", _recipe(recipe), new)

    def _compare(self, what, old, new):
        for name, value in new.items():
            if not isinstance(old, dict) or old.get(name) != value:
                theirs = brief(str(old.get(name))) if isinstance(old, dict) else "nothing"
                raise ValueError(
                    f"argument --out: {self.path} has {what} with {name} {theirs}, got {value}; "
                    "choose another folder"
                )

    def trained(self, study, seed):
        """The set of (cell, net) of the trained nets."""
        with self._faults():
            rows = self._rows("SELECT cell, net FROM net WHERE study=? AND seed=?", study, seed)
            return set(rows)

    def add(self, study, seed, cell, nets, labels):
        """Add trained nets of a Cell in one transaction. nets: list of tasks.TrainedNet."""
        with self._transaction():
            for net in nets:
                trial = (net.net - 1) // cell.recipe.nets + 1
                accuracy = blob = None
                if net.probabilities is not None:
                    blob = net.probabilities.astype("<f4").tobytes()
                    if labels is not None:
                        accuracy = float(np.mean(net.probabilities.argmax(axis=1) == labels))
                history = [[row[name] for name in HISTORY_COLUMNS] for row in net.history]
                self._write(
                    "INSERT OR IGNORE INTO net",
                    *(study, cell.name, trial, seed, net.net),
                    *(accuracy, net.diverged and json.dumps(net.diverged), json.dumps(history)),
                    *(blob, json.dumps(net.made_by)),
                )
                if net.distorted_accuracy is not None:
                    if _DISTORTED not in self._tables():
                        self._connection.execute(_DISTORTED)
                    key = study, seed, cell.name, net.net
                    self._write("INSERT OR IGNORE INTO distorted", *key, net.distorted_accuracy)

    def add_images(self, study, seed, measures):
        """Replace the measures of the images. measures: a DataFrame with the table's columns."""
        with self._transaction():
            self._connection.execute("DELETE FROM image WHERE study=? AND seed=?", (study, seed))
            self._connection.executemany(
                "INSERT INTO image VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                ((study, seed, *row) for row in measures.itertuples(index=False)),
            )

    def studies(self):
        """[(study, seed)] in the order in which they were added."""
        with self._faults():
            return self._rows("SELECT study, seed FROM study ORDER BY rowid")

    def results(self, study, seed):
        """The Results of a study."""
        return Results(self, study, seed)

    def _tables(self):
        return {row[0] for row in self._rows("SELECT sql FROM sqlite_master WHERE sql NOT NULL")}

    def _rows(self, statement, *values):
        return self._connection.execute(statement, values).fetchall()

    def _write(self, statement, *values):
        marks = ", ".join("?" * len(values))
        self._connection.execute(f"{statement} VALUES ({marks})", values)

    @contextlib.contextmanager
    def _transaction(self):
        with self._faults():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # SQLite may have rolled back already
                    self._connection.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _faults(self):
        """Convert SQLite's errors to OSError (file not accessible) or DataError (bad content)."""
        try:
            yield
        except sqlite3.OperationalError as error:  # full disk, locked file, no permission
            raise OSError(f"{self.path}: {error}") from None
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise DataError(
                f"{self.path}: {error}, expected the results of minicnn.study"
            ) from None


class Results:
    """The results of a study of one seed.

    settings: a dict. input_shape, classes: as in Recipe. labels: of the test images, (N,) or None.
    By name of the cell, dicts: `cells` (recipes), `asked` (requested trials), `ensemble` (nets in
    an ensemble). nets: a DataFrame, one row per net. Raises DataError if the content is not valid.
    """

    def __init__(self, store, study, seed):
        self._store, self.study, self.seed = store, study, seed
        with store._faults():
            found = store._rows(
                "SELECT settings, labels FROM study WHERE study=? AND seed=?", study, seed
            )
            cells = store._rows(
                "SELECT cell, recipe, trials FROM cell WHERE study=? AND seed=? ORDER BY place",
                *(study, seed),
            )
            rows = store._rows(
                "SELECT cell, trial, net, accuracy, diverged, made_by FROM net "
                "WHERE study=? AND seed=? ORDER BY cell, net",
                *(study, seed),
            )
        with self._checked():
            settings, labels = found[0]
            self.settings = dict(_json(settings))
            about_data = Recipe(
                **{k: v for k, v in self.settings.items() if k in ("input_shape", "classes")}
            )
            self.input_shape, self.classes = about_data.input_shape, about_data.classes
            self.labels = None
            if labels is not None:
                self.labels = np.frombuffer(labels, _type_of_labels(self.settings))
            self.cells = {cell: recipe_of(_json(recipe)) for cell, recipe, _ in cells}
            self.asked = {cell: int(trials) for cell, _, trials in cells}
            self.ensemble = {cell: recipe.nets for cell, recipe in self.cells.items()}
            columns = ["cell", "trial", "net", "accuracy", "diverged", "made_by"]
            self.nets = pd.DataFrame(rows, columns=columns)
            self.nets = self.nets.astype({"trial": int, "net": int})
            self.nets["accuracy"] = [np.nan if row[3] is None else float(row[3]) for row in rows]
            self.nets["diverged"] = pd.Series([_json(row[4]) for row in rows], dtype=object)
            self.nets["made_by"] = [dict(_json(row[5])) for row in rows]
            _expect(set(self.nets["cell"]) <= set(self.cells))
            _expect(all(recipe.classes == self.classes for recipe in self.cells.values()))

    @property
    def is_mnist(self):
        """Whether the data set has the size of MNIST, so the notebook's results can be compared."""
        sizes = self.settings.get("train_images"), self.settings.get("test_images")
        return sizes == (60_000, 10_000)

    def trials(self, cell):
        """The numbers of a cell's complete trials: those with all nets trained."""
        counts = self.nets.loc[self.nets["cell"] == cell, "trial"].value_counts()
        return sorted(counts.index[counts >= self.ensemble[cell]])

    def accuracies(self, cell):
        """Test accuracies (n,) of the single nets in a cell's complete trials."""
        return np.concatenate([[], *self.by_trial(cell).values()])

    def distorted_accuracies(self, cell):
        """Accuracies (n,) on distorted test images of the nets in a cell's complete trials."""
        with self._store._faults():
            if _DISTORTED not in self._store._tables():
                return np.empty(0)
            rows = self._store._rows(
                "SELECT net, accuracy FROM distorted WHERE study=? AND seed=? AND cell=?",
                *(self.study, self.seed, cell),
            )
        with self._checked():
            complete, nets = set(self.trials(cell)), self.ensemble[cell]
            return np.array(
                [float(value) for net, value in rows if (net - 1) // nets + 1 in complete]
            )

    def by_trial(self, cell):
        """{trial: test accuracies (nets,) of its single nets} of a cell's complete trials."""
        nets = self.nets[self.nets["cell"] == cell]
        found = {}
        for trial in self.trials(cell):
            found[trial] = nets.loc[nets["trial"] == trial, "accuracy"].dropna().to_numpy()
        return found

    def probabilities(self, cell, trial):
        """Probabilities (nets, N, classes) of the test images by a trial's nets.

        Diverged nets are left out.
        """
        with self._store._faults():
            rows = self._store._rows(
                "SELECT probabilities FROM net WHERE study=? AND seed=? AND cell=? AND trial=? "
                "AND probabilities NOT NULL ORDER BY net",
                *(self.study, self.seed, cell, trial),
            )
        with self._checked():
            classes = len(self.classes)
            arrays = [np.frombuffer(row[0], "<f4").reshape(-1, classes) for row in rows]
            if not arrays:
                return np.empty((0, 0, classes), np.float32)
            images = len(arrays[0]) if self.labels is None else len(self.labels)
            _expect(all(len(array) == images and np.isfinite(array).all() for array in arrays))
            return np.stack(arrays)

    def ensembles(self, cell):
        """Test accuracies (trials, sizes) of ensembles: the first 1, 2, ... nets of each trial.

        Complete trials only. Diverged nets are left out; sizes that are then missing are NaN.
        Raises DataError if the labels of the test images are unknown.
        """
        if self.labels is None:
            raise DataError(f"{self._store.path}: has no labels of the test images, expected them")
        trials = self.trials(cell)
        accuracies = np.full((len(trials), self.ensemble[cell]), np.nan)
        for row, trial in zip(accuracies, trials, strict=True):
            sums = self.probabilities(cell, trial).cumsum(axis=0, dtype=np.float64)
            for size, of_size in enumerate(sums[: len(row)]):
                row[size] = np.mean(of_size.argmax(axis=1) == self.labels)
        return accuracies

    def whole(self, cell):
        """Test accuracies (n,) of the whole ensembles of complete trials.

        As in minicnn.train, diverged nets do not vote. Trials without any other net are left out.
        """
        rows = (row[~np.isnan(row)] for row in self.ensembles(cell))
        return np.array([row[-1] for row in rows if len(row)])

    def notes(self):
        """Lines to print beside the accuracies: how many nets diverged, if any did."""
        diverged = self.nets[self.nets["diverged"].notna()]
        if not len(diverged):
            return []
        ensembles = len(diverged.groupby(["cell", "trial"]))
        return [
            f"{len(diverged):,} of {len(self.nets):,} nets diverged and are left out: "
            f"{ensembles:,} of the ensembles have fewer nets than the others"
        ]

    def history(self, cell=None):
        """The histories of the nets of one cell, or of all: a DataFrame as in history.csv."""
        with self._store._faults():
            rows = self._store._rows(
                "SELECT cell, history FROM net WHERE study=? AND seed=? ORDER BY cell, net",
                *(self.study, self.seed),
            )
        with self._checked():
            lines = [line for name, text in rows if cell in (None, name) for line in _json(text)]
            table = pd.DataFrame(lines, columns=list(HISTORY_COLUMNS)).astype(float)
            return table.astype({"net": int, "epoch": int})

    def images(self):
        """The measures of the training images, a DataFrame."""
        columns = ["image", "label", "center_column", "center_row", "angle", "slant", "size"]
        with self._store._faults():
            rows = self._store._rows(
                f"SELECT {', '.join(columns)} FROM image WHERE study=? AND seed=? ORDER BY image",
                *(self.study, self.seed),
            )
        with self._checked():
            table = pd.DataFrame(rows, columns=columns).astype(float)
            return table.astype({"image": int, "label": int})

    @contextlib.contextmanager
    def _checked(self):
        try:
            yield
        except (ValueError, TypeError, KeyError, IndexError, RecursionError):
            raise DataError(
                f"{self._store.path}: the study {self.study} of seed {self.seed} is damaged, "
                "expected what minicnn.study writes"
            ) from None


def _type_of_labels(settings):
    return "<u2" if len(settings.get("classes", ())) > 256 else np.uint8


def _expect(condition):
    if not condition:
        raise ValueError


def _recipe(text):
    saved = _json(text)
    return completed(saved) if isinstance(saved, dict) else saved


def _json(text):
    return None if text is None else json.loads(text)
