// Batch normalisation. Source: S. Ioffe, C. Szegedy, arXiv:1502.03167.
//
// Images and pixels are one axis of rows here: x (rows, C). A thread block takes a tile of channels
// and a chunk of rows. threadIdx.x is the channel, so that a warp reads neighbouring elements; a
// thread takes ROWS_A_THREAD rows, blockDim.y apart. The thread block's shape depends on C alone
// (ops_cuda.py), so the chunks, and the bits of a sum, depend on the layer alone.
//
// A sum over all rows takes two launches. First each thread block sums its chunk in float; then the
// chunks' sums are added up in double, channel by channel.
#include "update.cuh"

constexpr int THREADS = 256;
constexpr int ROWS_A_THREAD = 16;

// The elements of x that a thread handles: one channel of every blockDim.y-th row of the chunk.
struct Place {
    int C, channel;
    int first, count;  // the chunk's first row, and its number of rows
    bool inside;       // false in the last tile for channels that x does not have

    __device__ Place(int rows, int channels) {
        int chunk = ROWS_A_THREAD * blockDim.y;
        C = channels;
        channel = blockIdx.y * blockDim.x + threadIdx.x;
        first = blockIdx.x * chunk;
        count = min(chunk, rows - first);
        inside = channel < C;
    }

    __device__ int row(int k) const { return k * blockDim.y + threadIdx.y; }
    __device__ bool has(int k) const { return inside && row(k) < count; }
    __device__ int at(int k) const { return (first + row(k)) * C + channel; }

    // Loads the elements into registers; so every loop over them must be unrolled. All loads are
    // issued before the first value is used. A loop that also stored could not do that: the
    // compiler must assume that a store changes what is loaded next.
    __device__ void load(const float* x, float (&values)[ROWS_A_THREAD]) const {
#pragma unroll
        for (int k = 0; k < ROWS_A_THREAD; ++k) values[k] = has(k) ? x[at(k)] : 0.0f;
    }
};

// Sums the thread block's values for each channel; all threads of a channel get the sum. T has a +.
template <typename T>
__device__ T sum_over_rows(T value) {
    __shared__ T sums[THREADS];  // (blockDim.y, blockDim.x)
    int at = threadIdx.y * blockDim.x + threadIdx.x;
    sums[at] = value;
    for (int half = blockDim.y / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.y < half) sums[at] = sums[at] + sums[at + half * blockDim.x];
    }
    __syncthreads();
    T total = sums[threadIdx.x];
    __syncthreads();  // the next sum overwrites it
    return total;
}

// ---------------------------------------------------------------------------------------------
// Statistics. The mean of the squares minus the square of the mean would lose all digits where the
// mean is large compared with the deviation. So each chunk, while its elements are in registers,
// computes its own mean (the pivot) and sums the deviations from it and their squares. In the end
// these sums are converted to deviations from the mean of all rows. Source: T. Chan, G. Golub, R.
// LeVeque, "Algorithms for computing the sample variance", The American Statistician 37, 1983.

// Two sums in one value of eight bytes. As two floats they would use every other bank of shared
// memory only, which causes conflicts.
__device__ inline float2 operator+(float2 a, float2 b) { return make_float2(a.x + b.x, a.y + b.y); }

// Writes for each chunk and channel the pivot, which is the chunk's mean up to rounding, and the
// sums of (x - pivot) and of (x - pivot)^2: chunks (3, chunk_count, C).
// Twin: ops_numpy.batch_norm
extern "C" __global__ void __launch_bounds__(THREADS) batch_norm_chunks(
    PerNet<const float> x, int rows, int C, PerNet<float> chunks) {
    Place place(rows, C);
    float values[ROWS_A_THREAD];
    place.load(x.row(), values);

    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < ROWS_A_THREAD; ++k) sum += values[k];
    float pivot = sum_over_rows(sum) / place.count;

    float deviations = 0.0f, squares = 0.0f;
#pragma unroll
    for (int k = 0; k < ROWS_A_THREAD; ++k) {
        float deviation = place.has(k) ? values[k] - pivot : 0.0f;
        deviations += deviation;
        squares = fmaf(deviation, deviation, squares);
    }
    float2 total = sum_over_rows(make_float2(deviations, squares));
    if (threadIdx.y == 0 && place.inside) {
        int size = gridDim.x * C;
        float* result = chunks.row() + blockIdx.x * C + place.channel;
        result[0] = pivot;
        result[size] = total.x;
        result[2 * size] = total.y;
    }
}

