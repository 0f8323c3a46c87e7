// Batch normalisation on a CPU. Source: S. Ioffe, C. Szegedy, arXiv:1502.03167.
//
// x is (rows, C): each pixel of each image is a row. Threads share chunks of rows. A chunk fits the
// L1 cache, so reading it twice is cheap, and it is short enough for sums in float. The chunks'
// sums are added in double, in a fixed order: results do not depend on the number of threads.
//
// batch_norm_statistics, _normalize, _gradient_sums and _input_gradient are the operations of a
// layer by itself. In a network of blocks (backends/cpu_blocks.py) a convolution may compute the
// moments or the sums of its groups of pixels, and normalise what it reads. So there each part is a
// kernel: _moments and _merge, _apply, _dropped_sums and _terms.
#include <math.h>

#include "vector.h"

enum {
    SUMS = 4,  // independent partial sums, each of every fourth row: an addition takes 4 cycles
    MERGED = 8,  // channels whose groups are merged at a time
};

INLINE Vector total(const Vector sum[SUMS]) { return (sum[0] + sum[1]) + (sum[2] + sum[3]); }

// to = v + more, in double.
INLINE void store_doubles(double* to, Vector v, Vector more, int count) {
    for (int i = 0; i < count; ++i) to[i] = (double)v[i] + more[i];
}

// -------------------------------------------------------------------------------------------------
// Statistics

// The moments (3, C) of a chunk, for `width` channels: the number of rows, their mean, and the sum
// of squared deviations from it. The first row, then the mean, is subtracted before summing, so
// that a large mean costs no precision.
INLINE void chunk_moments(const float* x, int rows, int C, const int width, double* moments) {
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
    for (int i = 0; i < width; ++i) moments[i] = rows;
    store_doubles(moments + C, first, from_first + mean_error, width);
    Vector around_mean = total(square) - mean_error * mean_error * (float)rows;
    store_doubles(moments + 2 * C, around_mean, (Vector){0}, width);
}

// The moments (groups, 3, C) of x; each chunk is a group.
// Twin: ops_numpy.batch_norm
KERNEL batch_norm_moments(
    const float PER_NET x, int rows, int C, int chunk_rows, double PER_NET moments) {
#pragma omp parallel for if (rows * C >= WORTH_SHARING)
    for (int first = 0; first < rows; first += chunk_rows) {
        int here = smaller(chunk_rows, rows - first), c = 0;
        const float* from = x + (size_t)first * C;
        double* to = moments + (size_t)first / chunk_rows * 3 * C;
        for (; c + LANES <= C; c += LANES) chunk_moments(from + c, here, C, LANES, to + c);
        if (c < C) chunk_moments(from + c, here, C, C - c, to + c);
    }
}

// mean and biased variance of all groups, and mean_error: the exact mean minus the mean rounded to
// float. For `width` channels.
INLINE void merge_groups(
    const double* moments, int groups, int C, const int width, float* mean, float* variance,
    float* mean_error) {
    double rows[MERGED] = {0}, exact[MERGED] = {0}, squares[MERGED] = {0};
    for (int group = 0; group < groups; ++group) {
        const double* of_group = moments + (size_t)group * 3 * C;
        for (int i = 0; i < width; ++i) {
            rows[i] += of_group[i];
            exact[i] += of_group[i] * of_group[C + i];
        }
    }
    for (int i = 0; i < width; ++i) exact[i] /= rows[i];
    for (int group = 0; group < groups; ++group) {
        const double* of_group = moments + (size_t)group * 3 * C;
        for (int i = 0; i < width; ++i) {
            double from_exact = of_group[C + i] - exact[i];
            squares[i] += of_group[2 * C + i] + of_group[i] * from_exact * from_exact;
        }
    }
    for (int i = 0; i < width; ++i) {
        mean[i] = exact[i];
        variance[i] = squares[i] / rows[i];
        mean_error[i] = exact[i] - mean[i];
    }
}

INLINE void merge_moments(
    const double* moments, int groups, int C, float* mean, float* variance, float* mean_error) {
    int c = 0;
#define MERGE(width) \
    merge_groups(moments + c, groups, C, width, mean + c, variance + c, mean_error + c)
    for (; c + MERGED <= C; c += MERGED) MERGE(MERGED);
    if (c < C) MERGE(C - c);
}

// mean and biased variance (C,) of x, and mean_error (C,): the exact mean minus the mean rounded to
// float. chunks (.., 3, C) is working memory.
// Twin: ops_numpy.batch_norm
KERNEL batch_norm_statistics(
    const float PER_NET x, int rows, int C, int chunk_rows, double PER_NET chunks,
    float PER_NET mean, float PER_NET variance, float PER_NET mean_error) {
    batch_norm_moments(x, rows, C, chunk_rows, chunks);
    merge_moments(chunks, divide_up(rows, chunk_rows), C, mean, variance, mean_error);
}

// -------------------------------------------------------------------------------------------------
// Normalisation: y = (x - mean) * scale + shift

