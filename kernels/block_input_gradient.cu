// The gradient of a block with respect to its input: dx_below from dx (block.cuh says what dx is).
// It passes through the block's batch normalisation and activation (which gives dz, computed while
// it is staged), its convolution, and the dropout of the block below.
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
    // If that block is rebuilt: the places of a tile's pixels in its staged image; and in shared
    // memory, because the product needs the registers, each warp's weights and sums over pixels.
    Rebuilt first;
    int images, top;  // of a tile, as in Tiling
    const int* places;
    int channel_warps;
    float *weights_of_warps, *sums_of_warps;
    ElementSums sums_first;  // during the results of a tile

    // The sums of dx_below and of dx_below * z so far, rows (pixel_warps, SUMS, width) in shared
    // memory. `sum` and `sum_z` are those of the current tile.
    float* rows_of_sums;
    int width;
    float4 sum, sum_z;
    PerNet<float> parts, parts_first;  // of all runs of tiles

    __device__ void stage(int image, int first_row, int left, int channel, float* pixels) {
        if (REBUILT && channel == 0) first.stage_image(image, images, first_row - top, 0);
        source.stage<4, SPREAD>(dz, image, first_row, left, channel, pixels);
    }

    __device__ void prefetch(const Tiling& t, int image, int band) const {
        for (const STORED* array : {dz.dx, dz.y})
            prefetch_rows(array, s.B, s.Ho, s.Wo, s.Cout, image, t.images, band + t.top,
                          t.source_rows);
        if (REBUILT) return;
        prefetch_rows(y_below, s.B, s.H, s.W, s.Cin, image, t.images, band * row_step,
                      t.rows * row_step);
    }

    __device__ void begin(int, int, float4) {
        sum = sum_z = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (REBUILT) load_sums(sums_of_warps + threadIdx.x / WARP * SUMS_OF_WARP, sums_first);
    }

    __device__ void take(
        const int (&number)[RESULTS], int tile_pixel, int channel, const float4 (&values)[RESULTS]) {
        if constexpr (REBUILT)
            take_rebuilt(number, tile_pixel, channel, values);
        else
            take_stored(number, channel, values);
    }

    // Loads for all results are in flight together.
    __device__ void take_stored(
        const int (&number)[RESULTS], int channel, const float4 (&values)[RESULTS]) {
        Loaded4 y[RESULTS];
        unsigned bits[RESULTS];
#pragma unroll
        for (int k = 0; k < RESULTS; ++k) {
            unsigned at = number[k] < 0 ? 0 : number[k] * s.Cin + channel;
            y[k] = load4_global(y_below + at);
            bits[k] = four_bits(kept, at);
        }
        int existing = channel < s.Cin ? channel : 0;
        if (FORM_GROUPS > 8) existing = opaque(existing);  // loaded last, to save registers
        float4 inverse = load4(inverses + existing), shift = load4(shifts + existing);
#pragma unroll
        for (int k = 0; k < RESULTS; ++k) {
            if (number[k] < 0) continue;
            unsigned at = number[k] * s.Cin + channel;
            float4 v = put4(dx_below + at, keep4(scale4(values[k], kept_scale), bits[k]));
            add(v, widen(y[k]), inverse, shift);
        }
    }

    // The same if y_below is rebuilt: dx_below is not stored, but multiplied.
    __device__ void take_rebuilt(
        const int (&number)[RESULTS], int tile_pixel, int channel, const float4 (&values)[RESULTS]) {
        int group = threadIdx.x % WARP / 4, quarter = threadIdx.x % 4, own[2][2];
        int warp = opaque(threadIdx.x / WARP);
        LaneWeights w;
        w.load(
            weights_of_warps + warp % channel_warps * LaneWeights::SIZE_OF_WARP, first.distances);
        channel = opaque(channel);
        if (channel >= s.Cin) channel = 0;  // its results are not used
        float4 inverse = load4(inverses + channel), shift = load4(shifts + channel);
        float4 masked[2][2];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            // opaque: one group after the other, to save registers
            const int* of_group = places + opaque(tile_pixel) + j * 8;
            float4 y[2];
            first.compute(w, __ldg(of_group + group), y);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                int k = j * 2 + half;
                own[j][half] = __ldg(of_group + quarter * 2 + half);
                float4 v = keep4(values[k], number[k] < 0 ? 0 : 0xf);
                masked[j][half] = make_float4(
                    activate_backward(first.floor, y[half].x, v.x, true),
                    activate_backward(first.floor, y[half].y, v.y, true),
                    activate_backward(first.floor, y[half].z, v.z, true),
                    activate_backward(first.floor, y[half].w, v.w, true));
                add(v, y[half], inverse, shift);
            }
        }
        float right[2][OF_PIXELS][2];
        first.patches(own, right);
        add_patches(masked, right, sums_first);
    }

    __device__ void add(float4 v, float4 y, float4 inverse, float4 shift) {
        sum = add4(sum, v);
        sum_z = fma4(v, fma4(y, inverse, shift), sum_z);
    }

    __device__ void end(int row, int channel) {
        sum = sum_over_quarters(sum);
        sum_z = sum_over_quarters(sum_z);
        if (REBUILT) store_sums(sums_first, sums_of_warps + threadIdx.x / WARP * SUMS_OF_WARP);
        if (threadIdx.x % 4) return;
        float* so_far = rows_of_sums + row * SUMS * width + channel;
        store4(so_far, add4(load4(so_far), sum));
        store4(so_far + width, add4(load4(so_far + width), sum_z));
    }

    // Writes the sums of a run of tiles, and starts anew. opaque: so that nothing of this stays in
    // registers during the products.
    __device__ void finish(const Tiling& t, int run) const {
        __syncthreads();
        int net = opaque(blockIdx.z), block = opaque(blockIdx.y), begin = block / t.groups * width;
        int row = run * t.groups + block % t.groups;
        float* part = parts.row(net) + row * SUMS * s.Cin + begin;
        for (int i = opaque(threadIdx.x); i < SUMS * width; i += blockDim.x) {
            int which = i / width, channel = i - which * width;
            float total = 0.0f;
#pragma unroll 1
            for (int row = 0; row < t.pixel_warps; ++row) {
                total += rows_of_sums[row * SUMS * width + i];
                rows_of_sums[row * SUMS * width + i] = 0.0f;
            }
            if (begin + channel < s.Cin) part[which * s.Cin + channel] = total;
        }
        if (!REBUILT) return;
        int elements = first.elements() + 1;
#pragma unroll 1
        for (int warp = 0; warp < t.channel_warps; ++warp)
            write_sums(sums_of_warps + warp * SUMS_OF_WARP, t.pixel_warps, t.channel_warps,
                       elements, s.Cin, begin + warp * WIDE,
                       parts_first.row(net) + run * elements * s.Cin);
        __syncthreads();
        clear_sums(sums_of_warps, t.pixel_warps * t.channel_warps);
    }
};

