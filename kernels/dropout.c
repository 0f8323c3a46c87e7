// Dropout on a CPU. Source: N. Srivastava et al., JMLR 15, 2014; inverted: scales what it keeps.
#include "philox.h"

enum { CHUNK = 4096 };  // elements whose words are drawn at a time

// mask = the element's random word is at least `threshold`, as in dropout_forward.
// Twin: ops_numpy.dropout
KERNEL dropout_mask(
    unsigned threshold, unsigned seed, const long long PER_NET net, unsigned stream,
    const long long* step, int count, bool PER_NET mask) {
    int chunks = divide_up(count, CHUNK);
#pragma omp parallel for if (count >= WORTH_SHARING)
    for (int chunk = 0; chunk < chunks; ++chunk) {
        int first = chunk * CHUNK, here = smaller(CHUNK, count - first);
        uint32_t words[CHUNK];
        random_words(first / 4, seed, *net, stream, *step, here, words);
        for (int i = 0; i < here; ++i) mask[first + i] = words[i] >= threshold;
    }
}

// mask = the element's random word is at least `threshold`; y = x * scale where mask, else 0.
// Twin: ops_numpy.dropout
KERNEL dropout_forward(
    const float PER_NET x, float scale, unsigned threshold, unsigned seed,
    const long long PER_NET net, unsigned stream, const long long* step, int count,
    bool PER_NET mask, float PER_NET y) {
    int chunks = divide_up(count, CHUNK);
#pragma omp parallel for if (count >= WORTH_SHARING)
    for (int chunk = 0; chunk < chunks; ++chunk) {
        int first = chunk * CHUNK, here = smaller(CHUNK, count - first);
        uint32_t words[CHUNK];
        random_words(first / 4, seed, *net, stream, *step, here, words);
        const float* from = x + first;
        float* to = y + first;
        for (int i = 0; i < here; ++i) to[i] = words[i] >= threshold ? from[i] * scale : 0.0f;
        for (int i = 0; i < here; ++i) mask[first + i] = words[i] >= threshold;
    }
}

// dx = dy * scale where mask, else 0.
// Twin: ops_numpy.dropout_backward
KERNEL dropout_backward(
    const float PER_NET dy, float scale, const bool PER_NET mask, int count, float PER_NET dx) {
#pragma omp parallel for simd if (count >= WORTH_SHARING)
    for (int i = 0; i < count; ++i) {
        float factor = mask[i] * scale;
        dx[i] = dy[i] * factor;
    }
}
