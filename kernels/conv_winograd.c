// Convolution of 3 x 3 by stride 1 with 16 multiplications for each 2 x 2 results, where 36 is the
// plain number. Source: A. Lavin, S. Gray, "Fast algorithms for convolutional neural networks",
// arXiv:1509.09308, F(2x2, 3x3); the algorithm is S. Winograd's, 1980.
//
// Results are taken in squares of 2 x 2, made from 4 x 4 of the image. Kernel and square are
// transformed into 4 x 4 places each; at each place they are multiplied, as matrices over channels;
// and the products are transformed back:
//
//     y = A' [ (G w G') (.) (B' x B) ] A        A' = 1 1  1  0     B' = 1  0 -1  0     G =  1    0   0
//                                                    0 1 -1 -1          0  1  1  0         1/2  1/2 1/2
//                                                                       0 -1  1  0         1/2 -1/2 1/2
//                                                                       0  1  0 -1          0    0   1
//
// Transforms only add, and each number of them serves all channels of the other side. The gradient by
// the input is the same with the kernel turned round; that by the kernel is the transposed of all:
// dw = G' [ sum over squares of (B' x B)' (A dy A') ] G.
//
// Channels on both sides are whole panels here. A number's bits depend on the layer and the batch
// alone: each is made by one thread, or in PARTS that are then added up in order.
#include "tile.h"

enum {
    PLACES = 16,           // 4 x 4
    MOST_CHANNELS = 128,    // of an image, so that squares in transformation fit a thread's stack
    GRADIENT_SQUARES = 48,  // at a time for the gradient by the kernel, to stay in the second cache
    GRADIENT_PARTS = 8,     // of the images, each with sums of its own
};

// y (B, Ho, Wo, N) from x (B, H, W, C), with `top` and `left` rows and columns of zeros before x.
struct Squares {
    int B, H, W, C, Ho, Wo, N, top, left;
};
typedef struct Squares Squares;

int winograd_most_channels(void) { return MOST_CHANNELS; }
int winograd_gradient_parts(void) { return GRADIENT_PARTS; }
int winograd_gradient_squares(void) { return GRADIENT_SQUARES; }

INLINE int squares_in_row(const Squares* s) { return divide_up(s->Wo, 2); }
INLINE int squares_in_image(const Squares* s) { return divide_up(s->Ho, 2) * squares_in_row(s); }

// The image, and the first row and column of results, of a square.
typedef struct {
    int image, row, column;
} Place;

INLINE Place place_of(const Squares* s, int square) {
    int in_image = square % squares_in_image(s), in_row = squares_in_row(s);
    return (Place){square / squares_in_image(s), in_image / in_row * 2, in_image % in_row * 2};
}

// -------------------------------------------------------------------------------------------------
// Transforms, of a vector of channels

INLINE void transform_input_line(const Vector x[4], Vector to[4]) {  // B' x
    to[0] = x[0] - x[2];
    to[1] = x[1] + x[2];
    to[2] = x[2] - x[1];
    to[3] = x[1] - x[3];
}

INLINE void transform_output_line(const Vector products[4], Vector to[2]) {  // A' products
    to[0] = products[0] + products[1] + products[2];
    to[1] = products[1] - products[2] - products[3];
}

INLINE void spread_output_line(const Vector dy[2], Vector to[4]) {  // A dy
    to[0] = dy[0];
    to[1] = dy[0] + dy[1];
    to[2] = dy[0] - dy[1];
    to[3] = -dy[1];
}

INLINE void transform_kernel_line(const Vector w[3], Vector to[4]) {  // G w
    to[0] = w[0];
    to[1] = 0.5f * (w[0] + w[1] + w[2]);
    to[2] = 0.5f * (w[0] - w[1] + w[2]);
    to[3] = w[2];
}

