// The first block of a network, whose input has few channels. Its products would not fill tensor
// cores, so they are in float32. The time is that of reading or writing y.
//
// A thread block stages the input of some rows of an image at a time. A thread computes four output
// channels (filters) of some pixels, `lanes` apart.
#include "block.cuh"

constexpr int THREADS = 256;
constexpr int PIXELS = 4;  // that a thread computes at a time, with one load of each weight
constexpr int ROWS = 9;    // of the kernel's gradient (K, Cout) that a thread computes

// The distance, in staged elements, from the input of the kernel's row 0 to that of row k; the
// kernel is (K, Cout).
__device__ inline int input_offset(const Convolution& s, const Tiling& t, int k) {
    int tap = k / s.Cin, tap_row = tap / s.kw;
    return (tap_row * t.source_columns + tap - tap_row * s.kw) * s.Cin + k - tap * s.Cin;
}

// Where the input of row 0 is staged for an output pixel.
__device__ inline int pixel_offset(const Convolution& s, const Tiling& t, int pixel) {
    int row = pixel / s.Wo;
    return (row * s.sh * t.source_columns + (pixel - row * s.Wo) * s.sw) * s.Cin;
}

// Stages x (source_rows, source_columns, Cin) of a tile, with zeros around the image.
__device__ inline void stage_rows(
    const float* x, const Convolution& s, const Tiling& t, int image, int top, float* staged) {
    int line = t.source_columns * s.Cin;
    for (int i = threadIdx.x; i < t.source_rows * line; i += blockDim.x) {
        int row = i / line, h = top + row, at = i - row * line;
        int w = t.left + at / s.Cin;
        bool inside = h >= 0 && h < s.H && w >= 0 && w < s.W;
        staged[i] = inside ? __ldg(x + ((image * s.H + h) * s.W + t.left) * s.Cin + at) : 0.0f;
    }
}

// From x (B, H, W, Cin): y (B, Ho, Wo, Cout) = activation(x * kernel + bias); and, unless null,
// parts (runs of tiles, STATISTICS, Cout) of y's moments. Thread blocks: x runs of tiles.
// Twin: block_oracles.forward
extern "C" __global__ void __launch_bounds__(THREADS, 3) block_first_forward(
    PerNet<const float> x, PerNet<const float> kernel, PerNet<const float> bias, Convolution s,
    Tiling t, float floor, PerNet<STORED> y, MAY_BE_NULL PerNet<float> parts) {
    extern __shared__ __align__(16) float shared[];
    int K = s.kh * s.kw * s.Cin, quads = s.Cout / 4, lanes = blockDim.x / quads;
    float *weights = shared, *staged = weights + K * s.Cout, *rows = staged + t.area;
    int* offsets = reinterpret_cast<int*>(rows + lanes * PIVOTED * s.Cout);  // (K,)
    for (int i = threadIdx.x; i < K * s.Cout; i += blockDim.x) weights[i] = kernel.row()[i];
    for (int k = threadIdx.x; k < K; k += blockDim.x) offsets[k] = input_offset(s, t, k);

    int lane = threadIdx.x / quads, filter = threadIdx.x % quads * 4;
    bool works = lane < lanes;
    float4 add = load4_global(bias.row() + filter);
    float4 pivot, deviations, squares;  // of a run of tiles
    int count;
    for (int tile = blockIdx.x; tile < t.tiles; tile = next_tile(t, tile)) {
        if (begins_run(t, tile)) {
            pivot = deviations = squares = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            count = 0;
        }
        TilePlace of_tile(t, tile);
        int image = of_tile.image, band = of_tile.row;
        int here = min(t.rows, s.Ho - band) * s.Wo;
        __syncthreads();  // all threads have read what was staged before
        stage_rows(x.row(), s, t, image, band * s.sh + t.top, staged);
        __syncthreads();
        STORED* result = y.row() + (image * s.Ho + band) * s.Wo * s.Cout + filter;
        for (int first = lane; works && first < here; first += PIXELS * lanes) {
            float4 sums[PIXELS];
            int at[PIXELS];
#pragma unroll
            for (int p = 0; p < PIXELS; ++p) {
                sums[p] = add;
                at[p] = pixel_offset(s, t, min(first + p * lanes, here - 1));
            }
            for (int k = 0; k < K; ++k) {
                float4 w = load4(weights + k * s.Cout + filter);
                const float* from = staged + offsets[k];
#pragma unroll
                for (int p = 0; p < PIXELS; ++p) {
                    float v = from[at[p]];
                    sums[p] = fma4(make_float4(v, v, v, v), w, sums[p]);
                }
            }
#pragma unroll
            for (int p = 0; p < PIXELS; ++p) {
                int pixel = first + p * lanes;
                if (pixel >= here) break;
                float4 v = put4(result + pixel * s.Cout, activate(floor, sums[p]));
                if (count == 0) pivot = v;
                float4 d = sub4(v, pivot);
                deviations = add4(deviations, d);
                squares = fma4(d, d, squares);
                ++count;
            }
        }
        if (!parts.data || !ends_run(t, tile)) continue;
        if (works) {
            float* row = rows + lane * PIVOTED * s.Cout + filter;
            float n = count;
            store4(row, pivot);
            store4(row + s.Cout, deviations);
            store4(row + 2 * s.Cout, squares);
            store4(row + 3 * s.Cout, make_float4(n, n, n, n));
        }
        __syncthreads();
        float* part = parts.row() + run_of(t, tile) * STATISTICS * s.Cout;
        for (int n = threadIdx.x; n < s.Cout; n += blockDim.x)
            add_up_pivoted(rows, lanes, s.Cout, n, part + n, s.Cout);
    }
}

