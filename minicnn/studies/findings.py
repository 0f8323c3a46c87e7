"""What a study has found: lines, tables and pictures, for the command, its folder and a report."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .. import drawing
from ..files import atomic_write


@dataclass
class Table:
    """What it shows, a pandas DataFrame, and which of its columns hold fractions."""

    caption: str
    data: object
    fractions: tuple = ()

    def readable(self):
        """The DataFrame with texts for people in place of numbers."""
        shown = self.data.astype(object)
        for column in shown:
            kind, fraction = self.data[column].dtype.kind, column in self.fractions
            shown[column] = [_text(value, kind, fraction) for value in self.data[column]]
        return shown.rename(columns=lambda column: column.replace("_", " "))


@dataclass
class Picture:
    """What it shows, and a function that builds it, a matplotlib Figure."""

    caption: str
    build: Callable


@dataclass
class Findings:
    """What a study has found: lines that say what matters most, {name: Table}, {name: Picture}."""

    title: str
    lines: list
    tables: dict = field(default_factory=dict)
    pictures: dict = field(default_factory=dict)


def write(findings, folder, draw=True):
    """Write the tables as CSV files and, with `draw`, the pictures as PNG files. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in findings.tables.items():
        with atomic_write(folder / f"{name}.csv") as file:
            text = table.data.to_csv(index=False, float_format="%.10g", lineterminator="\n")
            file.write(text.encode())
    if draw:
        for name, picture in findings.pictures.items():
            drawing.save(folder / f"{name}.png", picture.build)


def _text(value, kind, fraction):
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    if fraction:
        return f"{100 * value:.3f} %"
    if kind == "f":
        return f"{value:.4g}"
    return f"{value:,}" if kind in "iu" else str(value)