INLINE void gather_kernel_line(const Vector sums[4], Vector to[3]) {  // G' sums
    to[0] = sums[0] + 0.5f * (sums[1] + sums[2]);
    to[1] = 0.5f * (sums[1] - sums[2]);
    to[2] = sums[3] + 0.5f * (sums[1] + sums[2]);
}

// The 4 x 4 of an image under a square of results as B' x B, for all channels: channel c of place p
// to to[p * step + c].
static void transform_input(const Squares* s, const float* x, Place at, float* to, size_t step) {
    const float* pixels[4][4];  // null beyond the image
    for (int i = 0; i < 4; ++i) {
        for (int j = 0; j < 4; ++j) {
            int row = at.row - s->top + i, column = at.column - s->left + j;
            int inside = row >= 0 && row < s->H && column >= 0 && column < s->W;
            size_t pixel = ((size_t)at.image * s->H + row) * s->W + column;
            pixels[i][j] = inside ? x + pixel * s->C : NULL;
        }
    }
    for (int c = 0; c < s->C; c += LANES) {
        Vector lines[4][4], square[4];  // lines: by column, then row
        UNROLL
        for (int j = 0; j < 4; ++j) {
            UNROLL
            for (int i = 0; i < 4; ++i) {
                square[i] = pixels[i][j] ? load(pixels[i][j] + c) : (Vector){0};
            }
            transform_input_line(square, lines[j]);
        }
        UNROLL
        for (int i = 0; i < 4; ++i) {
            Vector row[4] = {lines[0][i], lines[1][i], lines[2][i], lines[3][i]}, done[4];
            transform_input_line(row, done);
            UNROLL
            for (int j = 0; j < 4; ++j) store(to + (4 * i + j) * step + c, done[j]);
        }
    }
}

// -------------------------------------------------------------------------------------------------
// Forward, and the gradient by the input

// transformed (panels, PLACES, C, PANEL): G w G' of a kernel (3, 3, C, N); with `turned`, of a kernel
// (3, 3, N, C) that is turned round.
KERNEL winograd_kernel(
    const float PER_NET kernel, bool turned, int C, int N, float PER_NET transformed) {
#pragma omp parallel for if (C * N >= WORTH_SHARING / PLACES)
    for (int c = 0; c < C; ++c) {
        for (int n = 0; n < N; n += LANES) {
            Vector w[3][3], lines[3][4];
            for (int i = 0; i < 3; ++i) {
                for (int j = 0; j < 3; ++j) {
                    if (!turned) {
                        w[j][i] = load(kernel + ((size_t)(3 * i + j) * C + c) * N + n);
                        continue;
                    }
                    const float* from = kernel + ((size_t)(8 - 3 * i - j) * N + n) * C + c;
                    for (int v = 0; v < LANES; ++v) w[j][i][v] = from[(size_t)v * C];
                }
            }
            for (int j = 0; j < 3; ++j) transform_kernel_line(w[j], lines[j]);
            float* to = transformed + ((size_t)n / PANEL * PLACES * C + c) * PANEL + n % PANEL;
            for (int i = 0; i < 4; ++i) {
                Vector row[3] = {lines[0][i], lines[1][i], lines[2][i]}, done[4];
                transform_kernel_line(row, done);
                for (int j = 0; j < 4; ++j) store(to + (size_t)(4 * i + j) * C * PANEL, done[j]);
            }
        }
    }
}

