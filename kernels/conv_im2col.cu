// Convolution as a matrix product (gemm.cu): im2col copies the patch under each place of the window
// to a row of a matrix. Source: K. Chellapilla, S. Puri, P. Simard, "High performance convolutional
// neural networks for document processing", 2006.
//
// The product is as fast as any, but the matrix holds each element of the input once per tap: it is
// kh * kw / (sh * sw) times as large as the input, and has to be written and read.
#include "common.cuh"
#include "convolution.cuh"

// columns (B, Ho, Wo, kh, kw, Cin) from x (B, H, W, Cin), 0 where a tap lies outside:
//     columns[b, r, q, k, l] = x[b, r * sh + k - top, q * sw + l - left]
// One thread per element of `columns`.
// Twin: ops_numpy.conv2d
extern "C" __global__ void im2col(PerNet<const float> x, Convolution s, PerNet<float> columns) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    int K = s.kh * s.kw * s.Cin;
    if (i >= s.B * s.Ho * s.Wo * K) return;
    Pixel out(i / K, s.Ho, s.Wo);
    int c = i % s.Cin, tap = i % K / s.Cin;
    int row = out.row * s.sh - s.top + tap / s.kw, column = out.column * s.sw - s.left + tap % s.kw;
    bool inside = row >= 0 && row < s.H && column >= 0 && column < s.W;
    columns.row()[i] =
        inside ? x.row()[((out.image * s.H + row) * s.W + column) * s.Cin + c] : 0.0f;
}

// dx (B, H, W, Cin) from the gradient with respect to `columns`: an element of dx is the sum over
// all elements of `columns` that im2col copies it to. One thread per element of dx, so that no two
// threads write to the same element.
// Twin: ops_numpy.conv2d_input_gradient
extern "C" __global__ void col2im(PerNet<const float> columns, Convolution s, PerNet<float> dx) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= s.B * s.H * s.W * s.Cin) return;
    int c = i % s.Cin;
    Pixel in(i / s.Cin, s.H, s.W);

    float sum = 0.0f;
    for (int k = 0; k < s.kh; ++k)
        for (int l = 0; l < s.kw; ++l) {
            int row = in.row + s.top - k, column = in.column + s.left - l;
            if (row < 0 || row % s.sh || column < 0 || column % s.sw) continue;
            row /= s.sh;
            column /= s.sw;
            if (row >= s.Ho || column >= s.Wo) continue;
            int patch = (in.image * s.Ho + row) * s.Wo + column;
            sum += columns.row()[((patch * s.kh + k) * s.kw + l) * s.Cin + c];
        }
    dx.row()[i] = sum;
}
