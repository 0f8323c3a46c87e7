// Winograd convolution: forward, and the gradient with respect to the input. winograd.h explains
// it.
//
// A group is TILE squares: they are the pixels of a tile (tile.h). Their pixels are transformed,
// then each panel of outputs is computed place by place, transformed back, and finished: bias, ReLU
// and sums for batch normalisation, while it is in the cache. Meanwhile the pixels of the next
// group are fetched.
//
// Cin must be a multiple of LANES, Cout of PANEL. One thread computes each square, so results do
// not depend on the number of threads.
#include "winograd.h"

int winograd_tile(void) { return TILE; }
int winograd_scratch_floats(void) { return SCRATCH_FLOATS; }

// -------------------------------------------------------------------------------------------------
// The squares of x

float* winograd_scratch(void) {
    // No local variable of a kernel, because stacks of threads may be small.
    static _Thread_local float scratch[SCRATCH_FLOATS] __attribute__((aligned(64)));
    return scratch;
}

// B x B' of `here` squares from `first` on, for all channels and phases: to[phase][block of LANES
// channels][place][square][channel].
static void transform_squares(
    const int m, const Squares* s, const Source* source, int first, int here, float* to) {
    int phases = s->x_step * s->x_step, blocks = s->Cin / LANES, in_row = squares_in_row(m, s);
    for (int done = 0, length; done < here; done += length) {
        Corner at = corner_of(m, s, first + done);
        length = smaller(smaller(here - done, in_row - at.column / m), MOST_RUN);
        for (int k = 0; k < phases; ++k) {
            Phase q = phase_of(phases, k);
            Run run = run_of(s, at, q, length);
            for (int block = 0; block < blocks; ++block) {
                float* squares = to + (size_t)(k * blocks + block) * (m + 2) * (m + 2) * PLACE;
                transform_run(m, q, source, &run, block * LANES, squares + done * LANES);
            }
        }
    }
}

// -------------------------------------------------------------------------------------------------
// The squares of y

// to = A' products, one line of them: multiply_transposed, but it loads a product when it needs it,
// which saves registers.
INLINE void gather_line(
    const Matrix* A, int places, const float* products, Vector to[MOST_OUTPUTS]) {
    UNROLL
    for (int i = 0; i < 2 * A->pairs; i += 2) {
        Vector p = load(products + i * TILE * PANEL), q = load(products + (i + 1) * TILE * PANEL);
        Vector sum = p + q, difference = p - q;
        UNROLL
        for (int j = 0; j < A->columns; ++j) {
            Vector term = A->at[i][j] * (j % 2 ? difference : sum);
            to[j] = i ? to[j] + term : term;
        }
    }
    UNROLL
    for (int i = 2 * A->pairs; i < places; ++i) {
        UNROLL
        for (int j = 0; j < A->columns; ++j) {
            if (A->at[i][j] != 0) to[j] += A->at[i][j] * load(products + i * TILE * PANEL);
        }
    }
}

// y = A' products A of one square, from the first `rows` rows and `columns` columns of places. Rows
// of places are taken in pairs, so that few vectors are alive at a time.
INLINE void gather_square(
    const int m, const int rows, const int columns, const float* products, Vector y[]) {
    const Matrix* A = output_matrix(m);
    const int row_of_places = (m + 2) * TILE * PANEL;
    UNROLL
    for (int i = 0; i < 2 * A->pairs; i += 2) {
        Vector p[MOST_OUTPUTS], q[MOST_OUTPUTS];
        gather_line(A, columns, products + i * row_of_places, p);
        gather_line(A, columns, products + (i + 1) * row_of_places, q);
        UNROLL
        for (int j = 0; j < m; ++j) {
            Vector sum = p[j] + q[j], difference = p[j] - q[j];
            UNROLL
            for (int k = 0; k < m; ++k) {
                Vector term = A->at[i][k] * (k % 2 ? difference : sum);
                y[k * m + j] = i ? y[k * m + j] + term : term;
            }
        }
    }
    UNROLL
    for (int i = 2 * A->pairs; i < rows; ++i) {
        Vector line[MOST_OUTPUTS];
        gather_line(A, columns, products + i * row_of_places, line);
        UNROLL
        for (int k = 0; k < m; ++k) {
            if (A->at[i][k] == 0) continue;
            UNROLL
            for (int j = 0; j < m; ++j) y[k * m + j] += A->at[i][k] * line[j];
        }
    }
}

