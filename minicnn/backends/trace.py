"""MINICNN_TRACE=1: see what one training step runs, on any device.

Each launch or call of a kernel prints a line to stderr: its file and name, its grid and block (on a
CPU, for how many nets it is called), and its twin, the NumPy function of the operation that it
belongs to: in ops_numpy.py or, for fused blocks, in tests/block_oracles.py. A kernel that serves
several operations names one twin: on a CPU the gradient with respect to x runs `correlate`, too,
whose twin is `conv2d`. Operations that run in NumPy print their name. Only the first step of the
first net's group prints.

    MINICNN_TRACE=1 python -m minicnn.train --device cpu --limit 640 --nets 1 --epochs 1
"""

import contextlib
import os
import sys
import threading

from . import ops_numpy


class _State(threading.local):
    printing = False  # in this thread


_state = _State()


def is_wanted():
    """Whether the user asked for a trace."""
    return os.environ.get("MINICNN_TRACE") == "1"


@contextlib.contextmanager
def printing():
    """Within this context each kernel and each NumPy operation prints a line, if asked for."""
    if not is_wanted():
        yield
        return
    before = sys.getprofile()
    _state.printing = True
    sys.setprofile(_numpy_operation)
    try:
        yield
    finally:
        sys.setprofile(before)
        _state.printing = False


def kernel(where, size, twin):
    """Print a kernel that is about to run: "file: name", its size, and the name of its twin."""
    if _state.printing:
        print(f"{where:<54} {size:<38} twin: {twin}", file=sys.stderr, flush=True)


def _numpy_operation(frame, event, _):
    """Called by Python at each event: print the calls of ops_numpy's functions from elsewhere."""
    ours = vars(ops_numpy)
    if event == "call" and frame.f_globals is ours and frame.f_back.f_globals is not ours:
        print(f"ops_numpy.py: {frame.f_code.co_name}", file=sys.stderr, flush=True)
