// Tiles of sums that are kept in registers: the inner loops of all convolutions on a CPU.
//
// compute_tile multiplies a few pixels by a panel of channels:
//
//                      a panel: two vectors of channels
//                     [ w[k, 0 .. L) | w[k, L .. 2L) ]       loaded once per k = (tap, channel)
//     x[pixel 0, k]     sum[0][0]       sum[0][1]
//     x[pixel 1, k]     sum[1][0]       sum[1][1]            up to TILE pixels, each element of x
//         ...              ...             ...               broadcast to all lanes
//
// With 12 pixels that is 14 loads for 24 multiplications of vectors, which keeps the multipliers
// busy. In sum_products, elements of x take the place of the pixels, and the loop is over pixels.
//
// The elements of x lie in rows, or apart ("gathered"): then a list tells their places.
#pragma once

#include "vector.h"

enum {
    // TILE x 2 vectors of sums, a panel's two vectors and a broadcast fill the registers.
    TILE = VECTOR_REGISTERS == 32 ? 12 : 6,
    PANEL = 2 * LANES,
};

// A tile of `images` x `pixels` outputs, and its operands. All strides count floats.
typedef struct {
    const float* x;  // at its first pixel
    size_t x_image, x_pixel, x_row;
    int rows, length;  // rows of taps, and the contiguous elements of x (and panels of w) in each
    const float* w;    // (.., PANEL)
    size_t w_row;
    const float* start;  // (PANEL,) initial values of the sums; null: those in y
    bool relu;           // applied to the sums at the end
    float* y;
    size_t y_image, y_pixel;
    const int* places;  // (length,) of the elements of x, if gathered; then `rows` is 1
} Tile;

INLINE void compute_tile(
    const int images, const int pixels, const bool gathered, const Tile* t) {
    Vector sum[TILE][2];
    // Of the first of each three pixels; the other two are reached from it, which saves registers.
    const float* base[TILE];
    UNROLL
    for (int m = 0; m < images * pixels; ++m) {
        int b = m / pixels, p = m % pixels;
        const float* from = t->start ? t->start : t->y + b * t->y_image + p * t->y_pixel;
        sum[m][0] = load(from);
        sum[m][1] = load(from + LANES);
        base[m] = t->x + b * t->x_image + (p - p % 3) * t->x_pixel;
    }
    size_t step = t->x_pixel;
    const float* w_row = t->w;
    for (int i = 0; i < t->rows; ++i, w_row += t->w_row) {
        const float* w = w_row;
        for (size_t k = i * t->x_row, end = k + t->length; k < end; ++k, w += PANEL) {
            size_t place = gathered ? (size_t)t->places[k] : k;
            Vector w0 = load(w), w1 = load(w + LANES);
            UNROLL
            for (int m = 0; m < images * pixels; ++m) {
                float value = base[m][place + m % pixels % 3 * step];
                sum[m][0] += value * w0;
                sum[m][1] += value * w1;
            }
        }
    }
    if (t->relu) {
        UNROLL
        for (int m = 0; m < images * pixels; ++m) {
            sum[m][0] = relu(sum[m][0]);
            sum[m][1] = relu(sum[m][1]);
        }
    }
    float* y = t->y;
    size_t y_image = t->y_image, y_pixel = t->y_pixel;
    UNROLL
    for (int m = 0; m < images * pixels; ++m) {
        float* to = y + m / pixels * y_image + m % pixels * y_pixel;
        store(to, sum[m][0]);
        store(to + LANES, sum[m][1]);
    }
}

// One function for each shape of tile, so that the compiler knows the number of registers.
#define TILE_OF(images, pixels) \
    static void tile_##images##_##pixels(const Tile* t) { compute_tile(images, pixels, false, t); }
