// Convolution as an implicit matrix product: the matrix that im2col would write to memory is never
// stored; its elements are gathered directly into the tiles of the product (gemm.cuh).
#include "activation.cuh"
#include "convolution.cuh"
#include "gemm.cuh"

constexpr int NOWHERE = -(1 << 20);  // a row so far outside that no tap of it is inside

// ---- forward -----------------------------------------------------------------------------------

// Left operand. Rows: output pixels. Depth: the taps' channels (kh, kw, Cin). Elements: the input
// under the tap.
struct Patches {
    static constexpr bool DEPTH_FIRST = true;
    const float* x;
    Convolution s;

    template <int ROWS>
    struct Share {
        const float* x;
        Convolution s;
        int top[ROWS], left[ROWS], corner[ROWS];  // of the window: its row, column, offset in x
        int tap_row, tap_column, tap_offset;

        __device__ Share(const Patches& p) : x(p.x), s(p.s) {}

        __device__ void row(int i, int number) {
            Pixel out(number, s.Ho, s.Wo);
            top[i] = out.row * s.sh - s.top;
            left[i] = out.column * s.sw - s.left;
            corner[i] = ((out.image * s.H + top[i]) * s.W + left[i]) * s.Cin;
            if (out.image >= s.B) top[i] = NOWHERE;
        }
        __device__ void depth(int k) {
            int tap = k / s.Cin;
            tap_row = tap / s.kw;
            tap_column = tap - tap_row * s.kw;
            tap_offset = (tap_row * s.W + tap_column) * s.Cin + k - tap * s.Cin;
            if (tap_row >= s.kh) tap_row = NOWHERE;
        }
        __device__ float load(int i) const {
            unsigned h = top[i] + tap_row, w = left[i] + tap_column;  // a negative one becomes huge
            return h < s.H && w < s.W ? __ldg(x + corner[i] + tap_offset) : 0.0f;
        }
    };
};

// y = activation(x * kernel + bias). Thread blocks: x tiles of pixels, y tiles of output channels.
template <typename Shape>
__device__ void forward(
    const float* x, const float* kernel, const float* bias, Convolution s, int activation,
    float* y) {
    int first_pixel = blockIdx.x * Shape::ROWS, first_filter = blockIdx.y * Shape::COLUMNS;
    int K = s.kh * s.kw * s.Cin, pixels = s.B * s.Ho * s.Wo;
    float sums[Shape::TALL][Shape::WIDE];
    multiply<Shape>(
        Patches{x, s}, Columns{kernel, K, s.Cout}, first_pixel, first_filter, 0, K, sums);
    int n = first_filter + Shape::thread_column();
#pragma unroll
    for (int j = 0; j < Shape::WIDE; ++j) {
        float add = n + j < s.Cout ? bias[n + j] : 0.0f;
#pragma unroll
        for (int i = 0; i < Shape::TALL; ++i) sums[i][j] = activate(activation, sums[i][j] + add);
    }
#pragma unroll
    for (int i = 0; i < Shape::TALL; ++i) {
        int pixel = first_pixel + Shape::thread_row() + i;
        if (pixel < pixels) store_vector(y + pixel * s.Cout, n, s.Cout, sums[i]);
    }
}

// Twin: ops_numpy.conv2d
extern "C" __global__ void __launch_bounds__(TILE_THREADS, TILE_BLOCKS)
conv_implicit_forward_narrow(
    PerNet<const float> x, PerNet<const float> kernel, PerNet<const float> bias, Convolution s,
    int activation, PerNet<float> y) {
    forward<Narrow>(x.row(), kernel.row(), bias.row(), s, activation, y.row());
}

// Twin: ops_numpy.conv2d
extern "C" __global__ void __launch_bounds__(TILE_THREADS, TILE_BLOCKS)
conv_implicit_forward_square(
    PerNet<const float> x, PerNet<const float> kernel, PerNet<const float> bias, Convolution s,
    int activation, PerNet<float> y) {
    forward<Square>(x.row(), kernel.row(), bias.row(), s, activation, y.row());
}

