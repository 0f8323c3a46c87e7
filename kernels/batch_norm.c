// Batch normalisation on a CPU. Source: S. Ioffe, C. Szegedy, arXiv:1502.03167.
//
// x is (rows, C): each pixel of each image is a row. Threads share chunks of rows. A chunk fits the
// L1 cache, so reading it twice is cheap, and it is short enough for sums in float. The chunks'
// sums are added in double, in a fixed order: results do not depend on the number of threads.
#include <math.h>

#include "vector.h"

// Independent partial sums, each of every fourth row: an addition has a latency of about 4 cycles.
enum { SUMS = 4 };

INLINE Vector total(const Vector sum[SUMS]) { return (sum[0] + sum[1]) + (sum[2] + sum[3]); }

// to = v + more, in double.
INLINE void store_doubles(double* to, Vector v, Vector more, int count) {
    for (int i = 0; i < count; ++i) to[i] = (double)v[i] + more[i];
}

// The mean of a chunk and the sum of squared deviations from it, for `width` channels. The first
// row, then the mean, is subtracted before summing, so that a large mean costs no precision.
INLINE void chunk_moments(
    const float* x, int rows, int C, const int width, double* mean, double* squares) {
    Vector first = load_some(x, width);
    Vector sum[SUMS] = {{0}}, deviation[SUMS] = {{0}}, square[SUMS] = {{0}};
    for (int row = 0; row < rows; ++row) {
        sum[row % SUMS] += load_some(x + (size_t)row * C, width) - first;
    }
    Vector from_first = total(sum) / (float)rows;
    for (int row = 0; row < rows; ++row) {
        Vector d = load_some(x + (size_t)row * C, width) - first - from_first;
        deviation[row % SUMS] += d;
        square[row % SUMS] += d * d;
    }
    Vector mean_error = total(deviation) / (float)rows;  // rounding error of the mean
    store_doubles(mean, first, from_first + mean_error, width);
    Vector around_mean = total(square) - mean_error * mean_error * (float)rows;
    store_doubles(squares, around_mean, (Vector){0}, width);
}

// mean and biased variance (C,) of x, and mean_error (C,): the exact mean minus the mean rounded to
// float. chunks (.., 2, C) is working memory.
// Twin: ops_numpy.batch_norm
KERNEL batch_norm_statistics(
    const float PER_NET x, int rows, int C, int chunk_rows, double PER_NET chunks,
    float PER_NET mean, float PER_NET variance, float PER_NET mean_error) {
    int count = divide_up(rows, chunk_rows);
#pragma omp parallel for if (rows * C >= WORTH_SHARING)
    for (int chunk = 0; chunk < count; ++chunk) {
        const float* from = x + (size_t)chunk * chunk_rows * C;
        double* to = chunks + (size_t)chunk * 2 * C;
        int here = smaller(chunk_rows, rows - chunk * chunk_rows), c = 0;
        for (; c + LANES <= C; c += LANES) {
            chunk_moments(from + c, here, C, LANES, to + c, to + C + c);
        }
        if (c < C) chunk_moments(from + c, here, C, C - c, to + c, to + C + c);
    }
    for (int c = 0; c < C; ++c) {
        double sum = 0, squares = 0;
        for (int chunk = 0; chunk < count; ++chunk) {
            int here = smaller(chunk_rows, rows - chunk * chunk_rows);
            sum += here * chunks[(size_t)chunk * 2 * C + c];
        }
        double exact = sum / rows;
        for (int chunk = 0; chunk < count; ++chunk) {
            int here = smaller(chunk_rows, rows - chunk * chunk_rows);
            const double* moments = chunks + (size_t)chunk * 2 * C + c;
            squares += moments[C] + here * (moments[0] - exact) * (moments[0] - exact);
        }
        mean[c] = exact;
        variance[c] = squares / rows;
        mean_error[c] = exact - mean[c];
    }
}

INLINE void normalize_chunk(
    const float* x, int rows, int C, const int width, const float* gamma, const float* beta,
    float epsilon, const float* mean, const float* variance, const float* mean_error, float* y) {
    Vector center = load_some(mean, width), shift = load_some(beta, width), scale;
    for (int i = 0; i < LANES; ++i) {
        scale[i] = i < width ? gamma[i] / sqrtf(variance[i] + epsilon) : 0;
    }
    if (mean_error) shift -= load_some(mean_error, width) * scale;
    for (int row = 0; row < rows; ++row) {
        size_t at = (size_t)row * C;
        store_some(y + at, (load_some(x + at, width) - center) * scale + shift, width);
    }
}

// y = gamma * (x - (mean + mean_error)) / sqrt(variance + epsilon) + beta; a null mean_error is 0.
// Twin: ops_numpy.batch_norm
KERNEL batch_norm_normalize(
    const float PER_NET x, int rows, int C, int chunk_rows, const float PER_NET gamma,
    const float PER_NET beta, float epsilon, const float PER_NET mean,
    const float PER_NET variance, MAY_BE_NULL const float PER_NET mean_error, float PER_NET y) {
#pragma omp parallel for if (rows * C >= WORTH_SHARING)
    for (int first = 0; first < rows; first += chunk_rows) {
        int here = smaller(chunk_rows, rows - first), c = 0;
        size_t at = (size_t)first * C;
#define NORMALIZE(width) \
    normalize_chunk(x + at + c, here, C, width, gamma + c, beta + c, epsilon, mean + c, \
                    variance + c, mean_error ? mean_error + c : NULL, y + at + c)
        for (; c + LANES <= C; c += LANES) NORMALIZE(LANES);
        if (c < C) NORMALIZE(C - c);
    }
}

