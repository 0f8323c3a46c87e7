// Direct convolution of few channels on a CPU, such as those of images: conv_direct.c calls it.
//
// With few channels, a row of taps has few elements, and most of the time would go into starting
// loops. So one loop visits all elements under a window; a list tells their places. Windows that
// exceed the image read a copy of its rows with zeros around them, so that one list holds for all
// windows.
#include "correlation.h"

enum {
    MOST_CHANNELS = 4,
    MOST_PLACES = 160,     // under a window: 7 x 7 of 3 channels fit
    BAND_ELEMENTS = 4096,  // a copy stays in the L1 cache
    // Work is split into so many parts at least, for several threads.
    PARTS = 16,
    // The weight gradient sums over parts of the batch. Their number is fixed, so that results do
    // not depend on the number of threads.
    GRADIENT_PARTS = 8,
};

// A band is the rows of an image under some rows of outputs.

// Elements in a row of a copied band.
static double band_width(const Correlation* s) {
    return ((s->Wo - 1.0) * s->sw + s->kw) * s->Cin;
}

// The rows of outputs whose band fits in BAND_ELEMENTS.
static int band_rows(const Correlation* s) {
    int rows = BAND_ELEMENTS / band_width(s);  // of the band
    return rows < s->kh ? 0 : smaller((rows - s->kh) / s->sh + 1, s->Ho);
}

bool has_few_channels(const Correlation* s) {
    return s->Cin <= MOST_CHANNELS && s->kh > 1 && s->kh * s->kw * s->Cin <= MOST_PLACES &&
           2 * s->Wo > TILE && band_rows(s) > 0;
}

// Whether a window exceeds the image.
static bool is_padded(const Correlation* s) {
    return s->top > 0 || s->left > 0 || (s->Ho - 1) * s->sh - s->top + s->kh > s->H ||
           (s->Wo - 1) * s->sw - s->left + s->kw > s->W;
}

// The window of a band's output (i, q) starts at x + i * sh * row + q * sw * Cin.
typedef struct {
    const float* x;
    size_t row;  // elements from one row to the next
} Band;

// The band under `rows` rows of outputs, from row r on: part of the image, or a copy with zeros.
static Band band_of(const Correlation* s, const float* image, int r, int rows, float* copy) {
    int top = r * s->sh - s->top, left = s->left * s->Cin, row = s->W * s->Cin;
    if (!is_padded(s)) return (Band){image + (size_t)top * row - left, row};
    int width = band_width(s), first = larger(left, 0), end = smaller(left + row, width);
    float* to = copy;
    for (int y = top; y < top + (rows - 1) * s->sh + s->kh; ++y, to += width) {
        memset(to, 0, width * sizeof(float));
        if (y < 0 || y >= s->H || first >= end) continue;
        memcpy(to + first, image + (size_t)y * row + first - left, (end - first) * sizeof(float));
    }
    return (Band){copy, width};
}

// The places of a window's elements, relative to the first, in a band.
static void list_places(const Correlation* s, const Band* band, int places[MOST_PLACES]) {
    int length = s->kw * s->Cin;
    for (int k = 0; k < s->kh * length; ++k) places[k] = k / length * band->row + k % length;
}

// One function for each shape of tile, as in tile.h. Of `last_products`, the last sums are
// those of dz.
#if VECTOR_REGISTERS == 32
#define FOR_EACH(f) f(1) f(2) f(3) f(4) f(5) f(6) f(7) f(8) f(9) f(10) f(11) f(12)
#else
#define FOR_EACH(f) f(1) f(2) f(3) f(4) f(5) f(6)
#endif
#define GATHERED(n)                                                                       \
    static void pixels_##n(const Tile* t) { compute_tile(1, n, true, t); }                \
    static void products_of_##n(const Products* t) { sum_products(n, true, false, t); }   \
    static void last_products_##n(const Products* t) { sum_products(n, true, true, t); }
FOR_EACH(GATHERED)
#define PIXELS(n) pixels_##n,
#define PRODUCTS(n) products_of_##n,
#define LAST_PRODUCTS(n) last_products_##n,
static const ComputeTile COMPUTE_GATHERED[TILE] = {FOR_EACH(PIXELS)};
static const SumProducts SUM_GATHERED[2][TILE] = {{FOR_EACH(PRODUCTS)}, {FOR_EACH(LAST_PRODUCTS)}};

// -------------------------------------------------------------------------------------------------
// Forward, and the gradient with respect to the input

// A panel of the outputs of a band.
static void correlate_band(
    const Correlation* s, const Band* band, const int* places, int r, int rows, int n,
    const float* w, const float* start, bool relu, float* y) {
    float aside[TILE * PANEL];
    int tiles = divide_up(s->Wo, TILE);
    Tile t = {
        .x_pixel = (size_t)s->sw * s->Cin,
        .rows = 1,
        .length = s->kh * s->kw * s->Cin,
        .w = w,
        .start = start,
        .relu = relu,
        .places = places,
    };
    for (int i = 0; i < rows; ++i) {
        for (int tile = 0; tile < tiles; ++tile) {  // of equal size, to within 1
            int first = (long)s->Wo * tile / tiles, end = (long)s->Wo * (tile + 1) / tiles;
            float* to = output_at(s, y, r + i, first, n);
            t.x = band->x + i * s->sh * band->row + first * t.x_pixel;
            set_output(&t, s, n, end - first, to, aside);
            COMPUTE_GATHERED[end - first - 1](&t);
            finish_tile(s, n, 1, end - first, to, aside);
        }
    }
}

