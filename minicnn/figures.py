"""The figures of a run: what went in, how it was augmented, how the nets learned, what they say.

matplotlib is optional (`pip install "minicnn[figures]"`), so it is imported where it is used. No
display is needed, and nothing of matplotlib's global state is left changed. Each figure is built by
one function and written by another. train.py calls write_all, the last thing that a run does.
"""

import io
from pathlib import Path

import numpy as np

from .files import atomic_write

DPI = 150
WIDTH = 1440  # pixels of every figure
PANEL = 720  # pixels of those that stand in narrow places, such as a phone's
MARGIN = 52  # pixels, left and right
_TILE = 112  # pixels, the side of an image: a multiple of 28, so that all of its pixels are alike
_GAP = 24  # pixels between images, of which ten just fill the width
_LABEL = 44  # pixels between rows of images, for the labels
_HEAD = 148  # pixels above the images, for the title and the labels
_FOOT = 44  # pixels below them

# Paul Tol's "vibrant" colours, which differ for colour-blind eyes too
TRAINING, VALIDATION, WRONG = "#EE7733", "#0077BB", "#CC3311"
TEXT, QUIET, FAINT = "#222222", "#666666", "#CCCCCC"
_STYLE = {
    "font.size": 10,
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": FAINT,
    "axes.titlepad": 4,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": QUIET,
    "ytick.labelcolor": QUIET,
    "legend.frameon": False,
    "legend.handlelength": 2.8,
}


def available():
    """Whether matplotlib can be imported."""
    try:
        import matplotlib.figure  # noqa: F401, PLC0415
    except ImportError:
        return False
    return True


def write_all(
    folder, images, labels, augment, history, test_images=None, predicted=None, truth=None
):
    """Write a run's figures into `folder`, which is made where it is missing.

    images (N, H, W) uint8 and labels (N,) of the training set, augment a RandomAffine, history as
    for learning_curves; test_images (M, H, W) uint8 with their predicted labels (M,) and, where it
    is known, the truth (M,). Without a test set there is no predictions.png. Raises OSError.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    training_images(folder / "training_images.png", images, labels)
    augmented_images(folder / "augmented_images.png", images, labels, augment)
    learning_curves(folder / "learning_curves.png", history)
    if test_images is not None and predicted is not None:
        predictions(folder / "predictions.png", test_images, predicted, truth)


def training_images(path, images, labels):
    """Write the first 30 of images (N, H, W) uint8, with their labels (N,), as a PNG."""
    save(path, _training_images, images, labels)


def augmented_images(path, images, labels, augment):
    """Write three of images (N, H, W) uint8, augmented ten times each, as a PNG.

    They differ in their labels (N,) where those do. augment: a RandomAffine.
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

    Where the truth (N,) is known, wrong predictions are marked, and counted over all N. With
    probabilities (N, classes), each prediction's own stands beside it.
    """
    save(path, _predictions, images, predicted, truth, probabilities)


def save(path, build, *arguments, metadata=None):
    """Write the Figure that build(*arguments) returns to `path`, whole or not at all.

    metadata: {key: text} to go into the file.
    """
    with atomic_write(path) as file:
        _draw(file, build, *arguments, metadata=metadata)


def png(build, *arguments):
    """The Figure that build(*arguments) returns, as the bytes of a PNG."""
    file = io.BytesIO()
    _draw(file, build, *arguments)
    return file.getvalue()


def _draw(file, build, *arguments, metadata=None):
    import matplotlib.style  # noqa: PLC0415

    # The user's own matplotlib settings are for the user's own figures.
    with matplotlib.style.context(["default", _STYLE]):
        build(*arguments).savefig(file, format="png", dpi=DPI, metadata=metadata)


# ---- building ------------------------------------------------------------------------------------


def _training_images(images, labels):
    shown = images[:30]
    notes = _which(shown, images, "image", "label")
    figure = gallery("Training images", notes, tens(shown))
    for axes, label in zip(figure.axes, labels, strict=False):
        axes.set_title(label)
    return figure


def _augmented_images(images, labels, augment):
    repeated = np.ones(len(labels), bool)
    repeated[np.unique(labels, return_index=True)[1]] = False
    chosen = images[np.argsort(repeated, kind="stable")[:3]]  # those that differ come first
    batch = np.repeat(chosen, 10, axis=0)[..., None] / np.float32(255)  # (30, H, W, 1)
    augmented = augment(batch, seed=0, net=0, step=0)[..., 0] * 255
    rows = [[image, *augmented[10 * i : 10 * i + 10]] for i, image in enumerate(chosen)]

    count = {1: "One image", 2: "Two images", 3: "Three images"}[len(chosen)]
    title = f"{count}, augmented ten times" + " each" * (len(chosen) > 1)
    figure = gallery(title, _ranges(augment), rows, across=_GAP // 3, down=_GAP // 3, aside=_GAP)
    figure.axes[0].set_title("original")
    figure.axes[1].set_title("augmented", loc="left")
    return figure


def _ranges(augment):
    """The ranges of a RandomAffine in words."""
    across, down = augment.width_shift_range, augment.height_shift_range
    shift = f"shift ±{in_percent(across)}"
    if across != down:
        shift += f" of the width and ±{in_percent(down)} of the height"
    return f"Rotation ±{augment.rotation_range:g}°, zoom ±{in_percent(augment.zoom_range)}, {shift}"


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
    """A Figure for narrow places of one half of learning_curves: its "accuracy" or its "loss"."""
    import pandas  # noqa: PLC0415

    figure = page(560, "", "", width=PANEL)
    axes = figure.add_axes((0.13, 0.15, 0.84, 0.75))
    _learning(axes, pandas.DataFrame(history), measure)
    return figure


def _learning(axes, rows, measure):
    """Draw the error rates or losses of a history's nets over the epochs."""
    train, validation = (
        rows.pivot(index="epoch", columns="net", values=f"{part}_{measure}").astype(float)
        for part in ("train", "validation")
    )  # epochs x nets
    if measure == "accuracy":
        train, validation = 1 - train, 1 - validation
    heading = {"accuracy": "Error rate", "loss": "Loss"}[measure]
    if ((train == 0) | (validation == 0)).any(axis=None):
        heading += " (zero lies on the axis)"
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
    """Whole epochs across, and up a logarithmic scale that has room for all lines."""
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
    widen = max(1, (8 / (high / low)) ** 0.5)  # so that a few ticks fit in
    axes.set_ylim(low / widen, min(high * widen, 1.1 if percent else np.inf))
    for line in axes.lines:  # what reaches zero ends on the axis, and does not fall to -infinity
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
    down = _LABEL if probabilities is None else 2 * _LABEL
    figure = gallery("Predictions", notes, tens(shown), down=down)
    for i, axes in enumerate(figure.axes):
        if wrong[i]:
            axes.set_title(f"{predicted[i]}, not {truth[i]}", color=WRONG, weight="bold")
            axes.spines[:].set(color=WRONG, linewidth=2.5)
        else:
            axes.set_title(predicted[i])
        if probabilities is not None:
            sure = probabilities[i][predicted[i]]
            axes.set_xlabel("> 99 %" if sure > 0.99 else in_percent(sure, 2), color=QUIET)
    return figure