// The mean and the biased variance (C,) from the chunks, and mean_error (C,): the exact mean minus
// the mean rounded to float. A thread block takes a tile of channels; each row of its threads takes
// every blockDim.y-th chunk.
// Twin: ops_numpy.batch_norm
extern "C" __global__ void __launch_bounds__(THREADS) batch_norm_statistics(
    PerNet<const float> chunks, int chunk_count, int chunk_rows, int rows, int C,
    PerNet<float> mean, PerNet<float> variance, PerNet<float> mean_error) {
    int channel = blockIdx.x * blockDim.x + threadIdx.x;
    // Threads after the last channel take part in the sums with zeros.
    int stop = channel < C ? chunk_count : 0;
    const float* pivots = chunks.row() + channel;  // (chunk_count, C), as are the next two
    const float* sums = pivots + chunk_count * C;
    const float* squares = sums + chunk_count * C;

    double total = 0.0;
    for (int i = threadIdx.y; i < stop; i += blockDim.y) {
        int count = min(chunk_rows, rows - i * chunk_rows);
        total += double(count) * pivots[i * C] + sums[i * C];
    }
    double exact_mean = sum_over_rows(total) / rows;

    total = 0.0;  // of (x - mean)^2 = ((x - pivot) + d)^2, with d = pivot - mean
    for (int i = threadIdx.y; i < stop; i += blockDim.y) {
        int count = min(chunk_rows, rows - i * chunk_rows);
        double d = pivots[i * C] - exact_mean;
        total += squares[i * C] + d * (2.0 * sums[i * C] + count * d);
    }
    total = sum_over_rows(total);
    if (threadIdx.y == 0 && channel < C) {
        mean.row()[channel] = exact_mean;
        variance.row()[channel] = total < 0.0 ? 0.0 : total / rows;  // NaN stays NaN
        mean_error.row()[channel] = exact_mean - float(exact_mean);
    }
}

// y = gamma * (x - mean) / sqrt(variance + epsilon) + beta. Where x and the mean are large and
// close, x - mean is exact in float; mean_error is subtracted from the difference.
// Twin: ops_numpy.batch_norm
extern "C" __global__ void __launch_bounds__(THREADS) batch_norm_normalize(
    PerNet<const float> x, int rows, int C, PerNet<const float> gamma, PerNet<const float> beta,
    float epsilon, PerNet<const float> mean, PerNet<const float> variance,
    MAY_BE_NULL PerNet<const float> mean_error, PerNet<float> y) {
    Place place(rows, C);
    if (!place.inside) return;
    float values[ROWS_A_THREAD];
    place.load(x.row(), values);

    int c = place.channel;
    float center = mean.row()[c];
    float scale = gamma.row()[c] / sqrtf(variance.row()[c] + epsilon);
    float shift = beta.row()[c];
    if (mean_error.data) shift = fmaf(-mean_error.row()[c], scale, shift);
#pragma unroll
    for (int k = 0; k < ROWS_A_THREAD; ++k)
        if (place.has(k)) y.row()[place.at(k)] = fmaf(values[k] - center, scale, shift);
}

// ---------------------------------------------------------------------------------------------
// Gradients. With n rows, sums over the rows, and z = (x - mean) / sqrt(variance + epsilon):
//     dbeta = sum of dy,  dgamma = sum of dy * z
//     dx = gamma / sqrt(variance + epsilon) * (dy - dbeta / n - z * dgamma / n)

struct Products {
    float dy, dy_x, x;  // sums of dy, of dy * (x - mean), and of x - mean

    __device__ Products operator+(Products other) const {
        return {dy + other.dy, dy_x + other.dy_x, x + other.x};
    }
};

