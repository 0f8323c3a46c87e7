// The batch: gathered from the data set that lies in memory, turned, zoomed and shifted.
#include "affine.cuh"
#include "common.cuh"

constexpr float UNIT = 1.0f / 255.0f;

// A position along an axis of `length` pixels: between the pixels `lower` and `lower + 1`, of which
// the second counts by `weight`. Beyond the edge is the edge.
struct Between {
    int lower;
    float weight;
};

__device__ inline Between between(double position, int length) {
    position = min(max(position, 0.0), length - 1.0);
    int lower = min(int(position), max(length - 2, 0));
    return {lower, float(position - lower)};
}

// x (B, H, W) in [0, 1] and y (B,): the images and labels that order (steps, B) names at row
// step % steps. `ranges` are draw_affine's; null leaves images as they are. `labels` may be null,
// and y is left as it is.
//
// A block makes an image. It reads each byte about four times, as one of the four pixels around a
// position, but from memory only once: __ldg reads through a cache that is larger than an image.
extern "C" __global__ void load_batch(
    const unsigned char* images, MAY_BE_NULL const unsigned char* labels, PerNet<const int> order,
    int steps, int B, int H, int W, MAY_BE_NULL const float* ranges, unsigned seed,
    PerNet<const long long> nets, unsigned stream, const long long* step, PerNet<float> x,
    PerNet<long long> y) {
    __shared__ Map map[1];
    int b = blockIdx.x;
    int chosen = order.row()[int(step[0] % steps) * B + b];
    const unsigned char* image = images + chosen * H * W;
    float* result = x.row() + b * H * W;

    if (threadIdx.x == 0) {  // sine and cosine in double: once is enough
        if (labels) y.row()[b] = labels[chosen];
        if (ranges) {
            Random random{seed, unsigned(nets.row()[0]), stream, unsigned(step[0])};
            map[0] = affine_map(draw_affine(ranges, random, b), H, W);
        }
    }
    __syncthreads();

    for (int i = threadIdx.x; i < H * W; i += blockDim.x) {
        if (!ranges) {
            result[i] = __ldg(image + i) * UNIT;
            continue;
        }
        const double *of_row = map[0].row, *of_column = map[0].column;
        double from_x = i % W - (W - 1) / 2.0, from_y = i / W - (H - 1) / 2.0;
        Between row = between(of_row[0] * from_x + of_row[1] * from_y + of_row[2], H);
        Between column = between(of_column[0] * from_x + of_column[1] * from_y + of_column[2], W);

        int right = min(W - 1, 1), below = W * min(H - 1, 1);
        const unsigned char* corner = image + row.lower * W + column.lower;
        float values[2];  // of the row above and of the row below
        for (int k = 0; k < 2; ++k) {
            float first = __ldg(corner + k * below) * UNIT;
            float second = __ldg(corner + k * below + right) * UNIT;
            values[k] = fmaf(first, 1.0f - column.weight, second * column.weight);
        }
        result[i] = fmaf(values[0], 1.0f - row.weight, values[1] * row.weight);
    }
}
