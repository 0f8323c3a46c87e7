"""Downloads MNIST's four files, once, into the user's cache folder.

No server is trusted. Each read has a time-out, size and total time are limited, and a file is kept
only if its decompressed content has the known SHA-256.
"""

import gzip
import hashlib
import http.client
import io
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from pathlib import Path

from ..files import DataError, atomic_write, cache_folder
from ..progress import counter

MIRRORS = (
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
)

# name: (bytes, SHA-256) of the decompressed content
FILES = {
    "train-images-idx3-ubyte.gz": (
        47_040_016,
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    "train-labels-idx1-ubyte.gz": (
        60_008,
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    "t10k-images-idx3-ubyte.gz": (
        7_840_016,
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    "t10k-labels-idx1-ubyte.gz": (
        10_008,
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
}

_PIECE = 1 << 16
_SLOWEST = 2_000  # bytes a second, on average: a slow trickle never triggers the time-out of a read


class _WrongContentError(Exception):
    """A server sent something other than the requested file, or sent it too slowly."""


def fetch_mnist(folder=None, mirrors=MIRRORS, timeout=20, progress=True):
    """Download the MNIST files that are absent or damaged. Returns their folder, a Path.

    folder: where to keep the four .gz files (default: in the user's cache folder); mirrors: URLs of
    folders, tried in order; timeout: seconds for connecting and for each read; progress: whether to
    show progress bars on stderr. Raises DataError, which says what failed at each mirror and what
    to do without a network.
    """
    folder = cache_folder() / "mnist" if folder is None else Path(folder)
    mirrors = list(mirrors)
    for name in FILES:
        path = folder / name
        if _is_cached(path):
            continue
        mirror, content = _try_mirrors(name, mirrors, timeout, progress)
        # The next file tries this mirror first. Otherwise each file would wait for a dead mirror.
        mirrors.remove(mirror)
        mirrors.insert(0, mirror)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                file.write(content)
        except OSError as error:
            raise DataError(
                f"{path}: cannot be written: {error.strerror or error};"
                " set MINICNN_CACHE to a writable folder"
            ) from None
    return folder


def _is_cached(path):
    try:
        with open(path, "rb") as file:
            return _sha256(path.name, file) == FILES[path.name][1]
    except (OSError, EOFError, zlib.error):  # absent or damaged: downloaded again
        return False


def _sha256(name, file):
    """SHA-256 of the decompressed content, read up to one byte past the expected size."""
    digest, left = hashlib.sha256(), FILES[name][0] + 1
    with gzip.open(file, "rb") as stream:
        while left and (piece := stream.read(min(left, 1 << 20))):
            digest.update(piece)
            left -= len(piece)
    return digest.hexdigest()


def _try_mirrors(name, mirrors, timeout, progress):
    """(mirror, content): the first mirror that has the right file, and its compressed bytes."""
    reasons = []
    for mirror in mirrors:
        try:
            content = _download(f"{mirror.rstrip('/')}/{name}", name, timeout, progress)
            if _sha256(name, io.BytesIO(content)) != FILES[name][1]:
                raise _WrongContentError("wrong file (its SHA-256 is not MNIST's)")
            return mirror, content
        except (OSError, http.client.HTTPException, _WrongContentError) as error:
            reason = _reason(error, timeout)
        except (EOFError, zlib.error):
            reason = "truncated or damaged"
        reasons.append(f"{urllib.parse.urlsplit(mirror).netloc}: {reason}")
    raise DataError(
        f"mnist: cannot download {name} ({'; '.join(reasons)}); without the network, use"
        " --data digits, or put MNIST's four IDX files in a folder and use --data DIR"
    )


def _download(url, name, timeout, progress):
    # The limit is on compressed bytes: a gzip stream is hardly longer than its content.
    limit = FILES[name][0] + FILES[name][0] // 100 + 4096
    request = urllib.request.Request(url, headers={"User-Agent": "minicnn"})
    start, content = time.monotonic(), bytearray()
    with (
        urllib.request.urlopen(request, timeout=timeout) as response,
        counter(None, "B", quiet=not progress, name=name) as bar,
    ):
        if (response.length or limit) < limit:  # for display only: it may be wrong
            bar.total = response.length
        # read1 returns what has arrived; read would wait for the whole piece.
        while piece := response.read1(_PIECE):
            content += piece
            bar.update(len(piece))
            if len(content) > limit:
                raise _WrongContentError(f"more than {limit} bytes")
            if time.monotonic() - start > timeout + len(content) / _SLOWEST:
                raise _WrongContentError(f"less than {_SLOWEST} bytes a second")
    return bytes(content)


def _reason(error, timeout):
    """Why a download failed, in a few words."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        return f"HTTP {error.code}"
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        error = error.reason
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout} s"
    if isinstance(error, gzip.BadGzipFile):
        return "not a gzip file"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
