"""Files: the error for a bad one, writing one whole or not at all, folders in use, caches.

Everything that is read from outside goes wrong with a DataError, everything that is written goes
through `atomic_write`. Read data/load.py next.
"""

import contextlib
import os
import secrets
import sys
import warnings
from pathlib import Path

try:
    import fcntl
except ImportError:  # there is none on Windows
    fcntl = None


class DataError(ValueError):
    """Bad input. The message is one line: the file, the row or field, what it held, what it should.

    Parts of it come from files, paths and servers that nobody has checked: it is printable.
    """

    def __init__(self, message):
        super().__init__(printable(message))


def brief(value, most=60):
    """A value as a text of no more than so many characters and three dots."""
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= most else text[:most] + "..."


def printable(text):
    """A text with all characters escaped that would break its line or steer a terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


@contextlib.contextmanager
def atomic_write(path):
    """A binary file to write and read, which takes the place of `path` when the block ends well.

    Until then, and for ever if the block fails or the process dies, `path` is what it was. Raises
    OSError, which always names a file.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        # Not `tempfile`: its files are readable by their owner only, and would stay so.
        with open(temporary, "x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        # "No space left on device" does not say where, and nobody knows the temporary file's name.
        if isinstance(error, OSError) and error.filename in (None, temporary, str(temporary)):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from None
        raise


def _sync_folder(folder):
    """Make a new name in a folder outlast a power failure, where the system has a way to."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_unfinished(folder):
    """Remove what processes that were killed in an `atomic_write` have left in a folder."""
    for path in Path(folder).glob(".*.????????.tmp"):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def in_use(folder, alone=False):
    """Within this context a folder is in use; with `alone` only if it is not yet.

    The mark is a lock of the system's, which ends with the process that holds it, however that
    ends. Raises DataError where another process has the folder in use alone, or, with `alone`, at
    all. Where there are no such locks a warning says so.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        if alone:  # then others that work for this process may come in
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
            f"{folder}: in use by another process, expected a folder that is free; wait until "
            "that has ended, or choose another"
        ) from None
    except OSError as error:  # some network file systems have none
        message = f"{folder}: cannot be locked ({error.strerror}); use it in one process at a time"
        warnings.warn(message, stacklevel=4)


def cache_folder():
    """The user's cache folder for this program, a Path; it need not exist yet.

    $MINICNN_CACHE where that is set, else what the system has for caches. Raises DataError where
    the user has no home folder.
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
