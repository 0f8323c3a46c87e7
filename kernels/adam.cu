// Adam over the flat array of all weights, and the average of the weights. Source of Adam:
// D. Kingma, J. Ba, arXiv:1412.6980, in the reordered form at the end of section 2, which Keras
// uses.
#include "update.cuh"

constexpr int WEIGHTS_PER_THREAD = 16;

// The element that belongs to step number `step`, of `count` values that the steps take in turn.
// Steps are below 2^32, as the counters of random numbers are; so the division has 32 bits.
__device__ inline float of_step(const double* values, int count, unsigned step) {
    return values[step % unsigned(count)];
}

// One step of Adam, with t = step + 1:
//     m = beta_1 * m + (1 - beta_1) * g
//     v = beta_2 * v + (1 - beta_2) * g * g
//     w -= learning_rate * sqrt(1 - beta_2^t) / (1 - beta_1^t) * m / (sqrt(v) + epsilon)
// `step`, the number of steps done before this one, and the learning rate, number `step` % rates of
// an array, are read from device memory, because a captured graph repeats a launch with fixed
// arguments. keep, take and log are beta, 1 - beta and the logarithm of beta, which the host has
// computed in double: 1 - beta^t = -expm1(t * log(beta)) loses no digits in float.
struct Adam {
    float keep_1, take_1, keep_2, take_2, epsilon, rate;

    __device__ Adam(
        const long long* step, const double* learning_rate, int rates, float keep_1, float take_1,
        float log_1, float keep_2, float take_2, float log_2, float epsilon)
        : keep_1(keep_1), take_1(take_1), keep_2(keep_2), take_2(take_2), epsilon(epsilon) {
        unsigned done = step[0];
        float t = done + 1.0f;
        float correction = sqrtf(-expm1f(t * log_2)) / -expm1f(t * log_1);
        rate = of_step(learning_rate, rates, done) * correction;
    }

    // Updates the weights of a Sum; w, g, m and v are (P,). Neighbouring threads update
    // neighbouring weights; those of one thread are blockDim.x apart. It loads BATCH of them before
    // it stores any, so that their loads are in flight together.
    __device__ void update(
        const Sum& s, const float* parts, const float* g, float* w, float* m, float* v) const {
        for (int first = threadIdx.x; first < s.length; first += BATCH * blockDim.x) {
            float weight[BATCH], gradient[BATCH], moment_1[BATCH], moment_2[BATCH];
#pragma unroll
            for (int k = 0; k < BATCH; ++k) {
                int i = first + k * int(blockDim.x), at = s.to + i;
                bool exists = i < s.length;
                weight[k] = exists ? w[at] : 0.0f;
                moment_1[k] = exists ? m[at] : 0.0f;
                moment_2[k] = exists ? v[at] : 0.0f;
            }
            s.load(parts, g, first, gradient);
#pragma unroll
            for (int k = 0; k < BATCH; ++k) {
                int i = first + k * int(blockDim.x), at = s.to + i;
                if (i >= s.length) break;
                float next_1 = moved(moment_1[k], gradient[k], keep_1, take_1);
                float next_2 = moved(moment_2[k], gradient[k] * gradient[k], keep_2, take_2);
                m[at] = next_1;
                v[at] = next_2;
                w[at] = fmaf(-rate, next_1 / (sqrtf(next_2) + epsilon), weight[k]);
            }
        }
    }
};

// One step for a net's P weights; w, g, m and v are (P,).
// Twin: ops_numpy.adam
extern "C" __global__ void adam(
    PerNet<float> w, PerNet<const float> g, PerNet<float> m, PerNet<float> v, int P,
    const long long* step, const double* learning_rate, int rates, float keep_1, float take_1,
    float log_1, float keep_2, float take_2, float log_2, float epsilon) {
    int most = WEIGHTS_PER_THREAD * blockDim.x, first = blockIdx.x * most;
    Adam rule(step, learning_rate, rates, keep_1, take_1, log_1, keep_2, take_2, log_2, epsilon);
    rule.update({0, 0, 0, 0, first, min(most, P - first)}, nullptr, g.row(), w.row(), m.row(),
                v.row());
}

// The same with gradients that are still partial sums. `sums` has a Sum for each thread block, as
// six ints; together they have each of the P weights once. The launch also updates the moving
// statistics (M,) with those of the batch, as update_moving (batch_norm.cu) does.
// Twin: block_oracles.adam_from_parts
extern "C" __global__ void adam_from_parts(
    const int* sums, PerNet<const float> parts, PerNet<float> w, PerNet<const float> g,
    PerNet<float> m, PerNet<float> v, const long long* step, const double* learning_rate, int rates,
    float keep_1, float take_1, float log_1, float keep_2, float take_2, float log_2, float epsilon,
    MAY_BE_NULL PerNet<float> moving, MAY_BE_NULL PerNet<const float> batch, int M, float keep,
    float take) {
    Adam rule(step, learning_rate, rates, keep_1, take_1, log_1, keep_2, take_2, log_2, epsilon);
    rule.update(own_sum(sums), parts.row(), g.row(), w.row(), m.row(), v.row());
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < M; i += gridDim.x * blockDim.x)
        moving.row()[i] = moved(moving.row()[i], batch.row()[i], keep, take);
}

// After a step, for a net's P weights; w and averaged are (P,):
//     averaged += share * (w - averaged)
// `step` is the number of steps so far; step number s, from 0, takes shares[s % count].
// Twin: ops_numpy.average
extern "C" __global__ void average(
    PerNet<const float> w, PerNet<float> averaged, int P, const long long* step,
    const double* shares, int count) {
    float share = of_step(shares, count, step[0] - 1);
    int first = blockIdx.x * blockDim.x * WEIGHTS_PER_THREAD + threadIdx.x;
    for (int batch = 0; batch < WEIGHTS_PER_THREAD; batch += BATCH) {
        float now[BATCH], before[BATCH];
#pragma unroll
        for (int k = 0; k < BATCH; ++k) {
            int i = first + (batch + k) * int(blockDim.x);
            bool exists = i < P;
            now[k] = exists ? w.row()[i] : 0.0f;
            before[k] = exists ? averaged.row()[i] : 0.0f;
        }
#pragma unroll
        for (int k = 0; k < BATCH; ++k) {
            int i = first + (batch + k) * int(blockDim.x);
            if (i >= P) break;
            averaged.row()[i] = fmaf(share, now[k] - before[k], before[k]);
        }
    }
}
