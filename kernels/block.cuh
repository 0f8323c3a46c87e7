// What the kernels of fused blocks share: a block is a convolution, its activation, and the batch
// normalisation behind it, with dropout if there is some. Tensor cores multiply, in TF32.
//
//     memory holds   y, the activation's output      and   dx, the gradient by the block's output
//     next block     x = scale * y + shift                 dz = activation'(y) * (a*dx + b*y + c)
//     reads it as        0 where it is dropped                  the gradient before the activation
//
// Neither x nor dz is ever written to memory: who needs them makes them while it stages numbers in
// shared memory. `scale` and `shift`, a, b and c are the same for all numbers of a channel, and
// follow from sums over all rows, which the launch before has left in parts.
#pragma once

#include "common.cuh"
#include "convolution.cuh"
#include "ptx.cuh"
#include "reduce.cuh"

constexpr int CHUNK = 32;  // channels that are staged at a time; more come one chunk after another
constexpr int QUADS = CHUNK / 4;
// From a staged pixel to the next one, in numbers. An odd number of eights: then four pixels in a
// row, eight numbers of each, lie in the 32 different banks of shared memory.
constexpr int PITCH = CHUNK + 8;

// How a launch cuts its work; tiles.py chooses it. A tile of results is some rows of an image, or
// several whole images. The numbers that it is made from, its window's reach included, are staged
// in shared memory, with gaps between rows and between images, so that pixels that follow one
// another in the tile lie in different banks across the end of a row, too.
//
// With a stride along the columns, those that a tap meets are not neighbours. So the columns are
// staged by turns: with 2, first the even ones, then the odd ones.
struct Tiling {
    int images, rows, bands;          // of a tile; tiles of an image
    int source_rows, source_columns;  // staged of each image, by turns of columns
    int row_pitch, image_pitch;       // pixels from one staged row, or image, to the next
    int top, left;                    // where in the image, beside the first result, staging begins
    int pixel_warps, channel_warps;   // of the block
    int groups;                       // of phases, or of taps, which different blocks take
    int area;                         // numbers of shared memory for pixels
};

// n / divisor, for n below 2^20, by a multiplication: n + 0.5 keeps clear of whole multiples by
// more than what is lost in rounding.
struct Divider {
    float inverse;

    __device__ explicit Divider(int divisor) : inverse(1.0f / divisor) {}
    __device__ int quotient(int n) const { return int((n + 0.5f) * inverse); }
};

__device__ inline float4 load4(const float* from) {
    return *reinterpret_cast<const float4*>(from);
}
__device__ inline float4 load4_global(const float* from) {
    return __ldg(reinterpret_cast<const float4*>(from));
}
__device__ inline void store4(float* to, float4 v) { *reinterpret_cast<float4*>(to) = v; }
__device__ inline float4 to_tf32(float4 v) {
    return make_float4(to_tf32(v.x), to_tf32(v.y), to_tf32(v.z), to_tf32(v.w));
}
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

// Those of the lane whose number differs in these bits.
__device__ inline float4 exchange4(float4 v, int bits) {
    return make_float4(__shfl_xor_sync(ALL_LANES, v.x, bits), __shfl_xor_sync(ALL_LANES, v.y, bits),
                       __shfl_xor_sync(ALL_LANES, v.z, bits), __shfl_xor_sync(ALL_LANES, v.w, bits));
}

// v where the bits of `kept` are set, one for each number, else 0.
__device__ inline float4 keep4(float4 v, unsigned kept) {
    return make_float4(
        kept & 1 ? v.x : 0.0f, kept & 2 ? v.y : 0.0f, kept & 4 ? v.z : 0.0f, kept & 8 ? v.w : 0.0f);
}

// Dropout's answers (dropout.cu) for four numbers, of which the first is number `at`.
__device__ inline unsigned four_bits(const unsigned* kept, int at) {
    return kept ? __ldg(kept + at / 32) >> at % 32 : 0xf;
}

// ---- batch normalisation, from sums in parts ----------------------------------------------------

// Of each channel a block that makes y leaves the mean of its numbers, the sum of their squared
// deviations from it, and how many they are: parts (count, STATISTICS, C).
constexpr int STATISTICS = 3;
// One that makes dx leaves the sums of dx and of dx * z, with z the normalised y: (count, SUMS, C).
constexpr int SUMS = 2;

struct Moments {
    float mean, variance;
};

// Parts in shared memory, `room` numbers of it, so that they all arrive together, not some for each
// thread at a time; or where they are, if there are too many.
__device__ inline const float* gather(const float* parts, int numbers, float* area, int room) {
    if (numbers > room) return parts;
    for (int i = threadIdx.x; i < numbers; i += blockDim.x) area[i] = parts[i];
    __syncthreads();
    return area;
}