// From x (B, H, W, Cin), dx and y (B, Ho, Wo, Cout): parts (runs of tiles, K * Cout + Cout) of the
// gradients with respect to kernel and bias; and those of gamma and beta (Cout,). `sums_parts` and
// the values after it give dz, as in block_input_gradient. Thread blocks: x as in
// block_first_forward; y ROWS rows of the kernel each.
// Twin: block_oracles.weight_gradient
extern "C" __global__ void __launch_bounds__(THREADS, 2) block_first_weight_gradient(
    PerNet<const float> x, PerNet<const STORED> dx, PerNet<const STORED> y,
    PerNet<const float> sums_parts, int sums_count, PerNet<const float> gamma,
    PerNet<const float> mean, PerNet<const float> variance, float epsilon, float floor,
    Convolution s, Tiling t, PerNet<float> parts, PerNet<float> dgamma, PerNet<float> dbeta) {
    extern __shared__ __align__(16) float shared[];
    int K = s.kh * s.kw * s.Cin, quads = s.Cout / 4, lanes = blockDim.x / quads;
    int padded = ceil_div(s.Cout, CHUNK) * CHUNK;
    float *as = shared, *bs = as + padded, *cs = bs + padded, *staged = cs + padded;
    float* lane_sums = staged + t.area;  // (lanes, Cout)
    NormalizationGradient gradient{gamma.row(), sums_parts.row(), sums_count, mean.row(),
                                   variance.row(), epsilon, s.B * s.Ho * s.Wo};
    bool writes_gradients = blockIdx.x == 0 && blockIdx.y == 0;
    gradient.prepare(s.Cout, as, bs, cs, writes_gradients ? dgamma.row() : nullptr, dbeta.row());
    __syncthreads();

    int first_row = blockIdx.y * ROWS, own_rows = min(ROWS, K - first_row);
    int lane = threadIdx.x / quads, filter = threadIdx.x % quads * 4;
    bool works = lane < lanes;
    BeforeActivation dz{dx.row(), y.row(), as, bs, cs, floor};
    dz.channels(filter);
    int offset[ROWS];
#pragma unroll
    for (int k = 0; k < ROWS; ++k)
        offset[k] = input_offset(s, t, min(first_row + k, K - 1));
    float4 sums[ROWS];  // of a run of tiles
    for (int tile = blockIdx.x; tile < t.tiles; tile = next_tile(t, tile)) {
        if (begins_run(t, tile)) {
#pragma unroll
            for (int k = 0; k < ROWS; ++k) sums[k] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            dz.sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        }
        TilePlace of_tile(t, tile);
        int image = of_tile.image, band = of_tile.row;
        int here = min(t.rows, s.Ho - band) * s.Wo;
        __syncthreads();  // all threads have read what was staged before
        stage_rows(x.row(), s, t, image, band * s.sh + t.top, staged);
        __syncthreads();
        int before = (image * s.Ho + band) * s.Wo * s.Cout + filter;
        for (int first = lane; works && first < here; first += PIXELS * lanes) {
            BeforeActivation::Raw raw[PIXELS];
#pragma unroll
            for (int p = 0; p < PIXELS; ++p)
                raw[p] = dz.load(before + min(first + p * lanes, here - 1) * s.Cout, true);
#pragma unroll
            for (int p = 0; p < PIXELS; ++p) {
                int pixel = first + p * lanes;
                if (pixel >= here) break;
                float4 v = dz.finish(raw[p]);
                const float* from = staged + pixel_offset(s, t, pixel);
#pragma unroll
                for (int k = 0; k < ROWS; ++k) {
                    float input = from[offset[k]];
                    sums[k] = fma4(make_float4(input, input, input, input), v, sums[k]);
                }
            }
        }
        if (!ends_run(t, tile)) continue;

        // Adds up the sums of all lanes in order: of each row of the kernel, and then of the bias.
        float* part = parts.row() + run_of(t, tile) * (K * s.Cout + s.Cout);
        for (int k = 0; k <= ROWS; ++k) {
            bool is_bias = k == ROWS;
            if (is_bias ? blockIdx.y > 0 : k >= own_rows) continue;
            __syncthreads();
            float4 v = dz.sum;
#pragma unroll
            for (int row = 0; row < ROWS; ++row)
                if (row == k) v = sums[row];
            if (works) store4(lane_sums + lane * s.Cout + filter, v);
            __syncthreads();
            for (int n = threadIdx.x; n < s.Cout; n += blockDim.x) {
                float sum = 0.0f;
                for (int other = 0; other < lanes; ++other) sum += lane_sums[other * s.Cout + n];
                part[(is_bias ? K : first_row + k) * s.Cout + n] = sum;
            }
        }
    }
}
