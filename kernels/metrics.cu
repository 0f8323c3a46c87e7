// What is kept from step to step: sums of metrics, the outputs of all steps, the step's number.
#include "common.cuh"

// sums (3,) += (loss, correct, 1); the 1 only while the sum of the losses is finite.
// Twin: ops_numpy.accumulate
extern "C" __global__ void accumulate(
    PerNet<const float> loss, PerNet<const long long> correct, PerNet<double> sums) {
    sums.row()[0] += loss.row()[0];
    sums.row()[1] += correct.row()[0];
    double sum = sums.row()[0];
    if (sum - sum == 0) ++sums.row()[2];
}

// target[step] = source; target (steps, count), source (count,).
// Twin: ops_numpy.collect
extern "C" __global__ void collect(
    PerNet<const float> source, const long long* step, int count, PerNet<float> target) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) target.row()[int(step[0]) * count + i] = source.row()[i];
}

// step += 1. This needs its own launch, after those that read the step: within one launch, some
// thread blocks would read it before the change, and others after.
// Twin: ops_numpy.collect
extern "C" __global__ void increment(long long* step) { ++step[0]; }