typedef void (*GatherSquare)(const float* products, Vector y[]);
#define GATHER_SQUARE(m, short_rows, short_columns) \
    static void gather_##m##short_rows##short_columns(const float* products, Vector y[]) { \
        Vector outputs[MOST_OUTPUTS * MOST_OUTPUTS]; \
        gather_square(m, m + 2 - short_rows, m + 2 - short_columns, products, outputs); \
        UNROLL \
        for (int i = 0; i < m * m; ++i) y[i] = outputs[i]; \
    }
#define GATHER_SQUARES(m) \
    GATHER_SQUARE(m, 0, 0) GATHER_SQUARE(m, 0, 1) GATHER_SQUARE(m, 1, 0) GATHER_SQUARE(m, 1, 1)
GATHER_SQUARES(2) GATHER_SQUARES(4) GATHER_SQUARE(5, 0, 0)
static const GatherSquare GATHER_SQUARE[][2][2] = {
    [2] = {{gather_200, gather_201}, {gather_210, gather_211}},
    [4] = {{gather_400, gather_401}, {gather_410, gather_411}},
    [5] = {{gather_500}},
};

// What happens to outputs before they are stored, and the sums of them; pointers may be null.
//
// moments (groups, 3, Cout): of each group of squares and each channel, the count of outputs, their
// mean, and the sum of their squared deviations from it.
//
// In the gradient with respect to the input, y is dx with respect to the output of a normalisation
// and a dropout: of (below - mean), normalised, times `keep` where the mask is true, else 0. sums
// (groups, 2, Cout): of dx, after it has passed through the dropout, and of dx * (below - mean).
typedef struct {
    const float* bias;
    bool relu;
    double* moments;
    const float *below, *mean;  // like y, (Cout,)
    const bool* mask;           // like y
    float keep;
    double* sums;
} Finish;

// Sums of a vector of channels over a group of squares. Columns of outputs are added to them
// alternately: an addition has a latency of about 4 cycles.
enum { TURNS = 2 };
typedef struct {
    Vector center, first[TURNS], second[TURNS];
    int count;
} GroupSums;

// Stores rows x columns outputs: LANES channels from n on. `at`: the first one's place in y.
INLINE void put_outputs(
    const int m, const Finish* f, const bool relu_follows, const bool moments, const bool drops,
    const bool pairs, int n, const Vector* outputs, const int rows, const int columns, size_t at,
    size_t row_step, size_t step, float* y, GroupSums* sums) {
    Vector start = f->bias ? load(f->bias + n) : (Vector){0};
    Vector mean = pairs ? load(f->mean + n) : (Vector){0};
    if (moments && sums->count == 0) {
        sums->center = outputs[0] + start;
        if (relu_follows) sums->center = relu(sums->center);
    }
    sums->count += rows * columns;
    Vector first[TURNS] = {sums->first[0], sums->first[1]};
    Vector second[TURNS] = {sums->second[0], sums->second[1]};
    for (int i = 0; i < rows; ++i, outputs += m, at += row_step) {
        for (int j = 0; j < columns; ++j) {
            size_t to = at + j * step;
            Vector v = outputs[j] + start;
            if (relu_follows) v = relu(v);
            if (drops) v = drop(v, f->keep, f->mask + to, LANES);
            store(y + to, v);
            if (moments) {
                Vector from_center = v - sums->center;
                first[j % TURNS] += from_center;
                second[j % TURNS] += from_center * from_center;
            }
            if (pairs) {
                first[j % TURNS] += v;
                second[j % TURNS] += v * (load(f->below + to) - mean);
            }
        }
    }
    for (int k = 0; k < TURNS; ++k) sums->first[k] = first[k], sums->second[k] = second[k];
}

