// What the kernels of fused blocks share. A block is a convolution, its activation, the batch
// normalisation after it, and dropout if there is any. Products are on tensor cores, in TF32 or in
// bfloat16 (stored.cuh).
//
//     in memory:     y, the activation's output     dx, the gradient with respect to the output of
//                                                   the normalisation, before dropout
//     computed       x = scale * y + shift, or 0    dz = activation'(y) * (a*dx + b*y + c), the
//     from these:    where dropped: the input of    gradient with respect to the output of the
//                    the next block                 convolution, before the activation
//
// x and dz are never written to memory. A kernel recomputes them while it stages elements, that is,
// copies them to shared memory. scale, shift, a, b and c are per channel. They follow from sums
// over all rows (images and pixels), which the launch before wrote as partial sums.
//
// "Thread block" always is CUDA's block of threads; "block" is the network's.
#pragma once

#include "common.cuh"
#include "convolution.cuh"
#include "precise.cuh"
#include "reduce.cuh"
#include "stored.cuh"

constexpr int CHUNK = 32;  // channels that are staged at a time
constexpr int QUADS = CHUNK / 4;
constexpr int WORDS = CHUNK / PER_WORD;  // of a staged pixel
constexpr int WIDE = 32;                 // result channels of a warp

// How a launch splits its work; cuda_tiles.py chooses it. A tile of results is some rows of an
// image (a band), or several whole images. All pixels of the source that the window meets for a
// tile are staged in shared memory. Gaps between rows and between images keep consecutive pixels of
// a tile in different banks, also across the end of a row.
//
// Sums over pixels are added up over a run of tiles: run i has the tiles i, i + runs and so on. A
// thread block computes runs blockIdx.x, blockIdx.x + gridDim.x and so on. So the grid can depend
// on the number of nets, and changes no bit. In each kernel one loop has all tiles of a thread
// block; there are no more runs than tiles, and no more thread blocks (along x) than parts.
//
// With a stride along the columns, a tap meets every `stride`-th column. So the columns are staged
// grouped by column % stride: with stride 2, first the even ones, then the odd ones.
struct Tiling {
    int images, rows;                 // of a tile
    int bands;                        // tiles per image
    int source_rows, source_columns;  // staged of each image
    int row_pitch, image_pitch;       // from a staged row, or image, to the next, in pixels
    int top, left;                    // first staged row and column, relative to the first result
    int pixel_warps, channel_warps;   // of a thread block
    int groups;                       // of phases, or of taps; each has its own thread blocks
    int area;                         // of shared memory for staged pixels, in words
    int tiles, runs;                  // for all images of a net
    int parts;                        // partial sums: that of run i belongs to part i % parts
};

__device__ inline bool begins_run(const Tiling& t, int tile) { return tile < t.runs; }
__device__ inline bool ends_run(const Tiling& t, int tile) { return tile + t.runs >= t.tiles; }

// opaque: so that no register keeps the divisor's inverse during the products.
__device__ inline int run_of(const Tiling& t, int tile) { return tile % opaque(t.runs); }

// Where a tile begins: its first image, and the first row of results there.
struct TilePlace {
    int image, row;

    __device__ TilePlace(const Tiling& t, int tile) {
        int number = tile / opaque(t.bands);
        image = number * t.images;
        row = (tile - number * t.bands) * t.rows;
    }
};

// The tile that a thread block computes after this one; t.tiles after its last one.
__device__ inline int next_tile(const Tiling& t, int tile) {
    if (!ends_run(t, tile)) return tile + t.runs;
    int run = run_of(t, tile), part = run % opaque(t.parts) + gridDim.x;
    if (run + t.parts < t.runs) return run + t.parts;  // another run of the same part
    return part < t.parts ? part : t.tiles;
}

// n / divisor for n < 2^20, by a multiplication: n + 0.5 is farther from a multiple of the divisor
// than the rounding error.
struct Divider {
    float inverse;

