"""Checkpoints: save, load, check, select and merge the training state of E nets.

A state is a pair of dicts, (arrays, about):

- arrays: `params` (E, P) and Adam's `moment_1` and `moment_2` (E, P); `moving`, the moving
  statistics of batch normalisation, (E, M); `sums` (E, 3), the metrics of the epoch so far;
  `history`, one row for each net and epoch, columns HISTORY_COLUMNS. Until the end of the last
  epoch of a training that averages its weights, also `averaged` (E, P), their averages so far.
- about: the rest: net numbers (from 0), step, seed, recipe, architecture, data set, diverged nets.
  Rows of `history` and of `diverged` count nets from 1.

archive.py defines the file format and explains how files from an unknown source are read safely.
"""

from concurrent.futures import ThreadPoolExecutor
from math import isfinite, isnan, nan

import numpy as np

from ..files import DataError, brief
from ..network.stack import weights_layout
from . import archive

HISTORY_COLUMNS = (
    "net",
    "epoch",
    "learning_rate",  # of the epoch's last step
    "train_loss",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
    "seconds",
)
MAX_NETS = 10_000

MODEL_ARRAYS = "params", "moving", "moment_1", "moment_2"
_ARRAYS = *MODEL_ARRAYS, "sums", "history"
AVERAGED = "averaged"  # the one array that a state may lack


def save(path, arrays, about):
    """Write a state to a file atomically. Raises OSError."""
    names = (*_ARRAYS, AVERAGED) if AVERAGED in arrays else _ARRAYS
    archive.write(path, {name: arrays[name] for name in names}, about)


