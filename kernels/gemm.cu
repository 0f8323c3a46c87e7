// Products of matrices that lie in memory, in three arrangements, and sums of columns.
//
// Blocks: tiles of 64 rows, tiles of 64 columns of the result.
#include "activation.cuh"
#include "gemm.cuh"

template <typename Left, typename Right, typename Finish>
__device__ void product(const Left& left, const Right& right, int M, int N, int K, Finish finish) {
    int first_row = blockIdx.x * Square::ROWS, first_column = blockIdx.y * Square::COLUMNS;
    float sums[Square::TALL][Square::WIDE];
    multiply<Square>(left, right, first_row, first_column, 0, K, sums);
#pragma unroll
    for (int i = 0; i < Square::TALL; ++i)
#pragma unroll
        for (int j = 0; j < Square::WIDE; ++j) {
            int row = first_row + Square::thread_row() + i;
            int column = first_column + Square::thread_column() + j;
            if (row < M && column < N) finish(row, column, sums[i][j]);
        }
}

// c (M, N) = activation(a (M, K) @ b (K, N) + bias (N,))
extern "C" __global__ void __launch_bounds__(Square::THREADS) gemm(
    PerNet<const float> a, PerNet<const float> b, PerNet<const float> bias, int M, int N, int K,
    int activation, PerNet<float> c) {
    product(Rows{a.row(), M, K}, Columns{b.row(), K, N}, M, N, K, [&](int i, int j, float sum) {
        c.row()[i * N + j] = activate(activation, sum + bias.row()[j]);
    });
}

// c (M, N) = a (K, M)^T @ b (K, N)
extern "C" __global__ void __launch_bounds__(Square::THREADS) gemm_left_transposed(
    PerNet<const float> a, PerNet<const float> b, int M, int N, int K, PerNet<float> c) {
    product(Columns{a.row(), K, M}, Columns{b.row(), K, N}, M, N, K,
            [&](int i, int j, float sum) { c.row()[i * N + j] = sum; });
}

// c (M, N) = a (M, K) @ b (N, K)^T
extern "C" __global__ void __launch_bounds__(Square::THREADS) gemm_right_transposed(
    PerNet<const float> a, PerNet<const float> b, int M, int N, int K, PerNet<float> c) {
    product(Rows{a.row(), M, K}, Rows{b.row(), N, K}, M, N, K,
            [&](int i, int j, float sum) { c.row()[i * N + j] = sum; });
}

constexpr int SUM_COLUMNS = 32, SUM_ROWS = 8;

// sums (N,) of the columns of a (M, N). A block takes 32 columns, its threads every 8th row of one.
extern "C" __global__ void __launch_bounds__(SUM_COLUMNS * SUM_ROWS) column_sums(
    PerNet<const float> a, int M, int N, PerNet<float> sums) {
    __shared__ float parts[SUM_ROWS][SUM_COLUMNS];
    int column = blockIdx.x * SUM_COLUMNS + threadIdx.x;
    float part = 0.0f;
    if (column < N)
        for (int row = threadIdx.y; row < M; row += SUM_ROWS) part += a.row()[row * N + column];
    parts[threadIdx.y][threadIdx.x] = part;
    __syncthreads();
    if (threadIdx.y == 0 && column < N) {
        for (int i = 1; i < SUM_ROWS; ++i) part += parts[i][threadIdx.x];
        sums.row()[column] = part;
    }
}
