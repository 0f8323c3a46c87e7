"use strict";

// What the page shows. paper.js has the strokes that a person draws, prepare.js makes of them the
// image that the networks see, and worker.js runs the networks. The names of classes are unknown
// text: they are set as textContent only.

const MOST_CLASSES = 16; // with more classes, only the most probable ones are listed
const LISTED = 10;
const MOST_MAPS = 256; // feature maps of a layer that are shown
const ACROSS = 8; // of them in a row

const at = (id) => document.getElementById(id);
const about = JSON.parse(at("about").textContent); // {classes, nets, layers, examples, what}

function element(tag, text = "", kind = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = kind;
  return made;
}

function percent(probability) {
  return `${(100 * probability).toFixed(1)} %`;
}

// ---- from strokes to answers --------------------------------------------------------------------

let frame = null; // the update that waits for the next frame

// Updates once a frame, however often the pen moves.
function updateSoon() {
  if (frame === null)
    frame = requestAnimationFrame(() => {
      frame = null;
      update(false);
    });
}

// ended: whether a stroke has ended, rather than moved on.
function update(ended) {
  const now = performance.now();
  if (frame !== null) cancelAnimationFrame(frame);
  frame = null;
  image = prepare(strokes, PEN);
  ask(ended ? now : null);
  paintPaper();
  paintGrey(at("seen"), SIDE, SIDE, image ?? new Uint8Array(SIDE * SIDE), 0, 255);
  disable(at("undo"), !earlier.length);
  disable(at("clear"), !strokes.length);
}

// A button that is disabled loses the focus, so the paper takes it.
function disable(button, isDisabled) {
  if (isDisabled && document.activeElement === button) paper.focus();
  button.disabled = isDisabled;
}

function say(words) {
  at("spoken").textContent = words;
}

let worker = null;
let failure = ""; // why no answer can come
let image = null; // that the networks see
let isReady = false;
let asked = 0; // the id of the last question
let isBusy = false; // whether its answer has not come yet
let isBehind = false; // whether the image has changed since
let endedAt = null; // when the stroke ended after which it was asked

// Asks the networks about the image: at once if a stroke has ended, else after the last answer.
function ask(ended) {
  isBehind = isBusy && ended === null && image !== null;
  if (isBehind) return;
  asked++; // the answer to an earlier question is not shown any more
  isBusy = image !== null && !failure;
  endedAt = ended;
  if (isBusy) worker.postMessage({ id: asked, image, shown: shownNet() });
  else showNothing();
}

function receive({ data }) {
  if (data === "ready") {
    isReady = true;
    update(pointer === null && !cursor.isDown);
  } else if (data.id === asked) {
    isBusy = false;
    show(data.outputs);
    showMaps(data.maps);
    if (isBehind) ask(null);
  }
}

function fail() {
  failure = "The networks cannot be run: this browser is too old, or the file is damaged.";
  isBusy = isBehind = false;
  showNothing();
}

function startWorker() {
  const source = new Blob([at("worker").textContent], { type: "text/javascript" });
  worker = new Worker(URL.createObjectURL(source));
  worker.onmessage = receive;
  worker.onerror = fail;
  worker.postMessage(at("network").textContent);
}

// ---- what the networks say ----------------------------------------------------------------------

const longest = Math.max(...about.classes.map((name) => name.length)); // characters
at("names").style.width = `${Math.min(Math.max(longest, 5), 16) + 1}ch`;
at("answer").classList.toggle("named", longest > 5);

const listed = about.classes.length > MOST_CLASSES ? LISTED : about.classes.length;
const rows = Array.from({ length: listed }, () => {
  const row = element("tr");
  const [name, cell, value] = [element("th"), element("td"), element("td", "", "number")];
  const bar = element("div", "", "bar");
  name.scope = "row";
  cell.append(bar);
  row.append(name, cell, value);
  at("bars").append(row);
  return { row, name, bar, value };
});
const votes = about.nets.map(() => at("votes").appendChild(element("li")));

function best(values) {
  return values.reduce((most, value, i) => (value > values[most] ? i : most), 0);
}

// outputs: the probabilities of each net.
function show(outputs) {
  const voting = outputs.filter((output) => output.every(Number.isFinite));
  if (!voting.length) {
    showNothing("The networks do not predict finite values.");
    return;
  }
  const means = about.classes.map(
    (_, i) => voting.reduce((sum, output) => sum + output[i], 0) / voting.length,
  );
  const winner = best(means);
  const agreeing = voting.filter((output) => best(output) === winner).length;
  const isUnsure = means[winner] < 0.5 || 3 * agreeing < 2 * voting.length;
  const agree = outputs.length > 1 ? `, ${agreeing} of ${voting.length} nets agree` : "";
  const words = `probability ${percent(means[winner])}${agree}${isUnsure ? ", unsure" : ""}`;
  at("verdict").replaceChildren(element("strong", about.classes[winner]), ` ${words}`);
  showBars(means, winner);
  outputs.forEach((output, net) => showVote(votes[net], about.nets[net], output, winner));
  if (endedAt === null) return;
  at("time").textContent = `Answered in ${Math.round(performance.now() - endedAt)} ms.`;
  say(`${about.classes[winner]}, ${words}`);
}

