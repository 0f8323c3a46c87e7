// The loss: softmax cross-entropy, computed from logits, so that it never saturates.
#include "common.cuh"
#include "reduce.cuh"

constexpr int WARPS = 32;  // of a thread block, at most

// For logits (B, classes) and labels (B,), with p = softmax(logits) of each image:
//     target = (1 - smoothing) * onehot(label) + smoothing / classes
//     loss = mean of -sum(target * log(p)),  dlogits = (p - target) / B
//     correct = the number of images whose largest logit is that of their label
// The first of equal logits counts as the largest; an image with a NaN is not correct.
//
// One thread block per net, since the mean needs all images. A warp takes an image, a lane every
// 32nd class. Losses are summed in double.
// Twin: ops_numpy.softmax_cross_entropy
extern "C" __global__ void __launch_bounds__(WARP * WARPS) softmax_cross_entropy(
    PerNet<const float> logits, PerNet<const long long> labels, int B, int classes,
    float smoothing, PerNet<float> loss, PerNet<long long> correct, PerNet<float> dlogits) {
    __shared__ double losses[WARPS];  // of each warp's images
    __shared__ int rights[WARPS];
    int lane = threadIdx.x, warp = threadIdx.y;
    float of_others = smoothing / classes, of_label = 1.0f - smoothing + of_others;  // targets

    double loss_sum = 0.0;
    int right = 0;
    for (int b = warp; b < B; b += blockDim.y) {
        const float* z = logits.row() + b * classes;  // (classes,)
        float* dz = dlogits.row() + b * classes;      // (classes,)
        int label = labels.row()[b];

        float peak = z[0];
        for (int n = lane; n < classes; n += WARP) peak = fmaxf(peak, z[n]);
        peak = warp_max(peak);

        float total = 0.0f, shifted_sum = 0.0f;
        int first = classes;  // the first class whose logit is `peak`
        for (int n = lane; n < classes; n += WARP) {
            float shifted = z[n] - peak;
            shifted_sum += shifted;
            dz[n] = expf(shifted);  // stored here until the total is known
            total += dz[n];
            if (z[n] == peak) first = min(first, n);
        }
        total = warp_sum(total);
        first = warp_min(first);
        for (int n = lane; n < classes; n += WARP)
            dz[n] = (dz[n] / total - (n == label ? of_label : of_others)) / B;

        float at_target = z[label] - peak;  // z - peak, averaged over the target
        if (smoothing > 0.0f)               // without it 0 * -infinity would be NaN
            at_target = (1.0f - smoothing) * at_target + of_others * warp_sum(shifted_sum);
        loss_sum += logf(total) - at_target;
        right += first == label && total > 0.0f;  // false if total is NaN
    }
    if (lane == 0) {
        losses[warp] = loss_sum;
        rights[warp] = right;
    }
    __syncthreads();
    if (lane == 0 && warp == 0) {
        for (int other = 1; other < blockDim.y; ++other) {
            loss_sum += losses[other];
            right += rights[other];
        }
        loss.row()[0] = loss_sum / B;
        correct.row()[0] = right;
    }
}
