// The forward pass of a block: y = activation(x * kernel + bias), where x is the output of the
// block below: its y after batch normalisation and dropout.
#include "correlation.cuh"
#include "rebuilt.cuh"

// The form of correlate that is compiled; cuda_tiles.py chooses it.
#ifndef FORM_GROUPS
#define FORM_GROUPS 6
#define FORM_SPLITS 1
#define FORM_THREADS 192
#define FORM_BLOCKS 2
#endif
// Whether the block below is rebuilt from the image.
#ifndef REBUILT
#define REBUILT 0
#endif

struct Forward {
    Convolution s;
    Staged source;
    Tables tables;
    int taps, channels, filters, result_rows, result_columns, stride, row_step, column_step;
    Normalized x;
    Rebuilt first;  // the block below, if it is rebuilt
    int images;     // of a tile
    const float *packed, *bias;
    float floor;  // of the activation
    STORED* y;

    // y's moments so far, rows (pixel_warps, PIVOTED, width). They are in shared memory, since the
    // product needs the registers. `pivot` and the members after it are those of the current tile.
    float* rows_of_moments;
    PerNet<float> parts;  // of all runs of tiles, or null
    int width;
    float4 own_bias, pivot, deviations, squares;
    int count;

    __device__ void stage(int image, int top, int left, int channel, float* pixels) {
        // As many as the registers allow
        constexpr int BATCH = FORM_GROUPS > 8 ? 3 : PER_WORD == 1 ? 6 : 4;
        if (REBUILT)
            first.stage<true>(
                x, source.table, source.pixels, images, image, top, left, channel, pixels);
        else
            source.stage<BATCH, SPREAD>(x, image, top, left, channel, pixels);
    }

    __device__ void prefetch(const Tiling& t, int image, int band) const {
        if (REBUILT) return;
        prefetch_rows(x.y, s.B, s.H, s.W, s.Cin, image, t.images, band * stride + t.top,
                      t.source_rows);
    }

    __device__ float4 activated(float4 v) const { return activate(floor, add4(v, own_bias)); }

    __device__ void begin(int row, int channel, float4 first) {
        const float* so_far = rows_of_moments + row * PIVOTED * width + channel;
        bool any = so_far[3 * width] > 0.0f;
        int filter = blockIdx.y * width + channel;
        own_bias = load4_global(bias + (filter < s.Cout ? filter : 0));
        float4 v = activated(first);
        int leader = threadIdx.x % WARP / 4 * 4;  // four lanes of the same channels share a pivot
        v = make_float4(__shfl_sync(ALL_LANES, v.x, leader), __shfl_sync(ALL_LANES, v.y, leader),
                        __shfl_sync(ALL_LANES, v.z, leader), __shfl_sync(ALL_LANES, v.w, leader));
        pivot = any ? load4(so_far) : v;
        deviations = squares = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        count = 0;
    }

    __device__ void take(
        const int (&number)[RESULTS], int, int filter, const float4 (&values)[RESULTS]) {
#pragma unroll
        for (int k = 0; k < RESULTS; ++k) {
            if (number[k] < 0) continue;
            float4 v = put4(y + unsigned(number[k] * s.Cout + filter), activated(values[k]));
            float4 d = sub4(v, pivot);
            deviations = add4(deviations, d);
            squares = fma4(d, d, squares);
            ++count;
        }
    }

    __device__ void end(int row, int channel) {
        deviations = sum_over_quarters(deviations);
        squares = sum_over_quarters(squares);
        float counted = count;
        counted = sum_over_quarters(make_float4(counted, counted, counted, counted)).x;
        __syncwarp();  // all lanes have read what is overwritten now
        if (threadIdx.x % 4) return;
        float* so_far = rows_of_moments + row * PIVOTED * width + channel;
        float all = so_far[3 * width] + counted;
        store4(so_far, pivot);
        store4(so_far + width, add4(load4(so_far + width), deviations));
        store4(so_far + 2 * width, add4(load4(so_far + 2 * width), squares));
        store4(so_far + 3 * width, make_float4(all, all, all, all));
    }

