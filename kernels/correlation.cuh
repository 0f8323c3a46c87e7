// Correlation on tensor cores: the forward pass of a convolution, and its gradient with respect to
// the input. Both have this form, for each result pixel:
//
//     result[channels] = sum over taps of source[pixel under the tap] @ weights[tap]
//
// A thread block computes tiles of pixels by 32 * channel_warps result channels:
//
//     shared memory      the source's pixels, CHUNK channels of each, staged once for all taps;
//                        the weights of one tap, while those of the next two are being copied
//     a warp             8 * GROUPS pixels by 32 channels
//     an mma.sync        16 channels by 8 pixels, with a depth of 8 words
//
// Weights are the left operand and pixels the right one. So a lane's results are four consecutive
// channels, and those of eight lanes fill 128 bytes of memory.
//
// pack_weights.cu has rounded the weights and put them in the order in which lanes load them, and
// taps in the order in which thread blocks meet them. So a copy to shared memory is all
// that is left to do.
//
// If tiles are small, SPLITS warps share the same results. Each computes partial sums over its part
// of the depth, and the first adds up the others' in order, through shared memory.
#pragma once

#include "block.cuh"

// From a staged pixel to the next one, in words. It is an odd multiple of eight. So eight words of
// each of four consecutive pixels lie in the 32 different banks of shared memory.
constexpr int PITCH = WORDS + 8;
constexpr int SPREAD = PER_WORD;  // so many pixels apart, 16 words lie in the other 16 banks
constexpr int RESULTS = 4;         // of a lane that a Pass takes together
constexpr int TAPS_IN_MEMORY = 3;  // taps whose weights are in shared memory: one used, two coming

// The results that meet the same taps. In a forward pass these are all results. In a gradient with
// respect to the input they are one phase: rows and columns that are a stride apart.
struct ResultPhase {
    int first_tap, taps;                         // in the table of taps
    int first_row, rows, first_column, columns;  // of the results
};

// The tables that cuda_tiles.py computes, in shared memory: of staged pixels (Staged in block.cuh),
// of phases, and of taps: the distance from a result's staged pixel to its source.
struct Tables {
    const int2* staged;
    const int *phases, *taps;
    int count;  // of phases

    __device__ ResultPhase phase(int i) const {
        const int* p = phases + i * 6;
        return {p[0], p[1], p[2], p[3], p[4], p[5]};
    }

    // Their size in ints, rounded up so that a float4 may follow.
    static __device__ int size(int pixels, int phases, int taps) {
        return ceil_div(pixels * 2 + phases * 6 + taps, 4) * 4;
    }
};

// Copies the tables, which follow one another in memory, to shared memory.
__device__ inline Tables copy_tables(const int* from, int pixels, int phases, int taps, float* to) {
    int* copy = reinterpret_cast<int*>(to);
    for (int i = threadIdx.x; i < pixels * 2 + phases * 6 + taps; i += blockDim.x)
        copy[i] = __ldg(from + i);
    const int* after = copy + pixels * 2;
    return {reinterpret_cast<const int2*>(copy), after, after + phases * 6, phases};
}

// Where the packed weights of a tap (WORDS of the depth by `width` result channels) have those of a
// lane: the left operands of two mma.sync, in the order (steps, 2 operands, quads of result
// channels, 4 lanes), four words each. These are two rows of result channels of the quad by the two
// words of the depth from step * STEP + lane * 2 on.
__device__ inline int packed_at(int step, int operand, int quad, int lane, int width) {
    return ((step * 2 + operand) * width + quad * 4 + lane) * 4;
}

// Adds one step to the sums. `a` has the left operands of two tiles of 16 channels. Of the right
// operand a lane holds words t and t + 4 of a column; here they are two consecutive words of a
// pixel. The left operand has its columns in the same order, so the sum is the same.
template <int GROUPS>
__device__ inline void multiply_step(
    const float (&a)[2][4], const float* pixels, const int (&at)[GROUPS],
    float (&sums)[GROUPS][2][4]) {
#pragma unroll
    for (int j = 0; j < GROUPS; ++j) {
        float2 pair = *reinterpret_cast<const float2*>(pixels + at[j]);
        float b[2] = {pair.x, pair.y};
        Operands<STORED>::multiply(sums[j][0], a[0], b);
        Operands<STORED>::multiply(sums[j][1], a[1], b);
    }
}

