// Matrix products in three layouts, and sums of columns. A thread block makes a tile of 64 x 64
// elements of the result.
#include "activation.cuh"
#include "gemm.cuh"

// c (M, N) = finish(left @ right), where finish(j, sum) gives the element in column j.
template <typename Left, typename Right, typename Finish>
__device__ void product(
    const Left& left, const Right& right, int M, int N, int K, float* c, Finish finish) {
    int first_row = blockIdx.x * Square::ROWS, first_column = blockIdx.y * Square::COLUMNS;
    float sums[Square::TALL][Square::WIDE];
    multiply<Square>(left, right, first_row, first_column, 0, K, sums);
    int column = first_column + Square::thread_column();
#pragma unroll
    for (int i = 0; i < Square::TALL; ++i) {
        int row = first_row + Square::thread_row() + i;
        if (row >= M) break;
#pragma unroll
        for (int j = 0; j < Square::WIDE; ++j) sums[i][j] = finish(column + j, sums[i][j]);
        store_vector(c + row * N, column, N, sums[i]);
    }
}

__device__ inline float unchanged(int, float sum) { return sum; }

// c (M, N) = activation(a (M, K) @ b (K, N) + bias (N,))
// Twin: ops_numpy.dense
extern "C" __global__ void __launch_bounds__(TILE_THREADS, TILE_BLOCKS) gemm(
    PerNet<const float> a, PerNet<const float> b, PerNet<const float> bias, int M, int N, int K,
    int activation, PerNet<float> c) {
    auto finish = [&](int j, float sum) {
        return j < N ? activate(activation, sum + bias.row()[j]) : 0.0f;
    };
    product(Rows{a.row(), M, K}, Columns{b.row(), K, N}, M, N, K, c.row(), finish);
}

// c (M, N) = a (K, M)^T @ b (K, N)
// Twin: ops_numpy.dense_weight_gradient
extern "C" __global__ void __launch_bounds__(TILE_THREADS, TILE_BLOCKS) gemm_left_transposed(
    PerNet<const float> a, PerNet<const float> b, int M, int N, int K, PerNet<float> c) {
    product(Columns{a.row(), K, M}, Columns{b.row(), K, N}, M, N, K, c.row(), unchanged);
}

// c (M, N) = a (M, K) @ b (N, K)^T
// Twin: ops_numpy.dense_input_gradient
extern "C" __global__ void __launch_bounds__(TILE_THREADS, TILE_BLOCKS) gemm_right_transposed(
    PerNet<const float> a, PerNet<const float> b, int M, int N, int K, PerNet<float> c) {
    product(Rows{a.row(), M, K}, Rows{b.row(), N, K}, M, N, K, c.row(), unchanged);
}

constexpr int SUM_COLUMNS = 32, SUM_ROWS = 8;

// sums (N,) = the sums of the columns of a (M, N). A thread block takes 32 columns, a thread every
// 8th row of one column.
// Twin: ops_numpy.dense_weight_gradient
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
