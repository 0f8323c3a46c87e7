// ReLU on a CPU, where no other kernel does it in passing.
#include "vector.h"

KERNEL relu_forward(int count, float PER_NET y) {
#pragma omp parallel for simd if (count >= WORTH_SHARING)
    for (int i = 0; i < count; ++i) y[i] = y[i] < 0 ? 0 : y[i];  // what is not a number stays so
}

// dy, the gradient by a ReLU's result y, becomes the gradient by what it was given.
KERNEL relu_backward(const float PER_NET y, int count, float PER_NET dy) {
#pragma omp parallel for simd if (count >= WORTH_SHARING)
    for (int i = 0; i < count; ++i) dy[i] *= y[i] > 0 ? 1.0f : 0.0f;
}
