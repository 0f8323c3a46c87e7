"""Checkpoints: a training run's state in one file, written whole or not at all.

A file is an .npz of plain arrays: `params`, `moving`, `moment_1` and `moment_2` (E, ...) with one
row a net, and a JSON text `about` with everything else, the arrays' SHA-256 included. Nothing in
it is ever unpickled.
"""

import hashlib
import json
import zipfile
import zlib

import numpy as np

from .files import DataError, atomic_write

FORMAT = 1


def save(path, arrays, about):
    """Write arrays {name: array (E, ...)} and `about`, a dict that JSON can hold. Raises OSError.

    `about` must have what load() checks: nets, step and history.
    """
    about = {**about, "format": FORMAT}
    about["sha256"] = _digest(arrays, about)
    text = np.frombuffer(json.dumps(about).encode(), np.uint8)
    with atomic_write(path) as file:
        np.savez(file, about=text, **arrays)


def load(path):
    """The (arrays, about) of a file. Raises DataError if it is not a whole checkpoint."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        about = json.loads(arrays.pop("about").tobytes())
        version = about["format"]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file, expected a checkpoint") from None
    except _NOT_A_CHECKPOINT:
        # What NumPy says of such a file ends in advice to unpickle it.
        raise DataError(f"{path}: not a whole checkpoint of minicnn") from None
    if version != FORMAT:
        raise DataError(f"{path}: got checkpoint format {version!r}, expected {FORMAT}")
    if about.pop("sha256", None) != _digest(arrays, about):
        raise DataError(f"{path}: the content does not match its checksum")
    _check(path, arrays, about)
    return arrays, about


_NOT_A_CHECKPOINT = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)


def _check(path, arrays, about):
    """The nets must be told apart, and everything must have as many rows as there are nets."""
    nets, step, history = (about.get(name) for name in ("nets", "step", "history"))
    if not _are_words(nets) or not nets or len(set(nets)) < len(nets):
        raise DataError(f"{path}: nets: got {_brief(nets)}, expected a list of different numbers")
    if not _are_words([step]):
        raise DataError(f"{path}: step: got {_brief(step)}, expected an integer from 0 on")
    rows = history if isinstance(history, list) else [None]
    if not all(isinstance(row, dict) and _are_words([row.get("net")]) for row in rows):
        raise DataError(f"{path}: history: got {_brief(history)}, expected rows of nets")
    for name, array in arrays.items():
        if array.ndim < 1 or len(array) != len(nets):
            raise DataError(f"{path}: {name}: got shape {array.shape}, expected {len(nets)} rows")


def _are_words(values):
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value < 2**32 for value in values
    )


def model_state(model):
    """What training has made of a model: ({name: array}, {name: value}) for `save`."""
    to_host = model.ops.to_host
    arrays = {name: to_host(getattr(model, name)) for name in _ARRAYS}
    about = {
        "nets": [int(net) for net in model.nets],
        "seed": model.seed,
        "step": int(to_host(model.step)[0]),
        "history": [],
        "network": {name: list(view.shape[1:]) for name, view in model.named_weights.items()},
    }
    return arrays, about


def restore_model(model, arrays, about, path):
    """Give a model the state that `load` read from `path`. Raises DataError if it does not fit."""
    _, expected = model_state(model)
    for name in ("network", "nets", "seed"):
        if about.get(name) != expected[name]:
            raise DataError(
                f"{path}: {name}: got {_brief(about.get(name))}, expected {_brief(expected[name])}"
            )
    for name in _ARRAYS:
        target, array = getattr(model, name), arrays.get(name)
        if array is None or array.shape != target.shape or array.dtype.kind != "f":
            raise DataError(f"{path}: {name}: expected an array {target.shape} of floats")
    with model.ops.session():
        for name in _ARRAYS:
            target = getattr(model, name)
            model.ops.copy(model.ops.to_device(arrays[name].astype(model.dtype)), target)
        model.step[...] = about["step"]


def select(arrays, about, nets, path):
    """The state of some nets, (arrays, about), from that of all in a file."""
    rows = []
    for net in nets:
        if int(net) not in about["nets"]:
            raise DataError(f"{path}: does not hold net {int(net) + 1}")
        rows.append(about["nets"].index(int(net)))
    chosen = [int(net) for net in nets]
    history = [row for row in about["history"] if row["net"] - 1 in chosen]
    return {k: v[rows] for k, v in arrays.items()}, {**about, "nets": chosen, "history": history}


def concatenate(states):
    """One state (arrays, about) of all nets from the states of several groups of nets."""
    arrays, abouts = zip(*states, strict=True)
    merged = {name: np.concatenate([a[name] for a in arrays]) for name in arrays[0]}
    nets = [net for about in abouts for net in about["nets"]]
    history = [row for about in abouts for row in about["history"]]
    return merged, {**abouts[0], "nets": nets, "history": history}


_ARRAYS = "params", "moving", "moment_1", "moment_2"


def _digest(arrays, about):
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        digest.update(array)
    return digest.hexdigest()


def _brief(value):
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."
