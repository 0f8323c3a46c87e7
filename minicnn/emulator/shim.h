// CUDA's words in plain C++: what a .cu file is compiled against where there is no CUDA.
#pragma once
#include <cmath>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#include "runtime.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#ifndef __restrict__
#define __restrict__ __restrict
#endif
#define threadIdx (emulator::here->thread)
#define blockIdx (emulator::here->block)
#define blockDim (emulator::here->block_size)
#define gridDim (emulator::here->grid_size)
static const int warpSize = 32;

// Python writes `__shared__ T name[N];` as EMULATED_SHARED(T, name, [N]); see __init__.py. The static
// variable's address stands for the declaration; each instance of a template has one of its own.
#define EMULATED_SHARED(type, name, dimensions)                                             \
    typedef type emulated_##name dimensions;                                                \
    static char emulated_key_##name;                                                        \
    emulated_##name& name = *(emulated_##name*)emulator::shared_array(                      \
        &emulated_key_##name, sizeof(emulated_##name), #name)
#define EMULATED_DYNAMIC_SHARED(type, name) type* name = (type*)emulator::dynamic_shared()

// ---- barriers, and what the lanes of a warp exchange -----------------------------------------------

#define EMULATED_STRING_(x) #x
#define EMULATED_STRING(x) EMULATED_STRING_(x)
#define EMULATED_HERE (__FILE__ ":" EMULATED_STRING(__LINE__))
#define __syncthreads() ((void)emulator::barrier(EMULATED_HERE, emulator::Vote::none, false))
#define __syncthreads_count(p) (emulator::barrier(EMULATED_HERE, emulator::Vote::count, p))
#define __syncthreads_and(p) (emulator::barrier(EMULATED_HERE, emulator::Vote::all, p))
#define __syncthreads_or(p) (emulator::barrier(EMULATED_HERE, emulator::Vote::any, p))

namespace emulator {

// The value of lane `source`; a lane's own where that is `outside` its part of the warp.
template <typename T>
T shuffle(const char* site, unsigned mask, T value, int source, bool outside) {
    exchange(site, mask, &value, sizeof value);
    if (outside) return value;
    if (!(mask >> source & 1)) fault("asks for the value of a lane that its mask leaves out (%s)", site);
    T found;
    memcpy(&found, lane_value(source), sizeof found);
    return found;
}

inline unsigned ballot(const char* site, unsigned mask, bool predicate) {
    exchange(site, mask, &predicate, sizeof predicate);
    unsigned votes = 0;
    for (unsigned i = 0; i < 32; i++)
        if (mask >> i & 1) votes |= unsigned(*(const bool*)lane_value(i)) << i;
    return votes;
}

template <typename T>
T shuffle_from(const char* site, unsigned mask, T value, int source, int width = 32) {
    int first = lane() / width * width;
    return shuffle(site, mask, value, first + (source & (width - 1)), false);
}

template <typename T>
T shuffle_at(const char* site, unsigned mask, T value, int source, int width = 32) {
    int first = lane() / width * width;
    return shuffle(site, mask, value, source, source < first || source >= first + width);
}

inline void syncwarp(const char* site, unsigned mask = 0xffffffff) {
    exchange(site, mask, nullptr, 0);
}

}  // namespace emulator

#define __shfl_sync(mask, value, ...) \
    emulator::shuffle_from(EMULATED_HERE, mask, value, __VA_ARGS__)
#define __shfl_up_sync(mask, value, ...) \
    emulator::shuffle_at(EMULATED_HERE, mask, value, int(emulator::lane()) - __VA_ARGS__)
#define __shfl_down_sync(mask, value, ...) \
    emulator::shuffle_at(EMULATED_HERE, mask, value, int(emulator::lane()) + __VA_ARGS__)
#define __shfl_xor_sync(mask, value, ...) \
    emulator::shuffle_at(EMULATED_HERE, mask, value, int(emulator::lane()) ^ __VA_ARGS__)
