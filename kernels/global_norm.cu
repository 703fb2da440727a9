// Sum of squares of some ranges of the gradients, for clipping: out[0] = sum of src^2.
//
// Layouts: src, the gradient arena, f32; table [slices] of the ranges; partials [blocks] f64; out [1] f32.
// Bytes: 4 a value, read once (BERT-base: 440 MB).
// Geometry: sum_squares: at most 1024 blocks of 256 threads, each striding over tiles of 4096 values
// with 16-byte loads; a thread's four sums are f32 (some hundred squares each), everything from there on
// is f64. sum_squares_finish: one block adds the blocks' sums in order. The order is fixed: no atomics.
// A gradient that is not finite, or whose square is not, makes the sum infinite or NaN, and the update
// that reads it does nothing.
#include "slices.cuh"

__device__ inline void sum_squares(
    const float* __restrict__ src, const Slice* __restrict__ table, uint32_t slices, uint32_t tiles,
    double* __restrict__ partials) {
    __shared__ double scratch[WARPS];
    float sum[4] = {};
    for (uint32_t index = blockIdx.x; index < tiles; index += gridDim.x) {
        const Tile tile = find_tile(table, slices, index);
        const float* from = src + tile.arena;
#pragma unroll 4
        for (uint32_t i = threadIdx.x; i < tile.quads; i += BLOCK) {
            const float4 x = load4(from + 4 * i);
            sum[0] = fmaf(x.x, x.x, sum[0]), sum[1] = fmaf(x.y, x.y, sum[1]);
            sum[2] = fmaf(x.z, x.z, sum[2]), sum[3] = fmaf(x.w, x.w, sum[3]);
        }
        for (uint32_t i = 4 * tile.quads + threadIdx.x; i < tile.length; i += BLOCK) sum[0] = fmaf(from[i], from[i], sum[0]);
    }
    const double mine = (static_cast<double>(sum[0]) + sum[1]) + (static_cast<double>(sum[2]) + sum[3]);
    const double total = block_sum<WARPS>(mine, scratch);
    if (threadIdx.x == 0) partials[blockIdx.x] = total;
}

__device__ inline void sum_squares_finish(const double* __restrict__ partials, uint32_t blocks, float* __restrict__ out) {
    __shared__ double scratch[WARPS];
    double sum = 0.0;
    for (uint32_t i = threadIdx.x; i < blocks; i += BLOCK) sum += partials[i];
    sum = block_sum<WARPS>(sum, scratch);
    if (threadIdx.x == 0) out[0] = static_cast<float>(sum);
}

#define KERNELS(TYPE)                                                                                                 \
    extern "C" __global__ void __launch_bounds__(BLOCK) sum_squares_##TYPE(                                           \
        const float* src, const Slice* table, uint32_t slices, uint32_t tiles, double* partials) {                    \
        sum_squares(src, table, slices, tiles, partials);                                                             \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(BLOCK) sum_squares_finish_##TYPE(                                    \
        const double* partials, uint32_t blocks, float* out) {                                                        \
        sum_squares_finish(partials, blocks, out);                                                                    \
    }

KERNELS(f32)
KERNELS(bf16)
