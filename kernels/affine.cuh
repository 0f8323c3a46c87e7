// The random affine maps of the augmentation: which one an image gets, and how it is computed.
// affine.py is the same in NumPy.
#pragma once

#include "philox.cuh"

// theta in degrees, shifts in pixels, zooms as factors
struct Affine {
    float theta, tx, ty, zx, zy;
};

// An image's parameters, within ranges (2, 5): the lowest and the highest of each. Image b uses the
// first five words of blocks 2b and 2b + 1.
__device__ inline Affine draw_affine(const float* ranges, Random random, int image) {
    const float *low = ranges, *high = ranges + 5;
    uint4 words = random.block(2 * image);
    return {
        draw(low[0], high[0], words.x),
        draw(low[1], high[1], words.y),
        draw(low[2], high[2], words.z),
        draw(low[3], high[3], words.w),
        draw(low[4], high[4], random.block(2 * image + 1).x),
    };
}

// Where an output pixel shows the input: row = row[0] * x + row[1] * y + row[2], and the column
// likewise, with x, y the output pixel's column and row from the image's centre.
struct Map {
    double row[3], column[3];
};

// R(theta) @ (zoom * p + shift), from the centre of an image of H x W pixels. Positions are double:
// in float, those of a large image would be off by more than the interpolation's own rounding.
__device__ inline Map affine_map(Affine a, int H, int W) {
    double sine, cosine;
    sincospi(a.theta / 180.0, &sine, &cosine);  // half turns: nothing to be reduced by pi
    return {
        {sine * a.zx, cosine * a.zy, sine * a.tx + cosine * a.ty + (H - 1) / 2.0},
        {cosine * a.zx, -sine * a.zy, cosine * a.tx - sine * a.ty + (W - 1) / 2.0},
    };
}