// gamma / sqrt(variance + epsilon)
INLINE Vector scale_of(
    const float* gamma, float epsilon, const float* variance, const int width) {
    Vector scale = {0};
    for (int i = 0; i < width; ++i) scale[i] = gamma[i] / sqrtf(variance[i] + epsilon);
    return scale;
}

// beta - mean_error * scale; a null mean_error is 0.
INLINE Vector shift_of(const float* beta, const float* mean_error, Vector scale, const int width) {
    Vector shift = load_some(beta, width);
    return mean_error ? shift - load_some(mean_error, width) * scale : shift;
}

INLINE void normalize_chunk(
    const float* x, int rows, int C, const int width, Vector mean, Vector scale, Vector shift,
    const bool* mask, float keep, float* y) {
    for (int row = 0; row < rows; ++row) {
        size_t at = (size_t)row * C;
        Vector value = (load_some(x + at, width) - mean) * scale + shift;
        store_some(y + at, mask ? drop(value, keep, mask + at, width) : value, width);
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
    { \
        Vector scale = scale_of(gamma + c, epsilon, variance + c, width); \
        Vector shift = shift_of(beta + c, mean_error ? mean_error + c : NULL, scale, width); \
        normalize_chunk(x + at + c, here, C, width, load_some(mean + c, width), scale, shift, \
                        NULL, 1, y + at + c); \
    }
        for (; c + LANES <= C; c += LANES) NORMALIZE(LANES)
        if (c < C) NORMALIZE(C - c)
    }
}

// scale = gamma / sqrt(variance + epsilon), shift = beta - mean_error * scale (C,); a null
// mean_error is 0.
// Twin: ops_numpy.batch_norm_inference
KERNEL batch_norm_scale(
    int C, const float PER_NET gamma, const float PER_NET beta, float epsilon,
    const float PER_NET variance, MAY_BE_NULL const float PER_NET mean_error, float PER_NET scale,
    float PER_NET shift) {
    for (int c = 0; c < C; c += LANES) {
        int width = smaller(LANES, C - c);
        Vector of_here = scale_of(gamma + c, epsilon, variance + c, width);
        const float* error = mean_error ? mean_error + c : NULL;
        store_some(scale + c, of_here, width);
        store_some(shift + c, shift_of(beta + c, error, of_here, width), width);
    }
}

// mean, variance and mean_error (C,) of all groups, from their moments (groups, 3, C), and the
// scale and shift (C,) that follow from them.
// Twin: ops_numpy.batch_norm
KERNEL batch_norm_merge(
    const double PER_NET moments, int groups, int C, const float PER_NET gamma,
    const float PER_NET beta, float epsilon, float PER_NET mean, float PER_NET variance,
    float PER_NET mean_error, float PER_NET scale, float PER_NET shift) {
    merge_moments(moments, groups, C, mean, variance, mean_error);
    batch_norm_scale(C, gamma, beta, epsilon, variance, mean_error, scale, shift);
}

// y = (x - mean) * scale + shift, then, unless mask is null: times keep where mask, else 0.
// Twin: ops_numpy.batch_norm
KERNEL batch_norm_apply(
    const float PER_NET x, int rows, int C, int chunk_rows, const float PER_NET mean,
    const float PER_NET scale, const float PER_NET shift, MAY_BE_NULL const bool PER_NET mask,
    float keep, float PER_NET y) {
#pragma omp parallel for if (rows * C >= WORTH_SHARING)
    for (int first = 0; first < rows; first += chunk_rows) {
        int here = smaller(chunk_rows, rows - first), c = 0;
        size_t at = (size_t)first * C;
#define APPLY(width) \
    normalize_chunk(x + at + c, here, C, width, load_some(mean + c, width), \
                    load_some(scale + c, width), load_some(shift + c, width), \
                    mask ? mask + at + c : NULL, keep, y + at + c)
        for (; c + LANES <= C; c += LANES) APPLY(LANES);
        if (c < C) APPLY(C - c);
    }
}

// -------------------------------------------------------------------------------------------------
// Gradients

// Sums over the rows of a chunk: of dy, of dy * (x - mean), and, unless deviations is null, of
// x - mean. Unless mask is null, dy is first dropped, and stored so: times keep where mask, else 0.
INLINE void chunk_sums(
    const float* x, const float* dy, int rows, int C, const int width, const float* mean,
    const bool* mask, float keep, float* dropped, double* gradients, double* products,
    double* deviations) {
    Vector center = load_some(mean, width), zero = {0};
    Vector gradient[SUMS] = {{0}}, product[SUMS] = {{0}}, deviation[SUMS] = {{0}};
    for (int row = 0; row < rows; ++row) {
        size_t at = (size_t)row * C;
        Vector d = load_some(x + at, width) - center, g = load_some(dy + at, width);
        if (mask) {
            g = drop(g, keep, mask + at, width);
            store_some(dropped + at, g, width);
        }
        gradient[row % SUMS] += g;
        product[row % SUMS] += g * d;
        if (deviations) deviation[row % SUMS] += d;
    }
    store_doubles(gradients, total(gradient), zero, width);
    store_doubles(products, total(product), zero, width);
    if (deviations) store_doubles(deviations, total(deviation), zero, width);
}

