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
  at("undo").disabled = !earlier.length;
  at("clear").disabled = !strokes.length;
}

const url = URL.createObjectURL(new Blob([at("worker").textContent], { type: "text/javascript" }));
const worker = new Worker(url);
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
  isBusy = image !== null;
  endedAt = ended;
  if (isBusy) worker.postMessage({ id: asked, image, shown: shownNet() });
  else showNothing();
}

worker.onmessage = ({ data }) => {
  if (data === "ready") {
    isReady = true;
    update(true);
  } else if (data.id === asked) {
    isBusy = false;
    show(data.outputs);
    if (data.maps) showMaps(data.maps);
    if (isBehind) ask(null);
  }
};
worker.onerror = () => {
  at("verdict").textContent = "This browser does not run the networks.";
};
worker.postMessage(at("network").textContent);

// ---- what the networks say ----------------------------------------------------------------------

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
  const words =
    `probability ${percent(means[winner])}, ${agreeing} of ${voting.length} ` +
    `net${voting.length > 1 ? "s" : ""} agree${voting.length > 1 ? "" : "s"}` +
    (isUnsure ? ", unsure" : "");
  at("verdict").replaceChildren(element("strong", about.classes[winner]), ` ${words}`);
  showBars(means, winner);
  outputs.forEach((output, net) => showVote(votes[net], about.nets[net], output, winner));
  if (endedAt === null) return;
  at("time").textContent = `Answered in ${Math.round(performance.now() - endedAt)} ms.`;
  at("spoken").textContent = `${about.classes[winner]}, ${words}`;
}

function showBars(means, winner) {
  const order = [...means.keys()];
  if (means.length > rows.length) order.sort((a, b) => means[b] - means[a]);
  rows.forEach(({ row, name, bar, value }, i) => {
    name.textContent = about.classes[order[i]];
    value.textContent = percent(means[order[i]]);
    bar.style.width = `${100 * Math.min(Math.max(means[order[i]], 0), 1)}%`;
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

function showNothing(words = "") {
  const prompt = strokes.length ? "Draw something larger." : `Draw ${about.what}.`;
  at("verdict").textContent = words || (isReady ? prompt : "The networks are being loaded.");
  at("spoken").textContent = "";
  at("time").textContent = "";
  showBars(about.classes.map(() => 0), -1);
  votes.forEach((item, net) => {
    item.textContent = `net ${about.nets[net]}`;
    item.className = "";
  });
  at("maps").replaceChildren();
}

// ---- what the layers make of it -----------------------------------------------------------------

about.nets.forEach((number, i) => at("net").append(new Option(`net ${number}`, i)));

// The place of the net whose layers are shown, or null.
function shownNet() {
  return at("layers").open ? Number(at("net").value) : null;
}

at("layers").addEventListener("toggle", () => ask(null));
at("net").addEventListener("change", () => ask(null));

// maps: the outputs of all layers. Dropout and Flatten change no value, so they are left out.
function showMaps(maps) {
  const shown = maps.flatMap((map, i) => {
    const { kind, name } = about.layers[i];
    return kind === "Dropout" || kind === "Flatten" ? [] : [layerFigure(name, map)];
  });
  at("maps").replaceChildren(...shown);
}

// A figure of a layer's output: the maps of its channels side by side, or its values as one map.
function layerFigure(name, { shape, data }) {
  let [H, W, C] = shape;
  let size = `${C} maps of ${H} x ${W} pixels`;
  let pixel = W > 14 ? 2 : W > 5 ? 4 : 8; // of the screen, for one of a map
  if (shape.length === 1 || H * W === 1) {
    size = `${data.length} values`;
    W = Math.min(data.length, 32);
    [H, C] = [Math.ceil(data.length / W), 1];
    pixel = 8;
  }
  const low = data.reduce((a, b) => Math.min(a, b));
  const high = data.reduce((a, b) => Math.max(a, b));
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
  const canvas = element("canvas");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `The output of ${name}`);
  canvas.style.width = `${width * pixel}px`;
  paintGrey(canvas, width, height, values, low, high);
  const figure = element("figure");
  const range = `${low.toPrecision(3)} (black) to ${high.toPrecision(3)} (white)`;
  const first = count < C ? `, the first ${count} of them` : "";
  figure.append(canvas, element("figcaption", `${name}: ${size}${first}, ${range}`));
  return figure;
}

// ---- painting -----------------------------------------------------------------------------------

// Values as grey pixels, from black for `low` to white for `high`; NaN is transparent.
function paintGrey(canvas, width, height, values, low, high) {
  const pixels = new ImageData(width, height);
  values.forEach((value, i) => {
    const grey = high > low ? (255 * (value - low)) / (high - low) : 0;
    pixels.data.fill(grey, 4 * i, 4 * i + 3);
    pixels.data[4 * i + 3] = Number.isNaN(value) ? 0 : 255;
  });
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
update(false);
