"""A fake task for worker processes: it watches how many threads it may use, epoch by epoch.

A task is a list of acts, done one after the other:
- a number: epochs follow each other until one has so many threads
- "NAME": leave a file of this name in the task's folder
- "await NAME": wait for that file
- "die": end the process, unless a file "died" shows that one did
- "stopped": wait for a stop request
"""

import os
import time

from minicnn import machine
from minicnn.training import workers

CORES = 4  # that a machine of these tasks has
_PATIENCE = 60  # seconds


def play(folder, acts, report=None, should_stop=workers.should_stop):
    """Do a task. Returns its different numbers of threads, in their order."""
    machine.cores = lambda: CORES
    had = []

    def epoch_has(threads):
        workers.take_cores()
        if had[-1:] != [machine.threads()]:
            had.append(machine.threads())
        return had[-1] == threads

    for act in acts:
        if act == "die" and not (folder / "died").exists():
            (folder / "died").touch()
            os._exit(7)
        elif act == "stopped":
            _wait(should_stop, act, had)
            raise workers.Interrupted
        elif isinstance(act, int):
            _wait(lambda act=act: epoch_has(act), act, had)
        elif act.startswith("await "):
            _wait((folder / act.removeprefix("await ")).exists, act, had)
        else:
            (folder / act).touch()
    return had


def _wait(condition, act, had):
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{act} after {had}"
        time.sleep(0.01)
