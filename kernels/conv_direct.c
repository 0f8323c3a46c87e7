// Direct convolution on a CPU: it reads the images themselves and builds no matrix of patches.
//
// All three passes keep a tile of sums in registers (tile.h) and add products to it. Forward and
// the gradient with respect to the input are the same function, `correlate`, whose tile is a few
// pixels by a panel of channels. For the gradient with respect to the weights, a tile is a few
// elements of x by a panel of dz. Layers of few channels have loops of their own: conv_few.c.
//
// One thread computes each element of a result, so the order of a sum depends on the layer and the
// batch only, not on the number of threads.
#include "correlation.h"

enum {
    // Of a group of images in the weight gradient: it should stay in the L2 cache.
    GROUP_BYTES = 512 * 1024,
};

int panel_channels(void) { return PANEL; }

// -------------------------------------------------------------------------------------------------
// Weights in the order in which `correlate` reads them

// packed (panels, kh, kw, Cin, PANEL), the last panel padded with zeros, from kernel (rows,
// columns, Cin, Cout), or (rows, columns, Cout, Cin) if `transposed`. Tap (i, j) is the kernel's
// tap (first_row + i * row_step, first_column + j * column_step).
// Twin: ops_numpy.conv2d
KERNEL pack_kernel(
    const float PER_NET kernel, int columns, int first_row, int row_step, int first_column,
    int column_step, bool transposed, int kh, int kw, int Cin, int Cout, float PER_NET packed) {
    int rows = divide_up(Cout, PANEL) * kh;
#pragma omp parallel for if ((size_t)rows * kw * Cin * PANEL >= WORTH_SHARING)
    for (int row = 0; row < rows; ++row) {
        int n = row / kh * PANEL, i = row % kh, width = smaller(PANEL, Cout - n);
        float* to = packed + (size_t)row * kw * Cin * PANEL;
        for (int j = 0; j < kw; ++j) {
            size_t row_of_taps = first_row + i * row_step;
            size_t tap = row_of_taps * columns + first_column + j * column_step;
            const float* from = kernel + tap * Cin * Cout;
            for (int c = 0; c < Cin; ++c, to += PANEL) {
                size_t at = transposed ? (size_t)n * Cin + c : (size_t)c * Cout + n;
                size_t step = transposed ? Cin : 1;
                for (int v = 0; v < width; ++v) to[v] = from[at + v * step];
                for (int v = width; v < PANEL; ++v) to[v] = 0;
            }
        }
    }
}

// -------------------------------------------------------------------------------------------------
// Forward, and the gradient with respect to the input

// The output columns q, first <= q < end, at which column j of the taps is inside the image.
INLINE Range meets(const Correlation* s, int j, int first, int end) {
    Range range = inside(j - s->left, s->sw, s->Wo, s->W);
    return (Range){larger(range.first, first), smaller(range.end, end)};
}

// The outputs of `images` images, starting at x: of row r, columns first <= q < end, and the panel
// of channels that starts at n.
static void correlate_pixels(
    const Correlation* s, const float* x, int images, int r, int first, int end, int n,
    const float* w, const float* start, bool relu, float* y) {
    int pixels = end - first;
    float aside[TILE * PANEL], *to = output_at(s, y, r, first, n);
    Tile t = {
        .x = x,
        .x_image = (size_t)s->H * s->W * s->Cin,
        .x_row = (size_t)s->W * s->Cin,
        .x_pixel = (size_t)s->sw * s->Cin,
        .w_row = (size_t)s->kw * s->Cin * PANEL,
    };
    set_output(&t, s, n, pixels, to, aside);

    int row = r * s->sh - s->top, column = first * s->sw - s->left;  // of x, at tap (0, 0)
    int i = larger(0, -row), rows = smaller(s->kh, s->H - row) - i;  // rows of taps inside x
    if (rows > 0 && column >= 0 && (end - 1) * s->sw - s->left + s->kw <= s->W) {
        // So are all columns of taps, for all pixels: a row of taps is contiguous in x and in w.
        t.x = x + ((size_t)(row + i) * s->W + column) * s->Cin;
        t.rows = rows, t.length = s->kw * s->Cin;
        t.w = w + (size_t)i * t.w_row;
        t.start = start, t.relu = relu;
        COMPUTE_TILE[images - 1][pixels - 1](&t);
    } else {
        // Columns of taps are inside the image at different pixels. Columns that share their pixels
        // are done together.
        t.start = start;
        COMPUTE_TILE[images - 1][pixels - 1](&t);
        t.start = NULL;
        for (int j = 0, next; rows > 0 && j < s->kw; j = next) {
            Range range = meets(s, j, first, end);
            for (next = j + 1; next < s->kw; ++next) {
                Range other = meets(s, next, first, end);
                if (other.first != range.first || other.end != range.end) break;
            }
            if (range.first >= range.end) continue;
            Tile part = t;
            column = range.first * s->sw - s->left + j;
            part.x = x + ((size_t)(row + i) * s->W + column) * s->Cin;
            part.rows = rows, part.length = (next - j) * s->Cin;
            part.w = w + (size_t)i * t.w_row + (size_t)j * s->Cin * PANEL;
            part.y += (range.first - first) * t.y_pixel;
            COMPUTE_TILE[images - 1][range.end - range.first - 1](&part);
        }
        t.relu = relu;
        if (relu) COMPUTE_TILE[images - 1][pixels - 1](&t);
    }
    finish_tile(s, n, images, pixels, to, aside);
}

