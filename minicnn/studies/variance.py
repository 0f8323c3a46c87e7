"""variance: how much do the training images vary in position, rotation and size?

Augmentation within this natural variation should do no harm. Definitions, for an image with pixel
values w at columns x and rows y, both counted from 1; (x0, y0) is the centroid, and the second
moment m_xy is the mean of (x - x0)(y - y0) with weights w (m_xx and m_yy likewise):

- centre: the middle of the bounding box of the pixels that are not zero.
- angle: the direction of the principal axis, atan2(2 m_xy, m_xx - m_yy) / 2. Rows count downwards,
  so a positive angle is clockwise. Angles that differ by 180 degrees are equal. So the mean angle
  of a class is half the angle of the mean of exp(2i angle), and deviations are at most 90 degrees.
  Round digits have no clear axis; their angles mean little.
- slant: atan(m_xy / m_yy), the shear angle that makes the image upright. It is defined for round
  digits, too. Deviations are from the mean of the class.
- size: sqrt(m_xx + m_yy), the root mean square distance of the pixels from the centroid. Deviations
  are fractions of the mean of the class. (The bounding box is no measure of size: MNIST's digits
  are scaled to equal bounding boxes.)

The range that holds 95 % is the 95 % quantile of the absolute deviations from the mean. The
notebook does not say how it determined its ranges for rotation and zoom.
"""

import numpy as np
import pandas as pd

from . import plots
from .findings import Findings, Picture, Table

NAME = "variance"
HELP = "how much the training images vary in position, rotation and size"
FULL, QUICK = {}, {}

# {name: (mean, standard deviation, setting of the augmentation)}.
# Source: C. Deotte, "25 Million Images! [0.99757] MNIST", Kaggle, 2018, its last section.
NOTEBOOK = {
    "centre, column": (14.9, 0.99, 0.07),
    "centre, row": (15.2, 1.34, 0.09),
    "angle": (np.nan, np.nan, 13),
    "size": (np.nan, np.nan, 0.13),
}
_COVERED = 0.95


def measure(images, labels):
    """Measure images (N, H, W) uint8: a DataFrame with the columns of the store's table `image`.

    Of colour images, (N, H, W, C), it measures the mean over the channels. The measures of an image
    whose pixels are all zero are NaN.
    """
    if images.ndim == 4:
        images = images.mean(axis=3)
    ink = images > 0
    columns = np.arange(1, images.shape[2] + 1, dtype=float)
    rows = np.arange(1, images.shape[1] + 1, dtype=float)
    weights = images.astype(np.float64)
    with np.errstate(invalid="ignore"):  # 0 / 0 for an image whose pixels are all zero
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
    """The middle (N,) between the first and the last True of each row of (N, n), from 1."""
    first = occupied.argmax(axis=1) + 1
    last = occupied.shape[1] - occupied[:, ::-1].argmax(axis=1)
    return (first + last) / 2


def deviations(images):
    """Deviations of measured images from the mean, a DataFrame.

    images: the DataFrame of measure(). Centre: in pixels, from the mean of all images. Angle and
    slant in degrees, size as a fraction: from the mean of the image's class.
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
            # If every image of a class is a single pixel, sizes are 0 / 0: no deviation.
            "size": (images["size"] / by_class["size"].transform("mean")).fillna(1) - 1,
        }
    )


def findings(results):
    """Evaluate a study's Results. Returns Findings."""
    images = results.images()
    if not len(images):
        return Findings("Variance of the images", ["no images are measured yet"])
    away = deviations(images)
    if not len(away):
        return Findings("Variance of the images", ["all pixels of all images are zero"])
    means = {
        "centre, column": images["center_column"].mean(),
        "centre, row": images["center_row"].mean(),
    }
    height, width, _ = results.input_shape
    sides = {"centre, column": width, "centre, row": height}
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
                "setting": held / sides[name] if in_pixels else held,
                "notebook_mean": mean,
                "notebook_sd": sd,
                "notebook_setting": notebook,
            }
        )
    table = pd.DataFrame(rows)
    by_class = away.groupby("label").agg(lambda values: np.quantile(values.abs(), _COVERED))
    by_class.index = by_class.index.map(dict(enumerate(results.classes)))
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
            "mean that holds 95 % of them (angle, slant and size: the mean of the image's class); "
            "that range as a setting of the augmentation (shifts: fractions of the image size); "
            "and the notebook's values",
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
