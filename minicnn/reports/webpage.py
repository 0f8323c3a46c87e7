"""Build web pages for screen and paper: one HTML file, without scripts or further files.

These functions return HTML. Arguments are plain text and are escaped, because they may come from an
unknown source. Only arguments called `html` are HTML already, made by these functions. run.py and
study.py build pages from them; the command minicnn.study writes quiz_page.
"""

import base64
import html as escaping
import re
import struct
import zlib

import numpy as np

from ..data.labels import DIGITS, short_names
from ..drawing import PANEL, visible
from ..files import brief, printable

PNG = b"\x89PNG\r\n\x1a\n"  # the first bytes of a PNG file
_NUMBER = re.compile(r"[-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?( %)?")
_MOST_CELL = 200  # characters shown in a cell of a table
_MOST_WIDE = 16  # classes in a confusion matrix whose columns are not narrowed

_STYLE = """
:root { --ink: #222; --quiet: #666; --line: #ddd; --wrong: #cc3311;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem 1rem 3rem; max-width: 68rem; color: var(--ink);
  background: #fff; font: 1.0625rem/1.55 Charter, "Bitstream Charter", Cambria, Georgia, serif;
  overflow-wrap: break-word; -webkit-text-size-adjust: 100%; }
h1, h2, h3 { line-height: 1.2; font-weight: 600; }
h1 { margin: 1rem 0 .25rem; font-size: 1.9rem; }
h2 { margin: 3rem 0 .75rem; padding-top: .75rem; border-top: 2px solid var(--ink);
  font-size: 1.45rem; }
h3 { margin: 2rem 0 .5rem; font-size: 1.15rem; }
p, ul { max-width: 46rem; margin: .5rem 0; }
ul { padding-left: 1.2rem; }
a { color: #0062a3; }
.quiet, footer { color: var(--quiet); }
.note { padding: .4rem .8rem; border-left: 4px solid #ee7733; background: #fff6ef; }
nav ul { padding: 0; list-style: none; display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; }
footer { margin-top: 3rem; font: .85rem var(--sans); }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr));
  gap: .6rem 1rem; margin: .75rem 0; font: .9rem/1.35 var(--sans); }
dt { color: var(--quiet); font-size: .8rem; }
dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 1.25rem 0; }
figure img { display: block; width: 100%; height: auto; }
figcaption, caption { font: .85rem/1.4 var(--sans); color: var(--quiet); text-align: left; }
figcaption { padding-top: .35rem; max-width: 46rem; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr));
  gap: 0 2rem; align-items: start; }
.panels > * { max-width: 45rem; }
.panels > :only-child { max-width: 34rem; }
.scroll { overflow-x: auto; margin: 1.25rem 0; }
table { border-collapse: collapse; font: .85rem/1.35 var(--sans);
  font-variant-numeric: tabular-nums; min-width: min(100%, 24rem); }
caption { padding-bottom: .4rem; }
caption span { display: block; position: sticky; left: 0;
  max-width: min(46rem, calc(100vw - 2rem)); }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: baseline; }
th:first-child, td:first-child { padding-left: 0; }
thead th { border-bottom: 1px solid var(--ink); vertical-align: bottom; }
th { font-weight: 600; }
tbody th { font-weight: 400; }
.long { min-width: 9rem; }
.number { text-align: right; }
td.number { white-space: nowrap; }
.confusion table { min-width: 0; }
.confusion tr > * { padding: .3rem .25rem; min-width: 1.85rem;
  text-align: center; border: 1px solid #eee; print-color-adjust: exact;
  -webkit-print-color-adjust: exact; }
.confusion tbody th { font-weight: 600; }
.confusion .right, .confusion .none { color: #888; }
.confusion .right { background: #f6f6f6; }
.confusion .none { color: #ccc; }
.many tr > * { padding: .2rem .1rem; min-width: 1.4rem; font-size: .75rem; }
.many thead tr + tr th { writing-mode: vertical-rl; }
.many tbody th { position: sticky; left: 0; background: #fff; }
details { margin: 1.25rem 0; }
summary { cursor: pointer; font: 600 .95rem var(--sans); padding: .4rem 0; }
.quiz { display: grid; grid-template-columns: repeat(auto-fill, minmax(5rem, 1fr));
  gap: 1rem .75rem; padding: 0; margin: 1.25rem 0; max-width: 60rem; list-style: none; }
.quiz img { display: block; width: 100%; height: auto; }
.quiz label { display: flex; align-items: center; gap: .35rem; margin-top: .25rem;
  font: .85rem var(--sans); color: var(--quiet); }
.quiz input { flex: 1; width: 1rem; min-width: 0; padding: .1rem; border: 0; border-radius: 0;
  border-bottom: 1px solid #999; background: none; text-align: center;
  font: 1rem var(--sans); color: var(--ink); }
.digit { image-rendering: pixelated; border: 1px solid var(--line); }
.answers .digit { width: 1.75rem; height: 1.75rem; margin-left: .4rem; vertical-align: middle; }
.answers tbody th { white-space: nowrap; text-align: right; }
.answers tr > * { vertical-align: middle; }
.wrong { color: var(--wrong); font-weight: 600; }
@media (max-width: 30rem) {
  body { font-size: 1rem; }
  h1 { font-size: 1.6rem; }
  th, td { padding: .25rem .4rem; }
  .confusion tr > * { padding: .25rem .1rem; min-width: 1.6rem;
    font-size: .75rem; }
  .answers tr > * { padding: .25rem .2rem; font-size: .75rem; }
}
@media print {
  @page { size: A4; margin: 15mm; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav, footer { display: none; }
  h1, h2, h3, summary { break-after: avoid; }
  h2 { margin-top: 8mm; }
  figure, tr, .scroll, dl, li, p { break-inside: avoid; }
  .panels { grid-template-columns: 1fr 1fr; gap: 0 6mm; }
  .scroll { overflow: visible; }
  table { font-size: 8pt; }
  th, td { padding: .6mm 1.5mm; }
  td.number { white-space: normal; }
  dl, figcaption, caption { font-size: 8.5pt; }
  .long { min-width: 0; }
  details:not([open], .answers) { display: none; }
  .sheet { break-before: page; }
  .sheet h2 { margin-top: 0; }
  .quiz { grid-template-columns: repeat(8, 1fr); gap: 3mm; max-width: none; }
  .quiz img { max-width: 20mm; }
  .answers { break-before: page; } /* printed, the answers are a separate sheet */
  .answers::details-content { content-visibility: visible; block-size: auto; }
  .many tr > * { padding: .3mm 0; min-width: 0; font-size: 4pt; }
  .answers .digit { width: 3.6mm; height: 3.6mm; }
  .answers tr > * { padding: .25mm 2mm; }
}
"""


