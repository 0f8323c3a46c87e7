// Winograd convolution, 3 x 3 with stride 1: 16 multiplications for 2 x 2 outputs instead of 36.
// Source: A. Lavin, S. Gray, "Fast algorithms for convolutional neural networks", arXiv:1509.09308,
// F(2x2, 3x3); the algorithm is S. Winograd's, 1980.
//
// A square of 2 x 2 outputs depends on 4 x 4 pixels of the image. Kernel and pixels are transformed
// into 4 x 4 places each. At each place they are multiplied, as matrices over channels. The
// products are transformed back:
//
//     y = A' [ (G w G') (.) (B' x B) ] A    A' = 1 1  1  0     B' = 1  0 -1  0     G =  1    0   0
//                                                0 1 -1 -1          0  1  1  0         1/2  1/2 1/2
//                                                                   0 -1  1  0         1/2 -1/2 1/2
//                                                                   0  1  0 -1          0    0   1
//
// Transforms only add and halve, and each transformed value is used for all channels of the other
// operand. The gradient with respect to the input is the same with the kernel rotated by 180
// degrees. The one with respect to the kernel is the transpose of the whole:
//
//     dw = G' [ sum over squares of (B' x B)' (A dy A') ] G
//
// Cin and Cout must be whole panels. One thread computes each element, or GRADIENT_PARTS partial
// sums of it that are then added in order: results depend on the layer and the batch only.
#include "tile.h"

enum {
    PLACES = 16,            // 4 x 4
    MOST_CHANNELS = 128,    // of an image, so that transformed squares fit a thread's stack
    GRADIENT_SQUARES = 48,  // at a time in the weight gradient, to stay in the L2 cache
    GRADIENT_PARTS = 8,     // of the images, each with its own partial sums
};

// y (B, Ho, Wo, Cout) from x (B, H, W, Cin), with `top` rows and `left` columns of zeros before x.
// In the gradient with respect to the input, Cin and Cout are the layer's Cout and Cin.
struct Squares {
    int B, H, W, Cin, Ho, Wo, Cout, top, left;
};
typedef struct Squares Squares;

int winograd_most_channels(void) { return MOST_CHANNELS; }
int winograd_gradient_parts(void) { return GRADIENT_PARTS; }
int winograd_gradient_squares(void) { return GRADIENT_SQUARES; }

INLINE int squares_in_row(const Squares* s) { return divide_up(s->Wo, 2); }
INLINE int squares_in_image(const Squares* s) { return divide_up(s->Ho, 2) * squares_in_row(s); }

// A square of 2 x 2 outputs: its image, and its first row and column.
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

