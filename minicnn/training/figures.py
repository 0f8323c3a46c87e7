"""The figures of a run: training images, augmented images, learning curves, predictions.

run_folder.py calls write_all at the end of a run. drawing.py has colours, layout and saving.
"""

from pathlib import Path

import numpy as np

from ..data.labels import DIGITS, short_names
from ..drawing import (
    GAP,
    LABEL,
    PANEL,
    QUIET,
    TEXT,
    TRAINING,
    VALIDATION,
    WRONG,
    gallery,
    in_percent,
    label_above,
    page,
    save,
    tens,
)
from ..recipe import image_shape

_MOST_NAME = 11  # characters of a class's name above an image


def write_all(
    folder,
    images,
    labels,
    augment,
    history,
    test_images=None,
    predicted=None,
    truth=None,
    classes=DIGITS,
):
    """Write a run's figures into `folder`, and create the folder if it does not exist.

    images (N, H, W) or (N, H, W, C) uint8 and labels (N,), which count `classes`, a tuple of names:
    the training set. augment: a RandomAffine. history: as for learning_curves. test_images (M, H,
    W) or (M, H, W, C) uint8, their predicted labels (M,) and, if known, their true labels (M,).
    Without test images there is no predictions.png. Raises OSError.
    """
    labels, predicted, truth = (
        a if a is None else names_of(a, classes) for a in (labels, predicted, truth)
    )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    training_images(folder / "training_images.png", images, labels)
    augmented_images(folder / "augmented_images.png", images, labels, augment)
    learning_curves(folder / "learning_curves.png", history)
    if test_images is not None and predicted is not None:
        predictions(folder / "predictions.png", test_images, predicted, truth)


def names_of(labels, classes):
    """The names (N,) of labels (N,), shortened to fit above an image; other labels, other names."""
    names = np.array(short_names(classes, _MOST_NAME), object)
    return names[np.asarray(labels, int)]


def training_images(path, images, labels):
    """Write the first 30 of images (N, H, W) or (N, H, W, C) uint8, with their labels, as a PNG.

    labels (N,): numbers or names, here and below.
    """
    save(path, _training_images, images, labels)


def augmented_images(path, images, labels, augment):
    """Write three of images (N, H, W) uint8, augmented ten times each, as a PNG.

    The three have different labels if labels (N,) has three. augment: a RandomAffine.
    """
    save(path, _augmented_images, images, labels, augment)


def learning_curves(path, history):
    """Write the error rate and the loss of each net over the epochs as a PNG.

    history: dicts with the keys net, epoch, train_loss, train_accuracy, validation_loss and
    validation_accuracy, the last two None or NaN without validation; or a pandas.DataFrame.
    """
    save(path, _learning_curves, history)


def predictions(path, images, predicted, truth=None, probabilities=None):
    """Write the first 40 of images (N, H, W) uint8, with their predicted labels (N,), as a PNG.

    With the true labels (N,), wrong predictions are marked, and counted over all N images. With
    probabilities (N, classes), the probability of each prediction is shown below its image.
    """
    save(path, _predictions, images, predicted, truth, probabilities)


# ---- building ------------------------------------------------------------------------------------


def _training_images(images, labels):
    shown = images[:30]
    notes = _which(shown, images, "image", "label")
    figure = gallery("Training images", notes, tens(shown))
    for axes, label in zip(figure.axes, labels, strict=False):
        label_above(axes, label)
    return figure


