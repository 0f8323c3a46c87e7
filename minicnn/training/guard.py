"""Scripts that lack the guard `if __name__ == "__main__":`, which worker processes need.

A new process imports the main script. A script that calls this program outside the guard would then
start the same work in each worker process, and those again. expect_guard refuses such a script
before it has a worker process, where that is certain. check_guard ends a process that starts the
work again; its parent (workers.py) raises UnguardedScriptError.
"""

import multiprocessing
import os
import sys
import threading
from contextlib import contextmanager
from multiprocessing.process import ORIGINAL_DIR
from pathlib import Path

WORKER = "minicnn worker"  # the name of a worker process
UNGUARDED = 77  # exit status of a worker process that check_guard ended
_NOT_IMPORTED = "__main__", "ipython"  # main scripts that new processes never import


class UnguardedScriptError(SystemExit):
    """The main script calls this program outside `if __name__ == "__main__":`.

    It is a mistake in the script, so it ends the script: one line on stderr, without a traceback.
    """

    def __init__(self):
        super().__init__(
            f"{_main_script() or 'the main script'}: each worker process imports this script and "
            'would start the work again; call it under `if __name__ == "__main__":`, or with one '
            "worker"
        )


def check_guard():
    """End the process if it is a new one that starts the work of the main script again.

    Everything that a script without the guard must not start a second time calls this first. A
    worker process ends without a word, for its parent to report. One that the script itself has
    started raises UnguardedScriptError while it imports the script.
    """
    process = multiprocessing.current_process()
    if process.name == WORKER:
        os._exit(UNGUARDED)  # SystemExit could be caught by the script
    if getattr(process, "_inheriting", False):  # as in multiprocessing's own check
        raise UnguardedScriptError


def expect_guard():
    """As check_guard, and raise UnguardedScriptError if the main script clearly has no guard.

    That is before a worker process exists: the top level of the script called this function, and
    the script mentions nothing that can tell a new process from the first one.
    """
    check_guard()
    path, frame = _main_script(), sys._getframe()
    if path is None or path.stem in _NOT_IMPORTED:
        return
    names = vars(sys.modules["__main__"])
    while frame and (frame.f_globals is not names or frame.f_code.co_name != "<module>"):
        frame = frame.f_back
    if frame:
        text = path.read_text(errors="replace")
        if "__name__" not in text and "multiprocessing" not in text:
            raise UnguardedScriptError


def _main_script():
    """The path of the main script; None if it is no file, as in a notebook."""
    name = getattr(sys.modules["__main__"], "__file__", None)
    path = Path(ORIGINAL_DIR or "", name or "")
    return path if name and path.is_file() else None


_starting = threading.Lock()


@contextmanager
def main_script_as_file():
    """Hide a main script that new processes cannot read: one that came through a pipe.

    Python gives it a file name such as "<stdin>", and multiprocessing would look for that file.
    """
    with _starting:
        main = sys.modules["__main__"]
        name = getattr(main, "__file__", None)
        hidden = name is not None and getattr(main, "__spec__", None) is None
        hidden = hidden and _main_script() is None
        if hidden:
            main.__file__ = None
        try:
            yield
        finally:
            if hidden:
                main.__file__ = name
