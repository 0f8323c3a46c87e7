// Philox4x32-10: a random word is a function of the place where it is used; rng.py explains why.
//
// Source: J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random numbers: as easy as
// 1, 2, 3", SC'11.
#pragma once

#include <stdint.h>

#include "vector.h"

// Several blocks are computed at a time, one in each lane of 64 bits, which holds a product.
enum { BLOCKS = VECTOR_BYTES / sizeof(uint64_t) };
typedef uint64_t Words __attribute__((vector_size(VECTOR_BYTES)));

// The words of blocks first, first + 1, ...: word w of block first + i is words[w][i], below 2^32.
INLINE void philox4x32(
    uint32_t first, uint32_t seed, uint32_t net, uint32_t stream, uint32_t step, Words words[4]) {
    const uint64_t LOWER = 0xFFFFFFFF;
    Words c0, c1 = (Words){0} + step, c2 = (Words){0} + stream, c3 = {0};
    for (int i = 0; i < BLOCKS; ++i) c0[i] = (uint32_t)(first + i);
    for (int round = 0; round < 10; ++round) {
        Words product_0 = c0 * 0xD2511F53u, product_2 = c2 * 0xCD9E8D57u;
        c0 = product_2 >> 32 ^ c1 ^ seed;
        c1 = product_2 & LOWER;
        c2 = product_0 >> 32 ^ c3 ^ net;
        c3 = product_0 & LOWER;
        seed += 0x9E3779B9, net += 0xBB67AE85;
    }
    words[0] = c0, words[1] = c1, words[2] = c2, words[3] = c3;
}

// to = `count` words in order, starting with those of block `first`. It writes whole groups of
// AT_A_TIME words, for which `to` must have room.
INLINE void random_words(
    uint32_t first, uint32_t seed, uint32_t net, uint32_t stream, uint32_t step, int count,
    uint32_t* to) {
    enum { AT_A_TIME = 4 * BLOCKS };
    for (int at = 0; at < count; at += AT_A_TIME) {
        Words words[4];
        philox4x32(first + at / 4, seed, net, stream, step, words);
        for (int i = 0; i < BLOCKS; ++i) {
            for (int w = 0; w < 4; ++w) to[at + 4 * i + w] = words[w][i];
        }
    }
}

// A word as a float from low to high. Product and sum are rounded separately, as in NumPy;
// `volatile` keeps the compiler from fusing them.
INLINE float draw(float low, float high, uint32_t word) {
    float uniform = (word >> 8) * (1.0f / (1 << 24));  // 24 bits, which a float holds exactly
    volatile float product = (high - low) * uniform;
    return low + product;
}
