// LayerNorm alone and fused with what surrounds it in BERT (post-norm):
//   forward    y = residual + dropout(y + bias), kept;  out = LayerNorm(y)
//   backward   dresidual = dLayerNorm(dout),  dy = dropout(dresidual);  dgamma, dbeta, dbias
//   norm       out = LayerNorm(x), and its backward in place
//
// Layouts: y, residual, out, dout, dresidual, dy, x, d [rows, H] in T; row_stats [rows, 2] f32, (mean,
// 1 / sqrt(var + eps)); gamma, beta, bias [H] in T; partials [blocks, 3, H] f32 (norm: [blocks, 2, H]).
// The moments are those of y as it is stored (rounded to bf16), so that forward and backward speak of
// the same function and LayerNorm may be recomputed from y to the bit.
//
// Bytes a row of H (bf16): forward reads 4 H and writes 4 H, backward reads 4 H and writes 4 H, norm
// reads 2 H and writes 2 H, its backward 4 H and 2 H; parameters come from the caches. Unfused, the
// forward alone would move 20 H. Dropout's numbers are drawn twice instead of stored.
//
// Geometry: blocks of 128 threads. Up to H = 1024 a warp owns a row and keeps it in registers, 4 rows
// a block; wider rows (to 4096) take the whole block. Forward: one block for 4 rows. Backward: as many
// blocks as fit the card, each striding over the rows, with its share of the column sums in registers
// (2 or 3 values a column); the blocks' sums are added by `add_partials` in the order of blocks. No
// atomics: the same launch gives the same bits.
// The name's number is the widest H of the instantiation; a 768-wide row on the 1024 kernel would idle
// a quarter of its lanes and hold 24 more registers.
//
// Tried: moments in one pass (sum and sum of squares): saves a shuffle chain and loses all digits of a
// variance far below mean^2; two passes over registers cost no memory traffic.
#include "rows.cuh"

template <class T, int VALUES, int WARPS>
__device__ inline void residual_norm(
    const Counts* counts, const uint32_t* samples, const uint32_t* positions, const T* __restrict__ residual,
    const T* __restrict__ bias, const T* __restrict__ gamma, const T* __restrict__ beta, T* y, float2* row_stats,
    T* __restrict__ out, uint32_t hidden, float eps, Dropout drop) {
    __shared__ float scratch[WARPS];
    const uint32_t index = first_row<WARPS>();
    if (index >= counts->tokens) return;
    const Row<T, VALUES, WARPS> row(hidden, scratch);
    const uint64_t at = static_cast<uint64_t>(index) * hidden;
    typename Row<T, VALUES, WARPS>::Values x;
    typename Row<T, VALUES, WARPS>::Raw from;
    row.fetch(residual + at, from);
    row.load(y + at, x);
#pragma unroll
    for (int i = 0; i < row.VECTORS; ++i) {
        float b[row.WIDTH];
        unpack(row.has(i) ? load_raw(bias + row.column(i)) : make_uint4(0, 0, 0, 0), b);
#pragma unroll
        for (int j = 0; j < row.WIDTH; ++j) x[i][j] += b[j];
    }
    if (drop.threshold > 0) row.drop(drop, samples[index], positions[index], counts->epoch, x);
#pragma unroll
    for (int i = 0; i < row.VECTORS; ++i) {
        float r[row.WIDTH];
        unpack(from[i], r);
#pragma unroll
        for (int j = 0; j < row.WIDTH; ++j) x[i][j] = rounded<T>(x[i][j] + r[j]);
    }
    row.store(y + at, x);
    const float2 moments = row_moments(row, x, eps);
    if (row.first == 0) row_stats[index] = moments;
    row_normalise(row, moments, gamma, beta, x);
    row.store(out + at, x);
}

template <class T, int VALUES, int WARPS>
__device__ inline void residual_norm_backward(
    const Counts* counts, const uint32_t* samples, const uint32_t* positions, const T* __restrict__ y,
    const float2* __restrict__ row_stats, const T* __restrict__ gamma, const T* __restrict__ dout,
    T* __restrict__ dresidual, T* __restrict__ dy, float* __restrict__ partials, uint32_t capacity, uint32_t hidden,
    Dropout drop) {
    __shared__ float scratch[WARPS];
    __shared__ float4 shared[WARPS == 1 ? VALUES * 32 : 1];
    const Row<T, VALUES, WARPS> row(hidden, scratch);
    const uint32_t tokens = counts->tokens, epoch = counts->epoch;
    typename Row<T, VALUES, WARPS>::Values dgamma = {}, dbeta = {}, dbias = {};
    for (uint32_t index = first_row<WARPS>(); index < capacity; index += row_stride<WARPS>()) {
        const uint64_t at = static_cast<uint64_t>(index) * hidden;
        if (index >= tokens) {
            row.clear(dresidual + at);
            row.clear(dy + at);
            continue;
        }
        typename Row<T, VALUES, WARPS>::Values d;
        typename Row<T, VALUES, WARPS>::Raw x;
        row.fetch(y + at, x);
        row.load(dout + at, d);
        row_backward(row, row_stats[index], gamma, x, d, dgamma, dbeta);
        row.store(dresidual + at, d);
        if (drop.threshold > 0) row.drop(drop, samples[index], positions[index], epoch, d);
        row.store(dy + at, d);
#pragma unroll
        for (int i = 0; i < row.VECTORS; ++i)
#pragma unroll
            for (int j = 0; j < row.WIDTH; ++j) dbias[i][j] += row.has(i) ? d[i][j] : 0.0f;
    }
    float* to = partials + static_cast<uint64_t>(blockIdx.x) * 3 * hidden;
    store_columns(row, dgamma, shared, to);
    store_columns(row, dbeta, shared, to + hidden);
    store_columns(row, dbias, shared, to + 2 * hidden);
}

