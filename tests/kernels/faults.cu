// Kernels with planted faults, for the tests of the emulator's checker. An argument selects the
// fault or a correct access. The tests find the line of a fault by the comment at its end.
#include "common.cuh"
#include "reduce.cuh"

// ---- outside of an array ------------------------------------------------------------------------

extern "C" __global__ void read_number(const float* x, long long i, float* y) {
    y[0] = x[i];  // read_number
}

extern "C" __global__ void write_number(float* x, long long i) {
    x[i] = 1.0f;  // write_number
}

extern "C" __global__ void read_of_row(PerNet<const float> x, long long i, PerNet<float> y) {
    y.row()[0] = x.row()[i];  // read_of_row
}

extern "C" __global__ void write_of_row(PerNet<float> x, long long i) {
    x.row()[i] = 1.0f;  // write_of_row
}

extern "C" __global__ void write_const(const float* x, float* y, bool planted) {
    float* target = planted ? const_cast<float*>(x) : y;
    target[2] = 1.0f;  // write_const
}

extern "C" __global__ void read_four(const float* x, int i, float* y) {
    float4 four = *(const float4*)(x + i);  // read_four
    y[0] = four.x + four.w;
}

extern "C" __global__ void change_number(int* x, long long i) {
    atomicMax(x + i, 7);  // change_number
}

extern "C" __global__ void read_static_shared(int i, float* y) {
    __shared__ float before[8];
    __shared__ float tile[4][8];
    if (threadIdx.x == 0) {
        before[0] = 0.0f;
        for (int k = 0; k < 32; ++k) tile[k / 8][k % 8] = k;
        y[0] = before[0] + tile[0][i];  // read_static_shared
    }
}

extern "C" __global__ void write_dynamic_shared(int i, float* y) {
    extern __shared__ float staged[];
    staged[i] = 3.0f;  // write_dynamic_shared
    y[0] = staged[i];
}

// ---- barriers and exchanges ---------------------------------------------------------------------

extern "C" __global__ void different_barriers(bool planted) {
    if (planted && threadIdx.x == 37) {
        __syncthreads();  // the barrier of one
    } else {
        __syncthreads();  // the barrier of the others
    }
}

extern "C" __global__ void barrier_after_an_end(bool planted) {
    if (planted && threadIdx.x == 37) return;
    __syncthreads();  // the barrier of those that are left
}

extern "C" __global__ void missing_lane(bool planted, int* y) {
    int value = threadIdx.x;
    if (!planted || threadIdx.x != 37) value = __shfl_sync(ALL_LANES, value, 3);  // missing_lane
    y[threadIdx.x] = value;
}

// Lane 5 of the second warp takes part at another place, or with another mask.
extern "C" __global__ void other_exchange(bool elsewhere, bool other_mask, int* y) {
    int value = threadIdx.x;
    if (elsewhere && threadIdx.x == 37)
        value = __shfl_sync(ALL_LANES, value, 3);  // the exchange of one
    else
        value = __shfl_sync(other_mask && value == 37 ? 0x7f : ALL_LANES, value, 3);  // of others
    y[threadIdx.x] = value;
}

// The mask does not contain lane 5, which takes part (`asks`) or is the source (`is_asked`).
extern "C" __global__ void left_out(bool asks, bool is_asked, int* y) {
    int value = threadIdx.x;
    bool member = threadIdx.x % 32 != 5;
    if (member || asks)
        value = __shfl_sync(0xffffffdf, value, is_asked ? 5 : 6);  // left_out
    y[threadIdx.x] = value;
}

// The last warp has fewer lanes if the number of threads is not a multiple of 32.
extern "C" __global__ void lane_behind_the_end(bool planted, int* y) {
    int value = threadIdx.x;
    y[threadIdx.x] = __shfl_down_sync(ALL_LANES, value, 16, planted ? 32 : 8);  // behind the end
}

// ---- races --------------------------------------------------------------------------------------

// What a thread does in a step; accesses are to one word.
enum Action { NOTHING, READ, WRITE, ATOMIC, BARRIER, SYNC_WARP, SHUFFLE };

// Does all steps of actions (steps, blocks, threads). masks (steps, blocks, threads) are those of
// SYNC_WARP and SHUFFLE. sink (blocks, threads) gets the values read.
extern "C" __global__ void act(
    const int* actions, const unsigned* masks, int steps, bool global, int* word, int* sink) {
    __shared__ int shared_word[1];
    int* target = global ? word : shared_word;
    int thread = blockIdx.x * blockDim.x + threadIdx.x, found = 0;
    if (!global && threadIdx.x == 0) *target = 0;
    __syncthreads();
    for (int step = 0; step < steps; ++step) {
        int at = step * gridDim.x * blockDim.x + thread;
        switch (actions[at]) {
            case READ: found += *target; break;  // a read
            case WRITE: *target = step; break;  // a write
            case ATOMIC: atomicAdd(target, 1); break;  // an atomic operation
            case BARRIER: __syncthreads(); break;
            case SYNC_WARP: __syncwarp(masks[at]); break;
            case SHUFFLE: found += __shfl_xor_sync(masks[at], found, 0); break;
            default: break;
        }
    }
    sink[thread] = found;
}

// Neighbouring bytes are different words.
extern "C" __global__ void neighbouring_bytes(bool planted, unsigned char* y) {
    __shared__ unsigned char bytes[64];
    int i = planted ? threadIdx.x / 2 : threadIdx.x;
    bytes[i] = i;  // neighbouring_bytes
    y[threadIdx.x] = bytes[i];
}

// y = the number of threads that ran before this one; no barrier orders them, so this is a race.
extern "C" __global__ void arrivals(int* y) {
    __shared__ int arrived[1];
    if (threadIdx.x == 0) arrived[0] = 0;
    __syncthreads();
    y[threadIdx.x] = arrived[0];  // arrivals
    arrived[0] = y[threadIdx.x] + 1;
}

// ---- shared memory that nothing has written -----------------------------------------------------

extern "C" __global__ void read_unwritten(bool written, bool dynamic, float* y) {
    __shared__ float tile[64];
    extern __shared__ float staged[];
    float* array = dynamic ? staged : tile;
    if (written || threadIdx.x != 37) array[threadIdx.x] = threadIdx.x;
    y[threadIdx.x] = array[threadIdx.x];  // read_unwritten
}

// Block 1 may read what block 0 wrote to shared memory.
extern "C" __global__ void left_by_another_block(bool planted, float* y) {
    __shared__ float tile[32];
    if (blockIdx.x == 0 || !planted) tile[threadIdx.x] = 5.0f;
    y[blockIdx.x * 32 + threadIdx.x] = tile[threadIdx.x];  // left_by_another_block
}

extern "C" __global__ void unwritten_counter(bool written, int* y) {
    __shared__ int counter[1];
    if (written && threadIdx.x == 0) counter[0] = 0;
    __syncthreads();
    atomicAdd(counter, 1);  // unwritten_counter
    __syncthreads();
    if (threadIdx.x == 0) y[0] = counter[0];
}