// Adds to the sums of the first of SPLITS warps those of the others; `area` is unused shared
// memory.
template <int GROUPS, int SPLITS>
__device__ inline void add_splits(float (&sums)[GROUPS][2][4], int split, int warp, int warps,
                                  float* area) {
    int lane = threadIdx.x % WARP;
    __syncthreads();
    if (split > 0) {
        float* to = area + ((split - 1) * warps + warp) * GROUPS * 8 * WARP + lane * 4;
#pragma unroll
        for (int j = 0; j < GROUPS; ++j)
#pragma unroll
            for (int i = 0; i < 2; ++i)
                store4(to + (j * 2 + i) * 4 * WARP,
                       make_float4(sums[j][i][0], sums[j][i][1], sums[j][i][2], sums[j][i][3]));
    }
    __syncthreads();
    if (split > 0) return;
#pragma unroll 1
    for (int other = 0; other < SPLITS - 1; ++other) {
        const float* from = area + (other * warps + warp) * GROUPS * 8 * WARP + lane * 4;
#pragma unroll
        for (int j = 0; j < GROUPS; ++j)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                float4 more = load4(from + (j * 2 + i) * 4 * WARP);
                sums[j][i][0] += more.x;
                sums[j][i][1] += more.y;
                sums[j][i][2] += more.z;
                sums[j][i][3] += more.w;
            }
    }
}

