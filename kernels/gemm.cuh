// A matrix product by tiles in shared memory, for any two operands.
//
//        columns (N)                A block makes ROWS x COLUMNS of the product. Of each operand it
//      +-----------+                stages DEPTH numbers of each row in shared memory, whichever
//      |  tile of  |  depth         way they lie in memory or are gathered; a thread then reads
//      |  right    |                TALL + WIDE of them for TALL * WIDE multiplications, whose sums
//      +-----------+                stay in its registers. While it multiplies, the next tile's
// +---+-----------+                 numbers are already on their way.
// | l |  product  |  rows (M)
// +---+-----------+                 Both tiles are kept as (depth, row), so that a thread's numbers
// depth (K)                         lie side by side.
//
// An operand is a struct that says where its numbers are; DEPTH_FIRST, whether they lie side by
// side in memory along the depth; and a struct Share<ROWS>, made from it, for a thread that has to
// do with ROWS rows of a tile:
//     row(i, number)      the thread's i-th row from now on; `number` may lie beyond the last
//     depth(k)            the thread's place along the depth from now on
//     load(i)             the number there, 0 outside of the matrix
#pragma once

#include "common.cuh"

constexpr int DEPTH = 16;
// Rows of a tile are 4 numbers apart in their banks: eight lanes along the depth and four along the
// rows then store to 32 different banks, and vectors of four stay aligned.
constexpr int PAD = 4;
// What is promised to the compiler: threads of a block, and blocks of a multiprocessor at a time.
// It makes room for more on some GPUs if it is not told, and registers spill.
constexpr int TILE_THREADS = 128, TILE_BLOCKS = 3;

template <int TILE_ROWS, int TILE_COLUMNS>
struct Tile {
    static constexpr int ROWS = TILE_ROWS, COLUMNS = TILE_COLUMNS, TALL = 8, WIDE = 4;
    static constexpr int THREADS = (ROWS / TALL) * (COLUMNS / WIDE);
    static_assert(THREADS == TILE_THREADS, "the launch's");

    // Where in the tile the thread's share of the product begins.
    __device__ static int thread_row() { return threadIdx.x / (COLUMNS / WIDE) * TALL; }
    __device__ static int thread_column() { return threadIdx.x % (COLUMNS / WIDE) * WIDE; }
};

// N numbers, four at a time.
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

// Numbers for `column` and the next ones of a row of memory that has `columns` of them; those
// beyond the last are left out. At once where that can be: eight lanes side by side then fill 128
// bytes.
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

// A thread's share of staging `ROWS` rows of an operand, `DEPTH` numbers of each.
template <int ROWS, int THREADS, typename Operand>
struct Stager {
    static constexpr bool DEPTH_FIRST = Operand::DEPTH_FIRST;
    static constexpr int LANES = DEPTH_FIRST ? 8 : THREADS < ROWS ? THREADS : ROWS;  // side by side
    static constexpr int OTHERS = THREADS / LANES;
    static constexpr int ROWS_A_THREAD = DEPTH_FIRST ? ROWS / OTHERS : ROWS / LANES;
    static constexpr int DEPTHS_A_THREAD = DEPTH_FIRST ? DEPTH / LANES : DEPTH / OTHERS;

    typename Operand::template Share<ROWS_A_THREAD> operand;
    float numbers[DEPTHS_A_THREAD][ROWS_A_THREAD];

    // The tile's row and depth of the thread's i-th.
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
            for (int i = 0; i < ROWS_A_THREAD; ++i) numbers[k][i] = operand.load(i);
        }
    }

    __device__ void store(float (&tile)[DEPTH][ROWS + PAD]) const {
#pragma unroll
        for (int k = 0; k < DEPTHS_A_THREAD; ++k)
#pragma unroll
            for (int i = 0; i < ROWS_A_THREAD; ++i) tile[depth(k)][row(i)] = numbers[k][i];
    }
};

// The block's tile of left * right, from `first_row` and `first_column` on, summed over the depth
// from `begin` to `end` in order: `sums` are the thread's, from (thread_row, thread_column) of the
// tile on.
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
        __syncthreads();  // everybody is done with the tiles before
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

// ---- operands and tiles for everybody ----------------------------------------------------------

// An operand that lies in memory as (depths, rows).
struct Columns {
    static constexpr bool DEPTH_FIRST = false;
    const float* numbers;
    int depths, rows;

    template <int ROWS>
    struct Share {
        const float* numbers;
        int depths, rows, number[ROWS], at;

        __device__ Share(const Columns& m) : numbers(m.numbers), depths(m.depths), rows(m.rows) {}
        __device__ void row(int i, int row) { number[i] = row; }
        __device__ void depth(int k) { at = k; }
        __device__ float load(int i) const {
            bool there = at < depths && number[i] < rows;
            return there ? __ldg(numbers + at * rows + number[i]) : 0.0f;
        }
    };
};

// An operand that lies in memory as (rows, depths).
struct Rows {
    static constexpr bool DEPTH_FIRST = true;
    const float* numbers;
    int rows, depths;

    template <int ROWS>
    struct Share {
        const float* numbers;
        int depths, rows, number[ROWS], at;

        __device__ Share(const Rows& m) : numbers(m.numbers), depths(m.depths), rows(m.rows) {}
        __device__ void row(int i, int row) { number[i] = row; }
        __device__ void depth(int k) { at = k; }
        __device__ float load(int i) const {
            bool there = at < depths && number[i] < rows;
            return there ? __ldg(numbers + number[i] * depths + at) : 0.0f;
        }
    };
};

typedef Tile<128, 32> Narrow;  // where the result has up to 32 columns
typedef Tile<64, 64> Square;