// ---- gradient with respect to the input ---------------------------------------------------------
// With strides the pixels of the input form interleaved grids, called phases, and each phase meets
// only some of the taps (network/geometry.py). In each phase the gradient is a correlation of dz
// with these taps in reverse order.

// One axis of a phase: geometry.Phase with the same fields, computed here.
struct AxisPhase {
    int first, count, tap, taps, start;

    __device__ AxisPhase(int tap, int stride, int length, int size, int before) : tap(tap) {
        first = (tap - before) % stride;
        if (first < 0) first += stride;
        count = first < length ? ceil_div(length - first, stride) : 0;
        taps = tap < size ? ceil_div(size - tap, stride) : 0;
        start = (first + before - tap) / stride - (taps - 1);
    }

    // The row of tap number `tap`. If the stride is larger than the window, some phases have no
    // tap.
    __device__ int row_of(int tap) const { return taps ? tap / taps : 0; }
};

// Left operand. Rows: the input pixels of a phase. Depth: output channels of its taps
// (r.taps, c.taps, Cout), the taps in reverse order. Elements: dz where the tap meets the pixel.
struct Gradients {
    static constexpr bool DEPTH_FIRST = true;
    const float* dz;
    Convolution s;
    AxisPhase r, c;

    template <int ROWS>
    struct Share {
        const float* dz;
        Convolution s;
        AxisPhase r, c;
        int top[ROWS], left[ROWS], corner[ROWS];
        int tap_row, tap_column, tap_offset;

        __device__ Share(const Gradients& g) : dz(g.dz), s(g.s), r(g.r), c(g.c) {}

        __device__ void row(int i, int number) {
            Pixel in(number, r.count, c.count);
            top[i] = in.row + r.start;
            left[i] = in.column + c.start;
            corner[i] = ((in.image * s.Ho + top[i]) * s.Wo + left[i]) * s.Cout;
            if (in.image >= s.B) top[i] = NOWHERE;
        }
        __device__ void depth(int k) {
            int tap = k / s.Cout;
            tap_row = c.row_of(tap);
            tap_column = tap - tap_row * c.taps;
            tap_offset = (tap_row * s.Wo + tap_column) * s.Cout + k - tap * s.Cout;
            if (tap_row >= r.taps) tap_row = NOWHERE;
        }
        __device__ float load(int i) const {
            unsigned h = top[i] + tap_row, w = left[i] + tap_column;
            return h < s.Ho && w < s.Wo ? __ldg(dz + corner[i] + tap_offset) : 0.0f;
        }
    };
};

// Right operand. Columns: channels of the input. Depth: as in Gradients. Elements: weights.
struct ReversedWeights {
    static constexpr bool DEPTH_FIRST = true;
    const float* kernel;
    Convolution s;
    AxisPhase r, c;

    template <int ROWS>
    struct Share {
        const float* kernel;
        Convolution s;
        AxisPhase r, c;
        int channel[ROWS];
        int tap_offset;  // -1: no such tap

        __device__ Share(const ReversedWeights& w) : kernel(w.kernel), s(w.s), r(w.r), c(w.c) {}
        __device__ void row(int i, int number) { channel[i] = number; }
        __device__ void depth(int k) {
            int tap = k / s.Cout, tap_row = c.row_of(tap), tap_column = tap - tap_row * c.taps;
            int row = r.tap + (r.taps - 1 - tap_row) * s.sh;
            int column = c.tap + (c.taps - 1 - tap_column) * s.sw;
            tap_offset = tap_row < r.taps
                             ? (row * s.kw + column) * s.Cin * s.Cout + k - tap * s.Cout
                             : -1;
        }
        __device__ float load(int i) const {
            bool inside = tap_offset >= 0 && channel[i] < s.Cin;
            return inside ? __ldg(kernel + tap_offset + channel[i] * s.Cout) : 0.0f;
        }
    };
};

