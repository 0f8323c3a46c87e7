// Correlation by tensor cores: the forward pass of a convolution, and its gradient by the input.
//
// Both make, for each result pixel, a sum over taps of the source's channels under the tap times a
// matrix of weights. A block of threads makes a tile of pixels by 32 * channel_warps channels:
//
//     shared memory            pixels of the source, CHUNK channels of each, staged once for all
//                              taps; and the weights of a tap, while those of the next arrive
//     a warp                   8 * GROUPS pixels by 32 channels
//     mma.sync                 16 channels by 8 pixels, 8 deep
//
// Weights are the left operand and pixels the right one, so that a lane's results are four channels
// side by side, and eight lanes' fill 128 bytes of memory.
//
// Where tiles are small, SPLITS warps share a result: each takes a part of the depth, and the first
// adds up what the others leave in shared memory, in order.
#pragma once

#include "block.cuh"

constexpr int STEP = 8;   // the depth of one mma.sync
constexpr int WIDE = 32;  // channels of a warp

// Results that meet the same taps, as tiles.py's table has them: all, or, of a gradient by the
// input, those of one of the grids into which the stride cuts it.
struct Phase {
    int first_tap, taps;                         // in the table of taps
    int first_row, rows, first_column, columns;  // of the results; from one to the next, the steps
};

// A tap's number in the kernel, and how far from a pixel its source is staged.
struct Tap {
    int weight, offset;
};

// Both tables in shared memory, and the one of what is staged (block.cuh).
struct Tables {
    const int2* staged;
    const int *phases, *taps;
    int count;  // of phases

    __device__ Phase phase(int i) const {
        const int* p = phases + i * 6;
        return {p[0], p[1], p[2], p[3], p[4], p[5]};
    }
    __device__ Tap tap(int i) const { return {taps[i * 2], taps[i * 2 + 1]}; }

    // How many numbers of shared memory they take, of which floats may follow.
    static __device__ int numbers(int pixels, int phases, int taps) {
        return ceil_div(pixels * 2 + phases * 6 + taps * 2, 4) * 4;
    }
};

// In memory they lie one behind the other.
__device__ inline Tables copy_tables(const int* from, int pixels, int phases, int taps, float* to) {
    int* copy = reinterpret_cast<int*>(to);
    for (int i = threadIdx.x; i < pixels * 2 + phases * 6 + taps * 2; i += blockDim.x)
        copy[i] = __ldg(from + i);
    const int* behind = copy + pixels * 2;
    return {reinterpret_cast<const int2*>(copy), behind, behind + phases * 6, phases};
}

// Where in the sequence of weights that a block needs it is.
struct Turn {
    int tile, phase, chunk, tap;
};

// The weights of a tap for one lane and step: two channels of the depth by four of the results, the
// left operands of two mma.sync. They are copied as they lie in memory, to where nobody else looks;
// the thread that has copied them rounds them, and puts them where the lane will read them at once:
// (steps, 2 operands, quads of channels, 4 lanes), four numbers each.
struct Fragment {
    int step, quad, lane;  // the depth's channels are step * STEP + lane * 2 and the next

    template <typename T>
    __device__ T* of(T* weights, int operand, int quads) const {
        return weights + (((step * 2 + operand) * quads + quad) * 4 + lane) * 4;
    }
    // Rows g and g + 8 of an operand are channels side by side: g of the results' quads has four,
    // for the rows of two operands.
    __device__ void put(float* weights, int quads, float4 even, float4 odd) const {
        even = to_tf32(even);
        odd = to_tf32(odd);
        store4(of(weights, 0, quads), make_float4(even.x, even.y, odd.x, odd.y));
        store4(of(weights, 1, quads), make_float4(even.z, even.w, odd.z, odd.w));
    }
};

// One mma.sync deep. `a` is the left operand, of two tiles of 16 channels. Of the right one a lane
// has a column: two channels of a pixel that follow one another stand for rows t and t + 4 of it;
// the left one has the same order, so the sum is the same.
template <int GROUPS>
__device__ inline void multiply_step(
    const float (&a)[2][4], const float* pixels, const int (&at)[GROUPS],
    float (&sums)[GROUPS][2][4]) {
#pragma unroll
    for (int j = 0; j < GROUPS; ++j) {
        float2 pair = *reinterpret_cast<const float2*>(pixels + at[j]);
        float b[2] = {pair.x, pair.y};
        mma_m16n8k8_tf32(sums[j][0], a[0], b);
        mma_m16n8k8_tf32(sums[j][1], a[1], b);
    }
}