// Sums over the rows of a chunk: of dy, of dy * (x - mean), and of x - mean, which corrects for the
// rounding error of mean.
INLINE void chunk_sums(
    const float* x, const float* dy, int rows, int C, const int width, const float* mean,
    double* sums) {
    Vector center = load_some(mean, width), zero = {0};
    Vector gradient[SUMS] = {{0}}, product[SUMS] = {{0}}, deviation[SUMS] = {{0}};
    for (int row = 0; row < rows; ++row) {
        size_t at = (size_t)row * C;
        Vector d = load_some(x + at, width) - center, g = load_some(dy + at, width);
        gradient[row % SUMS] += g;
        product[row % SUMS] += g * d;
        deviation[row % SUMS] += d;
    }
    store_doubles(sums, total(gradient), zero, width);
    store_doubles(sums + C, total(product), zero, width);
    store_doubles(sums + 2 * C, total(deviation), zero, width);
}

// dgamma, dbeta (C,), and terms (4, C) such that
//
//     dx = terms[0] * (dy - terms[1]) + (terms[2] * (x - mean) + terms[3])
//
// ops_numpy.py has the formula. In this form dx is exactly 0 for a channel of one element. chunks
// (.., 3, C) is working memory.
// Twin: ops_numpy.batch_norm_backward
KERNEL batch_norm_gradient_sums(
    const float PER_NET x, const float PER_NET dy, int rows, int C, int chunk_rows,
    const float PER_NET gamma, float epsilon, const float PER_NET mean,
    const float PER_NET variance, double PER_NET chunks, float PER_NET dgamma, float PER_NET dbeta,
    float PER_NET terms) {
    int count = divide_up(rows, chunk_rows);
#pragma omp parallel for if (rows * C >= WORTH_SHARING)
    for (int chunk = 0; chunk < count; ++chunk) {
        size_t at = (size_t)chunk * chunk_rows * C;
        double* to = chunks + (size_t)chunk * 3 * C;
        int here = smaller(chunk_rows, rows - chunk * chunk_rows), c = 0;
        for (; c + LANES <= C; c += LANES) {
            chunk_sums(x + at + c, dy + at + c, here, C, LANES, mean + c, to + c);
        }
        if (c < C) chunk_sums(x + at + c, dy + at + c, here, C, C - c, mean + c, to + c);
    }
    for (int c = 0; c < C; ++c) {
        double gradient = 0, product = 0, mean_error = 0;
        for (int chunk = 0; chunk < count; ++chunk) {
            const double* sums = chunks + (size_t)chunk * 3 * C + c;
            gradient += sums[0], product += sums[C], mean_error += sums[2 * C];
        }
        mean_error /= rows;
        product -= mean_error * gradient;  // as if the exact mean had been subtracted
        double inverse = 1 / sqrt((double)variance[c] + epsilon);
        dbeta[c] = gradient;
        dgamma[c] = product * inverse;
        double a = gamma[c] * inverse, b = -a * inverse * inverse * product / rows;
        terms[c] = a, terms[C + c] = gradient / rows;
        terms[2 * C + c] = b, terms[3 * C + c] = -b * mean_error;
    }
}

INLINE void input_gradient_chunk(
    const float* x, const float* dy, int rows, int C, const int width, const float* mean,
    const float* terms, bool relu, float* dx) {
    Vector center = load_some(mean, width);
    Vector a = load_some(terms, width), mean_dy = load_some(terms + C, width);
    Vector b = load_some(terms + 2 * C, width), c = load_some(terms + 3 * C, width);
    for (int row = 0; row < rows; ++row) {
        size_t at = (size_t)row * C;
        Vector value = load_some(x + at, width);
        Vector from_mean = load_some(dy + at, width) - mean_dy;
        Vector gradient = a * from_mean + (b * (value - center) + c);
        store_some(dx + at, relu ? gradient * is_positive(value) : gradient, width);
    }
}

// dx as above. With `relu`, x is the output of a ReLU, and dx is with respect to the ReLU's input.
// Twin: ops_numpy.batch_norm_backward
KERNEL batch_norm_input_gradient(
    const float PER_NET x, const float PER_NET dy, int rows, int C, int chunk_rows,
    const float PER_NET mean, const float PER_NET terms, bool relu, float PER_NET dx) {
#pragma omp parallel for if (rows * C >= WORTH_SHARING)
    for (int first = 0; first < rows; first += chunk_rows) {
        int here = smaller(chunk_rows, rows - first), c = 0;
        size_t at = (size_t)first * C;
#define INPUT_GRADIENT(width) \
    input_gradient_chunk(x + at + c, dy + at + c, here, C, width, mean + c, terms + c, relu, \
                         dx + at + c)
        for (; c + LANES <= C; c += LANES) INPUT_GRADIENT(LANES);
        if (c < C) INPUT_GRADIENT(C - c);
    }
}

// moving = momentum * moving + (1 - momentum) * batch.
// Twin: ops_numpy.update_moving
KERNEL update_moving(float PER_NET moving, const float PER_NET batch, float momentum, int count) {
    for (int i = 0; i < count; ++i) moving[i] = momentum * moving[i] + (1 - momentum) * batch[i];
}