def _augmented_images(images, labels, augment):
    repeated = np.ones(len(labels), bool)
    repeated[np.unique(labels, return_index=True)[1]] = False
    chosen = images[np.argsort(repeated, kind="stable")[:3]]  # the first image of each label first
    batch = np.repeat(chosen, 10, axis=0) / np.float32(255)
    batch = batch.reshape(len(batch), *image_shape(chosen))  # (30, H, W, C)
    augmented = augment(batch, seed=0, net=0, step=0).reshape(len(batch), *chosen.shape[1:]) * 255
    rows = [[image, *augmented[10 * i : 10 * i + 10]] for i, image in enumerate(chosen)]

    count = {1: "One image", 2: "Two images", 3: "Three images"}[len(chosen)]
    title = f"{count}, augmented ten times" + " each" * (len(chosen) > 1)
    figure = gallery(title, _ranges(augment), rows, across=GAP // 3, down=GAP // 3, aside=GAP)
    figure.axes[0].set_title("original")
    figure.axes[1].set_title("augmented", loc="left")
    return figure


def _ranges(augment):
    """The ranges of a RandomAffine as text."""
    across, down = augment.width_shift_range, augment.height_shift_range
    shift = f"shift ±{in_percent(across)}"
    if across != down:
        shift += f" of the width and ±{in_percent(down)} of the height"
    text = f"Rotation ±{augment.rotation_range:g}°, zoom ±{in_percent(augment.zoom_range)}, {shift}"
    if augment.elastic_range:
        text += f", elastic ±{in_percent(augment.elastic_range)}"
    return text


def _learning_curves(history):
    import pandas  # noqa: PLC0415

    rows = pandas.DataFrame(history)
    nets = rows["net"].nunique()
    title = f"Learning curves of {nets} nets" if nets > 1 else "Learning curves of one net"
    bold = "Thin: each net; bold: their mean. " if nets > 1 else ""
    notes = "Training is measured during the epoch, with augmentation and dropout"
    if rows["validation_loss"].notna().any():
        notes += "; validation after it, without"
    figure = page(780, title, f"{bold}{notes}.")
    for place, measure in enumerate(("accuracy", "loss")):
        axes = figure.add_axes((0.072 + 0.486 * place, 0.12, 0.406, 0.66))
        _learning(axes, rows, measure)
    return figure


def learning_panel(history, measure):
    """One half of learning_curves, "accuracy" or "loss", as a narrow Figure for a web page."""
    import pandas  # noqa: PLC0415

    figure = page(560, "", "", width=PANEL)
    axes = figure.add_axes((0.13, 0.15, 0.84, 0.75))
    _learning(axes, pandas.DataFrame(history), measure)
    return figure


def _learning(axes, rows, measure):
    """Draw the error rates or losses of all nets of a history over the epochs."""
    train, validation = (
        rows.pivot(index="epoch", columns="net", values=f"{part}_{measure}").astype(float)
        for part in ("train", "validation")
    )  # epochs x nets
    if measure == "accuracy":
        train, validation = 1 - train, 1 - validation
    heading = {"accuracy": "Error rate", "loss": "Loss"}[measure]
    if ((train == 0) | (validation == 0)).any(axis=None):
        heading += " (zero is drawn on the axis)"
    axes.set_title(heading, loc="left", pad=10, color=TEXT)
    _curves(axes, train, TRAINING, (4, 1.5), "s", "training")
    _curves(axes, validation, VALIDATION, (None, None), "o", "validation")
    _scales(axes, rows["epoch"], percent=measure == "accuracy")
    if axes.lines:
        axes.legend(loc="upper right")


def _curves(axes, table, color, dashes, marker, label):
    """Thin lines for the columns of `table` (epochs x nets), and a bold one for their mean."""
    table = table.dropna(how="all")
    if not len(table):
        return
    if len(table) > 15:
        marker = None
    if table.shape[1] > 1:
        axes.plot(table, color=color, alpha=0.35, linewidth=0.8, marker=marker, markersize=2.5)
    line = {"linewidth": 2.2, "dashes": dashes, "gapcolor": "white"}
    dots = {"marker": marker, "markersize": 5.5, "markeredgecolor": "white"}
    axes.plot(table.mean(axis=1), color=color, label=label, **line, **dots)


def _scales(axes, epochs, percent):
    """Set the axes: whole epochs across; up, a logarithmic scale that shows all lines."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator  # noqa: PLC0415

    first, last = epochs.min(), epochs.max()
    room = min(max(0.03 * (last - first), 0.2), 0.9)  # less than 1: no tick at epoch 0
    axes.set_xlim(first - room, last + room)
    axes.set_xlabel("epoch", labelpad=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    values = np.concatenate([[], *(line.get_ydata() for line in axes.lines)])
    values = values[np.isfinite(values) & (values > 0)]
    if not len(values):
        return
    axes.set_yscale("log", nonpositive="clip")
    low, high = values.min() / 1.3, values.max() * 1.3
    widen = max(1, (8 / (high / low)) ** 0.5)  # at least a factor of 8, for a few ticks
    axes.set_ylim(low / widen, min(high * widen, 1.1 if percent else np.inf))
    for line in axes.lines:  # draw zeros on the lower axis: their logarithm is -infinity
        line.set_ydata(np.maximum(line.get_ydata(), low / widen))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda y, _: in_percent(y) if percent else f"{y:g}")
    )


def _predictions(images, predicted, truth, probabilities):
    shown = images[:40]
    wrong = np.zeros(len(images), bool) if truth is None else np.not_equal(predicted, truth)
    notes = _which(shown, images, "test image", "predicted label")
    if truth is not None:
        notes += f". Wrong (red): {wrong[: len(shown)].sum() or 'none'}"
        if len(shown) < len(images):
            notes += f" of these, {wrong.sum():,} of all ({in_percent(wrong.mean())})"
    down = LABEL if probabilities is None else 2 * LABEL
    figure = gallery("Predictions", notes, tens(shown), down=down)
    for i, axes in enumerate(figure.axes):
        if wrong[i]:
            label_above(axes, f"{predicted[i]}, not {truth[i]}", color=WRONG, weight="bold")
            axes.spines[:].set(color=WRONG, linewidth=2.5)
        else:
            label_above(axes, predicted[i])
        if probabilities is not None:
            sure = probabilities[i][predicted[i]]
            axes.set_xlabel("> 99 %" if sure > 0.99 else in_percent(sure, 2), color=QUIET)
    return figure


def _which(shown, images, kind, label):
    if len(images) == 1:
        return f"The only {kind}, below its {label}"
    some = f"The first {len(shown)} of" if len(shown) < len(images) else "All"
    return f"{some} {len(images):,} {kind}s, each below its {label}"
