"""Files: the error for a bad one, writing one whole or not at all, and where caches live.

Everything that is read from outside goes wrong with a DataError, everything that is written goes
through `atomic_write`. Read data.py next.
"""

import contextlib
import os
import secrets
import sys
from pathlib import Path


class DataError(ValueError):
    """Bad input. The message is one line: the file, the row or field, what it held, what it should.

    Characters that would break the line or steer a terminal are escaped, since parts of a message
    come from files, paths and servers that nobody has checked.
    """

    def __init__(self, message):
        super().__init__(
            "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(message)),
        )


@contextlib.contextmanager
def atomic_write(path):
    """A binary file to write, which takes the place of `path` when the block ends well.

    Until then, and for ever if the block fails or the process dies, `path` is what it was. Raises
    OSError, which always names a file.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        # Not `tempfile`: its files are readable by their owner only, and would stay so.
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        # "No space left on device" does not say where, and nobody knows the temporary file's name.
        if isinstance(error, OSError) and error.filename in (None, temporary, str(temporary)):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from None
        raise


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
