"""Files: the error for bad input, atomic writes, locks on folders, and the cache folder.

A fault in a file from outside raises DataError. Results are written by `atomic_write`, except for
the database of the studies (studies/store.py). Read data/load.py next.
"""

import contextlib
import os
import secrets
import sys
import warnings
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None


class DataError(ValueError):
    """Bad input. The message is one line: file, row or field, what it held, what was expected.

    The message may quote files, paths and servers, so unprintable characters in it are escaped.
    """

    def __init__(self, message):
        super().__init__(printable(message))


def brief(value, most=60):
    """A value as text, shortened to `most` characters and three dots if it is longer."""
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= most else text[:most] + "..."


def printable(text):
    """A text with line breaks, terminal controls and all other unprintable characters escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


@contextlib.contextmanager
def atomic_write(path):
    """A context with a binary file, open for writing and reading, that replaces `path` at the end.

    If the block raises an error or the process dies, `path` stays as it was. Raises OSError, always
    with a file name.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        # Not `tempfile`: only the owner may read its files, and os.replace keeps the permissions.
        with open(temporary, "x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        # "No space left on device" names no file, and the user does not know the temporary one.
        if isinstance(error, OSError) and error.filename in (None, temporary, str(temporary)):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from None
        raise


def _sync_folder(folder):
    """Write a folder's entries to disk, so that they survive a power failure, if the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_unfinished(folder):
    """Remove the temporary files in a folder of processes that were killed in `atomic_write`."""
    for path in Path(folder).glob(".*.????????.tmp"):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def in_use(folder, alone=False):
    """A context in which this process holds a shared lock on a folder.

    With `alone`, no process may have locked the folder before; later ones may, without `alone`, as
    a run's workers do. Raises DataError if the folder is locked, or if another process is just
    taking the lock with `alone`. The operating system releases a lock when its process ends. Warns
    if the file system has no locks; on Windows it does nothing.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        if alone:  # exclusive first, then shared: this process's workers lock the folder as well
            _lock(folder, handle, fcntl.LOCK_EX)
        _lock(folder, handle, fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)


def _lock(folder, handle, kind):
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DataError(
            f"{folder}: in use by another process; wait until it ends, or choose another folder"
        ) from None
    except OSError as error:  # some network file systems have no locks
        message = f"{folder}: cannot be locked ({error.strerror}); use it in one process at a time"
        warnings.warn(message, stacklevel=4)


def cache_folder():
    """The folder for this program's downloads and compiled code, a Path; it may not exist yet.

    $MINICNN_CACHE if that is set, else `minicnn` in the system's folder for caches. Raises
    DataError if the user has no home folder.
    """
    if os.environ.get("MINICNN_CACHE"):
        return Path(os.environ["MINICNN_CACHE"])
    caches = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not caches.is_absolute():  # the XDG specification says to ignore a relative path
        try:
            home = Path.home()
        except RuntimeError:
            raise DataError("no home folder: set MINICNN_CACHE to a folder for downloads") from None
        if sys.platform == "win32":
            caches = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
        elif sys.platform == "darwin":
            caches = home / "Library" / "Caches"
        else:
            caches = home / ".cache"
    return caches / "minicnn"
