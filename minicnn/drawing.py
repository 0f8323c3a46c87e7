"""Drawing: colours, style and page layout shared by all figures, and saving them as PNG.

matplotlib is optional (`pip install "minicnn[figures]"`), so functions import it when they need it.
No display is needed, and matplotlib's global settings stay unchanged. The figures are in
training/figures.py and studies/plots.py: each is a function that builds a Figure; `save` and `png`
write it.
"""

import io
import warnings

import numpy as np

from .files import atomic_write

DPI = 150
WIDTH = 1440  # pixels, the width of a figure
PANEL = 720  # pixels, the width of a figure for narrow screens, such as a phone's
MARGIN = 52  # pixels, left and right
TILE = 112  # pixels, the side of an image: a multiple of 28, so that its pixels have equal size
GAP = 24  # pixels between images: ten images fill the width
LABEL = 44  # pixels between rows of images, for labels
HEAD = 148  # pixels above the images, for the title and the labels
FOOT = 44  # pixels below them

# Paul Tol's "vibrant" colours: colour-blind readers can tell them apart
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
    """Write the Figure that build(*arguments) returns to `path`, as a PNG, atomically.

    metadata: {key: text} to store in the file.
    """
    with atomic_write(path) as file:
        _draw(file, build, *arguments, metadata=metadata)


def png(build, *arguments):
    """The Figure that build(*arguments) returns, as PNG bytes."""
    file = io.BytesIO()
    _draw(file, build, *arguments)
    return file.getvalue()


def _draw(file, build, *arguments, metadata=None):
    import matplotlib.style  # noqa: PLC0415

    # Figures look the same whatever matplotlib settings the user has.
    with matplotlib.style.context(["default", _STYLE]), warnings.catch_warnings():
        # Names of classes may be in any script; the fonts have boxes for what they lack.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        build(*arguments).savefig(file, format="png", dpi=DPI, metadata=metadata)


def page(height, title, notes, width=WIDTH):
    """An empty Figure of `height` x `width` pixels with a title and, below it, notes."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    figure.text(MARGIN / width, 1 - 54 / height, title, size=14, weight="bold")
    figure.text(MARGIN / width, 1 - 86 / height, notes, size=9, color=QUIET)
    return figure


def gallery(title, notes, rows, across=GAP, down=LABEL, aside=0):
    """A page with rows of images (H, W) or (H, W, C), 0 to 255; its axes are in reading order.

    across and down: pixels between images; aside: more pixels after the first column.
    """
    height = HEAD + len(rows) * TILE + (len(rows) - 1) * down + FOOT
    figure = page(height, title, notes)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            left = MARGIN + j * (TILE + across) + aside * (j > 0)
            bottom = height - HEAD - TILE - i * (TILE + down)
            # matplotlib before 3.11 rounds 112.00000001 up to 113 pixels, and an image's pixels
            # then differ in size.
            side = TILE - 1e-6
            box = (left / WIDTH, bottom / height, side / WIDTH, side / height)
            axes = figure.add_axes(box, xticks=[], yticks=[])
            axes.spines[:].set_visible(True)
            # Dark ink on white paper
            axes.imshow(visible(image), cmap="gray_r", vmin=0, vmax=255, interpolation="nearest")
    return figure


def visible(image):
    """What is shown of an image, 0 to 255: (H, W, 3) uint8 is in colour, (H, W) is grey.

    Three channels are red, green and blue; of another number of channels the mean is shown.
    """
    image = np.asarray(image)
    if image.ndim == 2:
        return image
    return image.astype(np.uint8) if image.shape[2] == 3 else image.mean(axis=2)


def label_above(axes, label, **style):
    """Write a label above an image of a gallery; a long one is small."""
    text = str(label)
    if len(text) > 9:
        style["size"], text = 7.5, text if len(text) <= 15 else text.replace(", not ", ",\nnot ")
    axes.set_title(text, parse_math=False, **style)


def tens(images):
    """The images in rows of ten, as `gallery` takes them."""
    return [images[i : i + 10] for i in range(0, len(images), 10)]


def in_percent(fraction, digits=3):
    """A fraction as text in percent, with so many significant digits."""
    return f"{100 * fraction:.{digits}g} %"
