"""Drawing: the palette and style of every figure, its page, and how it is saved.

matplotlib is optional (`pip install "minicnn[figures]"`), so it is imported where it is used. No
display is needed, and nothing of matplotlib's global state is left changed. Each figure is built by
one function and written by another.
"""

import io

from .files import atomic_write

DPI = 150
WIDTH = 1440  # pixels of every figure
PANEL = 720  # pixels of those that stand in narrow places, such as a phone's
MARGIN = 52  # pixels, left and right
TILE = 112  # pixels, the side of an image: a multiple of 28, so that all of its pixels are alike
GAP = 24  # pixels between images, of which ten just fill the width
LABEL = 44  # pixels between rows of images, for the labels
HEAD = 148  # pixels above the images, for the title and the labels
FOOT = 44  # pixels below them

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


def page(height, title, notes, width=WIDTH):
    """A Figure, its size in pixels: what it shows, and below that what to know about it."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    figure.text(MARGIN / width, 1 - 54 / height, title, size=14, weight="bold")
    figure.text(MARGIN / width, 1 - 86 / height, notes, size=9, color=QUIET)
    return figure


def gallery(title, notes, rows, across=GAP, down=LABEL, aside=0):
    """A page with rows of images (H, W), 0 to 255, as axes in reading order.

    across and down are the pixels between images, aside those that set off the first column.
    """
    height = HEAD + len(rows) * TILE + (len(rows) - 1) * down + FOOT
    figure = page(height, title, notes)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            left = MARGIN + j * (TILE + across) + aside * (j > 0)
            bottom = height - HEAD - TILE - i * (TILE + down)
            # matplotlib before 3.11 rounds 112.00000001 pixels up to 113, of unlike squares.
            side = TILE - 1e-6
            box = (left / WIDTH, bottom / height, side / WIDTH, side / height)
            axes = figure.add_axes(box, xticks=[], yticks=[])
            axes.spines[:].set_visible(True)
            # Dark ink on white paper, as it was written
            axes.imshow(image, cmap="gray_r", vmin=0, vmax=255, interpolation="nearest")
    return figure


def tens(images):
    """Images in rows of ten."""
    return [images[i : i + 10] for i in range(0, len(images), 10)]


def in_percent(fraction, digits=3):
    """A fraction as a text in percent."""
    return f"{100 * fraction:.{digits}g} %"