// A channel's moments from its parts, about the first one's mean.
__device__ inline Moments add_up_moments(const float* parts, int count, int C, int channel) {
    const float *means = parts + channel, *squares = means + C, *numbers = squares + C;
    int next = STATISTICS * C;
    double n = 0.0, sum = 0.0, deviations = 0.0, pivot = means[0];
#pragma unroll 4
    for (int i = 0; i < count; ++i) {
        double number = numbers[i * next], d = means[i * next] - pivot;
        n += number;
        sum += number * d;
        deviations += squares[i * next] + number * d * d;
    }
    double mean = sum / n, variance = deviations / n - mean * mean;
    return {float(pivot + mean), variance < 0.0 ? 0.0f : float(variance)};  // a NaN stays one
}

// The same of rows that were summed about a pivot of their own each, rows (number, PIVOTED, C):
// pivot, sum of deviations from it, sum of their squares, how many. To a part.
constexpr int PIVOTED = 4;

__device__ inline void add_up_pivoted(
    const float* rows, int number, int C, int channel, float* part, int part_C) {
    const float *pivots = rows + channel, *sums = pivots + C, *squares = sums + C;
    const float* numbers = squares + C;
    int next = PIVOTED * C;
    double n = 0.0, total = 0.0, deviations = 0.0;
    for (int i = 0; i < number; ++i) {
        n += numbers[i * next];
        total += double(numbers[i * next]) * pivots[i * next] + sums[i * next];
    }
    double mean = n > 0.0 ? total / n : 0.0;
    for (int i = 0; i < number; ++i) {
        double d = pivots[i * next] - mean;
        deviations += squares[i * next] + d * (2.0 * sums[i * next] + numbers[i * next] * d);
    }
    part[0] = mean;
    part[part_C] = deviations;
    part[2 * part_C] = n;
}

// The normalisation that a block's input has yet to go through. Without gamma: none.
struct Normalization {
    const float *gamma, *beta;  // (C,)
    const float* parts;         // of the moments; or null, and these are known:
    int count;                  // of parts
    const float *mean, *variance;
    float epsilon;
    float kept_scale;  // by which dropout multiplies what it keeps

    // scale and shift (whole chunks) in shared memory; `area` is some that nobody uses yet.
    // Where a mean and a variance are to be left for others, they are.
    __device__ void prepare(
        int C, float* scale, float* shift, float* area, int room, float* left_mean = nullptr,
        float* left_variance = nullptr) const {
        const float* from = parts ? gather(parts, count * STATISTICS * C, area, room) : nullptr;
        for (int c = threadIdx.x; c < ceil_div(C, CHUNK) * CHUNK; c += blockDim.x) {
            double a = 1.0, b = 0.0;
            if (gamma && c < C) {
                Moments m{0.0f, 0.0f};
                if (parts)
                    m = add_up_moments(from, count, C, c);
                else
                    m = {mean[c], variance[c]};
                a = gamma[c] / sqrt(double(m.variance) + epsilon);
                b = beta[c] - m.mean * a;
                if (left_mean) {
                    left_mean[c] = m.mean;
                    left_variance[c] = m.variance;
                }
            }
            scale[c] = a * kept_scale;
            shift[c] = b * kept_scale;
        }
    }
};

// Its gradient: dz = activation'(y) * (a*dx + b*y + c), from the sums of dx and of dx * z.
struct NormalizationGradient {
    const float* gamma;
    const float* parts;  // of the sums
    int count;
    const float *mean, *variance;
    float epsilon;
    int rows;  // over which they were summed

    // a, b, c (whole chunks) in shared memory, as above
    __device__ void prepare(int C, float* a, float* b, float* c, float* area, int room) const {
        const float* from = gather(parts, count * SUMS * C, area, room);
        for (int n = threadIdx.x; n < ceil_div(C, CHUNK) * CHUNK; n += blockDim.x) {
            a[n] = b[n] = c[n] = 0.0f;
            if (n >= C) continue;
            double sum = 0.0, sum_z = 0.0;
#pragma unroll 4
            for (int i = 0; i < count; ++i) {
                sum += from[i * SUMS * C + n];
                sum_z += from[(i * SUMS + 1) * C + n];
            }
            double inverse = 1.0 / sqrt(double(variance[n]) + epsilon);
            double scale = gamma[n] * inverse, slope = sum_z * inverse / rows;
            a[n] = scale;
            b[n] = -scale * slope;
            c[n] = -scale * (sum / rows - slope * mean[n]);
        }
    }
};

// ---- sources of staged numbers ------------------------------------------------------------------
// Each loads four channels of a pixel, which is under way while others are loaded, and makes of
// them what the product needs, rounded for the tensor cores.

// A block's input x.
struct Normalized {
    const float* y;
    const unsigned* kept;  // dropout's bits; null: nothing is dropped
    const float *scales, *shifts;
    float4 scale, shift;

    struct Raw {
        float4 y;
        unsigned kept;
    };

