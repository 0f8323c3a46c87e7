// Convolution on a CPU, straight from the images: no matrix of patches is ever made.
//
// All three passes keep a tile of sums in registers (tile.h), and do nothing but multiply and add to
// it while operands stream by. Forward and the gradient by the input are the same function,
// `correlate`, whose tile is some pixels by a panel of channels; for the gradient by the weights it is
// some numbers of x by a panel of dz.
//
// A sum's order depends on the layer and the batch alone, not on threads: each number is made by one.
#include "tile.h"

enum {
    // What a group of images may take for the gradient by the weights, to stay in the second cache.
    GROUP_BYTES = 512 * 1024,
};

// y[b, r, q] = sum over taps i, j of x[b, r * sh + i - top, q * sw + j - left] @ w[i, j]: images
// (H, W, C), results (Ho, Wo, N), kh x kw taps. Beyond the image are zeros. A result's steps in
// memory are given, since it may be one of several interleaved grids.
struct Correlation {
    int B, H, W, C, Ho, Wo, N, kh, kw, sh, sw, top, left;
    int y_first, y_image, y_row, y_pixel;  // numbers
};
typedef struct Correlation Correlation;

// Whether a pass has enough to do: some multiplications cost as much as anything else on a number.
static int is_worth_sharing(const Correlation* s) {
    return (double)s->B * s->Ho * s->Wo * s->N * s->kh * s->kw * s->C >= 16.0 * WORTH_SHARING;
}

int panel_channels(void) { return PANEL; }

// -------------------------------------------------------------------------------------------------
// Weights in the order in which correlate reads them

// packed (panels, kh, kw, C, PANEL), the last panel filled up with zeros, from kernel (.., .., C, N):
// tap (i, j) is the kernel's tap (first_row + i * row_step, first_column + j * column_step) of
// `columns`; `transposed` kernels are (.., .., N, C).
KERNEL pack_kernel(
    const float PER_NET kernel, int columns, int first_row, int row_step, int first_column,
    int column_step, bool transposed, int kh, int kw, int C, int N, float PER_NET packed) {
    int rows = divide_up(N, PANEL) * kh;
#pragma omp parallel for if ((size_t)rows * kw * C * PANEL >= WORTH_SHARING)
    for (int row = 0; row < rows; ++row) {
        int n = row / kh * PANEL, i = row % kh, width = smaller(PANEL, N - n);
        float* to = packed + (size_t)row * kw * C * PANEL;
        for (int j = 0; j < kw; ++j) {
            size_t tap = (size_t)(first_row + i * row_step) * columns + first_column + j * column_step;
            const float* from = kernel + tap * C * N;
            for (int c = 0; c < C; ++c, to += PANEL) {
                const float* numbers = transposed ? from + (size_t)n * C + c : from + (size_t)c * N + n;
                size_t step = transposed ? C : 1;
                for (int v = 0; v < width; ++v) to[v] = numbers[v * step];
                for (int v = width; v < PANEL; ++v) to[v] = 0;
            }
        }
    }
}

// -------------------------------------------------------------------------------------------------
// Forward, and the gradient by the input

// The results r * s + tap - before that lie within a length: from .first to before .end
typedef struct {
    int first, end;
} Range;

INLINE Range inside(int tap, int stride, int before, int length, int results) {
    int low = before - tap, high = length + before - tap;  // low <= result * stride < high
    Range range = {low <= 0 ? 0 : divide_up(low, stride), high <= 0 ? 0 : divide_up(high, stride)};
    range.end = smaller(range.end, results);
    return range;
}

// The pixels from `first` to before `end` for which column j of the taps lies within the image.
INLINE Range meets(const Correlation* s, int j, int first, int end) {
    Range range = inside(j, s->sw, s->left, s->W, s->Wo);
    return (Range){larger(range.first, first), smaller(range.end, end)};
}

