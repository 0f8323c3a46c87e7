"use strict";

// The worker of the page: it runs the nets (network.js, kernels.js) beside the page, so that drawing
// goes on.
//
// The first message is the network, the text that drawpage/__init__.py writes; it is answered with
// "ready". Each further one is {id, image, shown}: bytes, where 255 is ink, and the place of the
// net whose layers are shown, or null. Its answer is {id, outputs, maps}: the probabilities of each
// net, and the outputs of the layers of the one shown. A message ends the work on those before it,
// which then get no answer.

let network = null;
let newest = null; // the id of the last message

onmessage = ({ data }) => {
  if (network === null) start(data);
  else answer(data).catch(report);
};

// Lets the page know of an error: one in an async function would not reach its worker.onerror.
function report(error) {
  setTimeout(() => {
    throw error;
  });
}

function start(text) {
  const stored = JSON.parse(text);
  const { layers, input_shape } = stored.architecture;
  const nets = stored.nets.map((net) => readWeights(net.weights));
  useKernels(stored.kernels);
  network = { layers, shape: input_shape, nets };
  // The first runs are slow, because the browser compiles during them.
  const blank = { shape: input_shape, data: new Float32Array(input_shape.reduce((a, b) => a * b)) };
  for (let i = 0; i < 3; i++) forward(layers, network.nets[0], blank);
  postMessage("ready");
}

async function answer({ id, image, shown }) {
  newest = id;
  const x = { shape: network.shape, data: Float32Array.from(image, (value) => value / 255) };
  const outputs = [];
  let maps = null;
  for (const [place, weights] of network.nets.entries()) {
    await otherMessages();
    if (newest !== id) return;
    const found = forward(network.layers, weights, x);
    outputs.push(found[found.length - 1].data);
    if (place === shown) maps = found;
  }
  postMessage({ id, outputs, maps });
}

// Resolves after the messages that wait have been handled.
const channel = new MessageChannel();

function otherMessages() {
  return new Promise((resolve) => {
    channel.port1.onmessage = resolve;
    channel.port2.postMessage(null);
  });
}
