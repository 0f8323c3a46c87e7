"use strict";

// From the strokes of a drawing to the image that the networks see, prepared as MNIST's images are:
// a twin of data/handwriting.py for strokes instead of photos. Its numbers are the same, but WIDEST,
// which makes the strokes of small drawings thinner.

const SIDE = 28; // pixels, the side of the image
const FITTED = 20; // pixels, the longer side of the digit in it
const CENTRE = 14.5; // pixels from the edge: where its centre of mass is, as in MNIST
const NARROWEST = 1.9; // pixels, the width of its strokes: 95 % of MNIST's are wider
const WIDEST = 3.5; // pixels: with a small drawing, the pen would fill the digit's holes

// The image, a Uint8Array (28 * 28) in which 255 is ink; null if the strokes are only a dot.
// strokes: lists of points [x, y]; pen: its width, in the same unit.
function prepare(strokes, pen) {
  const [left, right] = extent(strokes, 0);
  const [top, bottom] = extent(strokes, 1);
  const longer = Math.max(right - left, bottom - top); // of the pen's way
  if (!(longer > pen)) return null;
  const width = Math.min(Math.max((FITTED * pen) / (longer + pen), NARROWEST), WIDEST);
  const scale = (FITTED - width) / longer;
  const drawAround = (x, y) =>
    inkOf(
      strokes.map((stroke) =>
        stroke.map((point) => [
          (point[0] - (left + right) / 2) * scale + x,
          (point[1] - (top + bottom) / 2) * scale + y,
        ]),
      ),
      width / 2,
    );
  const middle = SIDE / 2;
  const [x, y] = centreOfMass(drawAround(middle, middle));
  const ink = drawAround(middle + CENTRE - x, middle + CENTRE - y);
  const most = ink.reduce((a, b) => Math.max(a, b));
  return Uint8Array.from(ink, (value) => Math.round((255 * value) / most));
}

// [lowest, highest] coordinate of all points.
function extent(strokes, axis) {
  let [low, high] = [Infinity, -Infinity];
  for (const stroke of strokes)
    for (const point of stroke) {
      low = Math.min(low, point[axis]);
      high = Math.max(high, point[axis]);
    }
  return [low, high];
}

// The ink (28 * 28), from 0 to 1, of strokes that are drawn with a round pen; all in pixels.
function inkOf(strokes, radius) {
  const ink = new Float32Array(SIDE * SIDE);
  const reach = radius + 1;
  const pixels = (low, high) => [
    Math.max(0, Math.floor(low - reach)),
    Math.min(SIDE, Math.ceil(high + reach)),
  ];
  for (const stroke of strokes)
    stroke.forEach(([x1, y1], i) => {
      const [x0, y0] = stroke[Math.max(i - 1, 0)];
      const [firstRow, lastRow] = pixels(Math.min(y0, y1), Math.max(y0, y1));
      const [firstColumn, lastColumn] = pixels(Math.min(x0, x1), Math.max(x0, x1));
      for (let r = firstRow; r < lastRow; r++)
        for (let c = firstColumn; c < lastColumn; c++) {
          const far = distance(c + 0.5, r + 0.5, x0, y0, x1, y1);
          const at = r * SIDE + c;
          ink[at] = Math.max(ink[at], edge(far + radius) - edge(far - radius));
        }
    });
  return ink;
}

// The distance of (x, y) from the line between two points.
function distance(x, y, x0, y0, x1, y1) {
  const [dx, dy] = [x1 - x0, y1 - y0];
  const square = dx * dx + dy * dy;
  const t = square && Math.min(Math.max(((x - x0) * dx + (y - y0) * dy) / square, 0), 1);
  return Math.hypot(x - x0 - t * dx, y - y0 - t * dy);
}

// How much of a pixel's weight lies on one side of an edge that is `t` pixels from its middle. The
// weight is a triangle from -1 to 1, as in handwriting.py.
function edge(t) {
  if (t <= -1 || t >= 1) return t < 0 ? 0 : 1;
  return t < 0 ? (1 + t) ** 2 / 2 : 1 - (1 - t) ** 2 / 2;
}

// [x, y], in pixels from the edge.
function centreOfMass(ink) {
  let [total, x, y] = [0, 0, 0];
  ink.forEach((value, i) => {
    total += value;
    x += value * ((i % SIDE) + 0.5);
    y += value * (Math.floor(i / SIDE) + 0.5);
  });
  return [x / total, y / total];
}
