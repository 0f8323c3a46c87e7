// Max pooling.
#include "common.cuh"

struct Pooling {
    int H, W, C;    // of the input (B, H, W, C)
    int Ho, Wo;     // of the output (B, Ho, Wo, C)
    int kh, kw;     // the window's size
    int sh, sw;     // its strides
    int top, left;  // the padding before the first row and column
};

// y = the largest element under the window; winner = the tap that has it, counted row by row: the
// first of equal elements, never padding. NaN counts as the largest, so that a diverged net is
// noticed. One thread per element of y.
// Twin: ops_numpy.max_pool
extern "C" __global__ void max_pool_forward(
    PerNet<const float> x, Pooling p, int count, MAY_BE_NULL PerNet<unsigned short> winner,
    PerNet<float> y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    int c = i % p.C, column = i / p.C % p.Wo, row = i / p.C / p.Wo % p.Ho;
    int b = i / p.C / p.Wo / p.Ho;
    int top = row * p.sh - p.top, left = column * p.sw - p.left;  // of the window, in the input

    float best = 0.0f;
    int best_tap = -1;  // none yet
    for (int h = max(top, 0); h < min(top + p.kh, p.H); ++h)
        for (int w = max(left, 0); w < min(left + p.kw, p.W); ++w) {
            float value = x.row()[((b * p.H + h) * p.W + w) * p.C + c];
            if (value > best || isnan(value) || best_tap < 0) {
                best = value;
                best_tap = (h - top) * p.kw + w - left;
            }
        }
    y.row()[i] = best;
    if (winner.data) winner.row()[i] = best_tap;
}

// dx = for each input element, the sum of dy over the outputs that it is the winner of. One thread
// per input element, because windows may overlap and two outputs may have the same winner. The
// outputs whose window covers an input row: row + top = output row * sh + tap; columns alike.
// Twin: ops_numpy.max_pool_backward
extern "C" __global__ void max_pool_backward(
    PerNet<const float> dy, PerNet<const unsigned short> winner, Pooling p, int count,
    PerNet<float> dx) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    int c = i % p.C, column = i / p.C % p.W + p.left, row = i / p.C / p.W % p.H + p.top;
    int b = i / p.C / p.W / p.H;

    float sum = 0.0f;
    for (int k = row % p.sh; k < min(p.kh, row + 1); k += p.sh)
        for (int l = column % p.sw; l < min(p.kw, column + 1); l += p.sw) {
            int h = (row - k) / p.sh, w = (column - l) / p.sw;
            if (h >= p.Ho || w >= p.Wo) continue;
            int output = ((b * p.Ho + h) * p.Wo + w) * p.C + c;
            if (winner.row()[output] == k * p.kw + l) sum += dy.row()[output];
        }
    dx.row()[i] = sum;
}