// The results of `images` images from x on, in row r, from pixel `first` to before `end`, and in the
// panel of channels from n on.
static void correlate_pixels(
    const Correlation* s, const float* x, int images, int r, int first, int end, int n,
    const float* w, const float* start, bool relu, float* y) {
    float aside[TILE * PANEL];  // for a panel that is wider than what is left of the channels
    int width = smaller(PANEL, s->N - n), pixels = end - first;
    float* to = y + s->y_first + (size_t)r * s->y_row + (size_t)first * s->y_pixel + n;
    Tile t = {.y = to, .y_image = s->y_image, .y_pixel = s->y_pixel};
    if (width < PANEL) t = (Tile){.y = aside, .y_image = (size_t)pixels * PANEL, .y_pixel = PANEL};
    t.x = x;
    t.x_image = (size_t)s->H * s->W * s->C;
    t.x_row = (size_t)s->W * s->C;
    t.x_pixel = (size_t)s->sw * s->C;
    t.w_row = (size_t)s->kw * s->C * PANEL;

    int row = r * s->sh - s->top, column = first * s->sw - s->left;  // of the image, at tap (0, 0)
    int i = larger(0, -row), rows = smaller(s->kh, s->H - row) - i;  // taps' rows that meet it
    if (rows > 0 && column >= 0 && (end - 1) * s->sw - s->left + s->kw <= s->W) {
        // So do all columns of taps, for all pixels: they are one stretch of memory, in x as in w.
        t.x = x + ((size_t)(row + i) * s->W + column) * s->C;
        t.rows = rows, t.length = s->kw * s->C;
        t.w = w + (size_t)i * t.w_row;
        t.start = start, t.relu = relu;
        COMPUTE_TILE[images - 1][pixels - 1](&t);
    } else {
        // Each column of taps meets other pixels; those that meet the same ones are one stretch.
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
            part.x = x + ((size_t)(row + i) * s->W + column) * s->C;
            part.rows = rows, part.length = (next - j) * s->C;
            part.w = w + (size_t)i * t.w_row + (size_t)j * s->C * PANEL;
            part.y += (range.first - first) * t.y_pixel;
            COMPUTE_TILE[images - 1][range.end - range.first - 1](&part);
        }
        t.relu = relu;
        if (relu) COMPUTE_TILE[images - 1][pixels - 1](&t);
    }
    if (width == PANEL) return;
    for (int m = 0; m < images * pixels; ++m) {
        float* at = to + m / pixels * (size_t)s->y_image + m % pixels * (size_t)s->y_pixel;
        memcpy(at, aside + m * PANEL, width * sizeof(float));
    }
}

// y = relu(x * w + bias), relu and bias where there are such; w as pack_kernel leaves it.
KERNEL correlate(
    const float PER_NET x, struct Correlation s, const float PER_NET w,
    MAY_BE_NULL const float PER_NET bias, bool relu, float PER_NET y) {
    int panels = divide_up(s.N, PANEL), tiles = divide_up(s.Wo, TILE);
    int together = smaller(larger(TILE / s.Wo, 1), MOST_IMAGES);  // narrow images fill a tile together
    int groups = divide_up(s.B, together);
#pragma omp parallel for schedule(static) if (is_worth_sharing(&s))
    for (int unit = 0; unit < groups * panels * s.Ho; ++unit) {
        int r = unit % s.Ho, n = unit / s.Ho % panels * PANEL, b = unit / s.Ho / panels * together;
        const float* x_group = x + (size_t)b * s.H * s.W * s.C;
        const float* w_panel = w + (size_t)n * s.kh * s.kw * s.C;
        float* y_group = y + (size_t)b * s.y_image;
        float start[PANEL] = {0};
        if (bias) memcpy(start, bias + n, smaller(PANEL, s.N - n) * sizeof(float));
        int images = smaller(together, s.B - b);
        for (int tile = 0; tile < tiles; ++tile) {  // as equal as can be
            int first = (long)s.Wo * tile / tiles, end = (long)s.Wo * (tile + 1) / tiles;
            correlate_pixels(
                &s, x_group, images, r, first, end, n, w_panel, start, relu, y_group);
        }
    }
}

// -------------------------------------------------------------------------------------------------
// The gradient by the weights

// The panel of dbias from n on: sums of dz over a group of images.
static void sum_pixels(const Correlation* s, const float* dz, int images, int N, float* sums) {
    Vector sum[2] = {{0}};
    for (size_t pixel = 0; pixel < (size_t)images * s->Ho * s->Wo; ++pixel) {
        sum[0] += load(dz + pixel * N);
        sum[1] += load(dz + pixel * N + LANES);
    }
    store(sums, sum[0]);
    store(sums + LANES, sum[1]);
}

