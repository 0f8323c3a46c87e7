// What is kept from step to step: sums of metrics, the outputs of all steps, the step's number.
#include "common.cuh"

// sums (3,) += (loss, correct, 1), unless it is null; the 1 only while the sum of the losses is
// finite. Then step += 1: no thread of this launch reads the step.
// Twin: ops_numpy.accumulate
extern "C" __global__ void accumulate(
    PerNet<const float> loss, PerNet<const long long> correct, long long* step,
    MAY_BE_NULL PerNet<double> sums) {
    if (blockIdx.z == 0) ++step[0];
    if (!sums.data) return;
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

// step += 1. After `collect` this needs its own launch: within one launch, some thread blocks would
// read the step before the change, and others after.
// Twin: ops_numpy.collect
extern "C" __global__ void increment(long long* step) { ++step[0]; }