# ---- the page ------------------------------------------------------------------------------------


def page(height, title, notes, width=WIDTH):
    """A Figure, its size in pixels: what it shows, and below that what to know about it."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    figure.text(MARGIN / width, 1 - 54 / height, title, size=14, weight="bold")
    figure.text(MARGIN / width, 1 - 86 / height, notes, size=9, color=QUIET)
    return figure


def gallery(title, notes, rows, across=_GAP, down=_LABEL, aside=0):
    """A page with rows of images (H, W), 0 to 255, as axes in reading order.

    across and down are the pixels between images, aside those that set off the first column.
    """
    height = _HEAD + len(rows) * _TILE + (len(rows) - 1) * down + _FOOT
    figure = page(height, title, notes)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            left = MARGIN + j * (_TILE + across) + aside * (j > 0)
            bottom = height - _HEAD - _TILE - i * (_TILE + down)
            # matplotlib before 3.11 rounds 112.00000001 pixels up to 113, of unlike squares.
            side = _TILE - 1e-6
            box = (left / WIDTH, bottom / height, side / WIDTH, side / height)
            axes = figure.add_axes(box, xticks=[], yticks=[])
            axes.spines[:].set_visible(True)
            # Dark ink on white paper, as it was written
            axes.imshow(image, cmap="gray_r", vmin=0, vmax=255, interpolation="nearest")
    return figure


def tens(images):
    """Images in rows of ten."""
    return [images[i : i + 10] for i in range(0, len(images), 10)]


def _which(shown, images, kind, label):
    if len(images) == 1:
        return f"The only {kind}, below its {label}"
    some = f"The first {len(shown)} of" if len(shown) < len(images) else "All"
    return f"{some} {len(images):,} {kind}s, each below its {label}"


def in_percent(fraction, digits=3):
    """A fraction as a text in percent."""
    return f"{100 * fraction:.{digits}g} %"
