// Activations of one number; a layer's is known by its place in this list (ops_cuda.py has it too).
#pragma once

enum Activation { LINEAR, RELU, SIGMOID, TANH };

__device__ inline float activate(int activation, float z) {
    switch (activation) {
        case RELU:
            return z > 0.0f || isnan(z) ? z : 0.0f;  // a NaN stays one, so that it is seen
        case SIGMOID:
            return 0.5f * tanhf(0.5f * z) + 0.5f;  // as a tanh it overflows nowhere
        case TANH:
            return tanhf(z);
        default:
            return z;
    }
}

// The gradient by z, from the output y = activate(z) and the gradient dy by it.
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
