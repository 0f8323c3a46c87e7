"use strict";

// Convolution by the kernels of the project itself: kernels/conv_direct.c, which wasm.py has
// compiled to WebAssembly. They compute four channels at a time, so a net answers several times as
// fast as with conv2d of network.js, which stays for browsers that do not run them.
//
// Memory of the compiled code is addressed in bytes: first its own, then the packed kernels of all
// nets, then what one call needs.

// Lets forward() use the compiled kernels (base64). Returns whether the browser can run them.
function useKernels(base64) {
  let compiled;
  try {
    compiled = new WebAssembly.Instance(new WebAssembly.Module(bytes(base64))).exports;
  } catch {
    return false; // no WebAssembly, or none with vectors
  }
  const packed = new Map(); // where the packed form of a kernel starts
  let end = compiled.__heap_base.value; // of the memory in use

  // The address of `count` numbers of 32 bits from `at` on, and where they end.
  function room(at, count) {
    const start = Math.ceil(at / 16) * 16;
    const missing = start + 4 * count - compiled.memory.buffer.byteLength;
    if (missing > 0) compiled.memory.grow(Math.ceil(missing / 65536));
    return [start, start + 4 * count];
  }

  const write = (Type, at, values) => new Type(compiled.memory.buffer, at).set(values);

  function pack(kernel, [kh, kw], Cin, Cout) {
    const panel = compiled.panel_channels();
    const [to, after] = room(end, Math.ceil(Cout / panel) * panel * kh * kw * Cin);
    const [from] = room(after, kernel.length);
    write(Float32Array, from, kernel);
    compiled.pack_kernel(from, kw, 0, 1, 0, 1, false, kh, kw, Cin, Cout, to);
    end = after;
    packed.set(kernel, to);
  }

  LAYERS.Conv2D = (x, layer, { kernel, bias }) => {
    const { kernel_size, strides, padding, activation } = layer;
    const { before, output } = fitWindow(kernel_size, strides, padding, x.shape);
    const [H, W, Cin] = x.shape;
    const [Ho, Wo] = output;
    const Cout = bias.length;
    if (!packed.has(kernel)) pack(kernel, kernel_size, Cin, Cout);
    const sizes = [1, H, W, Cin, Ho, Wo, Cout, ...kernel_size, ...strides, ...before];
    sizes.push(0, Ho * Wo * Cout, Wo * Cout, Cout); // struct Correlation
    const [sizesAt, sizesEnd] = room(end, sizes.length);
    const [biasAt, biasEnd] = room(sizesEnd, Cout);
    const [xAt, xEnd] = room(biasEnd, x.data.length);
    const [yAt] = room(xEnd, Ho * Wo * Cout);
    write(Int32Array, sizesAt, sizes);
    write(Float32Array, biasAt, bias);
    write(Float32Array, xAt, x.data);
    compiled.correlate(xAt, sizesAt, packed.get(kernel), biasAt, activation === "relu", yAt);
    const data = new Float32Array(compiled.memory.buffer, yAt, Ho * Wo * Cout).slice();
    return activate(activation === "relu" ? "linear" : activation, { shape: [Ho, Wo, Cout], data });
  };
  return true;
}