    __device__ explicit Divider(int divisor) : inverse(1.0f / divisor) {}
    __device__ int quotient(int n) const { return int((n + 0.5f) * inverse); }
};

__device__ inline float4 load4(const float* from) {
    return *reinterpret_cast<const float4*>(from);
}
__device__ inline void store4(float* to, float4 v) { *reinterpret_cast<float4*>(to) = v; }
__device__ inline float4 add4(float4 a, float4 b) {
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}
__device__ inline float4 sub4(float4 a, float4 b) {
    return make_float4(a.x - b.x, a.y - b.y, a.z - b.z, a.w - b.w);
}
__device__ inline float4 fma4(float4 a, float4 b, float4 c) {
    return make_float4(
        fmaf(a.x, b.x, c.x), fmaf(a.y, b.y, c.y), fmaf(a.z, b.z, c.z), fmaf(a.w, b.w, c.w));
}

// The value v of the lane whose number differs in `bits`.
__device__ inline float4 exchange4(float4 v, int bits) {
    return make_float4(
        __shfl_xor_sync(ALL_LANES, v.x, bits), __shfl_xor_sync(ALL_LANES, v.y, bits),
        __shfl_xor_sync(ALL_LANES, v.z, bits), __shfl_xor_sync(ALL_LANES, v.w, bits));
}

__device__ inline float4 scale4(float4 v, float by) {
    return make_float4(v.x * by, v.y * by, v.z * by, v.w * by);
}

// v where the bits of `kept` are set, else 0; one bit per element.
__device__ inline float4 keep4(float4 v, unsigned kept) {
    return make_float4(
        kept & 1 ? v.x : 0.0f, kept & 2 ? v.y : 0.0f, kept & 4 ? v.z : 0.0f, kept & 8 ? v.w : 0.0f);
}

// The dropout bits (dropout.cu) of four elements from element `at` on, in the lowest bits.
__device__ inline unsigned four_bits(const unsigned* kept, unsigned at) {
    return kept ? __ldg(kept + at / 32) >> at % 32 : 0xf;
}

// ---- batch normalisation, from partial sums -----------------------------------------------------

// For each run of tiles of y, and each channel: the mean of y's elements, the sum of their squared
// deviations from it, and their number: parts (count, STATISTICS, C).
constexpr int STATISTICS = 3;
// For each run of tiles of dx, and each channel: the sums of dx and of dx * z, where z is the
// normalised y: parts (count, SUMS, C).
constexpr int SUMS = 2;

// Every thread block of the next launch adds up all parts. Four lanes of a warp share a channel;
// each takes every fourth part. A warp has eight channels, which are 32 bytes of memory.
constexpr int SHARERS = 4, TOGETHER = WARP / SHARERS;

__device__ inline int shared_channel(int i) { return i / WARP * TOGETHER + i % TOGETHER; }
__device__ inline int own_share(int i) { return i % WARP / TOGETHER; }

// The sum over the lanes that share a channel; all of them get it.
__device__ inline float sum_of_sharers(float v) {
    for (int distance = TOGETHER; distance < WARP; distance *= 2)
        v += __shfl_xor_sync(ALL_LANES, v, distance);
    return v;
}
__device__ inline Precise sum_of_sharers(Precise v) {
    for (int distance = TOGETHER; distance < WARP; distance *= 2)
        v = v + Precise(__shfl_xor_sync(ALL_LANES, v.high, distance),
                        __shfl_xor_sync(ALL_LANES, v.low, distance));
    return v;
}

struct Moments {
    float mean, variance;
};

// 1 / sqrt(variance + epsilon)
__device__ inline Precise inverse_deviation(float variance, float epsilon) {
    return Precise(1.0f) / root(exact_sum(variance, epsilon));
}

