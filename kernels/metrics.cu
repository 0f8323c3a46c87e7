// What is kept from step to step: sums of metrics, outputs one after the other, the step's number.
#include "common.cuh"

// sums (3,) += loss, correct, 1 of a net, the last as long as the sum of the losses is finite
extern "C" __global__ void accumulate(
    PerNet<const float> loss, PerNet<const long long> correct, PerNet<double> sums) {
    sums.row()[0] += loss.row()[0];
    sums.row()[1] += correct.row()[0];
    double sum = sums.row()[0];
    if (sum - sum == 0) ++sums.row()[2];
}

// target (steps, count) [step] = source (count,)
extern "C" __global__ void collect(
    PerNet<const float> source, const long long* step, int count, PerNet<float> target) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) target.row()[int(step[0]) * count + i] = source.row()[i];
}

// A launch of its own, behind those that read the step: within one, some blocks would read it
// before it has changed, and others after.
extern "C" __global__ void increment(long long* step) { ++step[0]; }
