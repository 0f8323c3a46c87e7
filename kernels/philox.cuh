// Philox4x32-10: random words that depend only on where they are used (rng.py says why).
//
// Source: J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random numbers: as easy as
// 1, 2, 3", SC'11.
#pragma once

// The four random words of a counter and a key. Each round multiplies two words of the counter by
// constants, XORs the products' upper halves with the other two words and the key, and swaps words.
__device__ inline uint4 philox4x32(uint4 counter, uint2 key) {
    constexpr int ROUNDS = 10;
    constexpr unsigned MULTIPLIERS[] = {0xD2511F53, 0xCD9E8D57};
    constexpr unsigned KEY_INCREMENTS[] = {0x9E3779B9, 0xBB67AE85};
    uint4 c = counter;
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round) {
        unsigned upper_x = __umulhi(MULTIPLIERS[0], c.x), lower_x = MULTIPLIERS[0] * c.x;
        unsigned upper_z = __umulhi(MULTIPLIERS[1], c.z), lower_z = MULTIPLIERS[1] * c.z;
        c = make_uint4(upper_z ^ c.y ^ key.x, lower_z, upper_x ^ c.w ^ key.y, lower_x);
        key.x += KEY_INCREMENTS[0];
        key.y += KEY_INCREMENTS[1];
    }
    return c;
}

// A net's stream of random words for one step: element i uses word i % 4 of block i / 4.
struct Random {
    unsigned seed, net, stream, step;

    __device__ uint4 block(unsigned number) const {
        return philox4x32(make_uint4(number, step, stream, 0), make_uint2(seed, net));
    }
};

// low + (high - low) * u, with u the word's upper 24 bits times 2^-24. Product and sum are rounded
// separately, as in NumPy; by default the compiler would fuse them, which gives other bits.
__device__ inline float draw(float low, float high, unsigned word) {
    float uniform = (word >> 8) * (1.0f / (1 << 24));  // exact: a float holds 24 bits
    return __fadd_rn(low, __fmul_rn(high - low, uniform));
}
