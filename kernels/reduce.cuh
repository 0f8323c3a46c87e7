// Sums and maxima over threads. The order never changes, so neither do the bits.
#pragma once

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffff;

// All lanes of a warp get the result. In each turn a lane takes in what the lane `distance` away
// has gathered so far, and that one the same of it: after five turns each has all 32.
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
