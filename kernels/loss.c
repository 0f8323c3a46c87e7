// Softmax cross-entropy on a CPU. It is taken from logits, and so never saturates.
#include <math.h>

#include "vector.h"

// The mean over images of -log softmax(logits)[label], and its gradient: logits, dlogits (B, N),
// labels (B,). correct: how many images have their largest logit, the first of equals, at their label.
KERNEL softmax_cross_entropy(
    const float PER_NET logits, const long long PER_NET labels, int B, int N, float PER_NET loss,
    long long PER_NET correct, float PER_NET dlogits) {
    double sum = 0;
    long long right = 0;
    for (int b = 0; b < B; ++b, logits += N, dlogits += N) {
        int largest = 0, label = labels[b];
        for (int i = 1; i < N; ++i) largest = logits[i] > logits[largest] ? i : largest;
        float total = 0;
        for (int i = 0; i < N; ++i) total += dlogits[i] = expf(logits[i] - logits[largest]);
        sum += log(total) - ((double)logits[label] - logits[largest]);
        right += largest == label && total > 0;  // not if anything is NaN
        for (int i = 0; i < N; ++i) dlogits[i] = (dlogits[i] / total - (i == label)) / B;
    }
    *loss = sum / B;
    *correct = right;
}