// means: of each class; winner: the most probable one, or null if there is no answer.
function showBars(means, winner) {
  const order = [...means.keys()];
  if (means.length > rows.length) order.sort((a, b) => means[b] - means[a]);
  rows.forEach(({ row, name, bar, value }, i) => {
    const mean = means[order[i]];
    name.textContent = about.classes[order[i]];
    value.textContent = winner === null ? "" : percent(mean);
    bar.style.width = `${100 * Math.min(Math.max(mean, 0), 1)}%`;
    row.className = order[i] === winner ? "winner" : "";
  });
}

function showVote(item, number, output, winner) {
  const choice = best(output);
  const hasVote = output.every(Number.isFinite);
  const name = element("strong", about.classes[choice]);
  const vote = hasVote ? [name, ` ${percent(output[choice])}`] : ["no vote"];
  item.className = hasVote && choice === winner ? "" : "other";
  item.replaceChildren(`net ${number}: `, ...vote);
}

function showNothing(problem = failure) {
  const prompt = strokes.length ? "Draw something larger." : `Draw ${about.what}.`;
  const words = problem || (isReady ? prompt : "The networks are being loaded.");
  at("verdict").textContent = words;
  if (problem || endedAt !== null) say(problem || strokes.length ? words : "");
  at("time").textContent = "";
  showBars(about.classes.map(() => 0), null);
  votes.forEach((item, net) => {
    item.textContent = `net ${about.nets[net]}`;
    item.className = "";
  });
  showMaps(null);
}

// ---- what the layers make of it -----------------------------------------------------------------

about.nets.forEach((number, i) => at("net").append(new Option(`net ${number}`, i)));

// The place of the net whose layers are shown, or null.
function shownNet() {
  return at("layers").open ? Number(at("net").value) : null;
}

at("layers").addEventListener("toggle", () => ask(null));
at("net").addEventListener("change", () => ask(null));

const figures = new Map(); // of each layer that is shown, {canvas, caption}

// maps: the outputs of all layers, or null. Dropout and Flatten change no value, so they are left
// out.
function showMaps(maps) {
  at("maps").hidden = maps === null;
  at("unmapped").hidden = maps !== null;
  if (maps === null) return;
  for (const [i, { kind, name }] of about.layers.entries()) {
    if (kind === "Dropout" || kind === "Flatten") continue;
    if (!figures.has(i)) figures.set(i, addFigure(name));
    paintLayer(figures.get(i), name, maps[i]);
  }
}

function addFigure(name) {
  const [figure, canvas, caption] = ["figure", "canvas", "figcaption"].map((tag) => element(tag));
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `The output of ${name}`);
  figure.append(canvas, caption);
  at("maps").append(figure);
  return { canvas, caption };
}

// A layer's output: the maps of its channels side by side, or its values as one map.
function paintLayer({ canvas, caption }, name, { shape, data }) {
  let [H, W, C] = shape;
  let size = `${C} maps of ${H} x ${W} pixels`;
  let pixel = W > 14 ? 2 : W > 5 ? 4 : 8; // of the screen, for one of a map
  if (shape.length === 1 || H * W === 1) {
    size = `${data.length} values`;
    W = Math.min(data.length, 32);
    [H, C] = [Math.ceil(data.length / W), 1];
    pixel = 8;
  }
  let [low, high] = [Infinity, -Infinity];
  for (const value of data) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  const count = Math.min(C, MOST_MAPS);
  const across = Math.min(count, ACROSS);
  const width = across * (W + 1) - 1; // a pixel between maps
  const height = Math.ceil(count / across) * (H + 1) - 1;
  const values = new Float32Array(width * height).fill(NaN);
  for (let map = 0; map < count; map++) {
    const first = Math.floor(map / across) * (H + 1) * width + (map % across) * (W + 1);
    for (let r = 0; r < H; r++)
      for (let c = 0; c < W && (r * W + c) * C < data.length; c++)
        values[first + r * width + c] = data[(r * W + c) * C + map];
  }
  canvas.style.width = `${width * pixel}px`;
  paintGrey(canvas, width, height, values, low, high);
  const range = `${low.toPrecision(3)} (black) to ${high.toPrecision(3)} (white)`;
  const first = count < C ? `, the first ${count} of them` : "";
  caption.textContent = `${name}: ${size}${first}, ${range}`;
}

// ---- painting -----------------------------------------------------------------------------------

// Values as grey pixels, from black for `low` to white for `high`; NaN is transparent.
function paintGrey(canvas, width, height, values, low, high) {
  const pixels = new ImageData(width, height);
  const bytes = pixels.data; // red, green, blue, opacity
  const scale = high > low ? 255 / (high - low) : 0;
  for (let i = 0, at = 0; i < values.length; i++, at += 4) {
    const grey = scale * (values[i] - low);
    bytes[at] = bytes[at + 1] = bytes[at + 2] = grey;
    bytes[at + 3] = Number.isNaN(grey) ? 0 : 255;
  }
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== height) canvas.height = height;
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

// ---- buttons ------------------------------------------------------------------------------------

let turn = 2;

at("undo").addEventListener("click", undo);
at("clear").addEventListener("click", clear);
at("example").addEventListener("click", () =>
  change(about.examples[turn++ % about.examples.length]),
);
at("example").hidden = !about.examples.length;

try {
  startWorker();
} catch {
  fail();
}
update(false);
