// Winograd convolution: the gradient with respect to the kernel. winograd.h explains the squares.
//
// It is the transpose of the forward pass:
//
//     dw = G' [ sum over squares of (B x B') (.) (A dy A') ] G
//
// At each place, transformed squares of x and of dy are multiplied as matrices over squares. A
// group of squares is summed in registers, then added to the sums of its part: two levels of sums
// lose less precision than one. Parts of the images have sums of their own, which are added in
// order at the end. So each element is computed in the same order, whatever the number of threads.
//
// Cin must be a multiple of LANES, Cout of PANEL.
#include "winograd.h"

#ifdef _OPENMP
#include <omp.h>
#endif

enum {
    VALUES = LANES >= 16 ? 8 : 4,  // elements of x whose sums are in registers; they divide LANES
    CHUNK = TILE,                  // squares of a group that lie together in memory
    UNIT = VALUES * PANEL,
};

// With AVX2, GCC would load the vector again for each multiplication, and a core cannot load as fast
// as it multiplies.
#if defined(__AVX__) && !defined(__AVX512F__)
#define IN_REGISTER(v) __asm__("" : "+x"(v))
#else
#define IN_REGISTER(v) (void)0
#endif

static int most_threads(void) {
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

// Sums of products over `count` squares of x and dz, at one place.
typedef struct {
    const float *x, *dz;
    size_t x_chunk, dz_chunk;  // floats from one chunk to the next
    int count;
} Pair;

// sums (VALUES, PANEL) = the sums of products of VALUES channels of x and a panel of dz; they are
// added to what is there unless is_first.
INLINE void sum_pair(const Pair* p, const bool is_first, float* sums) {
    Vector sum[VALUES][2] = {{{0}}};
    const float *x = p->x, *dz = p->dz;
    for (int left = p->count; left > 0; left -= CHUNK, x += p->x_chunk, dz += p->dz_chunk) {
        for (int q = 0; q < smaller(left, CHUNK); ++q) {
            Vector dz0 = load(dz + q * PANEL), dz1 = load(dz + q * PANEL + LANES);
            IN_REGISTER(dz0);
            IN_REGISTER(dz1);
            UNROLL
            for (int k = 0; k < VALUES; ++k) {
                sum[k][0] += x[q * LANES + k] * dz0;
                sum[k][1] += x[q * LANES + k] * dz1;
            }
        }
    }
    UNROLL
    for (int k = 0; k < VALUES; ++k) {
        float* to = sums + k * PANEL;
        store(to, is_first ? sum[k][0] : load(to) + sum[k][0]);
        store(to + LANES, is_first ? sum[k][1] : load(to + LANES) + sum[k][1]);
    }
}
static void first_sums(const Pair* p, float* sums) { sum_pair(p, true, sums); }
static void more_sums(const Pair* p, float* sums) { sum_pair(p, false, sums); }

// The number of squares in a run from `at` on: neighbours in a row of an image, and in one chunk.
INLINE int run_length(const int m, const Squares* s, Corner at, int done, int here) {
    int most = smaller(smaller(here - done, CHUNK - done % CHUNK), MOST_RUN);
    return smaller(most, squares_in_row(m, s) - at.column / m);
}

// The sum of dz under a run of squares, LANES channels from n on.
static Vector sum_run(const int m, const Source* dz, const Run* run, int n) {
    int rows = smaller(m, dz->H - run->row);
    int columns = smaller(m * run->squares, dz->W - run->column);
    Vector sum[4] = {{0}};  // in turns: an addition has a latency
    for (int i = 0; i < rows; ++i) {
        size_t row = ((size_t)run->image * dz->H + run->row + i) * dz->W + run->column;
        for (int j = 0; j < columns; ++j) sum[j % 4] += load(dz->x + (row + j) * dz->C + n);
    }
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// to[chunk][panel][place][square][channel] = A dz A' of `here` squares. The sums of dz are added to
// bias (Cout,), unless that is null.
static void spread_squares(
    const int m, const Squares* s, const Source* dz, int first, int here, float* to, float* bias) {
    size_t panel = (size_t)(m + 2) * (m + 2) * CHUNK * PANEL, chunk = s->Cout / PANEL * panel;
    for (int n = 0; n < s->Cout; n += LANES) {
        Vector sum = {0};
        for (int done = 0, length; done < here; done += length) {
            Corner at = corner_of(m, s, first + done);
            length = run_length(m, s, at, done, here);
            Run run = {at.image, at.row, at.column, 1, length};
            float* square = to + done / CHUNK * chunk + n / PANEL * panel + n % PANEL;
            spread_run(m, dz, &run, n, square + done % CHUNK * PANEL);
            if (bias) sum += sum_run(m, dz, &run, n);
        }
        if (bias) store(bias + n, load(bias + n) + sum);
    }
}

// to[chunk][place][square][channel] = B x B' of `here` squares, for LANES channels from c on of one
// phase.
static void transform_block(
    const int m, const Squares* s, const Source* x, Phase q, int c, int first, int here,
    float* to) {
    size_t chunk = (size_t)(m + 2) * (m + 2) * PLACE;
    for (int done = 0, length; done < here; done += length) {
        Corner at = corner_of(m, s, first + done);
        length = run_length(m, s, at, done, here);
        Run run = run_of(s, at, q, length);
        float* square = to + done / CHUNK * chunk + done % CHUNK * LANES;
        transform_run(m, q, x, &run, c, square);
    }
}

// A group of squares: `here` of them from `first` on, transformed. x_squares are those of one phase
// and LANES channels.
typedef struct {
    const float *x_squares, *dz_squares;
    int here;
    bool is_first;      // of its part
    Ahead next_x, next_dz;  // the next group
} Group;

// sums[panel][LANES / VALUES][place][VALUES][PANEL] (+)= products of a group, of phase q.
INLINE void multiply_places(const int m, int panels, Phase q, Group* g, float* sums) {
    const int n = m + 2, places = n * n;
    for (int i = 0; i < n - q.row; ++i) {
        for (int j = 0; j < n - q.column; ++j) {
            int place = i * n + j;
            fetch_next(&g->next_x, 0);
            fetch_next(&g->next_dz, 0);
            for (int unit = 0; unit < panels * (LANES / VALUES); ++unit) {
                int panel = unit / (LANES / VALUES), v = unit % (LANES / VALUES) * VALUES;
                Pair pair = {
                    .x = g->x_squares + place * PLACE + v,
                    .dz = g->dz_squares + ((size_t)panel * places + place) * CHUNK * PANEL,
                    .x_chunk = (size_t)places * PLACE,
                    .dz_chunk = (size_t)panels * places * CHUNK * PANEL,
                    .count = g->here,
                };
                float* to = sums + ((size_t)unit * places + place) * UNIT;
                (g->is_first ? first_sums : more_sums)(&pair, to);
            }
        }
    }
}

// A thread's share of a part, the squares first <= i < end: blocks first_block .. end_block of all
// phases' blocks of LANES channels. `sums` holds multiply_places' sums of every block; bias (Cout,)
// the sums of dz, or null.
INLINE void sum_part(
    const int m, const Squares* s, const Source* x, const Source* dz, int first, int end, int group,
    int first_block, int end_block, float* sums, float* bias) {
    const int places = (m + 2) * (m + 2);
    int blocks = s->Cin / LANES, count = s->B * squares_in_image(m, s);
    int phases = s->x_step * s->x_step, pieces = (end_block - first_block) * places;
    size_t x_size = (size_t)s->B * s->H * s->W * s->Cin;
    size_t dz_size = (size_t)s->B * s->Ho * s->Wo * s->Cout;
    float* x_squares = winograd_scratch();
    float* dz_squares = x_squares + divide_up(group, CHUNK) * (size_t)places * PLACE;
    if (bias) memset(bias, 0, s->Cout * sizeof(float));
    for (int at = first; at < end; at += group) {
        int here = smaller(group, end - at), next = smaller(group, end - at - here);
        spread_squares(m, s, dz, at, here, dz_squares, bias);
        Group g = {
            x_squares, dz_squares, here, at == first,
            ahead(x->x, x_size, at + here, next, count, 0, pieces),
            ahead(dz->x, dz_size, at + here, next, count, 0, pieces),
        };
        for (int block = first_block; block < end_block; ++block) {
            Phase q = phase_of(phases, block / blocks);
            transform_block(m, s, x, q, block % blocks * LANES, at, here, x_squares);
            float* to = sums + (size_t)block * LANES * s->Cout * places;
            multiply_places(m, s->Cout / PANEL, q, &g, to);
        }
    }
}
typedef void (*SumPart)(
    const Squares* s, const Source* x, const Source* dz, int first, int end, int group,
    int first_block, int end_block, float* sums, float* bias);
#define SUM_PART(m) \
    static void sum_part_##m( \
        const Squares* s, const Source* x, const Source* dz, int first, int end, int group, \
        int first_block, int end_block, float* sums, float* bias) { \
        sum_part(m, s, x, dz, first, end, group, first_block, end_block, sums, bias); \
    }
SUM_PART(2) SUM_PART(4) SUM_PART(5)
static const SumPart SUM_PART[] = {[2] = sum_part_2, [4] = sum_part_4, [5] = sum_part_5};

// G' sums G of a phase: the taps of one channel of x and a vector of channels of dz. `part`: floats
// from one part's sums to the next one's.
INLINE void gather_taps(
    const int m, Phase q, const float* sums, int parts, size_t part, Vector to[3][3]) {
    const Matrix* G = kernel_matrix(m);
    const int n = m + 2;
    Vector lines[MOST_PIXELS][3];
    for (int j = 0; j < n; ++j) {
        Vector column[MOST_PIXELS];
        for (int i = 0; i < n; ++i) {
            column[i] = (Vector){0};
            if (i >= n - q.row || j >= n - q.column) continue;
            const float* from = sums + (size_t)(i * n + j) * UNIT;
            column[i] = load(from);
            for (int k = 1; k < parts; ++k) column[i] += load(from + k * part);
        }
        multiply_transposed(G, column, lines[j]);
    }
    for (int i = 0; i < 3; ++i) {
        Vector row[MOST_PIXELS];
        for (int j = 0; j < n; ++j) row[j] = lines[j][i];
        multiply_transposed(G, row, to[i]);
    }
}
typedef void (*GatherTaps)(Phase q, const float* sums, int parts, size_t part, Vector to[3][3]);
#define GATHER_TAPS(m) \
    static void gather_taps_##m( \
        Phase q, const float* sums, int parts, size_t part, Vector to[3][3]) { \
        gather_taps(m, q, sums, parts, part, to); \
    }
