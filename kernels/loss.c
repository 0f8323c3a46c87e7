// Softmax cross-entropy on a CPU. It is computed from logits, so it never saturates.
#include <math.h>

#include "vector.h"

// loss = mean over images of -sum(target * log softmax(logits)), and its gradient dlogits, with
// target = (1 - smoothing) * onehot(label) + smoothing / classes; logits, dlogits (B, classes),
// labels (B,). `correct` counts the images whose largest logit (the first of equals) is at their
// label.
// Twin: ops_numpy.softmax_cross_entropy
KERNEL softmax_cross_entropy(
    const float PER_NET logits, const long long PER_NET labels, int B, int classes,
    double smoothing, float PER_NET loss, long long PER_NET correct, float PER_NET dlogits) {
    float of_others = smoothing / classes, of_label = 1 - smoothing + of_others;  // targets
    double sum = 0;
    long long right = 0;
    for (int b = 0; b < B; ++b, logits += classes, dlogits += classes) {
        int largest = 0, label = labels[b];
        for (int i = 1; i < classes; ++i) largest = logits[i] > logits[largest] ? i : largest;
        float total = 0;
        for (int i = 0; i < classes; ++i) total += dlogits[i] = expf(logits[i] - logits[largest]);
        // The logits, less the largest, averaged over the target
        double at_target = (double)logits[label] - logits[largest];
        if (smoothing > 0) {  // without it 0 * -infinity would be NaN
            double shifted = 0;
            for (int i = 0; i < classes; ++i) shifted += (double)logits[i] - logits[largest];
            at_target = (1 - smoothing) * at_target + smoothing / classes * shifted;
        }
        sum += log(total) - at_target;
        right += largest == label && total > 0;  // false if anything is NaN
        for (int i = 0; i < classes; ++i)
            dlogits[i] = (dlogits[i] / total - (i == label ? of_label : of_others)) / B;
    }
    *loss = sum / B;
    *correct = right;
}