template <class T, int VALUES, int WARPS>
__device__ inline void norm(
    const Counts* counts, uint32_t rows, const T* __restrict__ x, const T* __restrict__ gamma,
    const T* __restrict__ beta, float2* row_stats, T* __restrict__ out, uint32_t hidden, float eps) {
    __shared__ float scratch[WARPS];
    const uint32_t index = first_row<WARPS>();
    if (index >= row_count(counts, rows)) return;
    const Row<T, VALUES, WARPS> row(hidden, scratch);
    const uint64_t at = static_cast<uint64_t>(index) * hidden;
    typename Row<T, VALUES, WARPS>::Values v;
    row.load(x + at, v);
    const float2 moments = row_moments(row, v, eps);
    if (row.first == 0) row_stats[index] = moments;
    row_normalise(row, moments, gamma, beta, v);
    row.store(out + at, v);
}

template <class T, int VALUES, int WARPS>
__device__ inline void norm_backward(
    const Counts* counts, uint32_t rows, const T* __restrict__ x, const float2* __restrict__ row_stats,
    const T* __restrict__ gamma, T* d, float* __restrict__ partials, uint32_t capacity, uint32_t hidden) {
    __shared__ float scratch[WARPS];
    __shared__ float4 shared[WARPS == 1 ? VALUES * 32 : 1];
    const Row<T, VALUES, WARPS> row(hidden, scratch);
    const uint32_t count = row_count(counts, rows);
    typename Row<T, VALUES, WARPS>::Values dgamma = {}, dbeta = {};
    for (uint32_t index = first_row<WARPS>(); index < capacity; index += row_stride<WARPS>()) {
        const uint64_t at = static_cast<uint64_t>(index) * hidden;
        if (index >= count) {
            row.clear(d + at);
            continue;
        }
        typename Row<T, VALUES, WARPS>::Values v;
        typename Row<T, VALUES, WARPS>::Raw raw;
        row.fetch(x + at, raw);
        row.load(d + at, v);
        row_backward(row, row_stats[index], gamma, raw, v, dgamma, dbeta);
        row.store(d + at, v);
    }
    float* to = partials + static_cast<uint64_t>(blockIdx.x) * 2 * hidden;
    store_columns(row, dgamma, shared, to);
    store_columns(row, dbeta, shared, to + hidden);
}

#define KERNELS(T, TYPE, WIDEST, VALUES, WARPS)                                                                     \
    extern "C" __global__ void __launch_bounds__(BLOCK) residual_norm_##WIDEST##_##TYPE(                            \
        const Counts* counts, const uint32_t* samples, const uint32_t* positions, const T* residual, const T* bias, \
        const T* gamma, const T* beta, T* y, float2* row_stats, T* out, uint32_t hidden, float eps,                 \
        uint32_t threshold, float scale, uint32_t seed, uint32_t site) {                                            \
        residual_norm<T, VALUES, WARPS>(counts, samples, positions, residual, bias, gamma, beta, y, row_stats, out, \
                                        hidden, eps, Dropout{threshold, scale, seed, site});                        \
    }                                                                                                               \
    extern "C" __global__ void __launch_bounds__(BLOCK, VALUES > 24 ? 2 : 3)                                        \
        residual_norm_backward_##WIDEST##_##TYPE(                                                                   \
            const Counts* counts, const uint32_t* samples, const uint32_t* positions, const T* y,                   \
            const float2* row_stats, const T* gamma, const T* dout, T* dresidual, T* dy, float* partials,           \
            uint32_t capacity, uint32_t hidden, uint32_t threshold, float scale, uint32_t seed, uint32_t site) {    \
        residual_norm_backward<T, VALUES, WARPS>(counts, samples, positions, y, row_stats, gamma, dout, dresidual,  \
                                                 dy, partials, capacity, hidden,                                    \
                                                 Dropout{threshold, scale, seed, site});                            \
    }                                                                                                               \
    extern "C" __global__ void __launch_bounds__(BLOCK) norm_##WIDEST##_##TYPE(                                     \
        const Counts* counts, uint32_t rows, const T* x, const T* gamma, const T* beta, float2* row_stats, T* out,  \
        uint32_t hidden, float eps) {                                                                               \
        norm<T, VALUES, WARPS>(counts, rows, x, gamma, beta, row_stats, out, hidden, eps);                          \
    }                                                                                                               \
    extern "C" __global__ void __launch_bounds__(BLOCK, VALUES > 24 ? 2 : 3) norm_backward_##WIDEST##_##TYPE(       \
        const Counts* counts, uint32_t rows, const T* x, const float2* row_stats, const T* gamma, T* d,             \
        float* partials, uint32_t capacity, uint32_t hidden) {                                                      \
        norm_backward<T, VALUES, WARPS>(counts, rows, x, row_stats, gamma, d, partials, capacity, hidden);          \
    }

#define WIDTHS(T, TYPE)           \
    KERNELS(T, TYPE, 256, 8, 1)   \
    KERNELS(T, TYPE, 512, 16, 1)  \
    KERNELS(T, TYPE, 768, 24, 1)  \
    KERNELS(T, TYPE, 1024, 32, 1) \
    KERNELS(T, TYPE, 4096, 32, 4)

WIDTHS(float, f32)
WIDTHS(bf16, bf16)
