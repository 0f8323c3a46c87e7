// What the files of direct convolution share: the sizes of a correlation, and where its results go.
#pragma once

#include "tile.h"

// y[b, r, q] = sum over taps i, j of x[b, r * sh + i - top, q * sw + j - left] @ w[i, j]: images
// (H, W, Cin), outputs (Ho, Wo, Cout), kh x kw taps, zeros outside the image. In the gradient with
// respect to the input, Cin and Cout are the layer's Cout and Cin. y may be one of several
// interleaved grids, so its strides are given.
struct Correlation {
    int B, H, W, Cin, Ho, Wo, Cout, kh, kw, sh, sw, top, left;
    int y_first, y_image, y_row, y_pixel;  // elements
};
typedef struct Correlation Correlation;

// Whether a pass is worth several threads. 16 multiplications count as one element elsewhere.
INLINE bool is_worth_sharing(const Correlation* s) {
    return (double)s->B * s->Ho * s->Wo * s->Cout * s->kh * s->kw * s->Cin >= 16.0 * WORTH_SHARING;
}

// A panel's channels that a layer has; the last panel may have fewer than PANEL.
INLINE int channels_in(const Correlation* s, int n) { return smaller(PANEL, s->Cout - n); }

// The address in y (of a tile's first image) of output (r, q) and the panel that starts at n.
INLINE float* output_at(const Correlation* s, float* y, int r, int q, int n) {
    return y + s->y_first + (size_t)r * s->y_row + (size_t)q * s->y_pixel + n;
}

// Lets a tile write to y at `to`, or to `aside` (.., PANEL), if its panel is not whole.
INLINE void set_output(
    Tile* t, const Correlation* s, int n, int pixels, float* to, float* aside) {
    bool whole = channels_in(s, n) == PANEL;
    t->y = whole ? to : aside;
    t->y_image = whole ? s->y_image : pixels * PANEL;
    t->y_pixel = whole ? s->y_pixel : PANEL;
}

// Copies the channels of a panel that is not whole from `aside` to y.
INLINE void finish_tile(
    const Correlation* s, int n, int images, int pixels, float* to, const float* aside) {
    int width = channels_in(s, n);
    if (width == PANEL) return;
    for (int m = 0; m < images * pixels; ++m) {
        float* at = to + m / pixels * (size_t)s->y_image + m % pixels * (size_t)s->y_pixel;
        memcpy(at, aside + m * PANEL, width * sizeof(float));
    }
}

// conv_few.c, for layers of few channels.
bool has_few_channels(const Correlation* s);
void correlate_few(
    const float* x, const Correlation* s, const float* w, const float* bias, bool relu, float* y);
void few_weight_gradient(
    const float* x, const float* dz, int dz_channels, const Correlation* s, float* dkernel,
    float* dbias);
