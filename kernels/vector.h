// Shared by the kernels in C: how they are declared, and vectors as wide as the machine's
// registers.
//
// A kernel is a plain C function for one net. kernel.py reads its declaration, KERNEL name(...):
// `float PER_NET x` is an array with one row for each net, `float* x` an array that all nets share;
// `const` arrays are only read, MAY_BE_NULL allows None, and MAY_BE_LARGE any length, which a kernel
// indexes with 64 bits.
//
// Shapes in comments are those of one net. B: images of a batch; H, W: rows and columns; Cin, Cout:
// a convolution's input and output channels; C: channels, where input and output have the same;
// Ho, Wo: output rows and columns; K = kh * kw * Cin.
//
// Vectors are a GCC and Clang extension: arithmetic on them compiles to vector instructions.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#define KERNEL void
#define PER_NET *
#define MAY_BE_NULL
#define MAY_BE_LARGE
#define INLINE static inline __attribute__((always_inline))

// Unrolls a loop with a known number of iterations, so that its arrays become registers.
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else  // SSE, NEON
#define VECTOR_BYTES 16
#endif
// AVX-512 and 64-bit ARM have 32 vector registers, others 16.
#if defined(__AVX512F__) || defined(__aarch64__)
#define VECTOR_REGISTERS 32
#else
#define VECTOR_REGISTERS 16
#endif

enum { LANES = VECTOR_BYTES / sizeof(float) };  // floats in a vector

typedef float Vector __attribute__((vector_size(VECTOR_BYTES)));
typedef int Mask __attribute__((vector_size(VECTOR_BYTES)));  // a lane is 0 or -1
typedef float InMemory __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));

INLINE Vector load(const float* from) { return *(const InMemory*)from; }
INLINE void store(float* to, Vector v) { *(InMemory*)to = v; }

// Loads and stores the first `count` lanes, at the end of a row; the other lanes load as 0.
INLINE Vector load_some(const float* from, int count) {
    if (count >= LANES) return load(from);
    Vector v = {0};
    for (int i = 0; i < count; ++i) v[i] = from[i];
    return v;
}
INLINE void store_some(float* to, Vector v, int count) {
    if (count >= LANES) {
        store(to, v);
        return;
    }
    for (int i = 0; i < count; ++i) to[i] = v[i];
}

// max(v, 0); NaN stays NaN.
INLINE Vector relu(Vector v) { return (Vector)((Mask)v & ~(Mask)(v < (Vector){0})); }

// 1 where v > 0, else 0.
INLINE Vector is_positive(Vector v) {
    Vector ones = (Vector){0} + 1.0f;
    return (Vector)((Mask)ones & (Mask)(v > (Vector){0}));
}

// v * keep where the first `count` elements of mask are true, else 0: dropout.
typedef unsigned char Bytes __attribute__((vector_size(LANES), aligned(1), may_alias));
INLINE Vector drop(Vector v, float keep, const bool* mask, int count) {
    Mask kept = {0};  // a lane is 0 or 1
    if (count >= LANES) {
        kept = __builtin_convertvector(*(const Bytes*)mask, Mask);
    } else {
        for (int i = 0; i < count; ++i) kept[i] = mask[i];
    }
    return (Vector)((Mask)(v * keep) & -kept);
}

// From so many elements on, several threads are faster than one.
enum { WORTH_SHARING = 1 << 15 };

INLINE int smaller(int a, int b) { return a < b ? a : b; }
INLINE int larger(int a, int b) { return a > b ? a : b; }
INLINE int divide_up(int a, int b) { return (a + b - 1) / b; }  // a >= 0, b > 0

// Positions first <= i < end.
typedef struct {
    int first, end;
} Range;

// The i < count with 0 <= from + i * step < length.
INLINE Range inside(int from, int step, int count, int length) {
    int first = from >= 0 ? 0 : divide_up(-from, step);
    int end = from >= length ? 0 : divide_up(length - from, step);
    return (Range){smaller(first, count), smaller(end, count)};
}
