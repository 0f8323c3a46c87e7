// Instructions that CUDA C++ has no function for: multiplication on tensor cores, in TF32 and in
// bfloat16, and asynchronous copies to shared memory. For compute capability 8.0 and later.
//
// The emulator defines PTX_CUH and its own functions of the same names.
#ifndef PTX_CUH
#define PTX_CUH

// Rounds a float to TF32: to the nearest value with a mantissa of 10 bits, ties away from zero.
__device__ __forceinline__ float to_tf32(float x) {
    unsigned bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return __uint_as_float(bits);
}

// c (16, 8) += a (16, 8) @ b (8, 8), by all lanes of a warp together. With g = lane / 4 and
// t = lane % 4, a lane holds the elements (row, column)
//     a: (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4)
//     b: (t, g), (t + 4, g)
//     c: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)
__device__ __forceinline__ void mma_m16n8k8_tf32(
    float (&c)[4], const float (&a)[4], const float (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
          "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}

// Rounds two floats to bfloat16, to the nearest value, ties to even. `low` is in the word's lower
// half.
__device__ __forceinline__ unsigned to_bfloat16(float low, float high) {
    unsigned word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

// c (16, 8) += a (16, 16) @ b (16, 8), by all lanes of a warp together. a and b are words of two
// bfloat16 that follow each other along the depth. In words, a lane holds the elements of
// mma_m16n8k8_tf32; c is the same.
__device__ __forceinline__ void mma_m16n8k16_bfloat16(
    float (&c)[4], const float (&a)[4], const float (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
          "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}

// Loads four matrices (8, 8) of 16-bit elements from shared memory, transposed, by all lanes of a
// warp together. Lane i gives the address of row i % 8 of matrix i / 8: 16 bytes, at a multiple of
// 16. With g = lane / 4 and t = lane % 4 it gets, of matrix m, to[m]: the word of (2t, g) and
// (2t + 1, g), in rows and columns as they are in memory.
__device__ __forceinline__ void load_transposed(float (&to)[4], const float* row) {
    unsigned from = __cvta_generic_to_shared(row), words[4];
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(from) : "memory");
    for (int m = 0; m < 4; ++m) to[m] = __uint_as_float(words[m]);
}

// Stores 16 bytes in shared memory by one instruction; the compiler may make four of a plain store.
__device__ __forceinline__ void store4_shared(float* shared, float4 v) {
    unsigned to = __cvta_generic_to_shared(shared);
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};"
                 :: "r"(to), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w) : "memory");
}

// The same for 8 bytes.
__device__ __forceinline__ void store2_shared(float* shared, uint2 v) {
    unsigned to = __cvta_generic_to_shared(shared);
    asm volatile("st.shared.v2.b32 [%0], {%1, %2};" :: "r"(to), "r"(v.x), "r"(v.y) : "memory");
}

// Starts a copy of 16 bytes from global to shared memory; if not `inside`, it writes zeros instead.
// `global` must be a valid address in both cases. Both addresses must be multiples of 16.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global, bool inside) {
    unsigned to = __cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(to), "l"(global), "r"(inside ? 16 : 0) : "memory");
}

// The same for 8 bytes, and for 4 bytes.
__device__ __forceinline__ void copy_async_8(void* shared, const void* global, bool inside) {
    unsigned to = __cvta_generic_to_shared(shared);
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;"
                 :: "r"(to), "l"(global), "r"(inside ? 8 : 0) : "memory");
}
__device__ __forceinline__ void copy_async_4(void* shared, const void* global, bool inside) {
    unsigned to = __cvta_generic_to_shared(shared);
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
                 :: "r"(to), "l"(global), "r"(inside ? 4 : 0) : "memory");
}

// Makes the thread's copies since the last commit a group.
__device__ __forceinline__ void commit_copies() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits for the thread's own copies, except for the last GROUPS_LEFT groups. The copies of other
// threads need a barrier after their waits.
template <int GROUPS_LEFT>
__device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" :: "n"(GROUPS_LEFT) : "memory");
}

// A hint: starts to bring `bytes` from `global` on to the second-level cache. Both must be multiples
// of 16. One instruction fetches them all; without it (before compute capability 9.0) none does.
__device__ __forceinline__ void prefetch(const void* global, int bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" :: "l"(global), "r"(bytes) : "memory");
#endif
}

// Returns x, but the compiler cannot know that. So it computes values that depend on x where they
// are used, not before a loop, where those of all unrolled iterations would occupy registers.
__device__ __forceinline__ int opaque(int x) {
    asm volatile("" : "+r"(x));
    return x;
}

#endif