class Saver:
    """Saves states in a thread, so that the next epoch trains meanwhile; a context manager.

    At its end all states are on disk. While the context lasts, a state is saved once `wait` returns
    or the next one is being written. An error of a write is raised by the call after it.
    """

    def __init__(self):
        self._thread, self._last = ThreadPoolExecutor(1), None
        self._arrays = {}  # of the last state, used again: new memory is slower to write

    def save(self, path, take):
        """Begin to write the state that take(into) returns: see Trainer.state. Raises OSError.

        It takes the memory of the last state, once that is on disk.
        """
        self.wait()
        self._arrays, about = take(self._arrays)
        self._last = self._thread.submit(save, path, self._arrays, about)

    def wait(self):
        """Wait until the last state is on disk. Raises OSError."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        try:
            if error is None:
                self.wait()
        finally:
            self._thread.shutdown()  # waits, too


def load(path):
    """The state (arrays, about) in a file. Raises DataError if it is not a valid checkpoint.

    check_shapes and restore_model check the rest: whether the arrays fit a network.
    """
    arrays, about = archive.read(path, _ARRAYS, AVERAGED)
    for name, (expected, is_fine) in _FIELDS.items():
        if not is_fine(about.get(name)):
            raise DataError(f"{path}: {name}: got {_shown(about.get(name))}, expected {expected}")
    nets = about["nets"]
    for name, array in arrays.items():
        rows = len(array) if name == "history" else len(nets)
        if array.dtype.kind != "f" or array.ndim != 2 or len(array) != rows:
            raise DataError(
                f"{path}: {name}: got shape {array.shape} of {array.dtype}, expected floats in "
                f"{len(nets)} rows, one a net"
            )
    steps = about.get("steps")
    if steps is not None and (len(steps) != len(nets) or max(steps) > about["step"]):
        raise DataError(
            f"{path}: steps: got {_shown(steps)}, expected {len(nets)} numbers, at most the step "
            f"{about['step']}"
        )
    if len(set(nets)) < len(nets):
        raise DataError(f"{path}: nets: got {_shown(nets)}, expected different numbers")
    if strangers := {row["net"] - 1 for row in about["diverged"]} - set(nets):
        raise DataError(
            f"{path}: diverged: got net {min(strangers) + 1}, expected a net of the file"
        )
    _check_history(path, arrays["history"], nets)
    return arrays, about


def _check_history(path, table, nets):
    """Raise DataError unless each row of the history belongs to one of `nets` and is valid.

    Only the validation columns may be NaN.
    """
    if table.dtype != np.float64 or table.shape[1] != len(HISTORY_COLUMNS):
        raise DataError(
            f"{path}: history: got shape {table.shape} of {table.dtype}, expected rows of "
            f"{len(HISTORY_COLUMNS)} numbers"
        )
    rules = {
        "net": ("a net of the file", lambda v: np.isin(v - 1, nets)),
        "epoch": ("a positive integer", lambda v: (v >= 1) & (v < 2**32) & (v == np.floor(v))),
        "validation_loss": ("a number or none", lambda v: ~np.isinf(v)),
        "validation_accuracy": ("a number or none", lambda v: ~np.isinf(v)),
    }
    for name, values in zip(HISTORY_COLUMNS, table.T, strict=True):
        expected, is_fine = rules.get(name, ("a number", np.isfinite))
        bad = np.flatnonzero(~is_fine(values))
        if len(bad):
            raise DataError(
                f"{path}: history: row {bad[0] + 1}, {name}: got {values[bad[0]]}, expected "
                f"{expected}"
            )


def history_table(rows):
    """A history, a list of dicts, as an array (rows, columns), with NaN for None."""
    values = [[nan if row[n] is None else row[n] for n in HISTORY_COLUMNS] for row in rows]
    return np.array(values, np.float64).reshape(-1, len(HISTORY_COLUMNS))


def history_rows(table):
    """The inverse of history_table: a list of dicts from an array."""
    rows = [dict(zip(HISTORY_COLUMNS, values, strict=True)) for values in table.tolist()]
    for row in rows:
        row["net"], row["epoch"] = int(row["net"]), int(row["epoch"])
        for name in ("validation_loss", "validation_accuracy"):
            row[name] = None if isnan(row[name]) else row[name]
    return rows


def _is_uint32(value):
    return type(value) is int and 0 <= value < 2**32


def _are_uint32(values):
    return isinstance(values, list) and all(map(_is_uint32, values))


def _are_nets(values):
    return _are_uint32(values) and 1 <= len(values) <= MAX_NETS


def _are_sizes(value):
    return isinstance(value, dict) and all(map(_are_uint32, value.values()))


def _are_steps(values):
    return isinstance(values, list) and all(
        isinstance(row, dict)
        and set(row) == {"net", "epoch", "step"}
        and all(_is_uint32(value) and value >= 1 for value in row.values())
        for row in values
    )


# {field: (what is expected, a function that checks the value)}
_FIELDS = {
    "nets": (f"a list of 1 to {MAX_NETS} numbers", _are_nets),
    "seed": ("an integer from 0 to 4294967295", _is_uint32),
    "step": ("an integer from 0 to 4294967295", _is_uint32),
    "seconds": ("a number from 0 up", lambda v: type(v) is float and isfinite(v) and v >= 0),
    "recipe": ("a recipe's fields", lambda v: isinstance(v, dict)),
    # None in files of earlier versions; the next two are only in those of Sequential.save
    "architecture": ("an architecture", lambda v: v is None or isinstance(v, dict)),
    "optimizer": ("Adam's settings", lambda v: v is None or isinstance(v, dict)),
    "steps": ("a number for each net", lambda v: v is None or _are_uint32(v)),
    "data": ("the data's fingerprint", lambda v: isinstance(v, str)),
    "network": ("the shape of each weight", _are_sizes),
    "diverged": ("a list of {net, epoch, step}", _are_steps),
}


def model_state(model, into=None):
    """The part of a state that a model holds: ({name: array}, {field: value}).

    into: see Trainer.state.
    """
    to_host, into = model.ops.to_host, into or {}
    arrays = {name: to_host(getattr(model, name), into.get(name)) for name in MODEL_ARRAYS}
    about = {
        "nets": [int(net) for net in model.nets],
        "seed": model.seed,
        "step": int(to_host(model.step)[0]),
        "network": {name: list(view.shape[1:]) for name, view in model.named_weights.items()},
    }
    return arrays, about


def check_shapes(path, arrays, nodes):
    """Raise DataError if the arrays of a file do not fit a network. Needs no model of it."""
    nets = len(arrays["params"])
    for name, (shape, _) in weights_layout(nodes, nets, np.dtype(np.float32)).items():
        if name in MODEL_ARRAYS and arrays[name].shape != shape:
            raise DataError(f"{path}: {name}: got shape {arrays[name].shape}, expected {shape}")
    averaged = arrays.get(AVERAGED)
    if averaged is not None and averaged.shape != arrays["params"].shape:
        expected = arrays["params"].shape
        raise DataError(f"{path}: {AVERAGED}: got shape {averaged.shape}, expected {expected}")


def restore_model(model, arrays, about, path):
    """Copy the state that `load` read from `path` into a model. Raises DataError if unfit."""
    expected = {
        "network": {name: list(view.shape[1:]) for name, view in model.named_weights.items()},
        "nets": [int(net) for net in model.nets],
        "seed": model.seed,
    }
    for name, value in expected.items():
        if about[name] != value:
            raise DataError(f"{path}: {name}: got {_shown(about[name])}, expected {_shown(value)}")
    check_shapes(path, arrays, model.nodes)
    with model.ops.session():
        for name in MODEL_ARRAYS:
            target = getattr(model, name)
            model.ops.copy(model.ops.to_device(arrays[name].astype(model.dtype)), target)
        model.step[...] = about["step"]


def select(arrays, about, nets, path):
    """The state (arrays, about) of `nets` only. Raises DataError if one is missing."""
    places = {net: row for row, net in enumerate(about["nets"])}
    chosen = [int(net) for net in nets]
    for net in chosen:
        if net not in places:
            raise DataError(f"{path}: does not hold net {net + 1}")
    rows = [places[net] for net in chosen]
    history = arrays["history"]
    selected = {name: array[rows] for name, array in arrays.items() if name != "history"}
    selected["history"] = history[np.isin(history[:, 0] - 1, chosen)]
    numbers = set(chosen)
    diverged = [row for row in about["diverged"] if row["net"] - 1 in numbers]
    chosen_about = {**about, "nets": chosen, "diverged": diverged}
    if about.get("steps") is not None:
        chosen_about["steps"] = [about["steps"][row] for row in rows]
    return selected, chosen_about


def concatenate(states):
    """Merge the states of several groups of trained nets into one state (arrays, about).

    Raises ValueError for nets whose training is not complete: which still have averages.
    """
    for arrays, about in states:
        trained = {net + 1 for net in about["nets"]} - {row["net"] for row in about["diverged"]}
        if AVERAGED in arrays and trained:
            raise ValueError(
                f"{AVERAGED}: got a state of net {min(trained)} with averages, expected none "
                "after the last epoch"
            )
    arrays, abouts = zip(*states, strict=True)
    merged = {name: np.concatenate([a[name] for a in arrays]) for name in _ARRAYS}
    joined = {**abouts[0], "step": max(about["step"] for about in abouts)}
    for name in ("nets", "diverged"):
        joined[name] = [value for about in abouts for value in about[name]]
    return merged, joined


def _shown(value):
    return brief(repr(value))
