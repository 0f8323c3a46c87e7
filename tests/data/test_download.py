import gzip
import hashlib
import http.server
import os
import socket
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from digit_files import MNIST, digits, idx_bytes, needs_mnist

from minicnn import files
from minicnn.data import download
from minicnn.data.download import fetch_mnist
from minicnn.data.load import DataError, load_data

TRAIN, TEST = digits(4, seed=1), digits(2, seed=2)
CONTENT = dict(zip(download.FILES, map(idx_bytes, (*TRAIN, *TEST)), strict=True))
GOOD = {name: gzip.compress(content) for name, content in CONTENT.items()}
FIRST = next(iter(GOOD))


@pytest.fixture(autouse=True)
def _small_mnist(monkeypatch):
    """MNIST of four training and two test images; no proxy is used for localhost."""
    for name, content in CONTENT.items():
        known = len(content), hashlib.sha256(content).hexdigest()
        monkeypatch.setitem(download.FILES, name, known)
    monkeypatch.setenv("no_proxy", "*")


class Server:
    """A mirror on localhost; `answer(handler, name)` serves each file, `asked` lists the names."""

    def __init__(self, answer):
        self.asked = asked = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                name = self.path.rpartition("/")[2]
                asked.append(name)
                answer(self, name)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.host = f"127.0.0.1:{self.server.server_port}"
        self.url = f"http://{self.host}/mnist/"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()


@pytest.fixture
def serve():
    servers = []

    def start(answer):
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.server.shutdown()
        server.server.server_close()