// Adds to the sums of the first of SPLITS warps those of the others; `area` is shared memory that
// nobody uses.
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

// All tiles of a block. A Pass has
//     s, tables                     the convolution, and where its results and taps are
//     source                        Staged: what is staged for a tile
//     stride                        rows of the source from one row of results to the next
//     row_step, column_step         of a phase's results
//     channels, filters             depth of a tap, and channels of the results
//     result_rows, result_columns   of an image
//     stage(image, top, left, channel, pixels)
//     copy_weights(tap, channel, first_filter, width, raw)   asks for the thread's weights of a tap
//     arrange_weights(raw, width, weights)   puts them, once they are there, into Fragments
//     begin(row, channel, first), end(row, channel)   around a lane's results of a tile: `row` is
//                                   that of its warp's pixels, `first` the first of the results
//     load(pixel, channel)          what else is needed for a result, a Raw; the pixel by its number
//     take(pixel, channel, values, raw)   four channels of a result
template <int GROUPS, int SPLITS, typename Pass>
__device__ void correlate(Pass& pass, const Tiling& t, float* pixels) {
    int lane = threadIdx.x % WARP, row = lane / 4, quarter = lane % 4;
    int warp = threadIdx.x / WARP, warps = t.channel_warps * t.pixel_warps;
    int split = warp / warps;
    warp %= warps;
    int own_channel = warp % t.channel_warps * WIDE + row * 4;
    int own_pixel = warp / t.channel_warps * GROUPS * 8;

    int width = t.channel_warps * WIDE;
    int first_filter = blockIdx.y / t.groups * width, first_phase = blockIdx.y % t.groups;
    int chunks = ceil_div(pass.channels, CHUNK);
    int tiles = ceil_div(pass.s.B, t.images) * t.bands;
    int tap_size = CHUNK * width;  // numbers
    float *arranged = pixels + t.area, *raw = arranged + 2 * tap_size;  // of two turns each

    // Weights are asked for two turns before they are used, across tiles, and arranged in the turn
    // before.
    Turn ahead{int(blockIdx.x), first_phase, 0, 0};
    int parity = 0;               // of the turn
    int asked = 0, in_place = 0;  // taps
    auto ask_ahead = [&](int parity) {
        if (ahead.tile < tiles) {
            ++asked;
            Phase p = pass.tables.phase(ahead.phase);
            pass.copy_weights(
                pass.tables.tap(p.first_tap + ahead.tap).weight, ahead.chunk * CHUNK, first_filter,
                width, raw + parity * tap_size);
            if (++ahead.tap == p.taps) {
                ahead.tap = 0;
                if (++ahead.chunk == chunks) {
                    ahead.chunk = 0;
                    ahead.phase += t.groups;
                    if (ahead.phase >= pass.tables.count) {
                        ahead.phase = first_phase;
                        ahead.tile += gridDim.x;
                    }
                }
            }
        }
        commit_copies();
    };
    auto arrange = [&](int parity) {
        if (in_place == asked) return;  // the last tap has been
        ++in_place;
        pass.arrange_weights(raw + parity * tap_size, width, arranged + parity * tap_size);
    };
    ask_ahead(0);
    ask_ahead(1);
    wait_copies<1>();
    arrange(0);

    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        int image = tile / t.bands * t.images, band = tile % t.bands * t.rows;
        for (int phase = first_phase; phase < pass.tables.count; phase += t.groups) {
            Phase p = pass.tables.phase(phase);
            int height = min(t.rows, p.rows);  // of the tile's part of an image
            Divider by_columns(p.columns), by_height(height);
            int here = t.images * height * p.columns;  // pixels

            float sums[GROUPS][2][4];
#pragma unroll
            for (int j = 0; j < GROUPS; ++j)
#pragma unroll
                for (int i = 0; i < 8; ++i) sums[j][i / 4][i % 4] = 0.0f;

            for (int chunk = 0; chunk < chunks; ++chunk) {
                if (SPLITS > 1 || chunks > 1 || phase == first_phase) {
                    __syncthreads();  // everybody is done with what was staged before
                    pass.stage(
                        image, band * pass.stride + t.top, t.left, chunk * CHUNK, pixels);
                }
                // Where the lane's column of the right operand is staged. It is worked out again
                // for each chunk: while one is staged, there is no register to keep it in.
                int at[GROUPS], first = opaque(own_pixel + row);
#pragma unroll
                for (int j = 0; j < GROUPS; ++j) {
                    int pixel = first + j * 8 < here ? first + j * 8 : 0;
                    int line = by_columns.quotient(pixel), which = by_height.quotient(line);
                    line -= which * height;
                    int place = which * t.image_pitch + line * pass.stride * t.row_pitch;
                    int column = pixel - (line + which * height) * p.columns;
                    at[j] = (place + column) * PITCH + quarter * 2;
                }
                for (int tap = 0; tap < p.taps; ++tap) {
                    __syncthreads();  // the weights are there, and so are the pixels
                    ask_ahead(parity);
                    const float* weights = arranged + parity * tap_size;
                    const float* under = pixels + pass.tables.tap(p.first_tap + tap).offset * PITCH;
#pragma unroll
                    for (int i = 0; i < CHUNK / STEP / SPLITS; ++i) {
                        int step = split * (CHUNK / STEP / SPLITS) + i;
                        Fragment own{step, own_channel / 4, quarter};
                        float a[2][4];
#pragma unroll
                        for (int operand = 0; operand < 2; ++operand) {
                            float4 v = load4(own.of(weights, operand, width / 4));
                            a[operand][0] = v.x;
                            a[operand][1] = v.y;
                            a[operand][2] = v.z;
                            a[operand][3] = v.w;
                        }
                        multiply_step(a, under + step * STEP, at, sums);
                    }
                    parity ^= 1;
                    wait_copies<1>();  // for the next turn's
                    arrange(parity);
                }
            }

            if (SPLITS > 1) add_splits<GROUPS, SPLITS>(sums, split, warp, warps, pixels);
            if (split > 0) continue;
            int first_pixel = opaque(own_pixel + quarter * 2);
            int filter = first_filter + own_channel;
            pass.begin(warp / t.channel_warps, own_channel,
                       make_float4(sums[0][0][0], sums[0][0][2], sums[0][1][0], sums[0][1][2]));
            // Without steps a tile's results follow one another in memory, `run` of them.
            bool dense = pass.row_step == 1 && pass.column_step == 1;
            int run_begin = (image * pass.result_rows + band) * pass.result_columns;
            int run = min(t.images, pass.s.B - image) * min(height, p.rows - band) * p.columns;
            if (filter >= pass.filters) run = 0;
            // What else is needed is asked for beforehand, for some results at a time.
            constexpr int RESULTS = 4;
#pragma unroll
            for (int first = 0; first < GROUPS * 2; first += RESULTS) {
                typename Pass::Raw raw[RESULTS];
                int number[RESULTS];  // of the pixel; -1: there is no such result
#pragma unroll
                for (int k = 0; k < RESULTS && first + k < GROUPS * 2; ++k) {
                    int pixel = first_pixel + (first + k) / 2 * 8 + k % 2;
                    number[k] = pixel < run ? run_begin + pixel : -1;
                    if (!dense) {
                        int line = by_columns.quotient(pixel), which = by_height.quotient(line);
                        int of_grid = band + line - which * height, b = image + which;
                        int result_row = p.first_row + of_grid * pass.row_step;
                        int column = p.first_column + (pixel - line * p.columns) * pass.column_step;
                        bool inside = run && pixel < here && of_grid < p.rows && b < pass.s.B;
                        int of_images = b * pass.result_rows + result_row;
                        number[k] = inside ? of_images * pass.result_columns + column : -1;
                    }
                    bool there = number[k] >= 0;
                    raw[k] = pass.load(there ? number[k] : 0, there ? filter : 0);
                }
#pragma unroll
                for (int k = 0; k < RESULTS && first + k < GROUPS * 2; ++k) {
                    const float(&v)[2][4] = sums[(first + k) / 2];
                    int half = k % 2;
                    if (number[k] >= 0)
                        pass.take(number[k], filter,
                                  make_float4(v[0][half], v[0][2 + half], v[1][half], v[1][2 + half]),
                                  raw[k]);
                }
            }
            pass.end(warp / t.channel_warps, own_channel);
        }
    }
}

// The sums over the four lanes that hold results of the same channels, to all of them.
__device__ inline float4 sum_over_quarters(float4 v) {
    for (int distance = 1; distance < 4; distance *= 2)
        v = add4(v, exchange4(v, distance));
    return v;
}
