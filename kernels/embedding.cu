// The embedding layer, forward: sum = word[id] + position[pos] + segment[seg], kept;
// out = dropout(LayerNorm(sum)). And the first part of its backward: from dout to the gradient of
// `sum`, in place. The gradients of the three tables are in `embedding_tables.cu`.
//
// Layouts: word [V, H], position [P, H], segment [G, H], gamma, beta [H] in T; ids, positions,
// segments, samples [T] u32; sum, out, dout [T, H] in T; row_stats [T, 2] f32, (mean, 1 / sqrt(var +
// eps)); segment_stride is H, or 0 where the table has one row (G = 1); partials [blocks, 2, H] f32, dgamma and dbeta, added up by `add_partials`.
// Bytes a row (bf16): forward reads 2 H of the word table (the two others stay in the caches) and
// writes 4 H; backward reads 4 H and writes 2 H.
// Geometry as in `residual_layernorm.cu`: one warp a row up to H = 1024, a block above.
// Tried: no bound on the registers of the wide forward: ptxas for sm_100 then aims at six blocks an SM and spills;
// f32 bound to five blocks, which spills on sm_90, or to four, which spills on sm_100: it stays unbound.
#include "rows.cuh"

template <class T, int VALUES, int WARPS>
__device__ inline void embed(
    const Counts* counts, const uint32_t* ids, const uint32_t* positions, const uint32_t* segments,
    const uint32_t* samples, const T* __restrict__ word, const T* __restrict__ position, const T* __restrict__ segment,
    uint32_t segment_stride, const T* __restrict__ gamma, const T* __restrict__ beta, T* __restrict__ sum, float2* row_stats,
    T* __restrict__ out, uint32_t hidden, float eps, Dropout drop) {
    __shared__ float scratch[WARPS];
    const uint32_t index = first_row<WARPS>();
    if (index >= counts->tokens) return;
    const Row<T, VALUES, WARPS> row(hidden, scratch);
    const uint64_t at = static_cast<uint64_t>(index) * hidden;
    const uint32_t place = positions[index];
    typename Row<T, VALUES, WARPS>::Values x;
    typename Row<T, VALUES, WARPS>::Raw second, third;
    row.load(word + static_cast<uint64_t>(ids[index]) * hidden, x);
    row.fetch(position + static_cast<uint64_t>(place) * hidden, second);
    row.fetch(segment + static_cast<uint64_t>(segments[index]) * segment_stride, third);
#pragma unroll
    for (int i = 0; i < row.VECTORS; ++i) {
        float p[row.WIDTH], s[row.WIDTH];
        unpack(second[i], p);
        unpack(third[i], s);
#pragma unroll
        for (int j = 0; j < row.WIDTH; ++j) x[i][j] = rounded<T>(x[i][j] + p[j] + s[j]);
    }
    row.store(sum + at, x);
    const float2 moments = row_moments(row, x, eps);
    if (row.first == 0) row_stats[index] = moments;
    row_normalise(row, moments, gamma, beta, x);
    if (drop.threshold > 0) row.drop(drop, samples[index], place, counts->epoch, x);
    row.store(out + at, x);
}

template <class T, int VALUES, int WARPS>
__device__ inline void embed_backward(
    const Counts* counts, const uint32_t* positions, const uint32_t* samples, const T* __restrict__ sum,
    const float2* __restrict__ row_stats, const T* __restrict__ gamma, T* dout, float* __restrict__ partials,
    uint32_t hidden, Dropout drop) {
    __shared__ float scratch[WARPS];
    __shared__ float4 shared[WARPS == 1 ? VALUES * 32 : 1];
    const Row<T, VALUES, WARPS> row(hidden, scratch);
    const uint32_t tokens = counts->tokens, epoch = counts->epoch;
    typename Row<T, VALUES, WARPS>::Values dgamma = {}, dbeta = {};
    for (uint32_t index = first_row<WARPS>(); index < tokens; index += row_stride<WARPS>()) {
        const uint64_t at = static_cast<uint64_t>(index) * hidden;
        typename Row<T, VALUES, WARPS>::Values d;
        typename Row<T, VALUES, WARPS>::Raw x;
        row.fetch(sum + at, x);
        row.load(dout + at, d);
        if (drop.threshold > 0) row.drop(drop, samples[index], positions[index], epoch, d);
        row_backward(row, row_stats[index], gamma, x, d, dgamma, dbeta);
        row.store(dout + at, d);
    }
    float* to = partials + static_cast<uint64_t>(blockIdx.x) * 2 * hidden;
    store_columns(row, dgamma, shared, to);
    store_columns(row, dbeta, shared, to + hidden);
}

#define KERNELS(T, TYPE, WIDEST, VALUES, WARPS, BLOCKS)                                                                \
    extern "C" __global__ void __launch_bounds__(BLOCK, BLOCKS) embed_##WIDEST##_##TYPE(                               \
        const Counts* counts, const uint32_t* ids, const uint32_t* positions, const uint32_t* segments,                \
        const uint32_t* samples, const T* word, const T* position, const T* segment, uint32_t segment_stride,          \
        const T* gamma, const T* beta, T* sum, float2* row_stats, T* out, uint32_t hidden, float eps,                  \
        uint32_t threshold, float scale, uint32_t seed, uint32_t site) {                                               \
        embed<T, VALUES, WARPS>(counts, ids, positions, segments, samples, word, position, segment, segment_stride,    \
                                gamma, beta, sum, row_stats, out, hidden, eps,                                         \
                                Dropout{threshold, scale, seed, site});                                                \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(BLOCK, VALUES > 24 ? 2 : 3) embed_backward_##WIDEST##_##TYPE(         \
        const Counts* counts, const uint32_t* positions, const uint32_t* samples, const T* sum,                        \
        const float2* row_stats, const T* gamma, T* dout, float* partials, uint32_t hidden, uint32_t threshold,        \
        float scale, uint32_t seed, uint32_t site) {                                                                   \
        embed_backward<T, VALUES, WARPS>(counts, positions, samples, sum, row_stats, gamma, dout, partials, hidden,    \
                                         Dropout{threshold, scale, seed, site});                                       \
    }

#define WIDTHS(T, TYPE, WIDE_BLOCKS) \
    KERNELS(T, TYPE, 256, 8, 1, 1)   \
    KERNELS(T, TYPE, 512, 16, 1, 1)  \
    KERNELS(T, TYPE, 768, 24, 1, 1)  \
    KERNELS(T, TYPE, 1024, 32, 1, 1) \
    KERNELS(T, TYPE, 4096, 32, 4, WIDE_BLOCKS)

WIDTHS(float, f32, 1)
WIDTHS(bf16, bf16, 5)
