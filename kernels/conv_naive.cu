// Convolution by its definition: one thread per element of the result. Read this file first;
// conv_im2col.cu and conv_implicit.cu compute the same faster.
//
// Each multiplication needs two loads from memory or a cache, although neighbouring threads load
// mostly the same values.
#include "activation.cuh"
#include "common.cuh"
#include "convolution.cuh"

// y = activation(x * kernel + bias), where * is the convolution:
//     y[b, r, q, n] = activation(bias[n] + sum of x[b, r * sh + k - top, q * sw + l - left, c]
//                                * kernel[k, l, c, n] over taps k, l and channels c)
// Twin: ops_numpy.conv2d
extern "C" __global__ void conv_naive_forward(
    PerNet<const float> x, PerNet<const float> kernel, PerNet<const float> bias, Convolution s,
    int activation, PerNet<float> y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= s.B * s.Ho * s.Wo * s.Cout) return;
    int n = i % s.Cout;
    Pixel out(i / s.Cout, s.Ho, s.Wo);

    float sum = bias.row()[n];
    for (int k = 0; k < s.kh; ++k)
        for (int l = 0; l < s.kw; ++l) {
            int row = out.row * s.sh + k - s.top, column = out.column * s.sw + l - s.left;
            if (row < 0 || row >= s.H || column < 0 || column >= s.W) continue;
            const float* pixel = x.row() + ((out.image * s.H + row) * s.W + column) * s.Cin;
            const float* weights = kernel.row() + (k * s.kw + l) * s.Cin * s.Cout + n;
            for (int c = 0; c < s.Cin; ++c) sum = fmaf(pixel[c], weights[c * s.Cout], sum);
        }
    y.row()[i] = activate(activation, sum);
}

// dx from dz, the gradient with respect to y before its activation:
//     dx[b, h, w, c] = sum of dz[b, r, q, n] * kernel[k, l, c, n] over taps k, l and channels n
// with r = (h + top - k) / sh and q = (w + left - l) / sw, where they are integers and inside dz.
// Twin: ops_numpy.conv2d_input_gradient
extern "C" __global__ void conv_naive_input_gradient(
    PerNet<const float> dz, PerNet<const float> kernel, Convolution s, PerNet<float> dx) {
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
            const float* gradient = dz.row() + ((in.image * s.Ho + row) * s.Wo + column) * s.Cout;
            const float* weights = kernel.row() + ((k * s.kw + l) * s.Cin + c) * s.Cout;
            for (int n = 0; n < s.Cout; ++n) sum = fmaf(gradient[n], weights[n], sum);
        }
    dx.row()[i] = sum;
}

// dkernel and dbias; the bias counts as one more row of weights, whose input is always 1:
//     dkernel[k, l, c, n] = sum of x[b, r * sh + k - top, q * sw + l - left, c] * dz[b, r, q, n]
//     dbias[n] = sum of dz[b, r, q, n], both over images b and output pixels r, q
// Twin: ops_numpy.conv2d_weight_gradient
extern "C" __global__ void conv_naive_weight_gradient(
    PerNet<const float> x, PerNet<const float> dz, Convolution s, PerNet<float> dkernel,
    PerNet<float> dbias) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    int weights = s.kh * s.kw * s.Cin * s.Cout;
    if (i >= weights + s.Cout) return;
    int n = i % s.Cout, c = i / s.Cout % s.Cin;
    int tap = i / s.Cout / s.Cin;
    int k = tap / s.kw, l = tap % s.kw;

    float sum = 0.0f;
    for (int p = 0; p < s.B * s.Ho * s.Wo; ++p) {
        float gradient = dz.row()[p * s.Cout + n];
        if (i >= weights) {
            sum += gradient;
            continue;
        }
        Pixel out(p, s.Ho, s.Wo);
        int row = out.row * s.sh + k - s.top, column = out.column * s.sw + l - s.left;
        if (row < 0 || row >= s.H || column < 0 || column >= s.W) continue;
        sum = fmaf(x.row()[((out.image * s.H + row) * s.W + column) * s.Cin + c], gradient, sum);
    }
    if (i < weights)
        dkernel.row()[i] = sum;
    else
        dbias.row()[n] = sum;
}
