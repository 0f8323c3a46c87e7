"""Can a recipe learn from its data? What never can is refused, what is unwise is warned of.

`check` comes before the training, `warn_of_guessing` after it.
"""

import warnings
from dataclasses import replace
from math import floor, log, prod, sqrt

import numpy as np

from ..checks import outside
from ..data.sources import size_text
from ..data.split import validation_count
from ..files import DataError, brief
from ..network.layers import Flatten
from ..network.optim import warm_up_epochs
from ..network.stack import check_batch
from ..recipe import MNIST_SHAPE, RECIPES
from .trainer import steps_per_epoch

# Adam moves a weight by about the learning rate in a step. Float32 rounds a change of 2^-30 away
# from weights of 2^-6 and more, and most initial weights of a kernel are larger.
_LEAST_RATE = 2.0**-30
_LEAST_WAY = 1e-3  # what a weight should be able to move in a training: a step of the default rate
_FEW_VALUES = 4  # fewer in a normalisation make training slow and its result bad
_LEAST_BRIGHT = 25
_MOST_PIXELS = 16  # left for the dense layer, as a multiple of what is left of digits
_MOST_DISTORTION = 0.5  # zoom and shifts
_MOST_ELASTIC = 0.2  # it folds none of 4,000 images; 0.3 folds 4 % of them, 0.4 folds 50 %
_FEW_STEPS = 20
_OF_START = 0.01  # of the first values, that moving statistics or an average may hold at the end


def check(recipe, data):
    """Raise ValueError or DataError if the recipe cannot learn from the Data; warn if it is unwise.

    The recipe is one of these data: see Recipe.of.
    """
    steps = steps_per_epoch(recipe, len(data.train_images))
    _check_batch(recipe)
    _check_rates(recipe, steps)
    if cause := _slow_average(recipe, steps * recipe.epochs):
        _warn(cause)
    check_images(recipe.classes, data)
    _warn_of_size(recipe)
    for name in ("zoom", "width_shift", "height_shift"):
        if getattr(recipe, name) > _MOST_DISTORTION:
            _warn(
                f"{name.replace('_', ' ')} {getattr(recipe, name):g} moves much of an image out of "
                f"its frame; up to {_MOST_DISTORTION:g} is usual"
            )
    if recipe.label_smoothing > 0.5:
        _warn(
            f"label smoothing {recipe.label_smoothing:g} spreads more than half of each label over "
            "all classes; 0.1 is usual"
        )
    if recipe.elastic > _MOST_ELASTIC:
        _warn(
            f"elastic {recipe.elastic:g} distorts images so much that some fold over themselves; "
            f"up to {_MOST_ELASTIC:g} hardly any does"
        )
    if recipe.validation_fraction > 0.5:
        _warn(
            f"validation fraction {recipe.validation_fraction:g} leaves less than half of the "
            "images for training"
        )


def check_images(classes, data):
    """Raise DataError if nothing can be learned from the training images; warn if little can.

    classes: the names of the classes.
    """
    _check_classes(classes, data)
    if _are_equal(data.train_images):
        raise DataError(
            f"training images: all {len(data.train_images):,} are equal, expected different ones"
        )
    brightest = int(data.train_images.max())
    if brightest < _LEAST_BRIGHT:
        _warn(
            f"the brightest pixel of all training images is {brightest} of 255, so the nets learn "
            "slowly; scale the pixels to 0..255"
        )


def check_rate(rate):
    """Raise ValueError for a learning rate with which the weights stay as they are."""
    if rate < _LEAST_RATE:
        raise ValueError(
            f"learning_rate: got {rate:g}, expected at least {_LEAST_RATE:.1g}: "
            "float32 rounds smaller changes of the weights away"
        )


def _check_batch(recipe):
    check_batch(recipe.nodes, recipe.batch_size)
    for node in recipe.nodes:
        if node.layer.least_batch(node.input_shape) > 1 and recipe.batch_size < _FEW_VALUES:
            _warn(
                f"batch size {recipe.batch_size} makes {node.name} normalise "
                f"{recipe.batch_size} values per channel, which learns badly; use at least "
                f"{_FEW_VALUES} images"
            )


def _check_rates(recipe, steps):
    rate, decay, epochs = recipe.learning_rate, recipe.decay, recipe.epochs
    check_rate(rate)
    rise = recipe.warm_up * epochs
    fall = epochs - rise
    falls_by_decay = recipe.schedule == "exponential"
    if not falls_by_decay:
        whole = fall / 2  # epochs of the full rate that are worth as much
    else:
        whole = fall if decay == 1 else (1 - decay**fall) / (1 - decay)
    way = steps * rate * (rise / 2 + whole)
    if way < _LEAST_WAY:
        _warn(
            f"learning rate {rate:g} moves a weight by at most about {way:.1g} in "
            "the whole training, which is too little to learn"
        )
    # The other schedules end at 0, and only their last steps change nothing.
    before = warm_up_epochs(recipe.warm_up, steps, epochs)
    if falls_by_decay and rate * decay ** max(0, epochs - 1 - before) < _LEAST_RATE:
        idle = before + 2 + floor(log(_LEAST_RATE / rate) / log(decay))
        _warn(
            f"decay {decay:g} makes the learning rate so small that float32 rounds its "
            f"changes away: from epoch {idle} of {epochs} on the nets learn nothing"
        )


