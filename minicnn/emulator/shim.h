// CUDA's words in plain C++: what a .cu file is compiled against where there is no CUDA.
#pragma once
#include <cmath>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#include "runtime.h"

#define MINICNN_EMULATED 1
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

// Python writes `__shared__ T name[N];` as EMULATED_SHARED(slot, T, name, [N]); see __init__.py.
#define EMULATED_SHARED(slot, type, name, dimensions)                                      \
    typedef type emulated_##name dimensions;                                               \
    emulated_##name& name = *(emulated_##name*)emulator::shared_array(                     \
        slot, sizeof(emulated_##name), alignof(emulated_##name), #name)
#define EMULATED_DYNAMIC_SHARED(type, name) type* name = (type*)emulator::dynamic_shared()

// ---- barriers and what warps exchange ------------------------------------------------------------

#define EMULATED_SITE __builtin_return_address(0)
#define EMULATED_STRING_(x) #x
#define EMULATED_STRING(x) EMULATED_STRING_(x)
#define EMULATED_HERE (__FILE__ ":" EMULATED_STRING(__LINE__))
#define __syncthreads() ((void)emulator::barrier(EMULATED_HERE, emulator::Vote::none, false))
#define __syncthreads_count(p) (emulator::barrier(EMULATED_HERE, emulator::Vote::count, p))
#define __syncthreads_and(p) (emulator::barrier(EMULATED_HERE, emulator::Vote::all, p))
#define __syncthreads_or(p) (emulator::barrier(EMULATED_HERE, emulator::Vote::any, p))

namespace emulator {

inline unsigned thread_number() {
    return here->thread.x +
           here->block_size.x * (here->thread.y + here->block_size.y * here->thread.z);
}

inline unsigned lane() { return thread_number() % 32; }

template <typename T>
T shuffle(const void* site, unsigned mask, T value, int source, int width, bool inside) {
    exchange(site, mask, &value, sizeof value);
    if (!inside || !(mask >> source & 1)) return value;
    T found;
    memcpy(&found, lane_value(source), sizeof found);
    return found;
}

inline unsigned ballot(const void* site, unsigned mask, bool predicate) {
    exchange(site, mask, &predicate, sizeof predicate);
    unsigned votes = 0;
    for (unsigned i = 0; i < 32; i++)
        if (mask >> i & 1) votes |= unsigned(*(const bool*)lane_value(i)) << i;
    return votes;
}

template <typename T>
T shuffle_from(const void* site, unsigned mask, T value, int source, int width) {
    int first = lane() / width * width;
    return shuffle(site, mask, value, first + (source & (width - 1)), width, true);
}

template <typename T>
T shuffle_by(const void* site, unsigned mask, T value, int source, int width) {
    int first = lane() / width * width;
    return shuffle(site, mask, value, source & 31, width, source >= first && source < first + width);
}

}  // namespace emulator

#define EMULATED_WIDTH(_1, _2, _3, width, ...) width
#define __shfl_sync(mask, value, source, ...) \
    emulator::shuffle_from(EMULATED_HERE, mask, value, source, EMULATED_LAST(32, ##__VA_ARGS__))
#define __shfl_up_sync(mask, value, delta, ...)                                         \
    emulator::shuffle_by(EMULATED_HERE, mask, value, int(emulator::lane()) - int(delta), \
                         EMULATED_LAST(32, ##__VA_ARGS__))
#define __shfl_down_sync(mask, value, delta, ...)                                       \
    emulator::shuffle_by(EMULATED_HERE, mask, value, int(emulator::lane()) + int(delta), \
                         EMULATED_LAST(32, ##__VA_ARGS__))
#define __shfl_xor_sync(mask, value, bits, ...)                                         \
    emulator::shuffle_by(EMULATED_HERE, mask, value, int(emulator::lane()) ^ int(bits),  \
                         EMULATED_LAST(32, ##__VA_ARGS__))
#define EMULATED_LAST(first, ...) emulated_last(first, ##__VA_ARGS__)
inline int emulated_last(int width) { return width; }
inline int emulated_last(int, int width) { return width; }
#define __ballot_sync(mask, p) emulator::ballot(EMULATED_HERE, mask, p)
#define __any_sync(mask, p) (emulator::ballot(EMULATED_HERE, mask, p) != 0)
#define __all_sync(mask, p) (emulator::ballot(EMULATED_HERE, mask, p) == (mask))
#define __syncwarp(...) emulated_syncwarp(EMULATED_HERE, ##__VA_ARGS__)
inline void emulated_syncwarp(const void* site, unsigned mask = 0xffffffff) {
    emulator::exchange(site, mask, nullptr, 0);
}

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

#ifdef EMULATED_CHECKED
inline float emulated_fmaf(float a, float b, float c) {
    emulator::count_flops(2);
    return __builtin_fmaf(a, b, c);
}
#define fmaf emulated_fmaf
#else
#define fmaf __builtin_fmaf
#endif

template <typename T>
inline T atomicAdd(T* address, T value) {
    static_assert(std::is_integral<T>::value, "sums of floats depend on the order of the threads");
    return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}

// ---- how a kernel is entered ---------------------------------------------------------------------

namespace emulator {

template <typename... Parameters, size_t... I>
void enter(void (*kernel)(Parameters...), void** arguments, std::index_sequence<I...>) {
    kernel(*(std::remove_cv_t<Parameters>*)arguments[I]...);
}

template <typename... Parameters>
void enter(void (*kernel)(Parameters...), void** arguments) {
    enter(kernel, arguments, std::index_sequence_for<Parameters...>{});
}

}  // namespace emulator