// dx from dz. Thread blocks: x tiles of a phase's pixels; y phases and tiles of input channels.
template <typename Shape>
__device__ void input_gradient(const float* dz, const float* kernel, Convolution s, float* dx) {
    int phase = blockIdx.y % (s.sh * s.sw);
    AxisPhase r(phase / s.sw, s.sh, s.H, s.kh, s.top), c(phase % s.sw, s.sw, s.W, s.kw, s.left);
    int first_pixel = blockIdx.x * Shape::ROWS;
    int first_channel = blockIdx.y / (s.sh * s.sw) * Shape::COLUMNS;
    int depth = r.taps * c.taps * s.Cout;  // 0 if no tap meets the phase: then dx is 0
    int pixels = s.B * r.count * c.count;
    if (first_pixel >= pixels) return;  // all threads: the grid is for the largest phase
    float sums[Shape::TALL][Shape::WIDE];
    multiply<Shape>(
        Gradients{dz, s, r, c}, ReversedWeights{kernel, s, r, c}, first_pixel, first_channel, 0,
        depth, sums);
#pragma unroll
    for (int i = 0; i < Shape::TALL; ++i) {
        int number = first_pixel + Shape::thread_row() + i;
        if (number >= pixels) continue;
        Pixel in(number, r.count, c.count);
        int row = r.first + in.row * s.sh, column = c.first + in.column * s.sw;
        float* pixel = dx + ((in.image * s.H + row) * s.W + column) * s.Cin;
        store_vector(pixel, first_channel + Shape::thread_column(), s.Cin, sums[i]);
    }
}

// Twin: ops_numpy.conv2d_input_gradient
extern "C" __global__ void __launch_bounds__(TILE_THREADS, TILE_BLOCKS)
conv_implicit_input_gradient_narrow(
    PerNet<const float> dz, PerNet<const float> kernel, Convolution s, PerNet<float> dx) {
    input_gradient<Narrow>(dz.row(), kernel.row(), s, dx.row());
}

// Twin: ops_numpy.conv2d_input_gradient
extern "C" __global__ void __launch_bounds__(TILE_THREADS, TILE_BLOCKS)
conv_implicit_input_gradient_square(
    PerNet<const float> dz, PerNet<const float> kernel, Convolution s, PerNet<float> dx) {
    input_gradient<Square>(dz.row(), kernel.row(), s, dx.row());
}

// ---- gradient with respect to the weights -------------------------------------------------------
// Here the depth is long, all pixels of all images, and the result small. So the pixels are split:
// several thread blocks compute partial sums of the same tile, and another kernel adds these up in
// order. This also keeps the chains of float additions short.

// Left operand, Patches transposed. Rows: K = (kh, kw, Cin), and one more for the bias, whose input
// is always 1. Depth: output pixels. Elements: the input under the tap.
struct TransposedPatches {
    static constexpr bool DEPTH_FIRST = false;
    static constexpr int BIAS = -1;  // as tap_offset: the row is that of the bias
    const float* x;
    Convolution s;
    int begin;  // of the depth

    template <int ROWS>
    struct Share {
        const float* x;
        Convolution s;
        int tap_row[ROWS], tap_column[ROWS], tap_offset[ROWS];
        int number;
        Pixel pixel;

        __device__ Share(const TransposedPatches& p)
            : x(p.x), s(p.s), number(p.begin), pixel(p.begin, p.s.Ho, p.s.Wo) {}

