"""A notebook, executed by nbconvert: progress, looks, an interrupt, and README's cell."""

import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from runs import ROOT

from minicnn.data.digits import draw_digits

nbformat = pytest.importorskip("nbformat", reason="needs nbconvert")
nbconvert = pytest.importorskip("nbconvert.preprocessors", reason="needs nbconvert")
pytest.importorskip("ipykernel", reason="needs ipykernel")

FIT = """
from minicnn import mnist_cnn
from minicnn.data.digits import draw_digits
x, y = draw_digits(64)
model = mnist_cnn(nets=2, device="numpy")
history = model.fit(x, y, epochs=1, validation_split=0.2)
"""
INTERRUPT = """
import os, signal
def interrupt(row):
    os.kill(os.getpid(), signal.SIGINT)  # what the button of a notebook sends
try:
    model.fit(x, y, epochs=2, on_epoch=interrupt)
except KeyboardInterrupt:
    print("interrupted after", model.history.rows)
"""


def executed(folder, monkeypatch, *cells):
    """The outputs of each cell of a notebook that was executed in a folder."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # As in an activated virtual environment
    monkeypatch.setenv(
        "PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    )
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    (folder / "ipywidgets.py").write_text("raise ImportError\n")  # a bar of text can be compared
    cells = [nbformat.v4.new_code_cell(text) for text in cells]
    notebook = nbformat.v4.new_notebook(cells=cells)
    run = nbconvert.ExecutePreprocessor(timeout=300, kernel_name="python3")
    run.preprocess(notebook, {"metadata": {"path": str(folder)}})
    return [cell["outputs"] for cell in notebook.cells]


def text_of(outputs):
    """What a cell printed, and the texts of what it displayed."""
    return "".join(o.get("text", "") + o.get("data", {}).get("text/plain", "") for o in outputs)


def html_of(outputs):
    return "".join(o["data"].get("text/html", "") for o in outputs if "data" in o)


def test_a_notebook_trains_and_shows(tmp_path, monkeypatch):
    cells = FIT, "model", "history", "model.predict(x[:1])", INTERRUPT
    fit, model, history, prediction, stopped = executed(tmp_path, monkeypatch, *cells)
    shown = text_of(fit)
    assert "Warning" not in shown and "Traceback" not in shown
    assert re.search(r"100%.*64\.0/64\.0 .*, 2 of 2 nets trained\]", shown)
    assert "<td>conv2d_6</td>" in html_of(model)
    assert html_of(history).count("<tr>") == 2 and "val_accuracy" in html_of(history)
    assert text_of(prediction).startswith("array([[[")
    assert "interrupted after [{'net': 1, 'epoch': 1" in text_of(stopped)


def test_the_readmes_cell(tmp_path, monkeypatch):
    """It installs and trains; here it is installed already, and the data are few."""
    [cell] = re.findall(r"(?ms)^```ipython\n(.*?)^```$", (ROOT / "README.md").read_text())
    install, *rest = cell.splitlines()
    assert install.startswith("%pip install")
    data = "/kaggle/input/digit-recognizer"
    assert data in cell
    folder = tmp_path / "digit-recognizer"
    folder.mkdir()
    x, y = draw_digits(80)
    header = [f"pixel{i}" for i in range(784)]
    for name, head, table in (
        ("train", ["label", *header], np.column_stack([y, x.reshape(80, -1)])),
        ("test", header, x.reshape(80, -1)[:5]),
    ):
        lines = [",".join(head), *(",".join(map(str, row)) for row in table.tolist())]
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    cell = "\n".join(rest).replace(data, str(folder))
    cell = re.sub(r"--epochs \d+", "--epochs 1 --nets 1 --device numpy", cell)
    [outputs] = executed(tmp_path, monkeypatch, cell)
    assert "CNN 1: Epochs=1" in text_of(outputs) and "Run folder: " in text_of(outputs)
    [submission] = tmp_path.rglob("submission.csv")
    assert submission.read_text().startswith("ImageId,Label\n1,")
