// The random parameters of the augmentation: how an image's are drawn, and the affine map and the
// displacements that they give. backends/affine.py does the same in NumPy.
#pragma once

#include "philox.cuh"

// Rotation theta in degrees, shifts tx, ty in pixels, zoom factors zx, zy.
struct Affine {
    float theta, tx, ty, zx, zy;
};

constexpr int AFFINE = 5;  // parameters of a map

// Draws an image's parameters: from low to high (AFFINE). Image b takes the first five random words
// of Philox blocks 2b and 2b + 1.
__device__ inline Affine draw_affine(
    const float* low, const float* high, Random random, int image) {
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

// An elastic distortion adds a displacement to each position: a uniform cubic B-spline over the
// image, whose control points, called nodes, are drawn at random. _spline in affine.py says more.
constexpr int INTERVALS = 3, NODES = INTERVALS + 3;  // of the spline, along each axis

// Displacements in pixels, along x and along y; in double, as positions are.
struct Nodes {
    double of_axis[2][NODES * NODES];  // row by row
};

// Draws an image's nodes: from low to high (2), the bounds along x and along y. Image b takes all
// words of Philox blocks 18b to 18b + 17. The block's threads share the work; nodes is shared.
__device__ inline void draw_nodes(
    const float* low, const float* high, Random random, int image, Nodes* nodes) {
    constexpr int BLOCKS = NODES * NODES / 4;  // of an axis
    for (int i = threadIdx.x; i < 2 * BLOCKS; i += blockDim.x) {
        int axis = i / BLOCKS;
        uint4 words = random.block(2 * BLOCKS * image + i);
        double* to = nodes->of_axis[axis] + i % BLOCKS * 4;
        to[0] = draw(low[axis], high[axis], words.x);
        to[1] = draw(low[axis], high[axis], words.y);
        to[2] = draw(low[axis], high[axis], words.z);
        to[3] = draw(low[axis], high[axis], words.w);
    }
}

// Weights of the four nodes from `first` on for a pixel of an axis; the other nodes have none.
struct Weights {
    int first;
    double of_node[4];
};

// intervals: of the spline, from one pixel to the next.
__device__ inline Weights spline_weights(int pixel, double intervals) {
    double along = pixel * intervals;
    int interval = min(int(along), INTERVALS - 1);
    double t = along - interval, rest = 1.0 - t;
    constexpr double SIXTH = 1.0 / 6;
    return {
        interval,
        {
            rest * rest * rest * SIXTH,
            (4.0 - 3.0 * t * t * (1.0 + rest)) * SIXTH,
            (4.0 - 3.0 * rest * rest * (1.0 + t)) * SIXTH,
            t * t * t * SIXTH,
        },
    };
}

// Adds a pixel's displacement to its position. of_rows, of_columns: the weights of the nodes' rows
// and columns for this pixel.
__device__ inline void displace(
    const Nodes* nodes, Weights of_rows, Weights of_columns, double* row, double* column) {
    for (int m = 0; m < 4; ++m) {
        int at = (of_rows.first + m) * NODES + of_columns.first;
        double along_x = 0, along_y = 0;
        for (int n = 0; n < 4; ++n) {
            along_x += of_columns.of_node[n] * nodes->of_axis[0][at + n];
            along_y += of_columns.of_node[n] * nodes->of_axis[1][at + n];
        }
        *column += of_rows.of_node[m] * along_x;
        *row += of_rows.of_node[m] * along_y;
    }
}