// B' x B of the 4 x 4 pixels under a square of outputs, for all channels: channel c of place p is
// written to to[p * step + c].
static void transform_input(const Squares* s, const float* x, Place at, float* to, size_t step) {
    const float* pixels[4][4];  // null outside the image
    for (int i = 0; i < 4; ++i) {
        for (int j = 0; j < 4; ++j) {
            int row = at.row - s->top + i, column = at.column - s->left + j;
            int inside = row >= 0 && row < s->H && column >= 0 && column < s->W;
            size_t pixel = ((size_t)at.image * s->H + row) * s->W + column;
            pixels[i][j] = inside ? x + pixel * s->Cin : NULL;
        }
    }
    for (int c = 0; c < s->Cin; c += LANES) {
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
// Forward, and the gradient with respect to the input

// transformed (panels, PLACES, Cin, PANEL) = G w G' of a kernel (3, 3, Cin, Cout); if `rotated`, of
// a kernel (3, 3, Cout, Cin) rotated by 180 degrees and transposed.
// Twin: ops_numpy.conv2d
KERNEL winograd_kernel(
    const float PER_NET kernel, bool rotated, int Cin, int Cout, float PER_NET transformed) {
#pragma omp parallel for if (Cin * Cout >= WORTH_SHARING / PLACES)
    for (int c = 0; c < Cin; ++c) {
        for (int n = 0; n < Cout; n += LANES) {
            Vector w[3][3], lines[3][4];
            for (int i = 0; i < 3; ++i) {
                for (int j = 0; j < 3; ++j) {
                    if (!rotated) {
                        w[j][i] = load(kernel + ((size_t)(3 * i + j) * Cin + c) * Cout + n);
                        continue;
                    }
                    const float* from = kernel + ((size_t)(8 - 3 * i - j) * Cout + n) * Cin + c;
                    for (int v = 0; v < LANES; ++v) w[j][i][v] = from[(size_t)v * Cin];
                }
            }
            for (int j = 0; j < 3; ++j) transform_kernel_line(w[j], lines[j]);
            float* to = transformed + ((size_t)n / PANEL * PLACES * Cin + c) * PANEL + n % PANEL;
            for (int i = 0; i < 4; ++i) {
                Vector row[3] = {lines[0][i], lines[1][i], lines[2][i]}, done[4];
                transform_kernel_line(row, done);
                for (int j = 0; j < 4; ++j) store(to + (size_t)(4 * i + j) * Cin * PANEL, done[j]);
            }
        }
    }
}

// The outputs of a square from products (PLACES, TILE, PANEL): the panel of channels that starts at
// n.
static void finish_square(
    const Squares* s, const float* products, Place at, int n, const float* bias, bool apply_relu,
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
                float* to = y + (row * s->Wo + at.column + j) * s->Cout + n + c;
                store(to, apply_relu ? relu(result) : result);
            }
        }
    }
}