// y = relu(x * w + bias), with relu and bias if given; w is pack_kernel's result.
// Twin: ops_numpy.conv2d
KERNEL correlate(
    const float PER_NET x, struct Correlation s, const float PER_NET w,
    MAY_BE_NULL const float PER_NET bias, bool relu, float PER_NET y) {
    if (has_few_channels(&s)) {
        correlate_few(x, &s, w, bias, relu, y);
        return;
    }
    int panels = divide_up(s.Cout, PANEL), tiles = divide_up(s.Wo, TILE);
    int together = smaller(larger(TILE / s.Wo, 1), MOST_IMAGES);  // narrow ones share a tile
    int groups = divide_up(s.B, together);
#pragma omp parallel for schedule(static) if (is_worth_sharing(&s))
    for (int unit = 0; unit < groups * panels * s.Ho; ++unit) {
        int r = unit % s.Ho, n = unit / s.Ho % panels * PANEL, b = unit / s.Ho / panels * together;
        const float* x_group = x + (size_t)b * s.H * s.W * s.Cin;
        const float* w_panel = w + (size_t)n * s.kh * s.kw * s.Cin;
        float* y_group = y + (size_t)b * s.y_image;
        float start[PANEL] = {0};
        if (bias) memcpy(start, bias + n, channels_in(&s, n) * sizeof(float));
        int images = smaller(together, s.B - b);
        for (int tile = 0; tile < tiles; ++tile) {  // of equal size, to within 1
            int first = (long)s.Wo * tile / tiles, end = (long)s.Wo * (tile + 1) / tiles;
            correlate_pixels(
                &s, x_group, images, r, first, end, n, w_panel, start, relu, y_group);
        }
    }
}

// -------------------------------------------------------------------------------------------------
// The gradient with respect to the weights

// A panel of dbias: sums of dz, which has dz_channels channels, over a group of images.
static void sum_pixels(
    const Correlation* s, const float* dz, int dz_channels, int images, float* sums) {
    Vector sum[2] = {{0}};
    for (size_t pixel = 0; pixel < (size_t)images * s->Ho * s->Wo; ++pixel) {
        sum[0] += load(dz + pixel * dz_channels);
        sum[1] += load(dz + pixel * dz_channels + LANES);
    }
    store(sums, sum[0]);
    store(sums + LANES, sum[1]);
}

