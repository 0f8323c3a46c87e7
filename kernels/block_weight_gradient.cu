// The gradients with respect to a block's kernel and bias. For each tap,
//
//     dkernel[tap] = transpose(x under the tap) @ dz, summed over all pixels
//
// Both operands of the tensor cores are read from shared memory, where x and dz are staged:
//
//     left operand     16 channels of x by 8 words of pixels, under a tap
//     right operand    8 words of pixels by 8 filters (output channels) of dz
//
// The depth of these products is pixels. A TF32 word is one of them. A bfloat16 word is two, but in
// shared memory neighbours are channels; load_transposed turns them.
//
// A thread block computes CHUNK channels by CHUNK filters of some taps, over some of the tiles. A
// warp computes 16 of these channels by all of these filters, for up to FORM_TAPS taps of a row of
// the kernel; so it loads dz once for all of them. Warps with the same results divide the pixels,
// and their sums are added up in order. The end of the step adds up the partial sums (update.cuh).
#include "block.cuh"
#include "rebuilt.cuh"

// The form that is compiled; cuda_tiles.py chooses it.
#ifndef FORM_TAPS
#define FORM_TAPS 3
#define FORM_THREADS 192
#define FORM_BLOCKS 2
#endif
// Whether the block below is rebuilt from the image.
#ifndef REBUILT
#define REBUILT 0
#endif

constexpr int TALL = 16;           // channels of one mma.sync
constexpr int EIGHTS = CHUNK / 8;  // groups of eight filters, one mma.sync each
constexpr int BATCH = 4;           // pixels that a thread loads together; more need more registers
// From a staged pixel to the next one, in words. The words that a warp loads together lie in
// different banks: eight of each of four pixels, or four of each of eight (load_transposed).
constexpr int PITCH = PER_WORD == 1 ? WORDS + 8 : WORDS + 4;
constexpr int SPREAD = PER_WORD == 1 ? 1 : 4;  // so many pixels apart, 16 words have other banks

// A lane's sums: four elements of each tap and group of filters.
typedef float Sums[FORM_TAPS][EIGHTS][4];

// A lane's part in the products of DEPTH pixels, with which dz begins. x begins with the tile's first
// pixel; `places` has the place of each pixel's first input there, and `offset` the distance from
// that input to the lane's word under a tap. word() is the part of it that depends on the lane.
template <typename T>
struct Lane;

// A lane loads each word by itself: two pixels, four apart, of one channel and of another.
template <>
struct Lane<float> {
    static __device__ int word() { return threadIdx.x % WARP / 4; }

    static __device__ void multiply(
        const float* x, const float* dz, const int* places, const int (&offset)[FORM_TAPS],
        Sums& sums) {
        int quarter = threadIdx.x % 4;
        const float *x_first = x + places[quarter], *x_second = x + places[quarter + 4];
        const float *dz_first = dz + quarter * PITCH + word(), *dz_second = dz_first + 4 * PITCH;
        float b[EIGHTS][2];
#pragma unroll
        for (int j = 0; j < EIGHTS; ++j) {
            b[j][0] = dz_first[j * 8];
            b[j][1] = dz_second[j * 8];
        }
#pragma unroll
        for (int tap = 0; tap < FORM_TAPS; ++tap) {  // also past the last: such sums are not used
            const float *first = x_first + offset[tap], *second = x_second + offset[tap];
            float a[4] = {first[0], first[8], second[0], second[8]};
#pragma unroll
            for (int j = 0; j < EIGHTS; ++j) Operands<float>::multiply(sums[tap][j], a, b[j]);
        }
    }
};

// Four matrices of eight pixels by eight channels are the left operand, or two right ones.
template <>
struct Lane<bfloat16> {
    static __device__ int word() { return threadIdx.x / 8 % 2 * 4; }

