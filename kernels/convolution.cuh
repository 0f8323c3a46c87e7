// A convolution's sizes, and where its window meets the input.
#pragma once

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
