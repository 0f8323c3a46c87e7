// The matrices of Winograd convolution, F(m x m, 3 x 3) for m = 2, 4 and 5.
//
// m outputs y of a correlation with 3 taps w depend on n = m + 2 pixels x. Pixels and taps are
// transformed into n places each, multiplied place by place, and transformed back:
//
//     y = A' [ (G w) (.) (B x) ]        B: INPUT (n, n), G: KERNEL (n, 3), A: OUTPUT (n, m)
//
// n multiplications replace 3 m of them. In two dimensions each matrix is applied to the columns
// and to the rows: n * n multiplications replace 9 m * m.
//
// Seen as polynomials, y is a product of polynomials that is evaluated at n - 1 points and at
// infinity, and interpolated. A place is a point. A row of A has the powers of its point, a row of
// G the same powers divided by N, the product of the distances to the other points. A row of B has
// the coefficients of the polynomial that is zero at all other points. The last place is infinity.
//
// Points come in pairs p and -p, whose rows differ in the sign of every second element. So a pair
// costs little more than one point. The point 0, if there is one, comes after the pairs:
//
//     m = 2:  1, -1, 0
//     m = 4:  5/8, -5/8, 3/2, -3/2, 0
//     m = 5:  5/16, -5/16, 7/8, -7/8, 7/4, -7/4
//
// For m = 4 and 5 these points halve the rounding error of the usual 0, 1, -1, 2, -2. Coefficients
// of B and A are exact in float.
//
// Sources: S. Winograd, "Arithmetic complexity of computations", SIAM, 1980; A. Lavin, S. Gray,
// arXiv:1509.09308; on points: B. Barabasz et al., arXiv:1803.10986.
#pragma once

#include "vector.h"

enum { MOST_OUTPUTS = 5, MOST_PIXELS = MOST_OUTPUTS + 2 };

// Rows 2k and 2k + 1, k < pairs, differ in the sign of their odd elements. by_last: in a pair, the
// last even and the last odd coefficient divide the others, and the quotients are exact in float;
// else the first ones do.
typedef struct {
    int rows, columns, pairs;
    bool by_last;
    float at[MOST_PIXELS][MOST_PIXELS];
} Matrix;

static const Matrix INPUT_2 = {4, 4, 1, true, {
    {0, 1, 1, 0},
    {0, -1, 1, 0},
    {1, 0, -1, 0},
    {0, -1, 0, 1},
}};
static const Matrix KERNEL_2 = {4, 3, 1, false, {
    {1. / 2, 1. / 2, 1. / 2},
    {1. / 2, -1. / 2, 1. / 2},
    {1, 0, 0},
    {0, 0, 1},
}};
static const Matrix OUTPUT_2 = {4, 2, 1, false, {
    {1, 1},
    {1, -1},
    {1, 0},
    {0, 1},
}};

static const Matrix INPUT_4 = {6, 6, 2, true, {
    {0, -45. / 32, -9. / 4, 5. / 8, 1, 0},
    {0, 45. / 32, -9. / 4, -5. / 8, 1, 0},
    {0, -75. / 128, -25. / 64, 3. / 2, 1, 0},
    {0, 75. / 128, -25. / 64, -3. / 2, 1, 0},
    {225. / 256, 0, -169. / 64, 0, 1, 0},
    {0, 225. / 256, 0, -169. / 64, 0, 1},
}};
static const Matrix KERNEL_4 = {6, 3, 2, false, {
    {-2048. / 2975, -256. / 595, -32. / 119},
    {-2048. / 2975, 256. / 595, -32. / 119},
    {128. / 1071, 64. / 357, 32. / 119},
    {128. / 1071, -64. / 357, 32. / 119},
    {256. / 225, 0, 0},
    {0, 0, 1},
}};
static const Matrix OUTPUT_4 = {6, 4, 2, false, {
    {1, 5. / 8, 25. / 64, 125. / 512},
    {1, -5. / 8, 25. / 64, -125. / 512},
    {1, 3. / 2, 9. / 4, 27. / 8},
    {1, -3. / 2, 9. / 4, -27. / 8},
    {1, 0, 0, 0},
    {0, 0, 0, 1},
}};

