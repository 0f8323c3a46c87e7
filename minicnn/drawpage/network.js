"use strict";

// The forward pass of a net for one image: a twin of backends/ops_numpy.py in JavaScript, for
// inference only. A tensor is {shape, data}: the shape [H, W, C] of an image or [K] of a vector,
// and a Float32Array, channels last. Sums are computed in 64 bits and stored in 32.
//
// worker.js runs this file in the page. The weights come from drawpage/__init__.py.

// ---- the net ------------------------------------------------------------------------------------

// The outputs of all layers, a list of tensors; the last one is the net's.
// layers: the layers of an Architecture, as as_dict() gives them. weights: of each layer, {name:
// Float32Array}. x: the image as a tensor.
function forward(layers, weights, x) {
  return layers.map((layer, i) => (x = LAYERS[layer.layer](x, layer, weights[i])));
}

const LAYERS = {
  Conv2D: (x, layer, w) => activate(layer.activation, conv2d(x, layer, w.kernel, w.bias)),
  BatchNormalization: (x, layer, w) => batchNorm(x, w.scale, w.shift),
  Dropout: (x) => x,
  MaxPooling2D: (x, layer) => maxPool(x, layer),
  Flatten: (x) => ({ shape: [x.data.length], data: x.data }),
  Dense: (x, layer, w) => activate(layer.activation, dense(x, w.kernel, w.bias)),
  Activation: (x, layer) => activate(layer.activation, { ...x, data: x.data.slice() }),
};

function zeros(...shape) {
  return { shape, data: new Float32Array(shape.reduce((a, b) => a * b)) };
}

// ---- activations --------------------------------------------------------------------------------

// y = activation(y), in place. softmax is over the last axis.
function activate(name, y) {
  const { data } = y;
  if (name === "softmax") {
    const length = y.shape[y.shape.length - 1];
    for (let at = 0; at < data.length; at += length) softmax(data.subarray(at, at + length));
  } else if (name !== "linear") {
    const activation = ACTIVATIONS[name];
    for (let i = 0; i < data.length; i++) data[i] = activation(data[i]);
  }
  return y;
}

const ACTIVATIONS = {
  relu: (value) => (value > 0 ? value : 0),
  sigmoid: (value) => 1 / (1 + Math.exp(-value)),
  tanh: Math.tanh,
};

function softmax(row) {
  const most = row.reduce((a, b) => Math.max(a, b));
  let sum = 0;
  for (let i = 0; i < row.length; i++) sum += row[i] = Math.exp(row[i] - most);
  for (let i = 0; i < row.length; i++) row[i] /= sum;
}

// ---- convolution and dense layers ---------------------------------------------------------------

// y [Ho, Wo, Cout] from x [H, W, Cin], kernel (kh, kw, Cin, Cout) and bias (Cout), without the
// activation:
//
//     y[r, c] = bias + sum over i, j of x[r*sh + i - top, c*sw + j - left] @ kernel[i, j]
function conv2d(x, { kernel_size: [kh, kw], strides: [sh, sw], padding }, kernel, bias) {
  const { before, after, output } = fitWindow([kh, kw], [sh, sw], padding, x.shape);
  const padded = pad(x, before, after);
  const [, W, C] = padded.shape;
  const [Ho, Wo] = output;
  const starts = new Int32Array(Ho * Wo); // where the patch of each output pixel starts
  for (let r = 0; r < Ho; r++)
    for (let c = 0; c < Wo; c++) starts[r * Wo + c] = (r * sh * W + c * sw) * C;
  const y = zeros(Ho, Wo, bias.length);
  correlate(padded.data, starts, kh, W * C, kw * C, kernel, bias, y.data);
  return y;
}

// y [units] from x [K], kernel (K, units) and bias (units): a single patch of one row.
function dense(x, kernel, bias) {
  const y = zeros(bias.length);
  correlate(x.data, new Int32Array(1), 1, 0, x.data.length, kernel, bias, y.data);
  return y;
}

// y (N, Cout) = patches of x (N, K) @ kernel (K, Cout) + bias (Cout).
//
// Patch n consists of `kh` rows of `length` elements; the first row is at starts[n] of x, and each
// next one `pitch` further on. K = kh * length.
function correlate(x, starts, kh, pitch, length, kernel, bias, y) {
  const N = starts.length;
  const Cout = bias.length;
  const tiledN = N - (N % 4);
  const tiledCout = Cout - (Cout % 2);
  // Columns outside: the two columns of the kernel stay in the cache for all patches.
  for (let c = 0; c < tiledCout; c += 2)
    for (let n = 0; n < tiledN; n += 4)
      tile(x, starts, n, kh, pitch, length, kernel, bias, c, y);
  for (let n = 0; n < N; n++) {
    const first = n < tiledN ? tiledCout : 0;
    if (first < Cout) patch(x, starts[n], kh, pitch, length, kernel, bias, first, y, n);
  }
}