// Stores the outputs of a square that are inside y: LANES channels from n on.
INLINE void put_square(
    const int m, const Squares* s, const Finish* f, Corner at, Phase q, int n,
    const Vector outputs[], float* y, GroupSums* sums) {
    int row = (q.row ? s->row_1 : s->row_0) + at.row * s->y_step;
    int column = (q.column ? s->column_1 : s->column_0) + at.column * s->y_step;
    Range rows = inside(row, s->y_step, smaller(m, s->rows - at.row), s->Ho);
    Range columns = inside(column, s->y_step, smaller(m, s->columns - at.column), s->Wo);
    int height = rows.end - rows.first, width = columns.end - columns.first;
    if (height <= 0 || width <= 0) return;
    row += rows.first * s->y_step, column += columns.first * s->y_step;
    size_t to = (((size_t)at.image * s->Ho + row) * s->Wo + column) * s->Cout + n;
    size_t step = (size_t)s->y_step * s->Cout, row_step = step * s->Wo;
    outputs += rows.first * m + columns.first;
#define PUT(relu_follows, moments, drops, pairs) \
    if (height == m && width == m) { \
        put_outputs( \
            m, f, relu_follows, moments, drops, pairs, n, outputs, m, m, to, row_step, step, y, \
            sums); \
    } else { \
        put_outputs( \
            m, f, relu_follows, moments, drops, pairs, n, outputs, height, width, to, row_step, \
            step, y, sums); \
    }
    if (f->sums && f->mask) {
        PUT(false, false, true, true)
    } else if (f->sums) {
        PUT(false, false, false, true)
    } else if (f->moments && f->relu) {
        PUT(true, true, false, false)
    } else if (f->moments) {
        PUT(false, true, false, false)
    } else if (f->relu) {
        PUT(true, false, false, false)
    } else {
        PUT(false, false, false, false)
    }
}

// -------------------------------------------------------------------------------------------------

INLINE void finish_group(
    const int m, const Squares* s, const Finish* f, int group, Phase q, int n, float* y,
    const float* products, GroupSums sums[PANEL / LANES]) {
    int first = group * TILE, here = smaller(TILE, s->B * squares_in_image(m, s) - first);
    for (int i = 0; i < here; ++i) {
        Corner at = corner_of(m, s, first + i);
        for (int k = 0; k < PANEL / LANES; ++k) {
            Vector outputs[MOST_OUTPUTS * MOST_OUTPUTS];
            GATHER_SQUARE[m][q.row][q.column](products + i * PANEL + k * LANES, outputs);
            put_square(m, s, f, at, q, n + k * LANES, outputs, y, sums + k);
        }
    }
}

// Writes a group's sums of a vector of channels.
static void store_sums(const Squares* s, const Finish* f, int group, int n, const GroupSums* sums) {
    double* moments = f->moments ? f->moments + (size_t)group * 3 * s->Cout + n : NULL;
    double* pair = f->sums ? f->sums + (size_t)group * 2 * s->Cout + n : NULL;
    for (int v = 0; v < LANES; ++v) {
        double first = (double)sums->first[0][v] + sums->first[1][v];
        double second = (double)sums->second[0][v] + sums->second[1][v];
        if (moments) {
            double from_center = first / sums->count;
            moments[v] = sums->count;
            moments[s->Cout + v] = sums->center[v] + from_center;
            moments[2 * s->Cout + v] = second - from_center * first;
        }
        if (pair) pair[v] = first, pair[s->Cout + v] = second;
    }
}

// to (here, PANEL) = the products of `here` squares at a place: sums over `blocks` blocks of LANES
// channels. Long sums are made of several, which loses less precision. t: a tile whose strides are
// set; for so few products, setting the others each time would be slow.
INLINE void multiply_place(
    const int m, Tile* t, const float* x, const float* w, int blocks, int here, float* to) {
    const int most = (m == 5 ? 16 : 64) / LANES;  // squares of 5 round more
    float more[TILE * PANEL];
    for (int block = 0; block < blocks; block += most) {
        t->x = x + block * t->x_row;
        t->rows = smaller(most, blocks - block);
        t->w = w + block * LANES * PANEL;
        t->y = block ? more : to;
        COMPUTE_TILE[0][here - 1](t);
        for (int i = 0; block && i < here * PANEL; i += LANES) {
            store(to + i, load(to + i) + load(more + i));
        }
    }
}

// What is fetched while a group is multiplied: `pieces` pieces of the next group's pixels, and of
// what this group writes. The first rows of these pixels are there already: the squares above read
// them.
typedef struct {
    Ahead x, y, below;
} Fetched;

INLINE Fetched fetched_in(
    const Squares* s, const Source* source, const Finish* f, const float* y, int first, int here,
    int count, int pieces) {
    size_t x_row = (size_t)s->W * s->Cin, x_size = s->B * s->H * x_row;
    size_t y_size = (size_t)s->B * s->Ho * s->Wo * s->Cout;
    return (Fetched){
        ahead(source->x, x_size, first + TILE, here, count, 3 * x_row, pieces),
        ahead(y, y_size, first, here, count, 0, pieces),
        ahead(f->below, y_size, first, here, count, 0, pieces),
    };
}