#define __ballot_sync(mask, p) emulator::ballot(EMULATED_HERE, mask, p)
#define __any_sync(mask, p) (emulator::ballot(EMULATED_HERE, mask, p) != 0)
#define __all_sync(mask, p) (emulator::ballot(EMULATED_HERE, mask, p) == (mask))
#define __syncwarp(...) emulator::syncwarp(EMULATED_HERE, ##__VA_ARGS__)

// ---- vector types ------------------------------------------------------------------------------

#define EMULATED_VECTOR2(name, type, bytes)                                         \
    struct alignas(bytes) name {                                                    \
        typedef type Whole __attribute__((vector_size(bytes), may_alias));          \
        type x, y;                                                                  \
        name() = default;                                                           \
        name(type x, type y) : x(x), y(y) {}                                        \
        name(const name& other) { *(Whole*)this = *(const Whole*)&other; }          \
        name& operator=(const name& other) {                                        \
            *(Whole*)this = *(const Whole*)&other;                                  \
            return *this;                                                           \
        }                                                                           \
    };                                                                              \
    inline name make_##name(type x, type y) { return name(x, y); }
#define EMULATED_VECTOR4(name, type, bytes)                                         \
    struct alignas(bytes) name {                                                    \
        typedef type Whole __attribute__((vector_size(bytes), may_alias));          \
        type x, y, z, w;                                                            \
        name() = default;                                                           \
        name(type x, type y, type z, type w) : x(x), y(y), z(z), w(w) {}            \
        name(const name& other) { *(Whole*)this = *(const Whole*)&other; }          \
        name& operator=(const name& other) {                                        \
            *(Whole*)this = *(const Whole*)&other;                                  \
            return *this;                                                           \
        }                                                                           \
    };                                                                              \
    inline name make_##name(type x, type y, type z, type w) { return name(x, y, z, w); }
EMULATED_VECTOR2(float2, float, 8)
EMULATED_VECTOR2(int2, int, 8)
EMULATED_VECTOR2(uint2, unsigned, 8)
EMULATED_VECTOR4(float4, float, 16)
EMULATED_VECTOR4(int4, int, 16)
EMULATED_VECTOR4(uint4, unsigned, 16)
EMULATED_VECTOR4(uchar4, unsigned char, 4)
typedef emulator::Index dim3, uint3;

// ---- numbers -----------------------------------------------------------------------------------

template <typename T>
inline T __ldg(const T* address) { return *address; }

inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
inline unsigned __float_as_uint(float x) { unsigned u; memcpy(&u, &x, 4); return u; }
inline float __uint_as_float(unsigned u) { float x; memcpy(&x, &u, 4); return x; }
inline int __float_as_int(float x) { int u; memcpy(&u, &x, 4); return u; }
inline float __int_as_float(int u) { float x; memcpy(&x, &u, 4); return x; }
inline float __fmul_rn(float a, float b) { return a * b; }  // compiled with -ffp-contract=off
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline void sincospi(double x, double* s, double* c) {
    *s = sin(x * M_PI);
    *c = cos(x * M_PI);
}
inline double sinpi(double x) { return sin(x * M_PI); }
inline double cospi(double x) { return cos(x * M_PI); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline long long min(long long a, long long b) { return a < b ? a : b; }
inline long long max(long long a, long long b) { return a > b ? a : b; }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
using std::abs;
using std::isinf;
using std::isnan;

#ifdef EMULATED_CHECKED  // counts as two operations
inline float emulated_fmaf(float a, float b, float c) {
    emulator::count_flops(2);
    return __builtin_fmaf(a, b, c);
}
#define fmaf emulated_fmaf
#else
#define fmaf __builtin_fmaf
#endif

// Of integers only: a sum of floats would depend on the order of the threads.
#define EMULATED_ATOMIC(name, operation)                                                    \
    template <typename T>                                                                   \
    inline T name(T* address, T value) {                                                    \
        static_assert(std::is_integral<T>::value, "atomic operations here are of integers"); \
        return operation(address, value, __ATOMIC_RELAXED);                                 \
    }
EMULATED_ATOMIC(atomicAdd, __atomic_fetch_add)
EMULATED_ATOMIC(atomicSub, __atomic_fetch_sub)
EMULATED_ATOMIC(atomicAnd, __atomic_fetch_and)
EMULATED_ATOMIC(atomicOr, __atomic_fetch_or)
EMULATED_ATOMIC(atomicExch, __atomic_exchange_n)
template <typename T>
inline T atomicCAS(T* address, T expected, T value) {
    __atomic_compare_exchange_n(address, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return expected;
}
template <typename T>
inline T atomicMax(T* address, T value) {
    T old = __atomic_load_n(address, __ATOMIC_RELAXED);
    while (old < value && atomicCAS(address, old, value) != old)
        old = __atomic_load_n(address, __ATOMIC_RELAXED);
    return old;
}
template <typename T>
inline T atomicMin(T* address, T value) {
    T old = __atomic_load_n(address, __ATOMIC_RELAXED);
    while (old > value && atomicCAS(address, old, value) != old)
        old = __atomic_load_n(address, __ATOMIC_RELAXED);
    return old;
}

// ---- tensor cores and asynchronous copies: in place of kernels/ptx.cuh -----------------------------

#define PTX_CUH

inline float to_tf32(float x) {
    unsigned bits = __float_as_uint(x);
    bool finite = (bits & 0x7f800000) != 0x7f800000;
    return __uint_as_float((finite ? bits + 0x1000 : bits) & 0xffffe000);  // ties away from zero
}

inline void mma_m16n8k8_tf32(float (&c)[4], const float (&a)[4], const float (&b)[2]) {
    float operands[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    for (float x : operands)
        if (__float_as_uint(x) & 0x1fff) emulator::fault("gives a tensor core a number that is not TF32");
    emulator::exchange("a step of the tensor cores", 0xffffffff, operands, sizeof operands);
    int group = emulator::lane() / 4, place = emulator::lane() % 4;
    for (int i = 0; i < 4; i++) {  // c: rows group and group + 8, columns 2 * place and the next
        double sum = c[i];
        int upper = i / 2, column = 2 * place + i % 2;
        for (int k = 0; k < 8; k++) {
            auto* left = (const float*)emulator::lane_value(group * 4 + k % 4);
            auto* right = (const float*)emulator::lane_value(column * 4 + k % 4);
            sum += double(left[upper + 2 * (k / 4)]) * right[4 + k / 4];
        }
        c[i] = float(sum);
    }
    if (emulator::lane() == 0) emulator::count_tensor_step(2 * 16 * 8 * 8);
}

inline void copy_async_16(void* shared, const void* global, bool inside) {
    emulator::copy_async(shared, global, 16, inside);
}
inline void copy_async_4(void* shared, const void* global, bool inside) {
    emulator::copy_async(shared, global, 4, inside);
}
inline void commit_copies() { emulator::commit_copies(); }
template <int GROUPS_LEFT>
inline void wait_copies() { emulator::wait_copies(GROUPS_LEFT); }

// ---- how a kernel is entered -----------------------------------------------------------------------

namespace emulator {

// Not for the checker to see: what it reads is Python's.
template <typename... Parameters, size_t... I>
__attribute__((no_sanitize("thread"))) void enter(
    void (*kernel)(Parameters...), void** arguments, std::index_sequence<I...>) {
    kernel(*(std::remove_cv_t<Parameters>*)arguments[I]...);
}

template <typename... Parameters>
__attribute__((no_sanitize("thread"))) void enter(void (*kernel)(Parameters...), void** arguments) {
    enter(kernel, arguments, std::index_sequence_for<Parameters...>{});
}

}  // namespace emulator

#if defined(__linux__)
// Where this library lies in memory, with its constants.
extern "C" const char __ehdr_start[] __attribute__((visibility("hidden")));
extern "C" const char _end[] __attribute__((visibility("hidden")));
extern "C" void emulator_image(uintptr_t* range) {
    range[0] = uintptr_t(__ehdr_start);
    range[1] = uintptr_t(_end);
}
#endif
