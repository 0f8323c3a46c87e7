// A kernel with every kind of parameter, for the tests of sources and launches.
#include "common.cuh"

struct Shape {
    int rows, columns;  // of one net
};

// y = factor * x + add + offset, and the negative of it if `negate`
extern "C" __global__ void __launch_bounds__(128) scale(
    PerNet<const float> x, MAY_BE_NULL PerNet<const float> add, const double* factor, Shape shape,
    int offset, bool negate, PerNet<float> y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= shape.rows * shape.columns) return;
    float value = x.row()[i] * float(factor[0]) + (add.data ? add.row()[i] : 0.0f) + offset;
    y.row()[i] = negate ? -value : value;
}