// `numbers` numbers of dkernel by a panel: row i of taps, column j, the numbers from `first` on; sums
// over the images, from x and dz on, of x times dz.
static void sum_tile(
    const Correlation* s, const float* x, const float* dz, int dz_N, int images, int i, int j,
    int first, int numbers, float* sums) {
    Range row = inside(i, s->sh, s->top, s->H, s->Ho), pixel = inside(j, s->sw, s->left, s->W, s->Wo);
    int x_row = row.first * s->sh + i - s->top, x_pixel = pixel.first * s->sw + j - s->left;
    Products t = {
        .x = x + ((size_t)x_row * s->W + x_pixel) * s->C + first,
        .x_image = (size_t)s->H * s->W * s->C,
        .x_row = (size_t)s->sh * s->W * s->C,
        .x_pixel = (size_t)s->sw * s->C,
        .dz = dz + ((size_t)row.first * s->Wo + pixel.first) * dz_N,
        .dz_image = (size_t)s->Ho * s->Wo * dz_N,
        .dz_row = (size_t)s->Wo * dz_N,
        .dz_pixel = dz_N,
        .images = images,
        .rows = row.end - row.first,
        .pixels = pixel.end - pixel.first,
        .sums = sums,
    };
    SUM_PRODUCTS[numbers - 1](&t);
}

// dkernel (kh, kw, C, N) and dbias (N,) from x and dz, the gradient before activation, with `dz_N`
// numbers a pixel: a whole number of panels, filled up with zeros.
//
// A unit of work is a tile of dkernel, or a panel of dbias. Each thread has units of its own and
// passes over all images, a group at a time, which it then finds in its cache for every unit.
KERNEL conv_weight_gradient(
    const float PER_NET x, const float PER_NET dz, int dz_N, struct Correlation s,
    float PER_NET dkernel, float PER_NET dbias) {
    // Without padding, the numbers under a row of taps follow one another, whatever tap is whose, and
    // all pixels meet them: as if the row were one tap.
    int padded = s.left > 0 || (s.Wo - 1) * s.sw - s.left + s.kw > s.W;
    int taps = padded ? s.kw : 1, length = padded ? s.C : s.kw * s.C;
    int tiles = divide_up(length, TILE), panels = divide_up(s.N, PANEL);
    int products = s.kh * taps * tiles * panels;
    size_t x_image = (size_t)s.H * s.W * s.C, dz_image = (size_t)s.Ho * s.Wo * dz_N;
    int group = larger(1, smaller(s.B, GROUP_BYTES / ((x_image + dz_image) * sizeof(float))));
#pragma omp parallel if (is_worth_sharing(&s))
    for (int b = 0; b < s.B; b += group) {
        // The same units for the same thread, in each group: a static schedule promises that.
#pragma omp for schedule(static) nowait
        for (int unit = 0; unit < products + panels; ++unit) {
            int images = smaller(group, s.B - b), n = unit % panels * PANEL;
            int width = smaller(PANEL, s.N - n), numbers = 1;
            float sums[TILE * PANEL], *to = dbias + n;
            const float* dz_group = dz + b * dz_image + n;
            if (unit < products) {
                int tile = unit / panels % tiles, tap = unit / panels / tiles;
                int first = (long)length * tile / tiles, end = (long)length * (tile + 1) / tiles;
                int i = tap / taps, j = tap % taps;
                numbers = end - first;
                to = dkernel + ((size_t)tap * length + first) * s.N + n;
                sum_tile(&s, x + b * x_image, dz_group, dz_N, images, i, j, first, numbers, sums);
            } else {
                sum_pixels(&s, dz_group, images, dz_N, sums);
            }
            for (int k = 0; k < numbers; ++k, to += s.N) {
                for (int v = 0; v < width; ++v) {
                    to[v] = b ? to[v] + sums[k * PANEL + v] : sums[k * PANEL + v];
                }
            }
        }
    }
}

// Rows of N numbers as rows of whole panels, filled up with zeros.
KERNEL widen(const float PER_NET from, int rows, int N, float PER_NET to) {
    int wide = divide_up(N, PANEL) * PANEL;
#pragma omp parallel for if (rows * wide >= WORTH_SHARING)
    for (int row = 0; row < rows; ++row) {
        float* numbers = to + (size_t)row * wide;
        memcpy(numbers, from + (size_t)row * N, N * sizeof(float));
        memset(numbers + N, 0, (wide - N) * sizeof(float));
    }
}
