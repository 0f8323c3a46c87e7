// The sizes of a convolution, and the position of a pixel.
#pragma once

// x (B, H, W, Cin), y (B, Ho, Wo, Cout), kernel (kh, kw, Cin, Cout) of one net. The window moves by
// (sh, sw); `top` and `left` are the rows and columns of padding before the first ones.
struct Convolution {
    int B, H, W, Cin;
    int Ho, Wo, Cout;
    int kh, kw, sh, sw, top, left;
};

// The position of pixel `number` in a stack of images of `rows` x `columns` pixels.
struct Pixel {
    int image, row, column;

    __device__ Pixel(int number, int rows, int columns) {
        column = number % columns;
        row = number / columns % rows;
        image = number / columns / rows;
    }
};