// A tile of dkernel, `count` elements by a panel: of tap (i, j), the elements that start at
// `first`. Each is a sum of x times dz over a group of images.
static void sum_tile(
    const Correlation* s, const float* x, const float* dz, int dz_channels, int images, int i,
    int j, int first, int count, float* sums) {
    Range row = inside(i - s->top, s->sh, s->Ho, s->H);
    Range pixel = inside(j - s->left, s->sw, s->Wo, s->W);
    int x_row = row.first * s->sh + i - s->top, x_pixel = pixel.first * s->sw + j - s->left;
    Products t = {
        .x = x + ((size_t)x_row * s->W + x_pixel) * s->Cin + first,
        .x_image = (size_t)s->H * s->W * s->Cin,
        .x_row = (size_t)s->sh * s->W * s->Cin,
        .x_pixel = (size_t)s->sw * s->Cin,
        .dz = dz + ((size_t)row.first * s->Wo + pixel.first) * dz_channels,
        .dz_image = (size_t)s->Ho * s->Wo * dz_channels,
        .dz_row = (size_t)s->Wo * dz_channels,
        .dz_pixel = dz_channels,
        .images = images,
        .rows = row.end - row.first,
        .pixels = pixel.end - pixel.first,
        .sums = sums,
    };
    SUM_PRODUCTS[count - 1](&t);
}

// dkernel (kh, kw, Cin, Cout) and dbias (Cout,) from x and dz, the gradient before the activation.
// dz has dz_channels channels: those of whole panels, the last one padded with zeros.
//
// A unit of work is a tile of dkernel, or a panel of dbias. Each thread has its own units. It does
// them all for one group of images, which stays in its cache, then for the next group.
// Twin: ops_numpy.conv2d_weight_gradient
KERNEL conv_weight_gradient(
    const float PER_NET x, const float PER_NET dz, int dz_channels, struct Correlation s,
    float PER_NET dkernel, float PER_NET dbias) {
    if (has_few_channels(&s)) {
        few_weight_gradient(x, dz, dz_channels, &s, dkernel, dbias);
        return;
    }
    // Without padding, the elements under a row of taps are contiguous at every pixel: the row
    // counts as one tap.
    int padded = s.left > 0 || (s.Wo - 1) * s.sw - s.left + s.kw > s.W;
    int taps = padded ? s.kw : 1, length = padded ? s.Cin : s.kw * s.Cin;
    int tiles = divide_up(length, TILE), panels = divide_up(s.Cout, PANEL);
    int products = s.kh * taps * tiles * panels;
    size_t x_image = (size_t)s.H * s.W * s.Cin, dz_image = (size_t)s.Ho * s.Wo * dz_channels;
    int group = larger(1, smaller(s.B, GROUP_BYTES / ((x_image + dz_image) * sizeof(float))));
#pragma omp parallel if (is_worth_sharing(&s))
    for (int b = 0; b < s.B; b += group) {
        // A static schedule gives a thread the same units in each group.
#pragma omp for schedule(static) nowait
        for (int unit = 0; unit < products + panels; ++unit) {
            int images = smaller(group, s.B - b), n = unit % panels * PANEL;
            int width = smaller(PANEL, s.Cout - n), count = 1;
            float sums[TILE * PANEL], *to = dbias + n;
            const float* dz_group = dz + b * dz_image + n;
            if (unit < products) {
                int tile = unit / panels % tiles, tap = unit / panels / tiles;
                int first = (long)length * tile / tiles, end = (long)length * (tile + 1) / tiles;
                int i = tap / taps, j = tap % taps;
                count = end - first;
                to = dkernel + ((size_t)tap * length + first) * s.Cout + n;
                const float* x_group = x + b * x_image;
                sum_tile(&s, x_group, dz_group, dz_channels, images, i, j, first, count, sums);
            } else {
                sum_pixels(&s, dz_group, dz_channels, images, sums);
            }
            for (int k = 0; k < count; ++k, to += s.Cout) {
                for (int v = 0; v < width; ++v) {
                    to[v] = b ? to[v] + sums[k * PANEL + v] : sums[k * PANEL + v];
                }
            }
        }
    }
}

// Rows of Cout elements as rows of whole panels, padded with zeros.
// Twin: ops_numpy.conv2d_weight_gradient
KERNEL widen(const float PER_NET from, int rows, int Cout, float PER_NET to) {
    int wide = divide_up(Cout, PANEL) * PANEL;
#pragma omp parallel for if (rows * wide >= WORTH_SHARING)
    for (int row = 0; row < rows; ++row) {
        float* padded = to + (size_t)row * wide;
        memcpy(padded, from + (size_t)row * Cout, Cout * sizeof(float));
        memset(padded + Cout, 0, (wide - Cout) * sizeof(float));
    }
}