@pytest.fixture
def silent():
    """The address of a socket that accepts a connection and sends nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def send(content, length=None, status=200):
    """An answer with this content, under a Content-Length that may be wrong."""

    def answer(handler, name):
        body = content[name] if isinstance(content, dict) else content
        handler.send_response(status)
        if length != "":
            handler.send_header("Content-Length", str(length or len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


good = send(GOOD)


def endless(handler, _):
    """A valid start, then zeros for ever."""
    handler.send_response(200)
    handler.end_headers()
    try:
        handler.wfile.write(GOOD[FIRST])
        while True:
            handler.wfile.write(bytes(1 << 16))
    except OSError:
        pass


def trickle(handler, _):
    """Fast enough for the time limit of a read, too slow for the whole file."""
    handler.send_response(200)
    handler.end_headers()
    try:
        for byte in GOOD[FIRST]:
            handler.wfile.write(bytes([byte]))
            time.sleep(0.02)
    except OSError:
        pass


def garbage(handler, _):
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.0\r\n\x1b[2J\n")


def fetch(folder, *mirrors, timeout=2):
    return fetch_mnist(folder, mirrors, timeout=timeout, progress=False)


def fault(folder, *mirrors, timeout=2):
    with pytest.raises(DataError) as caught:
        fetch_mnist(
            folder, mirrors, timeout=timeout
        )  # with a progress bar, which must not fail either
    message = str(caught.value)
    assert message.isprintable()
    assert "--data digits" in message and "--data DIR" in message
    assert not folder.exists() or not os.listdir(folder)
    return message


def test_download(tmp_path, serve):
    server, folder = serve(good), tmp_path / "a" / "b"
    assert fetch(folder, server.url) == folder
    assert server.asked == list(GOOD)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == GOOD
    (x, y), (x_test, y_test) = load_data(folder)
    for got, expected in zip((x, y, x_test, y_test), (*TRAIN, *TEST), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_load_data_downloads_into_the_users_cache(tmp_path, serve, monkeypatch):
    server = serve(good)
    monkeypatch.setattr(fetch_mnist, "__defaults__", (None, (server.url,), 2, True))
    monkeypatch.setenv("MINICNN_CACHE", str(tmp_path))
    for _ in range(2):
        np.testing.assert_array_equal(load_data("mnist", progress=False)[1][1], TEST[1])
        (tmp_path / "mnist" / "train.csv").touch()  # other files in the cache are ignored
    assert server.asked == list(GOOD)


def test_cache_needs_no_server(tmp_path, serve):
    fetch(tmp_path, serve(good).url)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    fetch(tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    "damage",
    [b"", b"not gzip", GOOD[FIRST][:-9], GOOD[FIRST] + b"x", gzip.compress(CONTENT[FIRST] + b"x")],
)
def test_a_wrong_file_in_the_cache_is_replaced(tmp_path, serve, damage):
    fetch(tmp_path, serve(good).url)
    (tmp_path / FIRST).write_bytes(damage)
    server = serve(good)
    fetch(tmp_path, server.url)
    assert server.asked == [FIRST]
    assert (tmp_path / FIRST).read_bytes() == GOOD[FIRST]


def redirect(handler, name):
    handler.send_response(302)
    handler.send_header("Location", f"/again/{name}")
    handler.end_headers()


BAD = {
    "404": (send(b"not here", status=404), "HTTP 404"),
    "500": (send(b"", status=500), "HTTP 500"),
    "truncated": (send({n: c[:-20] for n, c in GOOD.items()}), "truncated or damaged"),
    "cut": (send({n: c[:-20] for n, c in GOOD.items()}, length=10**6), "truncated or damaged"),
    "huge length": (send(b"short", length="9" * 5000), "not a gzip file"),
    "large length": (send(b"short", length=10**400), "not a gzip file"),
    "nothing": (send(b""), "wrong file"),
    "page": (send(b"<html>Log in to this network</html>"), "not a gzip file"),
    "not compressed": (send(CONTENT), "not a gzip file"),
    "wrong": (send(gzip.compress(b"other")), "wrong file (its SHA-256 is not MNIST's)"),
    "longer": (send({n: gzip.compress(c + b"x") for n, c in CONTENT.items()}), "wrong file"),
    "bomb": (send(gzip.compress(bytes(1 << 20)) * 5), "wrong file"),
    "trailing": (send({n: c + b"x" for n, c in GOOD.items()}), "not a gzip file"),
    "endless": (endless, "more than "),
    "trickle": (trickle, "less than 2000 bytes a second"),
    "garbage": (garbage, "SSH-2.0"),
    "loop": (redirect, "HTTP 302"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_mirror(tmp_path, serve, kind):
    """Alone it gives an error with the reason; a good mirror after it is used."""
    answer, reason = BAD[kind]
    bad, timeout = serve(answer), 0.3 if kind == "trickle" else 2
    message = fault(tmp_path, bad.url, timeout=timeout)
    assert message.startswith(f"mnist: cannot download {FIRST} ({bad.host}: ")
    assert reason in message
    fetch(tmp_path, bad.url, serve(good).url, timeout=timeout)
    assert (tmp_path / FIRST).read_bytes() == GOOD[FIRST]
    # The mirror that worked is asked first from then on.
    assert set(bad.asked) == {FIRST}


def test_no_answer(tmp_path, silent, serve):
    start = time.monotonic()
    message = fault(tmp_path, f"http://{silent}/", timeout=0.2)
    assert time.monotonic() - start < 5
    assert f"({silent}: no answer within 0.2 s)" in message
    fetch(tmp_path, f"http://{silent}/", serve(good).url, timeout=0.2)
    assert len(os.listdir(tmp_path)) == 4


def test_silence_in_mid_file(tmp_path, serve):
    def stall(handler, name):
        send(GOOD[name][:100], length=len(GOOD[name]))(handler, name)
        time.sleep(1)

    assert "no answer within 0.2 s" in fault(tmp_path, serve(stall).url, timeout=0.2)


def test_nothing_listens(tmp_path, silent):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # reserved, but not listening
        host = f"127.0.0.1:{unused.getsockname()[1]}"
        message = fault(tmp_path, f"http://{host}/", f"http://{silent}/", timeout=0.2)
    assert f"{host}: Connection refused; {silent}: no answer" in message


def test_no_name_server(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    message = fault(tmp_path, "https://a.test/", "https://b.test/mnist")
    failure = "Temporary failure in name resolution"
    assert f"(a.test: {failure}; b.test: {failure}); without the network" in message


def test_an_unwritable_cache(tmp_path, serve):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot be written: .*; set MINICNN_CACHE"):
        fetch(tmp_path / "file" / "mnist", serve(good).url)


def test_progress_goes_to_stderr(tmp_path, serve, capsys):
    fetch_mnist(tmp_path, [serve(good).url], timeout=2)
    shown = capsys.readouterr()
    assert FIRST in shown.err and not shown.out
    (tmp_path / FIRST).unlink()
    fetch(tmp_path, serve(send(GOOD, length="")).url)
    assert not capsys.readouterr().err


def test_two_public_mirrors():
    assert len({url.split("/")[2] for url in download.MIRRORS}) >= 2
    assert all(url.startswith("https://") for url in download.MIRRORS)


@needs_mnist
def test_checksums_of_real_mnist(monkeypatch):
    monkeypatch.undo()
    if not all((Path(MNIST) / name).is_file() for name in download.FILES):
        pytest.skip("real MNIST: the folder's files are not compressed")
    assert fetch(Path(MNIST)) == Path(MNIST)


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("MINICNN_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for platform, expected in [
        ("linux", tmp_path / ".cache" / "minicnn"),
        ("darwin", tmp_path / "Library" / "Caches" / "minicnn"),
        ("win32", tmp_path / "Local" / "minicnn"),
    ]:
        monkeypatch.setattr(sys, "platform", platform)
        monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "Local"))
        assert files.cache_folder() == expected
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert files.cache_folder() == tmp_path / ".cache" / "minicnn"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert files.cache_folder() == tmp_path / "xdg" / "minicnn"
    monkeypatch.setenv("MINICNN_CACHE", str(tmp_path / "own"))
    assert files.cache_folder() == tmp_path / "own"


def test_no_home(monkeypatch):
    def fail():
        raise RuntimeError

    monkeypatch.delenv("MINICNN_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", fail)
    with pytest.raises(DataError, match="set MINICNN_CACHE"):
        files.cache_folder()
