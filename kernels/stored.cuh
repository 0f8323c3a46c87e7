// How activations y and gradients dx are stored in memory, and what tensor cores multiply: float
// and TF32, or bfloat16 for both. Kernels compute in float. They widen what they load, narrow what
// they store, and round operands of tensor cores on the way to shared memory.
//
// There, operands are in words of 32 bits: one TF32 number, or two bfloat16 ones that follow each
// other along the depth of a product. In words, both kinds look the same to a kernel.
#pragma once

#include "common.cuh"
#include "ptx.cuh"

struct bfloat16 {
    unsigned short bits;  // the upper half of a float's
};

#ifndef STORED
#define STORED float
#endif
constexpr int PER_WORD = 4 / sizeof(STORED);  // operands in a word
constexpr int STEP = 8;                       // the depth of one mma.sync, in words
constexpr int DEPTH = STEP * PER_WORD;        // and in operands

// ---- memory: four elements that follow each other, or one --------------------------------------

__device__ inline float4 load4_global(const float* from) {
    return __ldg(reinterpret_cast<const float4*>(from));
}
__device__ inline uint2 load4_global(const bfloat16* from) {
    return __ldg(reinterpret_cast<const uint2*>(from));
}
typedef decltype(load4_global(static_cast<const STORED*>(nullptr))) Loaded4;

__device__ inline float4 widen(float4 v) { return v; }
__device__ inline float4 widen(uint2 v) {
    return make_float4(__uint_as_float(v.x << 16), __uint_as_float(v.x & 0xffff0000),
                       __uint_as_float(v.y << 16), __uint_as_float(v.y & 0xffff0000));
}
__device__ inline float widen(float v) { return v; }
__device__ inline float widen(bfloat16 v) { return __uint_as_float(v.bits << 16); }

__device__ inline uint2 to_bfloat16(float4 v) {
    return make_uint2(to_bfloat16(v.x, v.y), to_bfloat16(v.z, v.w));
}

// Stores v; returns it as it was stored.
__device__ inline float4 put4(float* to, float4 v) {
    *reinterpret_cast<float4*>(to) = v;
    return v;
}
__device__ inline float4 put4(bfloat16* to, float4 v) {
    uint2 narrow = to_bfloat16(v);
    *reinterpret_cast<uint2*>(to) = narrow;
    return widen(narrow);
}
__device__ inline float put(float* to, float v) { return *to = v; }
__device__ inline float put(bfloat16* to, float v) {
    to->bits = to_bfloat16(v, 0.0f);
    return widen(*to);
}

// ---- operands of tensor cores ------------------------------------------------------------------

template <typename T>
struct Operands;

template <>
struct Operands<float> {
    // The word of an operand.
    static __device__ float word(float v) { return to_tf32(v); }

    // The words of four operands.
    static __device__ float4 words(float4 v) {
        return make_float4(word(v.x), word(v.y), word(v.z), word(v.w));
    }

    // Stores them in shared memory.
    static __device__ void put(float* shared, float4 words) { store4_shared(shared, words); }

    // c += a @ b, as ptx.cuh says.
    static __device__ void multiply(float (&c)[4], const float (&a)[4], const float (&b)[2]) {
        mma_m16n8k8_tf32(c, a, b);
    }
};

template <>
struct Operands<bfloat16> {
    static __device__ float word(float low, float high) {
        return __uint_as_float(to_bfloat16(low, high));
    }
    static __device__ uint2 words(float4 v) { return to_bfloat16(v); }
    static __device__ void put(float* shared, uint2 words) { store2_shared(shared, words); }
    static __device__ void multiply(float (&c)[4], const float (&a)[4], const float (&b)[2]) {
        mma_m16n8k16_bfloat16(c, a, b);
    }
};
