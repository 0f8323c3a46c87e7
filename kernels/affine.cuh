// The random affine maps of the augmentation: how an image's parameters are drawn, and the map that
// they give. backends/affine.py does the same in NumPy.
#pragma once

#include "philox.cuh"

// Rotation theta in degrees, shifts tx, ty in pixels, zoom factors zx, zy.
struct Affine {
    float theta, tx, ty, zx, zy;
};

// Draws an image's parameters. ranges (2, 5): the lowest and the highest value of each parameter.
// Image b takes the first five random words of Philox blocks 2b and 2b + 1.
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

// From a pixel of the output to its position in the input: row = row[0] * x + row[1] * y + row[2],
// and the same for the column. x and y are the pixel's column and row, measured from the centre.
struct Map {
    double row[3], column[3];
};

// The map R(theta) @ (zoom * p + shift) about the centre of an image of H x W pixels. Positions are
// double: in float, positions in a large image would have a larger error than the interpolation.
__device__ inline Map affine_map(Affine a, int H, int W) {
    double sine, cosine;
    sincospi(a.theta / 180.0, &sine, &cosine);  // takes half turns: no argument reduction by pi
    return {
        {sine * a.zx, cosine * a.zy, sine * a.tx + cosine * a.ty + (H - 1) / 2.0},
        {cosine * a.zx, -sine * a.zy, cosine * a.tx - sine * a.ty + (W - 1) / 2.0},
    };
}
