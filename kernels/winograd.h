// Winograd convolution: the geometry, and the transforms of images, which all passes share.
//
// A square of m x m outputs, m = 2, 4 or 5, depends on n x n pixels, n = m + 2. Pixels and kernel are
// transformed into n x n places (winograd_matrices.h). At each place they are multiplied, as matrices
// over channels, and the products are transformed back.
//
// Strides. With stride 2, a kernel of up to 5 x 5 taps is a sum of four kernels of up to 3 x 3 taps
// with stride 1: the even and odd rows and columns of taps, over the even and odd rows and columns of
// the image. Each such part is a phase. The sum over phases is made at the places, before the
// transform back. A phase of odd taps has two of them, the third is 0, and so are its products at
// infinity, the last row or column of places: they are left out. For m = 4, 121 multiplications make
// 16 outputs, in place of 400.
//
// The gradient with respect to the input has one phase of dz, and four of dx.
#pragma once

#include "tile.h"
#include "winograd_matrices.h"

enum {
    MOST_PLACES = MOST_PIXELS * MOST_PIXELS,
    MOST_RUN = 6,  // squares beside each other that are transformed together
    MOST_COLUMNS = MOST_OUTPUTS * MOST_RUN + 2,
    PLACE = TILE * LANES,  // floats of a place, in transformed squares: a block of LANES channels
    SCRATCH_FLOATS = 1 << 18,
    MOST_CHANNELS = 512,
};

// SCRATCH_FLOATS floats of working memory of the calling thread.
float* winograd_scratch(void);

// y (B, Ho, Wo, Cout) from x (B, H, W, Cin). The outputs of a phase of y are rows x columns. Output
// (r, c) depends on the pixels of a phase of x from (r, c) on. Pixel (u, v) of phase (p, q) of x is
// row u * x_step + p - top and column v * x_step + q - left. Output (r, c) of phase (p, q) of y is row
// r * y_step + row_p, column c * y_step + column_q. What is outside x is 0, what is outside y is left
// out. In the gradient with respect to the input, Cin and Cout are the layer's Cout and Cin.
struct Squares {
    int B, H, W, Cin, Ho, Wo, Cout, rows, columns;
    int x_step, top, left, y_step, row_0, row_1, column_0, column_1;
};
typedef struct Squares Squares;

INLINE int squares_in_row(const int m, const Squares* s) { return divide_up(s->columns, m); }
INLINE int squares_in_image(const int m, const Squares* s) {
    return divide_up(s->rows, m) * squares_in_row(m, s);
}

// A square of outputs: its image, and its first row and column.
typedef struct {
    int image, row, column;
} Place;

INLINE Place place_of(const int m, const Squares* s, int square) {
    int in_image = square % squares_in_image(m, s), in_row = squares_in_row(m, s);
    return (Place){square / squares_in_image(m, s), in_image / in_row * m, in_image % in_row * m};
}

// The phases are used in this order, so that those of any place follow one another: a phase of odd
// rows has no last row of places, one of odd columns no last column.
typedef struct {
    int row, column;  // 0: even, 1: odd
} Phase;
static const Phase PHASES[] = {{1, 0}, {0, 0}, {0, 1}, {1, 1}};

INLINE Phase phase_of(int phases, int k) { return phases == 1 ? (Phase){0, 0} : PHASES[k]; }

// The phases of place (i, j): first <= k < end.
typedef struct {
    int first, end;
} Phases;

INLINE Phases phases_at(int phases, bool last_row, bool last_column) {
    if (phases == 1) return (Phases){0, 1};
    return (Phases){last_row, last_column ? 2 : last_row ? 3 : 4};
}

// -------------------------------------------------------------------------------------------------
// Images

// How an image is read: as it is, or normalised: (x - mean) * scale + shift for each channel. With a
// mask, the result is multiplied by `keep` where the mask is true, else it is 0.
typedef struct {
    const float *x, *mean, *scale, *shift;  // mean .. shift (C,), or null
    const bool* mask;                       // like x, or null
    float keep;
    int H, W, C;
} Source;

INLINE Vector masked(Vector v, const bool* mask, float keep) {
    typedef signed char Bytes __attribute__((vector_size(LANES)));
    Bytes bytes;
    memcpy(&bytes, mask, LANES);
    Mask kept = -__builtin_convertvector(bytes, Mask);
    return (Vector)((Mask)(v * keep) & kept);
}

INLINE void load_pixels(
    const Source* s, const bool normalized, const bool drops, size_t at, size_t step, int c, int count,
    Vector to[]) {
    Vector mean = {0}, scale = {0}, shift = {0};
    if (normalized) mean = load(s->mean + c), scale = load(s->scale + c), shift = load(s->shift + c);
    for (int j = 0; j < count; ++j, at += step) {
        Vector v = load(s->x + at);
        if (normalized) v = (v - mean) * scale + shift;
        if (drops) v = masked(v, s->mask + at, s->keep);
        to[j] = v;
    }
}

