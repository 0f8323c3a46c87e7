// Gradients that several blocks of threads have made a part of each: added up, for all layers at once.
#include "common.cuh"

// What a block adds up: `length` numbers, of which part i is at from + i * step, to the gradients
// from `to` on.
struct Sum {
    int from, parts, step, to, length;
};

// gradients, from parts: both one row of numbers a net. sums (blocks,) is a table of Sum.
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