// The sums of each chunk, (.., 2, C): of dy and of dy * (x - mean). Unless mask is null, dy first
// goes back through the dropout: times keep where mask, else 0. The result is stored in `dropped`,
// which may be dy itself.
// Twin: ops_numpy.batch_norm_backward
KERNEL batch_norm_dropped_sums(
    const float PER_NET x, const float PER_NET dy, int rows, int C, int chunk_rows,
    const float PER_NET mean, MAY_BE_NULL const bool PER_NET mask, float keep,
    MAY_BE_NULL float PER_NET dropped, double PER_NET sums) {
#pragma omp parallel for if (rows * C >= WORTH_SHARING)
    for (int first = 0; first < rows; first += chunk_rows) {
        int here = smaller(chunk_rows, rows - first), c = 0;
        size_t at = (size_t)first * C;
        double* to = sums + (size_t)first / chunk_rows * 2 * C;
#define DROPPED_SUMS(width) \
    chunk_sums(x + at + c, dy + at + c, here, C, width, mean + c, mask ? mask + at + c : NULL, \
               keep, mask ? dropped + at + c : NULL, to + c, to + C + c, NULL)
        for (; c + LANES <= C; c += LANES) DROPPED_SUMS(LANES);
        if (c < C) DROPPED_SUMS(C - c);
    }
}

// dgamma, dbeta (C,), and terms (4, C) such that
//
//     dx = terms[0] * (dy - terms[1]) + (terms[2] * (x - mean) + terms[3])
//
// of channel c, from the sums over all rows of dy, of dy * (x - mean), and the mean of x - mean.
// ops_numpy.py has the formula. In this form dx is exactly 0 for a channel of one element.
INLINE void finish_channel(
    int c, int rows, int C, double gradient, double product, double mean_error, const float* gamma,
    float epsilon, const float* variance, float* dgamma, float* dbeta, float* terms) {
    product -= mean_error * gradient;  // as if the exact mean had been subtracted
    double inverse = 1 / sqrt((double)variance[c] + epsilon);
    dbeta[c] = gradient;
    dgamma[c] = product * inverse;
    double a = gamma[c] * inverse, b = -a * inverse * inverse * product / rows;
    terms[c] = a, terms[C + c] = gradient / rows;
    terms[2 * C + c] = b, terms[3 * C + c] = -b * mean_error;
}

// dgamma, dbeta (C,) and terms (4, C) of finish_channel, from the sums (groups, 2, C) of all groups
// and batch_norm_merge's variance and mean_error.
// Twin: ops_numpy.batch_norm_backward
KERNEL batch_norm_terms(
    const double PER_NET sums, int groups, int rows, int C, const float PER_NET gamma,
    float epsilon, const float PER_NET variance, const float PER_NET mean_error,
    float PER_NET dgamma, float PER_NET dbeta, float PER_NET terms) {
    for (int first = 0; first < C; first += MERGED) {
        int width = smaller(MERGED, C - first);
        double gradient[MERGED] = {0}, product[MERGED] = {0};
        for (int group = 0; group < groups; ++group) {
            const double* of_group = sums + (size_t)group * 2 * C + first;
            for (int i = 0; i < width; ++i) {
                gradient[i] += of_group[i];
                product[i] += of_group[C + i];
            }
        }
        for (int i = 0; i < width; ++i) {
            finish_channel(
                first + i, rows, C, gradient[i], product[i], mean_error[first + i], gamma, epsilon,
                variance, dgamma, dbeta, terms);
        }
    }
}

// dgamma, dbeta (C,) and terms (4, C) of finish_channel. chunks (.., 3, C) is working memory. The
// sum of x - mean corrects for the rounding error of mean.
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
#define GRADIENT_SUMS(width) \
    chunk_sums(x + at + c, dy + at + c, here, C, width, mean + c, NULL, 1, NULL, to + c, \
               to + C + c, to + 2 * C + c)
        for (; c + LANES <= C; c += LANES) GRADIENT_SUMS(LANES);
        if (c < C) GRADIENT_SUMS(C - c);
    }
    for (int c = 0; c < C; ++c) {
        double gradient = 0, product = 0, mean_error = 0;
        for (int chunk = 0; chunk < count; ++chunk) {
            const double* sums = chunks + (size_t)chunk * 3 * C + c;
            gradient += sums[0], product += sums[C], mean_error += sums[2 * C];
        }
        finish_channel(
            c, rows, C, gradient, product, mean_error / rows, gamma, epsilon, variance, dgamma,
            dbeta, terms);
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

// dx of finish_channel; it may be dy itself. With `relu`, x is the output of a ReLU, and dx is with
// respect to the ReLU's input.
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