// `rows` x `columns` pixels, LANES channels from c on, of an image: those of rows row, row + step, ...
// and columns column, column + step, ... Pixels outside the image are 0.
static void load_patch(
    const Source* s, int image, int row, int column, int step, int rows, int columns, int c,
    Vector to[][MOST_COLUMNS]) {
    int first = column >= 0 ? 0 : divide_up(-column, step);
    int end = column >= s->W ? 0 : smaller(columns, divide_up(s->W - column, step));
    for (int i = 0; i < rows; ++i, row += step) {
        if (row < 0 || row >= s->H || first >= end) {
            memset(to[i], 0, columns * sizeof(Vector));
            continue;
        }
        memset(to[i], 0, first * sizeof(Vector));
        size_t pixel = ((size_t)image * s->H + row) * s->W + column + first * step;
        size_t at = pixel * s->C + c, pixel_step = (size_t)step * s->C;
#define LOAD(normalized, drops) \
    load_pixels(s, normalized, drops, at, pixel_step, c, end - first, to[i] + first)
        if (s->mask) LOAD(true, true);
        else if (s->mean) LOAD(true, false);
        else LOAD(false, false);
        memset(to[i] + end, 0, (columns - end) * sizeof(Vector));
    }
}

// M patch M' for each of `squares` squares beside each other, the first `rows` rows and `columns`
// columns of places only. A square has as many pixels as M has columns, and starts `m` columns after
// the one before. Place p of square i is written to to[p * place + i * step].
INLINE void transform_patch(
    const Matrix* M, const bool of_last, const int m, const int rows, const int columns, int squares,
    Vector patch[][MOST_COLUMNS], float* to, const size_t place, const size_t step) {
    const int size = M->columns;
    Vector lines[MOST_COLUMNS][MOST_PIXELS];  // by column, then place
    for (int j = 0; j < m * (squares - 1) + size; ++j) {
        Vector column[MOST_PIXELS];
        UNROLL
        for (int i = 0; i < size; ++i) column[i] = patch[i][j];
        multiply(M, of_last, rows, column, lines[j]);
    }
    for (int square = 0; square < squares; ++square, to += step) {
        UNROLL
        for (int i = 0; i < rows; ++i) {
            Vector row[MOST_PIXELS], done[MOST_PIXELS];
            UNROLL
            for (int j = 0; j < size; ++j) row[j] = lines[m * square + j][i];
            multiply(M, of_last, columns, row, done);
            UNROLL
            for (int j = 0; j < columns; ++j) store(to + (i * M->rows + j) * place, done[j]);
        }
    }
}

// B x B' of a run of squares. A phase of odd rows or columns has a short row or column of places.
INLINE void transform_run(
    const int m, const int short_rows, const int short_columns, int squares,
    Vector patch[][MOST_COLUMNS], float* to) {
    transform_patch(
        input_matrix(m), true, m, m + 2 - short_rows, m + 2 - short_columns, squares, patch, to,
        PLACE, LANES);
}
typedef void (*TransformRun)(int squares, Vector patch[][MOST_COLUMNS], float* to);
#define TRANSFORM_RUN(m, short_rows, short_columns) \
    static void run_##m##short_rows##short_columns( \
        int squares, Vector patch[][MOST_COLUMNS], float* to) { \
        transform_run(m, short_rows, short_columns, squares, patch, to); \
    }
#define TRANSFORM_RUNS(m) \
    TRANSFORM_RUN(m, 0, 0) TRANSFORM_RUN(m, 0, 1) TRANSFORM_RUN(m, 1, 0) TRANSFORM_RUN(m, 1, 1)
TRANSFORM_RUNS(2) TRANSFORM_RUNS(4) TRANSFORM_RUNS(5)
static const TransformRun TRANSFORM_RUN[][2][2] = {
    [2] = {{run_200, run_201}, {run_210, run_211}},
    [4] = {{run_400, run_401}, {run_410, run_411}},
    [5] = {{run_500, run_501}, {run_510, run_511}},
};

// -------------------------------------------------------------------------------------------------
// Memory that is fetched into the cache piece by piece, while something else is computed

typedef struct {
    const char *at, *end;
    int piece;  // bytes
} Ahead;

// `pieces` pieces of the part [first, first + here) / count of an array, `later` floats on.
INLINE Ahead ahead(
    const float* array, size_t size, int first, int here, int count, size_t later, int pieces) {
    if (!array) return (Ahead){0};
    size_t from = size * first / count + later, end = size * (first + here) / count + later;
    if (end > size) end = size;
    if (from > end) from = end;
    int bytes = (end - from) * sizeof(float);
    return (Ahead){(const char*)(array + from), (const char*)(array + end),
                   divide_up(divide_up(bytes, 64), pieces) * 64};
}

INLINE void fetch_next(Ahead* a, const int to_write) {
    const char* end = a->end - a->at < a->piece ? a->end : a->at + a->piece;
    for (; a->at < end; a->at += 64) __builtin_prefetch(a->at, to_write, 2);
}