    __device__ void channels(int c) {
        scale = load4(scales + c);
        shift = load4(shifts + c);
    }
    __device__ Raw load(int at) const { return {load4_global(y + at), four_bits(kept, at)}; }
    __device__ float4 finish(const Raw& raw) const {
        return to_tf32(keep4(fma4(scale, raw.y, shift), raw.kept));
    }
};

// A block's activation is max(z, floor): with floor 0 a ReLU, with minus infinity none. A NaN stays
// one, so that it is seen.
__device__ inline float activate(float floor, float z) { return z < floor ? 0.0f : z; }
__device__ inline float activate_backward(float floor, float y, float dy) {
    return y > floor ? dy : 0.0f;
}
__device__ inline float4 activate(float floor, float4 z) {
    return make_float4(
        activate(floor, z.x), activate(floor, z.y), activate(floor, z.z), activate(floor, z.w));
}

// The gradient dz before a block's activation; `sum` adds up what the thread has staged, unrounded.
struct BeforeActivation {
    const float *dx, *y;
    const float *as, *bs, *cs;
    float floor;  // the activation's
    float4 a, b, c;
    float4 sum;

    struct Raw {
        float4 dx, y;
    };

    __device__ void channels(int n) {
        a = load4(as + n);
        b = load4(bs + n);
        c = load4(cs + n);
    }
    __device__ Raw load(int at) const { return {load4_global(dx + at), load4_global(y + at)}; }
    __device__ float4 value(const Raw& raw) {
        float4 dy = fma4(a, raw.dx, fma4(b, raw.y, c));
        float4 dz = make_float4(
            activate_backward(floor, raw.y.x, dy.x), activate_backward(floor, raw.y.y, dy.y),
            activate_backward(floor, raw.y.z, dy.z), activate_backward(floor, raw.y.w, dy.w));
        sum = add4(sum, dz);
        return dz;
    }
    __device__ float4 finish(const Raw& raw) { return to_tf32(value(raw)); }
};

// Images (B, H, W, C) that tiles are staged from. `table` (shared memory) says of each pixel of a
// tile where it is, beside the tile's first one: e.x, how many pixels behind it in memory, or far
// beyond the last image where it lies beside one; e.y, its row, and in the lower half where it is
// staged. tiles.py makes it: for each tile it would take some hundred instructions a pixel.
struct Staged {
    int B, H, W, C;
    const int2* table;
    int pixels;  // of a tile

    // Fills `to` with the channels from `channel` on, of a tile whose first pixel is (image, top,
    // left), or would be, with zeros outside. A thread takes four channels of every so many pixels,
    // BATCH of which are under way together.
    template <int BATCH, typename Source>
    __device__ void stage(
        Source& source, int image, int top, int left, int channel, float* to) const {
        int quad = threadIdx.x % QUADS * 4, threads = blockDim.x / QUADS;
        int before = (image * H + top) * W + left, all = B * H * W;
        bool real = channel + quad < C;
        for (int first = threadIdx.x / QUADS; first < pixels; first += BATCH * threads) {
            typename Source::Raw raw[BATCH];
            int place[BATCH];
            bool inside[BATCH];
#pragma unroll
            for (int k = 0; k < BATCH; ++k) {
                int number = first + k * threads;
                int2 e = table[min(number, pixels - 1)];
                int at = before + e.x;  // below 0 it is huge as unsigned
                place[k] = number < pixels ? e.y & 0xffff : -1;
                inside[k] = real && unsigned(at) < all && unsigned(top + (e.y >> 16)) < H;
                // Without a branch all loads are under way at once.
                raw[k] = source.load(inside[k] ? at * C + channel + quad : 0);
            }
            source.channels(channel + quad);  // late, so that they wait in no register
#pragma unroll
            for (int k = 0; k < BATCH; ++k) {
                float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                if (inside[k]) v = source.finish(raw[k]);
                if (place[k] >= 0) store4(to + place[k] * PITCH + quad, v);
            }
        }
    }
};

// The same of pixels that follow one another in memory, from pixel `before` on: `here` of them, then
// zeros.
template <int BATCH, typename Source>
__device__ inline void stage_run(
    Source& source, int before, int here, int pixels, int C, int channel, float* to) {
    int quad = threadIdx.x % QUADS * 4, threads = blockDim.x / QUADS;
    bool real = channel + quad < C;
    for (int first = threadIdx.x / QUADS; first < pixels; first += BATCH * threads) {
        typename Source::Raw raw[BATCH];
#pragma unroll
        for (int k = 0; k < BATCH; ++k) {
            int number = first + k * threads;
            bool inside = real && number < here;
            raw[k] = source.load(inside ? (before + number) * C + channel + quad : 0);
        }
        source.channels(channel + quad);
#pragma unroll
        for (int k = 0; k < BATCH; ++k) {
            int number = first + k * threads;
            float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (real && number < here) v = source.finish(raw[k]);
            if (number < pixels) store4(to + number * PITCH + quad, v);
        }
    }
}