// A channel's moments from parts (count, STATISTICS, C); deviations are from the first part's mean.
// All sharers call it together.
__device__ inline Moments add_up_moments(
    const float* parts, int count, int C, int channel, int share) {
    const float *means = parts + channel, *squares = means + C, *counts = squares + C;
    int next = STATISTICS * C;
    float pivot = means[0];
    Precise n = 0.0f, sum = 0.0f, deviations = 0.0f;
#pragma unroll 4
    for (int i = share; i < count; i += SHARERS) {
        float own = counts[i * next];
        Precise d = exact_sum(means[i * next], -pivot), own_d = d * own;
        n = n + own;
        sum = sum + own_d;
        deviations = deviations + (own_d * d + squares[i * next]);
    }
    n = sum_of_sharers(n);
    Precise mean = sum_of_sharers(sum) / n;
    float variance = float(sum_of_sharers(deviations) / n - mean * mean);
    return {float(mean + pivot), variance < 0.0f ? 0.0f : variance};  // NaN stays NaN
}

// Within a thread block, each row of rows (count, PIVOTED, C) has a pivot of its own and holds, for
// each channel, the pivot, the sum of deviations from it, the sum of their squares, their number.
constexpr int PIVOTED = 4;

// Adds up the rows for one channel: mean, squared deviations and number, `part_C` elements apart.
__device__ inline void add_up_pivoted(
    const float* rows, int count, int C, int channel, float* part, int part_C) {
    const float *pivots = rows + channel, *sums = pivots + C, *squares = sums + C;
    const float* counts = squares + C;
    int next = PIVOTED * C;
    Precise n = 0.0f, total = 0.0f, deviations = 0.0f;
    for (int i = 0; i < count; ++i) {
        n = n + counts[i * next];
        total = total + (exact_product(counts[i * next], pivots[i * next]) + sums[i * next]);
    }
    Precise mean = n.high > 0.0f ? total / n : 0.0f;
    for (int i = 0; i < count; ++i) {
        Precise d = Precise(pivots[i * next]) - mean;
        deviations = deviations + (d * (d * counts[i * next] + 2.0f * sums[i * next]) +
                                   squares[i * next]);
    }
    part[0] = float(mean);
    part[part_C] = float(deviations);
    part[2 * part_C] = float(n);
}

// The batch normalisation and dropout between the block below and this block's input, as
// x = scale * y + shift. If gamma is null there is no normalisation.
struct Normalization {
    const float *gamma, *beta;     // (C,)
    const float* parts;            // (count, STATISTICS, C); null if mean and variance are known
    int count;                     // of parts
    const float *mean, *variance;  // (C,)
    float epsilon;
    float kept_scale;  // dropout multiplies what it keeps by it

    // Computes scale and shift in shared memory, for whole chunks of channels. Writes mean and
    // variance to the last two unless null.
    __device__ void prepare(
        int C, float* scale, float* shift, float* mean_result = nullptr,
        float* variance_result = nullptr) const {
        for (int i = threadIdx.x; i < ceil_div(C, CHUNK) * CHUNK * SHARERS; i += blockDim.x) {
            int c = shared_channel(i), share = own_share(i), existing = c < C ? c : 0;
            Precise a = 1.0f, b = 0.0f;
            Moments m{0.0f, 0.0f};
            if (gamma) {
                if (parts)
                    m = add_up_moments(parts, count, C, existing, share);
                else
                    m = {mean[existing], variance[existing]};
                a = inverse_deviation(m.variance, epsilon) * gamma[existing];
                b = Precise(beta[existing]) - a * m.mean;
            }
            if (share > 0) continue;
            scale[c] = float(a * kept_scale);
            shift[c] = float(b * kept_scale);
            if (!mean_result || c >= C) continue;
            mean_result[c] = m.mean;
            variance_result[c] = m.variance;
        }
    }
};

