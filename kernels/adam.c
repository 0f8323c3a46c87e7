// Adam over the flat array of all weights, on a CPU, and the average of the weights. Source: D. Kingma, J. Ba, arXiv:1412.6980; the
// order of computation is that of the end of its section 2, as in Keras.
#include <math.h>

#include "vector.h"

// One step: updates the moments m and v, then the weights w, from the gradients g; all (P,). `step`
// is the number of earlier steps; the step takes the learning rate number `step` % rates.
// Twin: ops_numpy.adam
KERNEL adam(
    float PER_NET w, const float PER_NET g, float PER_NET m, float PER_NET v, int P,
    const long long* step, const double* learning_rate, int rates, double beta_1, double beta_2,
    float epsilon) {
    double t = *step + 1;
    float rate = learning_rate[*step % rates] * sqrt(1 - pow(beta_2, t)) / (1 - pow(beta_1, t));
    float keep_1 = beta_1, take_1 = 1 - beta_1, keep_2 = beta_2, take_2 = 1 - beta_2;
#pragma omp parallel for simd if (P >= WORTH_SHARING)
    for (int i = 0; i < P; ++i) {
        m[i] = keep_1 * m[i] + take_1 * g[i];
        v[i] = keep_2 * v[i] + take_2 * (g[i] * g[i]);
        w[i] -= rate * (m[i] / (sqrtf(v[i]) + epsilon));
    }
}

// averaged += weight * (w - averaged); both (P,). `step` is the number of steps so far; step number
// s, from 0, has the weight number s % count of an array.
// Twin: ops_numpy.average
KERNEL average(
    const float PER_NET w, float PER_NET averaged, int P, const long long* step,
    const double* weights, int count) {
    float weight = weights[(*step - 1) % count];
#pragma omp parallel for simd if (P >= WORTH_SHARING)
    for (int i = 0; i < P; ++i) averaged[i] += weight * (w[i] - averaged[i]);
}
