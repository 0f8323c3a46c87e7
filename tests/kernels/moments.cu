// What fused blocks compute from partial sums (kernels/block.cuh), by one thread block.
#include "block.cuh"

// parts (count, STATISTICS, C) -> mean, variance (C,); C a multiple of eight
extern "C" __global__ void moments(
    PerNet<const float> parts, int count, int C, PerNet<float> mean, PerNet<float> variance) {
    for (int i = threadIdx.x; i < C * SHARERS; i += blockDim.x) {
        int c = shared_channel(i), share = own_share(i);
        Moments found = add_up_moments(parts.row(), count, C, c, share);
        if (share > 0) continue;
        mean.row()[c] = found.mean;
        variance.row()[c] = found.variance;
    }
}

// rows (count, PIVOTED, C) -> part (STATISTICS, C)
extern "C" __global__ void pivoted(
    PerNet<const float> rows, int count, int C, PerNet<float> part) {
    int c = threadIdx.x;
    if (c < C) add_up_pivoted(rows.row(), count, C, c, part.row() + c, C);
}

// mean, variance, gamma, beta (C,) -> scale, shift (C,); C in whole chunks
extern "C" __global__ void normalization(
    PerNet<const float> mean, PerNet<const float> variance, PerNet<const float> gamma,
    PerNet<const float> beta, float epsilon, float kept_scale, int C, PerNet<float> scale,
    PerNet<float> shift) {
    Normalization between{gamma.row(), beta.row(),     nullptr, 0,
                          mean.row(),  variance.row(), epsilon, kept_scale};
    between.prepare(C, scale.row(), shift.row());
}

// parts (count, SUMS, C), mean, variance, gamma (C,) -> a, b, c, dgamma, dbeta (C,), likewise
extern "C" __global__ void normalization_gradient(
    PerNet<const float> parts, int count, PerNet<const float> mean, PerNet<const float> variance,
    PerNet<const float> gamma, float epsilon, int rows, int C, PerNet<float> a, PerNet<float> b,
    PerNet<float> c, PerNet<float> dgamma, PerNet<float> dbeta) {
    NormalizationGradient gradient{gamma.row(),    parts.row(), count, mean.row(),
                                   variance.row(), epsilon,     rows};
    gradient.prepare(C, a.row(), b.row(), c.row(), dgamma.row(), dbeta.row());
}