// The gradient of a block's batch normalisation, as a*dx + b*y + c, from the sums of dx and dx * z.
struct NormalizationGradient {
    const float* gamma;            // (C,)
    const float* parts;            // (count, SUMS, C)
    int count;                     // of parts
    const float *mean, *variance;  // (C,)
    float epsilon;
    int rows;  // that the sums are over

    // Computes a, b and c in shared memory, for whole chunks of channels. Writes the gradients of
    // gamma and beta (C,) to the last two unless null.
    __device__ void prepare(
        int C, float* a, float* b, float* c, float* dgamma = nullptr,
        float* dbeta = nullptr) const {
        for (int i = threadIdx.x; i < ceil_div(C, CHUNK) * CHUNK * SHARERS; i += blockDim.x) {
            int n = shared_channel(i), existing = n < C ? n : 0;
            const float *sums = parts + existing, *sums_z = sums + C;
            Precise sum = 0.0f, sum_z = 0.0f;
#pragma unroll 8
            for (int part = own_share(i); part < count; part += SHARERS) {
                sum = sum + sums[part * SUMS * C];
                sum_z = sum_z + sums_z[part * SUMS * C];
            }
            sum = sum_of_sharers(sum);
            sum_z = sum_of_sharers(sum_z);
            if (own_share(i) > 0) continue;
            a[n] = b[n] = c[n] = 0.0f;
            if (n >= C) continue;
            Precise inverse = inverse_deviation(variance[n], epsilon), all = float(rows);
            Precise scale = inverse * gamma[n], slope = sum_z * inverse / all;
            a[n] = float(scale);
            b[n] = float(-(scale * slope));
            c[n] = float(scale * (slope * mean[n] - sum / all));
            if (!dgamma) continue;
            dgamma[n] = float(sum_z);
            dbeta[n] = float(sum);
        }
    }
};

// ---- sources of staged elements -----------------------------------------------------------------
// A source handles four channels of a pixel at a time. `channels` selects them, `load` starts to
// load their inputs, so that several loads can be in flight, and `finish` computes the values to be
// staged from them. They are 0 for a pixel that is not `inside`. There is no branch, so that all
// loads of a thread can be in flight together.

// A block's input x, from y of the block below.
struct Normalized {
    const STORED* y;
    const unsigned* kept;          // dropout bits; null: nothing is dropped
    const float *scales, *shifts;  // (C,) in shared memory
    float4 scale, shift;

    struct Raw {
        Loaded4 y;
        unsigned kept;
    };

    __device__ void channels(int c) {
        scale = load4(scales + c);
        shift = load4(shifts + c);
    }
    __device__ Raw load(unsigned at, bool inside) const {
        at = inside ? at : 0;
        unsigned bits = four_bits(kept, at);
        return {load4_global(y + at), inside ? bits : 0};
    }
    __device__ float4 finish(const Raw& raw) const {
        return keep4(fma4(scale, widen(raw.y), shift), raw.kept);
    }
};

// A block's activation is max(z, floor): floor 0 gives ReLU, minus infinity gives none. NaN stays
// NaN, so that it is noticed.
__device__ inline float activate(float floor, float z) { return z < floor ? 0.0f : z; }
__device__ inline float activate_backward(float floor, float y, float dy, bool inside) {
    return inside && y > floor ? dy : 0.0f;
}
__device__ inline float4 activate(float floor, float4 z) {
    return make_float4(
        activate(floor, z.x), activate(floor, z.y), activate(floor, z.z), activate(floor, z.w));
}

// The gradient dz before a block's activation, from dx and y. `sum` is the sum of all values that
// the thread has computed, before rounding: the gradient with respect to the bias.
struct BeforeActivation {
    const STORED *dx, *y;
    const float *as, *bs, *cs;  // (C,) in shared memory
    float floor;                // of the activation
    float4 a, b, c;
    float4 sum;

    struct Raw {
        Loaded4 dx, y;
        bool inside;
    };