GATHER_TAPS(2) GATHER_TAPS(4) GATHER_TAPS(5)
static const GatherTaps GATHER_TAPS[] = {
    [2] = gather_taps_2, [4] = gather_taps_4, [5] = gather_taps_5};

// dkernel (kh, kw, Cin, Cout) and dbias (Cout,) from x and dz, with squares of m x m outputs,
// `group` of them at a time, in `parts` parts of the images. `sums` is working memory: for each
// part the sums of all phases and places, and those of dbias. How x is read: see Source.
// Twin: ops_numpy.conv2d_weight_gradient
KERNEL winograd_weight_gradient(
    const float PER_NET x, const float PER_NET dz, int m, struct Squares s, int kh, int kw,
    int parts, int group, MAY_BE_NULL const float PER_NET source_mean,
    MAY_BE_NULL const float PER_NET source_scale, MAY_BE_NULL const float PER_NET source_shift,
    MAY_BE_NULL const bool PER_NET source_mask, float source_keep, float PER_NET sums,
    float PER_NET dkernel, float PER_NET dbias) {
    int places = (m + 2) * (m + 2), phases = s.x_step * s.x_step;
    int blocks = s.Cin / LANES, all_blocks = phases * blocks, panels = s.Cout / PANEL;
    size_t part_size = (size_t)places * phases * s.Cin * s.Cout + s.Cout;
    Source x_source = {x, source_mean, source_scale, source_shift, source_mask, source_keep,
                       s.H, s.W, s.Cin};
    Source dz_source = {.x = dz, .H = s.Ho, .W = s.Wo, .C = s.Cout};
    // More threads than parts share the blocks of a part; each transforms dz for itself.
    int splits = smaller(divide_up(most_threads(), parts), all_blocks);
#pragma omp parallel for schedule(dynamic)
    for (int unit = 0; unit < parts * splits; ++unit) {
        int part = unit / splits, split = unit % splits, in_image = squares_in_image(m, &s);
        int first = (int)((long)s.B * part / parts) * in_image;
        int end = (int)((long)s.B * (part + 1) / parts) * in_image;
        float* to = sums + part * part_size;
        SUM_PART[m](
            &s, &x_source, &dz_source, first, end, group, all_blocks * split / splits,
            all_blocks * (split + 1) / splits, to, split ? NULL : to + part_size - s.Cout);
    }
#pragma omp parallel for
    for (int block = 0; block < all_blocks; ++block) {
        Phase q = phase_of(phases, block / blocks);
        int c = block % blocks * LANES;
        for (int n = 0; n < s.Cout; n += LANES) {
            for (int v = 0; v < LANES; ++v) {
                Vector taps[3][3];
                size_t row = ((size_t)block * panels + n / PANEL) * (LANES / VALUES) + v / VALUES;
                const float* from = sums + row * places * UNIT + v % VALUES * PANEL + n % PANEL;
                GATHER_TAPS[m](q, from, parts, part_size, taps);
                for (int i = q.row, a = 0; i < kh; i += s.x_step, ++a) {
                    for (int j = q.column, b = 0; j < kw; j += s.x_step, ++b) {
                        size_t tap = (size_t)i * kw + j;
                        store(dkernel + (tap * s.Cin + c + v) * s.Cout + n, taps[a][b]);
                    }
                }
            }
        }
    }
    for (int n = 0; n < s.Cout; ++n) {
        dbias[n] = 0;
        for (int part = 0; part < parts; ++part) {
            dbias[n] += sums[(part + 1) * part_size - s.Cout + n];
        }
    }
}