    static __device__ void multiply(
        const float* x, const float* dz, const int* places, const int (&offset)[FORM_TAPS],
        Sums& sums) {
        int lane = threadIdx.x % WARP;
        const float* x_row = x + places[lane % 8 + lane / 16 * 8];
        const float* dz_row = dz + lane % 16 * PITCH + lane / 16 * 4;
        float b[EIGHTS / 2][4];
#pragma unroll
        for (int j = 0; j < EIGHTS / 2; ++j) load_transposed(b[j], dz_row + j * 8);
#pragma unroll
        for (int tap = 0; tap < FORM_TAPS; ++tap) {
            float a[4];
            load_transposed(a, x_row + offset[tap]);
#pragma unroll
            for (int j = 0; j < EIGHTS; ++j) {
                float right[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
                Operands<bfloat16>::multiply(sums[tap][j], a, right);
            }
        }
    }
};

// Stages dz of consecutive pixels in memory: `here` of them, from pixel `before` on; fills up with
// zeros to `pixels`.
__device__ inline void stage_run(
    BeforeActivation& dz, int before, int here, int pixels, int C, int channel, float* to) {
    int quad = threadIdx.x % QUADS * 4, threads = blockDim.x / QUADS;
    if (channel + quad >= C) here = 0;
    int begin = before * C + channel + quad;
    for (int first = first_pixel<SPREAD>(); first < pixels; first += BATCH * threads) {
        BeforeActivation::Raw raw[BATCH];
#pragma unroll
        for (int k = 0; k < BATCH; ++k) {
            int number = first + k * threads;
            raw[k] = dz.load(begin + number * C, number < here);
        }
        dz.channels(channel + quad);
#pragma unroll
        for (int k = 0; k < BATCH; ++k) {
            int number = first + k * threads;
            auto words = Operands<STORED>::words(dz.finish(raw[k]));
            if (number < pixels)
                Operands<STORED>::put(to + number * PITCH + quad / PER_WORD, words);
        }
    }
}

// Adds up the sums of the warps with the same item (channels and taps), in order; share 0 gets
// them.
__device__ inline void add_shares(Sums& sums, int share, int shares, int item, float* area) {
    constexpr int QUADRUPLES = FORM_TAPS * EIGHTS;  // sums of a lane, four at a time
    float* own = area + (item * QUADRUPLES * WARP + threadIdx.x % WARP) * 4;
    for (int other = shares - 1; other > 0; --other) {
        __syncthreads();
        if (share == other)
#pragma unroll
            for (int n = 0; n < QUADRUPLES; ++n) {
                const float* v = sums[n / EIGHTS][n % EIGHTS];
                store4(own + n * 4 * WARP, make_float4(v[0], v[1], v[2], v[3]));
            }
        __syncthreads();
        if (share == other - 1)
#pragma unroll
            for (int n = 0; n < QUADRUPLES; ++n) {
                float* v = sums[n / EIGHTS][n % EIGHTS];
                float4 more = load4(own + n * 4 * WARP);
                v[0] += more.x;
                v[1] += more.y;
                v[2] += more.z;
                v[3] += more.w;
            }
    }
}

// Writes the sums of a tap, or adds them to what is there: part (Cin, Cout), of TALL channels and
// CHUNK filters.
__device__ inline void write_tap(const float (&sums)[EIGHTS][4], const Convolution& s, int channel,
                                 int filter, float* part, bool add) {
    // opaque, here and below: so that no address is kept in a register during the products
    channel += opaque(threadIdx.x % WARP / 4);
    filter += opaque(threadIdx.x % 4 * 2);
#pragma unroll
    for (int i = 0; i < EIGHTS * 2; ++i) {
        int own = channel + i % 2 * 8, first = filter + i / 2 * 8;
        if (own >= s.Cin || first >= s.Cout) continue;
        float2* to = reinterpret_cast<float2*>(part + own * s.Cout + first);
        const float* v = sums[i / 2] + i % 2 * 2;
        float2 sum = make_float2(v[0], v[1]);
        if (add) {
            float2 before = *to;
            sum = make_float2(before.x + sum.x, before.y + sum.y);
        }
        *to = sum;
    }
}

// Writes the partial sum of the bias's gradient, or adds to it: the sum of the dz that all threads
// have staged, for each filter. `area` is unused shared memory.
__device__ inline void write_bias(float4 sum, int filters, float* area, float* part, bool add) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    __syncthreads();
    for (int distance = QUADS; distance < WARP; distance *= 2)  // lanes with the same filters
        sum = add4(sum, exchange4(sum, distance));
    if (lane < QUADS) store4(area + warp * CHUNK + lane * 4, sum);
    __syncthreads();
    int c = threadIdx.x;
    if (c >= CHUNK || c >= filters) return;
    float total = 0.0f;
    for (int other = 0; other < blockDim.x / WARP; ++other) total += area[other * CHUNK + c];
    part[c] = add ? part[c] + total : total;
}

