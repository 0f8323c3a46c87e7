// Dropout. Source: N. Srivastava et al., JMLR 15, 2014; the inverted form, which scales up the
// elements that it keeps.
#include "common.cuh"
#include "philox.cuh"
#include "reduce.cuh"

constexpr int WORDS = 4;  // of a Philox block

// mask = random word >= threshold, y = mask ? x * scale : 0, element by element.
//
// A thread draws the four words of one Philox block, for four consecutive elements. If it also read
// and wrote these four, a warp would access every fourth element at a time. So each lane keeps its
// four comparisons as bits, and the warp handles its 128 elements in four passes: neighbouring
// lanes take neighbouring elements, and each gets its bit from the lane that drew it.
// Twin: ops_numpy.dropout
extern "C" __global__ void dropout_forward(
    PerNet<const float> x, float scale, unsigned threshold, unsigned seed,
    PerNet<const long long> nets, unsigned stream, const long long* step, int count,
    PerNet<bool> mask, PerNet<float> y) {
    int thread = blockIdx.x * blockDim.x + threadIdx.x;
    int lane = threadIdx.x % WARP;
    Random random{seed, unsigned(nets.row()[0]), stream, unsigned(step[0])};
    uint4 words = random.block(thread);
    unsigned kept = (words.x >= threshold) | (words.y >= threshold) << 1 |
                    (words.z >= threshold) << 2 | (words.w >= threshold) << 3;

    int first = (thread - lane) * WORDS;  // of the warp's elements
#pragma unroll
    for (int pass = 0; pass < WORDS; ++pass) {
        int element = pass * WARP + lane;
        // All lanes take part in the shuffle, also those after the end of the array.
        unsigned bits = __shfl_sync(ALL_LANES, kept, element / WORDS);
        bool keep = bits >> (element % WORDS) & 1;
        int i = first + element;
        if (i < count) {
            float value = x.row()[i];  // even if it is dropped: its sector is read anyway
            mask.row()[i] = keep;
            y.row()[i] = keep ? value * scale : 0.0f;
        }
    }
}

// dx = mask ? dy * scale : 0, element by element.
// Twin: ops_numpy.dropout_backward
extern "C" __global__ void dropout_backward(
    PerNet<const float> dy, float scale, PerNet<const bool> mask, int count, PerNet<float> dx) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    float value = dy.row()[i];
    dx.row()[i] = mask.row()[i] ? value * scale : 0.0f;
}

// The dropout masks of a whole step as bits, kept (words,): element i of a layer is kept if bit
// i % 32 of the layer's word i / 32 is set. layers (count, 3): first word, stream and threshold of
// each layer, in order. A thread makes one word, from eight Philox blocks.
// Twin: ops_numpy.dropout
extern "C" __global__ void dropout_bits(
    const unsigned* layers, int count, int words, unsigned seed, PerNet<const long long> nets,
    const long long* step, PerNet<unsigned> kept) {
    int word = blockIdx.x * blockDim.x + threadIdx.x;
    if (word >= words) return;
    const unsigned* layer = layers;
    for (int i = 1; i < count; ++i)
        if (word >= layers[i * 3]) layer = layers + i * 3;
    Random random{seed, unsigned(nets.row()[0]), layer[1], unsigned(step[0])};
    unsigned threshold = layer[2], bits = 0;
    constexpr int BLOCKS = 32 / WORDS;
    for (int i = 0; i < BLOCKS; ++i) {
        uint4 words = random.block((word - layer[0]) * BLOCKS + i);
        unsigned four = (words.x >= threshold) | (words.y >= threshold) << 1 |
                        (words.z >= threshold) << 2 | (words.w >= threshold) << 3;
        bits |= four << i * WORDS;
    }
    kept.row()[word] = bits;
}
