// Activations in place, for layers whose kernel has not applied them itself.
#include "activation.cuh"
#include "common.cuh"
#include "reduce.cuh"

// y = activation(y)
extern "C" __global__ void activation_forward(int activation, int count, PerNet<float> y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) y.row()[i] = activate(activation, y.row()[i]);
}

// dy, the gradient by the activation's output y, becomes the gradient by its input.
extern "C" __global__ void activation_backward(
    int activation, PerNet<const float> y, int count, PerNet<float> dy) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) dy.row()[i] = activate_backward(activation, y.row()[i], dy.row()[i]);
}

// Softmax of each row of y (rows, N). A warp takes a row, its lanes every 32nd number; there is no
// barrier, so a warp behind the last row may leave.
extern "C" __global__ void softmax_forward(int rows, int N, PerNet<float> y) {
    int row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;
    float* z = y.row() + row * N;  // (N,)

    float peak = __int_as_float(0xff800000);  // -infinity, not z[0]: another lane will write there
    for (int n = threadIdx.x; n < N; n += WARP) peak = fmaxf(peak, z[n]);
    peak = warp_max(peak);  // taken off, it keeps exp from overflowing

    float total = 0.0f;
    for (int n = threadIdx.x; n < N; n += WARP) {
        z[n] = expf(z[n] - peak);
        total += z[n];
    }
    total = warp_sum(total);
    for (int n = threadIdx.x; n < N; n += WARP) z[n] /= total;
}

// dy = (dy - sum(dy * y)) * y, row by row.
extern "C" __global__ void softmax_backward(
    PerNet<const float> y, int rows, int N, PerNet<float> dy) {
    int row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;
    const float* p = y.row() + row * N;  // (N,)
    float* d = dy.row() + row * N;       // (N,)

    float sum = 0.0f;
    for (int n = threadIdx.x; n < N; n += WARP) sum = fmaf(d[n], p[n], sum);
    sum = warp_sum(sum);
    for (int n = threadIdx.x; n < N; n += WARP) d[n] = (d[n] - sum) * p[n];
}
