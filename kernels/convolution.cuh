// A convolution's sizes, and where its window meets the input.
#pragma once

#include "common.cuh"

// x (B, H, W, C), y (B, Ho, Wo, N), kernel (kh, kw, C, N) of one net. The window moves by (sh, sw);
// `top` and `left` are the zeros imagined before the first row and column.
struct Convolution {
    int B, H, W, C;
    int Ho, Wo, N;
    int kh, kw, sh, sw, top, left;
};

// A pixel's place among B images of `rows` x `columns` pixels.
struct Pixel {
    int image, row, column;

    __device__ Pixel(int number, int rows, int columns) {
        column = number % columns;
        row = number / columns % rows;
        image = number / columns / rows;
    }
};

// One axis of a phase: with strides the input falls into interleaved grids, each of which meets only
// some of the taps. geometry.py says what the names mean.
struct Phase {
    int first, count, tap, taps, start;

    __device__ Phase(int tap, int stride, int length, int size, int before) : tap(tap) {
        first = (tap - before) % stride;
        if (first < 0) first += stride;
        count = first < length ? ceil_div(length - first, stride) : 0;
        taps = tap < size ? ceil_div(size - tap, stride) : 0;
        start = (first + before - tap) / stride - (taps - 1);
    }

    // Where in the depth's taps a number is: a stride wider than the window leaves phases without.
    __device__ int row_of(int tap) const { return taps ? tap / taps : 0; }
};
