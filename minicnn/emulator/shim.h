// CUDA's keywords, types and functions in plain C++, against which the emulator compiles .cu files.
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
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#ifndef __restrict__
#define __restrict__ __restrict
#endif
#define threadIdx (emulator::here->thread)
#define blockIdx (emulator::here->block)
#define blockDim (emulator::here->block_size)
#define gridDim (emulator::here->grid_size)
static const int warpSize = 32;

// __init__.py replaces `__shared__ T name[N];` by EMULATED_SHARED(T, name, [N]). The address of the
// static variable identifies the declaration; each instance of a template has its own.
#define EMULATED_SHARED(type, name, dimensions)                                             \
    typedef type emulated_##name dimensions;                                                \
    static char emulated_key_##name;                                                        \
    emulated_##name& name = *(emulated_##name*)emulator::shared_array(                      \
        &emulated_key_##name, sizeof(emulated_##name), sizeof(type), #name)
#define EMULATED_DYNAMIC_SHARED(type, name) \
    type* name = (type*)emulator::dynamic_shared(sizeof(type), #name)

// ---- barriers, and exchanges between the lanes of a warp ----------------------------------------

#define EMULATED_STRING_(x) #x
#define EMULATED_STRING(x) EMULATED_STRING_(x)
#define EMULATED_HERE (__FILE__ ":" EMULATED_STRING(__LINE__))
#define __syncthreads() ((void)emulator::barrier(EMULATED_HERE, emulator::Vote::none, false))
#define __syncthreads_count(p) (emulator::barrier(EMULATED_HERE, emulator::Vote::count, p))
#define __syncthreads_and(p) (emulator::barrier(EMULATED_HERE, emulator::Vote::all, p))
#define __syncthreads_or(p) (emulator::barrier(EMULATED_HERE, emulator::Vote::any, p))

namespace emulator {

// The value of lane `source`; the lane's own value if the source is `outside` its part of the warp.
template <typename T>
T shuffle(const char* site, unsigned mask, T value, int source, bool outside) {
    static_assert(sizeof(T) <= 8, "shuffles are of 4 or 8 bytes");
    unsigned lanes = exchange(site, Exchange::values, mask, &value, sizeof value);
    if (outside) return value;
    if (!(lanes >> source & 1)) fault("asks for the value of a lane that does not take part", site);
    T found;
    memcpy(&found, lane_value(source), sizeof found);
    return found;
}

inline int part_begin(int width) { return int(lane()) / width * width; }

template <typename T>
T shuffle_from(const char* site, unsigned mask, T value, int source, int width = 32) {
    return shuffle(site, mask, value, part_begin(width) + (source & (width - 1)), false);
}

template <typename T>
T shuffle_up(const char* site, unsigned mask, T value, unsigned distance, int width = 32) {
    int source = int(lane()) - int(distance);
    return shuffle(site, mask, value, source, source < part_begin(width));
}

template <typename T>
T shuffle_down(const char* site, unsigned mask, T value, unsigned distance, int width = 32) {
    int source = int(lane()) + int(distance);
    return shuffle(site, mask, value, source, source >= part_begin(width) + width);
}

template <typename T>
T shuffle_xor(const char* site, unsigned mask, T value, int bits, int width = 32) {
    int source = int(lane()) ^ bits;  // may be in an earlier part of the warp, not in a later one
    return shuffle(site, mask, value, source, source >= part_begin(width) + width);
}

// The existing lanes of the mask, and those of them whose predicate is true.
struct Votes {
    unsigned lanes, ayes;
};

inline Votes vote(const char* site, unsigned mask, bool predicate) {
    Votes votes{exchange(site, Exchange::values, mask, &predicate, sizeof predicate), 0};
    for (unsigned i = 0; i < 32; i++)
        if (votes.lanes >> i & 1) votes.ayes |= unsigned(*(const bool*)lane_value(i)) << i;
    return votes;
}

inline unsigned ballot(const char* site, unsigned mask, bool predicate) {
    return vote(site, mask, predicate).ayes;
}

inline int all_lanes(const char* site, unsigned mask, bool predicate) {
    Votes votes = vote(site, mask, predicate);
    return votes.ayes == votes.lanes;
}

struct SyncWarp {
    const char* site;

    void operator()(unsigned mask = 0xffffffff) const {
        exchange(site, Exchange::sync, mask, nullptr, 0);
    }
};

}  // namespace emulator

#define __shfl_sync(...) emulator::shuffle_from(EMULATED_HERE, __VA_ARGS__)
#define __shfl_up_sync(...) emulator::shuffle_up(EMULATED_HERE, __VA_ARGS__)
#define __shfl_down_sync(...) emulator::shuffle_down(EMULATED_HERE, __VA_ARGS__)
#define __shfl_xor_sync(...) emulator::shuffle_xor(EMULATED_HERE, __VA_ARGS__)
#define __ballot_sync(...) emulator::ballot(EMULATED_HERE, __VA_ARGS__)
#define __any_sync(...) int(emulator::ballot(EMULATED_HERE, __VA_ARGS__) != 0)
#define __all_sync(...) emulator::all_lanes(EMULATED_HERE, __VA_ARGS__)
#define __syncwarp(...) emulator::SyncWarp{EMULATED_HERE}(__VA_ARGS__)

// ---- vector types ------------------------------------------------------------------------------

// A vector is copied by one access, as the checker must see it. Functions here that access memory
// are always inlined, so that the access belongs to a line of the kernel.
#define EMULATED_COPIES(name, type, bytes)                                                       \
    typedef type Whole __attribute__((vector_size(bytes), may_alias));                           \
    name() = default;                                                                            \
    __forceinline__ name(const name& other) { *(Whole*)this = *(const Whole*)&other; }           \
    __forceinline__ name& operator=(const name& other) {                                         \
        *(Whole*)this = *(const Whole*)&other;                                                   \
        return *this;                                                                            \
    }
#define EMULATED_VECTOR2(name, type, bytes)                                                      \
    struct alignas(bytes) name {                                                                 \
        type x, y;                                                                               \
        name(type x, type y) : x(x), y(y) {}                                                     \
        EMULATED_COPIES(name, type, bytes)                                                       \
    };                                                                                           \
    inline name make_##name(type x, type y) { return name(x, y); }
#define EMULATED_VECTOR4(name, type, bytes)                                                      \
    struct alignas(bytes) name {                                                                 \
        type x, y, z, w;                                                                         \
        name(type x, type y, type z, type w) : x(x), y(y), z(z), w(w) {}                         \
        EMULATED_COPIES(name, type, bytes)                                                       \
    };                                                                                           \
    inline name make_##name(type x, type y, type z, type w) { return name(x, y, z, w); }
EMULATED_VECTOR2(float2, float, 8)
EMULATED_VECTOR2(int2, int, 8)
EMULATED_VECTOR2(uint2, unsigned, 8)
EMULATED_VECTOR4(float4, float, 16)
EMULATED_VECTOR4(int4, int, 16)
EMULATED_VECTOR4(uint4, unsigned, 16)
EMULATED_VECTOR4(uchar4, unsigned char, 4)
typedef emulator::Index dim3, uint3;

// ---- arithmetic --------------------------------------------------------------------------------

template <typename T>
__forceinline__ T __ldg(const T* address) { return *address; }

inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
inline unsigned __float_as_uint(float x) { unsigned u; memcpy(&u, &x, 4); return u; }
inline float __uint_as_float(unsigned u) { float x; memcpy(&x, &u, 4); return x; }
inline float __int_as_float(int u) { float x; memcpy(&x, &u, 4); return x; }
inline float __fmul_rn(float a, float b) { return a * b; }  // compiled with -ffp-contract=off
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline void sincospi(double x, double* s, double* c) {
    *s = sin(x * M_PI);
    *c = cos(x * M_PI);
}
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

#ifdef EMULATED_CHECKED  // a fused multiply-add counts as two operations
inline float emulated_fmaf(float a, float b, float c) {
    emulator::count_flops(2);
    return __builtin_fmaf(a, b, c);
}
#define fmaf emulated_fmaf
#else
#define fmaf __builtin_fmaf
#endif

// Atomic operations, only for integers: a sum of floats would depend on the order of the threads.
// `Same` converts the other arguments to the type that the address points to.
namespace emulator {
template <typename T>
struct Same {
    static_assert(std::is_integral<T>::value, "atomic operations here are of integers");
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "atomic operations are of 4 or 8 bytes");
    typedef T type;
};
}  // namespace emulator

