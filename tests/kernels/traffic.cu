// Kernels whose accesses the tests of the emulator's counters know exactly.
#include "common.cuh"
#include "reduce.cuh"

// Each thread loads a float; they are `stride` floats apart.
extern "C" __global__ void load_floats(const float* x, int stride, float* y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    y[i] = x[i * stride];
}

extern "C" __global__ void load_float4s(const float* x, float* y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    ((float4*)y)[i] = ((const float4*)x)[i];
}

extern "C" __global__ void load_bytes(const unsigned char* x, unsigned char* y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    y[i] = x[i];
}

extern "C" __global__ void add_one(float* x) {
    x[threadIdx.x] += 1.0f;
}

struct Three {
    float a, b, c;
};

// Writes y, then adds to each element the one of another thread.
extern "C" __global__ void write_and_add(float* y) {
    int i = threadIdx.x, other = blockDim.x - 1 - i;
    y[i] = i;
    __syncthreads();
    float found = y[other];
    __syncthreads();
    y[i] = found + i;
}

// A struct of three floats, which a compiler may copy in one access.
extern "C" __global__ void load_structs(const float* x, float* y) {
    __shared__ Three staged[32];
    staged[threadIdx.x] = ((const Three*)x)[threadIdx.x];
    __syncthreads();
    ((Three*)y)[threadIdx.x] = staged[31 - threadIdx.x];
}

// All blocks load the same floats, each float `times` times.
extern "C" __global__ void load_again(const float* x, int times, float* y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    float sum = 0.0f;
    for (int k = 0; k < times; ++k) {
        sum += x[threadIdx.x];
        __syncthreads();
    }
    y[i] = sum;
}

// Half of the lanes load.
extern "C" __global__ void load_some(const float* x, float* y) {
    if (threadIdx.x % 2) y[threadIdx.x] = x[threadIdx.x];
}

// One lane loads; after a barrier all lanes do.
extern "C" __global__ void load_in_turns(const float* x, float* y) {
    float sum = 0.0f;
    for (int turn = 0; turn < 2; ++turn) {
        if (turn == 1 || threadIdx.x == 7) sum += x[threadIdx.x];
        __syncthreads();
    }
    y[threadIdx.x] = sum;
}

// One load of shared memory by each thread, `stride` floats apart; one thread fills it.
extern "C" __global__ void load_shared(int stride, int size, float* y) {
    extern __shared__ float words[];
    if (threadIdx.x == 0)
        for (int k = 0; k < size; ++k) words[k] = k;
    __syncthreads();
    y[threadIdx.x] = words[threadIdx.x * stride];
}

extern "C" __global__ void load_shared_float4(int stride, int size, float* y) {
    extern __shared__ float words[];
    if (threadIdx.x == 0)
        for (int k = 0; k < size; ++k) words[k] = k;
    __syncthreads();
    ((float4*)y)[threadIdx.x] = ((const float4*)words)[threadIdx.x * stride];
}

extern "C" __global__ void together(const float* x, float* y) {
    float value = x[threadIdx.x];
    value = warp_sum(value);  // five exchanges of a warp
    __syncwarp();
    unsigned some = __ballot_sync(ALL_LANES, value > 0.0f);
    __syncthreads();
    int count = __syncthreads_count(some != 0);
    for (int k = 0; k < 3; ++k) value = fmaf(value, 2.0f, count);
    y[threadIdx.x] = value;
}

extern "C" __global__ void add_to_one(int* counters) {
    __shared__ int of_block[1];
    if (threadIdx.x == 0) of_block[0] = 0;
    __syncthreads();
    atomicMax(of_block, threadIdx.x);
    atomicAdd(counters + threadIdx.x % 2, 1);
}
