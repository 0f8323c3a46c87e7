// The first block of a network, rebuilt from the image by every launch that needs it. Its y and dx
// are a network's largest arrays, and they follow from little: an image of few channels and a small
// kernel. So they are never written to memory, and to rebuild them takes a few per cent of the
// products.
//
// Tensor cores compute y of eight pixels by 32 filters (output channels) at a time:
//
//     left operand     16 filters by the K elements of the kernel
//     right operand    the K elements of the image under the window, by 8 pixels
//
// A lane gets four filters of two pixels, as in correlation.cuh.
//
// The gradients of the kernel and the bias are sums over pixels, too. With m = activation'(y),
//
//     dz = m * (a*dx + b*y + c), so    dkernel = a * sum(x * m*dx) + b * sum(x * m*y) + c * sum(x * m)
//
// a, b and c are known only after the launch that computes dx. But the three sums are not: that
// launch adds up the first one while dx is in registers, rebuilt_moments the other two.
#pragma once

#include "block.cuh"

constexpr int OUTSIDE = 1 << 30;             // in the table of staged pixels
constexpr int ELEMENTS = 16;                 // K and one more, at most
constexpr int OF_KERNEL = ELEMENTS / DEPTH;  // mma.sync for the depth of a kernel
constexpr int OF_PIXELS = 16 / DEPTH;        // for the depth of two groups of eight pixels

