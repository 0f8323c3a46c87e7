// Winograd convolution: the geometry, and the transforms of images, which all passes share.
//
// A square of m x m outputs, m = 2, 4 or 5, depends on n x n pixels, n = m + 2. Pixels and kernel
// are transformed into n x n places (winograd_matrices.h). At each place they are multiplied, as
// matrices over channels, and the products are transformed back.
//
// Strides. With stride 2, a kernel of up to 5 x 5 taps is a sum of four kernels of up to 3 x 3 taps
// with stride 1: the even and odd rows and columns of taps, over the even and odd rows and columns
// of the image. Each such part is a phase. The sum over phases is made at the places, before the
// transform back. A phase of odd taps has two of them, the third is 0, and so are its products at
// infinity, the last row or column of places: they are left out. For m = 4, 121 multiplications
// make 16 outputs, in place of 400.
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
};

// SCRATCH_FLOATS floats of working memory of the calling thread.
float* winograd_scratch(void);

// y (B, Ho, Wo, Cout) from x (B, H, W, Cin). The outputs of a phase of y are rows x columns. Output
// (r, c) depends on the pixels of a phase of x from (r, c) on. Pixel (u, v) of phase (p, q) of x is
// row u * x_step + p - top and column v * x_step + q - left. Output (r, c) of phase (p, q) of y is
// row r * y_step + row_p, column c * y_step + column_q. What is outside x is 0, what is outside y
// is left out. In the gradient with respect to the input, Cin and Cout are the layer's Cout and
// Cin.
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

// How an image is read: as it is, or normalised: (x - mean) * scale + shift for each channel. With
// a mask, the result is multiplied by `keep` where the mask is true, else it is 0.
typedef struct {
    const float *x, *mean, *scale, *shift;  // mean .. shift (C,), or null
    const bool* mask;                       // like x, or null
    float keep;
    int H, W, C;
} Source;

// A line of an image: where reading starts, and the positions first <= i < end that are inside.
typedef struct {
    int from, first, end;
} Line;

INLINE Line line_in(int from, int step, int count, int length) {
    int first = from >= 0 ? 0 : divide_up(-from, step);
    int end = from >= length ? 0 : smaller(count, divide_up(length - from, step));
    return (Line){from, smaller(first, count), larger(end, 0)};
}

// Neighbouring squares in a row of an image: their pixels are rows row, row + step, ... and columns
// column, column + step, ... of it.
typedef struct {
    int image, row, column, step, squares;
} Run;

// lines[j] = M x for the columns of pixels first <= j < end, LANES channels from c on: the first
// `places` places. all: every row of pixels is inside the image; the others are 0.
INLINE void transform_columns(
    const Matrix* M, const int pixels, const int places, const Source* s,
    const bool all, const bool normalized, const bool drops, const Run* run, Line rows,
    Line columns, int c, Vector lines[][MOST_PIXELS]) {
    Vector mean = {0}, scale = {0}, shift = {0};
    if (normalized) {
        mean = load(s->mean + c), scale = load(s->scale + c), shift = load(s->shift + c);
    }
    ptrdiff_t row_step = (ptrdiff_t)run->step * s->W * s->C, step = (ptrdiff_t)run->step * s->C;
    ptrdiff_t at = (((ptrdiff_t)run->image * s->H + run->row) * s->W + run->column) * s->C + c;
    at += columns.first * step;
    for (int j = columns.first; j < columns.end; ++j, at += step) {
        Vector column[MOST_PIXELS];
        UNROLL
        for (int i = 0; i < pixels; ++i) {
            column[i] = (Vector){0};
            if (!all && (i < rows.first || i >= rows.end)) continue;
            column[i] = load(s->x + at + i * row_step);
            if (normalized) column[i] = (column[i] - mean) * scale + shift;
            if (drops) column[i] = drop(column[i], s->keep, s->mask + at + i * row_step, LANES);
        }
        multiply(M, places, column, lines[j]);
    }
}

// M x M' for each square of a run, LANES channels from c on. A square has as many pixels as M has
// columns, and starts m columns after the one before. Where `short_rows` (`short_columns`) is 1,
// the last row (column) of pixels and places is left out. Place p of square i is written to
// to[p * place + i * square].
INLINE void transform_run(
    const Matrix* M, const int m, const int short_rows, const int short_columns,
    const Source* s, const Run* run, int c, float* to, const size_t place, const size_t square) {
    const int size = M->columns, places = M->rows;
    Vector lines[MOST_COLUMNS][MOST_PIXELS];  // by column, then place
    int count = m * (run->squares - 1) + size - short_columns;
    Line rows = line_in(run->row, run->step, size - short_rows, s->H);
    Line columns = line_in(run->column, run->step, count, s->W);
    for (int j = 0; j < count; ++j) {
        if (j < columns.first || j >= columns.end) memset(lines[j], 0, sizeof lines[j]);
    }
#define COLUMNS(all, normalized, drops) \
    transform_columns( \
        M, size - short_rows, places - short_rows, s, all, normalized, drops, run, rows, \
        columns, c, lines)
    if (rows.first == 0 && rows.end == size - short_rows) {
        if (s->mask) COLUMNS(true, true, true);
        else if (s->mean) COLUMNS(true, true, false);
        else COLUMNS(true, false, false);
    } else {
        if (s->mask) COLUMNS(false, true, true);
        else if (s->mean) COLUMNS(false, true, false);
        else COLUMNS(false, false, false);
    }
    for (int k = 0; k < run->squares; ++k, to += square) {
        UNROLL
        for (int i = 0; i < places - short_rows; ++i) {
            Vector row[MOST_PIXELS], done[MOST_PIXELS];
            UNROLL
            for (int j = 0; j < size - short_columns; ++j) row[j] = lines[m * k + j][i];
            multiply(M, places - short_columns, row, done);
            UNROLL
            for (int j = 0; j < places - short_columns; ++j) {
                store(to + (i * places + j) * place, done[j]);
            }
        }
    }
}

// B x B' of a run of squares of a phase; places and squares lie as in PLACE.
typedef void (*TransformRun)(const Source* s, const Run* run, int c, float* to);
#define TRANSFORM_RUN(m, short_rows, short_columns) \
    static void run_##m##short_rows##short_columns( \
        const Source* s, const Run* run, int c, float* to) { \
        transform_run( \
            input_matrix(m), m, short_rows, short_columns, s, run, c, to, PLACE, LANES); \
    }
#define TRANSFORM_RUNS(m) \
    TRANSFORM_RUN(m, 0, 0) TRANSFORM_RUN(m, 0, 1) TRANSFORM_RUN(m, 1, 0) TRANSFORM_RUN(m, 1, 1)
TRANSFORM_RUNS(2) TRANSFORM_RUNS(4) TRANSFORM_RUNS(5)
static const TransformRun TRANSFORM_RUN[][2][2] = {
    [2] = {{run_200, run_201}, {run_210, run_211}},
    [4] = {{run_400, run_401}, {run_410, run_411}},
    [5] = {{run_500, run_501}, {run_510, run_511}},
};

// The pixels of a phase of x under the squares from `at` on.
INLINE Run run_of(const Squares* s, Place at, Phase q, int squares) {
    int row = at.row * s->x_step + q.row - s->top;
    int column = at.column * s->x_step + q.column - s->left;
    return (Run){at.image, row, column, s->x_step, squares};
}

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