// The outputs of a group in a panel of channels, of all phases of y.
INLINE void correlate_panel(
    const int m, const Squares* s, const float* squares, const float* w, const Finish* f, int group,
    int here, int panel, Fetched* fetched, float* products, float* y) {
    const int n = m + 2, places = n * n;
    int phases = s->x_step * s->x_step, grids = s->y_step * s->y_step, blocks = s->Cin / LANES;
    size_t w_phase = (size_t)s->Cin * PANEL, w_panel = places * phases * w_phase;
    static const float ZEROS[PANEL] = {0};
    Tile tile = {
        .x_pixel = LANES,
        .x_row = (size_t)places * PLACE,
        .length = LANES,
        .w_row = LANES * PANEL,
        .start = ZEROS,
        .y_pixel = PANEL,
    };
    GroupSums sums[PANEL / LANES];
    memset(sums, 0, sizeof sums);
    for (int k = 0; k < grids; ++k) {
        Phase q = phase_of(grids, k);
        const float* w_grid = w + ((size_t)k * (s->Cout / PANEL) + panel) * w_panel;
        for (int i = 0; i < n - q.row; ++i) {
            for (int j = 0; j < n - q.column; ++j) {
                int place = i * n + j;
                Phases used = phases_at(phases, i == n - 1, j == n - 1);
                size_t block = (size_t)used.first * blocks * places + place;
                const float* w_place = w_grid + ((size_t)place * phases + used.first) * w_phase;
                fetch_next(&fetched->x, 0);
                fetch_next(&fetched->y, 1);
                fetch_next(&fetched->below, 0);
                multiply_place(
                    m, &tile, squares + block * PLACE, w_place, (used.end - used.first) * blocks,
                    here, products + place * TILE * PANEL);
            }
        }
        finish_group(m, s, f, group, q, panel * PANEL, y, products, sums);
    }
    for (int k = 0; k < PANEL / LANES; ++k) {
        store_sums(s, f, group, panel * PANEL + k * LANES, sums + k);
    }
}

INLINE void correlate_group(
    const int m, const Squares* s, const Source* source, const float* w, const Finish* f, int group,
    float* y) {
    const int places = (m + 2) * (m + 2);
    int count = s->B * squares_in_image(m, s), first = group * TILE;
    int here = smaller(TILE, count - first), panels = s->Cout / PANEL;
    int pieces = panels * s->y_step * s->y_step * places;
    float* squares = winograd_scratch();
    float* products = squares + (size_t)places * s->x_step * s->x_step * s->Cin * TILE;
    transform_squares(m, s, source, first, here, squares);
    Fetched fetched = fetched_in(s, source, f, y, first, here, count, pieces);
    for (int panel = 0; panel < panels; ++panel) {
        correlate_panel(m, s, squares, w, f, group, here, panel, &fetched, products, y);
    }
}

// y = relu(x * w + bias), with relu and bias if given; w is winograd_kernel's result, for squares
// of m x m. `source_...`: how x is read, see Source; the other pointers: see Finish.
// Twin: ops_numpy.conv2d
KERNEL winograd_correlate(
    const float PER_NET x, int m, struct Squares s, const float PER_NET w,
    MAY_BE_NULL const float PER_NET source_mean, MAY_BE_NULL const float PER_NET source_scale,
    MAY_BE_NULL const float PER_NET source_shift, MAY_BE_NULL const bool PER_NET source_mask,
    float source_keep, MAY_BE_NULL const float PER_NET bias, bool relu,
    MAY_BE_NULL double PER_NET moments, MAY_BE_NULL const float PER_NET below,
    MAY_BE_NULL const float PER_NET below_mean, MAY_BE_NULL const bool PER_NET below_mask,
    float below_keep, MAY_BE_NULL double PER_NET sums, float PER_NET y) {
    Source source = {x, source_mean, source_scale, source_shift, source_mask, source_keep,
                     s.H, s.W, s.Cin};
    Finish f = {bias, relu, moments, below, below_mean, below_mask, below_keep, sums};
    int groups = divide_up(s.B * squares_in_image(m, &s), TILE);
#pragma omp parallel for schedule(static)
    for (int group = 0; group < groups; ++group) {
        if (m == 2) correlate_group(2, &s, &source, w, &f, group, y);
        else if (m == 4) correlate_group(4, &s, &source, w, &f, group, y);
        else correlate_group(5, &s, &source, w, &f, group, y);
    }
}
