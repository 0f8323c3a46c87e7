// Philox4x32-10: a random word is a function of the place where it is used; rng.py explains why.
//
// Source: J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random numbers: as easy as
// 1, 2, 3", SC'11.
#pragma once

#include <stdint.h>
#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "vector.h"

// Several blocks are computed at a time, one in each lane of 64 bits, which holds a product.
enum { BLOCKS = VECTOR_BYTES / sizeof(uint64_t) };
typedef uint64_t Words __attribute__((vector_size(VECTOR_BYTES)));

// Lanes of two vectors, which are numbered from 0 to 2 * BLOCKS - 1.
#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (Words){__VA_ARGS__})
#endif
// The first halves of two vectors interleaved, and the second halves.
#if VECTOR_BYTES == 64
#define FIRST_HALVES 0, 8, 1, 9, 2, 10, 3, 11
#define SECOND_HALVES 4, 12, 5, 13, 6, 14, 7, 15
#elif VECTOR_BYTES == 32
#define FIRST_HALVES 0, 4, 1, 5
#define SECOND_HALVES 2, 6, 3, 7
#else
#define FIRST_HALVES 0, 2
#define SECOND_HALVES 1, 3
#endif

// The lower half of each lane times `by`. It is one instruction, which GCC does not find for a
// product of 64-bit lanes.
INLINE Words multiply_lower(Words lanes, uint32_t by) {
#if VECTOR_BYTES == 64
    return (Words)_mm512_mul_epu32((__m512i)lanes, _mm512_set1_epi64(by));
#elif defined(__AVX2__)
    return (Words)_mm256_mul_epu32((__m256i)lanes, _mm256_set1_epi64x(by));
#elif defined(__SSE2__) && VECTOR_BYTES == 16
    return (Words)_mm_mul_epu32((__m128i)lanes, _mm_set1_epi64x(by));
#elif defined(__ARM_NEON)
    return (Words)vmull_n_u32(vmovn_u64((uint64x2_t)lanes), by);
#else
    return (lanes & 0xFFFFFFFF) * by;
#endif
}

// The words of blocks first, first + 1, ...: word w of block first + i is words[w][i], below 2^32.
INLINE void philox4x32(
    uint32_t first, uint32_t seed, uint32_t net, uint32_t stream, uint32_t step, Words words[4]) {
    const uint64_t LOWER = 0xFFFFFFFF;
    Words c0 = {0}, c1 = (Words){0} + step, c2 = (Words){0} + stream, c3 = {0};
    for (int i = 0; i < BLOCKS; ++i) c0[i] = i;
    c0 += first;  // only the lower halves of c0 to c3 count
    for (int round = 0; round < 10; ++round) {
        Words product_0 = multiply_lower(c0, 0xD2511F53);
        Words product_2 = multiply_lower(c2, 0xCD9E8D57);
        c0 = product_2 >> 32 ^ c1 ^ seed;
        c1 = product_2;
        c2 = product_0 >> 32 ^ c3 ^ net;
        c3 = product_0;
        seed += 0x9E3779B9, net += 0xBB67AE85;
    }
    words[0] = c0 & LOWER, words[1] = c1 & LOWER, words[2] = c2 & LOWER, words[3] = c3 & LOWER;
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
        // A lane holds two consecutive words: in memory, its lower half comes first.
        Words first_two = words[0] | words[1] << 32, last_two = words[2] | words[3] << 32;
        Words ordered[] = {
            SHUFFLE(first_two, last_two, FIRST_HALVES),
            SHUFFLE(first_two, last_two, SECOND_HALVES),
        };
        memcpy(to + at, ordered, sizeof ordered);
    }
}

// A word as a float from low to high. Product and sum are rounded separately, as in NumPy;
// `volatile` keeps the compiler from fusing them.
INLINE float draw(float low, float high, uint32_t word) {
    float uniform = (word >> 8) * (1.0f / (1 << 24));  // 24 bits, which a float holds exactly
    volatile float product = (high - low) * uniform;
    return low + product;
}
