// The batch, on a CPU: gathered from the data set, rotated, zoomed, shifted and distorted.
// affine.py does the same in NumPy.
#include <math.h>
#include <stdint.h>

#include "philox.h"

static const float UNIT = 1.0f / 255.0f;

// Which position of the input an output pixel shows: row = row[0] * x + row[1] * y + row[2], and
// column likewise. x and y are the output pixel's column and row, counted from the image's centre.
typedef struct {
    double row[3], column[3];
} Map;

enum { AFFINE = 5 };  // parameters of a map

// The map of image b of a batch: R(theta) @ (zoom * p + shift). Its parameters are drawn from low
// to high (AFFINE). Image b uses the first five words of blocks 2b and 2b + 1.
static Map draw_map(
    const float* low, const float* high, uint32_t seed, uint32_t net, uint32_t stream,
    uint32_t step, int b, int H, int W) {
    Words words[4];
    philox4x32(2 * b, seed, net, stream, step, words);
    float drawn[AFFINE];
    for (int i = 0; i < AFFINE; ++i) {
        uint32_t word = words[i % 4][i / 4];
        drawn[i] = draw(low[i], high[i], word);
    }
    double theta = drawn[0] * (M_PI / 180), sine = sin(theta), cosine = cos(theta);
    double tx = drawn[1], ty = drawn[2], zx = drawn[3], zy = drawn[4];
    return (Map){
        {sine * zx, cosine * zy, sine * tx + cosine * ty + (H - 1) / 2.0},
        {cosine * zx, -sine * zy, cosine * tx - sine * ty + (W - 1) / 2.0},
    };
}

// A position along an axis of `length` pixels: between pixels `lower` and `lower + 1`, the second
// weighted by `weight`. Positions outside the image are moved to its edge.
typedef struct {
    int lower;
    float weight;
} Between;

INLINE Between between(double position, int length) {
    double last = length - 1;
    position = position < 0 ? 0 : position > last ? last : position;
    int lower = smaller((int)position, larger(length - 2, 0));
    return (Between){lower, (float)(position - lower)};
}

// Pixels are computed several at a time, by vectors.
enum { STRIP = 32 };

// Where consecutive pixels of the output lie in the image.
typedef struct {
    int corner[STRIP];                 // the element in the upper row and the left column
    float below[STRIP], right[STRIP];  // weights of the lower row and of the right column
} Strip;

// The strip whose pixels lie at these positions.
INLINE Strip strip_at(const double* rows, const double* columns, int H, int W, int C) {
    Strip strip;
    for (int k = 0; k < STRIP; ++k) {
        Between row = between(rows[k], H), column = between(columns[k], W);
        strip.corner[k] = (row.lower * W + column.lower) * C;
        strip.below[k] = row.weight, strip.right[k] = column.weight;
    }
    return strip;
}

// A strip that starts at pixel (*i, *j), which becomes the first pixel of the next one. Pixels
// beyond the end of the output lie in the image too.
INLINE Strip locate(const Map* map, int* i, int* j, int H, int W, int C) {
    double x[STRIP], y[STRIP];
    for (int k = 0; k < STRIP; ++k) {
        x[k] = *j - (W - 1) / 2.0, y[k] = *i - (H - 1) / 2.0;
        if (++*j == W) *j = 0, ++*i;
    }
    double row[STRIP], column[STRIP];
    for (int k = 0; k < STRIP; ++k) {
        row[k] = map->row[0] * x[k] + map->row[1] * y[k] + map->row[2];
        column[k] = map->column[0] * x[k] + map->column[1] * y[k] + map->column[2];
    }
    return strip_at(row, column, H, W, C);
}

// The first `count` pixels of x (STRIP, C) = the image where the strip lies, interpolated
// bilinearly. All channels of a pixel come from the same position.
INLINE void interpolate(
    const uint8_t* image, const Strip* strip, int count, int H, int W, int C, float* x) {
    int right = C * smaller(W - 1, 1), below = C * W * smaller(H - 1, 1);
    for (int c = 0; c < C; ++c) {
        uint8_t corners[4][STRIP];
        for (int k = 0; k < STRIP; ++k) {
            const uint8_t* corner = image + strip->corner[k] + c;
            corners[0][k] = corner[0], corners[1][k] = corner[right];
            corners[2][k] = corner[below], corners[3][k] = corner[below + right];
        }
        float rows[2][STRIP];  // interpolated in the upper and in the lower row
        for (int r = 0; r < 2; ++r) {
            for (int k = 0; k < STRIP; ++k) {
                float first = corners[2 * r][k] * UNIT, second = corners[2 * r + 1][k] * UNIT;
                rows[r][k] = first * (1 - strip->right[k]) + second * strip->right[k];
            }
        }
        for (int k = 0; k < count; ++k) {
            x[k * C + c] = rows[0][k] * (1 - strip->below[k]) + rows[1][k] * strip->below[k];
        }
    }
}

// x (H, W, C) = the image at the positions that the map gives.
INLINE void resample(const uint8_t* image, const Map* map, int H, int W, int C, float* x) {
    int i = 0, j = 0;
    for (int done = 0; done < H * W; done += STRIP, x += STRIP * C) {
        Strip strip = locate(map, &i, &j, H, W, C);
        interpolate(image, &strip, smaller(STRIP, H * W - done), H, W, C, x);
    }
}

