// Does not compile, for the tests of what the compilers' messages become.
#include "common.cuh"

extern "C" __global__ void wrong(PerNet<float> x) {
    x.row()[0] = nowhere;
}