// From dx and y (B, Ho, Wo, Cout): dx_below (B, H, W, Cin), and parts (runs of tiles by groups of
// phases, SUMS, Cin) of the sums of dx_below and of dx_below * z, with z the normalised y_below
// (B, H, W, Cin). sums_parts (sums_count, SUMS, Cout) has the same parts for dx and y. mean and
// variance are moments of y; mean_below and variance_below are those of y_below.
//
// If REBUILT, y_below and dx_below are null. y_below is rebuilt as in block_forward. In place of
// dx_below the result is sums_first (runs of tiles, K + 1, Cin), with K of the first block: the
// sums over pixels from which rebuilt_weight_gradient makes its gradients (rebuilt.cuh).
//
// Thread blocks: x runs of tiles; y input channels, and groups of phases.
// Twin: block_oracles.input_gradient
extern "C" __global__ void __launch_bounds__(FORM_THREADS, FORM_BLOCKS) block_input_gradient(
    PerNet<const STORED> dx, PerNet<const STORED> y, PerNet<const float> sums_parts, int sums_count,
    PerNet<const float> gamma, PerNet<const float> mean, PerNet<const float> variance,
    float epsilon, float floor, PerNet<const float> packed, Convolution s, Tiling t,
    const int* tables, int phases, MAY_BE_NULL PerNet<const STORED> y_below,
    MAY_BE_NULL PerNet<const float> x_first, MAY_BE_NULL PerNet<const float> kernel_first,
    MAY_BE_NULL PerNet<const float> bias_first, float floor_first, Convolution s_first,
    PerNet<const float> mean_below,
    PerNet<const float> variance_below, float epsilon_below,
    MAY_BE_NULL PerNet<const unsigned> kept, float kept_scale,
    MAY_BE_NULL PerNet<STORED> dx_below, PerNet<float> parts,
    MAY_BE_NULL PerNet<float> sums_first) {
    extern __shared__ __align__(16) float shared[];
    int padded = ceil_div(s.Cout, CHUNK) * CHUNK, padded_below = ceil_div(s.Cin, CHUNK) * CHUNK;
    float *as = shared, *bs = as + padded, *cs = bs + padded;
    float *inverses = cs + padded, *shifts = inverses + padded_below;
    int width = t.channel_warps * WIDE;
    float *rows = shifts + padded_below, *table = rows + t.pixel_warps * SUMS * width;
    int staged = t.images * t.source_rows * t.source_columns, taps = s.kh * s.kw;
    float* pixels = table + Tables::size(staged, phases, taps);
    Rebuilt first_block(s_first, x_first.row(), kernel_first.row(), bias_first.row(), floor_first,
                        t.rows, s.W, pixels);
    float* weights_of_warps = pixels + first_block.size(t.images);
    float* sums_of_warps = weights_of_warps + t.channel_warps * LaneWeights::SIZE_OF_WARP;
    if (REBUILT) {
        int warps = t.pixel_warps * t.channel_warps, warp = threadIdx.x / WARP;
        pixels = sums_of_warps + warps * SUMS_OF_WARP;
        clear_sums(sums_of_warps, warps);
        first_block.set_distances();
        __syncthreads();
        if (warp < t.channel_warps)
            first_block.weights(blockIdx.y * width + warp * WIDE)
                .save(weights_of_warps + warp * LaneWeights::SIZE_OF_WARP);
    }
    NormalizationGradient gradient{gamma.row(), sums_parts.row(), sums_count, mean.row(),
                                   variance.row(), epsilon, s.B * s.Ho * s.Wo};
    gradient.prepare(s.Cout, as, bs, cs);
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
    pass.first = first_block;
    pass.images = t.images;
    pass.top = t.top;
    pass.places = tables + staged * 2 + phases * 6 + taps;
    pass.channel_warps = t.channel_warps;
    pass.weights_of_warps = weights_of_warps;
    pass.sums_of_warps = sums_of_warps;
    pass.rows_of_sums = rows;
    pass.width = width;
    pass.parts = parts;
    pass.parts_first = sums_first;
    __syncthreads();
    correlate<FORM_GROUPS, FORM_SPLITS>(pass, t, pixels);
}
