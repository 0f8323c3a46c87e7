"""A browser with the page to draw on, and a small ensemble in it that reads drawn digits."""

import pytest
from browser import Browser

from minicnn import Conv2D, Dense, Flatten, Sequential, load_data
from minicnn.drawpage import document


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture
def browser(chromium):
    """The browser; its pages are closed after the test."""
    yield chromium
    chromium.close_tabs()


@pytest.fixture(scope="session")
def trained():
    """A small ensemble that reads digits drawn by the package."""
    layers = [
        Conv2D(8, 5, 2, activation="relu"),
        Conv2D(16, 5, 2, activation="relu"),
        Flatten(),
        Dense(10, "softmax"),
    ]
    (x, y), _ = load_data("digits")
    model = Sequential(layers, nets=2, device="numpy")
    model.fit(x, y, epochs=4, learning_rate=2e-3, verbose=0)
    return model


@pytest.fixture(scope="session")
def page(tmp_path_factory, trained):
    """The file of a page with it."""
    path = tmp_path_factory.mktemp("page") / "draw.html"
    path.write_bytes(document(trained).encode())
    return path
