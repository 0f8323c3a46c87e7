// The gradient of a block with respect to its input: dx_below from dx (block.cuh says what dx is).
// It passes through the block's batch normalisation and activation (which gives dz, computed while
// it is staged), its convolution, and the dropout of the block below.
#include "correlation.cuh"

// The form of correlate that is compiled; cuda_tiles.py chooses it.
#ifndef FORM_GROUPS
#define FORM_GROUPS 6
#define FORM_SPLITS 1
#define FORM_THREADS 192
#define FORM_BLOCKS 2
#endif

struct InputGradient {
    Convolution s;
    Staged source;
    Tables tables;
    int taps, channels, filters, result_rows, result_columns, stride, row_step, column_step;
    BeforeActivation dz;
    const float* packed;
    // Of the block below: its activation, its dropout's bits and scale, and inverse and shift of
    // its normalised activation z = y_below * inverse + shift.
    const STORED* y_below;
    const unsigned* kept;
    float kept_scale;
    const float *inverses, *shifts;  // (Cin,) in shared memory
    STORED* dx_below;

    // The sums of dx_below and of dx_below * z so far, rows (pixel_warps, SUMS, width) in shared
    // memory. `sum` and `sum_z` are those of the current tile.
    float* rows_of_sums;
    int width;
    float4 sum, sum_z;

    __device__ void stage(int image, int top, int left, int channel, float* pixels) {
        source.stage<4, SPREAD>(dz, image, top, left, channel, pixels);
    }

    __device__ void prefetch(const Tiling& t, int image, int band) const {
        for (const STORED* array : {dz.dx, dz.y})
            prefetch_rows(array, s.B, s.Ho, s.Wo, s.Cout, image, t.images, band + t.top,
                          t.source_rows);
        prefetch_rows(y_below, s.B, s.H, s.W, s.Cin, image, t.images, band * row_step,
                      t.rows * row_step);
    }

    __device__ void begin(int, int, float4) { sum = sum_z = make_float4(0.0f, 0.0f, 0.0f, 0.0f); }

    struct Raw {
        Loaded4 y;
        unsigned kept;
    };
    __device__ Raw load(int pixel, int channel) const {
        unsigned at = pixel * s.Cin + channel;
        return {load4_global(y_below + at), four_bits(kept, at)};
    }

    __device__ void take(int pixel, int channel, float4 v, const Raw& raw) {
        unsigned at = pixel * s.Cin + channel;
        v = make_float4(v.x * kept_scale, v.y * kept_scale, v.z * kept_scale, v.w * kept_scale);
        v = put4(dx_below + at, keep4(v, raw.kept));
        float4 z = fma4(widen(raw.y), load4(inverses + channel), load4(shifts + channel));
        sum = add4(sum, v);
        sum_z = fma4(v, z, sum_z);
    }

    __device__ void end(int row, int channel) {
        sum = sum_over_quarters(sum);
        sum_z = sum_over_quarters(sum_z);
        if (threadIdx.x % 4) return;
        float* so_far = rows_of_sums + row * SUMS * width + channel;
        store4(so_far, add4(load4(so_far), sum));
        store4(so_far + width, add4(load4(so_far + width), sum_z));
    }
};

// From dx and y (B, Ho, Wo, Cout): dx_below (B, H, W, Cin), and parts (thread blocks, SUMS, Cin) of
// the sums of dx_below and of dx_below * z, with z the normalised y_below (B, H, W, Cin).
// sums_parts (sums_count, SUMS, Cout) has the same parts for dx and y. mean and variance are
// moments of y; mean_below and variance_below are those of y_below.
//
// Thread blocks: x tiles, i, i + gridDim.x and so on; y input channels, and groups of phases.
// Twin: block_oracles.input_gradient
extern "C" __global__ void __launch_bounds__(FORM_THREADS, FORM_BLOCKS) block_input_gradient(
    PerNet<const STORED> dx, PerNet<const STORED> y, PerNet<const float> sums_parts, int sums_count,
    PerNet<const float> gamma, PerNet<const float> mean, PerNet<const float> variance,
    float epsilon, float floor, PerNet<const float> packed, Convolution s, Tiling t,
    const int* tables, int phases, PerNet<const STORED> y_below, PerNet<const float> mean_below,
    PerNet<const float> variance_below, float epsilon_below,
    MAY_BE_NULL PerNet<const unsigned> kept, float kept_scale, PerNet<STORED> dx_below,
    PerNet<float> parts) {
    extern __shared__ __align__(16) float shared[];
    int padded = ceil_div(s.Cout, CHUNK) * CHUNK, padded_below = ceil_div(s.Cin, CHUNK) * CHUNK;
    float *as = shared, *bs = as + padded, *cs = bs + padded;
    float *inverses = cs + padded, *shifts = inverses + padded_below;
    int width = t.channel_warps * WIDE;
    float *rows = shifts + padded_below, *table = rows + t.pixel_warps * SUMS * width;
    int staged = t.images * t.source_rows * t.source_columns, taps = s.kh * s.kw;
    float* pixels = table + Tables::size(staged, phases, taps);
    NormalizationGradient gradient{gamma.row(), sums_parts.row(), sums_count, mean.row(),
                                   variance.row(), epsilon, s.B * s.Ho * s.Wo};
    gradient.prepare(s.Cout, as, bs, cs, pixels, t.area);
    for (int c = threadIdx.x; c < s.Cin; c += blockDim.x) {
        Precise inverse = inverse_deviation(variance_below.row()[c], epsilon_below);
        inverses[c] = float(inverse);
        shifts[c] = float(-(inverse * mean_below.row()[c]));
    }
    for (int i = threadIdx.x; i < t.pixel_warps * SUMS * width; i += blockDim.x) rows[i] = 0.0f;

    InputGradient pass{};
    pass.s = s;
    pass.tables = copy_tables(tables, staged, phases, taps, table);
    pass.source = {s.B, s.Ho, s.Wo, s.Cout, pass.tables.staged, staged};
    pass.taps = taps;
    pass.stride = 1;
    pass.row_step = s.sh;
    pass.column_step = s.sw;
    pass.channels = s.Cout;
    pass.filters = s.Cin;
    pass.result_rows = s.H;
    pass.result_columns = s.W;
    pass.dz = {dx.row(), y.row(), as, bs, cs, floor};
    pass.packed = packed.row();
    pass.y_below = y_below.row();
    pass.kept = kept.row();
    pass.kept_scale = kept_scale;
    pass.inverses = inverses;
    pass.shifts = shifts;
    pass.dx_below = dx_below.row();
    pass.rows_of_sums = rows;
    pass.width = width;
    __syncthreads();
    correlate<FORM_GROUPS, FORM_SPLITS>(pass, t, pixels);

    __syncthreads();
    int first = blockIdx.y / t.groups * width;
    float* part =
        parts.row() + (blockIdx.x * t.groups + blockIdx.y % t.groups) * SUMS * s.Cin + first;
    for (int i = threadIdx.x; i < SUMS * width; i += blockDim.x) {
        int which = i / width, channel = i - which * width;
        if (first + channel >= s.Cin) continue;
        float total = 0.0f;
        for (int row = 0; row < t.pixel_warps; ++row) total += rows[row * SUMS * width + i];
        part[which * s.Cin + channel] = total;
    }
}
