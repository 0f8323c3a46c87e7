// Philox4x32-10: random words that are a function of where they are used (rng.py tells why).
//
// Source: J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random numbers: as easy as
// 1, 2, 3", SC'11.
#pragma once

// The four words of a counter under a key. Each round multiplies two words of the counter by
// constants, mixes the products' upper halves with the other two words and the key, and swaps.
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

// Where a net's random words come from: element i is word i % 4 of block i / 4.
struct Random {
    unsigned seed, net, stream, step;

    __device__ uint4 block(unsigned number) const {
        return philox4x32(make_uint4(number, step, stream, 0), make_uint2(seed, net));
    }
};

// A word as a float from low to high. The product and the sum are rounded one after the other: left
// to itself the compiler makes one fused operation of them, and other bits than NumPy's.
__device__ inline float draw(float low, float high, unsigned word) {
    float uniform = (word >> 8) * (1.0f / (1 << 24));  // 24 bits, which a float holds exactly
    return __fadd_rn(low, __fmul_rn(high - low, uniform));
}
