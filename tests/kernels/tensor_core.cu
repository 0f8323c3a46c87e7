// Tensor cores and asynchronous copies, for the tests of the emulator and of the compiler.
#include "common.cuh"
#include "ptx.cuh"

// d (16, 8) = c + a (16, 8) @ b (8, 8), by one warp. If `rounded`, rounds the operands to TF32.
extern "C" __global__ void tensor_step(
    const float* a, const float* b, const float* c, bool rounded, float* d) {
    int group = threadIdx.x / 4, place = threadIdx.x % 4;
    float left[4], right[2], sum[4];
    for (int i = 0; i < 4; ++i) {
        float number = a[(group + 8 * (i % 2)) * 8 + place + 4 * (i / 2)];
        left[i] = rounded ? to_tf32(number) : number;
        sum[i] = c[(group + 8 * (i / 2)) * 8 + 2 * place + i % 2];
    }
    for (int i = 0; i < 2; ++i) {
        float number = b[(place + 4 * i) * 8 + group];
        right[i] = rounded ? to_tf32(number) : number;
    }
    mma_m16n8k8_tf32(sum, left, right);  // tensor_step
    for (int i = 0; i < 4; ++i) d[(group + 8 * (i / 2)) * 8 + 2 * place + i % 2] = sum[i];
}

extern "C" __global__ void round_to_tf32(const float* x, int count, float* y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) y[i] = to_tf32(x[i]);
}

// d (16, 8) = c + a (16, 16) @ b (16, 8), by one warp, with operands rounded to bfloat16.
extern "C" __global__ void tensor_step_bfloat16(
    const float* a, const float* b, const float* c, float* d) {
    int group = threadIdx.x / 4, place = threadIdx.x % 4;
    float left[4], right[2], sum[4];
    for (int i = 0; i < 4; ++i) {
        const float* pair = a + (group + 8 * (i % 2)) * 16 + 2 * (place + 4 * (i / 2));
        left[i] = __uint_as_float(to_bfloat16(pair[0], pair[1]));
        sum[i] = c[(group + 8 * (i / 2)) * 8 + 2 * place + i % 2];
    }
    for (int i = 0; i < 2; ++i) {
        const float* pair = b + 2 * (place + 4 * i) * 8 + group;
        right[i] = __uint_as_float(to_bfloat16(pair[0], pair[8]));
    }
    mma_m16n8k16_bfloat16(sum, left, right);
    for (int i = 0; i < 4; ++i) d[(group + 8 * (i / 2)) * 8 + 2 * place + i % 2] = sum[i];
}

// Pairs of floats, rounded.
extern "C" __global__ void round_to_bfloat16(const float* x, int count, unsigned* y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) y[i] = to_bfloat16(x[2 * i], x[2 * i + 1]);
}

// y (4, 8, 8): four matrices of 16-bit elements, transposed, by one warp.
extern "C" __global__ void transpose(const unsigned short* x, unsigned short* y) {
    __shared__ __align__(16) unsigned short staged[256];
    for (int i = threadIdx.x; i < 256; i += blockDim.x) staged[i] = x[i];
    __syncthreads();
    float words[4];
    load_transposed(words, reinterpret_cast<const float*>(staged + threadIdx.x * 8));  // all four
    for (int m = 0; m < 4; ++m) {
        unsigned short* row = y + m * 64 + threadIdx.x / 4 * 8 + threadIdx.x % 4 * 2;
        row[0] = __float_as_uint(words[m]);
        row[1] = __float_as_uint(words[m]) >> 16;
    }
}

enum Mistake {
    NO_MISTAKE,
    NO_WAIT,            // a tile is used before its copies have finished
    WAIT_FOR_TOO_FEW,   // the same
    NO_COMMIT,          // the wait has no group to wait for
    NO_BARRIER_BEHIND,  // other threads' copies may not have finished
    NO_BARRIER_BEFORE,  // a tile is overwritten while other threads still read it
    CHANGED_SOURCE,     // a copy may read the value before or after a change
};

// y (tiles, 128) = x, with each tile reversed, by 32 threads. While a tile is written to y, the
// next one is being copied. Elements of a tile from `last` on are zeros.
extern "C" __global__ void reverse_tiles(float* x, int tiles, int last, int mistake, float* y) {
    __shared__ float staged[2][128];
    int thread = threadIdx.x, mine = 4 * thread;
    copy_async_16(&staged[0][mine], x + mine, mine < last);
    commit_copies();
    for (int tile = 0; tile < tiles; ++tile) {
        int ahead = tile + 1;
        if (ahead < tiles) {
            float* to = &staged[ahead % 2][mine];
            copy_async_16(to, x + ahead * 128 + mine, mine < last);  // copy ahead
            if (mistake == CHANGED_SOURCE) x[ahead * 128 + mine] = 7.0f;  // changed source
        }
        if (mistake != NO_COMMIT) commit_copies();
        if (mistake == WAIT_FOR_TOO_FEW)
            wait_copies<2>();
        else if (mistake != NO_WAIT)
            wait_copies<1>();
        if (mistake != NO_BARRIER_BEHIND) __syncthreads();
        for (int k = 0; k < 4; ++k) {
            int i = thread + 32 * k;
            y[tile * 128 + i] = staged[tile % 2][127 - i];  // read of a tile
        }
        if (mistake != NO_BARRIER_BEFORE) __syncthreads();
    }
}

// y (threads,) = x, by copies of 4 bytes. Also copies 16 bytes per thread, with offsets that make
// their addresses invalid.
extern "C" __global__ void copy_both_sizes(
    const float* x, int from_offset, int to_offset, bool inside, float* y) {
    __shared__ float staged[132];
    int i = threadIdx.x, j = 64 + 4 * i;
    copy_async_4(staged + i, x + i, inside);
    copy_async_16(staged + j + to_offset, x + j + from_offset, inside);  // copy of four
    commit_copies();
    float same = x[i];  // reading the source of a copy is allowed
    wait_copies<0>();
    __syncthreads();
    y[i] = same == staged[i] ? same : -staged[i];
}

// Each thread reads what the thread before it copied, or changes the source of that copy. A barrier
// before the wait does not order the copies' ends.
extern "C" __global__ void use_copies(float* x, bool early_barrier, bool changes, float* y) {
    __shared__ float staged[64];
    int i = threadIdx.x;
    copy_async_4(staged + i, x + i, true);
    commit_copies();
    if (early_barrier) __syncthreads();
    wait_copies<0>();
    if (!early_barrier) __syncthreads();
    if (i == 0) return;
    if (changes)
        x[i - 1] = 0.0f;  // changed too early
    else
        y[i] = staged[i - 1];  // taken too early
}
