// Direct convolution of few channels on a CPU, such as of images: conv_direct.c calls it.
//
// With few channels a row of taps has few elements, so that a loop over rows with a loop over
// elements inside is mostly overhead. Here one loop visits all elements under a window, at places
// that a list holds. Where the window exceeds the image, a band of the image's rows is copied with
// the zeros around it, so that the places hold everywhere.
#include "correlation.h"

enum {
    LONGEST_ROW = 16,   // of taps, in elements: longer ones have little overhead
    MOST_PLACES = 128,  // under a window
    BAND_ELEMENTS = 4096,  // so that it stays in the L1 cache
    // The images in the weight gradient, whose sums are added at the end: they are many, for many
    // threads, and the same for any number of threads.
    PARTS = 8,
    LEAST_UNITS = 16,  // of work in the other passes, for many threads
};

// Elements in a row of a band.
static double band_width(const Correlation* s) {
    return ((s->Wo - 1.0) * s->sw + s->kw) * s->Cin;
}

// Rows of outputs in a band: those for which the band has room.
static int band_rows(const Correlation* s) {
    int rows = BAND_ELEMENTS / band_width(s);
    return rows < s->kh ? 0 : smaller((rows - s->kh) / s->sh + 1, s->Ho);
}

bool has_few_channels(const Correlation* s) {
    return s->kh > 1 && s->kw * s->Cin <= LONGEST_ROW && s->kh * s->kw * s->Cin <= MOST_PLACES &&
           2 * s->Wo > TILE && band_rows(s) > 0;
}

// Whether a window exceeds the image.
static bool is_padded(const Correlation* s) {
    return s->top > 0 || s->left > 0 || (s->Ho - 1) * s->sh - s->top + s->kh > s->H ||
           (s->Wo - 1) * s->sw - s->left + s->kw > s->W;
}

// Rows of an image: the windows of outputs (r, q) start at x + r * step + q * sw * Cin.
typedef struct {
    const float* x;
    size_t row;  // elements from a row to the next
} Band;

// The band under `rows` rows of outputs from row r on: the image itself, or a copy with zeros.
static Band band_of(const Correlation* s, const float* image, int r, int rows, float* copy) {
    int top = r * s->sh - s->top, row = s->W * s->Cin, width = band_width(s);
    if (!is_padded(s)) return (Band){image + (size_t)top * row - s->left * s->Cin, row};
    // Elements [first, end) of a row of the band are inside the image.
    int first = smaller(larger(s->left, 0) * s->Cin, width);
    int end = larger(first, smaller(s->left * s->Cin + row, width));
    float* to = copy;
    for (int i = 0; i < (rows - 1) * s->sh + s->kh; ++i, to += width) {
        bool inside = 0 <= top + i && top + i < s->H;
        int from = inside ? first : width, until = inside ? end : width;
        memset(to, 0, from * sizeof(float));
        const float* x = image + (size_t)(top + i) * row - s->left * s->Cin;
        if (inside) memcpy(to + from, x + from, (until - from) * sizeof(float));
        memset(to + until, 0, (width - until) * sizeof(float));
    }
    return (Band){copy, width};
}

// Where the elements under a window are, counted from the first, in a band with rows of `row`.
static void list_places(const Correlation* s, size_t row, int places[MOST_PLACES]) {
    int length = s->kw * s->Cin;
    for (int k = 0; k < s->kh * length; ++k) places[k] = k / length * row + k % length;
}

// -------------------------------------------------------------------------------------------------
// Forward, and the gradient with respect to the input

#define GATHERED_TILE(pixels) \
    static void gathered_##pixels(const Tile* t) { compute_tile(1, pixels, true, t); }
GATHERED_TILE(1) GATHERED_TILE(2) GATHERED_TILE(3) GATHERED_TILE(4) GATHERED_TILE(5)
GATHERED_TILE(6)
#if VECTOR_REGISTERS == 32
GATHERED_TILE(7) GATHERED_TILE(8) GATHERED_TILE(9) GATHERED_TILE(10) GATHERED_TILE(11)
GATHERED_TILE(12)
#endif
static const ComputeTile COMPUTE_GATHERED[TILE] = {
    gathered_1, gathered_2, gathered_3, gathered_4, gathered_5, gathered_6,
#if VECTOR_REGISTERS == 32
    gathered_7, gathered_8, gathered_9, gathered_10, gathered_11, gathered_12,
#endif
};

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
    int most = smaller(band_rows(s), divide_up(s->B * s->Ho, LEAST_UNITS));
    int bands = divide_up(s->Ho, most);
#pragma omp parallel for schedule(static) if (is_worth_sharing(s))
    for (int unit = 0; unit < s->B * bands; ++unit) {
        int b = unit / bands, r = unit % bands * most, rows = smaller(most, s->Ho - r);
        float copy[BAND_ELEMENTS];
        Band band = band_of(s, x + (size_t)b * s->H * s->W * s->Cin, r, rows, copy);
        int places[MOST_PLACES];
        list_places(s, band.row, places);
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

#define GATHERED_PRODUCTS(count)                                                                 \
    static void gathered_products_##count(const Products* t) {                                   \
        sum_products(count, true, false, t);                                                     \
    }                                                                                            \
    static void last_products_##count(const Products* t) { sum_products(count, true, true, t); }
GATHERED_PRODUCTS(1) GATHERED_PRODUCTS(2) GATHERED_PRODUCTS(3) GATHERED_PRODUCTS(4)
GATHERED_PRODUCTS(5) GATHERED_PRODUCTS(6)
#if VECTOR_REGISTERS == 32
GATHERED_PRODUCTS(7) GATHERED_PRODUCTS(8) GATHERED_PRODUCTS(9) GATHERED_PRODUCTS(10)
GATHERED_PRODUCTS(11) GATHERED_PRODUCTS(12)
#endif
static const SumProducts SUM_GATHERED[TILE] = {
    gathered_products_1, gathered_products_2, gathered_products_3, gathered_products_4,
    gathered_products_5, gathered_products_6,
#if VECTOR_REGISTERS == 32
    gathered_products_7, gathered_products_8, gathered_products_9, gathered_products_10,
    gathered_products_11, gathered_products_12,
#endif
};
static const SumProducts SUM_LAST[TILE] = {
    last_products_1, last_products_2, last_products_3, last_products_4, last_products_5,
    last_products_6,
#if VECTOR_REGISTERS == 32
    last_products_7, last_products_8, last_products_9, last_products_10, last_products_11,
    last_products_12,
#endif
};

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
            list_places(s, band.row, places);
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
                (tile == tiles - 1 ? SUM_LAST : SUM_GATHERED)[end - first - 1](&t);
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
        float sums[PARTS][ROOM];
#pragma omp parallel for schedule(static) if (is_worth_sharing(s))
        for (int part = 0; part < PARTS; ++part) {
            int from = (long)s->B * part / PARTS, until = (long)s->B * (part + 1) / PARTS;
            sum_images(s, x, dz + n, dz_channels, from, until, panels, sums[part]);
        }
        for (int part = 1; part < PARTS; ++part) {
            for (int i = 0; i < panels * (K + 1) * PANEL; ++i) sums[0][i] += sums[part][i];
        }
        for (int row = 0; row < panels * (K + 1); ++row) {
            int k = row % (K + 1), channel = n + row / (K + 1) * PANEL;
            float* to = (k < K ? dkernel + (size_t)k * s->Cout : dbias) + channel;
            memcpy(to, sums[0] + row * PANEL, channels_in(s, channel) * sizeof(float));
        }
    }
}
