// What all kernels share: how arrays are passed.
//
// The net is a grid axis, blockIdx.z. An array that holds a row for each net is passed as PerNet;
// row() is the row of the thread's own net, and the rest of a kernel reads as for one net. Rows may
// be further apart than they are long: a layer's weights are slices of the flat array of all
// weights.
//
// Shapes in comments are those of one net. B: images of a batch; H, W: rows and columns; Cin, Cout:
// a convolution's input and output channels; C: channels, where input and output have the same;
// Ho, Wo: output rows and columns; K = kh * kw * Cin.
//
// These files include no CUDA header. NVRTC compiles them alone, and any C++ compiler compiles them
// against the emulator's shim (minicnn/emulator).
#pragma once

template <typename T>
struct PerNet {
    T* data;
    long long stride;  // from one net's row to the next, in elements

    __device__ T* row() const { return row(blockIdx.z); }
    __device__ T* row(unsigned net) const { return data + net * stride; }
};

// Marks an array parameter that may be null (None in Python).
#define MAY_BE_NULL
// Marks an array of any length: a kernel indexes it with 64 bits.
#define MAY_BE_LARGE

__host__ __device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
