// Adds up the partial sums of gradients that several thread blocks wrote, for all layers at once.
#include "common.cuh"

// The work of one thread block: for k < length,
//     gradients[to + k] = sum of parts[from + i * step + k] over i < parts, in order
struct Sum {
    int from, parts, step, to, length;
};

// gradients and parts have one row per net. sums: a Sum for each thread block, as five ints.
// Twin: block_oracles.weight_gradient
extern "C" __global__ void sum_parts(
    const int* sums, PerNet<const float> parts, PerNet<float> gradients) {
    const int* row = sums + blockIdx.x * 5;
    Sum s{row[0], row[1], row[2], row[3], row[4]};
    for (int i = threadIdx.x; i < s.length; i += blockDim.x) {
        const float* from = parts.row() + s.from + i;
        float sum = 0.0f;
#pragma unroll 8
        for (int part = 0; part < s.parts; ++part) sum += from[part * s.step];
        gradients.row()[s.to + i] = sum;
    }
}
