// Column sums of a fixed order, for the gradients of biases and of LayerNorm's parameters.
//   add_partials     to_k += sum over blocks of partials[block, k], k < quantities  (every partial sum)
//   column_partials  partials[c] = sum of rows [256 c, 256 c + 256) of x
// Kernels that hold the rows anyway write partial sums themselves (GELU, LayerNorm, attention on tensor cores,
// the embedding); only behind plain attention are the rows of dqkv read once more by column_partials.
//
// Layouts: x [rows, N] in T; partials [blocks, quantities, N] f32; to_0, to_1, to_2 [N] f32, where
// gradients are kept and added to.
// cuBLASLt could sum dy's columns in the epilogue of the weight's product, but it overwrites where
// several packs accumulate into one gradient, and its order is its own.
//
// Bytes: column_partials reads 2 N a row (bf16) and writes 4 N for 256 rows; add_partials reads what
// was written, from the L2 cache, and touches 8 N.
// Geometry: column_partials: grid (slabs of 32 vectors, chunks of 256 rows), 8 warps; warp w sums rows
// w, w + 8, ... of the chunk, 512 bytes a load, four rows in flight; the warps' sums are added in
// their order. add_partials: grid (32 columns a block, quantities), 8 warps, warp w sums blocks w,
// w + 8, ...; again in order. No atomics.
#include "columns.cuh"

constexpr uint32_t BLOCK = 256;
constexpr uint32_t WARPS = BLOCK / 32;
constexpr uint32_t CHUNK = 256;

template <class T>
__device__ inline void column_partials(
    const Counts* counts, uint32_t rows, const T* __restrict__ x, float* __restrict__ partials, uint32_t width) {
    constexpr int WIDTH = Vec<T>::WIDTH;
    __shared__ Slab<T> slab;
    const uint32_t column = (blockIdx.x * 32 + threadIdx.x % 32) * WIDTH;
    const uint32_t first = blockIdx.y * CHUNK, count = row_count(counts, rows);
    const uint32_t end = count < first + CHUNK ? count : first + CHUNK;
    float sum[WIDTH] = {};
    if (column < width) {
#pragma unroll 4
        for (uint32_t row = first + threadIdx.x / 32; row < end; row += COLUMN_WARPS) {
            float v[WIDTH];
            load_vec(x + static_cast<uint64_t>(row) * width + column, v);
#pragma unroll
            for (int j = 0; j < WIDTH; ++j) sum[j] += v[j];
        }
    }
    store_slab(slab, sum, partials + static_cast<uint64_t>(blockIdx.y) * width, width);
}

__device__ inline void add_partials(
    const float* __restrict__ partials, uint32_t blocks, uint32_t width, float* to0, float* to1, float* to2) {
    __shared__ float shared[WARPS][32];
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t column = blockIdx.x * 32 + lane, quantity = blockIdx.y;
    const uint64_t stride = static_cast<uint64_t>(gridDim.y) * width;
    float sum = 0.0f;
    if (column < width) {
        const float* from = partials + static_cast<uint64_t>(quantity) * width + column;
#pragma unroll 8
        for (uint32_t block = warp; block < blocks; block += WARPS) sum += from[block * stride];
    }
    shared[warp][lane] = sum;
    __syncthreads();
    if (warp != 0 || column >= width) return;
#pragma unroll
    for (int other = 1; other < WARPS; ++other) sum += shared[other][lane];
    float* to = quantity == 0 ? to0 : quantity == 1 ? to1 : to2;
    to[column] += sum;
}

#define KERNELS(T, TYPE)                                                                                            \
    extern "C" __global__ void __launch_bounds__(BLOCK) column_partials_##TYPE(                                     \
        const Counts* counts, uint32_t rows, const T* x, float* partials, uint32_t width) {                         \
        column_partials<T>(counts, rows, x, partials, width);                                                       \
    }                                                                                                               \
    extern "C" __global__ void __launch_bounds__(BLOCK) add_partials_##TYPE(                                        \
        const float* partials, uint32_t blocks, uint32_t width, float* to0, float* to1, float* to2) {               \
        add_partials(partials, blocks, width, to0, to1, to2);                                                       \
    }

KERNELS(float, f32)
KERNELS(bf16, bf16)
