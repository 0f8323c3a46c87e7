// The loss: softmax cross-entropy, taken from logits, so that it never saturates.
#include "common.cuh"
#include "reduce.cuh"

constexpr int WARPS = 32;  // of a block, at most

// loss = mean over the batch of -log softmax(logits)[label], dlogits its gradient, correct how many
// images have their largest logit at their label (the first of equals; none where one is NaN).
//
// One block a net, since the mean needs all of its images. A warp takes an image, its lanes every
// 32nd class: logits (B, N). Losses are added up in double.
extern "C" __global__ void __launch_bounds__(WARP * WARPS) softmax_cross_entropy(
    PerNet<const float> logits, PerNet<const long long> labels, int B, int N, PerNet<float> loss,
    PerNet<long long> correct, PerNet<float> dlogits) {
    __shared__ double losses[WARPS];  // of a warp's images
    __shared__ int rights[WARPS];
    int lane = threadIdx.x, warp = threadIdx.y;

    double loss_sum = 0.0;
    int right = 0;
    for (int b = warp; b < B; b += blockDim.y) {
        const float* z = logits.row() + b * N;  // (N,)
        float* dz = dlogits.row() + b * N;      // (N,)
        int label = labels.row()[b];

        float peak = z[0];
        for (int n = lane; n < N; n += WARP) peak = fmaxf(peak, z[n]);
        peak = warp_max(peak);

        float total = 0.0f;
        int first = N;  // class at the peak
        for (int n = lane; n < N; n += WARP) {
            dz[n] = expf(z[n] - peak);  // waits here
            total += dz[n];
            if (z[n] == peak) first = min(first, n);
        }
        total = warp_sum(total);
        first = warp_min(first);
        for (int n = lane; n < N; n += WARP) dz[n] = (dz[n] / total - (n == label)) / B;

        loss_sum += logf(total) - (z[label] - peak);
        right += first == label && total > 0.0f;  // a NaN is not above 0
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