// As correlate, for layers that have_few_channels.
void correlate_few(
    const float* x, const Correlation* s, const float* w, const float* bias, bool relu, float* y) {
    int most = smaller(band_rows(s), divide_up(s->B * s->Ho, PARTS));
    int bands = divide_up(s->Ho, most);
#pragma omp parallel for schedule(static) if (is_worth_sharing(s))
    for (int unit = 0; unit < s->B * bands; ++unit) {
        int b = unit / bands, r = unit % bands * most, rows = smaller(most, s->Ho - r);
        float copy[BAND_ELEMENTS];
        Band band = band_of(s, x + (size_t)b * s->H * s->W * s->Cin, r, rows, copy);
        int places[MOST_PLACES];
        list_places(s, &band, places);
        for (int n = 0; n < s->Cout; n += PANEL) {
            const float* w_panel = w + (size_t)n * s->kh * s->kw * s->Cin;
            float start[PANEL] = {0};
            if (bias) memcpy(start, bias + n, channels_in(s, n) * sizeof(float));
            float* y_image = y + (size_t)b * s->y_image;
            correlate_band(s, &band, places, r, rows, n, w_panel, start, relu, y_image);
        }
    }
}

// -------------------------------------------------------------------------------------------------
// The gradient with respect to the weights

// sums (panels, K + 1, PANEL) over images [from, until): panels of dkernel, each with its dbias.
static void sum_images(
    const Correlation* s, const float* x, const float* dz, int dz_channels, int from, int until,
    int panels, float* sums) {
    int K = s->kh * s->kw * s->Cin, tiles = divide_up(K + 1, TILE), most = band_rows(s);
    size_t dz_row = (size_t)s->Wo * dz_channels;
    memset(sums, 0, (size_t)panels * (K + 1) * PANEL * sizeof(float));
    for (int b = from; b < until; ++b) {
        for (int r = 0; r < s->Ho; r += most) {
            int rows = smaller(most, s->Ho - r), places[MOST_PLACES];
            float copy[BAND_ELEMENTS], of_band[TILE * PANEL];
            Band band = band_of(s, x + (size_t)b * s->H * s->W * s->Cin, r, rows, copy);
            list_places(s, &band, places);
            Products t = {
                .x = band.x,
                .x_row = s->sh * band.row,
                .x_pixel = (size_t)s->sw * s->Cin,
                .dz_row = dz_row,
                .dz_pixel = dz_channels,
                .images = 1,
                .rows = rows,
                .pixels = s->Wo,
                .sums = of_band,
            };
            for (int unit = 0; unit < panels * tiles; ++unit) {
                int panel = unit / tiles, tile = unit % tiles;
                int first = (K + 1) * tile / tiles, end = (K + 1) * (tile + 1) / tiles;
                t.dz = dz + ((size_t)b * s->Ho + r) * dz_row + panel * PANEL;
                t.places = places + first;
                SUM_GATHERED[tile == tiles - 1][end - first - 1](&t);
                float* to = sums + (panel * (K + 1) + first) * PANEL;
                for (int i = 0; i < (end - first) * PANEL; ++i) to[i] += of_band[i];
            }
        }
    }
}

// As conv_weight_gradient, for layers that have_few_channels.
void few_weight_gradient(
    const float* x, const float* dz, int dz_channels, const Correlation* s, float* dkernel,
    float* dbias) {
    enum { ROOM = (MOST_PLACES + 1) * PANEL };  // for the sums of at least one panel
    int K = s->kh * s->kw * s->Cin, together = ROOM / ((K + 1) * PANEL);
    for (int n = 0; n < s->Cout; n += together * PANEL) {
        int panels = smaller(together, divide_up(s->Cout - n, PANEL));
        // No local variable, because stacks may be small. All threads use the caller's.
        static _Thread_local float memory[GRADIENT_PARTS][ROOM];
        float(*sums)[ROOM] = memory;
#pragma omp parallel for schedule(static) if (is_worth_sharing(s))
        for (int part = 0; part < GRADIENT_PARTS; ++part) {
            int from = (long)s->B * part / GRADIENT_PARTS;
            int until = (long)s->B * (part + 1) / GRADIENT_PARTS;
            sum_images(s, x, dz + n, dz_channels, from, until, panels, sums[part]);
        }
        for (int part = 1; part < GRADIENT_PARTS; ++part) {
            for (int i = 0; i < panels * (K + 1) * PANEL; ++i) sums[0][i] += sums[part][i];
        }
        for (int row = 0; row < panels * (K + 1); ++row) {
            int k = row % (K + 1), channel = n + row / (K + 1) * PANEL;
            float* to = (k < K ? dkernel + (size_t)k * s->Cout : dbias) + channel;
            memcpy(to, sums[0] + row * PANEL, channels_in(s, channel) * sizeof(float));
        }
    }
}