def text(value):
    """A value as HTML. Control characters, also those that reverse the text, are shown escaped."""
    return escaping.escape(printable(value))


def document(title, html):
    """A complete HTML page."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" \
content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
{html}
</body>
</html>
"""


def heading(level, title, place=""):
    """A heading; `place` is its anchor for links."""
    mark = f' id="{text(place)}"' if place else ""
    return f"<h{level}{mark}>{text(title)}</h{level}>"


def section(html, kind=""):
    """A section of the page; `kind` is its CSS class."""
    mark = f' class="{kind}"' if kind else ""
    return f"<section{mark}>\n{html}\n</section>"


def contents(places):
    """Links to anchors of this page, {anchor: title}."""
    links = (
        f'<li><a href="#{text(name)}">{text(title)}</a></li>' for name, title in places.items()
    )
    return f'<nav aria-label="Contents"><ul>{"".join(links)}</ul></nav>'


def paragraph(words, kind=""):
    """A paragraph; its kind may be "quiet" or "note"."""
    mark = f' class="{kind}"' if kind else ""
    return f"<p{mark}>{text(words)}</p>"


def link(address, words):
    """A paragraph with a link to a file beside the page."""
    return f'<p><a href="{text(address)}">{text(words)}</a></p>'


def bullets(lines):
    """A bulleted list of lines."""
    return f"<ul>{''.join(f'<li>{text(line)}</li>' for line in lines)}</ul>"


def facts(values):
    """A list of names and values, from a dict."""
    rows = (
        f"<div><dt>{text(name)}</dt><dd>{text(brief(value, 300))}</dd></div>"
        for name, value in values.items()
    )
    return f"<dl>{''.join(rows)}</dl>"


def footer(words):
    """The last line of a page."""
    return f"<footer>{text(words)}</footer>"


