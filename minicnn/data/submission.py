"""Writes predictions in Kaggle's form."""

import csv
import io

from ..files import atomic_write
from .labels import DIGITS


def write_submission(path, labels, classes=DIGITS, ids=None):
    """Write predictions in Kaggle's form, atomically: an id and the name of a class in each row.

    labels: integers (N,), the places of the names in `classes`. ids: the names of both columns and
    the N ids, as DataSet.test_ids; by default ImageId, from 1, and Label. Raises OSError.
    """
    id_column, label_column, ids = ids or ("ImageId", "Label", range(1, len(labels) + 1))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((id_column, label_column))
    writer.writerows((i, classes[label]) for i, label in zip(ids, labels, strict=True))
    with atomic_write(path) as file:
        file.write(text.getvalue().encode(errors="surrogateescape"))