// The results of a square from products (PLACES, TILE, PANEL), in the panel of channels from n on.
static void finish_square(
    const Squares* s, const float* products, Place at, int n, const float* bias, bool relu_follows,
    float* y) {
    for (int c = 0; c < PANEL; c += LANES) {
        Vector lines[4][2], start = bias ? load(bias + n + c) : (Vector){0};
        UNROLL
        for (int j = 0; j < 4; ++j) {
            Vector column[4];
            for (int i = 0; i < 4; ++i) column[i] = load(products + (4 * i + j) * TILE * PANEL + c);
            transform_output_line(column, lines[j]);
        }
        UNROLL
        for (int i = 0; i < 2; ++i) {
            Vector row[4] = {lines[0][i], lines[1][i], lines[2][i], lines[3][i]}, done[2];
            transform_output_line(row, done);
            for (int j = 0; j < 2; ++j) {
                if (at.row + i >= s->Ho || at.column + j >= s->Wo) continue;
                size_t row = (size_t)at.image * s->Ho + at.row + i;
                Vector result = done[j] + start;
                float* to = y + (row * s->Wo + at.column + j) * s->N + n + c;
                store(to, relu_follows ? relu(result) : result);
            }
        }
    }
}

// y = relu(x * w + bias), relu and bias where there are such; w as winograd_kernel leaves it. As many
// squares are worked on together as a tile has pixels.
KERNEL winograd_correlate(
    const float PER_NET x, struct Squares s, const float PER_NET w,
    MAY_BE_NULL const float PER_NET bias, bool relu, float PER_NET y) {
    int count = s.B * squares_in_image(&s);
    static const float ZEROS[PANEL] = {0};
#pragma omp parallel for schedule(static)
    for (int first = 0; first < count; first += TILE) {
        float transformed[PLACES * TILE * s.C], products[PLACES * TILE * PANEL];
        int here = smaller(TILE, count - first);
        size_t step = (size_t)TILE * s.C;
        for (int i = 0; i < here; ++i) {
            transform_input(&s, x, place_of(&s, first + i), transformed + (size_t)i * s.C, step);
        }
        for (int n = 0; n < s.N; n += PANEL) {
            for (int place = 0; place < PLACES; ++place) {
                Tile t = {
                    .x = transformed + place * step,
                    .x_pixel = s.C,
                    .rows = 1,
                    .length = s.C,
                    .w = w + ((size_t)n / PANEL * PLACES + place) * s.C * PANEL,
                    .start = ZEROS,
                    .y = products + place * TILE * PANEL,
                    .y_pixel = PANEL,
                };
                COMPUTE_TILE[0][here - 1](&t);
            }
            for (int i = 0; i < here; ++i) {
                finish_square(&s, products + i * PANEL, place_of(&s, first + i), n, bias, relu, y);
            }
        }
    }
}

// -------------------------------------------------------------------------------------------------
// The gradient by the kernel

// A square of dz as A dz A', for all channels; and its numbers added to `bias` (N,).
static void spread_output(
    const Squares* s, const float* dz, Place at, float* to, size_t step, float* bias) {
    for (int c = 0; c < s->N; c += LANES) {
        Vector lines[2][4], sum = load(bias + c);  // lines: by column, then row
        for (int j = 0; j < 2; ++j) {
            Vector column[2] = {{0}};
            for (int i = 0; i < 2; ++i) {
                if (at.row + i >= s->Ho || at.column + j >= s->Wo) continue;
                size_t row = (size_t)at.image * s->Ho + at.row + i;
                column[i] = load(dz + (row * s->Wo + at.column + j) * s->N + c);
                sum += column[i];
            }
            spread_output_line(column, lines[j]);
        }
        store(bias + c, sum);
        UNROLL
        for (int i = 0; i < 4; ++i) {
            Vector row[2] = {lines[0][i], lines[1][i]}, done[4];
            spread_output_line(row, done);
            UNROLL
            for (int j = 0; j < 4; ++j) store(to + (4 * i + j) * step + c, done[j]);
        }
    }
}

