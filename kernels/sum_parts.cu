// Adds up the partial sums of gradients that several thread blocks wrote, for all layers at once.
// In a training step adam_from_parts (adam.cu) does that.
#include "update.cuh"

// gradients and parts have one row per net. sums: a Sum for each thread block, as six ints.
// Twin: block_oracles.weight_gradient
extern "C" __global__ void sum_parts(
    const int* sums, PerNet<const float> parts, PerNet<float> gradients) {
    Sum s = own_sum(sums);
    if (s.parts == 0) return;
    for (int first = threadIdx.x; first < s.length; first += BATCH * blockDim.x) {
        float gradient[BATCH];
        s.load(parts.row(), nullptr, first, gradient);
#pragma unroll
        for (int k = 0; k < BATCH; ++k) {
            int i = first + k * int(blockDim.x);
            if (i < s.length) gradients.row()[s.to + i] = gradient[k];
        }
    }
}
