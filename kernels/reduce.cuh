// Sums, maxima and minima over the lanes of a warp. The order is fixed, so the bits never change.
#pragma once

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffff;

// All lanes get the result. In each of five rounds a lane exchanges its value so far with the lane
// whose number differs in one bit, and adds the other's: then each has the sum of all 32.
__device__ inline float warp_sum(float value) {
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        value += __shfl_xor_sync(ALL_LANES, value, distance);
    return value;
}

__device__ inline float warp_max(float value) {
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, distance));
    return value;
}

__device__ inline int warp_min(int value) {
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        value = min(value, __shfl_xor_sync(ALL_LANES, value, distance));
    return value;
}