typedef void (*ComputeTile)(const Tile*);
TILE_OF(1, 1) TILE_OF(1, 2) TILE_OF(1, 3) TILE_OF(1, 4) TILE_OF(1, 5) TILE_OF(1, 6)
TILE_OF(2, 1) TILE_OF(2, 2) TILE_OF(2, 3)
TILE_OF(3, 1) TILE_OF(3, 2)
#if VECTOR_REGISTERS == 32
TILE_OF(1, 7) TILE_OF(1, 8) TILE_OF(1, 9) TILE_OF(1, 10) TILE_OF(1, 11) TILE_OF(1, 12)
TILE_OF(2, 4) TILE_OF(2, 5) TILE_OF(2, 6)
TILE_OF(3, 3) TILE_OF(3, 4)
static const ComputeTile COMPUTE_TILE[][TILE] = {
    {tile_1_1, tile_1_2, tile_1_3, tile_1_4, tile_1_5, tile_1_6,
     tile_1_7, tile_1_8, tile_1_9, tile_1_10, tile_1_11, tile_1_12},
    {tile_2_1, tile_2_2, tile_2_3, tile_2_4, tile_2_5, tile_2_6},
    {tile_3_1, tile_3_2, tile_3_3, tile_3_4},
};
#else
static const ComputeTile COMPUTE_TILE[][TILE] = {
    {tile_1_1, tile_1_2, tile_1_3, tile_1_4, tile_1_5, tile_1_6},
    {tile_2_1, tile_2_2, tile_2_3},
    {tile_3_1, tile_3_2},
};
#endif
enum { MOST_IMAGES = 3 };  // in a tile

// Sums over images, rows and pixels of `count` elements of x times a panel of dz.
typedef struct {
    const float *x, *dz;
    size_t x_image, x_row, x_pixel, dz_image, dz_row, dz_pixel;
    int images, rows, pixels;
    float* sums;  // (count, PANEL)
    const int* places;  // (count,) of the elements of x, if gathered
} Products;

// With `ones`, the last of the elements is 1 everywhere, so that its sums are those of dz.
INLINE void sum_products(
    const int count, const bool gathered, const bool ones, const Products* t) {
    Vector sum[TILE][2] = {0};
    size_t place[TILE];
    UNROLL
    for (int k = 0; k < count - ones; ++k) place[k] = gathered ? t->places[k] : k;
    for (int b = 0; b < t->images; ++b) {
        for (int r = 0; r < t->rows; ++r) {
            const float* x = t->x + b * t->x_image + r * t->x_row;
            const float* dz = t->dz + b * t->dz_image + r * t->dz_row;
            for (int q = 0; q < t->pixels; ++q, x += t->x_pixel, dz += t->dz_pixel) {
                Vector dz0 = load(dz), dz1 = load(dz + LANES);
                UNROLL
                for (int k = 0; k < count - ones; ++k) {
                    sum[k][0] += x[place[k]] * dz0;
                    sum[k][1] += x[place[k]] * dz1;
                }
                if (ones) sum[count - 1][0] += dz0, sum[count - 1][1] += dz1;
            }
        }
    }
    UNROLL
    for (int k = 0; k < count; ++k) {
        store(t->sums + k * PANEL, sum[k][0]);
        store(t->sums + k * PANEL + LANES, sum[k][1]);
    }
}

#define PRODUCTS_OF(count) \
    static void products_##count(const Products* t) { sum_products(count, false, false, t); }
typedef void (*SumProducts)(const Products*);
PRODUCTS_OF(1) PRODUCTS_OF(2) PRODUCTS_OF(3) PRODUCTS_OF(4) PRODUCTS_OF(5) PRODUCTS_OF(6)
#if VECTOR_REGISTERS == 32
PRODUCTS_OF(7) PRODUCTS_OF(8) PRODUCTS_OF(9) PRODUCTS_OF(10) PRODUCTS_OF(11) PRODUCTS_OF(12)
static const SumProducts SUM_PRODUCTS[TILE] = {
    products_1, products_2, products_3, products_4, products_5, products_6,
    products_7, products_8, products_9, products_10, products_11, products_12,
};
#else
static const SumProducts SUM_PRODUCTS[TILE] = {
    products_1, products_2, products_3, products_4, products_5, products_6,
};
#endif
