// The end of a network, both ways in one launch: the last block's normalisation and dropout, a dense
// layer, softmax and the loss, and all their gradients. It is little work, so a block of threads
// makes it all for one net, and nothing but results leaves it.
#include "block.cuh"

constexpr int THREADS = 512;

// From y (B, F), the last block's activation with F / C pixels of C channels, as block_forward has
// it; kernel (F, N), bias (N,), labels (B,):
//     logits (B, N), loss, correct     as softmax_cross_entropy (loss.cu) has them
//     dkernel (F, N), dbias (N,)       the dense layer's gradients
//     dx (B, F), sums (1, SUMS, C)     the gradient by the block's output, and its sums
//     mean, variance (C,)              the block's moments
extern "C" __global__ void __launch_bounds__(THREADS) head(
    PerNet<const float> y, PerNet<const float> gamma, PerNet<const float> beta,
    PerNet<const float> moments, int moments_count, float epsilon, float kept_scale,
    MAY_BE_NULL PerNet<const unsigned> kept, PerNet<const float> kernel, PerNet<const float> bias,
    PerNet<const long long> labels, int B, int F, int C, int N, PerNet<float> mean,
    PerNet<float> variance, PerNet<float> logits, PerNet<float> loss, PerNet<long long> correct,
    PerNet<float> dkernel, PerNet<float> dbias, PerNet<float> dx, PerNet<float> sums) {
    extern __shared__ __align__(16) float shared[];
    int padded = ceil_div(C, CHUNK) * CHUNK, pitch = F + 1;  // so that a column has all banks
    float *scales = shared, *shifts = scales + padded;
    float *inputs = shifts + padded, *weights = inputs + B * pitch;  // (B, F), (F, N)
    float *outputs = weights + F * N, *losses = outputs + B * N;     // (B, N), (B,)
    float *hits = losses + B, *lane_sums = hits + B;                 // (B,), (SUMS, slices, F)
    int threads = blockDim.x, thread = threadIdx.x;

    Normalization between{gamma.row(), beta.row(), moments.row(), moments_count,
                          nullptr,     nullptr,    epsilon,       kept_scale};
    between.prepare(C, scales, shifts);
    between.leave_moments(C, mean.row(), variance.row());
    for (int i = thread; i < F * N; i += threads) weights[i] = kernel.row()[i];
    __syncthreads();
    for (int i = thread; i < B * F; i += threads) {
        int b = i / F, f = i - b * F, c = f % C;
        bool keep = !kept.data || kept.row()[i / 32] >> i % 32 & 1;
        inputs[b * pitch + f] = keep ? fmaf(scales[c], y.row()[i], shifts[c]) : 0.0f;
    }
    __syncthreads();

    for (int i = thread; i < B * N; i += threads) {
        int n = i / B, b = i - n * B;
        float sum = 0.0f;
        for (int f = 0; f < F; ++f) sum = fmaf(inputs[b * pitch + f], weights[f * N + n], sum);
        outputs[b * N + n] = sum + bias.row()[n];
    }
    __syncthreads();
    for (int b = thread; b < B; b += threads) {
        float* z = outputs + b * N;
        int label = labels.row()[b], first = 0;
        float peak = z[0], total = 0.0f, of_label = z[label];
        for (int n = 0; n < N; ++n) {
            logits.row()[b * N + n] = z[n];
            if (z[n] > peak) first = n;
            peak = fmaxf(peak, z[n]);
        }
        for (int n = 0; n < N; ++n) {
            z[n] = expf(z[n] - peak);
            total += z[n];
        }
        for (int n = 0; n < N; ++n) z[n] = (z[n] / total - (n == label)) / B;
        losses[b] = logf(total) - (of_label - peak);
        hits[b] = first == label && total > 0.0f;  // a NaN is not above 0
    }
    __syncthreads();
    if (thread == 0) {
        double sum = 0.0;
        int right = 0;
        for (int b = 0; b < B; ++b) {
            sum += losses[b];
            right += int(hits[b]);
        }
        loss.row()[0] = sum / B;
        correct.row()[0] = right;
    }

    for (int i = thread; i < F * N; i += threads) {
        int n = i / F, f = i - n * F;
        float sum = 0.0f;
        for (int b = 0; b < B; ++b) sum = fmaf(inputs[b * pitch + f], outputs[b * N + n], sum);
        dkernel.row()[f * N + n] = sum;
    }
    for (int n = thread; n < N; n += threads) {
        float sum = 0.0f;
        for (int b = 0; b < B; ++b) sum += outputs[b * N + n];
        dbias.row()[n] = sum;
    }

    int slices = max(1, threads / F);  // of the images, which threads of the same column share out
    for (int i = thread; i < slices * F; i += threads) {
        int slice = i / F, f = i - slice * F, c = f % C;
        float inverse = 1.0 / sqrt(double(variance.row()[c]) + epsilon);
        float shift = -mean.row()[c] * inverse, sum = 0.0f, sum_z = 0.0f;
        for (int b = slice; b < B; b += slices) {
            int at = b * F + f;
            bool keep = !kept.data || kept.row()[at / 32] >> at % 32 & 1;
            float v = 0.0f;
            for (int n = 0; n < N; ++n) v = fmaf(outputs[b * N + n], weights[f * N + n], v);
            v = keep ? v * kept_scale : 0.0f;
            dx.row()[at] = v;
            sum += v;
            sum_z = fmaf(v, fmaf(y.row()[at], inverse, shift), sum_z);
        }
        lane_sums[i] = sum;
        lane_sums[slices * F + i] = sum_z;
    }
    __syncthreads();
    for (int i = thread; i < SUMS * C; i += threads) {
        const float* of_kind = lane_sums + i / C * slices * F;
        float sum = 0.0f;
        for (int lane = i % C; lane < slices * F; lane += C) sum += of_kind[lane];
        sums.row()[i] = sum;
    }
}