// sums (PLACES, C, N) += the products of `here` transformed squares of x and of dz.
static void add_products(const Squares* s, const float* x, const float* dz, int here, float* sums) {
    int tiles = divide_up(s->C, TILE);
    for (int place = 0; place < PLACES; ++place) {
        for (int tile = 0; tile < tiles; ++tile) {
            int first = s->C * tile / tiles, numbers = s->C * (tile + 1) / tiles - first;
            for (int n = 0; n < s->N; n += PANEL) {
                float products[TILE * PANEL];
                Products t = {
                    .x = x + (size_t)place * GRADIENT_SQUARES * s->C + first,
                    .x_pixel = s->C,
                    .dz = dz + (size_t)place * GRADIENT_SQUARES * s->N + n,
                    .dz_pixel = s->N,
                    .images = 1,
                    .rows = 1,
                    .pixels = here,
                    .sums = products,
                };
                SUM_PRODUCTS[numbers - 1](&t);
                float* to = sums + ((size_t)place * s->C + first) * s->N + n;
                for (int k = 0; k < numbers; ++k, to += s->N) {
                    for (int v = 0; v < PANEL; ++v) to[v] += products[k * PANEL + v];
                }
            }
        }
    }
}

// dkernel (3, 3, C, N) and dbias (N,) from x and dz. scratch: for each part PLACES * C * N sums, N of
// the bias, and PLACES * GRADIENT_SQUARES * (C + N) numbers of squares.
KERNEL winograd_weight_gradient(
    const float PER_NET x, const float PER_NET dz, struct Squares s, float PER_NET scratch,
    float PER_NET dkernel, float PER_NET dbias) {
    size_t count = (size_t)PLACES * s.C * s.N + s.N;
    size_t x_size = (size_t)PLACES * GRADIENT_SQUARES * s.C;
    size_t part_size = count + x_size + (size_t)PLACES * GRADIENT_SQUARES * s.N;
#pragma omp parallel for schedule(dynamic)
    for (int part = 0; part < GRADIENT_PARTS; ++part) {
        float *sums = scratch + part * part_size, *x_squares = sums + count;
        float *bias = x_squares - s.N, *dz_squares = x_squares + x_size;
        memset(sums, 0, count * sizeof(float));
        int first = s.B * part / GRADIENT_PARTS * squares_in_image(&s);
        int end = s.B * (part + 1) / GRADIENT_PARTS * squares_in_image(&s);
        for (; first < end; first += GRADIENT_SQUARES) {
            int here = smaller(GRADIENT_SQUARES, end - first);
            for (int i = 0; i < here; ++i) {
                Place at = place_of(&s, first + i);
                size_t x_step = (size_t)GRADIENT_SQUARES * s.C, step = (size_t)GRADIENT_SQUARES * s.N;
                transform_input(&s, x, at, x_squares + (size_t)i * s.C, x_step);
                spread_output(&s, dz, at, dz_squares + (size_t)i * s.N, step, bias);
            }
            add_products(&s, x_squares, dz_squares, here, sums);
        }
    }
#pragma omp parallel for
    for (int c = 0; c <= s.C; ++c) {  // the last turn is dbias's
        for (int n = 0; n < s.N; n += LANES) {
            Vector total[PLACES], lines[4][3];
            for (int place = 0; place < (c < s.C ? PLACES : 1); ++place) {
                total[place] = (Vector){0};
                const float* sums = scratch + ((size_t)place * s.C + c) * s.N + n;
                if (c == s.C) sums = scratch + count - s.N + n;
                for (int part = 0; part < GRADIENT_PARTS; ++part) {
                    total[place] += load(sums + part * part_size);
                }
            }
            if (c == s.C) {
                store(dbias + n, total[0]);
                continue;
            }
            for (int j = 0; j < 4; ++j) {
                Vector column[4] = {total[j], total[4 + j], total[8 + j], total[12 + j]};
                gather_kernel_line(column, lines[j]);
            }
            for (int i = 0; i < 3; ++i) {
                Vector row[4] = {lines[0][i], lines[1][i], lines[2][i], lines[3][i]}, done[3];
                gather_kernel_line(row, done);
                for (int j = 0; j < 3; ++j) {
                    store(dkernel + ((size_t)(3 * i + j) * s.C + c) * s.N + n, done[j]);
                }
            }
        }
    }
}
