// The head of a network, forward and backward in one launch: the last block's batch normalisation
// and dropout, the dense layer, softmax and the loss, and all their gradients. This is little work,
// so one thread block does it for a net, a few images at a time, and writes only results to memory.
#include "block.cuh"

constexpr int THREADS = 512;

// Inputs: y (B, F), the last block's activation as block_forward writes it, with F / C pixels of C
// channels; `moments` (moments_count, STATISTICS, C), the partial sums of its moments; kernel
// (F, units), bias (units,), labels (B,) and their smoothing. Results:
//     logits (B, units), loss, correct       as softmax_cross_entropy (loss.cu) computes them
//     dkernel (F, units), dbias (units,)     gradients of the dense layer
//     dx (B, F), sums (1, SUMS, C)           of the block, as block_input_gradient computes them
//     mean, variance (C,)                    of y
// Shared memory holds `images` images at a time.
// Twin: block_oracles.head
extern "C" __global__ void __launch_bounds__(THREADS, 1) head(
    PerNet<const STORED> y, PerNet<const float> gamma, PerNet<const float> beta,
    PerNet<const float> moments, int moments_count, float epsilon, float kept_scale,
    MAY_BE_NULL PerNet<const unsigned> kept, PerNet<const float> kernel, PerNet<const float> bias,
    PerNet<const long long> labels, float smoothing, int B, int F, int C, int units, int images,
    PerNet<float> mean, PerNet<float> variance, PerNet<float> logits, PerNet<float> loss,
    PerNet<long long> correct, PerNet<float> dkernel, PerNet<float> dbias, PerNet<STORED> dx,
    PerNet<float> sums) {
    extern __shared__ __align__(16) float shared[];
    int threads = blockDim.x, thread = threadIdx.x;
    int padded = ceil_div(C, CHUNK) * CHUNK;
    int pitch = F + 1;                 // of `inputs`: a column uses all banks of shared memory
    int slices = max(1, threads / F);  // of the images: threads of one column divide them
    float *scales = shared, *shifts = scales + padded;                  // (C,)
    float *weights = shifts + padded, *dweights = weights + F * units;  // (F, units)
    float* column_sums = dweights + F * units;                          // (SUMS, slices, F)
    float* inputs = column_sums + SUMS * slices * F;                    // (images, pitch)
    float* outputs = inputs + images * pitch;                           // (images, units)
    float *losses = outputs + images * units, *hits = losses + images;  // (images,)

    Normalization between{gamma.row(), beta.row(), moments.row(), moments_count,
                          nullptr,     nullptr,    epsilon,       kept_scale};
    between.prepare(C, scales, shifts, mean.row(), variance.row());
    for (int i = thread; i < F * units; i += threads) {
        weights[i] = kernel.row()[i];
        dweights[i] = 0.0f;
    }
    for (int i = thread; i < SUMS * slices * F; i += threads) column_sums[i] = 0.0f;

    // Targets of the loss
    float of_others = smoothing / units, of_label = 1.0f - smoothing + of_others;

    Precise loss_sum = 0.0f;  // of all images; only the first thread computes it
    int right = 0;            // the same
    float dbias_sum = 0.0f;   // of the thread's class
    for (int first = 0; first < B; first += images) {
        int here = min(images, B - first);
        __syncthreads();
        for (int i = thread; i < here * F; i += threads) {
            int b = i / F, f = i - b * F, c = f % C, at = first * F + i;
            bool keep = !kept.data || kept.row()[at / 32] >> at % 32 & 1;
            inputs[b * pitch + f] = keep ? fmaf(scales[c], widen(y.row()[at]), shifts[c]) : 0.0f;
        }
        __syncthreads();

        for (int i = thread; i < here * units; i += threads) {
            int n = i / here, b = i - n * here;
            float sum = 0.0f;
            for (int f = 0; f < F; ++f)
                sum = fmaf(inputs[b * pitch + f], weights[f * units + n], sum);
            outputs[b * units + n] = sum + bias.row()[n];
        }
        __syncthreads();

        for (int b = thread; b < here; b += threads) {
            float* z = outputs + b * units;
            int label = labels.row()[first + b], best = 0;
            float peak = z[0], total = 0.0f, shifted_sum = 0.0f;
            for (int n = 0; n < units; ++n) {
                logits.row()[(first + b) * units + n] = z[n];
                if (z[n] > peak) best = n;
                peak = fmaxf(peak, z[n]);
            }
            float at_target = z[label] - peak;  // z - peak, averaged over the target
            for (int n = 0; n < units; ++n) {
                float shifted = z[n] - peak;
                shifted_sum += shifted;
                z[n] = expf(shifted);
                total += z[n];
            }
            for (int n = 0; n < units; ++n)
                z[n] = (z[n] / total - (n == label ? of_label : of_others)) / B;
            if (smoothing > 0.0f)  // without it 0 * -infinity would be NaN
                at_target = (1.0f - smoothing) * at_target + of_others * shifted_sum;
            losses[b] = logf(total) - at_target;
            hits[b] = best == label && total > 0.0f;  // false if total is NaN
        }
        __syncthreads();

        if (thread == 0)
            for (int b = 0; b < here; ++b) {
                loss_sum = loss_sum + losses[b];
                right += int(hits[b]);
            }
        if (thread < units)
            for (int b = 0; b < here; ++b) dbias_sum += outputs[b * units + thread];
        for (int i = thread; i < F * units; i += threads) {
            int n = i / F, f = i - n * F;
            float sum = dweights[f * units + n];
            for (int b = 0; b < here; ++b)
                sum = fmaf(inputs[b * pitch + f], outputs[b * units + n], sum);
            dweights[f * units + n] = sum;
        }
        for (int i = thread; i < slices * F; i += threads) {
            int slice = i / F, f = i - slice * F, c = f % C;
            float inverse = float(inverse_deviation(variance.row()[c], epsilon));
            float shift = -mean.row()[c] * inverse;
            float sum = column_sums[i], sum_z = column_sums[slices * F + i];
            for (int b = slice; b < here; b += slices) {
                int at = (first + b) * F + f;
                bool keep = !kept.data || kept.row()[at / 32] >> at % 32 & 1;
                float v = 0.0f;
                for (int n = 0; n < units; ++n)
                    v = fmaf(outputs[b * units + n], weights[f * units + n], v);
                v = put(dx.row() + at, keep ? v * kept_scale : 0.0f);
                sum += v;
                sum_z = fmaf(v, fmaf(widen(y.row()[at]), inverse, shift), sum_z);
            }
            column_sums[i] = sum;
            column_sums[slices * F + i] = sum_z;
        }
    }
    __syncthreads();

    if (thread == 0) {
        loss.row()[0] = float(loss_sum / float(B));
        correct.row()[0] = right;
    }
    if (thread < units) dbias.row()[thread] = dbias_sum;
    for (int i = thread; i < F * units; i += threads) dkernel.row()[i] = dweights[i];
    for (int i = thread; i < SUMS * C; i += threads) {
        const float* of_kind = column_sums + i / C * slices * F;
        float sum = 0.0f;
        for (int column = i % C; column < slices * F; column += C) sum += of_kind[column];
        sums.row()[i] = sum;
    }
}
