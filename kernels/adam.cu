// Adam over the flat array of all weights. Source: D. Kingma, J. Ba, arXiv:1412.6980, in the order
// of section 2's end, as Keras has it.
#include "common.cuh"

constexpr int NUMBERS_A_THREAD = 4;

// One step: moments m and v, then weights w, from gradients g; all (P,) of a net. `step` counts the
// steps done before this one. It and the learning rate are read from memory, since a graph repeats
// a launch with the arguments that it was captured with.
extern "C" __global__ void adam(
    PerNet<float> w, PerNet<const float> g, PerNet<float> m, PerNet<float> v, int P,
    const long long* step, const double* learning_rate, double beta_1, double beta_2,
    float epsilon) {
    __shared__ float shared_rate[1];
    if (threadIdx.x == 0) {  // once a block: powers in double take as long as all the rest
        double t = step[0] + 1;
        double correction = sqrt(1.0 - pow(beta_2, t)) / (1.0 - pow(beta_1, t));
        shared_rate[0] = learning_rate[0] * correction;
    }
    __syncthreads();
    float rate = shared_rate[0];
    float keep_1 = beta_1, take_1 = 1.0 - beta_1, keep_2 = beta_2, take_2 = 1.0 - beta_2;

    // Neighbouring threads work on neighbouring numbers; a thread's own are a block's width apart.
    int first = blockIdx.x * blockDim.x * NUMBERS_A_THREAD + threadIdx.x;
#pragma unroll
    for (int k = 0; k < NUMBERS_A_THREAD; ++k) {
        int i = first + k * blockDim.x;
        if (i >= P) break;
        float gradient = g.row()[i];
        float moment_1 = fmaf(keep_1, m.row()[i], take_1 * gradient);
        float moment_2 = fmaf(keep_2, v.row()[i], take_2 * (gradient * gradient));
        m.row()[i] = moment_1;
        v.row()[i] = moment_2;
        w.row()[i] = fmaf(-rate, moment_1 / (sqrtf(moment_2) + epsilon), w.row()[i]);
    }
}
