// Winograd convolution: the transforms of images. winograd.h explains them.
//
// Neighbouring squares share the transformed columns of their pixels. Pixels are normalised while
// they are loaded.
#include "winograd.h"

enum {
    MOST_COLUMNS = MOST_OUTPUTS * MOST_RUN + 2,
};

// lines[j] = M x for the columns of pixels first <= j < end, LANES channels from c on: the first
// `places` places. all: every row of pixels is inside the image; the others are 0.
INLINE void transform_columns(
    const Matrix* M, const int pixels, const int places, const Source* s,
    const bool all, const bool normalized, const bool drops, const Run* run, Range rows,
    Range columns, int c, Vector lines[][MOST_PIXELS]) {
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
INLINE void transform_one_run(
    const Matrix* M, const int m, const int short_rows, const int short_columns,
    const Source* s, const Run* run, int c, float* to, const size_t place, const size_t square) {
    const int size = M->columns, places = M->rows;
    Vector lines[MOST_COLUMNS][MOST_PIXELS];  // by column, then place
    int count = m * (run->squares - 1) + size - short_columns;
    Range rows = inside(run->row, run->step, size - short_rows, s->H);
    Range columns = inside(run->column, run->step, count, s->W);
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

// -------------------------------------------------------------------------------------------------
// One function for each m, and each phase of x, so that the compiler knows all sizes

typedef void (*Transform)(const Source* s, const Run* run, int c, float* to);

#define INPUT(m, short_rows, short_columns) \
    static void input_##m##short_rows##short_columns( \
        const Source* s, const Run* run, int c, float* to) { \
        transform_one_run( \
            input_matrix(m), m, short_rows, short_columns, s, run, c, to, PLACE, LANES); \
    }
#define INPUTS(m) INPUT(m, 0, 0) INPUT(m, 0, 1) INPUT(m, 1, 0) INPUT(m, 1, 1)
INPUTS(2) INPUTS(4) INPUT(5, 0, 0)
static const Transform INPUT[][2][2] = {
    [2] = {{input_200, input_201}, {input_210, input_211}},
    [4] = {{input_400, input_401}, {input_410, input_411}},
    [5] = {{input_500}},
};

#define OUTPUT(m) \
    static void output_##m(const Source* s, const Run* run, int c, float* to) { \
        transform_one_run( \
            output_matrix(m), m, 0, 0, s, run, c, to, TILE * PANEL, PANEL); \
    }
OUTPUT(2) OUTPUT(4) OUTPUT(5)
static const Transform OUTPUT[] = {[2] = output_2, [4] = output_4, [5] = output_5};

void transform_run(int m, Phase q, const Source* x, const Run* run, int c, float* to) {
    INPUT[m][q.row][q.column](x, run, c, to);
}

void spread_run(int m, const Source* dz, const Run* run, int n, float* to) {
    OUTPUT[m](dz, run, n, to);
}
