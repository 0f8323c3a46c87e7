// Adam over the flat array of all weights, and the average of the weights. Source: D. Kingma, J. Ba, arXiv:1412.6980, in the
// reordered form at the end of section 2, which Keras uses.
#include "common.cuh"

constexpr int WEIGHTS_PER_THREAD = 16, BATCH = 4;

// One step for a net's P weights; w, g, m and v are (P,), t = step + 1:
//     m = beta_1 * m + (1 - beta_1) * g
//     v = beta_2 * v + (1 - beta_2) * g * g
//     w -= learning_rate * sqrt(1 - beta_2^t) / (1 - beta_1^t) * m / (sqrt(v) + epsilon)
// `step`, the number of steps done before this one, and the learning rate, number `step` % rates of
// an array, are read from device memory, because a captured graph repeats a launch with fixed
// arguments.
// Twin: ops_numpy.adam
extern "C" __global__ void adam(
    PerNet<float> w, PerNet<const float> g, PerNet<float> m, PerNet<float> v, int P,
    const long long* step, const double* learning_rate, int rates, double beta_1, double beta_2,
    float epsilon) {
    __shared__ float shared_rate[1];
    if (threadIdx.x == 0) {  // once per block: pow in double takes as long as all the rest
        double t = step[0] + 1;
        double correction = sqrt(1.0 - pow(beta_2, t)) / (1.0 - pow(beta_1, t));
        shared_rate[0] = learning_rate[step[0] % rates] * correction;
    }
    __syncthreads();
    float rate = shared_rate[0];
    float keep_1 = beta_1, take_1 = 1.0 - beta_1, keep_2 = beta_2, take_2 = 1.0 - beta_2;

    // Neighbouring threads update neighbouring weights; those of one thread are blockDim.x apart. It
    // loads BATCH of them before it stores any, so that their loads are in flight together.
    int first = blockIdx.x * blockDim.x * WEIGHTS_PER_THREAD + threadIdx.x;
    for (int batch = 0; batch < WEIGHTS_PER_THREAD; batch += BATCH) {
        float weight[BATCH], gradient[BATCH], moment_1[BATCH], moment_2[BATCH];
#pragma unroll
        for (int k = 0; k < BATCH; ++k) {
            int i = first + (batch + k) * int(blockDim.x);
            bool exists = i < P;
            weight[k] = exists ? w.row()[i] : 0.0f;
            gradient[k] = exists ? g.row()[i] : 0.0f;
            moment_1[k] = exists ? m.row()[i] : 0.0f;
            moment_2[k] = exists ? v.row()[i] : 0.0f;
        }
#pragma unroll
        for (int k = 0; k < BATCH; ++k) {
            int i = first + (batch + k) * int(blockDim.x);
            if (i >= P) break;
            float next_1 = fmaf(keep_1, moment_1[k], take_1 * gradient[k]);
            float next_2 = fmaf(keep_2, moment_2[k], take_2 * (gradient[k] * gradient[k]));
            m.row()[i] = next_1;
            v.row()[i] = next_2;
            w.row()[i] = fmaf(-rate, next_1 / (sqrtf(next_2) + epsilon), weight[k]);
        }
    }
}

// After a step, for a net's P weights; w and averaged are (P,):
//     averaged += weight * (w - averaged)
// `step` is the number of steps so far; step number s, from 0, has the weight number s % count of an
// array.
// Twin: ops_numpy.average
extern "C" __global__ void average(
    PerNet<const float> w, PerNet<float> averaged, int P, const long long* step,
    const double* weights, int count) {
    float weight = weights[(step[0] - 1) % count];
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
            averaged.row()[i] = fmaf(weight, now[k] - before[k], before[k]);
        }
    }
}