    // Writes the moments of a run of tiles, and starts anew. opaque: so that nothing of this stays
    // in registers during the products.
    __device__ void finish(const Tiling& t, int run) const {
        if (!parts.data) return;
        __syncthreads();
        int first = opaque(blockIdx.y) * width;
        float* part = parts.row(opaque(blockIdx.z)) + run * STATISTICS * s.Cout + first;
        for (int c = opaque(threadIdx.x); c < width; c += blockDim.x) {
            if (first + c < s.Cout)
                add_up_pivoted(rows_of_moments, t.pixel_warps, width, c, part + c, s.Cout);
#pragma unroll 1
            for (int row = 1; row < t.pixel_warps * PIVOTED; ++row)  // the pivot is set anew
                rows_of_moments[row * width + c] = 0.0f;
        }
    }
};

// From y_below (B, H, W, Cin): y (B, Ho, Wo, Cout); and, unless null, parts (runs of tiles,
// STATISTICS, Cout) of y's moments. `packed` is the kernel (pack_weights.cu). gamma_below to
// kept_scale describe the Normalization of y_below, and `kept` has its dropout bits, if any.
// mean_below and variance_below (Cin,) are results if parts_below is not null, else inputs.
//
// If REBUILT, y_below is null. It is rebuilt (rebuilt.cuh) from x_first (B, H, W, Cin) by the kernel,
// bias and activation of the first block, whose sizes are s_first. Otherwise these are not used.
//
// Thread blocks: x runs of tiles; y output channels.
// Twin: block_oracles.forward
extern "C" __global__ void __launch_bounds__(FORM_THREADS, FORM_BLOCKS) block_forward(
    MAY_BE_NULL PerNet<const STORED> y_below, MAY_BE_NULL PerNet<const float> x_first,
    MAY_BE_NULL PerNet<const float> kernel_first, MAY_BE_NULL PerNet<const float> bias_first,
    float floor_first, Convolution s_first, PerNet<const float> packed, PerNet<const float> bias,
    MAY_BE_NULL PerNet<const float> gamma_below, MAY_BE_NULL PerNet<const float> beta_below,
    MAY_BE_NULL PerNet<const float> parts_below, int count_below,
    MAY_BE_NULL PerNet<float> mean_below, MAY_BE_NULL PerNet<float> variance_below,
    float epsilon_below, float kept_scale, MAY_BE_NULL PerNet<const unsigned> kept, Convolution s,
    Tiling t, const int* tables, float floor, PerNet<STORED> y, MAY_BE_NULL PerNet<float> parts) {
    extern __shared__ __align__(16) float shared[];
    int padded = ceil_div(s.Cin, CHUNK) * CHUNK, width = t.channel_warps * WIDE;
    float *scales = shared, *shifts = scales + padded, *rows = shifts + padded;
    float* table = rows + t.pixel_warps * PIVOTED * width;
    int staged = t.images * t.source_rows * t.source_columns, taps = s.kh * s.kw;
    float* pixels = table + Tables::size(staged, 1, taps);
    Rebuilt first_block(s_first, x_first.row(), kernel_first.row(), bias_first.row(), floor_first,
                        t.source_rows, t.source_columns, pixels);
    if (REBUILT) {
        first_block.set_distances();
        pixels += first_block.size(t.images);
    }
    Normalization between{gamma_below.row(), beta_below.row(),     parts_below.row(), count_below,
                          mean_below.row(),  variance_below.row(), epsilon_below,     kept_scale};
    bool writes_moments = parts_below.data && blockIdx.x == 0 && blockIdx.y == 0;
    between.prepare(s.Cin, scales, shifts, writes_moments ? mean_below.row() : nullptr,
                    variance_below.row());
    for (int i = threadIdx.x; i < t.pixel_warps * PIVOTED * width; i += blockDim.x) rows[i] = 0.0f;

    Forward pass{};
    pass.first = first_block;
    pass.images = t.images;
    pass.s = s;
    pass.tables = copy_tables(tables, staged, 1, taps, table);
    pass.source = {s.B, s.H, s.W, s.Cin, pass.tables.staged, staged};
    pass.taps = taps;
    pass.stride = s.sh;
    pass.row_step = pass.column_step = 1;
    pass.channels = s.Cin;
    pass.filters = s.Cout;
    pass.result_rows = s.Ho;
    pass.result_columns = s.Wo;
    pass.x = {y_below.row(), kept.row(), scales, shifts};
    pass.packed = packed.row();
    pass.bias = bias.row();
    pass.floor = floor;
    pass.y = y.row();
    pass.rows_of_moments = rows;
    pass.parts = parts;
    pass.width = width;
    __syncthreads();
    correlate<FORM_GROUPS, FORM_SPLITS>(pass, t, pixels);
}
