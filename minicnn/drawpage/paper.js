"use strict";

// The paper: the strokes that a person draws on it, with a mouse, a pen, a finger or the keyboard.
// page.js has update(ended) and updateSoon(), which are called after each change, and say(words).

const PEN = 1 / 12; // its width; the sides of the paper are 1
const NEAR = 1 / 400; // points of a stroke are no nearer than that
const STEP = 1 / 56; // how far an arrow key moves the pen

const paper = document.getElementById("paper");
let strokes = []; // lists of points [x, y], from 0 to 1
const earlier = []; // the strokes before each change
let pointer = null; // the id of the pointer that draws
const cursor = { x: 0.5, y: 0.5, isShown: false, isDown: false }; // of the keyboard

function change(next) {
  lift();
  earlier.push(strokes);
  strokes = next;
  update(true);
}

function begin(point) {
  earlier.push(strokes);
  strokes = [...strokes, [point]];
}

function extend([x, y]) {
  const stroke = strokes[strokes.length - 1];
  const [lastX, lastY] = stroke[stroke.length - 1];
  if (Math.hypot(x - lastX, y - lastY) >= NEAR) stroke.push([x, y]);
}

// Ends the stroke that is being drawn, by pointer or keyboard.
function lift() {
  pointer = null;
  cursor.isDown = false;
}

function undo() {
  lift();
  if (earlier.length) strokes = earlier.pop();
  update(true);
}

function clear() {
  if (strokes.length) change([]);
}

// ---- pointer: mouse, pen and finger -------------------------------------------------------------

function place(event) {
  const box = paper.getBoundingClientRect();
  const within = (value) => Math.min(Math.max(value, 0), 1);
  return [
    within((event.clientX - box.left) / box.width),
    within((event.clientY - box.top) / box.height),
  ];
}

paper.addEventListener("pointerdown", (event) => {
  if (event.button !== 0) return;
  if (pointer !== null) {
    if (event.pointerType !== "pen") return; // a second finger, or the palm
    undo(); // what the palm has drawn before the pen came
  }
  lift();
  cursor.isShown = false;
  pointer = event.pointerId;
  paper.setPointerCapture(pointer);
  begin(place(event));
  updateSoon();
});

paper.addEventListener("pointermove", (event) => {
  if (event.pointerId !== pointer) return;
  const moves = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
  for (const move of moves.length ? moves : [event]) extend(place(move));
  updateSoon();
});

// The last one comes alone if the page could not see where the pointer was lifted.
for (const kind of ["pointerup", "pointercancel", "lostpointercapture"])
  paper.addEventListener(kind, (event) => {
    if (event.pointerId !== pointer) return;
    lift();
    update(true);
  });

// ---- keyboard -----------------------------------------------------------------------------------

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const held = new Set(); // arrow keys: two of them move the pen diagonally

paper.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key in ARROWS) {
    held.add(event.key);
    move(event.shiftKey ? 4 * STEP : STEP);
  } else if (event.key === " " || event.key === "Enter") {
    if (!event.repeat) togglePen();
  } else if (event.key === "Delete" || event.key === "Backspace") clear();
  else return;
  event.preventDefault();
});

paper.addEventListener("keyup", (event) => held.delete(event.key));
paper.addEventListener("blur", () => {
  held.clear();
  if (cursor.isDown) togglePen();
});

document.addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && !event.shiftKey && event.key.toLowerCase() === "z") {
    event.preventDefault();
    undo();
  }
});

function move(step) {
  for (const key of held) {
    cursor.x = Math.min(Math.max(cursor.x + step * ARROWS[key][0], 0), 1);
    cursor.y = Math.min(Math.max(cursor.y + step * ARROWS[key][1], 0), 1);
  }
  cursor.isShown = true;
  if (cursor.isDown) {
    extend([cursor.x, cursor.y]);
    updateSoon();
  } else paintPaper();
}

function togglePen() {
  cursor.isShown = true;
  if (cursor.isDown) lift();
  else if (pointer === null) {
    cursor.isDown = true;
    begin([cursor.x, cursor.y]);
    say("The pen is down.");
  }
  update(!cursor.isDown);
}

// ---- painting -----------------------------------------------------------------------------------

function paintPaper() {
  const pen = paper.getContext("2d");
  const side = paper.width;
  const style = getComputedStyle(paper);
  pen.clearRect(0, 0, side, side);
  pen.lineCap = pen.lineJoin = "round";
  pen.lineWidth = PEN * side;
  pen.strokeStyle = style.color;
  for (const stroke of strokes) {
    pen.beginPath();
    pen.moveTo(stroke[0][0] * side, stroke[0][1] * side);
    pen.lineTo(stroke[0][0] * side + 0.01, stroke[0][1] * side); // a dot, if there is nothing else
    for (const [x, y] of stroke) pen.lineTo(x * side, y * side);
    pen.stroke();
  }
  if (cursor.isShown) paintCursor(pen, side, style);
}

// A circle with a plus in it, a minus if the pen is down: in the paper's colour, wider, so that it
// can be seen on ink, then in its own.
function paintCursor(pen, side, style) {
  pen.beginPath();
  pen.arc(cursor.x * side, cursor.y * side, (PEN * side) / 2, 0, 2 * Math.PI);
  pen.moveTo(cursor.x * side - (PEN * side) / 4, cursor.y * side);
  pen.lineTo(cursor.x * side + (PEN * side) / 4, cursor.y * side);
  if (!cursor.isDown) {
    pen.moveTo(cursor.x * side, cursor.y * side - (PEN * side) / 4);
    pen.lineTo(cursor.x * side, cursor.y * side + (PEN * side) / 4);
  }
  pen.lineWidth = side / 60;
  pen.strokeStyle = style.backgroundColor;
  pen.stroke();
  pen.lineWidth = side / 200;
  pen.strokeStyle = style.outlineColor;
  pen.stroke();
}

// Gives the paper, which is square, the pixels of the screen.
function fitPaper() {
  paper.width = paper.height = Math.max(1, Math.round(paper.clientWidth * devicePixelRatio));
  paintPaper();
}
new ResizeObserver(fitPaper).observe(paper);
addEventListener("resize", fitPaper); // the page is zoomed, or moved to another screen
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paintPaper);
