// Writes the kernels' random words and parameters to memory, for exact comparison with rng.py and
// affine.py.
#include "affine.cuh"
#include "common.cuh"

// words (count, 4) of counters (count, 4) and keys (count, 2)
extern "C" __global__ void philox_words(
    const unsigned* counters, const unsigned* keys, int count, unsigned* words) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const unsigned *c = counters + 4 * i, *k = keys + 2 * i;
    uint4 found = philox4x32(make_uint4(c[0], c[1], c[2], c[3]), make_uint2(k[0], k[1]));
    words[4 * i] = found.x;
    words[4 * i + 1] = found.y;
    words[4 * i + 2] = found.z;
    words[4 * i + 3] = found.w;
}

// drawn (5, B): the parameters of a net's B images
extern "C" __global__ void affine_parameters(
    const float* ranges, unsigned seed, PerNet<const long long> nets, unsigned stream,
    unsigned step, int B, PerNet<float> drawn) {
    int b = blockIdx.x * blockDim.x + threadIdx.x;
    if (b >= B) return;
    const float *low = ranges, *high = ranges + AFFINE;
    Affine a = draw_affine(low, high, Random{seed, unsigned(nets.row()[0]), stream, step}, b);
    float* of_image = drawn.row() + b;
    of_image[0] = a.theta;
    of_image[B] = a.tx;
    of_image[2 * B] = a.ty;
    of_image[3 * B] = a.zx;
    of_image[4 * B] = a.zy;
}

// drawn (B, 2 * NODES * NODES): the nodes of a net's B images, a thread block for each
extern "C" __global__ void elastic_nodes(
    const float* ranges, unsigned seed, PerNet<const long long> nets, unsigned stream,
    unsigned step, PerNet<float> drawn) {
    __shared__ Nodes nodes[1];
    Random random{seed, unsigned(nets.row()[0]), stream, step};
    draw_nodes(ranges, ranges + 2, random, blockIdx.x, nodes);
    __syncthreads();
    constexpr int COUNT = NODES * NODES;
    for (int i = threadIdx.x; i < 2 * COUNT; i += blockDim.x) {
        drawn.row()[blockIdx.x * 2 * COUNT + i] = nodes->of_axis[i / COUNT][i % COUNT];
    }
}
