// Activations in place, for layers whose own kernel does not apply them.
#include "activation.cuh"
#include "common.cuh"
#include "reduce.cuh"

// y = activation(y), element by element.
// Twin: ops_numpy.activate
extern "C" __global__ void activation_forward(int activation, int count, PerNet<float> y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) y.row()[i] = activate(activation, y.row()[i]);
}

// Turns dy, the gradient with respect to the output y, into the gradient with respect to the input.
// Twin: ops_numpy.activate_backward
extern "C" __global__ void activation_backward(
    int activation, PerNet<const float> y, int count, PerNet<float> dy) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) dy.row()[i] = activate_backward(activation, y.row()[i], dy.row()[i]);
}

// Softmax of each row of y (rows, C): y = exp(y - max(y)) / sum(exp(y - max(y))).
//
// One warp per row; each lane takes every 32nd element. There is no barrier, so the warps after the
// last row may return early.
// Twin: ops_numpy.activate
extern "C" __global__ void softmax_forward(int rows, int C, PerNet<float> y) {
    int row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;
    float* z = y.row() + row * C;  // (C,)

    float peak = __int_as_float(0xff800000);  // -infinity; z[0] would race with another lane
    for (int c = threadIdx.x; c < C; c += WARP) peak = fmaxf(peak, z[c]);
    peak = warp_max(peak);  // subtracted, so that exp cannot overflow

    float total = 0.0f;
    for (int c = threadIdx.x; c < C; c += WARP) {
        z[c] = expf(z[c] - peak);
        total += z[c];
    }
    total = warp_sum(total);
    for (int c = threadIdx.x; c < C; c += WARP) z[c] /= total;
}

// For each row of y and dy (rows, C): dy = (dy - sum(dy * y)) * y.
// Twin: ops_numpy.activate_backward
extern "C" __global__ void softmax_backward(
    PerNet<const float> y, int rows, int C, PerNet<float> dy) {
    int row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;
    const float* p = y.row() + row * C;  // (C,)
    float* d = dy.row() + row * C;       // (C,)

    float sum = 0.0f;
    for (int c = threadIdx.x; c < C; c += WARP) sum = fmaf(d[c], p[c], sum);
    sum = warp_sum(sum);
    for (int c = threadIdx.x; c < C; c += WARP) d[c] = (d[c] - sum) * p[c];
}
