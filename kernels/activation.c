// ReLU on a CPU, for layers whose own kernel does not apply it.
#include "vector.h"

// y = max(y, 0), in place; NaN stays NaN.
// Twin: ops_numpy.activate
KERNEL relu_forward(int count, float PER_NET y) {
#pragma omp parallel for simd if (count >= WORTH_SHARING)
    for (int i = 0; i < count; ++i) y[i] = y[i] < 0 ? 0 : y[i];
}

// dy, the gradient with respect to the ReLU's output y, becomes the one with respect to its input.
// Twin: ops_numpy.activate_backward
KERNEL relu_backward(const float PER_NET y, int count, float PER_NET dy) {
#pragma omp parallel for simd if (count >= WORTH_SHARING)
    for (int i = 0; i < count; ++i) dy[i] *= y[i] > 0 ? 1.0f : 0.0f;
}
