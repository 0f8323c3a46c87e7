// Votes, shuffles, atomic operations, vector types and shared memory, for the tests of the
// emulator.
#include "common.cuh"
#include "reduce.cuh"

// found (blocks, 3, threads): the results of a block's votes on bits (blocks, threads)
extern "C" __global__ void block_votes(const int* bits, int* found) {
    int n = blockDim.x, thread = threadIdx.x + blockDim.x * threadIdx.y;
    n *= blockDim.y;
    int bit = bits[blockIdx.x * n + thread];
    found += blockIdx.x * 3 * n + thread;
    found[0] = __syncthreads_count(bit);
    found[n] = __syncthreads_and(bit);
    found[2 * n] = __syncthreads_or(bit);
}

// found (3, threads): the results of a warp's votes; each thread has a mask of the lanes that vote
extern "C" __global__ void warp_votes(const int* bits, const unsigned* masks, unsigned* found) {
    int n = blockDim.x, thread = threadIdx.x;
    unsigned mask = masks[thread];
    if (!(mask >> thread % 32 & 1)) return;
    found[thread] = __ballot_sync(mask, bits[thread]);
    found[n + thread] = __any_sync(mask, bits[thread]);
    found[2 * n + thread] = __all_sync(mask, bits[thread]);
}

// found (4, threads): the results of four kinds of shuffle. The distances are expressions, to test
// the macros' parentheses.
extern "C" __global__ void shuffles(
    const float* values, const unsigned* masks, int lane, int distance, int width, float* found) {
    int n = blockDim.x, thread = threadIdx.x;
    unsigned mask = masks[thread];
    float value = values[thread];
    if (!(mask >> thread % 32 & 1)) return;
    found[thread] = __shfl_sync(mask, value, lane, width);
    found[n + thread] = __shfl_up_sync(mask, value, distance - 1 + 1, width);
    found[2 * n + thread] = __shfl_down_sync(mask, value, distance ? distance : 0, width);
    found[3 * n + thread] = __shfl_xor_sync(mask, value, distance - 1 + 1, width);
}

// Some lanes exchange in pairs before and after exchanges of all lanes. Each must get the value of
// the right exchange.
extern "C" __global__ void shuffles_of_parts(double* found) {
    int lane = threadIdx.x % 32;
    double value = threadIdx.x;
    if (lane < 2) value += 100 * __shfl_xor_sync(0x3, value, 1);
    if (lane == 0 || lane == 2) value += 1000 * __shfl_xor_sync(0x5, value, 2);
    value += 10000 * __shfl_xor_sync(ALL_LANES, value, 1);
    found[threadIdx.x] = value + 1e6 * __shfl_xor_sync(ALL_LANES, value, 31);
}

// Combines all numbers (count,) in counters (9,), bits (4,) and wide (2,). tickets (count,) are
// different for all threads. counters[8] is zero.
extern "C" __global__ void atomics(
    const int* numbers, int count, int* counters, unsigned* bits, long long* wide, int* tickets) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    int number = numbers[i];
    atomicAdd(counters, number);
    atomicSub(counters + 1, number);
    atomicMax(counters + 2, number);
    atomicMin(counters + 3, number);
    int expected = counters[8], found;  // a sum by compare and swap
    while ((found = atomicCAS(counters + 4, expected, expected + number)) != expected)
        expected = found;
    tickets[i] = atomicAdd(counters + 5, 1);
    atomicAdd(counters + 6, atomicExch(counters + 7, number));  // the sum, without the last one
    atomicAnd(bits, ~(1 << (number & 7)));
    atomicOr(bits + 1, 1u << (number & 15));
    atomicMax(bits + 2, number);
    atomicAdd(bits + 3, 1);
    atomicAdd((unsigned long long*)wide, (long long)number << 20);
    atomicMax(wide + 1, (long long)number << 20);
}

// Reverses each four elements of each array; reads and writes whole vectors.
extern "C" __global__ void vectors(
    const float* floats, const int* ints, const unsigned* words, const unsigned char* bytes,
    float* floats_out, int* ints_out, unsigned* words_out, unsigned char* bytes_out) {
    int i = threadIdx.x;
    float4 f = ((const float4*)floats)[i];
    int4 n = ((const int4*)ints)[i];
    uint4 u = ((const uint4*)words)[i];
    uchar4 b = ((const uchar4*)bytes)[i];
    float4 f_out = make_float4(f.w, f.z, f.y, f.x);
    float2 pair = make_float2(f.w, f.z);
    uint2 two;
    two.x = u.w;
    two.y = u.z;
    int2 copied = make_int2(n.w, n.z), another = copied;
    ((float4*)floats_out)[i] = f_out;
    ((float2*)floats_out)[2 * i] = pair;
    ((int4*)ints_out)[i] = make_int4(another.x, another.y, n.y, n.x);
    ((uint4*)words_out)[i] = make_uint4(two.x, two.y, u.y, u.x);
    ((uchar4*)bytes_out)[i] = make_uchar4(b.w, b.z, b.y, b.x);
}

template <typename T, int N>
__device__ T reversed(T value) {
    __shared__ T line[N];
    line[threadIdx.x] = value;
    __syncthreads();
    return line[N - 1 - threadIdx.x];
}

// Transposes x (32, 33) through a shared array of two dimensions. Then reverses the columns through
// shared arrays of a template, one for each type. By 32 threads; found (3, 33, 32).
extern "C" __global__ void shared_arrays(const float* x, float* found) {
    __shared__ float tile[32][33];
    int i = threadIdx.x;
    for (int j = 0; j < 33; ++j) tile[i][j] = __ldg(x + i * 33 + j);
    __syncthreads();
    for (int j = 0; j < 33; ++j) {
        float value = tile[31 - i][j];
        found[j * 32 + i] = value;
        float as_float = reversed<float, 32>(value);
        int as_int = reversed<int, 32>(int(value));
        found[(33 + j) * 32 + i] = as_float;
        found[(66 + j) * 32 + i] = as_int;
        __syncthreads();
    }
}

// Each block reverses its part of x, through dynamic shared memory.
extern "C" __global__ void dynamic_shared_array(const double* x, double* y) {
    extern __shared__ double part[];
    __shared__ int last[1];
    int n = blockDim.x;
    if (threadIdx.x == 0) last[0] = n - 1;
    part[threadIdx.x] = x[blockIdx.x * n + threadIdx.x];
    __syncthreads();
    y[blockIdx.x * n + threadIdx.x] = part[last[0] - threadIdx.x];
}

// visits (blocks of the grid, threads of the block) += 1; each thread computes its own place.
extern "C" __global__ void visit(int* visits) {
    int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    visits[block * blockDim.x * blockDim.y * blockDim.z + thread] += 1;
}

// x (threads,) += 1; if `planted`, half of the threads end before the barrier.
extern "C" __global__ void leave_waiting(bool planted, float* x) {
    if (planted && threadIdx.x % 2) return;
    __syncthreads();
    x[threadIdx.x] += 1.0f;
}
