// Rounds the weights of all blocks to operands of tensor cores, and arranges them for correlate (correlation.cuh).
#include "correlation.cuh"

// The work of one thread block: a tap's weights, CHUNK channels of the depth by `width` result
// channels, both from the `first_` one on. For a forward pass the depth is the kernel's Cin and the
// results are its Cout; for a gradient with respect to the input (is_gradient) it is the other way.
struct Slot {
    int from, to;  // in a net's weights: the tap's (Cin, Cout); in its packed weights
    int Cin, Cout, first_channel, first_filter, width, is_gradient;
};

// slots: a Slot for each thread block, as eight ints. weights and packed have one row per net.
// Twin: block_oracles.packed
extern "C" __global__ void pack_weights(
    const int* slots, PerNet<const float> weights, PerNet<float> packed) {
    const int* row = slots + blockIdx.x * 8;
    Slot s{row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7]};
    const float* kernel = weights.row() + s.from;
    float* to = packed.row() + s.to;
    int channels = s.is_gradient ? s.Cout : s.Cin, filters = s.is_gradient ? s.Cin : s.Cout;
    auto weight = [&](int channel, int filter) {
        if (channel >= channels || filter >= filters) return 0.0f;
        return __ldg(kernel + (s.is_gradient ? filter * s.Cout + channel
                                             : channel * s.Cout + filter));
    };
    auto word = [&](int number, int filter) {
        int channel = s.first_channel + number * PER_WORD;
        if constexpr (PER_WORD == 1)
            return Operands<float>::word(weight(channel, filter));
        else
            return Operands<bfloat16>::word(weight(channel, filter), weight(channel + 1, filter));
    };
    for (int i = threadIdx.x; i < WORDS * s.width / 4; i += blockDim.x) {
        int lane = i % 4, quad = i / 4 % (s.width / 4), operand = i / s.width % 2;
        int step = i / s.width / 2, first = step * STEP + lane * 2;
        int filter = s.first_filter + quad * 4 + operand * 2;
        store4(to + packed_at(step, operand, quad, lane, s.width),
               make_float4(word(first, filter), word(first, filter + 1), word(first + 1, filter),
                           word(first + 1, filter + 1)));
    }
}