// Writes the Products of each chunk and channel: chunks (3, chunk_count, C).
// Twin: ops_numpy.batch_norm_backward
extern "C" __global__ void __launch_bounds__(THREADS) batch_norm_gradient_chunks(
    PerNet<const float> x, PerNet<const float> dy, int rows, int C, PerNet<const float> mean,
    PerNet<float> chunks) {
    Place place(rows, C);
    float values[ROWS_A_THREAD], gradients[ROWS_A_THREAD];
    place.load(x.row(), values);
    place.load(dy.row(), gradients);

    float center = place.inside ? mean.row()[place.channel] : 0.0f;
    Products of_thread{0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int k = 0; k < ROWS_A_THREAD; ++k) {
        float deviation = place.has(k) ? values[k] - center : 0.0f;
        of_thread.dy += gradients[k];
        of_thread.dy_x = fmaf(gradients[k], deviation, of_thread.dy_x);
        of_thread.x += deviation;
    }
    Products total = sum_over_rows(of_thread);
    if (threadIdx.y == 0 && place.inside) {
        int size = gridDim.x * C;
        float* result = chunks.row() + blockIdx.x * C + place.channel;
        result[0] = total.dy;
        result[size] = total.dy_x;
        result[2 * size] = total.x;
    }
}

// dgamma and dbeta (C,) from the chunks, and terms (3, C): scale, shift and slope in
// dx = scale * (dy - shift - slope * (x - mean)).
//
// The saved mean has a rounding error; the sum of (x - mean) gives it.
// Twin: ops_numpy.batch_norm_backward
extern "C" __global__ void __launch_bounds__(THREADS) batch_norm_gradient_sums(
    PerNet<const float> chunks, int chunk_count, int rows, int C, PerNet<const float> gamma,
    float epsilon, PerNet<const float> variance, PerNet<float> dgamma, PerNet<float> dbeta,
    PerNet<float> terms) {
    int channel = blockIdx.x * blockDim.x + threadIdx.x;
    int stop = channel < C ? chunk_count : 0;
    const float* sums = chunks.row() + channel;  // (3, chunk_count, C)

    double dy = 0.0, dy_x = 0.0, x = 0.0;
    for (int i = threadIdx.y; i < stop; i += blockDim.y) {
        dy += sums[i * C];
        dy_x += sums[(chunk_count + i) * C];
        x += sums[(2 * chunk_count + i) * C];
    }
    dy = sum_over_rows(dy);
    dy_x = sum_over_rows(dy_x);
    double mean_error = sum_over_rows(x) / rows;
    if (threadIdx.y == 0 && channel < C) {
        double inverse = 1.0 / sqrt(double(variance.row()[channel]) + epsilon);
        double sum_dy_z = (dy_x - mean_error * dy) * inverse;
        double slope = sum_dy_z * inverse / rows;
        dgamma.row()[channel] = sum_dy_z;
        dbeta.row()[channel] = dy;
        terms.row()[channel] = gamma.row()[channel] * inverse;
        terms.row()[C + channel] = dy / rows - slope * mean_error;
        terms.row()[2 * C + channel] = slope;
    }
}

// dx = scale * (dy - shift - slope * (x - mean)), with scale, shift and slope from terms (3, C).
// Twin: ops_numpy.batch_norm_backward
extern "C" __global__ void __launch_bounds__(THREADS) batch_norm_input_gradient(
    PerNet<const float> x, PerNet<const float> dy, int rows, int C, PerNet<const float> mean,
    PerNet<const float> terms, PerNet<float> dx) {
    Place place(rows, C);
    if (!place.inside) return;
    float values[ROWS_A_THREAD], gradients[ROWS_A_THREAD];
    place.load(x.row(), values);
    place.load(dy.row(), gradients);

    int c = place.channel;
    float center = mean.row()[c], scale = terms.row()[c];
    float shift = terms.row()[C + c], slope = terms.row()[2 * C + c];
#pragma unroll
    for (int k = 0; k < ROWS_A_THREAD; ++k)
        if (place.has(k)) {
            float difference = fmaf(-slope, values[k] - center, gradients[k] - shift);
            dx.row()[place.at(k)] = scale * difference;
        }
}

// moving (C,) = keep * moving + take * batch; keep: the momentum, take: 1 - momentum.
// Twin: ops_numpy.update_moving
extern "C" __global__ void update_moving(
    PerNet<float> moving, PerNet<const float> batch, float keep, float take, int C) {
    int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c < C) moving.row()[c] = moved(moving.row()[c], batch.row()[c], keep, take);
}
