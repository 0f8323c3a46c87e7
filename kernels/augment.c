// The batch, on a CPU: gathered from the data set, rotated, zoomed and shifted. affine.py does the
// same in NumPy.
#include <math.h>
#include <stdint.h>

#include "philox.h"

static const float UNIT = 1.0f / 255.0f;

// Which position of the input an output pixel shows: row = row[0] * x + row[1] * y + row[2], and
// column likewise. x and y are the output pixel's column and row, counted from the image's centre.
typedef struct {
    double row[3], column[3];
} Map;

// The map of image b of a batch: R(theta) @ (zoom * p + shift). Its parameters are drawn from
// ranges (2, 5), the lowest and the highest of each. Image b uses the first five words of blocks
// 2b and 2b + 1.
static Map draw_map(
    const float* ranges, uint32_t seed, uint32_t net, uint32_t stream, uint32_t step, int b, int H,
    int W) {
    Words words[4];
    philox4x32(2 * b, seed, net, stream, step, words);
    float drawn[5];
    for (int i = 0; i < 5; ++i) {
        uint32_t word = words[i % 4][i / 4];
        drawn[i] = draw(ranges[i], ranges[5 + i], word);
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

// A strip that starts at pixel (*i, *j), which becomes the first pixel of the next one. Pixels
// beyond the end of the output lie in the image too.
INLINE Strip locate(const Map* map, int* i, int* j, int H, int W, int C) {
    double x[STRIP], y[STRIP];
    for (int k = 0; k < STRIP; ++k) {
        x[k] = *j - (W - 1) / 2.0, y[k] = *i - (H - 1) / 2.0;
        if (++*j == W) *j = 0, ++*i;
    }
    Strip strip;
    for (int k = 0; k < STRIP; ++k) {
        Between row = between(map->row[0] * x[k] + map->row[1] * y[k] + map->row[2], H);
        Between column = between(map->column[0] * x[k] + map->column[1] * y[k] + map->column[2], W);
        strip.corner[k] = (row.lower * W + column.lower) * C;
        strip.below[k] = row.weight, strip.right[k] = column.weight;
    }
    return strip;
}

// x (H, W, C) = the image at the positions that the map gives, interpolated bilinearly. All
// channels of a pixel come from the same position.
INLINE void resample(const uint8_t* image, const Map* map, int H, int W, int C, float* x) {
    int right = C * smaller(W - 1, 1), below = C * W * smaller(H - 1, 1), i = 0, j = 0;
    for (int done = 0; done < H * W; done += STRIP, x += STRIP * C) {
        Strip strip = locate(map, &i, &j, H, W, C);
        for (int c = 0; c < C; ++c) {
            uint8_t corners[4][STRIP];
            for (int k = 0; k < STRIP; ++k) {
                const uint8_t* corner = image + strip.corner[k] + c;
                corners[0][k] = corner[0], corners[1][k] = corner[right];
                corners[2][k] = corner[below], corners[3][k] = corner[below + right];
            }
            float rows[2][STRIP];  // interpolated in the upper and in the lower row
            for (int r = 0; r < 2; ++r) {
                for (int k = 0; k < STRIP; ++k) {
                    float first = corners[2 * r][k] * UNIT, second = corners[2 * r + 1][k] * UNIT;
                    rows[r][k] = first * (1 - strip.right[k]) + second * strip.right[k];
                }
            }
            for (int k = 0, count = smaller(STRIP, H * W - done); k < count; ++k) {
                x[k * C + c] = rows[0][k] * (1 - strip.below[k]) + rows[1][k] * strip.below[k];
            }
        }
    }
}

// x (B, H, W, C) in [0, 1], y (B,): the images and labels whose indices are in row step % steps of
// order (steps, B). Null ranges: images are not resampled. Null labels: y is not written.
// Twin: ops_numpy.load_batch
KERNEL load_batch(
    MAY_BE_LARGE const unsigned char* images, MAY_BE_NULL const unsigned short* labels,
    const int PER_NET order, int steps, int B, int H, int W, int C, MAY_BE_NULL const float* ranges,
    unsigned seed, const long long PER_NET net, unsigned stream, const long long* step,
    float PER_NET x, long long PER_NET y) {
    const int* chosen = order + (size_t)(*step % steps) * B;
    size_t size = (size_t)H * W * C;
#pragma omp parallel for
    for (int b = 0; b < B; ++b) {
        const uint8_t* image = images + chosen[b] * size;
        float* to = x + b * size;
        if (labels) y[b] = labels[chosen[b]];
        if (ranges) {
            Map map = draw_map(ranges, seed, *net, stream, *step, b, H, W);
            if (C == 1) {
                resample(image, &map, H, W, 1, to);  // without a loop over channels
            } else {
                resample(image, &map, H, W, C, to);
            }
        } else {
            for (size_t i = 0; i < size; ++i) to[i] = image[i] * UNIT;
        }
    }
}