__device__ inline float component(float4 v, int i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// The words of operands whose depth are two groups of eight pixels, of each of which a lane has
// pixels 2t and 2t + 1: two words for each mma.sync. In TF32 each group is one mma.sync.
__device__ inline void words_of_pixels(
    Operands<float>, const float (&v)[2][2], float (&words)[2][2]) {
    for (int i = 0; i < 4; ++i) words[i / 2][i % 2] = Operands<float>::word(v[i / 2][i % 2]);
}
__device__ inline void words_of_pixels(
    Operands<bfloat16>, const float (&v)[2][2], float (&words)[1][2]) {
    for (int i = 0; i < 2; ++i) words[0][i] = Operands<bfloat16>::word(v[i][0], v[i][1]);
}

// The words of four elements of a kernel, or of the image: two for each mma.sync.
__device__ inline void words_of_elements(
    Operands<float>, const float (&v)[4], float (&words)[2][2]) {
    for (int i = 0; i < 4; ++i) words[i / 2][i % 2] = Operands<float>::word(v[i]);
}
__device__ inline void words_of_elements(
    Operands<bfloat16>, const float (&v)[4], float (&words)[1][2]) {
    for (int i = 0; i < 2; ++i)
        words[0][i] = Operands<bfloat16>::word(v[i * 2], v[i * 2 + 1]);
}

// A lane's sums over pixels: of 32 filters by ELEMENTS elements, as the results of mma.sync. Warps
// keep them in shared memory, where each lane has a place of its own.
typedef float ElementSums[4][4];  // 16 filters and 8 elements; the other elements; other filters
constexpr int TILE_OF_SUMS = 4 * WARP + 4;  // from one of these tiles to the next: in other banks
constexpr int SUMS_OF_WARP = 4 * TILE_OF_SUMS;

// A lane's n-th element (of four) of the left operands below, and of the right ones they meet.
__device__ inline int element_of_lane(int n) {
    int word = n / (2 * PER_WORD) * STEP + threadIdx.x % 4 + n / PER_WORD % 2 * 4;
    return word * PER_WORD + n % PER_WORD;
}

// A lane's left operands for 32 filters, the biases of its four filters, and the distances of its
// elements from the first one under a window.
struct LaneWeights {
    float left[OF_KERNEL][2][4];
    float4 biases;
    int distance[4];

    static constexpr int SIZE_OF_WARP = (OF_KERNEL * 2 + 1) * 4 * WARP;

    __device__ void set_distances(const int* distances) {
#pragma unroll
        for (int n = 0; n < 4; ++n) distance[n] = distances[element_of_lane(n)];
    }

    // Stores them in shared memory, or loads them from there: each lane has a place of its own.
    __device__ void save(float* of_warp) const {
        float* own = of_warp + threadIdx.x % WARP * 4;
        store4(own, biases);
#pragma unroll
        for (int i = 0; i < OF_KERNEL * 2; ++i) {
            const float(&v)[4] = left[i / 2][i % 2];
            store4(own + (i + 1) * 4 * WARP, make_float4(v[0], v[1], v[2], v[3]));
        }
    }
    __device__ void load(const float* of_warp, const int* distances) {
        set_distances(distances);
        const float* own = of_warp + threadIdx.x % WARP * 4;
        biases = load4(own);
#pragma unroll
        for (int i = 0; i < OF_KERNEL * 2; ++i) {
            float4 v = load4(own + (i + 1) * 4 * WARP);
            float(&to)[4] = left[i / 2][i % 2];
            to[0] = v.x;
            to[1] = v.y;
            to[2] = v.z;
            to[3] = v.w;
        }
    }
};

struct Rebuilt {
    Convolution s;
    const float *x, *kernel, *bias;  // x (B, H, W, Cin)
    float floor;                     // of the activation
    int rows, columns;               // of x under a tile of y, for each image of the tile
    int line;                        // elements from one of these rows to the next
    // In shared memory: the distance of each element from the first one under a window; these parts
    // of x, (images, rows, line).
    int* distances;
    float* image;

    __device__ Rebuilt() {}
    __device__ Rebuilt(const Convolution& s, const float* x, const float* kernel, const float* bias,
                       float floor, int y_rows, int y_columns, float* shared)
        : s(s), x(x), kernel(kernel), bias(bias), floor(floor),
          rows((y_rows - 1) * s.sh + s.kh), columns((y_columns - 1) * s.sw + s.kw),
          line(columns * s.Cin), distances(reinterpret_cast<int*>(shared)), image(shared + ELEMENTS) {
        // The columns under eight windows in a row, in up to three rows, in different banks
        if (s.Cin == 1) line += (7 + s.kw + 32 - line % 32) % 32;
    }

    // Elements of shared memory for `images` images, rounded up so that a float4 may follow.
    __device__ int size(int images) const {
        return ELEMENTS + ceil_div(images * rows * line, 4) * 4;
    }

    __device__ int elements() const { return s.kh * s.kw * s.Cin; }  // K

    // Sets the distances; past the last element that of the last: what is multiplied by it is zero,
    // or not used. All threads call it once.
    __device__ void set_distances() const {
        if (threadIdx.x >= ELEMENTS) return;
        int k = min(int(threadIdx.x), elements() - 1), tap = k / s.Cin, row = tap / s.kw;
        distances[threadIdx.x] = row * line + (tap - row * s.kw) * s.Cin + k - tap * s.Cin;
    }

    // Where in `image` the window of a pixel of y begins: of an image of the tile.
    __device__ int place(int which, int row, int column) const {
        return (which * rows + row * s.sh) * line + column * s.sw * s.Cin;
    }

    // Stages the images from `first` on under the tile of y that begins at (top, left), with zeros
    // around and after the images.
    __device__ void stage_image(int first, int images, int top, int left) const {
        int first_row = top * s.sh - s.top, first_column = left * s.sw - s.left;
#pragma unroll 1
        for (int i = threadIdx.x; i < images * rows * line; i += blockDim.x) {
            int number = i / line, in_line = i - number * line, which = number / rows;
            int b = first + which, row = first_row + number - which * rows;
            int column = first_column + in_line / s.Cin;
            bool inside = b < s.B && row >= 0 && row < s.H && column >= 0 && column < s.W
                && in_line < columns * s.Cin;
            int at = ((b * s.H + row) * s.W + first_column) * s.Cin + in_line;
            image[i] = inside ? __ldg(x + at) : 0.0f;
        }
    }

    // The lane's weights for filters from `filter` on; after a barrier.
    __device__ LaneWeights weights(int filter) const {
        LaneWeights w;
        filter += threadIdx.x % WARP / 4 * 4;  // s.Cout is a multiple of four
        float4 zero = make_float4(0.0f, 0.0f, 0.0f, 0.0f), of_element[4];
        bool exists = filter < s.Cout;
        w.set_distances(distances);
        w.biases = exists ? load4_global(bias + filter) : zero;
#pragma unroll
        for (int n = 0; n < 4; ++n)
            of_element[n] = exists && element_of_lane(n) < elements()
                ? load4_global(kernel + element_of_lane(n) * s.Cout + filter) : zero;
#pragma unroll
        for (int f = 0; f < 4; ++f) {
            float v[4], words[OF_KERNEL][2];
#pragma unroll
            for (int n = 0; n < 4; ++n) v[n] = component(of_element[n], f);
            words_of_elements(Operands<STORED>(), v, words);
#pragma unroll
            for (int step = 0; step < OF_KERNEL; ++step)
                for (int half = 0; half < 2; ++half)
                    w.left[step][f / 2][half * 2 + f % 2] = words[step][half];
        }
        return w;
    }

    // y of eight pixels, for the whole warp: the lane gives the place of pixel `group` (lane / 4),
    // and gets its four filters of pixels 2t and 2t + 1 (t = lane % 4).
    __device__ void compute(const LaneWeights& w, int place, float4 (&y)[2]) const {
        float sums[2][4] = {{w.biases.x, w.biases.x, w.biases.y, w.biases.y},
                            {w.biases.z, w.biases.z, w.biases.w, w.biases.w}};
        float v[4], words[OF_KERNEL][2];
#pragma unroll
        for (int n = 0; n < 4; ++n) v[n] = image[place + w.distance[n]];
        words_of_elements(Operands<STORED>(), v, words);
#pragma unroll
        for (int step = 0; step < OF_KERNEL; ++step)
#pragma unroll
            for (int operand = 0; operand < 2; ++operand)
                Operands<STORED>::multiply(sums[operand], w.left[step][operand], words[step]);
#pragma unroll
        for (int half = 0; half < 2; ++half)
            y[half] = activate(floor, make_float4(sums[0][half], sums[0][half + 2], sums[1][half],
                                                  sums[1][half + 2]));
    }

    // Stages x, the input of the block above, as Staged::stage does. A table's entry e has in e.x
    // the pixel's place in the staged image, and OUTSIDE if its column is outside. `images` of a
    // tile. Threads that store together must meet different banks: the pixels of a group are in the
    // order of their numbers, or IN_FOURS: 0, 4, 1, 5, 2, 6, 3, 7.
    template <bool IN_FOURS>
    __device__ void stage(const Normalized& above, const int2* table, int pixels, int images,
                          int first_image, int top, int left, int channel, float* to) {
        stage_image(first_image, images, top, left);
        LaneWeights w = weights(channel);
        int lane = threadIdx.x % WARP, group = lane / 4, quarter = lane % 4;
        float4 scale = load4(above.scales + channel + group * 4);
        float4 shift = load4(above.shifts + channel + group * 4);
        __syncthreads();  // the image is there
        int in_group = IN_FOURS ? group / 2 + group % 2 * 4 : group;
        for (int first = threadIdx.x / WARP * 8; first < pixels; first += blockDim.x / WARP * 8) {
            int at = table[min(first + in_group, pixels - 1)].x;
            float4 y[2];
            compute(w, at == OUTSIDE ? 0 : at, y);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                int number = first + (IN_FOURS ? quarter + half * 4 : quarter * 2 + half);
                int2 e = table[min(number, pixels - 1)];
                bool inside = e.x != OUTSIDE && unsigned(top + (e.y >> 16)) < s.Ho;
                float4 v = keep4(fma4(scale, y[half], shift), inside ? 0xf : 0);
                auto words = Operands<STORED>::words(v);
                if (number < pixels)
                    Operands<STORED>::put(to + (e.y & 0xffff) + group * 4 / PER_WORD, words);
            }
        }
    }

    // The right operands of sums over the pixels of two groups of eight: elements of the image, and
    // a one as element K, for the bias. place[group][half]: of pixels 2t and 2t + 1 of each group.
    __device__ void patches(const int (&place)[2][2], float (&right)[2][OF_PIXELS][2]) const {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            int element = i * 8 + threadIdx.x % WARP / 4, to = distances[element];
            float v[2][2];
            for (int n = 0; n < 4; ++n)
                v[n / 2][n % 2] = element == elements() ? 1.0f : image[place[n / 2][n % 2] + to];
            words_of_pixels(Operands<STORED>(), v, right[i]);
        }
    }
};

