// Loads a batch: gathers its images from the data set in device memory and augments them.
#include "affine.cuh"
#include "common.cuh"

constexpr float UNIT = 1.0f / 255.0f;

// A position along an axis of `length` pixels, for linear interpolation between pixel `lower` (with
// 1 - weight) and pixel `lower + 1` (with weight). Positions outside are moved to the edge.
struct Between {
    int lower;
    float weight;
};

__device__ inline Between between(double position, int length) {
    position = min(max(position, 0.0), length - 1.0);
    int lower = min(int(position), max(length - 2, 0));
    return {lower, float(position - lower)};
}

// result (H, W, C) = the image at the positions that the map and, if DISPLACED, the nodes give,
// interpolated bilinearly. All channels of a pixel come from the same position. The block's threads
// share the pixels.
template <bool DISPLACED>
__device__ __forceinline__ void resample(
    const unsigned char* image, const Map& map, const Nodes* nodes, int H, int W, int C,
    float* result) {
    int right = C * min(W - 1, 1), below = C * W * min(H - 1, 1);
    double down = double(INTERVALS) / max(H - 1, 1), across = double(INTERVALS) / max(W - 1, 1);
    for (int i = threadIdx.x; i < H * W; i += blockDim.x) {
        const double *of_row = map.row, *of_column = map.column;
        double from_x = i % W - (W - 1) / 2.0, from_y = i / W - (H - 1) / 2.0;
        double at_row = of_row[0] * from_x + of_row[1] * from_y + of_row[2];
        double at_column = of_column[0] * from_x + of_column[1] * from_y + of_column[2];
        if (DISPLACED) {
            Weights of_rows = spline_weights(i / W, down);
            displace(nodes, of_rows, spline_weights(i % W, across), &at_row, &at_column);
        }
        Between row = between(at_row, H), column = between(at_column, W);

        const unsigned char* corner = image + (row.lower * W + column.lower) * C;
        for (int c = 0; c < C; ++c) {
            float values[2];  // interpolated in the row above and in the row below
            for (int k = 0; k < 2; ++k) {
                const unsigned char* pixel = corner + k * below + c;
                float first = __ldg(pixel) * UNIT, second = __ldg(pixel + right) * UNIT;
                values[k] = fmaf(first, 1.0f - column.weight, second * column.weight);
            }
            result[i * C + c] = fmaf(values[0], 1.0f - row.weight, values[1] * row.weight);
        }
    }
}

// For each image b of the batch, with i = order[step % steps, b]:
//     x[b] = augmented(images[i] / 255),  y[b] = labels[i]
// x (B, H, W, C), y (B,), order (steps, B). ranges (2, parameters): the lowest and the highest
// value of each parameter of the map and, if there are two more, of the nodes along x and y.
// Without `ranges` images are not augmented; without `labels` y does not change.
//
// One thread block per image. It reads each byte about four times, as one of the four pixels around
// a position, but only once from memory: __ldg reads through a cache that is larger than an image.
// Twin: ops_numpy.load_batch
extern "C" __global__ void load_batch(
    MAY_BE_LARGE const unsigned char* images, MAY_BE_NULL const unsigned short* labels,
    PerNet<const int> order, int steps, int B, int H, int W, int C,
    MAY_BE_NULL const float* ranges, int parameters, unsigned seed, PerNet<const long long> nets,
    unsigned stream, unsigned elastic_stream, const long long* step, PerNet<float> x,
    PerNet<long long> y) {
    __shared__ Map map[1];
    __shared__ Nodes nodes[1];
    int b = blockIdx.x;
    int index = order.row()[int(step[0] % steps) * B + b];
    const unsigned char* image = images + (long long)index * (H * W * C);
    float* result = x.row() + b * H * W * C;

    if (threadIdx.x == 0) {  // once per image: sine and cosine in double are slow
        if (labels) y.row()[b] = labels[index];
        if (ranges) {
            Random random{seed, unsigned(nets.row()[0]), stream, unsigned(step[0])};
            map[0] = affine_map(draw_affine(ranges, ranges + parameters, random, b), H, W);
        }
    }
    bool displaced = ranges && parameters > AFFINE;
    if (displaced) {
        const float *low = ranges + AFFINE, *high = low + parameters;
        Random random{seed, unsigned(nets.row()[0]), elastic_stream, unsigned(step[0])};
        draw_nodes(low, high, random, b, nodes);
    }
    __syncthreads();

    if (!ranges) {
        for (int i = threadIdx.x; i < H * W * C; i += blockDim.x) {
            result[i] = __ldg(image + i) * UNIT;
        }
    } else if (displaced) {
        resample<true>(image, map[0], nodes, H, W, C, result);
    } else if (C == 1) {
        resample<false>(image, map[0], nodes, H, W, 1, result);  // without a loop over channels
    } else {
        resample<false>(image, map[0], nodes, H, W, C, result);
    }
}