        __device__ void row(int i, int number) {
            int tap = number / s.Cin;
            tap_row[i] = tap / s.kw;
            tap_column[i] = tap - tap_row[i] * s.kw;
            tap_offset[i] = (tap_row[i] * s.W + tap_column[i]) * s.Cin + number - tap * s.Cin;
            if (number == s.kh * s.kw * s.Cin)
                tap_offset[i] = BIAS;
            else if (tap_row[i] >= s.kh)
                tap_row[i] = NOWHERE;
        }
        // The pixels come in order and close together, so the position needs no division.
        __device__ void depth(int next) {
            pixel.column += next - number;
            number = next;
            while (pixel.column >= s.Wo) {
                pixel.column -= s.Wo;
                if (++pixel.row == s.Ho) {
                    pixel.row = 0;
                    ++pixel.image;
                }
            }
        }
        __device__ float load(int i) const {
            if (pixel.image >= s.B) return 0.0f;
            if (tap_offset[i] == BIAS) return 1.0f;
            int top = pixel.row * s.sh - s.top, left = pixel.column * s.sw - s.left;
            unsigned h = top + tap_row[i], w = left + tap_column[i];
            int corner = ((pixel.image * s.H + top) * s.W + left) * s.Cin;
            return h < s.H && w < s.W ? __ldg(x + corner + tap_offset[i]) : 0.0f;
        }
    };
};

// parts (splits, K + 1, Cout): partial sums of dkernel and dbias, each over `split_pixels` pixels.
// Thread blocks: x tiles of the K + 1 rows; y splits and tiles of output channels.
template <typename Shape>
__device__ void weight_gradient(
    const float* x, const float* dz, Convolution s, int split_pixels, float* parts) {
    int column_tiles = ceil_div(s.Cout, Shape::COLUMNS);
    int split = blockIdx.y / column_tiles;
    int first_row = blockIdx.x * Shape::ROWS;
    int first_filter = blockIdx.y % column_tiles * Shape::COLUMNS;
    int pixels = s.B * s.Ho * s.Wo, rows = s.kh * s.kw * s.Cin + 1;
    int begin = split * split_pixels, end = min(begin + split_pixels, pixels);
    float sums[Shape::TALL][Shape::WIDE];
    multiply<Shape>(
        TransposedPatches{x, s, begin}, Columns{dz, pixels, s.Cout}, first_row, first_filter, begin,
        end, sums);
    int n = first_filter + Shape::thread_column();
#pragma unroll
    for (int i = 0; i < Shape::TALL; ++i) {
        int row = first_row + Shape::thread_row() + i;
        if (row < rows) store_vector(parts + (split * rows + row) * s.Cout, n, s.Cout, sums[i]);
    }
}

// Twin: ops_numpy.conv2d_weight_gradient
extern "C" __global__ void __launch_bounds__(TILE_THREADS, TILE_BLOCKS)
conv_implicit_weight_gradient_narrow(
    PerNet<const float> x, PerNet<const float> dz, Convolution s, int split_pixels,
    PerNet<float> parts) {
    weight_gradient<Narrow>(x.row(), dz.row(), s, split_pixels, parts.row());
}

// Twin: ops_numpy.conv2d_weight_gradient
extern "C" __global__ void __launch_bounds__(TILE_THREADS, TILE_BLOCKS)
conv_implicit_weight_gradient_square(
    PerNet<const float> x, PerNet<const float> dz, Convolution s, int split_pixels,
    PerNet<float> parts) {
    weight_gradient<Square>(x.row(), dz.row(), s, split_pixels, parts.row());
}

// dkernel (weights,) and dbias (Cout,): the partial sums (splits, weights + Cout), added up in
// order.
// Twin: ops_numpy.conv2d_weight_gradient
extern "C" __global__ void conv_implicit_sum_parts(
    PerNet<const float> parts, int splits, int weights, int Cout, PerNet<float> dkernel,
    PerNet<float> dbias) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= weights + Cout) return;
    float sum = 0.0f;
    for (int split = 0; split < splits; ++split) sum += parts.row()[split * (weights + Cout) + i];
    if (i < weights)
        dkernel.row()[i] = sum;
    else
        dbias.row()[i - weights] = sum;
}
