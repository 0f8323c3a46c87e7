// A matrix product by tiles in shared memory, for any two operands.
//
//        columns (N)                A thread block makes a tile of ROWS x COLUMNS elements of the
//      +-----------+                product. It copies DEPTH elements of each row of both operands
//      |  tile of  |  depth         to shared memory. Then a thread reads TALL + WIDE of them at a
//      |  right    |                time for TALL * WIDE multiplications, whose sums stay in its
//      +-----------+                registers. Meanwhile it already loads the next tiles.
// +---+-----------+
// | l |  product  |  rows (M)       Shared memory holds both tiles as (depth, row), so that the
// +---+-----------+                 elements that a thread reads are side by side.
// depth (K)
//
// An operand is a struct. Its constant DEPTH_FIRST says whether memory has the elements along the
// depth side by side. Its struct Share<ROWS>, made from it, loads a thread's elements of a tile, in
// ROWS rows:
//     row(i, number)      sets the thread's i-th row; `number` may be past the last
//     depth(k)            sets the thread's place along the depth
//     load(i)             loads the element there; 0 outside of the matrix
#pragma once

#include "common.cuh"

constexpr int DEPTH = 16;
// Padding of a tile's rows in shared memory, so that they start 4 banks apart: eight lanes along
// the depth and four along the rows then store to 32 different banks, and float4 stays aligned.
constexpr int PAD = 4;
// For __launch_bounds__: threads of a thread block, and thread blocks per multiprocessor at a time.
// Without the second the compiler allows for more on some GPUs, and registers spill.
constexpr int TILE_THREADS = 128, TILE_BLOCKS = 3;

template <int TILE_ROWS, int TILE_COLUMNS>
struct Tile {
    static constexpr int ROWS = TILE_ROWS, COLUMNS = TILE_COLUMNS, TALL = 8, WIDE = 4;
    static constexpr int THREADS = (ROWS / TALL) * (COLUMNS / WIDE);
    static_assert(THREADS == TILE_THREADS, "a launch has TILE_THREADS threads");

    // Where in the tile the thread's elements of the product begin.
    __device__ static int thread_row() { return threadIdx.x / (COLUMNS / WIDE) * TALL; }
    __device__ static int thread_column() { return threadIdx.x % (COLUMNS / WIDE) * WIDE; }
};

// Loads N values, four at a time.
template <int N>
__device__ inline void load_vector(const float* from, float (&to)[N]) {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
        float4 four = *reinterpret_cast<const float4*>(from + i);
        to[i] = four.x;
        to[i + 1] = four.y;
        to[i + 2] = four.z;
        to[i + 3] = four.w;
    }
}

// Stores values to `column` and the next ones of a row of `columns` elements; skips those past the
// end. If rows are aligned it stores a float4: eight lanes side by side then fill 128 bytes.
template <int N>
__device__ inline void store_vector(float* row, int column, int columns, const float (&values)[N]) {
    static_assert(N == 4, "one vector");
    if (columns % N == 0) {
        if (column < columns)
            *reinterpret_cast<float4*>(row + column) =
                make_float4(values[0], values[1], values[2], values[3]);
        return;
    }
#pragma unroll
    for (int j = 0; j < N; ++j)
        if (column + j < columns) row[column + j] = values[j];
}

// A thread's part of copying a tile of an operand, ROWS x DEPTH elements, to shared memory: fetch
// loads its elements into registers, store writes them to the tile.
template <int ROWS, int THREADS, typename Operand>
struct Stager {
    static constexpr bool DEPTH_FIRST = Operand::DEPTH_FIRST;
    // Threads along the axis that is contiguous in memory, and along the other axis.
    static constexpr int LANES = DEPTH_FIRST ? 8 : THREADS < ROWS ? THREADS : ROWS;
    static constexpr int OTHERS = THREADS / LANES;
    static constexpr int ROWS_A_THREAD = DEPTH_FIRST ? ROWS / OTHERS : ROWS / LANES;
    static constexpr int DEPTHS_A_THREAD = DEPTH_FIRST ? DEPTH / LANES : DEPTH / OTHERS;

    typename Operand::template Share<ROWS_A_THREAD> operand;
    float values[DEPTHS_A_THREAD][ROWS_A_THREAD];

    // The thread's i-th row and k-th depth, in the tile.
    __device__ static int row(int i) {
        int t = threadIdx.x;
        return DEPTH_FIRST ? t / LANES + i * OTHERS : t % LANES + i * LANES;
    }
    __device__ static int depth(int k) {
        int t = threadIdx.x;
        return DEPTH_FIRST ? t % LANES + k * LANES : t / LANES + k * OTHERS;
    }

