// Convolution, the plain way: a thread for each number of the result.
//
// Each number that a thread needs it reads from memory (or a cache) by itself, and neighbouring
// threads read much the same: two loads for every multiplication. Read this first; conv_im2col.cu
// and conv_implicit.cu compute the same faster.
#include "activation.cuh"
#include "common.cuh"
#include "convolution.cuh"

// y = activation(x * kernel + bias)
extern "C" __global__ void conv_naive_forward(
    PerNet<const float> x, PerNet<const float> kernel, PerNet<const float> bias, Convolution s,
    int activation, PerNet<float> y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= s.B * s.Ho * s.Wo * s.N) return;
    int n = i % s.N;
    Pixel out(i / s.N, s.Ho, s.Wo);

    float sum = bias.row()[n];
    for (int k = 0; k < s.kh; ++k)
        for (int l = 0; l < s.kw; ++l) {
            int row = out.row * s.sh + k - s.top, column = out.column * s.sw + l - s.left;
            if (row < 0 || row >= s.H || column < 0 || column >= s.W) continue;
            const float* pixel = x.row() + ((out.image * s.H + row) * s.W + column) * s.C;
            const float* weights = kernel.row() + (k * s.kw + l) * s.C * s.N + n;
            for (int c = 0; c < s.C; ++c) sum = fmaf(pixel[c], weights[c * s.N], sum);
        }
    y.row()[i] = activate(activation, sum);
}

// dx from dz, the gradient by y before its activation. An input asks each tap for the output that
// the tap meets it at: row = output * stride + tap - padding, if there is one.
extern "C" __global__ void conv_naive_input_gradient(
    PerNet<const float> dz, PerNet<const float> kernel, Convolution s, PerNet<float> dx) {
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
            const float* gradient = dz.row() + ((in.image * s.Ho + row) * s.Wo + column) * s.N;
            const float* weights = kernel.row() + ((k * s.kw + l) * s.C + c) * s.N;
            for (int n = 0; n < s.N; ++n) sum = fmaf(gradient[n], weights[n], sum);
        }
    dx.row()[i] = sum;
}

// dkernel, and with it dbias as if the bias were one more row of weights, whose input is always 1.
extern "C" __global__ void conv_naive_weight_gradient(
    PerNet<const float> x, PerNet<const float> dz, Convolution s, PerNet<float> dkernel,
    PerNet<float> dbias) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    int weights = s.kh * s.kw * s.C * s.N;
    if (i >= weights + s.N) return;
    int n = i % s.N, c = i / s.N % s.C;
    int tap = i / s.N / s.C;
    int k = tap / s.kw, l = tap % s.kw;

    float sum = 0.0f;
    for (int p = 0; p < s.B * s.Ho * s.Wo; ++p) {
        float gradient = dz.row()[p * s.N + n];
        if (i >= weights) {
            sum += gradient;
            continue;
        }
        Pixel out(p, s.Ho, s.Wo);
        int row = out.row * s.sh + k - s.top, column = out.column * s.sw + l - s.left;
        if (row < 0 || row >= s.H || column < 0 || column >= s.W) continue;
        sum = fmaf(x.row()[((out.image * s.H + row) * s.W + column) * s.C + c], gradient, sum);
    }
    if (i < weights)
        dkernel.row()[i] = sum;
    else
        dbias.row()[n] = sum;
}
