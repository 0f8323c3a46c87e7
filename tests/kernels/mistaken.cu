// Does not compile, for the tests of the errors from compilers.
#include "common.cuh"

extern "C" __global__ void wrong(PerNet<float> x) {
    x.row()[0] = nowhere;
}