static const Matrix INPUT_5 = {7, 7, 3, true, {
    {12005. / 16384, 2401. / 1024, -1225. / 1024, -245. / 64, 5. / 16, 1, 0},
    {12005. / 16384, -2401. / 1024, -1225. / 1024, 245. / 64, 5. / 16, -1, 0},
    {8575. / 32768, 1225. / 4096, -5663. / 2048, -809. / 256, 7. / 8, 1, 0},
    {8575. / 32768, -1225. / 4096, -5663. / 2048, 809. / 256, 7. / 8, -1, 0},
    {8575. / 65536, 1225. / 16384, -1547. / 1024, -221. / 256, 7. / 4, 1, 0},
    {8575. / 65536, -1225. / 16384, -1547. / 1024, 221. / 256, 7. / 4, -1, 0},
    {-60025. / 262144, 0, 44541. / 16384, 0, -1005. / 256, 0, 1},
}};
static const Matrix KERNEL_5 = {7, 3, 3, false, {
    {524288. / 648945, 32768. / 129789, 10240. / 129789},
    {524288. / 648945, -32768. / 129789, 10240. / 129789},
    {-65536. / 175959, -8192. / 25137, -1024. / 3591},
    {-65536. / 175959, 8192. / 25137, -1024. / 3591},
    {32768. / 781011, 8192. / 111573, 2048. / 15939},
    {32768. / 781011, -8192. / 111573, 2048. / 15939},
    {0, 0, 1},
}};
static const Matrix OUTPUT_5 = {7, 5, 3, false, {
    {1, 5. / 16, 25. / 256, 125. / 4096, 625. / 65536},
    {1, -5. / 16, 25. / 256, -125. / 4096, 625. / 65536},
    {1, 7. / 8, 49. / 64, 343. / 512, 2401. / 4096},
    {1, -7. / 8, 49. / 64, -343. / 512, 2401. / 4096},
    {1, 7. / 4, 49. / 16, 343. / 64, 2401. / 256},
    {1, -7. / 4, 49. / 16, -343. / 64, 2401. / 256},
    {0, 0, 0, 0, 1},
}};

// The matrices of an m that the compiler knows.
INLINE const Matrix* input_matrix(int m) {
    return m == 2 ? &INPUT_2 : m == 4 ? &INPUT_4 : &INPUT_5;
}
INLINE const Matrix* kernel_matrix(int m) {
    return m == 2 ? &KERNEL_2 : m == 4 ? &KERNEL_4 : &KERNEL_5;
}
INLINE const Matrix* output_matrix(int m) {
    return m == 2 ? &OUTPUT_2 : m == 4 ? &OUTPUT_4 : &OUTPUT_5;
}

// -------------------------------------------------------------------------------------------------
// Products of a matrix and a line of vectors. The compiler unrolls all loops and knows the
// coefficients, so a 0 costs nothing, and a 1 no multiplication.

// The even (first = 0) or odd (first = 1) elements of row i, times x, divided by *factor, one of
// the coefficients. A sum that a pair uses twice costs one multiplication less this way.
INLINE Vector half_row(
    const Matrix* M, const int i, const int first, const Vector x[], float* factor) {
    const float* row = M->at[i];
    int lead = -1;
    UNROLL
    for (int j = first; j < M->columns; j += 2) {
        if (row[j] != 0 && (M->by_last || lead < 0)) lead = j;
    }
    *factor = lead < 0 ? 0 : row[lead];
    Vector sum = lead < 0 ? (Vector){0} : x[lead];
    UNROLL
    for (int j = first; j < M->columns; j += 2) {
        if (row[j] != 0 && j != lead) sum += row[j] / *factor * x[j];
    }
    return sum;
}

// to = M x: the first `rows` rows.
INLINE void multiply(const Matrix* M, const int rows, const Vector x[], Vector to[]) {
    UNROLL
    for (int i = 0; i < 2 * M->pairs; i += 2) {
        float even_factor, odd_factor;
        Vector even = half_row(M, i, 0, x, &even_factor);
        Vector odd = half_row(M, i, 1, x, &odd_factor);
        if (odd_factor == 1) {
            to[i] = odd + even_factor * even;
            to[i + 1] = even_factor * even - odd;
        } else {
            to[i] = even_factor * even + odd_factor * odd;
            to[i + 1] = even_factor * even - odd_factor * odd;
        }
    }
    UNROLL
    for (int i = 2 * M->pairs; i < rows; ++i) {
        bool none = true;
        to[i] = (Vector){0};
        UNROLL
        for (int j = M->columns - 1; j >= 0; --j) {
            if (M->at[i][j] == 0) continue;
            Vector term = M->at[i][j] == 1 ? x[j] : M->at[i][j] * x[j];
            to[i] = none ? term : to[i] + term;
            none = false;
        }
    }
}

// to = M' x.
INLINE void multiply_transposed(const Matrix* M, const Vector x[], Vector to[]) {
    UNROLL
    for (int i = 0; i < 2 * M->pairs; i += 2) {
        Vector sum = x[i] + x[i + 1], difference = x[i] - x[i + 1];
        UNROLL
        for (int j = 0; j < M->columns; ++j) {
            Vector term = M->at[i][j] * (j % 2 ? difference : sum);
            to[j] = i ? to[j] + term : term;
        }
    }
    UNROLL
    for (int i = 2 * M->pairs; i < M->rows; ++i) {
        UNROLL
        for (int j = 0; j < M->columns; ++j) {
            if (M->at[i][j] != 0) to[j] += M->at[i][j] * x[i];
        }
    }
}