// y = relu(x * w + bias), with relu and bias if given; w is winograd_kernel's result. TILE squares
// are computed together: they are the pixels of a tile.
// Twin: ops_numpy.conv2d
KERNEL winograd_correlate(
    const float PER_NET x, struct Squares s, const float PER_NET w,
    MAY_BE_NULL const float PER_NET bias, bool relu, float PER_NET y) {
    int count = s.B * squares_in_image(&s);
    static const float ZEROS[PANEL] = {0};
#pragma omp parallel for schedule(static)
    for (int first = 0; first < count; first += TILE) {
        float transformed[PLACES * TILE * s.Cin], products[PLACES * TILE * PANEL];
        int here = smaller(TILE, count - first);
        size_t step = (size_t)TILE * s.Cin;
        for (int i = 0; i < here; ++i) {
            transform_input(&s, x, place_of(&s, first + i), transformed + (size_t)i * s.Cin, step);
        }
        for (int n = 0; n < s.Cout; n += PANEL) {
            for (int place = 0; place < PLACES; ++place) {
                Tile t = {
                    .x = transformed + place * step,
                    .x_pixel = s.Cin,
                    .rows = 1,
                    .length = s.Cin,
                    .w = w + ((size_t)n / PANEL * PLACES + place) * s.Cin * PANEL,
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
// The gradient with respect to the kernel

// A dz A' of a square of dz, for all channels; its elements are also added to `bias` (Cout,).
static void spread_output(
    const Squares* s, const float* dz, Place at, float* to, size_t step, float* bias) {
    for (int c = 0; c < s->Cout; c += LANES) {
        Vector lines[2][4], sum = load(bias + c);  // lines: by column, then row
        for (int j = 0; j < 2; ++j) {
            Vector column[2] = {{0}};
            for (int i = 0; i < 2; ++i) {
                if (at.row + i >= s->Ho || at.column + j >= s->Wo) continue;
                size_t row = (size_t)at.image * s->Ho + at.row + i;
                column[i] = load(dz + (row * s->Wo + at.column + j) * s->Cout + c);
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

// sums (PLACES, Cin, Cout) += the products of `here` transformed squares of x and dz.
static void add_products(const Squares* s, const float* x, const float* dz, int here, float* sums) {
    int tiles = divide_up(s->Cin, TILE);
    for (int place = 0; place < PLACES; ++place) {
        for (int tile = 0; tile < tiles; ++tile) {
            int first = s->Cin * tile / tiles, count = s->Cin * (tile + 1) / tiles - first;
            for (int n = 0; n < s->Cout; n += PANEL) {
                float products[TILE * PANEL];
                Products t = {
                    .x = x + (size_t)place * GRADIENT_SQUARES * s->Cin + first,
                    .x_pixel = s->Cin,
                    .dz = dz + (size_t)place * GRADIENT_SQUARES * s->Cout + n,
                    .dz_pixel = s->Cout,
                    .images = 1,
                    .rows = 1,
                    .pixels = here,
                    .sums = products,
                };
                SUM_PRODUCTS[count - 1](&t);
                float* to = sums + ((size_t)place * s->Cin + first) * s->Cout + n;
                for (int k = 0; k < count; ++k, to += s->Cout) {
                    for (int v = 0; v < PANEL; ++v) to[v] += products[k * PANEL + v];
                }
            }
        }
    }
}

// dkernel (3, 3, Cin, Cout) and dbias (Cout,) from x and dz. `scratch` holds, for each part, the
// sums of dkernel (PLACES, Cin, Cout) and of dbias (Cout,), then the transformed squares of x
// (PLACES, GRADIENT_SQUARES, Cin) and of dz (PLACES, GRADIENT_SQUARES, Cout).
// Twin: ops_numpy.conv2d_weight_gradient
KERNEL winograd_weight_gradient(
    const float PER_NET x, const float PER_NET dz, struct Squares s, float PER_NET scratch,
    float PER_NET dkernel, float PER_NET dbias) {
    size_t count = (size_t)PLACES * s.Cin * s.Cout + s.Cout;
    size_t x_size = (size_t)PLACES * GRADIENT_SQUARES * s.Cin;
    size_t part_size = count + x_size + (size_t)PLACES * GRADIENT_SQUARES * s.Cout;
#pragma omp parallel for schedule(dynamic)
    for (int part = 0; part < GRADIENT_PARTS; ++part) {
        float *sums = scratch + part * part_size, *x_squares = sums + count;
        float *bias = x_squares - s.Cout, *dz_squares = x_squares + x_size;
        memset(sums, 0, count * sizeof(float));
        int first = s.B * part / GRADIENT_PARTS * squares_in_image(&s);
        int end = s.B * (part + 1) / GRADIENT_PARTS * squares_in_image(&s);
        for (; first < end; first += GRADIENT_SQUARES) {
            int here = smaller(GRADIENT_SQUARES, end - first);
            for (int i = 0; i < here; ++i) {
                Place at = place_of(&s, first + i);
                size_t x_step = (size_t)GRADIENT_SQUARES * s.Cin;
                size_t dz_step = (size_t)GRADIENT_SQUARES * s.Cout;
                transform_input(&s, x, at, x_squares + (size_t)i * s.Cin, x_step);
                spread_output(&s, dz, at, dz_squares + (size_t)i * s.Cout, dz_step, bias);
            }
            add_products(&s, x_squares, dz_squares, here, sums);
        }
    }
#pragma omp parallel for
    for (int c = 0; c <= s.Cin; ++c) {  // the last iteration is for dbias
        for (int n = 0; n < s.Cout; n += LANES) {
            Vector total[PLACES], lines[4][3];
            for (int place = 0; place < (c < s.Cin ? PLACES : 1); ++place) {
                total[place] = (Vector){0};
                const float* sums = scratch + ((size_t)place * s.Cin + c) * s.Cout + n;
                if (c == s.Cin) sums = scratch + count - s.Cout + n;
                for (int part = 0; part < GRADIENT_PARTS; ++part) {
                    total[place] += load(sums + part * part_size);
                }
            }
            if (c == s.Cin) {
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
                    store(dkernel + ((size_t)(3 * i + j) * s.Cin + c) * s.Cout + n, done[j]);
                }
            }
        }
    }
}
