"""variance: how much do the training images vary by themselves in place, rotation and size?

An augmentation that makes what is there already does no harm. Definitions, of an image with pixels
w at columns x and rows y, counted from 1:

- centre: the middle of the bounding box of the pixels that are not zero.
- angle: of the axis along which the pixels lie, from the second moments about their centroid:
  atan2(2 m_xy, m_xx - m_yy) / 2, where m_xy is the mean of (x - x0)(y - y0) with weights w. An axis
  has no direction, so angles are the same modulo 180 degrees; the mean of a class is that of
  exp(2i angle), and a deviation from it lies within 90 degrees. Rows count downwards, so a positive
  angle is clockwise. Round digits hardly have an axis: their angles say little.
- slant: atan(m_xy / m_yy), the angle by which an image would have to be sheared to stand upright,
  which round digits have, too; against the mean of its class.
- size: the root of m_xx + m_yy, the pixels' distance from their centroid, as a fraction more or
  less than the mean of its class. (The bounding box tells nothing: MNIST's are made of one size.)

The range that holds 95 % is the 95 % quantile of the distance from the mean. The notebook does not
say how it found its own for rotation and zoom.
"""

import numpy as np
import pandas as pd

from ..model import MNIST_SHAPE
from . import plots
from .findings import Findings, Picture, Table

NAME = "variance"
HELP = "how much the training images vary in place, rotation and size"
FULL, QUICK = {}, {}

# Source: C. Deotte, "25 Million Images! [0.99757] MNIST", Kaggle, 2018, its last section.
NOTEBOOK = {
    "centre, column": (14.9, 0.99, 0.07),
    "centre, row": (15.2, 1.34, 0.09),
    "angle": (np.nan, np.nan, 13),
    "size": (np.nan, np.nan, 0.13),
}
_COVERED = 0.95


def measure(images, labels):
    """The measures of images (N, H, W) uint8, a DataFrame: columns as in the store's table.

    Those of an image without any pixel are NaN.
    """
    ink = images > 0
    columns = np.arange(1, images.shape[2] + 1, dtype=float)
    rows = np.arange(1, images.shape[1] + 1, dtype=float)
    weights = images.astype(np.float64)
    with np.errstate(invalid="ignore"):  # of an image without any pixel
        mass = weights.sum(axis=(1, 2))
        by_column, by_row = weights.sum(axis=1) / mass[:, None], weights.sum(axis=2) / mass[:, None]
        x, y = by_column @ columns, by_row @ rows  # (N,) each: the centroid
        m_xx, m_yy = by_column @ columns**2 - x**2, by_row @ rows**2 - y**2
        m_xy = np.einsum("nyx,y,x->n", weights, rows, columns) / mass - x * y
        slant = np.arctan2(m_xy, m_yy)
    blank = mass == 0
    measures = {
        "center_column": _middle(ink.any(axis=1)),
        "center_row": _middle(ink.any(axis=2)),
        "angle": np.degrees(np.arctan2(2 * m_xy, m_xx - m_yy) / 2),
        "slant": np.degrees(slant),
        "size": np.sqrt(np.maximum(m_xx + m_yy, 0)),
    }
    table = pd.DataFrame({"image": np.arange(1, len(images) + 1), "label": labels, **measures})
    table.loc[blank, list(measures)] = np.nan
    return table


def _middle(occupied):
    """The middle between the first and the last True of each row (N, n), counted from 1."""
    first = occupied.argmax(axis=1) + 1
    last = occupied.shape[1] - occupied[:, ::-1].argmax(axis=1)
    return (first + last) / 2


def deviations(images):
    """How far each image of a measure() is from what it is compared with, a DataFrame: columns and
    rows in pixels, angle and slant in degrees, size as a fraction.
    """
    images = images.dropna()
    doubled = np.exp(2j * np.radians(images["angle"]))
    mean = doubled.groupby(images["label"]).transform("mean")
    by_class = images.groupby("label")
    return pd.DataFrame(
        {
            "label": images["label"],
            "centre, column": images["center_column"] - images["center_column"].mean(),
            "centre, row": images["center_row"] - images["center_row"].mean(),
            "angle": np.degrees(np.angle(doubled * np.conj(mean)) / 2),
            "slant": images["slant"] - by_class["slant"].transform("mean"),
            # Where each image of a class is one pixel, none is larger than the others.
            "size": (images["size"] / by_class["size"].transform("mean")).fillna(1) - 1,
        }
    )


def findings(results):
    """The Findings in a study's Results."""
    images = results.images()
    if not len(images):
        return Findings("Variance of the images", ["nothing is measured yet"])
    away = deviations(images)
    if not len(away):
        return Findings("Variance of the images", ["no image has a pixel that is not zero"])
    means = {
        "centre, column": images["center_column"].mean(),
        "centre, row": images["center_row"].mean(),
    }
    rows = []
    for name in away.columns[1:]:
        values = away[name]
        unit = {"angle": "degrees", "slant": "degrees", "size": "of the mean"}.get(name, "pixels")
        held = np.quantile(values.abs(), _COVERED)
        in_pixels = unit == "pixels"
        mean, sd, notebook = NOTEBOOK.get(name, (np.nan,) * 3)
        rows.append(
            {
                "of": name,
                "unit": unit,
                "mean": means.get(name, np.nan),
                "sd": values.std(ddof=0),
                "holds_95_%": held,
                "setting": held / MNIST_SHAPE[0] if in_pixels else held,
                "notebook_mean": mean,
                "notebook_sd": sd,
                "notebook_setting": notebook,
            }
        )
    table = pd.DataFrame(rows)
    by_class = away.groupby("label").agg(lambda values: np.quantile(values.abs(), _COVERED))
    column, row = rows[:2]
    lines = [
        f"centre of the bounding box: mean ({column['mean']:.2f}, {row['mean']:.2f}), standard "
        f"deviation ({column['sd']:.2f}, {row['sd']:.2f}) pixels; 95 % within "
        f"(±{column['setting']:.3f}, ±{row['setting']:.3f}) of width and height",
        *(
            f"{r['of']}: standard deviation {r['sd']:.3g}, 95 % within ±{r['holds_95_%']:.3g} "
            f"{r['unit']}"
            for r in rows[2:]
        ),
    ]
    tables = {
        "summary": Table(
            f"{len(away):,} training images: mean, standard deviation, and the range around the "
            "mean (angle, slant and size: that of the image's class) that holds 95 % of them; that "
            "range as a setting of augmentation (shifts are fractions of the image); and the "
            "notebook's",
            table,
        ),
        "by_class": Table(
            "The range that holds 95 % by class: pixels, degrees, and fractions of the mean size",
            by_class.reset_index(),
        ),
    }
    pictures = {
        "place": Picture(
            "Where the centres of the bounding boxes are, in pixels from their mean",
            lambda: plots.distributions(away, ["centre, column", "centre, row"], "pixels", table),
        ),
        "rotation": Picture(
            "Angle and slant, in degrees from the mean of the image's class",
            lambda: plots.distributions(away, ["angle", "slant"], "degrees", table),
        ),
        "size": Picture(
            "Size, as a fraction more or less than the mean of the image's class",
            lambda: plots.distributions(away, ["size"], "fraction", table),
        ),
    }
    return Findings("Variance of the images", lines, tables, pictures)
