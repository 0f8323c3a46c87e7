// Winograd convolution: what all passes share.
//
// A square of m x m outputs, m = 2, 4 or 5, depends on n x n pixels, n = m + 2. Pixels and kernel
// are transformed into n x n places (winograd_matrices.h). At each place they are multiplied, as
// matrices over channels, and the products are transformed back.
//
// Strides. With stride 2, a kernel of up to 5 x 5 taps is a sum of four kernels of up to 3 x 3 taps
// with stride 1: the even and odd rows and columns of taps, over the even and odd rows and columns
// of the image. Each such part is a phase. The sum over phases is made at the places, before the
// transform back. A phase of odd rows has at most two rows of taps. The third is 0, and so are its
// products at infinity, the last row of places: they are left out. Columns likewise. For m = 4, 121
// multiplications make 16 outputs, in place of 400. m = 5 is for stride 1 only: the sum of four
// phases rounds more.
//
// The gradient with respect to the input has one phase of dz, and four of dx.
#pragma once

#include "tile.h"
#include "winograd_matrices.h"

enum {
    MOST_PLACES = MOST_PIXELS * MOST_PIXELS,
    MOST_RUN = 6,  // squares beside each other that are transformed together
    PLACE = TILE * LANES,  // floats of a place, in transformed squares: a block of LANES channels
    SCRATCH_FLOATS = 1 << 18,  // 1 MiB, which should stay in the L2 cache
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

// Where a square of outputs is: its image, and its first row and column.
typedef struct {
    int image, row, column;
} Corner;

INLINE Corner corner_of(const int m, const Squares* s, int square) {
    int in_image = square % squares_in_image(m, s), in_row = squares_in_row(m, s);
    return (Corner){square / squares_in_image(m, s), in_image / in_row * m, in_image % in_row * m};
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

// How an image is read: as it is, or normalised: (x - mean) * scale + shift for each channel. An
// image that is normalised may have a mask, too: then the result is multiplied by `keep` where the
// mask is true, else it is 0.
typedef struct {
    const float *x, *mean, *scale, *shift;  // mean .. shift (C,), or null
    const bool* mask;                       // like x, or null
    float keep;
    int H, W, C;
} Source;

// Neighbouring squares in a row of an image: their pixels are rows row, row + step, ... and columns
// column, column + step, ... of it.
typedef struct {
    int image, row, column, step, squares;
} Run;

// B x B' of the squares of a run, in a phase of x, LANES channels from c on. Place p of square i is
// written to to[p * PLACE + i * LANES].
void transform_run(int m, Phase q, const Source* x, const Run* run, int c, float* to);

// A dz A' of the squares of a run, LANES channels from n on. Place p of square i is written to
// to[p * TILE * PANEL + i * PANEL].
void spread_run(int m, const Source* dz, const Run* run, int n, float* to);

// The pixels of a phase of x under the squares from `at` on.
INLINE Run run_of(const Squares* s, Corner at, Phase q, int squares) {
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

// A part of an array that is to be fetched in `pieces` pieces: the share of squares first ..
// first + here of `count`, moved on by `later` floats.
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

INLINE void fetch_next(Ahead* a, const bool to_write) {
    if (!a->at) return;
    const char* end = a->end - a->at < a->piece ? a->end : a->at + a->piece;
    for (; a->at < end; a->at += 64) {
        if (to_write) __builtin_prefetch(a->at, 1, 2);
        else __builtin_prefetch(a->at, 0, 2);
    }
}