// An elastic distortion adds a displacement to each position: a uniform cubic B-spline over the
// image, whose control points, called nodes, are drawn at random. _spline in affine.py says more.
enum { INTERVALS = 3, NODES = INTERVALS + 3 };  // of the spline, along each axis
typedef struct {
    double x[NODES * NODES], y[NODES * NODES];  // displacements in pixels, row by row
} Nodes;

// The nodes of image b of a batch, from low to high (2), the bounds along x and along y. Image b
// uses blocks 18b to 18b + 17, word after word.
static Nodes draw_nodes(
    const float* low, const float* high, uint32_t seed, uint32_t net, uint32_t stream,
    uint32_t step, int b) {
    enum { COUNT = NODES * NODES };
    uint32_t words[2 * COUNT + 4 * BLOCKS];  // whole groups are written
    random_words(2 * COUNT / 4 * b, seed, net, stream, step, 2 * COUNT, words);
    Nodes nodes;
    for (int i = 0; i < COUNT; ++i) {
        nodes.x[i] = draw(low[0], high[0], words[i]);
        nodes.y[i] = draw(low[1], high[1], words[COUNT + i]);
    }
    return nodes;
}

// weights (NODES) of the nodes for a pixel of an axis of `length` pixels.
INLINE void spline_weights(int pixel, int length, double weights[NODES]) {
    double along = pixel * ((double)INTERVALS / larger(length - 1, 1));
    int interval = smaller((int)along, INTERVALS - 1);
    double t = along - interval, rest = 1 - t;
    for (int n = 0; n < NODES; ++n) weights[n] = 0;
    weights[interval] = rest * rest * rest / 6;
    weights[interval + 1] = (4 - 3 * t * t * (1 + rest)) / 6;
    weights[interval + 2] = (4 - 3 * rest * rest * (1 + t)) / 6;
    weights[interval + 3] = t * t * t / 6;
}

// As resample, with displaced positions. A strip is a piece of one row.
INLINE void resample_displaced(
    const uint8_t* image, const Map* map, const Nodes* nodes, int H, int W, int C, float* x) {
    for (int j = 0; j < W; j += STRIP) {
        double across[NODES][STRIP];  // weights of the nodes for each column
        for (int k = 0; k < STRIP; ++k) {
            double weights[NODES];
            spline_weights(smaller(j + k, W - 1), W, weights);
            for (int n = 0; n < NODES; ++n) across[n][k] = weights[n];
        }
        for (int i = 0; i < H; ++i) {
            double down[NODES], of_x[NODES] = {0}, of_y[NODES] = {0};  // nodes of this row
            spline_weights(i, H, down);
            for (int m = 0; m < NODES; ++m) {
                for (int n = 0; n < NODES; ++n) {
                    of_x[n] += down[m] * nodes->x[m * NODES + n];
                    of_y[n] += down[m] * nodes->y[m * NODES + n];
                }
            }
            double row[STRIP], column[STRIP];
            for (int k = 0; k < STRIP; ++k) {
                double from_x = j + k - (W - 1) / 2.0, from_y = i - (H - 1) / 2.0;
                row[k] = map->row[0] * from_x + map->row[1] * from_y + map->row[2];
                column[k] = map->column[0] * from_x + map->column[1] * from_y + map->column[2];
                for (int n = 0; n < NODES; ++n) {
                    row[k] += of_y[n] * across[n][k];
                    column[k] += of_x[n] * across[n][k];
                }
            }
            Strip strip = strip_at(row, column, H, W, C);
            interpolate(image, &strip, smaller(STRIP, W - j), H, W, C, x + (i * W + j) * C);
        }
    }
}

// x (B, H, W, C) in [0, 1], y (B,): the images and labels whose indices are in row step % steps of
// order (steps, B). ranges (2, parameters): the lowest and the highest value of each parameter of
// the map and, if there are two more, of the nodes along x and y. Null ranges: images are not
// resampled. Null labels: y is not written.
// Twin: ops_numpy.load_batch
KERNEL load_batch(
    MAY_BE_LARGE const unsigned char* images, MAY_BE_NULL const unsigned short* labels,
    const int PER_NET order, int steps, int B, int H, int W, int C, MAY_BE_NULL const float* ranges,
    int parameters, unsigned seed, const long long PER_NET net, unsigned stream,
    unsigned elastic_stream, const long long* step, float PER_NET x, long long PER_NET y) {
    const int* chosen = order + (size_t)(*step % steps) * B;
    size_t size = (size_t)H * W * C;
#pragma omp parallel for
    for (int b = 0; b < B; ++b) {
        const uint8_t* image = images + chosen[b] * size;
        float* to = x + b * size;
        if (labels) y[b] = labels[chosen[b]];
        if (ranges) {
            const float *low = ranges, *high = ranges + parameters;
            Map map = draw_map(low, high, seed, *net, stream, *step, b, H, W);
            if (parameters > AFFINE) {
                low += AFFINE, high += AFFINE;
                Nodes nodes = draw_nodes(low, high, seed, *net, elastic_stream, *step, b);
                if (C == 1) {
                    resample_displaced(image, &map, &nodes, H, W, 1, to);
                } else {
                    resample_displaced(image, &map, &nodes, H, W, C, to);
                }
            } else if (C == 1) {
                resample(image, &map, H, W, 1, to);  // without a loop over channels
            } else {
                resample(image, &map, H, W, C, to);
            }
        } else {
            for (size_t i = 0; i < size; ++i) to[i] = image[i] * UNIT;
        }
    }
}