def _slow_average(recipe, steps):
    """What is unwise about an average that so many steps hardly move; None if they do."""
    decay = recipe.average_decay  # the average begins with the weights after the first step
    if not decay or decay ** (steps - 1) <= _OF_START:
        return None
    needed = 1 + log(_OF_START) / log(decay)
    return (
        f"the average of the weights needs about {needed:,.0f} steps at average decay {decay:g} to "
        f"leave the first weights, this training has {steps:,}; train longer or use a smaller "
        "average decay"
    )


def _check_classes(classes, data):
    counts = np.bincount(data.train_labels, minlength=len(classes))
    absent = [name for name, count in zip(classes, counts, strict=True) if not count]
    if len(absent) == len(classes) - 1:
        name = classes[int(counts.argmax())]
        raise DataError(
            f"training images: all {counts.sum():,} are of the class {name!r}, expected images of "
            "at least two classes"
        )
    if absent:
        _warn(
            f"no training image is of {_some(absent)}: the nets cannot learn "
            f"{len(absent):,} of the {len(classes):,} classes"
        )


def _some(names):
    shown = ", ".join(brief(name, 20) for name in names[:5])
    return shown + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")


def _are_equal(images, piece=1 << 10):
    """Whether all images are equal; of images that differ it reads a few."""
    return all(
        (images[first : first + piece] == images[:1]).all()
        for first in range(0, len(images), piece)
    )


def _warn_of_size(recipe):
    """Warn if the network leaves many pixels of an image, which the dense layer has to relate."""
    left, of_digits = (
        next(node.input_shape for node in nodes if isinstance(node.layer, Flatten))
        for nodes in (recipe.nodes, replace(recipe, input_shape=MNIST_SHAPE).nodes)
    )
    if prod(left[:-1]) > _MOST_PIXELS * prod(of_digits[:-1]):
        _warn(
            f"images of {size_text(recipe.input_shape[:2])} pixels are large for this network: its "
            f"last convolution leaves {size_text(left[:2])} pixels, {size_text(of_digits[:2])} of "
            f"{size_text(MNIST_SHAPE[:2])}; smaller images train faster and often better"
        )


def warn_of_guessing(recipe, data, history, test_accuracy):
    """Warn if trained nets do no better than to always name the most frequent class.

    history: their rows. test_accuracy: that of the ensemble, or None. Of a training of very few
    steps nobody expects more.
    """
    share = np.bincount(data.train_labels).max() / len(data.train_labels)
    steps = steps_per_epoch(recipe, len(data.train_images))
    if steps * recipe.epochs < _FEW_STEPS:
        return
    trained = max((row["train_accuracy"] for row in history), default=1.0)
    if trained <= _by_guessing(share, steps * recipe.batch_size):
        _warn(
            f"the nets learned nothing: guessing is as good as their training accuracy, "
            f"{trained:.5f}; try more epochs, more images or another learning rate"
        )
        return
    last = [row["validation_accuracy"] for row in history if row["epoch"] == recipe.epochs]
    if last and last[0] is not None:
        kind, measured = "validation", max(last)
        images = validation_count(len(data.train_images), recipe.validation_fraction)
    elif test_accuracy is not None:
        kind, measured, images = "test", test_accuracy, len(data.test_images)
    else:
        return
    if measured > _by_guessing(share, images):
        return
    cause, done = "are the labels right?", steps * recipe.epochs
    if slow := _slow_average(recipe, done):
        cause = slow
    elif recipe.averaging is None and recipe.momentum**done > _OF_START:
        needed = log(_OF_START) / log(recipe.momentum)
        cause = (
            f"the moving statistics of batch normalisation need about {needed:.0f} steps at "
            f"momentum {recipe.momentum:g}, this training has {done:,}; train longer"
        )
        if recipe.momentum > RECIPES["demo"].momentum:
            cause += " or with the recipe 'demo'"
    _warn(
        f"guessing is as good as the {kind} accuracy of the nets, {measured:.5f}, though "
        f"their training accuracy is {trained:.5f}: {cause}"
    )


def _by_guessing(share, images):
    """An accuracy that guessing a class with this share of the images hardly exceeds."""
    return share + 2 * sqrt(share * (1 - share) / images)


def _warn(message):
    warnings.warn(message, stacklevel=outside())
