// What CUDA C++ has no word for: the tensor cores' step in TF32, and copies that go on while a
// thread computes. For compute capability 8.0 and later.
//
// The emulator has functions of the same names, and says so by this guard.
#ifndef PTX_CUH
#define PTX_CUH

// A float with the 10 bits of mantissa that tensor cores multiply, rounded to nearest.
__device__ __forceinline__ float to_tf32(float x) {
    unsigned bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return __uint_as_float(bits);
}

// c (16, 8) += a (16, 8) @ b (8, 8), by all lanes of a warp together. With g = lane / 4, t = lane %
// 4 a lane holds
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

// Starts to copy 16 bytes from global to shared memory, or to fill them with zeros if not `inside`;
// `global` must be a valid address all the same. Both must be multiples of 16.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global, bool inside) {
    unsigned to = __cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(to), "l"(global), "r"(inside ? 16 : 0) : "memory");
}

// The same of 8 bytes, and of 4.
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

// The thread's copies since the last commit are a group.
__device__ __forceinline__ void commit_copies() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits for the thread's own copies, all groups but the last GROUPS_LEFT. Those of other threads
// are there after a barrier that follows.
template <int GROUPS_LEFT>
__device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" :: "n"(GROUPS_LEFT) : "memory");
}

// The number itself, of which the compiler knows nothing: what is computed from it is computed there,
// and not before a loop, where each result of an unrolled one would take a register all the while.
__device__ __forceinline__ int opaque(int x) {
    asm volatile("" : "+r"(x));
    return x;
}

#endif
