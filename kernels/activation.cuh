// Activations of one value. Kernels select one by its place in this enum; ops_cuda.py has the same
// order.
#pragma once

enum Activation { LINEAR, RELU, SIGMOID, TANH };

__device__ inline float activate(int activation, float z) {
    switch (activation) {
        case RELU:
            return z > 0.0f || isnan(z) ? z : 0.0f;  // NaN stays NaN, so that it is noticed
        case SIGMOID:
            return 0.5f * tanhf(0.5f * z) + 0.5f;  // equals 1 / (1 + exp(-z)), without overflow
        case TANH:
            return tanhf(z);
        default:
            return z;
    }
}

// The gradient with respect to z, from y = activate(z) and the gradient dy with respect to y.
__device__ inline float activate_backward(int activation, float y, float dy) {
    switch (activation) {
        case RELU:
            return y > 0.0f ? dy : 0.0f;
        case SIGMOID:
            return dy * (1.0f - y) * y;
        case TANH:
            return dy * (1.0f - y * y);
        default:
            return dy;
    }
}