#define EMULATED_ATOMIC(name, operation)                                                         \
    template <typename T>                                                                        \
    __forceinline__ T name(T* address, typename emulator::Same<T>::type value) {                 \
        return operation(address, value, __ATOMIC_RELAXED);                                      \
    }
EMULATED_ATOMIC(atomicAdd, __atomic_fetch_add)
EMULATED_ATOMIC(atomicSub, __atomic_fetch_sub)
EMULATED_ATOMIC(atomicAnd, __atomic_fetch_and)
EMULATED_ATOMIC(atomicOr, __atomic_fetch_or)
EMULATED_ATOMIC(atomicExch, __atomic_exchange_n)
template <typename T>
__forceinline__ T atomicCAS(T* address, typename emulator::Same<T>::type expected,
                            typename emulator::Same<T>::type value) {
    __atomic_compare_exchange_n(
        address, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return expected;
}
template <typename T>
__forceinline__ T atomicMax(T* address, typename emulator::Same<T>::type value) {
    T old = __atomic_load_n(address, __ATOMIC_RELAXED), found;
    while ((found = atomicCAS(address, old, old < value ? value : old)) != old) old = found;
    return old;
}
template <typename T>
__forceinline__ T atomicMin(T* address, typename emulator::Same<T>::type value) {
    T old = __atomic_load_n(address, __ATOMIC_RELAXED), found;
    while ((found = atomicCAS(address, old, old > value ? value : old)) != old) old = found;
    return old;
}

// ---- tensor cores and asynchronous copies: in place of kernels/ptx.cuh --------------------------

#define PTX_CUH

// Rounds as cvt.rna.tf32.f32 does: ties away from zero; large values become infinity.
inline float to_tf32(float x) {
    unsigned bits = __float_as_uint(x);
    bool finite = (bits & 0x7f800000) != 0x7f800000;
    return __uint_as_float((finite ? bits + 0x1000 : bits) & 0xffffe000);
}

// Rounds as cvt.rn.bf16x2.f32 does: to the nearest value, ties to even; NaN becomes 0x7fff.
inline unsigned short round_to_bfloat16(float x) {
    unsigned bits = __float_as_uint(x);
    if (x != x) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
inline unsigned to_bfloat16(float low, float high) {
    return round_to_bfloat16(low) | unsigned(round_to_bfloat16(high)) << 16;
}

namespace emulator {

// Number `half` of the two bfloat16 in a word.
inline double bfloat16_of(float word, int half) {
    unsigned bits = __float_as_uint(word);
    return __uint_as_float(half ? bits & 0xffff0000 : bits << 16);
}

// c (16, 8) += a @ b on tensor cores, in words: a (16, 8), b (8, 8). A word is a TF32 number, or
// two bfloat16 ones along the depth.
template <bool IS_BFLOAT16>
void tensor_step(
    const char* site, float (&c)[4], const float (&a)[4], const float (&b)[2]) {
    constexpr unsigned WHOLE_WARP = 0xffffffff;
    float operands[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    for (float x : operands)
        if (!IS_BFLOAT16 && __float_as_uint(x) & 0x1fff)
            fault("gives a tensor core a number that is not TF32", site);
    if (exchange(site, Exchange::tensor_step, WHOLE_WARP, operands, sizeof operands) != WHOLE_WARP)
        fault("takes a step of the tensor cores in a warp that is not whole", site);
    int group = lane() / 4, place = lane() % 4;
    for (int i = 0; i < 4; i++) {  // c: rows group, group + 8; columns 2 * place, 2 * place + 1
        double sum = c[i];
        int upper = i / 2, column = 2 * place + i % 2;
        for (int k = 0; k < 8; k++) {
            auto* left = (const float*)lane_value(group * 4 + k % 4);
            auto* right = (const float*)lane_value(column * 4 + k % 4);
            float a = left[upper + 2 * (k / 4)], b = right[4 + k / 4];
            if (IS_BFLOAT16)
                for (int half = 0; half < 2; half++)
                    sum += bfloat16_of(a, half) * bfloat16_of(b, half);
            else
                sum += double(a) * b;
        }
        c[i] = float(sum);
    }
    if (lane() == 0) count_tensor_step(2 * 16 * 8 * (IS_BFLOAT16 ? 16 : 8));
}

__forceinline__ void load_transposed(const char* site, float (&to)[4], const float* address) {
    float4 row = *(const float4*)address;
    if (exchange(site, Exchange::values, 0xffffffff, &row, sizeof row) != 0xffffffff)
        fault("loads matrices in a warp that is not whole", site);
    int column = lane() / 4, first = lane() % 4 * 2;
    for (int m = 0; m < 4; m++) {
        auto* upper = (const unsigned short*)lane_value(m * 8 + first);
        auto* lower = (const unsigned short*)lane_value(m * 8 + first + 1);
        to[m] = __uint_as_float(upper[column] | unsigned(lower[column]) << 16);
    }
}

}  // namespace emulator

#define mma_m16n8k8_tf32(...) emulator::tensor_step<false>(EMULATED_HERE, __VA_ARGS__)
#define mma_m16n8k16_bfloat16(...) emulator::tensor_step<true>(EMULATED_HERE, __VA_ARGS__)
#define load_transposed(...) emulator::load_transposed(EMULATED_HERE, __VA_ARGS__)

__forceinline__ void store4_shared(float* shared, float4 v) { *(float4*)shared = v; }
__forceinline__ void store2_shared(float* shared, uint2 v) { *(uint2*)shared = v; }
__forceinline__ void prefetch(const void*, int) {}

__forceinline__ void copy_async_16(void* shared, const void* global, bool inside) {
    emulator::copy_async(shared, global, 16, inside);
}
__forceinline__ void copy_async_8(void* shared, const void* global, bool inside) {
    emulator::copy_async(shared, global, 8, inside);
}
__forceinline__ void copy_async_4(void* shared, const void* global, bool inside) {
    emulator::copy_async(shared, global, 4, inside);
}
inline int opaque(int x) { return x; }
inline void commit_copies() { emulator::commit_copies(); }
template <int GROUPS_LEFT>
inline void wait_copies() { emulator::wait_copies(GROUPS_LEFT); }

// ---- entry points of kernels --------------------------------------------------------------------

// The checker ignores accesses in such functions: they read the arguments, which Python owns.
#define UNCHECKED __attribute__((no_sanitize("thread")))

#if defined(EMULATED_CHECKED) && defined(__clang__) && __clang_major__ < 15
// Clang before version 15 calls memcpy to copy a struct; later ones call __tsan_memcpy (hooks.cpp).
extern "C" UNCHECKED __attribute__((visibility("hidden"))) void* memcpy(
    void* to, const void* from, size_t size) noexcept {
    return emulator::copied(to, from, size, __builtin_return_address(0));
}
#endif

namespace emulator {

template <typename... Parameters, size_t... I>
UNCHECKED void enter(
    void (*kernel)(Parameters...), void** arguments, std::index_sequence<I...>) {
    kernel(*(std::remove_cv_t<Parameters>*)arguments[I]...);
}

template <typename... Parameters>
UNCHECKED void enter(void (*kernel)(Parameters...), void** arguments) {
    enter(kernel, arguments, std::index_sequence_for<Parameters...>{});
}

}  // namespace emulator

#if defined(__linux__)
// The address range of this library, with its constants.
extern "C" const char __ehdr_start[] __attribute__((visibility("hidden")));
extern "C" const char _end[] __attribute__((visibility("hidden")));
extern "C" void emulator_image(uintptr_t* range) {
    range[0] = uintptr_t(__ehdr_start);
    range[1] = uintptr_t(_end);
}
#endif
