// Convolution as a matrix product (gemm.cu): each patch under the window becomes a row of a matrix
// in memory. Source: K. Chellapilla, S. Puri, P. Simard, "High performance convolutional neural
// networks for document processing", 2006.
//
// The product then is as fast as any, but the matrix holds each number of the input once for each
// tap: it is written and read at kh * kw / (sh * sw) times the input's size.
#include "common.cuh"
#include "convolution.cuh"

// columns (B, Ho, Wo, kh, kw, C) from x, zero where a tap lies outside. A thread for each number.
extern "C" __global__ void im2col(PerNet<const float> x, Convolution s, PerNet<float> columns) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    int K = s.kh * s.kw * s.C;
    if (i >= s.B * s.Ho * s.Wo * K) return;
    Pixel out(i / K, s.Ho, s.Wo);
    int c = i % s.C, tap = i % K / s.C;
    int row = out.row * s.sh - s.top + tap / s.kw, column = out.column * s.sw - s.left + tap % s.kw;
    bool inside = row >= 0 && row < s.H && column >= 0 && column < s.W;
    columns.row()[i] =
        inside ? x.row()[((out.image * s.H + row) * s.W + column) * s.C + c] : 0.0f;
}

// dx from the gradients by the columns: the sum over all places that an input was copied to. A
// thread for each input, which looks for them; no two threads write to one number.
extern "C" __global__ void col2im(PerNet<const float> columns, Convolution s, PerNet<float> dx) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= s.B * s.H * s.W * s.C) return;
    int c = i % s.C;
    Pixel in(i / s.C, s.H, s.W);

    float sum = 0.0f;
    for (int k = 0; k < s.kh; ++k)
        for (int l = 0; l < s.kw; ++l) {
            int row = in.row + s.top - k, column = in.column + s.left - l;
            if (row < 0 || row % s.sh || column < 0 || column % s.sw) continue;
            row /= s.sh;
            column /= s.sw;
            if (row >= s.Ho || column >= s.Wo) continue;
            int patch = (in.image * s.Ho + row) * s.Wo + column;
            sum += columns.row()[((patch * s.kh + k) * s.kw + l) * s.C + c];
        }
    dx.row()[i] = sum;
}
