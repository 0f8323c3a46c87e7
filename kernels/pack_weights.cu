// Rounds the weights of all blocks to operands of tensor cores, and arranges them for correlate
// (correlation.cuh).
#include "correlation.cuh"

constexpr int MOST_WIDE = 2 * WIDE;  // result channels of a thread block

// The work of one thread block: a tap's weights, CHUNK channels of the depth by `width` result
// channels, both from the `first_` one on. For a forward pass the depth is the kernel's Cin and the
// results are its Cout; for a gradient with respect to the input (is_gradient) it is the other way.
struct Slot {
    int from, to;  // in a net's weights: the tap's (Cin, Cout); in its packed weights
    int Cin, Cout, first_channel, first_filter, width, is_gradient;
};

// Where a weight of the slot is in shared memory. What four lanes read of eight quads of filters
// lies in 32 different banks.
__device__ inline int staged_at(int channel, int filter) {
    return channel * (MOST_WIDE + 1) + channel / (2 * PER_WORD) + filter;
}

// slots: a Slot for each thread block, as eight ints. weights and packed have one row per net.
// Twin: block_oracles.packed
extern "C" __global__ void pack_weights(
    const int* slots, PerNet<const float> weights, PerNet<float> packed) {
    const int4* row = reinterpret_cast<const int4*>(slots) + blockIdx.x * 2;  // 16 bytes at a time
    int4 a = row[0], b = row[1];
    Slot s{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
    const float* kernel = weights.row() + s.from;
    float* to = packed.row() + s.to;
    int channels = s.is_gradient ? s.Cout : s.Cin, filters = s.is_gradient ? s.Cin : s.Cout;
    // They pass through shared memory, so that neighbouring threads read neighbouring weights.
    __shared__ float staged[CHUNK * (MOST_WIDE + 1) + CHUNK];
    for (int i = threadIdx.x; i < CHUNK * s.width; i += blockDim.x) {
        int c = s.is_gradient ? i % CHUNK : i / s.width;
        int f = s.is_gradient ? i / CHUNK : i % s.width;
        int channel = s.first_channel + c, filter = s.first_filter + f;
        bool exists = channel < channels && filter < filters;
        int at = s.is_gradient ? filter * s.Cout + channel : channel * s.Cout + filter;
        staged[staged_at(c, f)] = exists ? __ldg(kernel + at) : 0.0f;
    }
    __syncthreads();
    auto word = [&](int number, int f) {
        if constexpr (PER_WORD == 1)
            return Operands<float>::word(staged[staged_at(number, f)]);
        else
            return Operands<bfloat16>::word(
                staged[staged_at(number * 2, f)], staged[staged_at(number * 2 + 1, f)]);
    };
    for (int i = threadIdx.x; i < WORDS * s.width / 4; i += blockDim.x) {
        int lane = i % 4, quad = i / 4 % (s.width / 4), operand = i / s.width % 2;
        int step = i / s.width / 2, first = step * STEP + lane * 2;
        int f = quad * 4 + operand * 2;
        store4(to + packed_at(step, operand, quad, lane, s.width),
               make_float4(word(first, f), word(first, f + 1), word(first + 1, f),
                           word(first + 1, f + 1)));
    }
}
