"""Writes predictions in Kaggle's form."""

from ..files import atomic_write


def write_submission(path, labels):
    """Write integer labels (N,) in Kaggle's form, atomically: columns ImageId (from 1) and Label.

    Raises OSError.
    """
    rows = (f"{image},{int(label)}\n" for image, label in enumerate(labels, 1))
    with atomic_write(path) as file:
        file.write(f"ImageId,Label\n{''.join(rows)}".encode())