    __device__ Stager(int first_row, const Operand& whole) : operand(whole) {
#pragma unroll
        for (int i = 0; i < ROWS_A_THREAD; ++i) operand.row(i, first_row + row(i));
    }

    __device__ void fetch(int first_depth) {
#pragma unroll
        for (int k = 0; k < DEPTHS_A_THREAD; ++k) {
            operand.depth(first_depth + depth(k));
#pragma unroll
            for (int i = 0; i < ROWS_A_THREAD; ++i) values[k][i] = operand.load(i);
        }
    }

    __device__ void store(float (&tile)[DEPTH][ROWS + PAD]) const {
#pragma unroll
        for (int k = 0; k < DEPTHS_A_THREAD; ++k)
#pragma unroll
            for (int i = 0; i < ROWS_A_THREAD; ++i) tile[depth(k)][row(i)] = values[k][i];
    }
};

// Computes the thread block's tile of left @ right, which starts at (first_row, first_column), with
// sums over the depth from `begin` to `end`, in order. `sums` gets the thread's elements, which
// start at (thread_row, thread_column) of the tile.
template <typename Shape, typename Left, typename Right>
__device__ void multiply(
    const Left& left, const Right& right, int first_row, int first_column, int begin, int end,
    float (&sums)[Shape::TALL][Shape::WIDE]) {
    __shared__ __align__(16) float left_tile[DEPTH][Shape::ROWS + PAD];
    __shared__ __align__(16) float right_tile[DEPTH][Shape::COLUMNS + PAD];
    Stager<Shape::ROWS, Shape::THREADS, Left> left_stager(first_row, left);
    Stager<Shape::COLUMNS, Shape::THREADS, Right> right_stager(first_column, right);
    int thread_row = Shape::thread_row(), thread_column = Shape::thread_column();

#pragma unroll
    for (int i = 0; i < Shape::TALL; ++i)
#pragma unroll
        for (int j = 0; j < Shape::WIDE; ++j) sums[i][j] = 0.0f;

    left_stager.fetch(begin);
    right_stager.fetch(begin);
    for (int k = begin; k < end; k += DEPTH) {
        __syncthreads();  // all threads have read the tiles before
        left_stager.store(left_tile);
        right_stager.store(right_tile);
        __syncthreads();
        if (k + DEPTH < end) {
            left_stager.fetch(k + DEPTH);
            right_stager.fetch(k + DEPTH);
        }
#pragma unroll
        for (int d = 0; d < DEPTH; ++d) {
            float a[Shape::TALL], b[Shape::WIDE];
            load_vector(&left_tile[d][thread_row], a);
            load_vector(&right_tile[d][thread_column], b);
#pragma unroll
            for (int i = 0; i < Shape::TALL; ++i)
#pragma unroll
                for (int j = 0; j < Shape::WIDE; ++j) sums[i][j] = fmaf(a[i], b[j], sums[i][j]);
        }
    }
}

// ---- operands and tiles that several kernels use -----------------------------------------------

// An operand stored as (depths, rows).
struct Columns {
    static constexpr bool DEPTH_FIRST = false;
    const float* matrix;
    int depths, rows;

    template <int ROWS>
    struct Share {
        const float* matrix;
        int depths, rows, number[ROWS], at;

        __device__ Share(const Columns& m) : matrix(m.matrix), depths(m.depths), rows(m.rows) {}
        __device__ void row(int i, int row) { number[i] = row; }
        __device__ void depth(int k) { at = k; }
        __device__ float load(int i) const {
            bool inside = at < depths && number[i] < rows;
            return inside ? __ldg(matrix + at * rows + number[i]) : 0.0f;
        }
    };
};

// An operand stored as (rows, depths).
struct Rows {
    static constexpr bool DEPTH_FIRST = true;
    const float* matrix;
    int rows, depths;

    template <int ROWS>
    struct Share {
        const float* matrix;
        int depths, rows, number[ROWS], at;

        __device__ Share(const Rows& m) : matrix(m.matrix), depths(m.depths), rows(m.rows) {}
        __device__ void row(int i, int row) { number[i] = row; }
        __device__ void depth(int k) { at = k; }
        __device__ float load(int i) const {
            bool inside = at < depths && number[i] < rows;
            return inside ? __ldg(matrix + number[i] * depths + at) : 0.0f;
        }
    };
};

typedef Tile<128, 32> Narrow;  // for results of up to 32 columns
typedef Tile<64, 64> Square;