// From y_below (B, H, W, Cin), dx and y (B, Ho, Wo, Cout): parts (t.parts, K * Cout + Cout) of the
// gradients with respect to kernel and bias; and those of gamma and beta (Cout,). x is computed as
// in block_forward, dz as in block_input_gradient; if REBUILT, y_below as in block_forward.
//
// These partial sums are large. So where the nets fill a GPU, there may be half as many parts as
// runs, and a thread block adds the second run of a part to the first. Where they do not, each run
// has its own part and can have its own thread block; the end of the step adds in the same order.
//
// Thread blocks: x parts, i, i + gridDim.x and so on; y channels, filters, and groups of taps.
// Warps: halves of the channels, rows of taps and some columns of these; shares of the pixels.
// Twin: block_oracles.weight_gradient
extern "C" __global__ void __launch_bounds__(FORM_THREADS, FORM_BLOCKS) block_weight_gradient(
    MAY_BE_NULL PerNet<const STORED> y_below, MAY_BE_NULL PerNet<const float> x_first,
    MAY_BE_NULL PerNet<const float> kernel_first, MAY_BE_NULL PerNet<const float> bias_first,
    float floor_first, Convolution s_first, MAY_BE_NULL PerNet<const float> gamma_below,
    MAY_BE_NULL PerNet<const float> beta_below, MAY_BE_NULL PerNet<const float> mean_below,
    MAY_BE_NULL PerNet<const float> variance_below, float epsilon_below, float kept_scale,
    MAY_BE_NULL PerNet<const unsigned> kept, PerNet<const STORED> dx, PerNet<const STORED> y,
    PerNet<const float> sums_parts, int sums_count, PerNet<const float> gamma,
    PerNet<const float> mean, PerNet<const float> variance, float epsilon, float floor,
    Convolution s, Tiling t, const int* table, PerNet<float> parts, PerNet<float> dgamma,
    PerNet<float> dbeta) {
    extern __shared__ __align__(16) float shared[];
    int padded = ceil_div(s.Cin, CHUNK) * CHUNK, padded_filters = ceil_div(s.Cout, CHUNK) * CHUNK;
    float *scales = shared, *shifts = scales + padded;
    float *as = shifts + padded, *bs = as + padded_filters, *cs = bs + padded_filters;
    // Tables: Staged's of x, and where each output pixel's first input is staged.
    int here = t.images * t.rows * s.Wo, steps = ceil_div(here, DEPTH);
    int staged = t.images * t.source_rows * t.source_columns, entries = staged * 2 + steps * DEPTH;
    int* staged_table = reinterpret_cast<int*>(cs + padded_filters);
    const int* places = staged_table + staged * 2;
    for (int i = threadIdx.x; i < entries; i += blockDim.x) staged_table[i] = __ldg(table + i);
    float* x_pixels = cs + padded_filters + ceil_div(entries, 4) * 4;
    Rebuilt first_block(s_first, x_first.row(), kernel_first.row(), bias_first.row(), floor_first,
                        t.source_rows, t.source_columns, x_pixels);
    if (REBUILT) {
        first_block.set_distances();
        x_pixels += first_block.size(t.images);
    }
    float* dz_pixels = x_pixels + t.area;

    Normalization between{gamma_below.row(), beta_below.row(), nullptr, 0, mean_below.row(),
                          variance_below.row(), epsilon_below, kept_scale};
    between.prepare(s.Cin, scales, shifts);
    NormalizationGradient gradient{gamma.row(), sums_parts.row(), sums_count, mean.row(),
                                   variance.row(), epsilon, s.B * s.Ho * s.Wo};
    bool writes_gradients = blockIdx.x == 0 && blockIdx.y == 0;
    gradient.prepare(s.Cout, as, bs, cs, writes_gradients ? dgamma.row() : nullptr, dbeta.row());
    __syncthreads();

    Staged x_source{s.B, s.H, s.W, s.Cin, reinterpret_cast<const int2*>(staged_table), staged};
    Normalized x{y_below.row(), kept.row(), scales, shifts};
    BeforeActivation dz{dx.row(), y.row(), as, bs, cs, floor};

    // What the thread block computes, and what the warp does.
    int group = blockIdx.y % t.groups, slice = blockIdx.y / t.groups;
    int filter_slices = padded_filters / CHUNK;
    int first_filter = slice % filter_slices * CHUNK, first_channel = slice / filter_slices * CHUNK;
    int item = threadIdx.x / WARP % t.channel_warps, share = threadIdx.x / WARP / t.channel_warps;
    int half = item % 2 * TALL;
    int in_row = ceil_div(s.kw, FORM_TAPS), columns = ceil_div(s.kw, in_row);  // taps of a warp
    int number = group * (t.channel_warps / 2) + item / 2, tap_row = number / in_row;
    int tap_column = (number - tap_row * in_row) * columns;
    int taps = tap_row < s.kh ? min(columns, s.kw - tap_column) : 0;
    int offset[FORM_TAPS];
#pragma unroll
    for (int tap = 0; tap < FORM_TAPS; ++tap) {
        // Columns are staged grouped by column % stride.
        int column = tap_column + tap, group_columns = ceil_div(t.source_columns, s.sw);
        int place = tap_row * t.row_pitch + column % s.sw * group_columns + column / s.sw;
        int word = half / PER_WORD + Lane<STORED>::word();
        offset[tap] = tap < taps ? place * PITCH + word : 0;
    }

    auto prefetch_tile = [&](int tile) {
        if (tile >= t.tiles) return;
        TilePlace of_tile(t, tile);
        int image = of_tile.image, band = of_tile.row;
        if (!REBUILT)
            prefetch_rows(x.y, s.B, s.H, s.W, s.Cin, image, t.images, band * s.sh + t.top,
                          t.source_rows);
        for (const STORED* array : {dz.dx, dz.y})
            prefetch_rows(array, s.B, s.Ho, s.Wo, s.Cout, image, t.images, band, t.rows);
    };
    Sums sums;
    for (int tile = blockIdx.x; tile < t.tiles; tile = next_tile(t, tile)) {
        if (begins_run(t, tile)) {
#pragma unroll
            for (int n = 0; n < FORM_TAPS * EIGHTS * 4; ++n)
                sums[n / (EIGHTS * 4)][n / 4 % EIGHTS][n % 4] = 0.0f;
            dz.sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        }
        TilePlace of_tile(t, tile);
        int image = of_tile.image, band = of_tile.row;
        __syncthreads();  // all threads have read what was staged before
        int top = band * s.sh + t.top;
        if (REBUILT)
            first_block.stage<PER_WORD == 1>(x, x_source.table, staged, t.images, image, top,
                                             t.left, first_channel, x_pixels);
        else
            x_source.stage<BATCH, SPREAD>(x, image, top, t.left, first_channel, x_pixels);
        int before = (image * s.Ho + band) * s.Wo;
        int rows = min(t.rows, s.Ho - band), images = min(t.images, s.B - image);
        stage_run(
            dz, before, images * rows * s.Wo, steps * DEPTH, s.Cout, first_filter, dz_pixels);
        if (threadIdx.x == 0) prefetch_tile(next_tile(t, tile));
        __syncthreads();
        for (int step = share; step < steps; step += t.pixel_warps)
            Lane<STORED>::multiply(x_pixels, dz_pixels + step * DEPTH * PITCH,
                                   places + step * DEPTH, offset, sums);
        if (!ends_run(t, tile)) continue;

        add_shares(sums, share, t.pixel_warps, item, x_pixels);
        int run = run_of(t, tile), size = s.kh * s.kw * s.Cin * s.Cout;
        bool adds = run >= t.parts;
        float* part = parts.row() + run % opaque(t.parts) * (size + s.Cout);
        if (share == 0)
#pragma unroll
            for (int tap = 0; tap < FORM_TAPS; ++tap) {
                if (tap >= taps) break;
                int number = opaque(tap_row * s.kw + tap_column) + tap;
                write_tap(sums[tap], s, first_channel + half, first_filter,
                          part + number * s.Cin * s.Cout, adds);
            }
        if (group == 0 && first_channel == 0)
            write_bias(
                dz.sum, s.Cout - first_filter, x_pixels, part + size + first_filter, adds);
    }
}
