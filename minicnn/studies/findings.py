"""The results of a study as lines, tables and pictures, and how they are written to files."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .. import drawing
from ..files import atomic_write


@dataclass
class Table:
    """A caption, a pandas DataFrame, and the names of its columns that hold fractions."""

    caption: str
    data: object
    fractions: tuple = ()

    def readable(self):
        """A copy of the DataFrame with every value formatted as text, fractions in percent."""
        shown = self.data.astype(object)
        for column in shown:
            kind, fraction = self.data[column].dtype.kind, column in self.fractions
            shown[column] = [_text(value, kind, fraction) for value in self.data[column]]
        return shown.rename(columns=lambda column: column.replace("_", " "))


@dataclass
class Picture:
    """A caption, and a function that returns the picture as a matplotlib Figure."""

    caption: str
    build: Callable


@dataclass
class Findings:
    """The results of a study: a title, the main results as lines, tables and pictures by name."""

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