// Computes all tiles of a thread block. A Pass has
//     s, tables, taps               the convolution, the tables of its phases and taps, all taps
//     packed                        its weights, as pack_weights.cu wrote them
//     source                        a Staged
//     stride                        source rows from one row of results to the next
//     row_step, column_step         from one result of a phase to the next
//     channels, filters             channels of the source (depth of a tap), and of the results
//     result_rows, result_columns   of an image
//     stage(image, top, left, channel, pixels)               stages a chunk of a tile's pixels
//     prefetch(t, image, band)      hints that what a tile reads is needed soon
//     begin(row, channel, first)    before a lane's results of a tile; `row` is the warp's row of
//                                   pixels, `first` the lane's first four sums
//     take(number, first, channel, values)   receives RESULTS of the lane's results, the sums of
//                                   four channels each: number has their pixels, or -1; they are
//                                   pixels 2t and 2t + 1 (t = lane % 4) of two groups of eight, the
//                                   first of which begins with pixel `first` of the tile
//     end(row, channel)             after a lane's results of a tile
//     finish(t, run)                after a run of tiles: writes its partial sums; all threads
template <int GROUPS, int SPLITS, typename Pass>
__device__ void correlate(Pass& pass, const Tiling& t, float* pixels) {
    constexpr int STEPS = WORDS / STEP / SPLITS;  // of a warp, for a tap
    static_assert(STEPS > 0, "more warps share a tap than it has steps");
    int lane = threadIdx.x % WARP, row = lane / 4, quarter = lane % 4;
    int warp = threadIdx.x / WARP, warps = t.channel_warps * t.pixel_warps;
    int split = warp / warps;
    warp %= warps;
    int own_channel = warp % t.channel_warps * WIDE + row * 4;
    int own_pixel = warp / t.channel_warps * GROUPS * 8;

    int width = t.channel_warps * WIDE;
    int first_filter = blockIdx.y / t.groups * width, first_phase = blockIdx.y % t.groups;
    int chunks = ceil_div(pass.channels, CHUNK);
    int tap_size = WORDS * width;  // words

    // A thread block meets the same sequence of weights in each of its tiles; it is contiguous. The
    // copy of a tap's weights starts two taps before they are used, also across tiles; after the
    // last tile two copies are left over.
    ResultPhase own = pass.tables.phase(first_phase);
    int sequence = (t.groups > 1 ? own.taps : pass.taps) * chunks * tap_size;
    const float* packed = pass.packed
        + (blockIdx.y / t.groups * pass.taps + own.first_tap) * chunks * tap_size;
    float* weights = pixels + t.area;
    int ahead = 0, buffer = 0;  // the next copy's place in the sequence, and the next tap's buffer
    auto copy_ahead = [&](int to) {
        for (int i = threadIdx.x * 4; i < tap_size; i += blockDim.x * 4)
            copy_async_16(weights + to * tap_size + i, packed + ahead + i, true);
        commit_copies();
        ahead += tap_size;
        if (ahead == sequence) ahead = 0;
    };
    copy_ahead(0);
    copy_ahead(1);

    for (int tile = blockIdx.x; tile < t.tiles; tile = next_tile(t, tile)) {
        TilePlace of_tile(t, tile);
        int image = of_tile.image, band = of_tile.row;
        for (int phase = first_phase; phase < pass.tables.count; phase += t.groups) {
            ResultPhase p = pass.tables.phase(phase);
            int height = min(t.rows, p.rows);  // rows of an image in the tile
            Divider by_columns(p.columns), by_height(height);
            int here = t.images * height * p.columns;  // pixels of the tile

            float sums[GROUPS][2][4];
#pragma unroll
            for (int j = 0; j < GROUPS; ++j)
#pragma unroll
                for (int i = 0; i < 8; ++i) sums[j][i / 4][i % 4] = 0.0f;

            for (int chunk = 0; chunk < chunks; ++chunk) {
                if (SPLITS > 1 || chunks > 1 || phase == first_phase) {
                    __syncthreads();  // all threads have read what was staged before
                    pass.stage(
                        image, band * pass.stride + t.top, t.left, chunk * CHUNK, pixels);
                }
                if (threadIdx.x == 0 && phase == first_phase && chunk == 0) {
                    int next = next_tile(t, tile);
                    TilePlace of_next(t, next);
                    if (next < t.tiles) pass.prefetch(t, of_next.image, of_next.row);
                }
                // Where the pixels of the lane's columns of the right operand are staged. This is
                // computed again for each chunk, because staging needs the registers.
                int at[GROUPS], first = opaque(own_pixel) + row;
#pragma unroll
                for (int j = 0; j < GROUPS; ++j) {
                    int pixel = min(first + j * 8, here - 1);  // past the last: its results are unused
                    int line = by_columns.quotient(pixel), which = by_height.quotient(line);
                    line -= which * height;
                    int place = which * t.image_pitch + line * pass.stride * t.row_pitch;
                    int column = pixel - (line + which * height) * p.columns;
                    at[j] = (place + column) * PITCH + quarter * 2;
                }
                for (int tap = 0; tap < p.taps; ++tap) {
                    wait_copies<1>();  // for this tap's weights
                    __syncthreads();  // weights and pixels are there; the last tap's are free
                    copy_ahead(buffer ? buffer - 1 : TAPS_IN_MEMORY - 1);
                    const float* of_tap = weights + buffer * tap_size;
                    const float* under = pixels + pass.tables.taps[p.first_tap + tap] * PITCH;
#pragma unroll
                    for (int i = 0; i < STEPS; ++i) {
                        int step = split * STEPS + i;
                        float a[2][4];
#pragma unroll
                        for (int operand = 0; operand < 2; ++operand) {
                            float4 v = load4(
                                of_tap + packed_at(step, operand, own_channel / 4, quarter, width));
                            a[operand][0] = v.x;
                            a[operand][1] = v.y;
                            a[operand][2] = v.z;
                            a[operand][3] = v.w;
                        }
                        multiply_step(a, under + step * STEP, at, sums);
                    }
                    buffer = buffer == TAPS_IN_MEMORY - 1 ? 0 : buffer + 1;
                }
            }

            if (SPLITS > 1) add_splits<GROUPS, SPLITS>(sums, split, warp, warps, pixels);
            if (split > 0) continue;
            int first_pixel = opaque(own_pixel + quarter * 2);
            int filter = first_filter + own_channel;
            pass.begin(warp / t.channel_warps, own_channel,
                       make_float4(sums[0][0][0], sums[0][0][2], sums[0][1][0], sums[0][1][2]));
            // If both steps are 1, a tile's results are consecutive in memory: `run` of them.
            bool dense = pass.row_step == 1 && pass.column_step == 1;
            int run_begin = (image * pass.result_rows + band) * pass.result_columns;
            int run = min(t.images, pass.s.B - image) * min(height, p.rows - band) * p.columns;
            if (filter >= pass.filters) run = 0;
#pragma unroll
            for (int first = 0; first < GROUPS * 2; first += RESULTS) {
                int number[RESULTS];
                float4 values[RESULTS];
#pragma unroll
                for (int k = 0; k < RESULTS; ++k) {
                    number[k] = -1;
                    values[k] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                    if (first + k >= GROUPS * 2) continue;
                    const float(&v)[2][4] = sums[(first + k) / 2];
                    int half = k % 2, pixel = first_pixel + (first + k) / 2 * 8 + half;
                    values[k] = make_float4(v[0][half], v[0][2 + half], v[1][half], v[1][2 + half]);
                    if (dense) {
                        number[k] = pixel < run ? run_begin + pixel : -1;
                        continue;
                    }
                    int line = by_columns.quotient(pixel), which = by_height.quotient(line);
                    int phase_row = band + line - which * height, b = image + which;
                    int result_row = p.first_row + phase_row * pass.row_step;
                    int column = p.first_column + (pixel - line * p.columns) * pass.column_step;
                    bool inside = run && pixel < here && phase_row < p.rows && b < pass.s.B;
                    int row_number = b * pass.result_rows + result_row;
                    number[k] = inside ? row_number * pass.result_columns + column : -1;
                }
                pass.take(number, own_pixel + first * 4, filter, values);
            }
            pass.end(warp / t.channel_warps, own_channel);
        }
        if (ends_run(t, tile)) pass.finish(t, run_of(t, tile));
    }
    wait_copies<0>();
}

// Sums over the four lanes that hold results of the same channels; all four get the sum.
__device__ inline float4 sum_over_quarters(float4 v) {
    for (int distance = 1; distance < 4; distance *= 2)
        v = add4(v, exchange4(v, distance));
    return v;
}
