"""Pages to draw on for tests: what is drawn on them, and when they have answered."""

import numpy as np

from minicnn.data.digits import GLYPHS, curve
from minicnn.drawpage import document

_SETTLED = "!isBusy && !isBehind && frame === null"
ANSWERED = f"{_SETTLED} && at('time').textContent !== ''"  # a stroke that has ended


def written(folder, model):
    """The file of a page with a model."""
    path = folder / "draw.html"
    path.write_bytes(document(model).encode())
    return path


def ready(tab):
    """The tab, when its nets can answer."""
    tab.wait("isReady")
    return tab


def settled(tab):
    """Wait until the answer to the last image is shown."""
    tab.wait(f"image !== null && {_SETTLED}")


def verdict(tab):
    """The class that is shown after a stroke."""
    tab.wait(ANSWERED)
    return tab.evaluate("document.querySelector('#verdict strong').textContent")


def on_paper(tab, digit):
    """The strokes of a digit, as places in the window."""
    x, y, side = tab.evaluate(
        "(() => { const b = paper.getBoundingClientRect(); return [b.left, b.top, b.width]; })()"
    )
    strokes = [curve(stroke)[:, ::8].T for stroke in GLYPHS[digit][0].split("/")]
    points = np.concatenate(strokes)
    middle = (points.min(axis=0) + points.max(axis=0)) / 2
    return [((s - middle) * 0.007 * side + [x + side / 2, y + side / 2]).tolist() for s in strokes]
