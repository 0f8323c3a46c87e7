// Max pooling.
#include "common.cuh"

struct Pooling {
    int H, W, C;    // of the input (B, H, W, C)
    int Ho, Wo;     // of the output (B, Ho, Wo, C)
    int kh, kw;     // the window's size
    int sh, sw;     // its strides
    int top, left;  // the padding before the first row and column
};

// y = the largest number under the window, winner the tap (row by row) that gave it: the first of
// equals. Padding never wins. NaN wins over all, or a net that went wrong would look well.
extern "C" __global__ void max_pool_forward(
    PerNet<const float> x, Pooling p, int count, MAY_BE_NULL PerNet<unsigned short> winner,
    PerNet<float> y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    int c = i % p.C, column = i / p.C % p.Wo, row = i / p.C / p.Wo % p.Ho;
    int b = i / p.C / p.Wo / p.Ho;
    int top = row * p.sh - p.top, left = column * p.sw - p.left;  // the window's, in the input

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

// dx = the sum of what the outputs give to this input. If each output added to the input that won,
// threads would be in one another's way where windows overlap. So each input asks the outputs that
// cover it: those with a tap k where input + padding = output * stride + k, down and across.
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