// The words of four filters of pixels, as left operands of sums over pixels; v[group][half] has the
// filters of a pixel.
__device__ inline void words_of_filters(
    const float4 (&v)[2][2], float (&left)[2][OF_PIXELS][4]) {
#pragma unroll
    for (int filter = 0; filter < 4; ++filter) {
        float own[2][2], words[OF_PIXELS][2];
#pragma unroll
        for (int n = 0; n < 4; ++n) own[n / 2][n % 2] = component(v[n / 2][n % 2], filter);
        words_of_pixels(Operands<STORED>(), own, words);
#pragma unroll
        for (int step = 0; step < OF_PIXELS; ++step) {
            left[filter / 2][step][filter % 2] = words[step][0];
            left[filter / 2][step][2 + filter % 2] = words[step][1];
        }
    }
}

// Adds transpose(v) @ patches to a lane's sums.
__device__ inline void add_patches(
    const float4 (&v)[2][2], const float (&right)[2][OF_PIXELS][2], ElementSums& sums) {
    float left[2][OF_PIXELS][4];
    words_of_filters(v, left);
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int step = 0; step < OF_PIXELS; ++step)
            Operands<STORED>::multiply(sums[i], left[i / 2][step], right[i % 2][step]);
}

// A lane's sums in shared memory: each lane has a place of its own in those of its warp.
__device__ inline void load_sums(const float* of_warp, ElementSums& sums) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        float4 v = load4(of_warp + i * TILE_OF_SUMS + threadIdx.x % WARP * 4);
        sums[i][0] = v.x;
        sums[i][1] = v.y;
        sums[i][2] = v.z;
        sums[i][3] = v.w;
    }
}
__device__ inline void store_sums(const ElementSums& sums, float* of_warp) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
        store4(of_warp + i * TILE_OF_SUMS + threadIdx.x % WARP * 4,
               make_float4(sums[i][0], sums[i][1], sums[i][2], sums[i][3]));
}