def table(caption, frame):
    """A DataFrame as a table. Its first column holds the row headers."""
    frame = frame.map(lambda value: brief(value, _MOST_CELL))
    marks = [_alignment(frame.iloc[:, place]) for place in range(frame.shape[1])]
    head = "".join(
        f'<th scope="col"{mark}>{text(name)}</th>'
        for name, mark in zip(frame.columns, marks, strict=True)
    )
    rows = []
    for first, *others in frame.itertuples(index=False):
        cells = f'<th scope="row"{marks[0]}>{text(first)}</th>'
        for value, mark in zip(others, marks[1:], strict=True):
            cells += f"<td{mark}>{text(value)}</td>"
        rows.append(f"<tr>{cells}</tr>")
    return _scrolled(caption, f"<thead><tr>{head}</tr></thead>", rows)


def _alignment(values):
    """The CSS class of a column: right-aligned for numbers, a minimum width for long text."""
    shown = [str(value) for value in values if str(value)]
    if shown and all(_NUMBER.fullmatch(value) for value in shown):
        return ' class="number"'
    return ' class="long"' if max(map(len, shown), default=0) > 18 else ""


def _scrolled(caption, head, rows, kind=""):
    """A table in a box that scrolls sideways if the table is wider than the page."""
    body = "\n".join(rows)
    return (
        f'<div class="scroll{kind}" role="region" tabindex="0" aria-label="{text(caption)}">'
        f"<table><caption><span>{text(caption)}</span></caption>\n{head}\n"
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def fold(title, html, kind=""):
    """Content that is hidden until the reader opens it."""
    mark = f' class="{kind}"' if kind else ""
    return f"<details{mark}><summary>{text(title)}</summary>\n{html}\n</details>"


def figure(caption, *pictures):
    """Pictures with a caption below. A picture is (bytes of a PNG, its alternative text)."""
    images = "".join(_image(png, shows) for png, shows in pictures)
    if len(pictures) > 1:
        images = f'<div class="panels">{images}</div>'
    return f"<figure>{images}<figcaption>{text(caption)}</figcaption></figure>"


def panels(pictures):
    """One figure per picture of {caption: PNG}; narrow ones side by side if the page is wide."""
    narrow = [
        figure(caption, (png, caption)) for caption, png in pictures.items() if _is_narrow(png)
    ]
    wide = [
        figure(caption, (png, caption)) for caption, png in pictures.items() if not _is_narrow(png)
    ]
    together = f'<div class="panels">{"".join(narrow)}</div>' if narrow else ""
    return together + "".join(wide)


def _is_narrow(png):
    return _size(png)[0] <= PANEL


def _size(png):
    """(width, height) from the header of a PNG."""
    return struct.unpack(">II", png[16:24].ljust(8, b"\0"))


def _image(png, shows, more=""):
    """An embedded PNG. With its size, browsers lay out the page before they decode the image."""
    width, height = _size(png)
    data = base64.b64encode(png).decode()
    return (
        f'<img{more} src="data:image/png;base64,{data}" width="{width}" height="{height}" '
        f'alt="{text(shows)}">'
    )


def confusion(caption, counts, classes):
    """A confusion matrix (classes, classes): true classes in rows, predicted ones in columns."""
    places = range(len(counts))
    top = (
        f'<tr><th scope="col" rowspan="2">{_kind(classes)}</th>'
        f'<th scope="colgroup" colspan="{len(counts)}">predicted as</th>'
        '<th scope="col" rowspan="2">correct, %</th></tr>'
    )
    columns = "".join(f'<th scope="col">{text(name)}</th>' for name in short_names(classes, 12))
    most = max((counts[i, j] for i in places for j in places if i != j), default=0)
    rows = []
    for i, name in enumerate(classes):
        cells = "".join(_count(counts[i, j], i == j, most) for j in places)
        total = counts[i].sum()
        right = f"{100 * counts[i, i] / total:.2f}" if total else ""
        header = f'<th scope="row">{text(name)}</th>'
        rows.append(f'<tr>{header}{cells}<td class="number">{right}</td></tr>')
    head = f"<thead>{top}<tr>{columns}</tr></thead>"
    many = " many" if len(classes) > _MOST_WIDE else ""
    return _scrolled(caption, head, rows, f" confusion{many}")


def _kind(classes):
    """What classes are called: digits by their name."""
    return "digit" if tuple(classes) == DIGITS else "class"


def _count(count, right, most):
    if right:
        return f'<td class="right">{count:,}</td>'
    if not count:
        return '<td class="none">0</td>'
    depth = 0.12 + 0.5 * (count / most) ** 0.5  # square root: makes single errors visible
    return f'<td style="background: rgba(238, 119, 51, {depth:.2f})">{count:,}</td>'


# ---- the quiz ------------------------------------------------------------------------------------


def quiz(images, table, classes=DIGITS):
    """Pictures to guess, and the folded answers. Printed, each starts on a new sheet.

    images: (N, H, W) or (N, H, W, C) uint8. table: a DataFrame of hardest.rank, which lists some of
    them. classes: the names of all classes.
    """
    known, kind = "label" in table, _kind(classes)
    shown = [_png(images[number - 1]) for number in table["image"]]
    intro = "What digits are these? " if kind == "digit" else "What do you see? "
    intro += "Write down your guess beside each number. "
    if known:
        intro += (
            f"Of {len(images):,} test images these {len(table)} are the hardest ones for the "
            f"ensemble: those where it gave the right {kind} the lowest probability, the hardest "
            "first."
        )
    else:
        intro += (
            f"Of {len(images):,} test images these {len(table)} are those that the ensemble is "
            "least sure of, the hardest first. Their labels are unknown: the answers are the "
            "ensemble's guesses."
        )
    shows = ": a handwritten digit" if kind == "digit" else ""
    field = 'inputmode="numeric" maxlength="1"' if kind == "digit" else f'maxlength="{_MOST_CELL}"'
    items = "\n".join(
        f"<li>{_image(png, f'Picture {number}{shows}', _DIGIT)}<label>{number}"
        f'<input type="text" {field} autocomplete="off" '
        f'aria-label="Your guess for picture {number}"></label></li>'
        for number, png in enumerate(shown, start=1)
    )
    title = "The answers" if known else "The ensemble's guesses"
    return f'{paragraph(intro)}\n<ol class="quiz">\n{items}\n</ol>\n' + fold(
        title, _answers(shown, table, kind), "answers"
    )


_DIGIT = ' class="digit"'


def _answers(shown, table, kind):
    """A table of pictures (PNGs) with label, prediction and its probability."""
    known = "label" in table
    measure = "loss" if known else "entropy"
    names = ["picture", *["label"] * known, "ensemble", "probability", measure, "test image"]
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    rows = []
    for number, (png, row) in enumerate(zip(shown, table.to_dict("records"), strict=True), 1):
        wrong = known and row["label"] != row["predicted"]
        cells = [f"<td>{text(row['label'])}</td>"] if known else []
        mark = ' class="wrong"' if wrong else ""
        cells += [
            f"<td{mark}>{text(row['predicted'])}{', wrong' * wrong}</td>",
            f'<td class="number">{100 * row["probability"]:.1f} %</td>',
            f'<td class="number">{row[measure]:.3f}</td>',
            f'<td class="number">{row["image"]:,}</td>',
        ]
        picture = f"{number} {_image(png, f'Picture {number}', _DIGIT)}"
        rows.append(f'<tr><th scope="row">{picture}</th>{"".join(cells)}</tr>')
    if known:
        right = (table["label"] == table["predicted"]).sum()
        caption = f"The ensemble has {right} of these {len(table)} right. And you?"
    else:
        caption = "The ensemble's guesses."
    caption += f" Probability: of the predicted {kind}; {measure}: in nats."
    return _scrolled(caption, f"<thead><tr>{head}</tr></thead>", rows)


def quiz_page(images, table, classes=DIGITS):
    """A complete page with only the quiz; arguments as for quiz()."""
    title = f"Quiz: the {len(table)} hardest {'digits' if _kind(classes) == 'digit' else 'images'}"
    questions = quiz(images, table, classes)
    return document(title, f"<main>\n{heading(1, title)}\n{questions}\n</main>")


def _png(image):
    """A PNG of an image, (H, W) or (H, W, C) uint8. Grey is inverted: 255, ink, is black on white.

    Source: "Portable Network Graphics (PNG) Specification", 3rd edition, W3C.
    """
    image = visible(image).astype(np.uint8)
    colour = image.ndim == 3
    rows = (image if colour else 255 - image).reshape(len(image), -1)
    rows = np.pad(rows, ((0, 0), (1, 0)))  # first byte of a row: filter type 0, none
    header = struct.pack(">IIBBBBB", image.shape[1], image.shape[0], 8, 2 * colour, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b"")
    return PNG + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
