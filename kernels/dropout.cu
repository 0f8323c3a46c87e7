// Dropout. Source: N. Srivastava et al., JMLR 15, 2014; inverted: what is kept is scaled up.
#include "common.cuh"
#include "philox.cuh"
#include "reduce.cuh"

constexpr int WORDS = 4;  // of a Philox block

// y = x * scale where the number's random word is at least `threshold`, else 0; mask says where.
//
// A thread makes the four words of one Philox block, for four numbers that follow one another. But
// if it also read and wrote those four, the lanes of a warp would touch every fourth number at a
// time. So each lane keeps the four answers as bits, and in four turns the warp passes over its 128
// numbers, neighbouring lanes at neighbouring numbers, each with the bit of the lane that drew it.
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

    int first = (thread - lane) * WORDS;  // of the warp's numbers
#pragma unroll
    for (int turn = 0; turn < WORDS; ++turn) {
        int number = turn * WARP + lane;
        // All lanes take part in the exchange, those behind the end, too.
        unsigned answers = __shfl_sync(ALL_LANES, kept, number / WORDS);
        bool keep = answers >> (number % WORDS) & 1;
        int i = first + number;
        if (i < count) {
            float value = x.row()[i];  // dropped or not: it lies in a sector that is read anyhow
            mask.row()[i] = keep;
            y.row()[i] = keep ? value * scale : 0.0f;
        }
    }
}

// dx = dy * scale where mask, else 0.
extern "C" __global__ void dropout_backward(
    PerNet<const float> dy, float scale, PerNet<const bool> mask, int count, PerNet<float> dx) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    float value = dy.row()[i];
    dx.row()[i] = mask.row()[i] ? value * scale : 0.0f;
}

// Dropout's answers for a whole step, as bits: kept (words,), number i's is bit i % 32 of word i / 32
// of its layer. layers (count, 3): the first word, stream and threshold of each layer, in order.
// A thread makes a word, from eight Philox blocks.
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
