// Dropout on a CPU. Source: N. Srivastava et al., JMLR 15, 2014; inverted: what is kept is scaled up.
#include "philox.h"

// y = x * scale where the number's random word is at least `threshold`, else 0; mask says where.
KERNEL dropout_forward(
    const float PER_NET x, float scale, unsigned threshold, unsigned seed,
    const long long PER_NET net, unsigned stream, const long long* step, int count,
    bool PER_NET mask, float PER_NET y) {
    enum { NUMBERS = 4096 };  // that a thread takes at a time
    int turns = divide_up(count, NUMBERS);
#pragma omp parallel for if (count >= WORTH_SHARING)
    for (int turn = 0; turn < turns; ++turn) {
        int first = turn * NUMBERS, here = smaller(NUMBERS, count - first);
        uint32_t words[NUMBERS];
        random_words(first / 4, seed, *net, stream, *step, here, words);
        const float* from = x + first;
        float* to = y + first;
        for (int i = 0; i < here; ++i) to[i] = words[i] >= threshold ? from[i] * scale : 0.0f;
        for (int i = 0; i < here; ++i) mask[first + i] = words[i] >= threshold;
    }
}

// dx = dy * scale where mask, else 0.
KERNEL dropout_backward(
    const float PER_NET dy, float scale, const bool PER_NET mask, int count, float PER_NET dx) {
#pragma omp parallel for simd if (count >= WORTH_SHARING)
    for (int i = 0; i < count; ++i) {
        float factor = mask[i] * scale;
        dx[i] = dy[i] * factor;
    }
}
