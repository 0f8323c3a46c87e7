// Rounds the weights of all blocks to operands of tensor cores, and arranges them for correlate
// (correlation.cuh).
#include "correlation.cuh"

constexpr int MOST = 2 * WIDE;  // channels, or filters, of a tile
constexpr int INTS = 12;        // of a Tile

// The weights of one tap that a thread block reads once and writes twice: for the forward pass and
// for the gradient with respect to the input. `channels` by `filters` of them, 32 or 64 each, from
// the `first_` ones on. Each pass has its own order, in slots of CHUNK channels of its depth by all
// of its result channels in the tile. The depth is the kernel's Cin in a forward pass, and its Cout
// in the other one.
struct Tile {
    int from;       // the tap's (Cin, Cout), in a net's weights
    int Cin, Cout;
    int first_channel, first_filter, channels, filters;
    int forward[2], gradient[2];  // each slot's place in the packed weights; -1: there is none
};

// Where a weight of the tile is in shared memory. What four lanes read of eight quads of filters
// lies in 32 different banks.
__device__ inline int staged_at(int channel, int filter) {
    return channel * (MOST + 1) + channel / (2 * PER_WORD) + filter;
}

// Writes a slot. weight(n, r): element n of the depth, of result channel r of `results`.
template <typename F>
__device__ inline void write_slot(F weight, int results, float* to) {
    auto word = [&](int number, int r) {
        if constexpr (PER_WORD == 1)
            return Operands<float>::word(weight(number, r));
        else
            return Operands<bfloat16>::word(weight(number * 2, r), weight(number * 2 + 1, r));
    };
    for (int i = threadIdx.x; i < WORDS * results / 4; i += blockDim.x) {
        int lane = i % 4, quad = i / 4 % (results / 4), operand = i / results % 2;
        int step = i / results / 2, first = step * STEP + lane * 2;
        int r = quad * 4 + operand * 2;
        store4(to + packed_at(step, operand, quad, lane, results),
               make_float4(word(first, r), word(first, r + 1), word(first + 1, r),
                           word(first + 1, r + 1)));
    }
}

// tiles: a Tile for each thread block, as INTS ints. weights and packed have one row per net.
// Twin: block_oracles.packed
extern "C" __global__ void pack_weights(
    const int* tiles, PerNet<const float> weights, PerNet<float> packed) {
    const int4* row = reinterpret_cast<const int4*>(tiles + blockIdx.x * INTS);
    int4 a = row[0], b = row[1], c = row[2];  // 16 bytes at a time
    Tile t{a.x, a.y, a.z, a.w, b.x, b.y, b.z, {b.w, c.x}, {c.y, c.z}};
    const float* kernel = weights.row() + t.from;
    // Through shared memory, so that neighbouring threads read neighbouring weights.
    __shared__ float staged[MOST * (MOST + 1) + MOST];
    for (int i = threadIdx.x; i < t.channels * t.filters; i += blockDim.x) {
        int c = i / t.filters, f = i % t.filters;
        int channel = t.first_channel + c, filter = t.first_filter + f;
        bool exists = channel < t.Cin && filter < t.Cout;
        staged[staged_at(c, f)] = exists ? __ldg(kernel + channel * t.Cout + filter) : 0.0f;
    }
    __syncthreads();
    for (int k = 0; k < 2; ++k) {
        auto of_channels = [&](int n, int r) { return staged[staged_at(k * CHUNK + n, r)]; };
        auto of_filters = [&](int n, int r) { return staged[staged_at(r, k * CHUNK + n)]; };
        if (t.forward[k] >= 0) write_slot(of_channels, t.filters, packed.row() + t.forward[k]);
        if (t.gradient[k] >= 0) write_slot(of_filters, t.channels, packed.row() + t.gradient[k]);
    }
}