    __device__ void channels(int n) {
        a = load4(as + n);
        b = load4(bs + n);
        c = load4(cs + n);
    }
    __device__ Raw load(unsigned at, bool inside) const {
        at = inside ? at : 0;
        return {load4_global(dx + at), load4_global(y + at), inside};
    }
    __device__ float4 finish(const Raw& raw) {
        float4 y = widen(raw.y), dy = fma4(a, widen(raw.dx), fma4(b, y, c));
        float4 dz = make_float4(activate_backward(floor, y.x, dy.x, raw.inside),
                                activate_backward(floor, y.y, dy.y, raw.inside),
                                activate_backward(floor, y.z, dy.z, raw.inside),
                                activate_backward(floor, y.w, dy.w, raw.inside));
        sum = add4(sum, dz);
        return dz;
    }
};

// Prefetches rows of images (B, H, W, C), with all channels: of `images` images from `image` on the
// `rows` rows from `top` on, where they exist, and what lies between them.
__device__ inline void prefetch_rows(
    const STORED* array, int B, int H, int W, int C, int image, int images, int top, int rows) {
    int last = min(image + images, B) - 1;
    int begin = image * H + max(top, 0), end = last * H + min(top + rows, H);
    if (begin < end) prefetch(array + begin * W * C, (end - begin) * W * C * int(sizeof(STORED)));
}

// The pixel of a tile that a thread stages first. QUADS threads stage a pixel together. Those that
// store in the same cycle must meet different banks: with bfloat16 these are the threads of two
// pixels, which therefore are SPREAD pixels apart. QUADS * 2 * SPREAD must divide the block's size.
template <int SPREAD>
__device__ inline int first_pixel() {
    int n = threadIdx.x / QUADS, in_group = n % (2 * SPREAD);
    return SPREAD == 1 ? n : n - in_group + in_group / 2 + in_group % 2 * SPREAD;
}

// Images (B, H, W, C) that tiles are staged from. `table`, in shared memory, has an entry e for
// each pixel of a tile, relative to the tile's first pixel. e.x is its distance in memory, or far
// past the last image if its column is outside. e.y has its row in the upper 16 bits and its staged
// place in the lower ones. Distances are in elements, places in words. cuda_tiles.py computes the
// table once; doing so here would take about a hundred instructions per pixel and tile.
struct Staged {
    int B, H, W, C;
    const int2* table;
    int pixels;  // of a tile

    // Stages a chunk of channels, from `channel` on, of the tile whose first pixel is (image, top,
    // left), even if that is outside; pixels outside become 0. A thread takes four channels of
    // every `threads`-th pixel, and has the loads of BATCH pixels in flight.
    template <int BATCH, int SPREAD, typename Source>
    __device__ void stage(
        Source& source, int image, int top, int left, int channel, float* to) const {
        int quad = threadIdx.x % QUADS * 4, threads = blockDim.x / QUADS;
        int begin = ((image * H + top) * W + left) * C + channel + quad;
        unsigned end = channel + quad < C ? B * H * W * C : 0;
        for (int first = first_pixel<SPREAD>(); first < pixels; first += BATCH * threads) {
            typename Source::Raw raw[BATCH];
            int place[BATCH];
#pragma unroll
            for (int k = 0; k < BATCH; ++k) {
                int number = first + k * threads;
                int2 e = table[min(number, pixels - 1)];
                unsigned at = begin + e.x;  // before the first image it is huge
                bool inside = at < end && unsigned(top + (e.y >> 16)) < H;
                raw[k] = source.load(at, inside);
                place[k] = number < pixels ? e.y & 0xffff : -1;
            }
            source.channels(channel + quad);  // as late as possible, to save registers
#pragma unroll
            for (int k = 0; k < BATCH; ++k) {
                auto words = Operands<STORED>::words(source.finish(raw[k]));
                if (place[k] >= 0) Operands<STORED>::put(to + place[k] + quad / PER_WORD, words);
            }
        }
    }
};
