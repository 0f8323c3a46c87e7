// Winograd convolution: the transform of the kernel. winograd.h explains it.
#include "winograd.h"

// G w G' of one phase of a kernel (.., columns, Cin, Cout), or (.., columns, Cout, Cin) if
// `transposed`. Tap (i, j), i < rows, j < taps, is the kernel's tap (first_row + i * row_step,
// first_column + j * column_step); other taps of 3 x 3 are 0. Element (c, n) of place p is written
// to transformed[first + n / PANEL * panel + p * place + c * PANEL + n % PANEL].
struct Taps {
    int columns, Cin, Cout, first_row, row_step, rows, first_column, column_step, taps;
    int first, panel, place;
};
typedef struct Taps Taps;

// to[place] = LANES rows. They are made first and copied together: steps between places are
// multiples of large powers of two, which fall on few lines of the cache.
INLINE void transform_taps(
    const int m, const Taps* t, const float* kernel, bool transposed, int c, int n,
    float to[][LANES][LANES]) {
    const Matrix* G = kernel_matrix(m);
    const int size = G->rows;
    Vector w[3][3][LANES];  // by column, then row
    memset(w, 0, sizeof w);
    for (int i = 0; i < t->rows; ++i) {
        for (int j = 0; j < t->taps; ++j) {
            size_t row = t->first_row + i * t->row_step;
            size_t tap = row * t->columns + t->first_column + j * t->column_step;
            const float* from = kernel + tap * t->Cin * t->Cout;
            for (int k = 0; k < LANES; ++k) {
                if (!transposed) {
                    w[j][i][k] = load(from + (size_t)(c + k) * t->Cout + n);
                    continue;
                }
                Vector values = load(from + (size_t)(n + k) * t->Cin + c);
                UNROLL
                for (int v = 0; v < LANES; ++v) w[j][i][v][k] = values[v];
            }
        }
    }
    for (int k = 0; k < LANES; ++k) {
        Vector lines[3][MOST_PIXELS];
        UNROLL
        for (int j = 0; j < 3; ++j) {
            Vector column[3] = {w[j][0][k], w[j][1][k], w[j][2][k]};
            multiply(G, size, column, lines[j]);
        }
        UNROLL
        for (int i = 0; i < size; ++i) {
            Vector row[3] = {lines[0][i], lines[1][i], lines[2][i]}, done[MOST_PIXELS];
            multiply(G, size, row, done);
            UNROLL
            for (int j = 0; j < size; ++j) store(to[i * size + j][k], done[j]);
        }
    }
}

#define TRANSFORM_TAPS(m) \
    static void transform_taps_##m( \
        const Taps* t, const float* kernel, bool transposed, int c, int n, \
        float to[][LANES][LANES]) { \
        transform_taps(m, t, kernel, transposed, c, n, to); \
    }
TRANSFORM_TAPS(2) TRANSFORM_TAPS(4) TRANSFORM_TAPS(5)

// Twin: ops_numpy.conv2d
KERNEL winograd_kernel(
    const float PER_NET kernel, int m, bool transposed, struct Taps t, float PER_NET transformed) {
    int places = (m + 2) * (m + 2), blocks = t.Cout / LANES, units = t.Cin / LANES * blocks;
#pragma omp parallel for if (t.Cin * t.Cout >= WORTH_SHARING / 16)
    for (int unit = 0; unit < units; ++unit) {
        float done[MOST_PLACES][LANES][LANES];
        int c = unit / blocks * LANES, n = unit % blocks * LANES;
        (m == 2 ? transform_taps_2 : m == 4 ? transform_taps_4 : transform_taps_5)(
            &t, kernel, transposed, c, n, done);
        float* to = transformed + t.first + (size_t)n / PANEL * t.panel + c * PANEL + n % PANEL;
        for (int place = 0; place < places; ++place, to += t.place) {
            for (int k = 0; k < LANES; ++k) store(to + k * PANEL, load(done[place][k]));
        }
    }
}