__device__ inline void clear_sums(float* of_warps, int warps) {
    for (int i = threadIdx.x; i < warps * SUMS_OF_WARP; i += blockDim.x) of_warps[i] = 0.0f;
}

// Writes the sums of `warps` warps, one every `step` of those in shared memory, added up in order:
// part (elements, C), of 32 filters from `filter` on. The threads of a warp take eight filters of
// four elements, which lie in different banks here and in whole sectors there.
__device__ inline void write_sums(
    const float* of_warps, int warps, int step, int elements, int C, int filter, float* part) {
#pragma unroll 1
    for (int i = threadIdx.x; i < WIDE * ELEMENTS; i += blockDim.x) {
        int own = i % 8 + i / 32 % 4 * 8, element = i / 8 % 4 + i / 128 * 4;
        int tile = own % 4 / 2 * 2 + element / 8, lane = own / 4 * 4 + element % 8 / 2;
        const float* from = of_warps + tile * TILE_OF_SUMS + lane * 4 + own % 2 * 2 + element % 2;
        float sum = 0.0f;
#pragma unroll 1
        for (int warp = 0; warp < warps; ++warp) sum += from[warp * step * SUMS_OF_WARP];
        if (element < elements && filter + own < C) part[element * C + filter + own] = sum;
    }
}
