// What is left of the launches of a first block that is rebuilt (rebuilt.cuh): the moments of its y,
// with the sums over pixels that need no dx; and its gradients, from these sums.
#include "rebuilt.cuh"

constexpr int THREADS = 192;
constexpr int WARPS = THREADS / WARP;
constexpr int PIXELS = 16;  // of a warp at a time: two groups of eight

// From x (B, H, W, Cin): parts (runs of tiles, STATISTICS, Cout) of the moments of y; and sums
// (runs of tiles, 2, K + 1, Cout) over pixels of x * y and of x * m, with m = activation'(y); for
// the bias, in row K, x is 1.
//
// Thread blocks: x runs of tiles; y filters.
// Twin: block_oracles.rebuilt_moments
extern "C" __global__ void __launch_bounds__(THREADS, 2) rebuilt_moments(
    PerNet<const float> x, PerNet<const float> kernel, PerNet<const float> bias, Convolution s,
    Tiling t, float floor, PerNet<float> parts, PerNet<float> sums) {
    extern __shared__ __align__(16) float shared[];
    Rebuilt block(s, x.row(), kernel.row(), bias.row(), floor, t.rows, s.Wo, shared);
    float* area = shared + block.size(1);  // first of sums, then of moments
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, group = lane / 4, quarter = lane % 4;
    int filter = blockIdx.y * WIDE;
    block.set_distances();
    __syncthreads();
    LaneWeights w = block.weights(filter);
    Divider by_columns(s.Wo);
    auto place = [&](int pixel) {
        int row = by_columns.quotient(pixel);
        return block.place(0, row, pixel - row * s.Wo);
    };
    int elements = block.elements() + 1;
    ElementSums of_y, of_mask;  // of a run of tiles
    float4 pivot, deviations, squares;
    int count;
    for (int tile = blockIdx.x; tile < t.tiles; tile = next_tile(t, tile)) {
        if (begins_run(t, tile)) {
#pragma unroll
            for (int i = 0; i < 16; ++i) of_y[i / 4][i % 4] = of_mask[i / 4][i % 4] = 0.0f;
            pivot = deviations = squares = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            count = 0;
        }
        TilePlace of_tile(t, tile);
        int number = of_tile.image, band = of_tile.row;
        int here = min(t.rows, s.Ho - band) * s.Wo;
        __syncthreads();  // all threads have read what was staged before
        block.stage_image(number, 1, band, 0);
        __syncthreads();
        for (int first = warp * PIXELS; first < here; first += WARPS * PIXELS) {
            float4 y[2][2], mask[2][2];
            int own[2][2];
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                block.compute(w, place(min(first + j * 8 + group, here - 1)), y[j]);
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    int pixel = first + j * 8 + quarter * 2 + half;
                    bool exists = pixel < here;
                    own[j][half] = place(min(pixel, here - 1));
                    float4& v = y[j][half];
                    mask[j][half] = make_float4(
                        exists && v.x > floor, exists && v.y > floor, exists && v.z > floor,
                        exists && v.w > floor);
                    v = keep4(v, exists ? 0xf : 0);
                    if (!exists) continue;
                    if (count == 0) pivot = v;
                    float4 d = sub4(v, pivot);
                    deviations = add4(deviations, d);
                    squares = fma4(d, d, squares);
                    ++count;
                }
            }
            float right[2][OF_PIXELS][2];
            block.patches(own, right);
            add_patches(y, right, of_y);
            add_patches(mask, right, of_mask);
        }
        if (!ends_run(t, tile)) continue;

        int run = run_of(t, tile);
        float* result = sums.row() + run * 2 * elements * s.Cout;
        store_sums(of_y, area + warp * SUMS_OF_WARP);
        store_sums(of_mask, area + (WARPS + warp) * SUMS_OF_WARP);
        __syncthreads();
        for (int i = 0; i < 2; ++i)
            write_sums(area + i * WARPS * SUMS_OF_WARP, WARPS, 1, elements, s.Cout, filter,
                       result + i * elements * s.Cout);
        __syncthreads();

        float* row = area + (warp * 4 + quarter) * PIVOTED * WIDE + group * 4;
        float n = count;
        store4(row, pivot);
        store4(row + WIDE, deviations);
        store4(row + 2 * WIDE, squares);
        store4(row + 3 * WIDE, make_float4(n, n, n, n));
        __syncthreads();
        float* part = parts.row() + run * STATISTICS * s.Cout + filter;
        for (int c = threadIdx.x; c < WIDE && filter + c < s.Cout; c += THREADS)
            add_up_pivoted(area, WARPS * 4, WIDE, c, part + c, s.Cout);
    }
}

// dkernel (K, Cout) and dbias (Cout,) from the three sums over pixels: of x * m*dx, of_dx (count,
// K + 1, Cout), as block_input_gradient of the block above writes it; and those of rebuilt_moments,
// of_y (count_y, 2, K + 1, Cout). sums_parts and the values after it give a, b and c, as in
// block_input_gradient. Also writes the gradients of gamma and beta (Cout,).
//
// Four lanes share an element, as they share a channel in block.cuh.
// Twin: block_oracles.rebuilt_weight_gradient
extern "C" __global__ void __launch_bounds__(256) rebuilt_weight_gradient(
    PerNet<const float> of_dx, int count, PerNet<const float> of_y, int count_y,
    PerNet<const float> sums_parts, int sums_count, PerNet<const float> gamma,
    PerNet<const float> mean, PerNet<const float> variance, float epsilon, Convolution s,
    PerNet<float> dkernel, PerNet<float> dbias, PerNet<float> dgamma, PerNet<float> dbeta) {
    extern __shared__ __align__(16) float shared[];
    int padded = ceil_div(s.Cout, CHUNK) * CHUNK;
    float *as = shared, *bs = as + padded, *cs = bs + padded;
    NormalizationGradient gradient{gamma.row(), sums_parts.row(), sums_count, mean.row(),
                                   variance.row(), epsilon, s.B * s.Ho * s.Wo};
    gradient.prepare(s.Cout, as, bs, cs, blockIdx.x == 0 ? dgamma.row() : nullptr, dbeta.row());
    __syncthreads();

    int size = s.kh * s.kw * s.Cin * s.Cout, thread = blockIdx.x * blockDim.x + threadIdx.x;
    int i = shared_channel(thread), share = own_share(thread);
    int existing = min(i, size + s.Cout - 1);
    float sum_dx = 0.0f, sum_y = 0.0f, sum_mask = 0.0f;
#pragma unroll 8
    for (int part = share; part < count; part += SHARERS)
        sum_dx += of_dx.row()[part * (size + s.Cout) + existing];
#pragma unroll 4
    for (int part = share; part < count_y; part += SHARERS) {
        const float* of_part = of_y.row() + part * 2 * (size + s.Cout) + existing;
        sum_y += of_part[0];
        sum_mask += of_part[size + s.Cout];
    }
    sum_dx = sum_of_sharers(sum_dx);
    sum_y = sum_of_sharers(sum_y);
    sum_mask = sum_of_sharers(sum_mask);
    if (share > 0 || i > existing) return;
    int c = i % s.Cout;
    float value = fmaf(as[c], sum_dx, fmaf(bs[c], sum_y, cs[c] * sum_mask));
    if (i < size)
        dkernel.row()[i] = value;
    else
        dbias.row()[c] = value;
}