// Four patches times two columns. Eight sums use each element that is loaded two or four times, and
// still fit in registers: this takes a quarter of the time of one sum after the other.
function tile(x, starts, n, kh, pitch, length, kernel, bias, c, y) {
  const Cout = bias.length;
  let [p0, p1, p2, p3] = [starts[n], starts[n + 1], starts[n + 2], starts[n + 3]];
  let a0 = bias[c], a1 = a0, a2 = a0, a3 = a0;
  let b0 = bias[c + 1], b1 = b0, b2 = b0, b3 = b0;
  let k = c;
  for (let i = 0; i < kh; i++) {
    for (let j = 0; j < length; j++) {
      const a = kernel[k], b = kernel[k + 1];
      const x0 = x[p0 + j], x1 = x[p1 + j], x2 = x[p2 + j], x3 = x[p3 + j];
      a0 += x0 * a;
      b0 += x0 * b;
      a1 += x1 * a;
      b1 += x1 * b;
      a2 += x2 * a;
      b2 += x2 * b;
      a3 += x3 * a;
      b3 += x3 * b;
      k += Cout;
    }
    p0 += pitch;
    p1 += pitch;
    p2 += pitch;
    p3 += pitch;
  }
  let at = n * Cout + c;
  y[at] = a0;
  y[at + 1] = b0;
  at += Cout;
  y[at] = a1;
  y[at + 1] = b1;
  at += Cout;
  y[at] = a2;
  y[at + 1] = b2;
  at += Cout;
  y[at] = a3;
  y[at + 1] = b3;
}

// One patch, n, times the columns from `first` on: those that no tile computes.
function patch(x, start, kh, pitch, length, kernel, bias, first, y, n) {
  const Cout = bias.length;
  const sums = Float64Array.from(bias.subarray(first));
  let k = first;
  for (let i = 0; i < kh; i++, start += pitch)
    for (let j = 0; j < length; j++, k += Cout) {
      const value = x[start + j];
      for (let c = 0; c < sums.length; c++) sums[c] += value * kernel[k + c];
    }
  y.set(sums, n * Cout + first);
}

// ---- batch normalisation and pooling ------------------------------------------------------------

// y = scale * x + shift for each channel; drawpage/__init__.py computes both.
function batchNorm(x, scale, shift) {
  const y = zeros(...x.shape);
  const C = scale.length;
  for (let i = 0; i < y.data.length; i += C)
    for (let c = 0; c < C; c++) y.data[i + c] = scale[c] * x.data[i + c] + shift[c];
  return y;
}

// y [Ho, Wo, C]: the maximum of x [H, W, C] under each window. Padding is never the maximum.
function maxPool(x, { pool_size: [kh, kw], strides: [sh, sw], padding }) {
  const [H, W, C] = x.shape;
  const { before, output } = fitWindow([kh, kw], [sh, sw], padding, x.shape);
  const y = zeros(...output, C);
  let at = 0;
  for (let r = 0; r < output[0]; r++) {
    const top = r * sh - before[0];
    for (let c = 0; c < output[1]; c++) {
      const left = c * sw - before[1];
      for (let channel = 0; channel < C; channel++) {
        let most = -Infinity;
        for (let i = Math.max(top, 0); i < Math.min(top + kh, H); i++)
          for (let j = Math.max(left, 0); j < Math.min(left + kw, W); j++)
            most = Math.max(most, x.data[(i * W + j) * C + channel]);
        y.data[at++] = most;
      }
    }
  }
  return y;
}

// ---- windows: a twin of network/geometry.py -----------------------------------------------------

// {before, after, output}, each [rows, columns], of a window over an image of this shape.
function fitWindow(size, strides, padding, shape) {
  const axes = [0, 1].map((axis) => fitAxis(size[axis], strides[axis], shape[axis], padding));
  const pair = (name) => axes.map((axis) => axis[name]);
  return { before: pair("before"), after: pair("after"), output: pair("output") };
}

function fitAxis(size, stride, length, padding) {
  if (padding === "valid")
    return { before: 0, after: 0, output: Math.floor((length - size) / stride) + 1 };
  const output = Math.ceil(length / stride);
  const total = Math.max((output - 1) * stride + size - length, 0);
  const before = Math.floor(total / 2);
  return { before, after: total - before, output };
}

// The image with zeros around it.
function pad(x, [top, left], [bottom, right]) {
  if (top + left + bottom + right === 0) return x;
  const [H, W, C] = x.shape;
  const y = zeros(top + H + bottom, left + W + right, C);
  for (let r = 0; r < H; r++) {
    const row = x.data.subarray(r * W * C, (r + 1) * W * C);
    y.data.set(row, ((top + r) * y.shape[1] + left) * C);
  }
  return y;
}

// ---- stored weights -----------------------------------------------------------------------------

// The weights of a net, as forward() takes them. stored: of each layer, {name: base64} of the bytes
// of its arrays: a kernel's elements have 16 bits, those of other arrays 32, the low byte first.
function readWeights(stored) {
  const read = ([name, text]) => [name, name === "kernel" ? halves(text) : floats(text)];
  return stored.map((arrays) => Object.fromEntries(Object.entries(arrays).map(read)));
}

function bytes(base64) {
  const text = atob(base64);
  const found = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) found[i] = text.charCodeAt(i);
  return found;
}

function floats(base64) {
  return new Float32Array(bytes(base64).buffer);
}

// Numbers of 16 bits: a sign, 5 bits of exponent e, 10 bits of fraction f (IEEE 754, binary16). The
// value is (1024 + f) * 2^(e - 25), or f * 2^-24 if e is 0. e = 31, of infinity, is never stored.
function halves(base64) {
  const codes = new Uint16Array(bytes(base64).buffer);
  const powers = Array.from({ length: 31 }, (_, e) => 2 ** (Math.max(e, 1) - 25));
  const found = new Float32Array(codes.length);
  for (let i = 0; i < codes.length; i++) {
    const e = (codes[i] >> 10) & 31;
    const f = codes[i] & 1023;
    const size = (e ? 1024 + f : f) * powers[e];
    found[i] = codes[i] >> 15 ? -size : size;
  }
  return found;
}
