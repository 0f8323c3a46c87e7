// What the updates at the end of a step share: gradients from partial sums, and moving averages.
#pragma once

#include "common.cuh"

constexpr int BATCH = 4;  // elements whose loads a thread has in flight together

// The gradients that a thread block takes: for k < length,
//     gradients[to + k] = sum of p(i) over i < parts, in order
//     p(i) = all_parts[from + i * step + k]
// If `halves` is 2 there are twice as many p(i), and p(i + parts) is added to each p(i) first. If
// `parts` is 0, the launch before has written the gradients themselves.
struct Sum {
    int from, parts, halves, step, to, length;

    // Loads the gradients of BATCH elements, `first` and those blockDim.x apart; past the end 0.
    __device__ void load(
        const float* all_parts, const float* gradients, int first, float (&found)[BATCH]) const {
#pragma unroll
        for (int k = 0; k < BATCH; ++k) found[k] = 0.0f;
        if (parts == 0) {
#pragma unroll
            for (int k = 0; k < BATCH; ++k) {
                int i = first + k * int(blockDim.x);
                if (i < length) found[k] = gradients[to + i];
            }
        }
#pragma unroll 4
        for (int part = 0; part < parts; ++part) {
            const float* own = all_parts + from + part * step;
#pragma unroll
            for (int k = 0; k < BATCH; ++k) {
                int i = first + k * int(blockDim.x);
                if (i >= length) continue;
                float first = own[i];
                if (halves == 2) first += own[parts * step + i];
                found[k] += first;
            }
        }
    }
};

// Row `blockIdx.x` of a table of Sums, as six ints each.
__device__ inline Sum own_sum(const int* sums) {
    const int* row = sums + blockIdx.x * 6;
    return {row[0], row[1], row[2], row[3], row[4], row[5]};
}

// keep * average + take * value, an exponential moving average with take = 1 - keep.
__device__ inline float moved(float average, float value, float keep, float take) {
    return fmaf(keep, average, take * value);
}
