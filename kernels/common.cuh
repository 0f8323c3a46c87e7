// What every kernel starts from: how arrays arrive, and sums in a fixed order.
//
// The net is a grid axis: blockIdx.z. An array that each net has a row of arrives as PerNet, and a
// kernel takes its net's row once, at the top; below that it reads as for one net. Rows may lie
// further apart than they are long, as a layer's weights do in the flat array of all weights.
//
// No CUDA header is included here or elsewhere: NVRTC alone compiles these files, and so does the
// emulator's shim (minicnn/emulator), with any C++ compiler.
#pragma once

template <typename T>
struct PerNet {
    T* data;
    long long stride;  // from one net's row to the next, in numbers

    __device__ T* row() const { return data + blockIdx.z * stride; }
};

// Says of an array parameter that None may stand for it; then its pointer is null.
#define MAY_BE_NULL

__host__ __device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
