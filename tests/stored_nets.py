"""Nets, images and settings as a study's file stores them."""

import numpy as np

import minicnn.training.checkpoint
from minicnn.studies.tasks import TrainedNet

LABELS = np.array([3, 1, 4, 1, 5, 9], np.uint8)
SETTINGS = {"source": "x", "train_images": 9, "test_images": 6, "data": "d", "test_data": "t"}
MADE_BY = {"device": "numpy", "precision": "float32", "minicnn": "1", "numpy": "2", "python": "3"}


def net(number, right=(), diverged=None):
    """A net that predicts the right digit for the images `right`, and the next digit for others."""
    probabilities = np.full((6, 10), 0.01, np.float32)
    guesses = [label if i in right else label + 1 for i, label in enumerate(LABELS)]
    probabilities[np.arange(6), np.array(guesses) % 10] = 0.91 - 0.001 * number
    row = dict.fromkeys(minicnn.training.checkpoint.HISTORY_COLUMNS, 0.5) | {
        "net": number,
        "epoch": 1,
    }
    return TrainedNet(number, [row], diverged, None if diverged else probabilities, MADE_BY)
