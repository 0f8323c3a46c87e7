"""Check out an earlier commit of this repository, so that its minicnn is measured beside this one.

contenders/commit_net.py runs it.
"""

import contextlib
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import contenders
from minicnn.files import printable

ROOT = Path(__file__).parent.parent
NEEDED = "minicnn/recipe.py", "benchmarks/contenders/minicnn_net.py"  # what commit_net.py imports


class CommitError(Exception):
    """A commit cannot be checked out or measured; the message says why in one line."""


@contextlib.contextmanager
def added(revision, plan):
    """(a plan of frameworks.py with a commit as one more contender, {}), within the context.

    (plan, {contender: why}) if the commit cannot be checked out; (plan, {}) if `revision` is None.
    """
    with contextlib.ExitStack() as stack:
        left_out = {}
        try:
            if revision:
                earlier = contenders.at_commit(*stack.enter_context(checked_out(revision)))
                plan = [([*given, earlier], *rest) for given, *rest in plan]
        except CommitError as error:
            name = contenders.at_commit(revision).name
            left_out[name] = str(error)
            print(f"{name}: left out: {error}", file=sys.stderr)
        yield plan, left_out


@contextlib.contextmanager
def checked_out(revision, root=ROOT):
    """(a commit's short name, the folder with its files) within the context; then it is removed.

    revision: any name that git knows. The folder is a worktree (git worktree) of the repository at
    `root`. It is removed after an error, Ctrl-C and SIGTERM, too. Raises CommitError.
    """
    unknown = f"git knows no commit {revision!r}; a shallow clone has only the newest"
    question = "rev-parse", "--verify", "--quiet", "--short", f"{revision}^{{commit}}"
    name = _git(root, *question, silent=unknown)
    with _exit_on_sigterm(), tempfile.TemporaryDirectory(prefix="minicnn-commit-") as temporary:
        folder = Path(temporary).resolve() / name
        try:
            _git(root, "worktree", "add", "--detach", folder, name)
            for path in NEEDED:
                if not (folder / path).exists():
                    raise CommitError(f"the commit has no {path}, with which it would be measured")
            yield name, folder
        finally:
            with contextlib.suppress(CommitError):  # it was not added
                _git(root, "worktree", "remove", "--force", folder)  # holds compiled Python


def _git(root, *words, silent="failed"):
    """What a git command prints.

    Raises CommitError if it fails: with the last line that it prints on stderr, or `silent`.
    """
    try:
        done = subprocess.run(
            ["git", "-C", root, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise CommitError(f"git does not run: {error.strerror}") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        message = f"git {words[0]}: {lines[-1].removeprefix('fatal: ')}" if lines else silent
        raise CommitError(printable(message))
    return done.stdout.strip()


@contextlib.contextmanager
def _exit_on_sigterm():
    """SIGTERM within raises SystemExit, so that contexts end in order; in the main thread only."""
    try:
        before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    except ValueError:  # another thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
