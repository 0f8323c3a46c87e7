"""A real browser for tests, Chromium without a window, driven by the DevTools protocol over a pipe.

Tests are skipped where none is installed. MINICNN_TEST_BROWSER names another one.
"""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time

import pytest

_NAMES = "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"
BROWSER = os.environ.get("MINICNN_TEST_BROWSER") or next(
    filter(None, map(shutil.which, _NAMES)), None
)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")

# The browser reads commands from descriptor 3 and writes answers to descriptor 4.
_WITH_PIPES = """
import fcntl, os, sys
pipes = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
for target, pipe in enumerate(pipes, 3):
    os.dup2(pipe, target)
    os.close(pipe)
os.execv(sys.argv[3], sys.argv[3:])
"""
_SECONDS = 60  # the longest wait for an answer
_KEYS = {" ": 32, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
_KEYS |= {"Delete": 46, "Enter": 13, "Tab": 9, "z": 90}


class Browser:
    """A running browser. Use it in a `with` statement; `folder` is for its files."""

    def __init__(self, folder):
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        options = [
            "--headless",
            "--remote-debugging-pipe",
            f"--user-data-dir={folder}",
            "--no-first-run",
            "--no-sandbox",  # root may not use it; the pages are this project's
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "about:blank",
        ]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WITH_PIPES, str(commands), str(answers), BROWSER, *options],
            pass_fds=(commands, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self._read, self._count, self._tabs = b"", 0, []
        self.events = []  # (session, method, params)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.call("Browser.close")
                self._process.wait(10)
        finally:
            self._process.kill()
            self._process.wait()
            os.close(self._commands)
            os.close(self._answers)

    def call(self, method, session=None, **params):
        """The result of a command of the protocol."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        rest = json.dumps(message).encode() + b"\0"
        while rest:
            rest = rest[os.write(self._commands, rest) :]
        while (answer := self._next()).get("id") != self._count:
            self.events.append((answer.get("sessionId"), answer["method"], answer["params"]))
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def _next(self):
        """The next message of the browser."""
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._answers], [], [], _SECONDS)
            assert ready, "the browser does not answer"
            part = os.read(self._answers, 1 << 20)
            assert part, "the browser has ended"
            self._read += part
        message, _, self._read = self._read.partition(b"\0")
        return json.loads(message)

    def open(self, path, width=1280, height=800, touch=False, scheme="light"):
        """The Tab with a file, in a window of this size."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._tabs.append(target)
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = Tab(self, session)
        for domain in ("Page", "Runtime", "Log"):
            tab.call(f"{domain}.enable")
        tab.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if touch else 1,
            mobile=touch,
        )
        tab.call("Emulation.setTouchEmulationEnabled", enabled=touch)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        tab.call("Emulation.setEmulatedMedia", features=features)
        tab.call("Page.navigate", url=path.resolve().as_uri())
        tab.wait("document.readyState === 'complete' && location.protocol === 'file:'")
        return tab

    def close_tabs(self):
        """Close all pages, and their workers."""
        while self._tabs:
            self.call("Target.closeTarget", targetId=self._tabs.pop())


class Tab:
    """A page in a Browser. Places are pixels [x, y] from its upper left corner."""

    def __init__(self, browser, session):
        self._browser, self._session = browser, session

    def call(self, method, **params):
        """The result of a command of the protocol."""
        return self._browser.call(method, self._session, **params)

    def evaluate(self, expression):
        """The value of an expression, or of the promise that it is."""
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, expression):
        """Wait until an expression is true; returns its value."""
        end = time.monotonic() + _SECONDS
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < end, f"still false: {expression}"
            time.sleep(0.02)
        return value

    def complaints(self):
        """What the browser has logged of errors, exceptions and violations of the policy."""
        self.evaluate("0")  # events before this answer have arrived
        return [
            params
            for session, method, params in self._browser.events
            if session == self._session and method in ("Log.entryAdded", "Runtime.exceptionThrown")
        ]

    def mouse(self, kind, x, y, buttons=1, **more):
        """An event of the mouse: mousePressed, mouseMoved or mouseReleased."""
        self.call(
            "Input.dispatchMouseEvent",
            type=kind,
            x=x,
            y=y,
            button="left" if buttons or kind == "mouseReleased" else "none",
            buttons=0 if kind == "mouseReleased" else buttons,
            clickCount=1,
            **more,
        )

    def touch(self, kind, *places):
        """An event of fingers at these places: touchStart, touchMove, touchEnd or touchCancel."""
        points = [{"x": x, "y": y, "id": finger} for finger, (x, y) in enumerate(places)]
        self.call("Input.dispatchTouchEvent", type=kind, touchPoints=points)

    def mouse_stroke(self, points):
        """Draw with the left button of the mouse."""
        self.mouse("mousePressed", *points[0])
        for point in points[1:]:
            self.mouse("mouseMoved", *point)
        self.mouse("mouseReleased", *points[-1])

    def touch_stroke(self, points):
        """Draw with a finger."""
        self.touch("touchStart", points[0])
        for point in points[1:]:
            self.touch("touchMove", point)
        self.touch("touchEnd")

    def key(self, name, alt=False, ctrl=False, shift=False):
        """Press and release a key, such as ArrowUp."""
        given = {"key": name, "modifiers": alt + 2 * ctrl + 8 * shift}
        given["windowsVirtualKeyCode"] = _KEYS[name]
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, **given)

    def screenshot(self, path):
        """Save a picture of the whole page as PNG."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))
